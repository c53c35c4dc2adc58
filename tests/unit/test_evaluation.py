import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, roc_auc_score
from tests.conftest import CLASSES, SIDE, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.models.building import build_model
from transfer_influence.outcomes.evaluation import (
    log_odds,
    margin,
    score,
)
from transfer_influence.outcomes.measures import area_of_margins, area_under_roc, class_means
from transfer_influence.training.trainer import EVALUATED_PIXELS, Trainer

CPU = torch.device("cpu")
RECIPE = Recipe(**recipe_values())
SEED = 2  # of untrained weights that happen to be right for some images

# Few different values, so that ties are common; and large ones, at which softmax saturates.
logits = st.integers(2, 5).flatmap(
    lambda classes: arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(classes)),
        elements=st.sampled_from([-90.0, -2.5, -1.0, 0.0, 0.5, 3.0, 90.0]),
    )
)


@pytest.fixture(scope="module")
def trainer(planted) -> Trainer:
    return Trainer(planted, RECIPE, CPU, workers=1)


@given(logits, st.data())
def test_margins_are_those_of_a_loop(rows, data):
    labels = data.draw(arrays(np.int64, len(rows), elements=st.integers(0, rows.shape[1] - 1)))
    raw, soft, logit, probability, odds, prediction, loss = score(
        torch.from_numpy(rows), torch.from_numpy(labels)
    )
    for index, (row, label) in enumerate(zip(rows.astype(np.float64), labels, strict=True)):
        others = [value for other, value in enumerate(row) if other != label]
        exponentials = np.exp(row - row.max())
        shares = exponentials / exponentials.sum()
        other_shares = [value for other, value in enumerate(shares) if other != label]
        assert raw[index] == row[label] - max(others)
        assert soft[index] == pytest.approx(shares[label] - max(other_shares), abs=1e-6)
        assert logit[index] == row[label]
        assert probability[index] == pytest.approx(shares[label], abs=1e-6)
        assert odds[index] == pytest.approx(
            row[label] - max(others) - np.log(np.exp(np.array(others) - max(others)).sum()),
            abs=1e-4,
        )
        assert row[prediction[index]] == row.max()
        assert loss[index] == pytest.approx(
            row.max() - row[label] + np.log(exponentials.sum()), abs=1e-4
        )


@given(logits, st.data())
def test_a_prediction_is_correct_where_the_margin_is_positive(rows, data):
    labels = data.draw(arrays(np.int64, len(rows), elements=st.integers(0, rows.shape[1] - 1)))
    raw, *_, prediction, _ = score(torch.from_numpy(rows), torch.from_numpy(labels))
    correct = prediction.numpy() == labels
    assert correct[raw.numpy() > 0].all()
    assert not correct[raw.numpy() < 0].any()


def test_log_odds_are_those_of_the_probability_and_do_not_saturate():
    rows = torch.tensor([[1.0, 2.0, 3.0], [40.0, 0.0, 0.0]])
    labels = torch.tensor([1, 0])
    probability = rows.double().softmax(dim=1)[0, 1]
    assert log_odds(rows, labels)[0] == pytest.approx(float(probability.logit()), abs=1e-6)
    assert log_odds(rows, labels)[1] == pytest.approx(40 - np.log(2), abs=1e-5)
    assert score(rows, labels)[3][1] == 1


def test_a_margin_does_not_change_the_logits():
    rows = torch.tensor([[1.0, 2.0, 3.0]])
    assert margin(rows, torch.tensor([2])).tolist() == [1.0]
    assert rows.tolist() == [[1.0, 2.0, 3.0]]


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: len({positive for _, positive in pairs}) == 2
    )
)
def test_auroc_is_that_of_scikit_learn_ties_included(pairs):
    scores = np.array([value for value, _ in pairs], np.float32)
    positive = np.array([positive for _, positive in pairs])
    expected = roc_auc_score(positive, scores)
    assert area_under_roc(scores, positive) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_auroc_is_undefined_for_one_class_alone(positive):
    assert np.isnan(area_under_roc(np.array([0.1, 0.2]), np.array(positive)))


def test_auroc_tells_apart_logits_whose_probabilities_are_both_one():
    rows = torch.tensor([[0.0, 40.0], [0.0, 60.0]])
    labels = np.array([0, 1])
    margins = score(rows, torch.from_numpy(labels))[0].numpy()
    assert area_of_margins(margins, labels) == 1.0


def test_class_means_of_a_class_without_examples_are_undefined():
    found = class_means(np.array([True, False, True]), np.array([0, 0, 2]), 4)
    np.testing.assert_array_equal(found, [0.5, np.nan, 1.0, np.nan])


