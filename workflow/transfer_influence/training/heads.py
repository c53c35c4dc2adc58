"""A new head as the exact solution of a regularised regression, instead of by steps of SGD."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from transfer_influence.datasets.held_out import hold_out

HELD_OUT = 0.2  # share of each class's images that choose the penalty
MOST_ITERATIONS = 1000
TOLERANCE = 1e-7  # of the gradient's largest entry


class Solution(NamedTuple):
    """How a head fits.

    Attributes:
        loss: the mean on the training images, without the penalty.
        penalty: that it was fitted with.
    """

    loss: float
    penalty: float


def solve_head(
    head: nn.Linear,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: nn.Module,
    penalties: Sequence[float],
) -> Solution:
    """Fit a head by multinomial logistic regression, in place.

    Minimises the mean loss plus half a penalty times the sum of squared weights; the bias has no
    penalty. By L-BFGS from zero in float64, so that the result depends on no seed (Liu & Nocedal
    1989). Of several penalties, the one with the least loss on held-out images is used to fit all:
    a fifth of each class, the same for all models.

    Args:
        head: to fit.
        features: (n, d), on the head's device.
        labels: int64 (n,), on that device.
        loss: of logits (n, classes) and labels, the mean over images.
        penalties: one or several.
    """
    features, loss = features.double(), loss.double()
    chosen = penalties[0]
    if len(penalties) > 1:
        parts = hold_out(labels.cpu().numpy(), HELD_OUT, np.random.default_rng(0))
        fitted, judged = (torch.from_numpy(part).to(labels.device) for part in parts)

        def judgement(penalty: float) -> float:
            trial = copy.deepcopy(head).double()
            _solve(trial, features[fitted], labels[fitted], loss, penalty)
            with torch.no_grad():
                return float(loss(trial(features[judged]), labels[judged]))

        chosen = min(penalties, key=judgement)
    solution = copy.deepcopy(head).double()
    reached = _solve(solution, features, labels, loss, chosen)
    head.load_state_dict({key: each.float() for key, each in solution.state_dict().items()})
    return Solution(reached, chosen)


def _solve(
    head: nn.Linear, features: torch.Tensor, labels: torch.Tensor, loss: nn.Module, penalty: float
) -> float:
    """Fit a float64 head in place; return the mean loss without the penalty."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=MOST_ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    last = torch.zeros(())

    def objective() -> torch.Tensor:
        nonlocal last
        optimizer.zero_grad()
        last = loss(head(features), labels)
        whole = last + penalty / 2 * head.weight.square().sum()
        whole.backward()
        return whole

    optimizer.step(objective)
    return float(last.detach())
