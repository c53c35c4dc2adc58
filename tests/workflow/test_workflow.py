"""The real DAG on a tiny study: results, determinism, restart."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_ind

from tests.workflow.conftest import CHECKOUT, Project
from transfer_influence.outcomes.tables import PER_EXAMPLE, matrix
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.provenance import identity, read_provenance
from transfer_influence.subsets import unpack

# A whole study runs in some of these.
pytestmark = pytest.mark.timeout(900)

TRANSFERS = [("photos", "fixed"), ("photos", "full"), ("held_out", "fixed")]
SOURCE_CLASSES = 10


def columns(path) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata(None)


@pytest.mark.parametrize(("target", "mode"), TRANSFERS)
def test_summary_has_every_model_once_with_all_outcomes(finished, target, mode):
    summary = columns(finished.results / "summaries" / target / f"{mode}.parquet")
    assert summary["model"].to_pylist() == list(range(8))
    assert {*PER_EXAMPLE, "accuracy", "auroc", "class_accuracy", "mask"} <= set(
        summary.column_names
    )
    labels = np.load(finished.results / "data" / target / "test.labels.npy")
    is_correct = matrix(summary["is_correct"])
    assert (is_correct == (matrix(summary["prediction"]) == labels)).all()
    assert (is_correct == (matrix(summary["raw_margin"]) > 0)).all()
    assert summary["accuracy"].to_numpy() == pytest.approx(is_correct.mean(axis=1))
    assert (unpack(summary["mask"].to_pylist(), SOURCE_CLASSES).sum(axis=1) == 5).all()


def division(finished: Project, target: str) -> TestImages:
    labels = np.load(finished.results / "data" / target / "test.labels.npy")
    return TestImages.divided(labels, 0.5, seed=0)


@pytest.mark.parametrize(("target", "mode"), TRANSFERS)
def test_retrained_models_are_judged_by_images_that_rank_nothing(finished, target, mode):
    folder = finished.results / "counterfactuals"
    table = pd.read_parquet(folder / target / f"{mode}.parquet")
    proves = division(finished, target).proves
    assert 0 < proves.sum() < len(proves)
    baseline = columns(folder / "transfers" / target / mode / "none-0.parquet")
    on_proving = matrix(baseline["is_correct"])[:, proves].mean(axis=1)
    rows = table[table["order"] == "none"]
    assert rows["accuracy"].to_numpy() == pytest.approx(on_proving)
    assert set(table["proving_images"]) == {proves.sum()}


@pytest.mark.parametrize(("target", "mode"), TRANSFERS)
def test_influences_agree_with_a_t_test_by_scipy(finished, target, mode):
    summary = columns(finished.results / "summaries" / target / f"{mode}.parquet")
    masks = unpack(summary["mask"].to_pylist(), SOURCE_CLASSES)
    ranks = ~division(finished, target).proves
    outcomes = matrix(summary["raw_margin"]).astype(np.float64)[:, ranks].mean(axis=1)
    ranking = pd.read_parquet(finished.results / "influences" / target / mode / "ranking.parquet")
    assert ranking["rank"].tolist() == list(range(1, 11))
    assert (np.diff(ranking["influence"]) <= 0).all()
    for row in ranking.itertuples():
        with_class, without = outcomes[masks[:, row.unit]], outcomes[~masks[:, row.unit]]
        test = ttest_ind(with_class, without, equal_var=False)
        assert row.influence == pytest.approx(with_class.mean() - without.mean())
        assert row.influence / row.standard_error == pytest.approx(test.statistic)


@pytest.mark.parametrize(("target", "mode"), TRANSFERS)
def test_counterfactuals_remove_what_the_ranking_says(finished, target, mode):
    table = pd.read_parquet(finished.results / "counterfactuals" / target / f"{mode}.parquet")
    points = table.groupby(["order", "removed"]).size().to_dict()
    assert points == dict.fromkeys([("none", 0), ("top", 2), ("bottom", 2), ("random", 2)], 1)
    assert table["validation_accuracy"].between(0, 1).all()
    assert (table["validation_accuracy"] != table["accuracy"]).any()
    ranking = pd.read_parquet(finished.results / "influences" / target / mode / "ranking.parquet")
    removed = ~unpack(table["mask"].tolist(), SOURCE_CLASSES)
    expected = {"top": set(ranking["unit"][:2]), "bottom": set(ranking["unit"][-2:]), "none": set()}
    for order, row in zip(table["order"], removed, strict=True):
        if order in expected:
            assert set(np.flatnonzero(row)) == expected[order]
    random = removed[table["order"] == "random"]
    assert (random.sum(axis=1) == 2).all()


def test_baseline_and_random_removals_are_trained_once_for_all_targets(finished):
    trained = {
        path.stem for path in (finished.results / "counterfactuals/sources").glob("[!.]*.parquet")
    }
    own = {
        f"{target}-{mode}-{order}-2" for target, mode in TRANSFERS for order in ("top", "bottom")
    }
    points = {"none", "random-2"} | own
    assert trained == {f"{point}-0" for point in points}


def test_report_parts_are_there_and_say_what_the_tables_say(finished):
    report = finished.results / "report"
    for name in ("accuracies", "rulegraph", "datasets/digits", "datasets/photos"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (report / f"{name}.svg").read_text()
    for target, mode in TRANSFERS:
        ranking = pd.read_parquet(
            finished.results / "influences" / target / mode / "ranking.parquet"
        )
        with (report / target / mode / "ranking.csv").open() as opened:
            rows = list(csv.DictReader(opened))
        assert [row["name"] for row in rows] == ranking["name"].tolist()
        assert (report / target / mode / "counterfactuals.svg").stat().st_size > 5000


def test_applications_are_there_and_agree_with_what_they_are_made_from(finished):
    opposed = pd.read_parquet(finished.results / "applications" / "classes.parquet")
    assert sorted(opposed["unit"]) == list(range(10))
    opposed = opposed.set_index("unit")
    for target, mode in TRANSFERS:
        made_from = finished.results / "influences" / target / mode
        ranking = pd.read_parquet(made_from / "ranking.parquet").set_index("unit")
        found = opposed[f"{target}_{mode}"].reindex(ranking.index)
        assert found.tolist() == ranking["influence"].tolist()
        folder = finished.results / "applications" / target / mode
        assert pd.read_parquet(folder / "classes.parquet")["unit"].tolist() == [*ranking.index]
        influences = pd.read_parquet(made_from / "difference_in_means.parquet")
        helped = pd.read_parquet(folder / "helped.parquet")
        best = helped[helped["place"] == 1].set_index("unit")["influence"]
        for unit, values in enumerate(influences["example_influence"]):
            assert best[unit] == values.max()
        carriers = pd.read_parquet(folder / "carriers.parquet")
        of_classes = np.stack(influences["class_influence"])
        for row in carriers.itertuples():
            assert row.influence == of_classes[row.unit, row.label]
        summary = pd.read_parquet(finished.results / "summaries" / target / f"{mode}.parquet")
        share = np.stack(summary["is_correct"]).mean(axis=0)
        wrong = pd.read_parquet(folder / "failures.parquet")
        assert set(wrong["example"]) == set(np.argsort(share, kind="stable")[:200]) & set(
            np.flatnonzero(share < 0.5)
        )
        # Nothing is removed in one of the retrained models; each order takes two classes of ten.
        assert (wrong["whole_models"] == 1).all()
        assert wrong["removed_models"].between(0, 6).all()
        assert wrong["removed_models"].max() > 0
        # All removals take two classes, so a model is either without the culprit or a control.
        first = wrong[(wrong["place"] == 1) & (wrong["removed_models"] > 0)]
        assert (first["removed_models"] + first["control_models"] == 3).all()
        report = finished.results / "report" / target / mode
        for name in ("classes", "helped", "carriers", "failures"):
            table = pd.read_parquet(folder / f"{name}.parquet")
            assert list(pd.read_csv(report / f"{name}.csv").columns) == list(table.columns)


def test_results_carry_their_provenance(finished):
    provenance = read_provenance(finished.results / "transfers/photos/full/000000-000003.parquet")
    assert provenance["settings"]["mode"] == "full"
    assert provenance["settings"]["recipe"]["epochs"] == 2
    sidecar = finished.results / "data/photos/dataset.json"
    assert provenance["inputs"]["sidecar"] == identity(sidecar)
    told = provenance["models"]["targets"]["photos"]["full"]
    assert told["data"] == json.loads(sidecar.read_text())["digest"]
    assert provenance["device"]
    assert provenance["libraries"]["torch"]


def test_nothing_half_written_and_nothing_partial_is_left(finished):
    hidden = [path for path in finished.results.rglob(".*") if path.name != ".snakemake_timestamp"]
    records = [path for path in hidden if re.fullmatch(r"\..+\.[0-9a-f]{16}\.json", path.name)]
    assert records
    # All else are second names of outputs and logs.
    for path in set(hidden) - set(records):
        first = path.with_name(re.sub(r"\.[0-9a-f]{16}(?=\.)", "", path.name.removeprefix(".")))
        assert first.read_bytes() == path.read_bytes(), path


def test_snakemakes_own_report_holds_figures_and_tables(finished):
    path = finished.folder / "report.html"
    run = finished.snakemake("--report", str(path))
    assert run.returncode == 0, run.stderr
    text = path.read_text()
    for part in ("influences.svg", "counterfactuals.svg", "ranking.csv", "rulegraph.svg"):
        assert part in text
    assert "Which source classes help, and which hurt" in text


def test_data_sets_are_found_beside_each_of_several_study_files(finished):
    (finished.folder / "more.yaml").write_text("models: 8\n")
    run = finished.snakemake("--dry-run", "--configfile", "config/tiny.yaml", "more.yaml")
    assert "Nothing to be done" in run.stdout + run.stderr


def test_a_removal_that_became_too_large_stops_before_any_job(finished):
    finished.write_study(counterfactuals={"counts": [0, 9]})
    run = finished.snakemake("--dry-run")
    assert run.returncode != 0
    assert "the study needs at least 11" in run.stdout + run.stderr


def test_a_list_with_an_unknown_class_stops_before_any_job(finished):
    (finished.folder / "round.txt").write_text("0\n88\n")
    finished.write_study(counterfactuals={"counts": [0], "lists": {"round": "round.txt"}})
    run = finished.snakemake("--dry-run")
    assert run.returncode != 0
    assert "round.txt: '88' is neither the name of one of the 10 units" in run.stdout + run.stderr


def test_same_bytes_whatever_models_per_job_cores_and_folder(finished, project):
    results = "my results"  # paths with spaces, too
    project.write_study(models_per_job=2, results=results)
    tables = [
        "summaries/photos/full.parquet",
        "influences/photos/full/ranking.parquet",
        "influences/photos/full/difference_in_means.parquet",
        "counterfactuals/sources/random-2-0.parquet",
        "counterfactuals/transfers/held_out/fixed/random-2-0.parquet",
    ]
    run = project.snakemake(*[f"{results}/tiny/{table}" for table in tables], cores=1)
    assert run.returncode == 0, run.stdout + run.stderr
    for table in tables:
        here = columns(project.folder / results / "tiny" / table)
        assert here.equals(columns(finished.results / table)), table


def test_a_study_that_wants_curves_has_them_and_the_same_results(finished, project):
    project.write_study(tensorboard=True)
    shard = "000004-000007"
    run = project.snakemake(f"results/tiny/sources/{shard}.parquet")
    assert run.returncode == 0, run.stdout + run.stderr
    folders = (project.results / "tensorboard" / "sources" / shard).iterdir()
    assert sorted(folder.name for folder in folders) == ["4", "5", "6", "7"]
    for name in (f"{shard}.parquet", f"{shard}.safetensors"):
        sources = [one.results / "sources" / name for one in (project, finished)]
        same = columns if name.endswith("parquet") else Path.read_bytes
        assert same(sources[0]) == same(sources[1])
    assert not (finished.results / "tensorboard").exists()


def test_a_killed_job_resumes_after_its_finished_models(finished, tmp_path):
    settings = read_provenance(finished.results / "sources/000000-000003.parquet")["settings"]
    settings["recipe"]["epochs"] = 15  # slow enough to be killed in the middle
    output = tmp_path / "out"
    command = [
        *(sys.executable, str(CHECKOUT / "scripts/train_sources.py")),
        *("--settings", json.dumps(settings), "--shard", "000000-000002"),
        *("--data", str(finished.results / "data/digits")),
        *("--weights", str(output / "shard.safetensors"), "--table", str(output / "shard.parquet")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "workflow")}
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(output.glob(".partial/*/0.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (output / "shard.parquet").exists()
    finished_before = len(list(output.glob(".partial/*/*.parquet")))
    assert 1 <= finished_before < 3, "the job was over before it was killed"
    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{finished_before} of 3 models were finished before" in resumed.stderr
    trained = {line.split(":")[3] for line in resumed.stderr.splitlines() if "epoch 1/" in line}
    assert len(trained) == 3 - finished_before
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(
        [part.replace(str(output), str(undisturbed)) for part in command],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert columns(output / "shard.parquet").equals(columns(undisturbed / "shard.parquet"))
    assert (output / "shard.safetensors").read_bytes() == (
        undisturbed / "shard.safetensors"
    ).read_bytes()
