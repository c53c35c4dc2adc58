"""What a study can show: the smallest effects that its tests find in 80 % of studies."""

import numpy as np
from scipy.special import nctdtrinc, stdtrit

from transfer_influence.config.study import Sampling
from transfer_influence.counterfactual.replicates import LEAST_REPLICATES
from transfer_influence.counterfactual.verdicts import LEVEL
from transfer_influence.influence.intervals import FALSE_DISCOVERIES

POWER = 0.8


def smallest_effect(models: int, units: int, share: float, sampling: Sampling) -> float:
    """Return the smallest influence of one unit that is called significant in 80 % of studies.

    It is the only unit with an effect, so that its p-value has to be a false discovery rate's share
    of one unit: the hardest case of Benjamini and Hochberg's procedure.

    Args:
        models: how many.
        units: how many.
        share: of the units that a model sees.
        sampling: how subsets are drawn.

    Returns:
        The difference in means, in standard deviations of the outcome between models: of all that
        varies it for `uniform`, of what the other units leave for `balanced`, of half the
        difference of partners, times the root of 2, for `complement_pairs`. NaN where there are too
        few models.
    """
    freedom = {
        "uniform": models - 2,
        "complement_pairs": models // 2 - 1,
        "balanced": models - 1 - units,
    }[sampling]
    error = 1 / np.sqrt(models * share * (1 - share))
    return error * _noncentrality(freedom, FALSE_DISCOVERIES / units)


def smallest_difference(replicates: int, points: int) -> float:
    """Return the smallest difference of two curves at a point that is shown in 80 % of studies.

    It is the only point where they differ, the hardest case of Holm's correction.

    Args:
        replicates: of each point.
        points: of a curve, without the one where nothing is removed.

    Returns:
        In standard deviations of the difference between two replicates that share their seeds; NaN
        for fewer than three replicates.
    """
    if replicates < LEAST_REPLICATES:
        return float("nan")
    return _noncentrality(replicates - 1, LEVEL / points) / np.sqrt(replicates)


def _noncentrality(freedom: int, level: float) -> float:
    """Return the mean, in standard errors, that a two-sided t-test finds in 80 % of cases."""
    if freedom < 1:
        return float("nan")
    return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2)))
