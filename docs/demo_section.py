#!/usr/bin/env python
"""Rewrite what README.md says of the demo, from the demo's results.

    make demo && make readme

It copies two figures of the report and writes docs/demo.csv, the numbers; README.md gets its table
and its sentences from that file, between two marks. A test compares the two.
"""

import shutil
from pathlib import Path

import pandas as pd

from transfer_influence.config.study import BASELINE
from transfer_influence.counterfactual.verdicts import verdict_sentences

CHECKOUT = Path(__file__).parents[1]
RESULTS = CHECKOUT / "results" / "demo"
NUMBERS = CHECKOUT / "docs" / "demo.csv"
README = CHECKOUT / "README.md"
BEGIN, END = "<!-- demo: written by `make readme` -->", "<!-- end of demo -->"
FIGURES = {
    "report/uci_digits/full/influences.png": "demo-influences.png",
    "report/uci_digits/full/counterfactuals.png": "demo-counterfactuals.png",
}
TRANSFERS = {
    ("uci_digits", "fixed"): "`uci_digits`, new head",
    ("uci_digits", "full"): "`uci_digits`, fine-tuned",
    ("fashion_fewshot", "fixed"): "`fashion_fewshot`, new head",
}
DIGITS = 10  # of the twenty classes


def read_numbers(results: Path) -> pd.DataFrame:
    """Return one row a target, mode and point of its curves, with what README.md says of it."""
    parts = []
    for target, mode in TRANSFERS:
        summary = pd.read_parquet(results / "counterfactuals" / target / f"{mode}.summary.parquet")
        ranking = pd.read_parquet(results / "influences" / target / mode / "ranking.parquet")
        estimator = pd.read_parquet(
            results / "influences" / target / mode / "difference_in_means.parquet"
        )
        last = ranking.sort_values("rank")["name"][-DIGITS:]
        own = last.str.startswith("digit") == (target == "uci_digits")
        parts.append(
            summary.assign(
                target=target,
                mode=mode,
                other_kind_last=int((~own).sum()),
                significant=int(estimator["significant"].sum()),
            )
        )
    columns = ["target", "mode", "order", "budget", "removed", "replicates", "accuracy"]
    for control in ("none", "random"):
        endings = ("", "_low", "_high", "_p_corrected")
        columns += [f"against_{control}{ending}" for ending in endings]
    columns += ["shown", "smallest_shown", "other_kind_last", "significant"]
    return pd.concat(parts, ignore_index=True)[columns]


def section(numbers: pd.DataFrame) -> str:
    """Return the table and the sentences of README.md."""
    largest = numbers["removed"].max()
    replicates = int(numbers["replicates"].min())
    heads = {
        BASELINE: "none",
        "top": f"{largest} most helpful",
        "random": f"{largest} random",
        "bottom": f"{largest} most harmful",
        "digits": "all digits",
        "clothes": "all clothes",
    }
    heading = f"accuracy (%), mean of {replicates}; removed:"
    lines = [f"| {' | '.join([heading, *heads.values()])} |", "| --- " * (1 + len(heads)) + "|"]
    said = []
    for (target, mode), name in TRANSFERS.items():
        rows = numbers[(numbers["target"] == target) & (numbers["mode"] == mode)]
        at_end = rows[rows["removed"].isin([0, largest])].set_index("order")["accuracy"]
        cells = [f"{100 * at_end[order]:.1f}" for order in heads]
        lines.append(f"| {' | '.join([name, *cells])} |")
        first = rows.iloc[0]
        said.append(
            f"- {name}: the influence of {first['significant']} of 20 classes is significant, and "
            f"{first['other_kind_last']} of the {DIGITS} lowest are of the other kind. "
            + " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences(rows))
        )
    return "\n".join([*lines, "", *said])


def sentences(rows: pd.DataFrame) -> list[str]:
    """Return what the curves of one target and mode show, see `verdict_sentences`."""
    return verdict_sentences(rows.assign(shown=rows["shown"].astype("boolean")))


def rewritten(text: str, numbers: pd.DataFrame) -> str:
    """Return README.md with the section as it should be."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section(numbers)}\n{END}{rest.split(END, 1)[1]}"


def read_written() -> pd.DataFrame:
    """Return the numbers as they were written last."""
    return pd.read_csv(NUMBERS, keep_default_na=False, na_values=[""])


def main() -> None:
    """Copy, write, rewrite."""
    for source, name in FIGURES.items():
        shutil.copyfile(RESULTS / source, CHECKOUT / "docs" / name)
    read_numbers(RESULTS).to_csv(NUMBERS, index=False, float_format="%.6g")
    README.write_text(rewritten(README.read_text(), read_written()))


if __name__ == "__main__":
    main()
