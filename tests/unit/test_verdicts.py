"""What curves show, against SciPy's paired t-test and on studies without any effect."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from transfer_influence.counterfactual.curves import summary_of, summary_of_budgets
from transfer_influence.counterfactual.verdicts import (
    CLAIMS,
    differences,
    holm,
    verdict,
    verdict_sentences,
)


def models_of(curves: dict[tuple[str, int], np.ndarray]) -> pd.DataFrame:
    rows = [
        {
            "order": order,
            "budget": None if order == "none" else "epochs",
            "removed": removed,
            "replicate": replicate,
            "accuracy": accuracy,
            "validation_accuracy": np.nan,
            "validation_images": None,
            "source_accuracy": 0.9,
            "images": 1000,
            "steps": 50,
        }
        for (order, removed), accuracies in curves.items()
        for replicate, accuracy in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def simulated(
    rng: np.random.Generator, replicates: int, counts: list[int], effect: float = 0.0
) -> pd.DataFrame:
    """Curves whose replicates share their luck; `top` loses the effect, and `bottom` gains it."""
    luck = rng.normal(0, 0.03, replicates)
    curves = {("none", 0): 0.7 + luck + rng.normal(0, 0.02, replicates)}
    for order, sign in [("top", -1), ("bottom", 1), ("random", 0)]:
        for count in counts:
            noise = luck + rng.normal(0, 0.02, replicates)
            curves[order, count] = 0.7 + sign * effect + noise
    return models_of(curves)


@pytest.mark.parametrize("control", ["none", "random"])
def test_differences_are_those_of_scipys_paired_t_test(control):
    models = simulated(np.random.default_rng(0), 6, [2, 5, 9], effect=0.02)
    models = models.drop(models.query("order == 'top' and removed == 5 and replicate == 1").index)
    found = differences(models, "top", control)
    assert found["removed"].tolist() == [2, 5, 9]
    table = models.pivot(index="replicate", columns=["order", "removed"], values="accuracy")
    for row in found.itertuples():
        other = table[control, 0 if control == "none" else row.removed]
        pair = pd.concat([table["top", row.removed], other], axis=1).dropna().to_numpy().T
        expected = ttest_rel(*pair)
        ends = expected.confidence_interval(0.95)
        assert row.difference == pytest.approx(np.diff(pair[::-1], axis=0).mean())
        assert row.p_value == pytest.approx(expected.pvalue)
        assert [row.low, row.high] == pytest.approx([ends.low, ends.high])
    assert found["p_corrected"].tolist() == pytest.approx(holm(found["p_value"].to_numpy()))


def test_p_values_are_corrected_as_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.001, 0.9])).tolist() == pytest.approx([1.0, 0.003, 1.0])
    assert holm(np.array([np.nan, 0.02])).tolist() == pytest.approx([np.nan, 0.04], nan_ok=True)


@pytest.mark.parametrize(("replicates", "points"), [(3, 6), (10, 2)])
def test_without_any_effect_a_claim_is_shown_in_at_most_its_nominal_share(replicates, points):
    rng, studies = np.random.default_rng(points), 500
    shown = dict.fromkeys(CLAIMS, 0)
    for _ in range(studies):
        models = simulated(rng, replicates, list(range(1, points + 1)))
        for order, claim in CLAIMS.items():
            shown[order] += bool(verdict(differences(models, order, claim.control), claim)[0])
    most = 0.025 + 3 * np.sqrt(0.025 * 0.975 / studies)
    assert max(shown.values()) / studies <= most
    assert min(shown.values()) > 0, "a test that never errs tests nothing"


def test_a_claim_is_shown_where_it_is_true_and_not_where_the_opposite_is():
    rng = np.random.default_rng(0)
    for effect, expected in [(0.15, True), (-0.15, False)]:
        table = summary_of(simulated(rng, 8, [2, 4], effect)).set_index("order")
        for order in CLAIMS:
            assert (table.loc[order, "shown"] == expected).all()
            assert set(table.loc[order, "claim"]) == {CLAIMS[order].sentence}
        assert table.loc[["none", "random"], ["claim", "shown"]].isna().all(axis=None)


def test_the_smallest_difference_that_can_be_shown_is_at_the_edge_of_significance():
    models = simulated(np.random.default_rng(1), 5, [2, 4, 8])
    found = differences(models, "bottom", "none")
    _, smallest = verdict(found, CLAIMS["bottom"])
    place = found["smallest"].argmin()
    assert smallest == found["smallest"].min()
    shift = smallest - found["difference"][place]
    for more, expected in [(1e-9, True), (-1e-9, False)]:
        shifted = models.copy()
        point = (models["order"] == "bottom") & (models["removed"] == found["removed"][place])
        others = (models["order"] == "bottom") & ~point
        shifted.loc[point, "accuracy"] += shift + more
        shifted.loc[others, "accuracy"] -= 0.01 + found["difference"].max()  # on the other side
        found_now = differences(shifted, "bottom", "none")
        found_now.loc[found_now["removed"] != found["removed"][place], "p_value"] = 1.0
        found_now["p_corrected"] = holm(found_now["p_value"].to_numpy())
        assert verdict(found_now, CLAIMS["bottom"])[0] == expected


@pytest.mark.parametrize("accuracies", [[0.5, 0.6], [0.5, 0.6, 0.7]])
def test_too_few_replicates_or_equal_differences_tell_nothing(accuracies):
    values = np.array(accuracies)
    models = models_of({("none", 0): values, ("bottom", 3): values + 0.04})
    table = summary_of(models).set_index("order")
    assert table.loc["bottom", "against_none"] == pytest.approx(0.04)
    unknown = ["against_none_low", "against_none_p_value", "shown", "smallest_shown"]
    assert table.loc["bottom", unknown].isna().all()
    assert np.isnan(table.loc["bottom", "against_random"])


def test_sentences_say_what_is_shown_what_is_not_and_what_is_not_known():
    rng = np.random.default_rng(0)
    shown, not_shown = (
        verdict_sentences(summary_of_budgets(simulated(rng, 8, [2], effect)))
        for effect in (0.2, 0.0)
    )
    for order, found, missing in zip(CLAIMS, shown, not_shown, strict=True):
        sentence = CLAIMS[order].sentence
        numbers = re.fullmatch(
            rf"{sentence}: yes, by (.+) points \[(.+), (.+)\] at 2, p = (.+)", found
        )
        assert numbers is not None
        middle, low, high, p_value = map(float, numbers.groups())
        assert 0 < low < middle < high
        assert middle == pytest.approx(20, abs=5)  # the effect, in points
        assert p_value < 0.05
        assert re.fullmatch(rf"{sentence}: not shown \(\d\.\d points could be\)", missing)
    models = simulated(rng, 8, [2]).query("order != 'random'")  # nothing to hold `top` against
    unknown = "not known (it takes 3 replicates whose differences vary)"
    assert (
        verdict_sentences(summary_of_budgets(models))[0] == f"{CLAIMS['top'].sentence}: {unknown}"
    )


def test_curves_of_each_budget_are_judged_by_their_own_controls():
    rng = np.random.default_rng(3)
    epochs = simulated(rng, 8, [2, 4], 0.0)
    steps = simulated(rng, 8, [2, 4], 0.2)
    steps = steps[steps["order"] != "none"].assign(budget="steps")
    table = summary_of_budgets(pd.concat([epochs, steps]))
    assert table["budget"].isna().sum() == 1  # the baseline, which they share
    for budget, models in [("epochs", epochs), ("steps", steps)]:
        baseline = epochs[epochs["order"] == "none"]
        alone = summary_of(pd.concat([baseline, models[models["order"] != "none"]]))
        alone = alone[alone["order"] != "none"].reset_index(drop=True)
        part = table[table["budget"] == budget].drop(columns="budget").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone[part.columns])
    said = verdict_sentences(table)
    assert [sentence.partition(":")[0] for sentence in said] == [
        *(claim.sentence for claim in CLAIMS.values()),
        *(f"{claim.sentence}, at equal steps" for claim in CLAIMS.values()),
    ]
    assert ["yes" in sentence for sentence in said] == [False, False, True, True]
