"""A trial of a network in a process of its own, so that a program need not import torch for it."""

import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel

from transfer_influence.config.recipe import Architecture
from transfer_influence.errors import UserError

ROOT = Path(__file__).parents[2]
REFUSED = 3  # exit status; that of an error in Python is 1


class Trial(BaseModel):
    """A network, and the sides of the images that it is to take, in pixels."""

    architecture: Architecture
    resolutions: set[int]


def try_architecture(architecture: Architecture, resolutions: set[int]) -> None:
    """Look whether a network can be built and takes images of some resolutions.

    Raises:
        UserError: see `building.check_architecture`.
    """
    trial = Trial(architecture=architecture, resolutions=resolutions)
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", "transfer_influence.models.trial"],
        input=trial.model_dump_json(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == REFUSED:
        raise UserError(run.stdout.strip())
    run.check_returncode()


def main() -> None:
    """Try what is described on standard input; say why if it cannot be."""
    from transfer_influence.models.building import check_architecture

    trial = Trial.model_validate_json(sys.stdin.read())
    try:
        check_architecture(trial.architecture, trial.resolutions)
    except UserError as error:
        print(error)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
