"""Surrogates held against studies whose true effects are known."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import spearmanr
from tests.conftest import CHECKOUT
from tests.unit.measured import balanced_masks, measured, names

from transfer_influence.config.stages import agreement_stage, influence_stage
from transfer_influence.config.study import Study, check_study
from transfer_influence.errors import UserError
from transfer_influence.figures.surrogates import agreement_figure, agreement_table
from transfer_influence.influence.ranking import RANKED, write_ranking
from transfer_influence.outcomes.tables import write_table
from transfer_influence.surrogates.agreement import (
    by_unit,
    correlations,
    curve_areas,
    datamodeling_scores,
    jackknifed_differences,
    with_ends,
    write_agreement,
)
from transfer_influence.surrogates.costs import Costs, read_costs
from transfer_influence.surrogates.scores import (
    View,
    listed_scores,
    read_embedding,
    score_classes,
    write_scores,
)

CLASSES = 20


def demo(**changes) -> Study:
    values = yaml.safe_load((CHECKOUT / "config" / "demo.yaml").read_text())
    return check_study(values | changes, "demo.yaml")


def simulated(noise: float = 1.0):
    """Measurements of 114 models on balanced subsets, and the effects behind them."""
    rng = np.random.default_rng(0)
    masks = balanced_masks(114, CLASSES)
    effects = rng.normal(size=CLASSES)
    outcomes = (masks @ effects)[:, None] + rng.normal(0, noise, (114, 3))
    return measured(masks, outcomes), effects


def test_true_effects_predict_at_least_as_well_as_influences_and_noise_does_not():
    data, effects = simulated()
    stage = influence_stage(demo(), "uci_digits", "difference_in_means")
    noise = np.random.default_rng(1).normal(size=CLASSES)
    found = datamodeling_scores(data, [effects, noise, -effects], stage, memory_gb=2)
    scores = found["linear_datamodeling_score"].to_numpy()
    assert scores[0] > 0.9
    assert scores[1] > 0.9
    assert abs(scores[2]) < 0.5
    assert scores[3] == pytest.approx(-scores[1])
    assert np.isnan(found["against_influences"][0])
    assert found["against_influences"].to_numpy()[1:] == pytest.approx(scores[1:] - scores[0])
    low, high = (found[f"against_influences_{end}"].to_numpy() for end in ("low", "high"))
    assert (low[1:] < high[1:]).all()
    assert high[2] < 0  # noise is told apart
    assert low[1] <= 0.05


def test_a_few_models_have_no_datamodeling_score():
    data, effects = simulated()
    stage = influence_stage(demo(), "uci_digits", "difference_in_means")
    few = replace(data.take(np.arange(6)), groups=np.arange(6), design="uniform")
    assert datamodeling_scores(few, [effects], stage, memory_gb=2).isna().all(axis=None)


def test_correlations_are_corrected_by_a_reliability_that_is_there():
    rng = np.random.default_rng(0)
    estimated, score = rng.normal(size=(2, CLASSES))
    found = correlations(estimated, [score, estimated], np.array([0.81, 0.64, 0.9]))
    expected = spearmanr(estimated, score).statistic
    assert found["correlation"].to_numpy() == pytest.approx([0.81, expected, 1])
    assert found["corrected"].to_numpy() == pytest.approx([0.9, expected / 0.9, 1 / 0.9])
    assert found["corrected_low"][0] == pytest.approx(0.8)
    assert found["correlation_low"][1] < expected < found["correlation_high"][1]
    unknown = correlations(estimated, [score], np.array([0.3, 0.0, 0.6]))
    assert unknown["corrected"].isna().all()
    assert unknown["correlation"].notna().all()


def test_intervals_of_correlations_hold_the_true_one():
    rng = np.random.default_rng(5)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of normal values whose Pearson's is 0.6
    held = 0
    for _ in range(1000):
        one, other = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], CLASSES).T
        found = correlations(one, [other], np.full(3, np.nan)).loc[1]
        held += found["correlation_low"] < truth < found["correlation_high"]
    assert 0.93 < held / 1000 < 0.98


def test_a_jackknifed_difference_of_means_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(size=12)
    without = np.array([np.delete(values, i).mean() for i in range(12)])[:, None]
    ((middle, low, high),) = jackknifed_differences(np.array([values.mean()]), without)
    half = 2.200985160 * values.std(ddof=1) / np.sqrt(12)
    assert (middle, low, high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )
    (few,) = jackknifed_differences(np.array([values.mean()]), without[:7])
    assert np.isnan(few[1:]).all()


def retrained(gap: dict[str, float]) -> pd.DataFrame:
    """Three replicates without none or two classes; accuracies lie `gap` below 0.8."""
    rows = [
        {
            "order": order,
            "budget": budget,
            "removed": removed,
            "replicate": replicate,
            "accuracy": 0.8 - loss + replicate / 100,
        }
        for order, budget, removed, loss in [
            ("none", None, 0, 0.0),
            *((order, "epochs", 2, loss) for order, loss in gap.items()),
            *((order, "steps", 2, 9.0) for order in gap),
        ]
        for replicate in range(3)
    ]
    return pd.DataFrame(rows)


def test_areas_are_those_to_random_and_to_the_order_of_the_influences():
    models = retrained({"top": 0.3, "random": 0.1, "leep": 0.2})
    found = curve_areas(models, ["leep", "logme"])
    # Triangles over two classes.
    assert found["area"].to_numpy()[:2] == pytest.approx([-0.2, -0.1])
    assert found["area_against_influences"][1] == pytest.approx(0.1)
    assert found.loc[2].isna().all()
    assert curve_areas(None, ["leep"]).isna().all(axis=None)


def written(table: pa.Table, path, **provenance) -> None:
    write_table(table, path, json.dumps(provenance))


def test_costs_are_those_of_what_each_takes(tmp_path):
    def results(name: str, rows: int, seconds: float | None):
        path = tmp_path / f"{name}.parquet"
        written(pa.table({"model": list(range(rows))}), path, seconds=seconds, device="cpu")
        return path

    costs = read_costs(
        sources=[results("s0", 4, 3600), results("s1", 4, 1800)],
        transfers=[results("t0", 4, 900), results("t1", 4, 900)],
        full=[results("none", 10, 7200)],
        checkpoints=2,
        views=[results("source", 1, 36), results("target", 1, 36)],
        scores={"leep": results("leep", 20, 3.6), "mine": results("mine", 20, 1)},
        lists=["mine"],
    )
    assert costs.device == "cpu"
    assert costs.study == pytest.approx(2.0)
    assert costs.of("leep") == pytest.approx(0.4 + 0.02 + 0.001)
    assert costs.of("mine") == 0
    unknown = results("unknown", 4, None)
    assert np.isnan(read_costs([unknown], [], [], 1, [], {}, []).study)


def test_the_table_of_agreement(tmp_path):
    data, effects = simulated()
    stage = agreement_stage(demo(), "uci_digits")
    stage = stage.model_copy(update={"surrogates": ["leep", "by_name"]})
    paths = {name: tmp_path / f"{name}.parquet" for name in ("leep", "by_name", "influences")}
    write_scores(effects, names(CLASSES), paths["leep"], "{}")
    write_scores(-effects, names(CLASSES), paths["by_name"], "{}")
    write_scores(effects + 0.01, names(CLASSES), paths["influences"], "{}")
    reliability = tmp_path / "reliability.parquet"
    rows = {"statistic": ["split_half", "reliability"], "models": [57, 114]}
    written(
        pa.table({**rows, "value": [0.5, 0.9], "low": [0.1, 0.8], "high": [0.9, 1.0]}), reliability
    )
    costs = Costs(2.0, 0.5, {"leep": 0.1, "by_name": 0.1}, ["by_name"], "cpu")
    write_agreement(
        stage=stage,
        scores=[paths["leep"], paths["by_name"]],
        influences=paths["influences"],
        reliability=reliability,
        data=data,
        retrained=None,
        costs=costs,
        memory_gb=2,
        output=tmp_path / "agreement.parquet",
        provenance="{}",
    )
    table = pd.read_parquet(tmp_path / "agreement.parquet").set_index("surrogate")
    assert list(table.index) == ["influences", "leep", "by_name"]
    assert table["correlation"].to_numpy() == pytest.approx([0.9, 1, -1])
    assert table["hours"].to_numpy() == pytest.approx([2, 0.6, 0])
    assert table["corrected_per_hour"]["leep"] == pytest.approx(1 / 0.9**0.5 / 0.6)
    assert np.isnan(table["corrected_per_hour"]["by_name"])
    assert list(table["device"].fillna("")) == ["cpu", "cpu", ""]
    with pytest.raises(UserError, match="scores 20 classes, but the source has 21"):
        by_unit(paths["leep"], 21)


def test_a_list_ranks_what_it_names_and_leaves_the_rest_alike(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("class 3\nclass 1\n")
    scores = listed_scores(path, names(5))
    assert scores.tolist() == [0, 1, 0, 2, 0]
    write_scores(scores, names(5), tmp_path / "mine.parquet", "{}")
    ranking = pq.read_table(tmp_path / "mine.parquet")
    assert ranking["unit"].to_pylist() == [3, 1, 0, 2, 4]
    assert ranking["rank"].to_pylist() == [1, 2, 3, 4, 5]
    assert ranking["standard_error"].null_count == ranking["significant"].null_count == 5


def test_scores_have_the_columns_of_a_ranking(tmp_path):
    scores, influences, ranking = (tmp_path / f"{name}.parquet" for name in "abc")
    write_scores(np.arange(5.0), names(5), scores, "{}")
    written(pq.read_table(scores).select(RANKED), influences)
    write_ranking(influences, ranking, "{}")
    assert pq.read_schema(scores).remove_metadata() == pq.read_schema(ranking).remove_metadata()


def test_scores_are_means_over_full_models():
    logits = np.eye(4, dtype=np.float32)
    views = [
        View({}, np.zeros(0), 4, {"logits": logits[shown]}, np.zeros(4)) for shown in ([0] * 4, [1])
    ]
    assert score_classes("label_mapping", views).tolist() == [0.5, 0.5, 0, 0]
    nothing = [View({}, np.zeros(0), 4, {"logits": np.nan * logits}, np.arange(4) % 2)]
    with pytest.raises(
        UserError, match=r"surrogates.methods: leep gives class 0 .* leave leep out"
    ):
        score_classes("leep", nothing)


def test_a_damaged_file_of_views_is_named(tmp_path):
    path = tmp_path / "images.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"images.safetensors: not readable"):
        read_embedding(path)


def test_models_that_follow_a_surrogate_are_shared_by_the_modes_of_a_target():
    plan = {"orders": ["top", "random", "leep"], "counts": [0, 10], "replicates": 10}
    study = demo(counterfactuals=plan)
    both = [
        {each.name for each in study.removals("uci_digits", mode)} for mode in ("fixed", "full")
    ]
    assert "uci_digits-fixed-leep-10-0" in both[0] & both[1]
    assert "uci_digits-fixed-top-10-0" not in both[1]
    leep = study.all_removals["uci_digits-fixed-leep-10-0"]
    assert leep.ranking == ("uci_digits", "fixed")


@pytest.mark.parametrize(
    ("replicates", "size", "checkpoints", "jobs"),
    [
        (10, 10, 1, [range(10)]),
        (10, 4, 5, [range(4), range(4, 8)]),
        (3, 1, 2, [range(1), range(1, 2)]),
    ],
)
def test_full_models_are_those_of_the_baseline(replicates, size, checkpoints, jobs):
    plan = {"counts": [0, 10], "replicates": replicates, "replicates_per_job": size}
    study = demo(counterfactuals=plan, surrogates={"checkpoints": checkpoints})
    assert [each.replicates for each in study.full_models] == jobs
    assert set(study.full_models) <= set(study.removals("uci_digits", "fixed"))


def test_a_study_that_removes_nothing_trains_full_models_for_its_surrogates():
    study = demo(counterfactuals=None, surrogates={"checkpoints": 3})
    assert [(each.name, each.replicates) for each in study.full_models] == [("none-0", range(3))]
    assert list(study.all_removals) == ["none-0"]
    alone = demo(counterfactuals=None, surrogates={"methods": [], "lists": {"mine": "mine.txt"}})
    assert alone.full_models == []
    assert demo(surrogates=None).surrogate_names == []


def test_the_figure_shows_every_surrogate_and_says_which_are_not_told_apart(tmp_path):
    columns = [*with_ends("correlation"), *with_ends("linear_datamodeling_score")]
    rows = pd.DataFrame(
        {"surrogate": ["influences", "logme", "leep", "mine"], "hours": [20, 0.3, 0.3, 0]}
    )
    for column in [*columns, *with_ends("against_influences")]:
        rows[column] = [0.9, 0.2, 0.6, np.nan]
    rows["against_influences_low"] = [np.nan, -0.2, -0.9, np.nan]
    rows["against_influences_high"] = [np.nan, 0.1, -0.4, np.nan]
    written(pa.Table.from_pandas(rows, preserve_index=False), tmp_path / "a.parquet")
    table = agreement_table([tmp_path / "a.parquet"] * 2, [("a", "fixed"), ("a", "full")])
    assert list(table["surrogate"][:4]) == ["influences", "leep", "logme", "mine"]
    assert list(table["mode"]) == ["fixed"] * 4 + ["full"] * 4
    figure = agreement_figure(table)
    (first, *_), (last, _, hours) = np.array(figure.axes).reshape(2, 3)
    assert [label.get_text() for label in last.get_yticklabels()] == list(table["surrogate"][:4])
    said = " ".join(first.texts[0].get_text().split())
    assert said.endswith("not told apart from the influences: logme")
    low, high = hours.get_xlim()
    assert (low, high) == pytest.approx((0.1, 100))
