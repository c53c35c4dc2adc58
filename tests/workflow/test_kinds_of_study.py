"""Miniatures of the other kinds of study, through the real DAG."""

import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.workflow.conftest import RECIPE, STUDY, Project
from transfer_influence.outcomes.weights import read_weights
from transfer_influence.subsets import unpack

# A whole study runs in each of these.
pytestmark = pytest.mark.timeout(900)

EXAMPLES = 400  # training images of the tiny study


def run(project: Project, *arguments: str) -> str:
    done = project.snakemake(*arguments)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def assert_nothing_is_planned_without_records(project: Project) -> None:
    """The results of rules that only this kind of study has say what made them, too."""
    shutil.rmtree(project.folder / ".snakemake")
    assert project.planned() == set()


def masks_of(path, units: int) -> np.ndarray:
    return unpack(pq.read_table(path)["mask"].to_pylist(), units)


def test_a_study_of_examples(project):
    """Single images are drawn, judged, ranked and removed; and some that are picked by hand.

    Heads are solved for.
    """
    (project.folder / "picked.txt").write_text("17\n5\n300\n")
    solved = {**RECIPE, "batchnorm": "frozen", "head": {"solver": "lbfgs", "l2": [0.01, 0.1]}}
    source = {**STUDY["source"], "subset": {"unit": "example", "sampling": "complement_pairs"}}
    project.write_study(
        source=source,
        models=6,
        targets={"held_out": {"modes": ["fixed"], "recipe": solved}},
        counterfactuals={
            "orders": ["bottom"],
            "counts": [150],
            "lists": {"picked": "picked.txt"},
            "replicates": 1,
            "budgets": ["epochs", "steps"],
            "proof_fraction": 0,
        },
    )
    run(project)
    assert_nothing_is_planned_without_records(project)
    masks = masks_of(project.results / "summaries/held_out/fixed.parquet", EXAMPLES)
    assert masks.shape == (6, EXAMPLES)
    assert (masks[::2] != masks[1::2]).all()
    summary = pd.read_parquet(project.results / "summaries/held_out/fixed.parquet")
    outcomes = np.stack(summary["raw_margin"]).astype(np.float64).mean(axis=1)
    ranking = pd.read_parquet(project.results / "influences/held_out/fixed/ranking.parquet")
    assert sorted(ranking["unit"]) == list(range(EXAMPLES))
    images = pd.read_parquet(project.results / "data/digits/train.examples.parquet")
    assert ranking["name"].tolist() == images["name"][ranking["unit"]].tolist()
    assert ranking["name"].is_unique
    for row in ranking.iloc[[0, 200, 399]].itertuples():
        kept = masks[:, row.unit]
        difference = outcomes[kept].mean() - outcomes[~kept].mean()
        assert row.influence == pytest.approx(difference)
    table = pd.read_parquet(project.results / "counterfactuals/held_out/fixed.parquet")
    removed = ~unpack(table["mask"].tolist(), EXAMPLES)
    found = {
        (row.order, row.budget if row.removed else None, row.removed): set(np.flatnonzero(mask))
        for row, mask in zip(table.itertuples(), removed, strict=True)
    }
    assert found == {
        ("none", None, 0): set(),
        **{("bottom", budget, 150): set(ranking["unit"][-150:]) for budget in ("epochs", "steps")},
        **{("picked", budget, 3): {5, 17, 300} for budget in ("epochs", "steps")},
    }
    accuracies = table.set_index(["order", "budget"])["source_accuracy"]
    of_all, by_steps = (table[table["budget"].isna()], table[table["budget"] == "steps"])
    assert set(by_steps["steps"]) == set(of_all["steps"])
    assert by_steps["images"].tolist() == [EXAMPLES - removed for removed in by_steps["removed"]]
    # 250 images are 15 steps an epoch where 400 are 25; 397 are 24, so one step more.
    assert accuracies["bottom", "epochs"] != accuracies["bottom", "steps"]
    curves = pd.read_parquet(project.results / "counterfactuals/held_out/fixed.summary.parquet")
    points = list(zip(curves["order"], curves["removed"], strict=True))
    assert points == [("none", 0), *2 * [("bottom", 150), ("picked", 3)]]
    of_list = curves.iloc[2]
    assert of_list["best_removed"] in (0, 3)
    if of_list["best_removed"] == 0:
        assert np.isnan(of_list["gain"])
        assert of_list["gain_reason"] == "all replicates chose to remove nothing"
    else:
        assert of_list["gain"] == of_list["accuracy"] - curves.iloc[0]["accuracy"]
    assert of_list["gain_replicates"] == 1
    left = np.load(project.results / "data/held_out/train.labels.npy")
    assert set(curves["validation_images"]) == {2 * len(np.unique(left))}  # two of eight a class
    svg = (project.results / "report/held_out/fixed/counterfactuals.svg").read_text()
    assert "number of source examples removed" in svg
    assert "picked" in svg
    influences = np.stack(
        pd.read_parquet(project.results / "influences/held_out/fixed/difference_in_means.parquet")[
            "example_influence"
        ]
    )
    pairs = pd.read_parquet(project.results / "applications/held_out/fixed/pairs.parquet")
    assert pairs["influence"].iloc[[0, -1]].tolist() == [influences.max(), influences.min()]
    assert pairs["influence"].tolist() == influences[pairs["unit"], pairs["example"]].tolist()
    assert pairs["unit_name"].tolist() == images["name"][pairs["unit"]].tolist()
    assert not (project.results / "applications/classes.parquet").exists()  # of one target
    assert project.planned() == set()


