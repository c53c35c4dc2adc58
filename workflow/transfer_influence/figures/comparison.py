"""Source units that help one target and hurt another."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from transfer_influence.config.study import PLURAL, Outcome, Unit
from transfer_influence.figures.style import (
    BLACK,
    BLUE,
    OUTCOMES,
    VERMILION,
    WIDTH,
    set_title,
    short,
    styled,
)
from transfer_influence.figures.tables import first_rows, read_rows

HELP_OR_HURT = LinearSegmentedColormap.from_list("influence", [VERMILION, "#ffffff", BLUE])
MOST_OPPOSED = 30  # source units of a heat map
MOST_NUMBERED = 8  # columns of a heat map whose cells have room for numbers
LARGEST = 2.5  # standard deviations at the ends of the colours of a heat map
KNOWN = "_significant"  # ends the columns that say whether those beside them are


@styled
def opposed_classes(comparison: Path, outcome: Outcome, unit: Unit = "class") -> Figure:
    """Draw the influences of the 30 most opposed source units on all targets as a heat map.

    Colours are in standard deviations of the influences on a target and mode, so that columns can
    be compared; where there are at most 8, the influences stand in the cells. A ring marks those
    that are significant.

    Args:
        comparison: table of `applications.opposed.compare_targets`.
        outcome: what the influences are on.
        unit: what was judged.
    """
    opposed = read_rows(comparison, ["opposed", "opposition"])["opposed"]
    shown = first_rows(comparison)[:MOST_OPPOSED]
    marks = [name for name in map(str, shown) if name.endswith(KNOWN)]
    columns = [name.removesuffix(KNOWN) for name in marks]
    # One column at a time: there may be a million units.
    spreads = {name: read_rows(comparison, [name])[name].std(ddof=0) for name in columns}
    spread = pd.Series(spreads).replace(0.0, 1.0)
    figure = Figure(figsize=(WIDTH, 1.9 + 0.2 * len(shown)))
    axes = figure.subplots()
    scaled = (shown[columns] / spread).to_numpy()
    image = axes.imshow(scaled, cmap=HELP_OR_HURT, vmin=-LARGEST, vmax=LARGEST, aspect="auto")
    rows, places = np.nonzero(shown[marks].fillna(False).to_numpy(dtype=bool))
    inside = len(columns) <= MOST_NUMBERED
    across = places + 0.36 if inside else places  # beside the number
    ring: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "none", "markeredgecolor": BLACK}
    ring |= {"clip_on": False, "in_layout": False}  # no rings would take room at the bottom
    axes.plot(across, rows, "o", label="significant (q-value at most 5 %)", **ring)
    if inside:
        for (row, place), value in np.ndenumerate(shown[columns].to_numpy()):
            # White on the ends of the scale, whose colours are dark.
            colour = "white" if abs(scaled[row, place]) > 0.75 * LARGEST else BLACK
            axes.text(
                place, row, f"{value:+.2g}", ha="center", va="center", fontsize=7.5, color=colour
            )
    titles = [" ".join(short(part, 22) for part in name.rsplit("_", 1)) for name in columns]
    turned: dict[str, Any] = (
        {}
        if inside and len(columns) <= 4
        else {"rotation": 40, "ha": "left", "rotation_mode": "anchor"}
    )
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), titles, **turned)
    axes.set_yticks(range(len(shown)), [short(name, 36) for name in shown["name"]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=min(1.0, 2.4 / (0.2 * len(shown))))
    bar.set_label(f"influence on the {OUTCOMES[outcome]},\nin standard deviations of its column")
    if shown[marks].notna().any(axis=None):
        figure.legend(loc="outside lower center")
    left_out = f" ({len(shown)} of {len(opposed):,} shown)" if len(shown) < len(opposed) else ""
    set_title(
        figure, f"Source {PLURAL[unit]} that pull targets apart: {_found(opposed, unit)}{left_out}"
    )
    return figure


def _found(opposed: pd.Series, unit: Unit) -> str:
    """Say how many units pull targets apart, as far as that is known."""
    found, unknown = int(opposed.sum()), opposed.isna().any()
    if unknown and not found:
        return "significance unknown"
    least = "at least " if unknown else ""
    return f"{least}{found} {unit if found == 1 else PLURAL[unit]}"
