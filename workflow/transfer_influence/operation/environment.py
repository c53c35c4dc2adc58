"""What jobs find in their environment, wherever they run."""

import os
import sys
from pathlib import Path

from transfer_influence.config.study import Study
from transfer_influence.operation.acceptance import file_of_accepted_code
from transfer_influence.provenance import ACCEPTED


def job_environment(study: Study, checkout: Path) -> dict[str, str]:
    """Return the environment variables of a study's jobs.

    How training jobs run changes no result, so it stands here and in no parameter, a change of
    which makes results stale.

    Args:
        study: the study.
        checkout: folder of the workflow.
    """
    curves = str(study.folder / "tensorboard") if study.tensorboard else ""
    programs = (checkout / "scripts", Path(sys.executable).parent)
    return {
        "PATH": _before(os.getenv("PATH", os.defpath), *programs),
        "PYTHONPATH": _before(os.getenv("PYTHONPATH", ""), checkout / "workflow"),
        # Keep freed memory for the next batch: giving it back to the system and asking again takes
        # 7 % of a small model's training time on a CPU.
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
        ACCEPTED: str(file_of_accepted_code(study.folder)),
        "TRANSFER_INFLUENCE_FAILED_MODELS": study.failed_models,
        "TRANSFER_INFLUENCE_SCRATCH": study.scratch or "",
        "TRANSFER_INFLUENCE_TENSORBOARD": curves,
    }


def _before(places: str, *ours: Path) -> str:
    """Put our folders before those of a search path, each once."""
    folders = [*map(str, ours), *places.split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(filter(None, folders)))
