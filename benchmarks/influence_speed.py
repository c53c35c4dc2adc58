#!/usr/bin/env python
"""Time the estimation of influences, from file to file, against what it could cost at least.

    python benchmarks/influence_speed.py --models 2000 --classes 1000 --examples 2000

The references, each in this process on one thread, without reading or writing anything:

`products`   two matrix products in float64, of the masks with the outcomes and with their squares,
             which a difference in means and its standard error cannot do without;
`one by one` a matrix-vector product for each test image, as the published code does it.

It prints processor seconds, and the ratio to `products`.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before NumPy is imported

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from influence_memory import run, write_summary, write_target

MEMORY_GB = 4


def products(masks: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the processor seconds of the two products."""
    started = time.process_time()
    masks.T @ outcomes
    masks.T @ np.square(outcomes)
    return time.process_time() - started


def one_by_one(masks: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the processor seconds of differences in means, image by image, with their errors."""
    started = time.process_time()
    having = masks.sum(axis=0)
    without = len(masks) - having
    for column in outcomes.T:
        for values in (column, np.square(column)):
            sums = masks.T @ values
            sums / having - (values.sum() - sums) / without
    return time.process_time() - started


def main() -> None:
    """Print a line for each way."""
    arguments = parser().parse_args()
    shape = (arguments.models, arguments.classes, arguments.examples)
    print("models × classes × examples: {} × {} × {}".format(*shape))
    rng = np.random.default_rng(0)
    masks = (rng.random(shape[:2]) < 0.5).astype(np.float64)
    outcomes = rng.normal(size=(shape[0], shape[2]))
    least = min(products(masks, outcomes) for _ in range(3))
    print(f"products: {least:.2f} s, 1")
    found = one_by_one(masks, outcomes)
    print(f"one by one: {found:.2f} s, {found / least:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_target(folder, *shape[1:])
        write_summary(folder / "summary.parquet", *shape)
        for estimator in ("difference_in_means", "ridge"):
            found = run("estimate_influence.py", folder, estimator, MEMORY_GB).processor
            print(f"{estimator}, from file to file: {found:.2f} s, {found / least:.1f}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder")
    return parser


if __name__ == "__main__":
    main()
