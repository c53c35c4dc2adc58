"""How all figures look, and how they are written.

A figure is a matplotlib `Figure` without pyplot, so nothing needs a display and nothing is shared.
Equal inputs give equal bytes: the user's own matplotlibrc, dates and random ids stay out. Colours
are those of Okabe & Ito, which colour-blind readers can tell apart.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import style
from matplotlib.figure import Figure

from transfer_influence.config.study import Outcome
from transfer_influence.files import atomic
from transfer_influence.provenance import sign_svg, with_companions

OUTCOMES: dict[Outcome, str] = {
    "raw_margin": "mean raw margin (logits)",
    "softmax_margin": "mean softmax margin",
    "raw_logit": "mean logit of the true class",
    "softmax_probability": "mean probability of the true class",
    "log_odds": "mean log odds of the true class",
    "is_correct": "share of correct predictions",
    "accuracy": "accuracy (as the recipe of the target has it)",
    "auroc": "area under the ROC curve",
}

BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#666666", "#000000"
WIDTH = 7.5  # inches, the text width of a report

STYLE = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    # A class may be called "$5": names are text, never formulas.
    "text.parse_math": False,
}
styled = style.context(["default", STYLE])


@styled
def save(
    figure: Figure, svg: Path, png: Path, provenance: str, others: Sequence[Path] = ()
) -> None:
    """Write a figure to its two files, atomically; the SVG says what the figure was made from.

    Args:
        figure: what to draw.
        svg: file to write last, with the provenance.
        png: file to write.
        provenance: of the figure, as JSON.
        others: further outputs of the job, written before, which the SVG is to vouch for.
    """
    with atomic(png) as temporary:
        figure.savefig(temporary, dpi=200)
    companions = {path.name: path for path in (png, *others)}
    with atomic(svg) as temporary, matplotlib.rc_context({"svg.hashsalt": "figure"}):
        figure.savefig(temporary, dpi=200, metadata={"Date": None})
        sign_svg(temporary, with_companions(provenance, companions))


def short(name: str, longest: int) -> str:
    """Return a name cut to so many characters, an ellipsis in its middle where it was longer.

    Long names, such as those of files, often begin alike and end differently.
    """
    if len(name) <= longest:
        return name
    tail = longest // 2
    return name[: longest - tail - 1] + "…" + name[-tail:]


def set_title(figure: Figure, title: str) -> None:
    """Put a title above a figure, at its left, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(title, 80), x=0.02, ha="left", weight="bold")