def test_a_study_of_existing_models(finished_copy):
    """A bank of the models that the tiny study has trained leads to the same outcomes."""
    bank = finished_copy.folder / "bank"
    bank.mkdir()
    shards = [
        finished_copy.results / f"sources/{name}" for name in ("000000-000003", "000004-000007")
    ]
    for model in range(7):
        state = read_weights(shards[model // 4].with_suffix(".safetensors"), model)
        renamed = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 2, "model": renamed}, bank / f"{model:02d}.pt")
    masks = np.concatenate([masks_of(shard.with_suffix(".parquet"), 10) for shard in shards])
    np.save(bank / "masks.npy", masks[:7])
    source = {
        **STUDY["source"],
        "checkpoints": "bank/{model:02d}.pt",
        "masks": "bank/masks.npy",
        "state_key": "model",
        "key_map": {"module.": ""},
    }
    study = {"source": source, "results": "from bank", "counterfactuals": None}
    finished_copy.write_study(**study, models=8)
    refused = finished_copy.snakemake("--dry-run")
    assert refused.returncode != 0
    assert "bank/masks.npy: masks of 7 models, but 8 are asked for" in refused.stdout
    targets = {"photos": {"modes": ["full"], "recipe": RECIPE}}
    (bank / "05.pt").rename(bank / "5.pt")
    finished_copy.write_study(**study, models=7, targets=targets)
    refused = finished_copy.snakemake("--dry-run")
    assert "source.checkpoints: no file bank/05.pt for model 5 of 7" in refused.stdout
    (bank / "5.pt").rename(bank / "05.pt")
    said = run(finished_copy)
    assert "train_sources" not in said
    ours = pd.read_parquet(finished_copy.folder / "from bank/tiny/summaries/photos/full.parquet")
    trained = pd.read_parquet(finished_copy.results / "summaries/photos/full.parquet")
    pd.testing.assert_frame_equal(ours, trained[:7])
    assert_nothing_is_planned_without_records(finished_copy)
    # A checkpoint and masks that are corrected are noticed, shard by shard.
    torch.save({"model": read_weights(shards[0].with_suffix(".safetensors"), 2)}, bank / "01.pt")
    read = [job for job in finished_copy.planned() if job.startswith("Read")]
    assert read == ["Read source models 000000-000003 from checkpoints"]
    run(finished_copy, "from bank/tiny/sources/000000-000003.parquet")
    accuracy = pd.read_parquet(
        finished_copy.folder / "from bank/tiny/sources/000000-000003.parquet"
    )
    assert accuracy["class_accuracy"][1].tolist() == accuracy["class_accuracy"][2].tolist()
    wrong = masks[:7].copy()
    wrong[5] ^= True
    np.save(bank / "masks.npy", wrong)
    planned = finished_copy.planned()
    assert "Read source models 000004-000007 from checkpoints" in planned
    assert "Read source models 000000-000003 from checkpoints" not in planned
    # The bank has grown by one: only what the last shard holds is read and transferred again.
    np.save(bank / "masks.npy", masks)
    state = read_weights(shards[1].with_suffix(".safetensors"), 7)
    torch.save({"model": state}, bank / "07.pt")
    finished_copy.write_study(**study, models=8, targets=targets)
    planned = finished_copy.planned()
    assert "Read source models 000004-000007 from checkpoints" in planned
    assert "Read source models 000000-000003 from checkpoints" not in planned


