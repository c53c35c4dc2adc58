import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from snakemake.utils import update_config
from tests.conftest import CHECKOUT, recipe_values

from transfer_influence.config.dataset import (
    ArraysDataset,
    DatasetFile,
    describe_dataset,
    find_dataset,
)
from transfer_influence.config.settings import check, parse, read_yaml, updated
from transfer_influence.config.stages import (
    InfluenceStage,
    RemovalStage,
    RetrainedTransferStage,
    SourceStage,
    TransferStage,
    influence_stage,
    removal_stage,
    retrained_transfer_stage,
    source_stage,
    transfer_stage,
)
from transfer_influence.config.study import (
    Removal,
    Study,
    check_study,
    check_units,
    read_study,
    shard_models,
    shard_name,
)
from transfer_influence.errors import UserError

MISSING = object()


def study_values() -> dict[str, Any]:
    return {
        "study": "small",
        "models": 40,
        "source": {"dataset": "pictures", "recipe": recipe_values()},
        "targets": {
            "digits": {"modes": ["fixed", "full"], "recipe": recipe_values()},
            "few": {"dataset": "digits", "modes": ["fixed"], "recipe": recipe_values()},
        },
        "counterfactuals": {"counts": [0, 3, 6]},
    }


def bank(**changes: Any) -> dict[str, Any]:
    """The values of a source of existing models."""
    files = {"checkpoints": "bank/{model}.pt", "masks": "masks.npy"}
    return {"dataset": "pictures", "recipe": recipe_values(), **files, **changes}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The study's values with one key set, or taken away if the value is MISSING."""
    values = copy.deepcopy(study_values())
    *parents, last = path.split("/")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return values


