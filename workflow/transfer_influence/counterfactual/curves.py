"""Curves of accuracy against the number of removed units, and what can be read off them."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from transfer_influence.config.study import BASELINE, Budget, Order
from transfer_influence.counterfactual.replicates import by_replicate, half_width, mean_and_ends
from transfer_influence.counterfactual.tables import VALIDATION
from transfer_influence.counterfactual.verdicts import CONTROLS, claim_of, differences, verdict
from transfer_influence.outcomes.tables import read_table, write_table


def write_summary(models: Path, output: Path, provenance: str) -> None:
    """Write what the curves of one (target, mode) show, one row a point.

    Args:
        models: table of the retrained models; see `summarize_counterfactual`.
        output: Parquet file to write; for its columns see `summary_of`.
        provenance: of the output.

    Raises:
        UserError: the table of the models is missing or damaged.
    """
    columns = ["order", "budget", "removed", "replicate", "accuracy", "source_accuracy"]
    columns += ["images", "steps"]
    rows = read_table(models, [*columns, *VALIDATION]).to_pandas()
    table = pa.Table.from_pandas(summary_of_budgets(rows), preserve_index=False)
    write_table(table, output, provenance)


def summary_of_budgets(models: pd.DataFrame) -> pd.DataFrame:
    """Return the summaries of the curves of each budget, and of the baseline, which all share.

    The column `budget` says which; it is empty for the baseline. The others are those of
    `summary_of`, where `random` is that of the same budget.
    """
    baseline = models["budget"].isna()
    budgets = [name for name in get_args(Budget) if (models["budget"] == name).any()]
    parts = [
        summary_of(models[baseline | (models["budget"] == name)]).assign(budget=name)
        for name in budgets
    ]
    table = pd.concat(parts, ignore_index=True) if parts else summary_of(models).assign(budget=None)
    of_all = table["order"] == BASELINE
    table.loc[of_all, "budget"] = None
    table.insert(1, "budget", table.pop("budget"))
    return table[~of_all | ~of_all.duplicated()].reset_index(drop=True)


def summary_of(models: pd.DataFrame) -> pd.DataFrame:
    """Return one row an order and number of removed units.

    Columns of the point: `order` (`none` for the baseline), `removed`, `replicates`; `accuracy`,
    `validation_accuracy` and `source_accuracy` (means); `images` and `steps` of the training of
    source models (means); `validation_images`, the size of the validation split;
    `standard_deviation` of the accuracy, and `low` and `high`, the 95 % t-interval of its mean. For
    each control, `none`, and `random` and `random_matched` at the same number,
    `against_{control}`: the mean difference between replicates that share their seeds, with its
    interval (`_low`, `_high`), the p-value of no difference (`_p_value`) and the same corrected for
    the number of points (`_p_corrected`), see `verdicts.differences`.

    Columns of the order, the same in all of its rows, empty for the baseline:
    - `claim`: what the curve is to show, for `top` and `bottom`; `shown`: whether it does, empty
      where that cannot be told; `smallest_shown`: the smallest difference that these replicates
      can show, see `verdicts.verdict`.
    - `best_removed`: the number of removed units, 0 included, whose mean validation accuracy is
      highest; of equal ones the smallest. The test split has no say in it.
    - `gain`, `gain_low`, `gain_high`: a replicate's accuracy on the test split at the number that
      the validation accuracies of the *other* replicates choose, minus its own with nothing
      removed; mean over replicates, and its 95 % t-interval. `best_removed` will not do here: both
      accuracies of a replicate come from the same source model, so the models whose luck chose the
      number would be asked what it is worth, and a number without any effect would show a gain. A
      single replicate has no others and chooses for itself, which flatters it. As replicates
      choose for one another, the interval is too narrow: without any effect, with 10 replicates
      and 19 numbers, it lay above 0 in 9 % of simulated studies, where 2.5 % are due.
      `gain_replicates`: how many, of which the best number is chosen, too. All points of the order
      have them, 0 included, so that none is better for want of a bad replicate. Where all choose
      0 there is no gain to measure: it is empty, and `gain_reason` says so.
    - `area`, `area_low`, `area_high`: between the curve and that of `random`, positive where the
      curve lies above, in accuracy × units: by the trapezoid rule over the numbers of removed units
      that both have, 0 included; mean over replicates, and its 95 % t-interval. `area_replicates`:
      how many, those that both curves have at all these numbers.

    Accuracies are shares of 1. Differences are taken within replicates, which share their seeds.
    Intervals are empty where there are fewer than three replicates.
    """
    points = point_means(models)
    orders = [order for order in points["order"].unique() if order != BASELINE]
    against = {control: _differences(models, orders, control) for control in CONTROLS}
    read_off = pd.DataFrame(
        [
            {"order": order, **_read_off(models, order), **_verdict(against, order, orders)}
            for order in orders
        ],
        columns=["order", *READ_OFF],
    )
    table = points
    for control, found in against.items():
        names = {name: f"against_{control}{ending}" for name, ending in COMPARED.items()}
        found = found[["order", "removed", *COMPARED]].rename(columns=names)
        table = table.merge(found, on=["order", "removed"], how="left")
    table = table.merge(read_off, on="order", how="left")
    counts = ["validation_images", "best_removed", "gain_replicates", "area_replicates"]
    return table.astype(dict.fromkeys(counts, "Int32") | {"shown": "boolean"})


def _differences(models: pd.DataFrame, orders: list[str], control: str) -> pd.DataFrame:
    """Return the differences of all curves to a control, which has none to itself."""
    there = control in set(models["order"])
    parts = [
        differences(models, order, control).assign(order=order)
        for order in orders
        if there and order != control
    ]
    columns = ["order", "removed", *COMPARED, "smallest"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns, dtype=float)


def _verdict(against: dict[str, pd.DataFrame], order: str, orders: list[str]) -> dict[str, Any]:
    claim = claim_of(order, orders)
    if claim is None:
        return {}
    found = against[claim.control]
    shown, smallest = verdict(found[found["order"] == order], claim)
    return {"claim": claim.sentence, "shown": shown, "smallest_shown": smallest}


def point_means(models: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the replicates of each point; see `summary_of`."""
    known = [BASELINE, *get_args(Order)]
    named = [order for order in models["order"].unique() if order not in known]
    order = pd.Categorical(models["order"], [*known, *named])  # sorts in this order
    points = (
        models.assign(order=order)
        .groupby(["order", "removed"], as_index=False, observed=True)
        .agg(
            replicates=("accuracy", "size"),
            accuracy=("accuracy", "mean"),
            validation_accuracy=("validation_accuracy", "mean"),
            validation_images=("validation_images", "max"),  # the same for all
            source_accuracy=("source_accuracy", "mean"),
            images=("images", "mean"),
            steps=("steps", "mean"),
            standard_deviation=("accuracy", "std"),
        )
    )
    half = half_width(points["standard_deviation"], points["replicates"])
    return points.assign(
        order=points["order"].astype(str),
        low=points["accuracy"] - half,
        high=points["accuracy"] + half,
    )


