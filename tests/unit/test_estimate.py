import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.conftest import recipe_values
from tests.unit.test_census import study_in, write, write_benchmark, write_partial

from transfer_influence.config.recipe import Recipe
from transfer_influence.config.stages import source_stage, transfer_stage
from transfer_influence.config.storage import Storage
from transfer_influence.config.study import Study, Subset
from transfer_influence.datasets.sidecar import FORMAT, Sidecar
from transfer_influence.errors import UserError
from transfer_influence.operation.costs import (
    Calibration,
    cost_of,
    examples_of_jobs,
    measured_cost,
    read_calibration,
    steps_of_model,
)
from transfer_influence.operation.estimate import (
    StagePlan,
    disk,
    stage_plans,
    stages_to_calibrate,
    wall_time,
)
from transfer_influence.operation.printing import plan_table, size
from transfer_influence.outcomes.tables import write_table
from transfer_influence.provenance import Origin, identity
from transfer_influence.results import JobGroup, calibration_of, data_folder, job_groups

CLASSES, TRAIN, TEST = 10, 1000, 500
CALIBRATION = Calibration(
    device="Some GPU",
    startup=20.0,
    model=1.0,
    step=0.5,
    evaluation=4.0,
    weights_bytes=1000,
    row_bytes=100,
    provenance={},
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study whose data sets are converted."""
    study = study_in(tmp_path)
    for name in study.datasets:
        write_sidecar(study, name, train=TRAIN if name == "photos" else 40)
    return study


def write_sidecar(study: Study, name: str, train: int, digest: str = "d") -> None:
    sidecar = Sidecar(
        format=FORMAT,
        ffcv="1.0.2",
        name=name,
        classes=[f"class {number}" for number in range(CLASSES)],
        train_count=train,
        test_count=TEST,
        train_class_counts=[train // CLASSES] * CLASSES,
        test_class_counts=[TEST // CLASSES] * CLASSES,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        image_size=[16, 16],
        largest_size=[16, 16],
        digest=digest,
        storage=Storage(),
        licence="none",
        citation="none",
    )
    write(study.results / "s/data" / name / "dataset.json", text=sidecar.model_dump_json())


def group_of(study: Study, rule: str, *transfer: str) -> JobGroup:
    (found,) = [
        group
        for group in job_groups(study)
        if group.rule == rule and (group.transfer or ()) == transfer
    ]
    return found


def write_calibration(study: Study, stage: str, **changes: Any) -> None:
    text = CALIBRATION.model_copy(update=changes).model_dump_json()
    write(study.results / "s/plan" / f"{stage}.json", text=text)


def write_calibrations(study: Study) -> None:
    write_calibration(study, "sources")
    for transfer in ("birds/fixed", "birds/full", "cars/full"):
        write_calibration(study, transfer, weights_bytes=0)


def write_past_job(study: Study, shard: str, seconds: float, **changes: Any) -> Path:
    """Write what a job that trained four source models leaves."""
    settings = {**source_stage(study).model_dump(mode="json"), **changes.get("settings", {})}
    of_data = identity(data_folder(study, study.source.dataset) / "dataset.json")
    origin = Origin(settings, {"sidecar": changes.get("digest", of_data)}, code="")
    table = study.results / "s/sources" / f"{shard}.parquet"
    rows = pa.table({"model": list(range(changes.get("models", 4)))})
    write_table(rows, table, origin.provenance("Past GPU"))
    write(table.with_suffix(".safetensors"), text="w" * 4000)
    write_benchmark(study, f"train_sources/{shard}", seconds)
    return table


@pytest.mark.parametrize(
    ("batch_size", "epochs", "examples", "steps"),
    [(16, 2, 100, 12), (16, 2, 96, 12), (100, 3, 40, 3), (64, 1, 127, 1)],
)
def test_steps_are_those_of_the_training_loop(batch_size, epochs, examples, steps):
    recipe = Recipe.model_validate(recipe_values(batch_size=batch_size, epochs=epochs))
    assert steps_of_model(recipe, examples) == steps


def test_a_calibrated_shard_costs_its_start_and_its_models(study):
    write_calibration(study, "sources")
    cost = cost_of(study, group_of(study, "train_sources"))
    steps = 500 // 16 * 2  # half of the classes, two epochs
    assert cost.seconds.tolist() == [20 + 4 * (1 + steps * 0.5 + 4)] * 3
    assert (cost.device, cost.weights_bytes, cost.row_bytes) == ("Some GPU", 1000, 100)
    assert cost.past_jobs == 0


def test_evaluations_on_the_way_cost_too(study):
    write_calibration(study, "sources")
    recipe = study.source.recipe.model_copy(update={"epochs": 5, "evaluate_every": 2})
    source = study.source.model_copy(update={"recipe": recipe})
    group = group_of(study, "train_sources")
    cost = cost_of(study.model_copy(update={"source": source}), group)
    evaluations = 3 + 1  # after the second, fourth and fifth epoch, and in the end
    assert cost.seconds.tolist() == [20 + 4 * (1 + 500 // 16 * 5 * 0.5 + evaluations * 4)] * 3


def test_retraining_costs_by_the_classes_that_are_left(study):
    group = group_of(study, "counterfactual_source")
    names = [job.name for job in group.jobs]
    examples = dict(zip(names, examples_of_jobs(study, group), strict=True))
    assert examples["none-0"] == TRAIN
    assert examples["random-2-0"] == examples["birds-full-top-2-0"] == TRAIN * 8 // 10
    write_calibration(study, "sources")
    seconds = dict(zip(names, cost_of(study, group).seconds, strict=True))
    assert seconds["none-0"] == 20 + 3 * (1 + 1000 // 16 * 2 * 0.5 + 4)  # three replicates
    assert seconds["random-2-0"] == 20 + 3 * (1 + 800 // 16 * 2 * 0.5 + 4)


def test_retraining_by_steps_costs_as_much_as_with_nothing_removed(tmp_path, study):
    counterfactuals = {"counts": [2], "orders": ["random"], "budgets": ["steps"]}
    by_steps = study_in(tmp_path, counterfactuals=counterfactuals)
    assert set(examples_of_jobs(by_steps, group_of(by_steps, "counterfactual_source"))) == {TRAIN}


# A fifth of 40 training images is held out; the second transfer is evaluated on these 8 of 500.
@pytest.mark.parametrize(
    ("rule", "fraction", "once_more"),
    [
        ("transfer", 0.2, 0),
        ("counterfactual_transfer", 0, 0),
        ("counterfactual_transfer", 0.2, 1 + 32 // 16 * 2 * 2.0 + 4 * 8 / 500),
    ],
)
def test_a_transfer_costs_by_its_own_calibration_and_all_images(
    tmp_path, study, rule, fraction, once_more
):
    write_calibration(study, "sources", step=1000.0)
    write_calibration(study, "birds/full", step=2.0)
    study = study_in(tmp_path, counterfactuals={"counts": [0], "validation_fraction": fraction})
    group = group_of(study, rule, "birds", "full")
    seconds = 20 + group.jobs[0].models * (1 + 40 // 16 * 2 * 2.0 + 4 + once_more)
    assert cost_of(study, group).seconds.tolist() == [seconds] * len(group.jobs)
    assert cost_of(study, group_of(study, rule, "birds", "fixed")) is None


def test_past_jobs_tell_better_than_a_calibration(study):
    write_calibration(study, "sources")
    for shard, seconds in (("000000-000003", 10.0), ("000004-000007", 12.0)):
        table = write_past_job(study, shard, seconds)
    cost = cost_of(study, group_of(study, "train_sources"))
    assert cost.seconds.tolist() == [11.0] * 3
    assert (cost.device, cost.past_jobs, cost.weights_bytes) == ("Past GPU", 2, 1000)
    assert cost.row_bytes == pytest.approx(table.stat().st_size / 4, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"recipe": recipe_values(epochs=9)}},
        {"settings": {"subset": {"fraction": 0.1, "count": None}}},
        {"settings": {"architecture": {"name": "resnet18", "width": 16}}},
        {"digest": "other images"},
        {"models": 3},
    ],
    ids=["recipe", "subset", "network", "images", "models"],
)
def test_past_jobs_with_other_settings_tell_nothing(study, changes):
    write_past_job(study, "000000-000003", 10.0, **changes)
    assert measured_cost(study, group_of(study, "train_sources")) is None


def test_another_seed_costs_the_same(study):
    write_past_job(study, "000000-000003", 10.0, settings={"seed": 7})
    assert measured_cost(study, group_of(study, "train_sources")).past_jobs == 1


def test_a_damaged_or_missing_table_tells_nothing(study):
    table = write_past_job(study, "000000-000003", 10.0)
    table.write_bytes(table.read_bytes()[:50])
    assert measured_cost(study, group_of(study, "train_sources")) is None
    table.unlink()
    assert measured_cost(study, group_of(study, "train_sources")) is None


def test_jobs_that_train_nothing_are_known_by_their_benchmarks_alone(study):
    group = group_of(study, "summarize", "cars", "full")
    write_benchmark(study, "summarize/cars/full", 7.5)
    assert cost_of(study, group) is None  # the job has not run to its end
    write(study.results / "s" / group.jobs[0].output)
    assert cost_of(study, group).seconds.tolist() == [7.5]


def test_stages_without_past_jobs_of_a_kind_are_to_calibrate(study):
    every = ["sources", "birds/fixed", "birds/full", "cars/full"]
    assert stages_to_calibrate(study) == every
    write_past_job(study, "000000-000003", 10.0)
    assert "sources" in stages_to_calibrate(study)  # for retraining
    alone = study_in(study.results, counterfactuals=None)
    assert stages_to_calibrate(alone) == every[1:]


def test_calibrations_are_where_the_rules_write_them(study):
    names = ["sources.json", "birds/fixed.json", "birds/full.json", "cars/full.json"]
    home = study.results / "s/plan"
    paths = {calibration_of(study, group) for group in job_groups(study) if group.models}
    assert paths == {home / name for name in names}


def test_a_damaged_calibration_is_named(tmp_path):
    path = tmp_path / "sources.json"
    assert read_calibration(path) is None
    path.write_text(json.dumps({**CALIBRATION.model_dump(), "step": "fast"}))
    with pytest.raises(UserError, match=r"sources\.json: step: .*; delete the file and plan again"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("phases", "at_once", "seconds"),
    [
        ([[10] * 7], 1, 70),
        ([[10] * 7], 3, 30),
        ([[10] * 7], 64, 10),
        ([[10] * 7, [3] * 2], 3, 33),
        ([[6, 6, 4, 4, 4]], 2, 14),
        ([[2, 2, 2, 6]], 2, 6),  # the longest begins first
        ([[]], 2, 0),
        ([], 2, 0),
    ],
)
def test_wall_time(phases, at_once, seconds):
    assert wall_time([np.array(phase, float) for phase in phases], at_once) == seconds


def plan_of(study: Study, rule: str, *transfer: str) -> StagePlan:
    (found,) = [
        plan
        for plan in stage_plans(study)
        if plan.group.rule == rule and (plan.group.transfer or ()) == transfer
    ]
    return found


def test_what_is_left_leaves_out_finished_jobs_and_models(study):
    write_calibration(study, "sources")
    sources = study.results / "s/sources"
    write(sources / "000000-000003.parquet")
    write_partial(sources / "000004-000007.parquet", "abc", {4: 1.0, 5: 2.0, 6: 3.0})
    plan = plan_of(study, "train_sources")
    each = plan.seconds[0]
    assert (plan.jobs_left, plan.models_left) == (2, 5)
    assert plan.seconds.tolist() == [each] * 3
    assert plan.seconds_left.sum() == pytest.approx(each * 5 / 4)
    assert len(plan.seconds_left) == 2


def test_disk_is_models_times_bytes(study):
    write_calibrations(study)
    write(study.results / "s/data/photos/train.beton", text="x" * 10_000)
    write(study.results / "s/sources/000000-000003.parquet")
    write(study.results / "s/influences/cars/full/difference_in_means.parquet")
    sizes = {each.files: (each.whole, each.left) for each in disk(study, stage_plans(study))}
    sidecars = sum(
        (study.results / "s/data" / name / "dataset.json").stat().st_size for name in study.datasets
    )
    assert sizes["data sets"] == (10_000 + sidecars, 0)
    assert sizes["weights"] == ((12 + 24) * 1000, (8 + 24) * 1000)
    models = 12 + 3 * 12 + 24 + 3 * 4 * 3
    assert sizes["outcomes"] == (models * 100, (models - 4) * 100)
    assert sizes["summaries"] == (3 * 10 * 100,) * 2
    table = CLASSES * TEST * 2 * 4
    assert sizes["influences"] == (3 * table, 2 * table)


def test_influence_on_a_target_as_a_whole_takes_no_room(study):
    of_accuracy = study.model_copy(
        update={"influence": study.influence.model_copy(update={"outcome": "accuracy"})}
    )
    sizes = {each.files: each.whole for each in disk(of_accuracy, stage_plans(of_accuracy))}
    assert sizes["influences"] == 0


def test_the_table_adds_up_gpu_and_cpu_hours_apart(study):
    write_calibrations(study)
    write(study.results / "s/summaries/cars/full.parquet")
    write_benchmark(study, "summarize/cars/full", 3600.0)
    lines = [line.split() for line in plan_table(study, stage_plans(study), [2]).splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    # 3 jobs of 20 s and four models of 1 s, 62 steps of 0.5 s, and 4 s
    assert rows["train_sources"][:6] == ["3", "12", "0.137", "3", "12", "0.137"]
    assert rows["train_sources"][6:] == ["3", "min", "GPU", "calibration", "on", "Some", "GPU"]
    assert rows["plot_dataset"] == ["3", "–", "3", "–", "CPU"]
    assert rows["summarize"][0] == "3"
    (gpu,) = [line for line in lines if line[:3] == ["all", "on", "GPU"]]
    (cpu,) = [line for line in lines if line[:3] == ["all", "on", "CPU"]]
    assert gpu[3:5] == [str(3 + 9 + 8 + 12), str(12 + 36 + 24 + 36)]
    seconds = [plan.seconds.sum() for plan in stage_plans(study) if plan.models]
    assert float(gpu[5]) == pytest.approx(sum(seconds) / 3600, abs=0.001)
    assert cpu[4] == "1.000"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (22, "5.0 ± 0.7 classes each; a block is 22 models, and models: 22 are 1 whole block\n"),
        (44, "models: 44 are 2 whole blocks\n"),
        (20, "models: 20 are not whole blocks, so difference_in_means has wide standard errors;"),
        (20, ";\nset it to 22\n"),
        (30, ";\nset it to 44 or 22\n"),
    ],
)
def test_a_plan_names_the_models_of_whole_blocks(study, models, said):
    write_calibrations(study)
    source = study.source.model_copy(update={"subset": Subset(sampling="balanced")})
    changed = study.model_copy(update={"source": source, "models": models})
    assert said in plan_table(changed, stage_plans(changed), [2])
    assert "balanced" not in plan_table(study, stage_plans(study), [2])


def test_without_a_gpu_all_hours_are_of_cpus(study):
    for stage in ("sources", "birds/fixed", "birds/full", "cars/full"):
        write_calibration(study, stage, device="cpu")
    table = plan_table(study, stage_plans(study), [1])
    assert "GPU" not in table
    assert table.count("all on CPU") == 1


def test_the_settings_of_transfers_are_compared_too(study):
    group = group_of(study, "transfer", "cars", "full")
    table = study.results / "s" / group.jobs[0].output
    settings = transfer_stage(study, "cars", "full").model_dump(mode="json")
    of_data = identity(data_folder(study, "cars") / "dataset.json")
    origin = Origin(settings, {"sidecar": of_data}, code="")
    write_table(pa.table({"model": range(4)}), table, origin.provenance("Past GPU"))
    write_benchmark(study, "transfer/cars/full/000000-000003", 5.0)
    cost = measured_cost(study, group)
    assert (cost.seconds[0], cost.weights_bytes) == (5.0, 0)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (2e9, "2 GB"),
        (4.2e15, "4,200.0 TB"),
    ],
)
def test_sizes_in_words(count, said):
    assert size(count) == said