def study(path: str = "seed", value: Any = 0) -> Study:
    return check_study(changed(path, value), "mine.yaml")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("zzz", 1, "zzz: unknown key; correct or remove it."),
        ("modles", 1, "modles: unknown key (did you mean 'models'?); correct or remove it."),
        (
            "source/recipe/epocs",
            1,
            "source.recipe.epocs: unknown key (did you mean 'epochs'?); correct or remove it.",
        ),
        (
            "targets/digits/recipe/batch_norm",
            "frozen",
            "targets.digits.recipe.batch_norm: unknown key (did you mean 'batchnorm'?); correct or "
            "remove it.",
        ),
        (
            "source/recipe/batchnorm",
            "frozen",
            "source.recipe.batchnorm: unknown key; correct or remove it.",
        ),
        (
            "source/recipe/schedule/peak_epoc",
            1,
            "source.recipe.schedule.peak_epoc: unknown key (did you mean 'peak_epoch'?); correct "
            "or remove it.",
        ),
        (
            "source/recipe/schedule/evry",
            1,
            "source.recipe.schedule.evry: unknown key; correct or remove it.",
        ),
        (
            "source/recipe/augmentation/filp",
            True,
            "source.recipe.augmentation.filp: unknown key (did you mean 'flip'?); correct or "
            "remove it.",
        ),
        ("models", MISSING, "models: this key is missing; add it."),
        (
            "source/recipe/schedule",
            {"peak_epoch": 1},
            "source.recipe.schedule.kind: this key is missing; add it.",
        ),
        (
            "source/recipe/schedule",
            {"kind": "cyclic"},
            "source.recipe.schedule.peak_epoch: this key is missing; add it.",
        ),
        (
            "source/recipe/schedule",
            {"kind": "cosine"},
            "source.recipe.schedule.kind: 'cosine' is not valid: choose one of 'cyclic', 'step', "
            "'multi_step'.",
        ),
        (
            "models",
            "many",
            "models: 'many' is not valid: input should be a valid integer, unable to parse string "
            "as an integer; correct it.",
        ),
        (
            "models",
            1,
            "models: 1 is not valid: input should be greater than or equal to 2; correct it.",
        ),
        (
            "source/recipe/learning_rate",
            float("nan"),
            "source.recipe.learning_rate: nan is not valid: input should be a finite number; "
            "correct it.",
        ),
        (
            "targets/digits/modes",
            ["fixed", "fixed"],
            "targets.digits.modes: 'fixed' is named twice; remove one.",
        ),
        (
            "targets/digits/modes",
            ["frozen"],
            "targets.digits.modes.0: 'frozen' is not valid: input should be 'fixed' or 'full'; "
            "correct it.",
        ),
        (
            "targets",
            {},
            "targets: {} is not valid: dictionary should have at least 1 item after validation, "
            "not 0; correct it.",
        ),
        (
            "targets/my digits",
            {"modes": ["fixed"], "recipe": recipe_values()},
            "targets.my digits: 'my digits' becomes a file name; use letters, digits, '_', '-' and "
            "'.' only.",
        ),
        (
            "study",
            "../elsewhere",
            "study: '../elsewhere' becomes a file name; use letters, digits, '_', '-' and '.' "
            "only.",
        ),
        (
            "source/dataset",
            "",
            "source.dataset: '' becomes a file name; use letters, digits, '_', '-' and '.' only.",
        ),
        (
            "source/subset",
            {"fraction": 0.5, "count": 4},
            "source.subset: both `fraction` and `count` are given; keep one of them.",
        ),
        (
            "source/subset",
            {"keep": "dogs.txt", "drop": "cats.txt"},
            "source.subset: both `keep` and `drop` are given; keep one of them.",
        ),
        (
            "source/subset",
            {"keep": "dogs.txt", "seed": 1},
            "source.subset: `keep` draws nothing, so `sampling` and `seed` mean nothing; remove "
            "them.",
        ),
        (
            "source/subset",
            {"fraction": 0.4, "sampling": "complement_pairs"},
            "source.subset: complement_pairs are halves; set `fraction` to 0.5.",
        ),
        (
            "source/subset",
            {"drop": "cats.txt"},
            "source.subset lists what every model sees, so no influence can be estimated and "
            "nothing ranked; remove `counterfactuals`.",
        ),
        (
            "source/checkpoints",
            "{model}.pt",
            "source: `checkpoints` and `masks` belong together; give both or neither.",
        ),
        (
            "source/key_map",
            {"module.": ""},
            "source: `state_key` and `key_map` are for `checkpoints`; remove them.",
        ),
        (
            "source",
            {**bank(), "subset": {"fraction": 0.5}},
            "source: `masks` say what each model of `checkpoints` has seen; leave only `unit` in "
            "`subset`.",
        ),
        *(
            (
                "source",
                bank(checkpoints=path),
                f"source: checkpoints: {path!r} does not say where the number of a model stands; "
                "write {model} there, and no other braces.",
            )
            for path in ("bank/model.pt", "bank/{0}.pt", "{model", "{number}.pt", "{model.x}")
        ),
        (
            "source/subset/fraction",
            1,
            "source.subset.fraction: 1 is not valid: input should be less than 1; correct it.",
        ),
        (
            "source/recipe/schedule/peak_epoch",
            2.5,
            "source.recipe: schedule.peak_epoch 2.5 lies after the last of 2 epochs; lower it.",
        ),
        (
            "counterfactuals/counts",
            [0, 3, 3],
            "counterfactuals.counts: 3 is named twice; remove one.",
        ),
        (
            "counterfactuals/counts",
            [0, -3],
            "counterfactuals: counts: -3 is negative; remove 0 classes or more.",
        ),
        (
            "counterfactuals/orders",
            ["top", "top"],
            "counterfactuals.orders: 'top' is named twice; remove one.",
        ),
        *(
            (
                "counterfactuals/lists",
                {name: "dogs.txt"},
                f"counterfactuals.lists.{name}: {told}.",
            )
            for name, told in [
                ("top", "'top' is the name of another order; choose another one"),
                ("none", "'none' is the name of another order; choose another one"),
                (
                    "digits-fixed-top",
                    "'digits-fixed-top' names an order; use letters, digits and '_' only",
                ),
            ]
        ),
        (
            "counterfactuals/estimator",
            "ridge",
            "counterfactuals.estimator: 'ridge' is not among influence.estimators; add it there.",
        ),
        (
            "counterfactuals/orders",
            ["top", "leep"],
            "counterfactuals.orders: 'leep' is neither top, bottom, random, "
            "random_matched nor one of `surrogates`; correct it, or add it there.",
        ),
        (
            "surrogates/lists",
            {"leep": "names.txt"},
            "surrogates.lists.leep: 'leep' is the name of another order; choose another one.",
        ),
        (
            "surrogates/methods",
            ["leep", "leep"],
            "surrogates.methods: 'leep' is named twice; remove one.",
        ),
        (
            "surrogates/checkpoints",
            4,
            "surrogates.checkpoints: 4, but counterfactuals.replicates trains 3 on all classes; "
            "lower the first, or raise the second.",
        ),
        ("models", 3, "models: 3 tell no influences; raise it to 4 at least."),
        (
            "influence/estimators",
            ["means"],
            "influence.estimators.0: 'means' is not valid: input should be 'difference_in_means', "
            "'ridge' or 'lasso'; correct it.",
        ),
    ],
)
def test_a_mistake_in_a_study_is_one_sentence(path, value, sentence):
    with pytest.raises(UserError) as mistake:
        check_study(changed(path, value), "mine.yaml")
    assert str(mistake.value) == f"mine.yaml: {sentence}"


