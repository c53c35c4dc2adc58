"""What curves show: paired tests of removals against nothing and against random removals."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from transfer_influence.config.study import BASELINE
from transfer_influence.counterfactual.replicates import LEAST_REPLICATES, by_replicate

LEVEL = 0.05  # of the tests of a curve together, two-sided


@dataclass(frozen=True)
class Claim:
    """What a curve is to show.

    Attributes:
        control: what it is compared with: one of `CONTROLS`.
        sign: of the difference, +1 where the curve is to lie above.
        sentence: the claim in words.
    """

    control: str
    sign: int
    sentence: str


CONTROLS = (BASELINE, "random", "random_matched")  # nothing removed; as many

CLAIMS: dict[str, Claim] = {
    "top": Claim("random", -1, "removing the most helpful hurts more than removing at random"),
    "bottom": Claim(BASELINE, 1, "removing the most harmful helps"),
}


MATCHED = Claim(
    "random_matched",
    -1,
    "removing the most helpful hurts more than removing random ones with as many images",
)


def claim_of(order: str, orders: Collection[str]) -> Claim | None:
    """Return what a curve is to show, by the best control among the orders that there are."""
    return MATCHED if order == "top" and MATCHED.control in orders else CLAIMS.get(order)


# What a sentence adds for curves of models that were retrained by a budget.
BUDGETS = {"epochs": "", "steps": ", at equal steps"}


def differences(models: pd.DataFrame, order: str, control: str) -> pd.DataFrame:
    """Compare each point of a curve with its control, replicate by replicate.

    Replicates share their seeds at all points, so their differences vary less than they do.

    Args:
        models: the retrained models, see `summarize_counterfactual`.
        order: of the curve.
        control: one of `CONTROLS`.

    Returns:
        A row a number of removed units above 0 that both have: `removed`; `difference`, the mean
        over the replicates that have both; `low` and `high`, its 95 % t-interval; `p_value`, of the
        two-sided t-test; `p_corrected`, the same corrected for the number of points (Holm 1979);
        `smallest`, the smallest difference that would be significant with this spread and this many
        points. All but the first two are NaN where there are fewer than three replicates, or where
        all differ by the same, which says nothing of their spread.
    """
    curve, other = by_replicate(models, order), by_replicate(models, control)
    if control == BASELINE:
        paired = curve.sub(other[0], axis=0)
    else:
        paired = (curve - other)[curve.columns.intersection(other.columns)]
    paired = paired.drop(columns=0, errors="ignore")
    number, mean = paired.count().to_numpy(), paired.mean().to_numpy()
    spread = paired.std().to_numpy()
    known = (number >= LEAST_REPLICATES) & (spread > 0)
    error = np.where(known, spread, np.nan) / np.sqrt(number)
    p_value = 2 * stdtr(number - 1, -np.abs(mean / error))
    half, least = (stdtrit(number - 1, 1 - LEVEL / 2 / m) * error for m in (1, max(1, len(mean))))
    return pd.DataFrame(
        {
            "removed": paired.columns,
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
            "p_value": p_value,
            "p_corrected": holm(p_value),
            "smallest": least,
        }
    )


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values (n,) corrected for being n (Holm 1979); NaN stay, and count among the n."""
    order = np.argsort(p_values)  # NaN last
    raised = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    found = np.empty(len(p_values))
    found[order] = np.minimum(raised, 1.0)
    return found


def verdict(points: pd.DataFrame, claim: Claim) -> tuple[bool | None, float]:
    """Return whether points show a claim, and the smallest difference that they can show.

    A claim is shown if a corrected p-value is at most 0.05 on the side of the claim, so where
    nothing is true a claim is shown in at most 2.5 % of studies.

    Args:
        points: see `differences`.
        claim: what they are to show.

    Returns:
        None and NaN where no point has a p-value.
    """
    if points["p_value"].isna().all():
        return None, np.nan
    right = claim.sign * points["difference"] > 0
    shown = bool((right & (points["p_corrected"] <= LEVEL)).any())
    return shown, float(points["smallest"].min())


def verdict_sentences(summary: pd.DataFrame) -> list[str]:
    """Return what the curves of one (target, mode) show and do not show, a sentence a claim.

    Args:
        summary: see `curves.summary_of_budgets`.
    """
    orders = set(summary["order"])
    return [
        f"{claim.sentence}{BUDGETS[budget]}: {_answer(rows, claim)}"
        for budget in summary["budget"].dropna().unique()
        for order in CLAIMS
        if (claim := claim_of(order, orders))
        and len(rows := summary[(summary["order"] == order) & (summary["budget"] == budget)])
    ]


def _answer(rows: pd.DataFrame, claim: Claim) -> str:
    shown = rows["shown"].iloc[0]
    if pd.isna(shown):
        return f"not known (it takes {LEAST_REPLICATES} replicates whose differences vary)"
    if not shown:
        return f"not shown ({100 * rows['smallest_shown'].iloc[0]:.1f} points could be)"
    column = f"against_{claim.control}"
    right = rows[claim.sign * rows[column] > 0]
    best = right.sort_values(f"{column}_p_corrected").iloc[0]
    middle, *ends = (100 * best[name] for name in (column, f"{column}_low", f"{column}_high"))
    low, high = sorted(claim.sign * end for end in ends)
    p_value = best[f"{column}_p_corrected"]
    return (
        f"yes, by {claim.sign * middle:.1f} points [{low:.1f}, {high:.1f}] at {best['removed']}, "
        f"p = {p_value:.2g}"
    )
