"""Who is running a study.

Two claims in `{results}/{study}/launch/` say it: `controller` is held by the one of
scripts/launch.py, `snakemake` by every Snakemake that executes jobs of the study, whoever started
it (rules/common.smk).
"""

import atexit
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from transfer_influence.claims import Claims
from transfer_influence.errors import UserError

Role = Literal["controller", "snakemake"]


def claims_on(results: Path) -> Claims:
    """Return the claims on running the study whose results are in a folder."""
    return Claims(results / "launch")


@contextlib.contextmanager
def at_work(results: Path, role: Role) -> Iterator[None]:
    """Hold the claim of a role.

    Raises:
        UserError: another holds it and is alive.
    """
    claims = claims_on(results)
    with contextlib.ExitStack() as stack:
        while not stack.enter_context(claims.claimed(role)):
            holder = claims.holder(role)
            if claims.shows_life(role):
                raise UserError(
                    f"{results}: the study is being run by {holder}; wait for it, or stop it with "
                    f"scripts/launch.py --cancel."
                )
        yield


def hold_until_exit(results: Path, role: Role) -> None:
    """Hold the claim of a role until this process ends.

    Raises:
        UserError: see `at_work`.
    """
    claim = contextlib.ExitStack()
    claim.enter_context(at_work(results, role))
    atexit.register(claim.close)