def test_complement_pairs_are_of_an_even_number_of_models():
    values = changed("source/subset", {"sampling": "complement_pairs"})
    assert check_study(values, "mine.yaml").models == 40
    with pytest.raises(UserError, match=r"^mine.yaml: models: 41 leave the last of the complement"):
        check_study({**values, "models": 41}, "mine.yaml")


def test_several_mistakes_are_counted():
    with pytest.raises(UserError, match=r"^mine.yaml: study: .* add it \(3 more like this\)\.$"):
        check_study({}, "mine.yaml")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_a_file_that_is_no_study_at_all_is_refused(values):
    with pytest.raises(UserError, match=r"^mine.yaml: the whole file: .* correct it\.$"):
        check_study(values, "mine.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(
        [
            "study",
            "models",
            "source",
            "source/recipe",
            "source/recipe/schedule",
            "targets",
            "targets/digits",
            "counterfactuals",
            "source/subset",
            "targets/digits/modes",
        ]
    ),
)
def test_whatever_stands_in_a_study_it_is_taken_or_refused_in_one_line(value, path):
    try:
        check_study(changed(path, value), "mine.yaml")
    except UserError as mistake:
        sentence = str(mistake)
        assert sentence.startswith("mine.yaml: ")
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        study().models = 3


def test_a_peak_at_the_last_epoch_is_allowed():
    assert study("source/recipe/schedule/peak_epoch", 2).source.recipe.schedule.peak_epoch == 2


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("targets:\n  digits: {a: 1}\n  few: {a: 1}\n  digits: {a: 2}\n", "digits", 4),
        ("seed: 1\nmodels: 3\nseed: 2\n", "seed", 3),
        ("a: {b: 1, c: 2, b: 3}\n", "b", 1),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, key, line):
    path = write(tmp_path, "mine", text)
    with pytest.raises(
        UserError, match=rf"^{path}: not valid YAML \({key!r} .* line {line}, .*mend"
    ):
        read_yaml(path)


def test_merged_keys_may_be_overridden(tmp_path):
    path = write(
        tmp_path,
        "mine",
        "a: {deep: {x: &x {one: 1, two: 2}}}\n"
        "b: {deeper: {deepest: {y: &y {<<: *x, two: 3}}}}\nc: {<<: *y, one: 4}\n",
    )
    assert read_yaml(path)["c"] == {"one": 4, "two": 3}


def test_broken_yaml_is_one_sentence(tmp_path):
    path = write(tmp_path, "mine", "a: [1, 2\nb: 3\n")
    with pytest.raises(
        UserError, match=r"not valid YAML \(.*\); mend the syntax there\.$"
    ) as mistake:
        read_yaml(path)
    assert "\n" not in str(mistake.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"^no.yaml: no such file; check the path\.$"):
        read_yaml(Path("no.yaml"))


def test_an_unknown_data_set_is_refused_with_those_there_are(tmp_path):
    write(tmp_path / "mine", "pictures", "kind: arrays\nsource: sklearn.digits\n")
    folders = [tmp_path / "mine", tmp_path / "house"]
    with pytest.raises(UserError) as mistake:
        describe_dataset("picture", folders)
    assert str(mistake.value) == (
        f"data set 'picture': no picture.yaml in {folders[0]} or {folders[1]}; write that file, or "
        f"use one of pictures."
    )