def write_findings(project: Project) -> None:
    """A table with several labels an image, of which one is asked for."""
    rows = ["image,findings,part"]
    for index, path in enumerate(sorted((project.folder / "photos").rglob("*.png"))):
        digit = int(path.parent.name.removeprefix("digit-"))
        found = [name for name, has in [("odd", digit % 2), ("large", digit > 6)] if has]
        part = "test" if index % 3 == 0 else "train"
        rows.append(f"{path.relative_to(project.folder)},{'|'.join(found) or 'none'},{part}")
    (project.folder / "findings.csv").write_text("\n".join(rows) + "\n")
    columns = {"path_column": "image", "label_column": "findings", "part_column": "part"}
    project.write_dataset(
        "large",
        {
            "kind": "table",
            "train": "findings.csv",
            "delimiter": "|",
            "positive": "large",
            **columns,
        },
    )


def test_a_study_of_a_subset_picked_by_hand(project):
    """Models that all see the same classes have outcomes, but no influences.

    One target is a label out of several, of two classes of different size.
    """
    write_findings(project)
    (project.folder / "odd.txt").write_text("1\n3\n5\n7\n9\n")
    source = {**STUDY["source"], "subset": {"keep": "odd.txt"}}
    weighted = {**RECIPE, "class_weights": "balanced", "accuracy": "per_class"}
    project.write_study(
        source=source,
        models=2,
        targets={"large": {"modes": ["fixed"], "recipe": weighted}},
        counterfactuals=None,
    )
    run(project)
    path = project.results / "summaries/large/fixed.parquet"
    assert masks_of(path, 10).tolist() == [[False, True] * 5] * 2
    summary = pd.read_parquet(path)
    large = np.load(project.results / "data/large/test.labels.npy") == 1
    assert 0 < large.sum() < len(large) / 2
    for row in summary.itertuples():
        # A margin is the logit of the true class minus that of the other.
        scores = np.where(large, row.raw_margin, -row.raw_margin)
        assert row.auroc == pytest.approx(roc_auc_score(large, scores))
        each = [row.is_correct[~large].mean(), row.is_correct[large].mean()]
        assert row.class_accuracy == pytest.approx(each)
        assert row.accuracy == pytest.approx(np.mean(each))
    assert not (project.results / "influences").exists()
    assert project.planned() == set()
    (project.folder / "odd.txt").write_text("1\n3\n5\n7\n8\n")
    planned = project.planned()
    assert "Train source models 000000-000003" in planned
    (project.folder / "odd.txt").write_text("1\n3\neleven\n")
    refused = project.snakemake("--dry-run")
    assert "odd.txt: 'eleven' is neither the name of one of the 10 units" in refused.stdout
