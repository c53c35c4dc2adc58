"""The prophecy formula of Spearman and Brown: reliability with more models, and models for it."""

import numpy as np

ENOUGH = 0.9


def spearman_brown(reliability: float, longer: float) -> float:
    """Return the reliability with `longer` times as many models (Spearman 1910, Brown 1910).

    It is 0 where parts do not agree: a negative correlation of parts is chance, and no prophecy.
    """
    reliability = max(reliability, 0.0)
    return longer * reliability / (1 + (longer - 1) * reliability)


def models_needed(reliability: float, models: int, goal: float = ENOUGH) -> float:
    """Return the models for a reliability of `goal`; NaN where it is not positive at `models`."""
    if not 0 < reliability < 1:
        return float(models) if reliability == 1 else np.nan
    return models * goal * (1 - reliability) / (reliability * (1 - goal))


def rounded(models: float) -> int:
    """Round to two significant digits: what is predicted is not known to the model."""
    return int(float(f"{models:.2g}"))