def test_the_first_folder_that_has_a_data_set_counts(tmp_path):
    mine = write(tmp_path / "mine", "pictures", "kind: arrays\nsource: mine.npz\n")
    write(tmp_path / "house", "pictures", "kind: arrays\nsource: house.npz\n")
    settings, path = find_dataset("pictures", [tmp_path / "mine", tmp_path / "house"])
    assert settings == ArraysDataset(kind="arrays", source="mine.npz")
    assert path == mine


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("source: x.npz\n", "kind: this key is missing; add it."),
        (
            "kind: arays\nsource: x.npz\n",
            "kind: 'arays' is not valid: choose one of 'folder', 'torchvision', 'arrays', 'table', "
            "'union'.",
        ),
        ("kind: arrays\n", "source: this key is missing; add it."),
        (
            "kind: arrays\nsource: x\nmaximun: 3\n",
            "maximun: unknown key (did you mean 'maximum'?); correct or remove it.",
        ),
        (
            "kind: arrays\nsource: x\nstorage: {qualty: 3}\n",
            "storage.qualty: unknown key (did you mean 'quality'?); correct or remove it.",
        ),
        ("kind: union\nparts: [a, a]\n", "the whole file: 'a' is named twice; remove one."),
        (
            "kind: union\nparts: [a, b]\nsplit: {}\n",
            "the whole file: a union has no `split` of its own; put it into its parts.",
        ),
        (
            "kind: arrays\nsource: x\nsplit: {train_per_class: 0}\n",
            "split.train_per_class: 0 is not valid: input should be greater than 0; correct it.",
        ),
        (
            "",
            "the whole file: None is not valid: input should be a valid dictionary or object to "
            "extract fields from; correct it.",
        ),
    ],
)
def test_a_mistake_in_a_data_set_is_one_sentence(tmp_path, text, sentence):
    path = write(tmp_path, "pictures", text)
    with pytest.raises(UserError) as mistake:
        describe_dataset("pictures", [tmp_path])
    assert str(mistake.value) == f"{path}: {sentence}"


def test_a_union_is_described_with_its_parts(tmp_path):
    write(tmp_path, "both", "kind: union\nparts: [one, two]\n")
    write(tmp_path, "one", "kind: arrays\nsource: one.npz\n")
    two = write(tmp_path, "two", "kind: arrays\nsource: two.npz\n")
    before = describe_dataset("both", [tmp_path])
    assert list(json.loads(before)) == ["both", "one", "two"]
    two.write_text("kind: arrays\nsource: two.npz\nmaximum: 16\n")
    assert describe_dataset("both", [tmp_path]) != before
    two.unlink()
    with pytest.raises(UserError, match="data set 'two'"):
        describe_dataset("both", [tmp_path])


def test_a_union_that_contains_itself_does_not_hang(tmp_path):
    write(tmp_path, "one", "kind: union\nparts: [one, two]\n")
    write(tmp_path, "two", "kind: union\nparts: [one, two]\n")
    assert list(json.loads(describe_dataset("one", [tmp_path]))) == ["one", "two"]


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "config" / "datasets").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_data_sets_that_come_with_the_workflow_are_valid(path):
    check(DatasetFile, read_yaml(path), str(path))


@pytest.mark.parametrize(
    ("subset", "counts", "least"),
    [
        ({"fraction": 0.5}, None, 2),
        ({"fraction": 0.05}, None, 20),
        ({"count": 10}, None, 11),
        ({"fraction": 0.5}, [0], 2),
        ({"fraction": 0.5}, [9, 0], 11),
        ({"count": 10}, [0, 9], 11),
        ({"count": 10}, [0, 10], 12),
    ],
)
def test_a_study_knows_how_many_source_classes_it_needs(subset, counts, least):
    values = changed("source/subset", subset)
    values["counterfactuals"] = None if counts is None else {"counts": counts}
    assert check_study(values, "mine.yaml").least_units == least


def test_existing_models_are_found_by_their_numbers():
    assert study("source", bank()).source.checkpoint(7) == Path("bank/7.pt")
    padded = study("source", bank(checkpoints="{model:04d}/{model}.pt", subset={"unit": "class"}))
    assert padded.source.checkpoint(7) == Path("0007/7.pt")


def test_a_subset_is_half_if_nothing_is_said():
    assert study("source/subset", {"unit": "example"}).source.subset.size(11) == 5


def test_too_few_source_examples_are_refused():
    check_units("pictures", "example", 11, 11)
    with pytest.raises(UserError, match="'pictures': 10 examples, but the study needs at"):
        check_units("pictures", "example", 10, 11)


def test_too_few_source_classes_are_refused():
    check_units("pictures", "class", 11, 11)
    with pytest.raises(UserError) as mistake:
        check_units("pictures", "class", 10, 11)
    assert str(mistake.value).startswith("data set 'pictures': 10 classes, but the study needs at")
    assert "source.subset or counterfactuals.counts" in str(mistake.value)