def best_and_gains(models: pd.DataFrame, order: str) -> tuple[int | None, np.ndarray, bool]:
    """Choose how many units to remove in an order, and say what such a choice is worth.

    Returns:
        The number that all replicates choose, None if none has a validation accuracy at all points
        of the curve; for each that has, float64, its accuracy at the number that the others choose
        minus that with nothing removed, see `summary_of`; and whether any choose to remove some.
    """
    validation = by_replicate(models, order, "validation_accuracy").dropna()
    if validation.empty:
        return None, np.empty(0), False
    accuracy = by_replicate(models, order)
    gains, some = [], False
    for replicate in validation.index:
        others = validation.drop(index=replicate)
        chosen = best_number(validation if others.empty else others)
        gains.append(accuracy.loc[replicate, chosen] - accuracy.loc[replicate, 0])
        some |= chosen > 0
    return best_number(validation), np.array(gains), some


def best_number(validation: pd.DataFrame) -> int:
    """Return the number of removed units, a column, of the highest mean; of equal ones the least.

    Means are rounded, as equal shares of few images differ in their last bits when averaged.
    """
    return int(validation.columns.to_numpy()[validation.mean().round(9).argmax()])


def areas(models: pd.DataFrame, order: str, control: str = "random") -> np.ndarray:
    """Return each replicate's area between a curve and that of a control, in accuracy × units.

    Without entries if the two have fewer than two numbers of removed units in common, or no
    replicate at all of these.
    """
    curve, other = by_replicate(models, order), by_replicate(models, control)
    common = curve.columns.intersection(other.columns)
    if order == control or len(common) < 2:
        return np.empty(0)
    above = (curve[common] - other[common]).dropna()
    return np.trapezoid(above.to_numpy(), above.columns.to_numpy(), axis=1)


def _read_off(models: pd.DataFrame, order: str) -> dict[str, Any]:
    """Return what the summary says of one order."""
    best, gains, some = best_and_gains(models, order)
    gain = _with_interval("gain", gains)
    nothing = best is not None and not some
    if nothing:
        gain |= dict.fromkeys(("gain", "gain_low", "gain_high"), np.nan)
    return {
        "best_removed": best,
        **gain,
        "gain_reason": "all replicates chose to remove nothing" if nothing else None,
        **_with_interval("area", areas(models, order)),
    }


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the mean of some values, its interval, and their number, by their columns' names."""
    return dict(zip(_names(name), (*mean_and_ends(values), len(values)), strict=True))


def _names(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high", f"{name}_replicates"]


# Ends of the names of columns, by what `differences` calls them.
COMPARED = {
    "difference": "",
    "low": "_low",
    "high": "_high",
    "p_value": "_p_value",
    "p_corrected": "_p_corrected",
}
READ_OFF = ["best_removed", *_names("gain"), "gain_reason", *_names("area")]
READ_OFF += ["claim", "shown", "smallest_shown"]
