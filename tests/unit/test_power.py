"""What a study can show, against simulated studies."""

import numpy as np
import pandas as pd
import pytest
from tests.unit.measured import MASKS, measured

from transfer_influence.counterfactual.power import smallest_difference, smallest_effect
from transfer_influence.counterfactual.verdicts import CLAIMS, differences, verdict
from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.intervals import closed_form
from transfer_influence.influence.measurements import Outcomes

STUDIES = 1000
MARGIN = 4 * np.sqrt(0.8 * 0.2 / STUDIES)


@pytest.mark.parametrize(
    ("sampling", "models"), [("uniform", 60), ("complement_pairs", 60), ("balanced", 38)]
)
def test_an_effect_of_that_size_is_called_significant_in_four_of_five_studies(sampling, models):
    units, found = 20, []
    size = smallest_effect(models, units, 0.5, sampling)
    masks = MASKS[sampling](models, units)
    for seed in range(STUDIES):
        noise = np.random.default_rng(seed).normal(size=models)
        # A class competes for a place with the 19 others.
        effect = size * (1 - 1 / units if sampling != "balanced" else 1)
        data = measured(masks, (noise + effect * masks[:, 0])[:, None])
        estimator = DifferenceInMeans(data, 1e9)
        known = closed_form(joined(estimator.fit(Outcomes.of(data.whole))), estimator)
        found.append(known.q_value[0] <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=MARGIN + 0.02)


@pytest.mark.parametrize(("replicates", "points"), [(3, 1), (10, 1), (10, 5)])
def test_a_difference_of_that_size_is_shown_in_four_of_five_studies(replicates, points):
    size, found = smallest_difference(replicates, points), []
    for seed in range(STUDIES):
        rng = np.random.default_rng(seed)
        rows = []
        for removed in range(1, points + 1):
            shift = size if removed == 1 else 0.0
            for order, mean in (("top", -shift), ("random", 0.0)):
                accuracies = mean + rng.normal(0, np.sqrt(0.5), replicates)
                rows += [(order, removed, *pair) for pair in enumerate(accuracies)]
        rows += [("none", 0, replicate, 0.0) for replicate in range(replicates)]
        models = pd.DataFrame(rows, columns=["order", "removed", "replicate", "accuracy"])
        found.append(verdict(differences(models, "top", "random"), CLAIMS["top"])[0])
    assert np.mean(found) == pytest.approx(0.8, abs=MARGIN + 0.02)


def test_too_few_models_or_replicates_show_nothing():
    assert np.isnan(smallest_difference(2, 1))
    assert np.isnan(smallest_effect(20, 20, 0.5, "balanced"))