@given(st.integers(4, 500), st.integers(1, 70))
def test_shards_are_full_and_cover_every_model_once(models, size):
    values = {**study_values(), "models": models, "models_per_job": size}
    shards = [shard_models(shard) for shard in check_study(values, "mine.yaml").shards]
    assert {len(shard) for shard in shards} == {size}
    numbers = [model for shard in shards for model in shard]
    assert numbers == list(range(len(numbers)))
    assert models <= len(numbers) < models + size


@given(st.integers(0, 10**7), st.integers(1, 10**4))
def test_a_shards_name_says_its_models(first, size):
    assert shard_models(shard_name(first, size)) == range(first, first + size)


def test_names_of_shards_sort_like_their_models():
    values = {**study_values(), "models": 71_753, "models_per_job": 64}
    shards = check_study(values, "mine.yaml").shards
    assert shards == sorted(shards)
    assert shards[0] == "000000-000063"


def test_targets_without_a_data_set_take_their_own_name():
    assert [study().dataset_of(target) for target in ("digits", "few")] == ["digits", "digits"]
    assert study().datasets == ["pictures", "digits"]
    assert study().transfers == [("digits", "fixed"), ("digits", "full"), ("few", "fixed")]


def test_removals_share_the_baseline_and_the_random_ones():
    one = study("counterfactuals/replicates_per_job", 2)
    everything = [removal for pair in one.transfers for removal in one.removals(*pair)]
    by_name = {removal.name: removal for removal in everything}
    assert all(by_name[removal.name] == removal for removal in everything)
    assert sorted(by_name) == sorted(
        f"{point}-{first}"
        for point in [
            *("none", "random-3", "random-6"),
            *(
                f"{target}-{mode}-{order}-{count}"
                for target, mode in study().transfers
                for order in ("top", "bottom")
                for count in (3, 6)
            ),
        ]
        for first in (0, 2)
    )
    first, last = range(2), range(2, 3)
    assert by_name["none-2"] == Removal("none-2", None, 0, last, None)
    assert by_name["random-3-0"] == Removal("random-3-0", "random", 3, first, None)
    assert by_name["digits-full-top-3-0"] == Removal(
        "digits-full-top-3-0", "top", 3, first, ("digits", "full")
    )
    names = [removal.name for removal in one.removals("digits", "fixed")]
    assert len(names) == len(set(names)) == 7 * 2


def test_budgets_share_the_baseline_and_nothing_else():
    one = study("counterfactuals/budgets", ["epochs", "steps"])
    alone = study()
    names = {removal.name: removal for removal in one.removals("digits", "fixed")}
    published = {removal.name: removal for removal in alone.removals("digits", "fixed")}
    assert published.items() <= names.items()
    steps = {name: names[name] for name in names.keys() - published.keys()}
    assert sorted(steps) == sorted(
        name.replace(f"-{removal.count}-", f"-{removal.count}-steps-")
        for name, removal in published.items()
        if removal.order
    )
    assert {removal.budget for removal in steps.values()} == {"steps"}
    only = study("counterfactuals/budgets", ["steps"]).removals("digits", "fixed")
    assert "none-0" in {removal.name for removal in only}
    assert len(only) == len(published)


def test_more_replicates_fill_the_last_job_of_a_point_and_then_add_one():
    for replicates, expected in [(1, [1]), (2, [2]), (3, [2, 1]), (4, [2, 2]), (5, [2, 2, 1])]:
        values = changed("counterfactuals/replicates_per_job", 2)
        values["counterfactuals"]["replicates"] = replicates
        removals = check_study(values, "mine.yaml").removals("digits", "fixed")
        found = [list(removal.replicates) for removal in removals if removal.order is None]
        assert [len(one) for one in found] == expected
        assert [one for part in found for one in part] == list(range(replicates))


@pytest.mark.parametrize("counts", [[3, 6], [3, 0, 6], [0, 3, 6]])
def test_the_baseline_is_trained_whether_it_is_named_or_not(counts):
    chosen = study("counterfactuals/counts", counts)
    assert chosen.removals("few", "fixed") == study().removals("few", "fixed")
    assert chosen.all_removals == study().all_removals
    assert next(iter(chosen.all_removals)) == "none-0"


def listing(path: Path, length: int) -> dict[str, Any]:
    """The values of a study that removes a list, too."""
    path.write_text("".join(f"class {number}\n" for number in range(length)))
    return changed("counterfactuals/lists", {"dogs": str(path)})


