"""Scores of source classes, against the formulas of the papers written out slowly, and planted."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from transfer_influence.outcomes.evaluation import log_odds
from transfer_influence.surrogates.gradients import (
    BLOCK,
    blocks,
    gradients_of_margins,
    project,
)
from transfer_influence.surrogates.mapping import feature_mapping, label_mapping
from transfer_influence.surrogates.similarity import (
    feature_similarity,
    mean_features,
    nearest_neighbours,
)
from transfer_influence.surrogates.trak import trak
from transfer_influence.surrogates.transferability import (
    h_score,
    leep,
    logme,
    probabilities,
    without_each_class,
)

EXACT = 1e-6


def small_case(images: int = 60, width: int = 7, classes: int = 4, seed: int = 0):
    """Features whose means differ between the classes of a target, and its labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return rng.normal(size=(classes, width))[labels] + rng.normal(size=(images, width)), labels


def slow_leep(predictions: np.ndarray, labels: np.ndarray) -> float:
    """LEEP of Nguyen et al. 2020, a loop for each sum."""
    n, sources = predictions.shape
    total = 0.0
    for i in range(n):
        likelihood = 0.0
        for z in range(sources):
            marginal = sum(predictions[j, z] for j in range(n)) / n
            joint = sum(predictions[j, z] for j in range(n) if labels[j] == labels[i]) / n
            likelihood += joint / marginal * predictions[i, z]
        total += np.log(likelihood)
    return total / n


