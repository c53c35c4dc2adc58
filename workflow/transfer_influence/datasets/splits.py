"""Seeded draws of training and test images, class by class."""

import numpy as np

from transfer_influence.config.dataset import Split
from transfer_influence.datasets.held_out import share_of
from transfer_influence.datasets.images import Images
from transfer_influence.errors import UserError


def split_images(
    train: Images, test: Images | None, split: Split | None, classes: list[str], origin: str
) -> tuple[Images, Images]:
    """Return training and test images, drawn as `split` says.

    Official parts are thinned, each by itself; a single part is divided.

    Raises:
        UserError: there is nothing to divide by, or a class has too few images.
    """
    wanted = None if split is None else split.train_per_class or split.train_fraction
    if test is not None:
        if split is None:
            return train, test
        return (
            train.take(_draw(train, split.seed, wanted, 0, classes, origin)[0]),
            test.take(_draw(test, split.seed, 0, split.test_per_class, classes, origin)[1]),
        )
    if split is None or wanted is split.test_per_class is None:
        raise UserError(
            f"{origin}: the data has no test part; give `split` with `train_per_class`, "
            "`train_fraction`, `test_per_class` or several."
        )
    drawn = _draw(train, split.seed, wanted, split.test_per_class, classes, origin)
    return train.take(drawn[0]), train.take(drawn[1])


def _draw(
    images: Images,
    seed: int,
    train: int | float | None,
    test: int | None,
    classes: list[str],
    origin: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disjoint indices, so many a class or a share; None takes what the other leaves."""
    drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label, name in enumerate(classes):
        members = np.flatnonzero(images.labels == label)
        to_train = share_of(len(members), train) if isinstance(train, float) else train
        wanted = (1 if to_train is None else to_train) + (1 if test is None else test)
        if len(members) < wanted:
            raise UserError(
                f"{origin}: split: class {name!r} has {len(members)} images but {wanted} are asked "
                "for; lower `train_per_class`, `train_fraction` or `test_per_class`."
            )
        # A stream for each class: its draw does not depend on how many images the others have.
        stream = np.random.SeedSequence(seed, spawn_key=(label,))
        shuffled = np.random.default_rng(stream).permutation(members)
        to_test = len(members) - (to_train or 0) if test is None else test
        rest, tested = np.split(shuffled, [len(members) - to_test])
        drawn[0].append(rest[:to_train])
        drawn[1].append(tested)
    indices = [np.sort(np.concatenate(part)) for part in drawn]
    return indices[0], indices[1]