def test_a_list_is_removed_at_each_count_below_its_length_and_as_a_whole(tmp_path):
    for length, points in [(2, [2]), (3, [3]), (4, [3, 4]), (6, [3, 6]), (7, [3, 6, 7])]:
        one = check_study(listing(tmp_path / "dogs.txt", length), "mine.yaml")
        removals = one.removals("digits", "fixed")
        assert removals == [
            *study().removals("digits", "fixed"),
            *(Removal(f"dogs-{count}-0", "dogs", count, range(3), None) for count in points),
        ]
        assert removals[-1] == one.removals("few", "fixed")[-1]


def test_the_lists_of_a_target_are_removed_whole_and_for_it_alone():
    lists = {"dogs": {"remove": "dogs.txt"}, "cats": {"keep": "cats.txt"}}
    one = study("targets/digits/lists", lists)
    names = {(removal.name, removal.order) for removal in one.removals("digits", "fixed")}
    assert {("digits-dogs-0", "dogs"), ("digits-cats-0", "cats")} <= names
    assert one.removals("digits", "full")[-2:] == one.removals("digits", "fixed")[-2:]
    assert not {"dogs", "cats"} & {removal.order for removal in one.removals("few", "fixed")}
    kept = one.all_removals["digits-cats-0"]
    assert removal_stage(one, kept).keeps
    assert not removal_stage(one, one.all_removals["digits-dogs-0"]).keeps


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("targets/digits/lists", {"dogs": {}}, "give either `remove` or `keep`"),
        (
            "targets/digits/lists",
            {"dogs": {"remove": "a.txt", "keep": "b.txt"}},
            "give either `remove` or `keep`",
        ),
        ("targets/digits/lists", {"top": {"remove": "a.txt"}}, "'top' is the name of another"),
    ],
)
def test_lists_of_a_target_that_say_nothing_are_refused(path, value, sentence):
    with pytest.raises(UserError, match=sentence):
        study(path, value)


def test_lists_of_a_target_need_counterfactuals():
    values = changed("counterfactuals", None)
    values["targets"]["digits"]["lists"] = {"dogs": {"remove": "dogs.txt"}}
    with pytest.raises(UserError, match="'dogs' is to be removed, but nothing is retrained"):
        check_study(values, "mine.yaml")


def test_examples_are_not_matched_by_their_images():
    values = changed("source/subset", {"unit": "example"})
    values["counterfactuals"]["orders"] = ["top", "random_matched"]
    with pytest.raises(UserError, match=r"random_matched is for classes.*; use random"):
        check_study(values, "mine.yaml")


def test_a_study_needs_more_classes_than_its_longest_list(tmp_path):
    assert check_study(listing(tmp_path / "dogs.txt", 30), "mine.yaml").least_units == 32


def test_a_list_that_is_missing_or_empty_is_refused(tmp_path):
    values = listing(tmp_path / "dogs.txt", 0)
    with pytest.raises(UserError, match=r"dogs.txt: lists no unit; write at least one\.$"):
        check_study(values, "mine.yaml").removals("digits", "fixed")
    (tmp_path / "dogs.txt").unlink()
    with pytest.raises(UserError, match=r"dogs.txt: no such file; correct the path\.$"):
        check_study(values, "mine.yaml").removals("digits", "fixed")


def test_the_first_estimator_ranks_if_none_is_named():
    values = changed("influence/estimators", ["ridge", "lasso"])
    assert check_study(values, "mine.yaml").ranked_by == "ridge"
    values["counterfactuals"]["estimator"] = "lasso"
    assert check_study(values, "mine.yaml").ranked_by == "lasso"
    values["counterfactuals"] = None
    assert check_study(values, "mine.yaml").ranked_by == "ridge"


def test_a_study_without_counterfactuals_removes_nothing():
    assert study("counterfactuals", None).removals("digits", "fixed") == []


