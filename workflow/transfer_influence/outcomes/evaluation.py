"""What a trained model does on each test image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from transfer_influence.outcomes.measures import accuracies, area_of_margins

Scores = tuple[torch.Tensor, ...]  # of a batch, see `score`


@dataclass(frozen=True)
class Evaluation:
    """Outcomes of one model on `n` test images of `classes` classes.

    A *margin* is the true class's score minus the best score among the other classes, so a
    prediction is correct where it is positive (Jain et al. 2023, section 2).
    """

    raw_margin: np.ndarray  # float32 (n,), of logits
    softmax_margin: np.ndarray  # float32 (n,), of probabilities, within [-1, 1]
    raw_logit: np.ndarray  # float32 (n,), of the true class
    softmax_probability: np.ndarray  # float32 (n,), of the true class
    log_odds: np.ndarray  # float32 (n,), of the true class, see `log_odds`
    is_correct: np.ndarray  # bool (n,)
    prediction: np.ndarray  # int32 (n,)
    loss: float  # mean cross-entropy, without label smoothing
    accuracy: float  # share of correct predictions, or mean of `class_accuracy`: see the recipe
    class_accuracy: np.ndarray  # float64 (classes,), NaN for a class without test images
    auroc: float | None  # area under the ROC curve of class 1, two classes only

    @classmethod
    def of(
        cls, scores: Sequence[Scores], labels: np.ndarray, classes: int, per_class: bool
    ) -> "Evaluation":
        """Put the scores of all batches together.

        Args:
            scores: of each batch.
            labels: int64 (n,), of the images of all batches.
            classes: how many the model tells apart.
            per_class: whether `accuracy` is the mean over classes.
        """
        columns = [torch.cat(column).cpu().numpy() for column in zip(*scores, strict=True)]
        raw_margin, softmax_margin, raw_logit, probability, odds, prediction, loss = columns
        is_correct = prediction == labels
        accuracy, class_accuracy = accuracies(is_correct, labels, classes, per_class)
        return cls(
            raw_margin=raw_margin,
            softmax_margin=softmax_margin,
            raw_logit=raw_logit,
            softmax_probability=probability,
            log_odds=odds,
            is_correct=is_correct,
            prediction=prediction.astype(np.int32),
            loss=float(loss.mean(dtype=np.float64)),
            accuracy=accuracy,
            class_accuracy=class_accuracy,
            auroc=area_of_margins(raw_margin, labels) if classes == 2 else None,
        )


def score(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Score one batch.

    Args:
        logits: float32 (n, classes), at least two classes.
        labels: int64 (n,).

    Returns:
        raw margin, softmax margin, true logit, true probability, log odds, prediction and
        cross-entropy, each (n,).
    """
    probabilities = logits.softmax(dim=1)
    return (
        margin(logits, labels),
        margin(probabilities, labels),
        of_true_class(logits, labels),
        of_true_class(probabilities, labels),
        log_odds(logits, labels),
        logits.argmax(dim=1),
        functional.cross_entropy(logits, labels, reduction="none"),
    )


def of_true_class(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's score of its label, (n,)."""
    return scores.gather(1, labels[:, None])[:, 0]


def margin(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's score of its label minus the best of the other scores, (n,)."""
    others = scores.scatter(1, labels[:, None], -torch.inf)
    return of_true_class(scores, labels) - others.amax(dim=1)


def log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's log p - log(1 - p) of the probability of its label, (n,).

    Computed as the label's logit minus the log-sum-exp of the others, which never saturates, while
    a probability of float32 is 1 from a margin of some 17 on (Park et al. 2023, "TRAK", section 3).
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return of_true_class(logits, labels) - others.logsumexp(dim=1)
