"""The learning rate of every step."""

import numpy as np

from transfer_influence.config.recipe import CyclicSchedule, Recipe, StepSchedule


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> np.ndarray:
    """Return the learning rate of every step, float64, shape (epochs × steps_per_epoch,).

    Step *t* happens at epoch *t* / `steps_per_epoch`. The cyclic schedule is the one of the
    published runs: linear from 0 to the peak, then linear to 0, so the very first step has rate 0
    unless the peak is at epoch 0.
    """
    epochs = np.arange(recipe.epochs * steps_per_epoch) / steps_per_epoch
    schedule = recipe.schedule
    if isinstance(schedule, CyclicSchedule):
        peak = schedule.peak_epoch
        rising = epochs / peak if peak > 0 else np.ones_like(epochs)
        falling = (recipe.epochs - epochs) / (recipe.epochs - peak) if peak < recipe.epochs else 1.0
        factors = np.minimum(rising, falling)
    elif isinstance(schedule, StepSchedule):
        factors = schedule.factor ** np.floor(epochs / schedule.every)
    else:
        factors = schedule.factor ** np.searchsorted(np.sort(schedule.epochs), epochs, side="right")
    return recipe.learning_rate * factors