KEYS = [
    ("seed", 5),
    ("models", 90),
    ("models_per_job", 5),
    ("study", "other"),
    ("results", "elsewhere"),
    ("source/subset", {"count": 3}),
    ("source/architecture", {"width": 3}),
    ("source/recipe/epochs", 9),
    ("targets/digits/recipe/epochs", 9),
    ("targets/digits/modes", ["fixed"]),
    ("targets/few/recipe/epochs", 9),
    ("influence/outcome", "accuracy"),
    ("influence/intervals", "bootstrap"),
    ("influence/bootstrap_replicates", 200),
    ("influence/held_out", 0.3),
    ("influence/largest_table_gb", 0),
    ("influence/memory_gb", 8),
    ("counterfactuals/replicates", 9),
    ("counterfactuals/replicates_per_job", 2),
    ("counterfactuals/counts", [0, 1]),
    ("counterfactuals/validation_fraction", 0.1),
    ("counterfactuals/proof_fraction", 0.1),
    ("targets/digits/recipe/accuracy", "per_class"),
]
CHANGES_SOURCES = {"seed", "source/subset", "source/architecture", "source/recipe/epochs"}
CHANGES_TRANSFER = {
    "seed",
    "source/architecture",
    "targets/digits/recipe/epochs",
    "targets/digits/recipe/accuracy",
}
CHANGES_RETRAINED_TRANSFER = {*CHANGES_TRANSFER, "counterfactuals/validation_fraction"}
CHANGES_OTHER_TRANSFER = {"seed", "source/architecture", "targets/few/recipe/epochs"}
CHANGES_INFLUENCE = {
    "seed",
    "counterfactuals/proof_fraction",
    "targets/digits/recipe/accuracy",
    "influence/outcome",
    "influence/intervals",
    "influence/bootstrap_replicates",
    "influence/held_out",
    "influence/largest_table_gb",
}
CHANGES_REMOVAL = {"seed", "source/architecture", "source/recipe/epochs"}
TOP = Removal("digits-fixed-top-3-0", "top", 3, range(3), ("digits", "fixed"))


@pytest.mark.parametrize(("path", "value"), KEYS, ids=[path for path, _ in KEYS])
def test_a_key_makes_stale_only_the_jobs_it_concerns(path, value):
    before, after = study(), study(path, value)
    for make, changes in [
        (source_stage, CHANGES_SOURCES),
        (lambda one: transfer_stage(one, "digits", "fixed"), CHANGES_TRANSFER),
        (lambda one: transfer_stage(one, "few", "fixed"), CHANGES_OTHER_TRANSFER),
        (
            lambda one: retrained_transfer_stage(one, "digits", "fixed"),
            CHANGES_RETRAINED_TRANSFER,
        ),
        (lambda one: influence_stage(one, "digits", "ridge"), CHANGES_INFLUENCE),
        (lambda one: removal_stage(one, TOP), CHANGES_REMOVAL),
    ]:
        assert (make(before) != make(after)) == (path in changes)


@pytest.mark.parametrize(
    ("model", "stage"),
    [
        (SourceStage, source_stage(study())),
        (TransferStage, transfer_stage(study(), "few", "fixed")),
        (RetrainedTransferStage, retrained_transfer_stage(study(), "few", "fixed")),
        (RemovalStage, removal_stage(study(), TOP)),
        (InfluenceStage, influence_stage(study(), "few", "ridge")),
    ],
    ids=["source", "transfer", "retrained transfer", "removal", "influence"],
)
def test_a_stage_survives_the_way_to_its_script(model, stage):
    assert parse(model, stage.model_dump_json()) == stage


def test_a_stage_that_is_no_json_is_refused():
    with pytest.raises(UserError, match=r"^--settings: not valid JSON \(.*\); correct it\.$"):
        parse(SourceStage, "{")
    with pytest.raises(UserError, match=r"^--settings: recipe: this key is missing; add it\.$"):
        parse(SourceStage, json.dumps(source_stage(study()).model_dump(exclude={"recipe"})))


def test_the_schema_of_a_study_can_be_written_down():
    assert yaml.safe_dump(Study.model_json_schema())


parts = st.recursive(
    st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), parts, max_size=3), min_size=1, max_size=3))
def test_several_files_are_put_together_as_snakemake_does(files):
    expected: dict[str, Any] = {}
    for values in files:
        update_config(expected, copy.deepcopy(values))
    assert functools.reduce(updated, files) == expected


def test_a_study_of_several_files(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(study_values()))
    second.write_text(
        yaml.safe_dump({"models": 80, "targets": {"more": study_values()["targets"]["few"]}})
    )
    found = read_study([first, second])
    assert found.models == 80
    assert list(found.targets) == ["digits", "few", "more"]
    assert found.source == read_study([first]).source
    second.write_text("modles: 80")
    with pytest.raises(UserError, match=r"second.yaml: modles: unknown key"):
        read_study([first, second])