def test_an_evaluation_agrees_with_scikit_learn(trainer):
    model = build_model(Architecture(width=4), CLASSES, SEED)
    found = trainer.evaluate(model)
    labels = trainer.test_loader.labels
    matrix = confusion_matrix(labels, found.prediction, labels=range(CLASSES))
    assert 0 < found.accuracy < 1
    assert found.accuracy == accuracy_score(labels, found.prediction)
    np.testing.assert_allclose(found.class_accuracy, matrix.diagonal() / matrix.sum(axis=1))
    np.testing.assert_array_equal(found.is_correct, found.prediction == labels)
    np.testing.assert_array_equal(found.is_correct, found.raw_margin > 0)
    assert found.accuracy == (found.raw_margin > 0).mean()
    with torch.inference_mode():
        images, _ = next(
            iter(trainer.test_loader.batches(np.arange(len(labels)), len(labels), None, SIDE))
        )
        shares = model.double()(trainer.normalize(images).double()).softmax(dim=1).numpy()
    assert found.loss == pytest.approx(log_loss(labels, shares), rel=1e-5)
    assert found.auroc is None
    assert {
        name: getattr(found, name).dtype.name
        for name in ("raw_margin", "softmax_margin", "raw_logit", "softmax_probability")
    } == dict.fromkeys(
        ("raw_margin", "softmax_margin", "raw_logit", "softmax_probability"), "float32"
    )
    assert (found.is_correct.dtype, found.prediction.dtype) == (np.bool_, np.int32)


def test_two_classes_have_an_auroc(trainer):
    two = np.flatnonzero(trainer.test_loader.labels < 2)
    model = build_model(Architecture(width=4), 2, 0)
    found = trainer.evaluate(model, two)
    labels = trainer.test_loader.labels[two]
    scores = np.where(labels == 1, found.softmax_probability, 1 - found.softmax_probability)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores), abs=0.02)


def test_outcomes_stand_in_the_order_of_the_examples(trainer):
    model = build_model(Architecture(width=4), CLASSES, SEED)
    whole = trainer.evaluate(model)
    order = np.random.default_rng(0).permutation(len(trainer.test_loader.labels))[:23]
    part = trainer.evaluate(model, order)
    np.testing.assert_allclose(part.raw_margin, whole.raw_margin[order], atol=1e-5)
    np.testing.assert_array_equal(part.prediction, whole.prediction[order])


def test_an_evaluation_leaves_the_model_as_it_was_and_ignores_the_batch_size(trainer, monkeypatch):
    model = build_model(Architecture(width=4), CLASSES, SEED)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = []
    for most in (7, 32):
        monkeypatch.setitem(EVALUATED_PIXELS, "cpu", most * SIDE**2)
        found.append(trainer.with_recipe(Recipe(**recipe_values(batch_size=2))).evaluate(model))
        assert max(sizes) == most
    np.testing.assert_allclose(found[0].raw_margin, found[1].raw_margin, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_evaluation_takes_no_fewer_images_at_a_time_than_a_step_of_training(planted):
    recipe = Recipe(**recipe_values(batch_size=48, resolution=10_000))
    assert Trainer(planted, recipe, CPU, workers=1).evaluation_batch_size == 48


def test_accuracy_per_class_is_the_mean_over_classes_with_test_images(trainer):
    model = build_model(Architecture(width=4), CLASSES, SEED)
    rare = np.flatnonzero(trainer.test_loader.labels == 1)[:2]
    examples = np.concatenate([np.flatnonzero(trainer.test_loader.labels == 3), rare])
    found = {
        kind: trainer.with_recipe(TargetRecipe(**recipe_values(accuracy=kind))).evaluate(
            model, examples
        )
        for kind in ("overall", "per_class")
    }
    labels, prediction = trainer.test_loader.labels[examples], found["overall"].prediction
    assert found["overall"].accuracy == accuracy_score(labels, prediction)
    expected = np.mean([(prediction[labels == label] == label).mean() for label in (1, 3)])
    assert found["per_class"].accuracy == pytest.approx(expected)
    assert found["per_class"].is_correct.mean() == found["overall"].accuracy
    assert found["per_class"].accuracy != found["overall"].accuracy


def test_test_images_have_their_own_resolution(trainer):
    sides = []
    model = build_model(Architecture(width=4), CLASSES, SEED)
    model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    ramp = {"start": 4, "end": 8, "start_epoch": 0, "end_epoch": 1, "multiple": 4}
    for changes in ({"resolution": ramp}, {"resolution": ramp, "test_resolution": 12}):
        recipe = Recipe(**recipe_values(**changes))
        trainer.with_recipe(recipe).evaluate(model, np.arange(5))
    assert sides == [8, 12]
