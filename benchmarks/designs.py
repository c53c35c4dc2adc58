#!/usr/bin/env python
"""Compare ways to draw subsets, on the networks and images of the demo.

    python benchmarks/designs.py train FOLDER [--cores 2]
    python benchmarks/designs.py compare FOLDER

`train` runs three studies like the demo's, without counterfactuals, in FOLDER: 512 models with
uniform subsets, and 304 each with complement pairs and with balanced subsets. That takes two hours
of a core. It goes on where it stopped.

`compare` cuts each study into studies of 38, 76 and 152 models, and prints how well their
influences correlate with a reference, with the 95 % interval over studies. The reference is ridge
on all models of all three, but for those at hand. Log-odds are those of the stored probabilities.
It writes the influences by ridge on all models to benchmarks/designs_reference.csv.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).parent))

from estimators import CLASSES, ESTIMATORS, measured

from transfer_influence.influence.estimators import joined
from transfer_influence.subsets import unpack

CHECKOUT = Path(__file__).parents[1]
MODELS = {"uniform": 512, "complement_pairs": 304, "balanced": 304}
PARTS = (38, 76, 152)
COMPARED = ("difference_in_means", "ridge")
OUTCOMES = ("raw_margin", "softmax_probability", "log_odds", "accuracy")
TRANSFERS = (("uci_digits", "fixed"), ("uci_digits", "full"), ("fashion_fewshot", "fixed"))
LEAST = 1e-6  # of a probability and of what is left of 1, for its log-odds


def train(folder: Path, cores: int) -> None:
    """Run the three studies."""
    demo = yaml.safe_load((CHECKOUT / "config" / "demo.yaml").read_text())
    del demo["counterfactuals"]
    folder.mkdir(parents=True, exist_ok=True)
    for sampling, models in MODELS.items():
        demo["source"]["subset"] = {"sampling": sampling}
        study = {**demo, "study": sampling, "models": models, "models_per_job": 32}
        path = folder / f"{sampling}.yaml"
        path.write_text(yaml.safe_dump({**study, "results": str(folder.absolute())}))
        subprocess.run(
            [
                *("snakemake", "--profile", "profiles/local", "--cores", str(cores)),
                *("--configfile", str(path.absolute()), "--until", "summarize"),
            ],
            cwd=CHECKOUT,
            check=True,
        )


def read(folder: Path, sampling: str, target: str, mode: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Return masks (models, CLASSES) and the outcomes on the whole target, a column each."""
    path = folder / sampling / "summaries" / target / f"{mode}.parquet"
    columns = ["mask", "raw_margin", "softmax_probability", "accuracy"]
    rows = pq.read_table(path, columns=columns).to_pandas()
    shares = np.stack(rows["softmax_probability"]).astype(np.float64)
    sure = np.clip(shares, LEAST, 1 - LEAST)
    outcomes = {
        "raw_margin": np.stack(rows["raw_margin"]).astype(np.float64).mean(axis=1),
        "softmax_probability": shares.mean(axis=1),
        "log_odds": np.log(sure / (1 - sure)).mean(axis=1),
        "accuracy": rows["accuracy"].to_numpy(),
    }
    return unpack(rows["mask"].tolist(), CLASSES), pd.DataFrame(outcomes)


def influences(estimator: str, masks: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Return the influence of each class, float64 (CLASSES,)."""
    data = measured(masks, outcome)
    return joined(ESTIMATORS[estimator](data).fit(data.examples)).influence[:, 0]


def reference(
    studies: dict[str, tuple[np.ndarray, pd.DataFrame]], outcome: str, but: dict[str, slice]
) -> np.ndarray:
    """Return the influences by ridge on the models of all studies, without some of one."""
    masks, outcomes = [], []
    for name, (each, values) in studies.items():
        left = np.ones(len(each), bool)
        left[but.get(name, slice(0))] = False
        masks.append(each[left])
        outcomes.append(values[outcome].to_numpy()[left] - values[outcome].mean())
    return influences("ridge", np.concatenate(masks), np.concatenate(outcomes))


def correlations(
    studies: dict[str, tuple[np.ndarray, pd.DataFrame]],
    sampling: str,
    estimator: str,
    outcome: str,
    models: int,
) -> np.ndarray:
    """Return the correlation with the reference of each study of so many models."""
    masks, outcomes = studies[sampling]
    found = []
    for first in range(0, len(masks) - models + 1, models):
        part = slice(first, first + models)
        known = reference(studies, outcome, {sampling: part})
        one = influences(estimator, masks[part], outcomes[outcome].to_numpy()[part])
        found.append(np.corrcoef(one, known)[0, 1])
    return np.array(found)


def shown(found: np.ndarray) -> str:
    """Return a mean and its 95 % interval over studies."""
    half = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{found.mean():.3f} ± {half:.3f}"


def compare(folder: Path) -> None:
    """Print a table for each target and mode, and write the reference."""
    references = []
    for target, mode in TRANSFERS:
        studies = {sampling: read(folder, sampling, target, mode) for sampling in MODELS}
        for outcome in OUTCOMES:
            print(f"\n{target}, {mode}, {outcome}: correlation with the reference")
            for models in PARTS:
                for sampling in MODELS:
                    for estimator in COMPARED:
                        found = correlations(studies, sampling, estimator, outcome, models)
                        print(
                            f"{models:4} {sampling:17} {estimator:20} {shown(found)} "
                            f"({len(found)} studies)",
                            flush=True,
                        )
            whole = reference(studies, outcome, {})
            rows = {"target": target, "mode": mode, "outcome": outcome, "unit": range(CLASSES)}
            references.append(pd.DataFrame({**rows, "influence": whole}))
    path = CHECKOUT / "benchmarks" / "designs_reference.csv"
    pd.concat(references).to_csv(path, index=False, float_format="%.6g")


def main() -> None:
    """Run what is asked for."""
    arguments = parser().parse_args()
    if arguments.what == "train":
        train(arguments.folder, arguments.cores)
    else:
        compare(arguments.folder)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["train", "compare"], help="what to do")
    parser.add_argument("folder", type=Path, help="of the studies' results")
    parser.add_argument("--cores", type=int, default=2, help="to train on (default: 2)")
    return parser


if __name__ == "__main__":
    main()
