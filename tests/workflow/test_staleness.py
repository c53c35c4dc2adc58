"""What a change makes stale: the exact jobs that `snakemake -n` plans after it."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workflow.conftest import CHECKOUT, DATASETS, RECIPE, STUDY, Project
from tests.workflow.planned_jobs import (
    HELD_OUT,
    PAIRS,
    PHOTOS,
    SHARED,
    TRAINING_AND_AFTER,
    all_retrained_transfers,
    conversion,
    curves,
    drawn_curves,
    failures,
    influence_and_after,
    ranked_removals,
    ranking_and_after,
    reliability,
    retrained_models,
    retrained_transfers,
    source_models,
    subpopulations,
    summary_and_after,
    transfers,
    transfers_and_after,
)

# A whole study runs before the first of these.
pytestmark = pytest.mark.timeout(900)

CODE = ("Snakefile", "rules", "scripts", "workflow", "config", "envs", "profiles")

FIGURES = {
    "Draw the accuracies of all models",
    *(f"Draw some images of {name}" for name in DATASETS),
    *(f"Draw the influences on {pair}" for pair in PAIRS),
    *(f"Draw the reliability on {pair}" for pair in PAIRS),
    *drawn_curves(*PAIRS),
    "Compare the influences on all targets",
}
CHANGED_CODE = {
    "scripts/convert_dataset.py": conversion(*DATASETS) | TRAINING_AND_AFTER,
    "workflow/transfer_influence/training/trainer.py": TRAINING_AND_AFTER,
    "workflow/transfer_influence/training/watching.py": set(),
    "scripts/transfer.py": transfers(*PAIRS) | summary_and_after(*PAIRS),
    "scripts/counterfactual_transfer.py": all_retrained_transfers(*PAIRS)
    | curves(*PAIRS)
    | failures(*PAIRS),
    "scripts/summarize.py": summary_and_after(*PAIRS),
    "scripts/estimate_influence.py": influence_and_after(*PAIRS) - reliability(*PAIRS),
    "scripts/measure_reliability.py": reliability(*PAIRS),
    "scripts/rank_units.py": ranking_and_after(*PAIRS),
    "scripts/summarize_counterfactual.py": curves(*PAIRS),
    "workflow/transfer_influence/applications/failures.py": failures(*PAIRS),
    "workflow/transfer_influence/figures/style.py": FIGURES,
    "workflow/transfer_influence/figures/counterfactuals.py": drawn_curves(*PAIRS),
}


@pytest.fixture(scope="module")
def _clone(_finished, tmp_path_factory) -> tuple[Project, Path]:
    """A clone of the repository in which the study has run, and the same again to restore it."""
    folder = tmp_path_factory.mktemp("staleness") / "clone"
    shutil.copytree(_finished.folder, folder)
    for part in CODE:
        if (CHECKOUT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / part, folder / part, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy2(CHECKOUT / part, folder / part)
    clone = Project(folder, checkout=folder)
    # The rule graph alone is made from the rules where they lie.
    run = clone.snakemake("results/tiny/report/rulegraph.svg")
    assert run.returncode == 0, run.stdout + run.stderr
    return clone, Path(shutil.copytree(folder, folder.with_name("kept")))


@pytest.fixture
def clone(_clone) -> Iterator[Project]:
    """A clone of the repository in which the study has run; all in it may be changed."""
    clone, kept = _clone
    yield clone
    shutil.rmtree(clone.folder)
    shutil.copytree(kept, clone.folder)


def change_code(path: Path) -> None:
    path.write_text(path.read_text() + "\nCHANGED = True\n")


def test_nothing_is_planned_after_a_finished_run(clone):
    assert clone.planned() == set()


def test_new_times_of_all_files_plan_nothing(clone):
    for path in clone.folder.rglob("*"):
        if path.relative_to(clone.folder).parts[0] not in ("results", ".snakemake"):
            path.touch()
    assert clone.planned() == set()


def test_more_models_plan_the_new_shard_and_what_follows(clone):
    clone.write_study(models=12)
    new = "000008-000011"
    assert clone.planned() == (
        source_models(new) | transfers(*PAIRS, shards=(new,)) | summary_and_after(*PAIRS)
    )


def test_models_within_the_last_shard_plan_no_training(clone):
    clone.write_study(models=7)
    assert clone.planned() == summary_and_after(*PAIRS)


def test_curves_for_tensorboard_plan_nothing(clone):
    clone.write_study(tensorboard=True)
    assert clone.planned() == set()


def test_a_targets_recipe_plans_that_target_only(clone):
    recipe = {**STUDY["targets"]["held_out"]["recipe"], "learning_rate": 0.05}
    target = {"modes": ["fixed"], "recipe": recipe}
    clone.write_study(targets={**STUDY["targets"], "held_out": target})
    assert clone.planned() == transfers_and_after(*HELD_OUT)


def test_one_more_target_plans_its_conversion_and_what_follows(clone):
    clone.write_dataset("again", DATASETS["held_out"])
    target = {"modes": ["full"], "recipe": RECIPE}
    clone.write_study(targets={**STUDY["targets"], "again": target})
    assert clone.planned() == conversion("again") | transfers_and_after("again, full")


def test_one_more_count_plans_the_new_points_and_their_curves(clone):
    clone.write_study(counterfactuals={**STUDY["counterfactuals"], "counts": [0, 2, 4]})
    assert clone.planned() == (
        retrained_models("random-4")
        | retrained_transfers(*PAIRS, points=["random-4"])
        | ranked_removals(*PAIRS, count=4)
        | curves(*PAIRS)
        | failures(*PAIRS)
    )


def test_another_budget_plans_its_points_and_the_curves(clone):
    clone.write_study(counterfactuals={**STUDY["counterfactuals"], "budgets": ["epochs", "steps"]})
    by_steps = {
        job.replace("-2-0", "-2-steps-0")
        for job in retrained_models("random-2")
        | retrained_transfers(*PAIRS, points=["random-2"])
        | ranked_removals(*PAIRS, count=2)
    }
    assert clone.planned() == by_steps | curves(*PAIRS) | failures(*PAIRS)


def test_one_more_replicate_plans_the_jobs_of_its_models_and_the_curves(clone):
    """They train the new models only: see test_counterfactual.py."""
    clone.write_study(counterfactuals={**STUDY["counterfactuals"], "replicates": 2})
    assert clone.planned() == (
        retrained_models(*SHARED)
        | retrained_transfers(*PAIRS)
        | ranked_removals(*PAIRS)
        | curves(*PAIRS)
        | failures(*PAIRS)
    )


def test_a_list_plans_its_points_and_their_curves(clone):
    (clone.folder / "round.txt").write_text("0\n8\n6\n")
    lists = {"lists": {"round": "round.txt"}}
    clone.write_study(counterfactuals={**STUDY["counterfactuals"], **lists})
    points = ("round-2", "round-3")
    assert clone.planned() == (
        retrained_models(*points)
        | retrained_transfers(*PAIRS, points=points)
        | curves(*PAIRS)
        | failures(*PAIRS)
    )


def test_another_validation_split_plans_the_retrained_transfers_and_the_curves(clone):
    clone.write_study(counterfactuals={**STUDY["counterfactuals"], "validation_fraction": 0.5})
    assert clone.planned() == (all_retrained_transfers(*PAIRS) | curves(*PAIRS) | failures(*PAIRS))


def test_another_outcome_plans_the_influences_and_what_follows(clone):
    clone.write_study(influence={"outcome": "softmax_margin"})
    assert clone.planned() == influence_and_after(*PAIRS)


def test_another_estimator_for_the_ranking_plans_what_follows_from_the_ranking(clone):
    clone.write_study(
        influence={"estimators": ["difference_in_means", "ridge"]},
        counterfactuals={**STUDY["counterfactuals"], "estimator": "ridge"},
    )
    new_to_the_study = {
        *(f"Estimate influences on {pair}, by ridge" for pair in PAIRS),
        *(f"Measure the reliability on {pair}, by ridge" for pair in PAIRS),
        *(f"Draw the reliability on {pair}" for pair in PAIRS),
    }
    # No model that lost nothing, or random classes.
    follows = ranking_and_after(*PAIRS) | subpopulations(*PAIRS)
    assert clone.planned() == new_to_the_study | follows


def test_other_memory_for_influences_plans_nothing(clone):
    clone.write_study(influence={"memory_gb": 3})
    assert clone.planned() == set()


def test_two_recipe_values_that_swap_are_seen(clone):
    recipe = {**RECIPE, "momentum": 0.1, "learning_rate": 0.9}  # 0.9 and 0.1 before
    clone.write_study(source={**STUDY["source"], "recipe": recipe})
    assert clone.planned() == TRAINING_AND_AFTER


def test_an_image_more_in_a_folder_plans_its_conversion_and_what_follows(clone):
    folder = clone.folder / "photos" / "digit-0"
    shutil.copy(next(folder.glob("*.png")), folder / "more.png")
    assert clone.planned() == conversion("photos") | transfers_and_after(*PHOTOS)


def test_other_arrays_plan_their_conversion_and_what_follows(clone):
    path = clone.folder / "held_out.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "images": 16 - arrays["images"]})
    assert clone.planned() == conversion("held_out") | transfers_and_after(*HELD_OUT)


@pytest.mark.parametrize("changed", CHANGED_CODE)
def test_changed_code_plans_what_it_computes_and_what_follows(clone, changed):
    change_code(clone.checkout / changed)
    assert clone.planned() == CHANGED_CODE[changed]


def test_comments_and_docstrings_plan_nothing(clone):
    for part in ("scripts", "workflow"):
        for path in (clone.checkout / part).rglob("*.py"):
            text, docstrings = re.subn(
                r'^( *""")(?=\w)', r"\1Changed. ", path.read_text(), flags=re.M
            )
            assert docstrings > 0
            path.write_text(f"# A comment.\n{text}")
    assert clone.planned() == set()


def test_results_are_accepted_after_a_refactoring(clone):
    def contents() -> dict[Path, str]:
        files = (path for path in clone.results.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    change_code(clone.checkout / "workflow" / "transfer_influence" / "training" / "trainer.py")
    assert clone.planned()
    accepted = clone.run_script("accept_code.py", "config/tiny.yaml")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert clone.planned() == set()
    after = contents()
    assert {path.name for path in set(after) - set(before)} == {"accepted_code.json"}
    assert {path: after[path] for path in before} == before