def slow_log_evidence(F: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """log p(y | F, α, β) of You et al. 2021, by dense matrices."""
    n, d = F.shape
    A = alpha * np.eye(d) + beta * F.T @ F
    m = beta * np.linalg.solve(A, F.T @ y)
    return (
        n / 2 * np.log(beta)
        + d / 2 * np.log(alpha)
        - n / 2 * np.log(2 * np.pi)
        - beta / 2 * np.sum((F @ m - y) ** 2)
        - alpha / 2 * m @ m
        - np.linalg.slogdet(A)[1] / 2
    )


def slow_logme(F: np.ndarray, labels: np.ndarray) -> float:
    """The steps of You et al. 2021 by dense matrices, with many more steps."""
    n, d = F.shape
    squares = np.linalg.eigvalsh(F.T @ F).clip(0)
    found = []
    for label in np.unique(labels):
        y, alpha, beta = (labels == label).astype(float), 1.0, 1.0
        for _ in range(3000):
            m = beta * np.linalg.solve(alpha * np.eye(d) + beta * F.T @ F, F.T @ y)
            gamma = (beta * squares / (alpha + beta * squares)).sum()
            alpha, beta = gamma / (m @ m), (n - gamma) / np.sum((F @ m - y) ** 2)
        found.append(slow_log_evidence(F, y, alpha, beta) / n)
    return float(np.mean(found))


def largest_logme(F: np.ndarray, labels: np.ndarray) -> float:
    """The evidence at its maximum, looked for without these steps."""
    best = []
    for label in np.unique(labels):
        y = (labels == label).astype(float)
        found = minimize(
            lambda logs, y=y: -slow_log_evidence(F, y, *np.exp(logs)),
            np.zeros(2),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
        )
        best.append(-found.fun / len(y))
    return float(np.mean(best))


def slow_h_score(F: np.ndarray, labels: np.ndarray) -> float:
    """The H-score of Bao et al. 2019."""
    expected = np.array([F[labels == label].mean(axis=0) for label in labels])
    return np.trace(np.linalg.inv(np.cov(F.T)) @ np.cov(expected.T))


def test_leep_is_the_published_one():
    logits, labels = small_case()
    predictions = probabilities(logits)
    assert predictions.sum(axis=1) == pytest.approx(1)
    assert leep(predictions, labels) == pytest.approx(slow_leep(predictions, labels), abs=EXACT)


@pytest.mark.parametrize(("images", "width"), [(60, 7), (200, 3), (10, 20)])
def test_logme_is_the_published_one(images, width):
    features, labels = small_case(images, width)
    expected = slow_logme(features, labels)
    assert logme(features, labels) == pytest.approx(expected, abs=EXACT)


def test_logme_is_the_largest_evidence():
    features, labels = small_case()
    assert logme(features, labels) == pytest.approx(largest_logme(features, labels), abs=EXACT)


def test_h_score_is_the_published_one():
    features, labels = small_case()
    assert h_score(features, labels) == pytest.approx(slow_h_score(features, labels), abs=EXACT)


def test_h_score_says_nothing_where_directions_are_as_many_as_images():
    features, labels = small_case(images=10, width=20)
    assert h_score(features, labels) == pytest.approx(3)  # target classes − 1


def test_what_logme_knows_of_features_that_say_nothing():
    features, labels = np.zeros((8, 3)), np.arange(8) % 2
    features[:, 0] = 1e-9 * np.random.default_rng(0).normal(size=8)
    assert np.isfinite(logme(features, labels))


def test_features_that_tell_the_classes_score_higher():
    features, labels = small_case()
    noise = np.random.default_rng(9).normal(size=features.shape)
    assert logme(features, labels) > logme(noise, labels)
    assert h_score(features, labels) > h_score(noise, labels)


SOURCES, TWIN = 6, 4


def planted(seed: int = 0):
    """A target of two classes: images of source class 4, and mixtures of two of the others."""
    rng = np.random.default_rng(seed)
    means = 5 * rng.normal(size=(SOURCES, 12))

    def images(around: np.ndarray) -> np.ndarray:
        return (around + rng.normal(size=around.shape)).astype(np.float32)

    source_labels = np.repeat(np.arange(SOURCES), 30)
    labels = np.repeat([0, 1], 20)
    pairs = list(itertools.combinations(np.delete(np.arange(SOURCES), TWIN), 2))
    mixed = np.repeat([means[list(pair)].mean(axis=0) for pair in pairs], 2, axis=0)
    target = images(np.concatenate([np.tile(means[TWIN], (20, 1)), mixed]))
    # Of a classifier by class means with unit variance.
    logits = target @ means.T - (means**2).sum(axis=1) / 2
    return images(means[source_labels]), source_labels, target, labels, logits.astype(np.float32)


def test_the_class_that_a_target_copies_is_first():
    source, source_labels, target, labels, logits = planted()
    means = mean_features(source, source_labels, SOURCES)
    scores = {
        "similarity": feature_similarity(means, target),
        "neighbours": nearest_neighbours(source, source_labels, SOURCES, target),
        "labels": label_mapping(logits),
        "features": feature_mapping(means, target),
        "leep": without_each_class(leep, logits, labels),
        "logme": without_each_class(logme, logits, labels),
        "h": without_each_class(h_score, logits, labels),
    }
    assert {name: int(values.argmax()) for name, values in scores.items()} == dict.fromkeys(
        scores, TWIN
    )
    assert scores["labels"][TWIN] == scores["features"][TWIN] == 0.5


def test_neighbours_are_those_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(3)
    source, target = rng.normal(size=(50, 4)), rng.normal(size=(7, 4))
    labels = rng.integers(0, 5, 50)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    votes = np.zeros(5)
    for image in target:
        nearest = sorted(range(50), key=lambda j, image=image: -cosine(image, source[j]))[:10]
        for j in nearest:
            votes[labels[j]] += 1 / 70
    monkeypatch.setattr("transfer_influence.surrogates.similarity.CHUNK", 8)
    assert nearest_neighbours(source, labels, 5, target) == pytest.approx(votes)


def test_mean_cosine():
    means = np.array([[1.0, 0], [0, 2], [1, 1]])
    target = np.array([[3.0, 0], [0, 0.5]], np.float32)
    assert feature_similarity(means, target) == pytest.approx([0.5, 0.5, 0.5**0.5])


def test_a_class_has_the_mean_of_its_images():
    features = np.array([[1.0, 0], [0, 1], [3, 0]], np.float32)
    assert mean_features(features, np.array([0, 1, 0]), 2).tolist() == [[2, 0], [0, 1]]
    assert feature_mapping(np.array([[2.0, 0], [0, 1]]), features).tolist() == [2 / 3, 1 / 3]


def test_trak_is_its_formula():
    rng = np.random.default_rng(1)
    gradients, target = rng.normal(size=(40, 5)), rng.normal(size=(6, 5))
    labels = np.arange(40) % 4
    inverse = np.linalg.inv(gradients.T @ gradients)
    expected = np.zeros(4)
    for t in target:
        for z, label in zip(gradients, labels, strict=True):
            expected[label] += t @ inverse @ z / 6
    assert trak(gradients, labels, 4, target) == pytest.approx(expected)


def test_trak_is_that_of_its_authors():
    computers = pytest.importorskip("trak.score_computers")
    rng = np.random.default_rng(1)
    gradients, target = (rng.normal(size=(n, 5)).astype(np.float32) for n in (40, 6))
    theirs = computers.BasicScoreComputer(torch.float32, torch.device("cpu"))
    given = torch.from_numpy(gradients)
    features = theirs.get_x_xtx_inv(given, theirs.get_xtx(given))
    accumulator = torch.zeros(40, 6)  # theirs are in units of the mean entry of (XᵀX)⁻¹
    theirs.get_scores(features, torch.from_numpy(target), accumulator)
    labels = np.arange(40) % 4
    expected = np.bincount(labels, weights=accumulator.numpy().mean(axis=1))
    unit = np.abs(np.linalg.inv(gradients.T @ gradients)).mean()
    found = trak(gradients, labels, 4, target)
    assert found / unit == pytest.approx(expected, rel=1e-4)


def test_a_projection_is_a_product_with_one_matrix_of_signs():
    shapes = {"a": (3, BLOCK // 2 + 1), "b": (3, 2, BLOCK // 3)}
    gradients = {name: torch.randn(shape) for name, shape in shapes.items()}
    count = BLOCK // 2 + 1 + 2 * (BLOCK // 3)
    matrix = torch.zeros(count, 16)
    for rows, block in blocks(count, 16, 7, torch.device("cpu")):
        matrix[rows] = block
    assert matrix.abs().unique().tolist() == [0.25]
    assert matrix.mean().abs() < 0.01
    whole = torch.cat([each.flatten(1) for each in gradients.values()], dim=1)
    assert torch.allclose(project(gradients, 16, 7), whole @ matrix, atol=1e-3)
    assert torch.equal(project(gradients, 16, 7), project(gradients, 16, 7))
    assert not torch.allclose(project(gradients, 16, 7), project(gradients, 16, 8))


def test_projections_keep_products_as_those_of_traker_do():
    projectors = pytest.importorskip("trak.projectors")
    torch.manual_seed(0)
    whole = torch.randn(8, 3000) + torch.randn(1, 3000)
    theirs = projectors.BasicProjector(3000, 4096, 0, "rademacher", torch.device("cpu"))
    exact = whole @ whole.T
    for found in (project({"a": whole}, 4096, 0), theirs.project(whole, 0) / 4096**0.5):
        assert torch.allclose(found @ found.T, exact, atol=0.1 * exact.max())


def test_margins_are_log_odds():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    p = logits.softmax(dim=1)[torch.arange(5), labels]
    assert torch.allclose(log_odds(logits, labels), (p / (1 - p)).log(), atol=1e-5)


def test_gradients_are_those_of_each_image_by_itself():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    images, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    trained = ["0.weight", "1.bias"]
    found = gradients_of_margins(network, trained, images, labels)
    assert list(found) == trained
    for i in range(5):
        value = log_odds(network(images[i : i + 1]), labels[i : i + 1])[0]
        expected = torch.autograd.grad(value, [network.get_parameter(name) for name in trained])
        for name, each in zip(trained, expected, strict=True):
            assert torch.allclose(found[name][i], each, atol=1e-5)
