import numpy as np
import pytest
from sklearn.linear_model import Lasso as SklearnLasso
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import lasso_path
from tests.unit.measured import ROOM, measured, planted, random_masks

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.errors import UserError
from transfer_influence.influence.estimation import make_estimator
from transfer_influence.influence.estimators import joined
from transfer_influence.influence.held_out import split
from transfer_influence.influence.lasso import COLUMNS_AT_A_TIME, Lasso
from transfer_influence.influence.measurements import Outcomes
from transfer_influence.influence.ridge import PENALTIES, Ridge

STAGE = {
    "seed": 0,
    "proof_fraction": 0,
    "accuracy": "overall",
    "unit": "class",
    "outcome": "raw_margin",
    "intervals": "closed_form",
    "bootstrap_replicates": 100,
    "held_out": 0.2,
    "largest_table_gb": 1,
}
SHAPES = pytest.mark.parametrize(
    ("models", "classes"), [(90, 20), (30, 50)], ids=["many models", "few models"]
)


def hat(masks: np.ndarray, penalty: float) -> np.ndarray:
    """The matrix (models, models) that turns outcomes into ridge predictions, mean included."""
    centred = masks - masks.mean(axis=0)
    gram = centred.T @ centred + penalty * np.eye(masks.shape[1])
    return centred @ np.linalg.solve(gram, centred.T) + 1 / len(masks)


def best_penalty(masks: np.ndarray, outcome: np.ndarray) -> float:
    """The penalty of least generalised cross-validation, straight from its definition."""
    centred = masks - masks.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred)
    scale = eigenvalues[eigenvalues > 1e-6].mean()
    scores = []
    for penalty in scale * PENALTIES:
        residual = np.eye(len(masks)) - hat(masks, penalty)
        scores.append(np.sum((residual @ outcome) ** 2) / np.trace(residual) ** 2)
    return scale * PENALTIES[np.argmin(scores)]


@SHAPES
def test_ridge_is_scikit_learns_at_the_best_penalty(models, classes):
    masks, outcomes, _ = planted(models, classes, 6, noise=3)
    data = measured(masks, outcomes)
    found = joined(Ridge(data, ROOM).fit(data.examples)).influence
    for column in range(6):
        penalty = best_penalty(masks, outcomes[:, column])
        model = SklearnRidge(alpha=penalty).fit(masks.astype(float), outcomes[:, column])
        np.testing.assert_allclose(found[:, column], model.coef_, rtol=1e-6, atol=1e-10)


def test_ridge_without_penalty_has_the_standard_errors_of_least_squares():
    rng = np.random.default_rng(0)
    masks = rng.random((200, 6)) < 0.5  # subsets of any size, so that least squares is defined
    outcome = masks @ rng.normal(size=6) + rng.normal(size=200)
    data = measured(masks, outcome[:, None])
    found = joined(Ridge(data, ROOM, penalty=1e-6).fit(data.examples))
    design = np.hstack([np.ones((200, 1)), masks])
    solution, residual, *_ = np.linalg.lstsq(design, outcome)
    covariance = np.linalg.inv(design.T @ design) * residual / (200 - 7)
    np.testing.assert_allclose(found.influence[:, 0], solution[1:], rtol=1e-5)
    np.testing.assert_allclose(
        found.standard_error[:, 0], np.sqrt(np.diag(covariance))[1:], rtol=1e-5
    )
    np.testing.assert_allclose(found.freedom, 200 - 7, rtol=1e-6)
    np.testing.assert_allclose(found.left, 1, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.5, 30])
def test_ridge_says_how_much_of_an_effect_it_leaves(noise):
    _, _, effects = planted(60, 10, 1)
    truth = (effects - effects.mean(axis=0))[:, 0]
    shrunk = []
    for seed in range(60):
        masks = random_masks(60, 10, seed)
        outcome = masks @ effects
        data = measured(masks, outcome)
        penalty = 15 * noise
        fit = joined(Ridge(data, ROOM, penalty).fit(data.examples))
        shrunk.append(fit.influence[:, 0] / fit.left[:, 0])
    np.testing.assert_allclose(np.mean(shrunk, axis=0), truth, atol=0.15)


@pytest.mark.parametrize(
    ("models", "classes", "one_size", "effective", "noise", "atol"),
    [(90, 20, False, 6, 0.5, 5e-6), (30, 50, False, 6, 0.5, 5e-5), (300, 61, True, 61, 0.5, 2e-4)],
    ids=["many models", "few models", "dense effects, subsets of one size"],
)
def test_lasso_is_scikit_learns_at_the_penalty_that_held_out_models_choose(
    models, classes, one_size, effective, noise, atol
):
    # In subsets of one size, a common change of all coefficients changes no prediction. With an odd
    # number of classes, one of them still has the least sum of absolute coefficients.
    rng = np.random.default_rng(1)
    masks = random_masks(models, classes) if one_size else rng.random((models, classes)) < 0.5
    effects = rng.normal(size=(classes, 20)) * (np.arange(classes) < effective)[:, None]
    outcomes = masks @ effects + rng.normal(0, noise, (models, 20))
    data = measured(masks, outcomes)
    found = joined(Lasso(data, ROOM, 0.2, seed=0).fit(data.examples)).influence
    fitted, judges = split(data.groups, 0.2, 0)
    kept = masks.astype(float)
    part = kept - kept[fitted].mean(axis=0)
    for column in range(20):
        outcome = outcomes[:, column]
        centred = outcome - outcome[fitted].mean()
        largest = np.abs(part[fitted].T @ centred[fitted]).max() / len(fitted)
        path = largest * np.geomspace(1, 1e-3 if len(fitted) > classes else 1e-2, 50)
        _, coefficients, _ = lasso_path(
            part[fitted], centred[fitted], alphas=path, tol=1e-8, max_iter=1_000_000
        )
        errors = np.sum((part[judges] @ coefficients - centred[judges, None]) ** 2, axis=0)
        # Any of those that predict as well, but for how exactly they were fitted.
        as_good = [
            SklearnLasso(penalty, tol=1e-12, max_iter=1_000_000).fit(kept, outcome).coef_
            for penalty in path[errors <= 1.001 * errors.min()]
        ]
        assert min(np.abs(found[:, column] - other).max() for other in as_good) < atol


def test_lasso_needs_few_sweeps_for_dense_effects_and_subsets_of_one_size(monkeypatch):
    masks, outcomes, _ = planted(300, 60, 20)
    data = measured(masks, outcomes)
    lasso = Lasso(data, ROOM, 0.2, 0)
    expected = joined(lasso.fit(data.examples)).influence
    monkeypatch.setattr("transfer_influence.influence.lasso.MOST_SWEEPS", 60)
    found = joined(lasso.fit(data.examples)).influence
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_lasso_leaves_classes_without_effect_out():
    rng = np.random.default_rng(5)
    masks = random_masks(300, 40)
    effects = np.zeros(40)
    effects[[3, 11, 30]] = 2, -2, 3
    outcome = masks @ effects + rng.normal(0, 0.5, 300)
    data = measured(masks, outcome[:, None])
    found = joined(Lasso(data, ROOM, 0.2, 0).fit(data.examples)).influence[:, 0]
    assert set(np.argsort(-np.abs(found))[:3]) == {3, 11, 30}
    assert (found == 0).sum() >= 10
    assert found[[3, 11, 30]] == pytest.approx(effects[[3, 11, 30]], abs=0.2)


def test_lasso_has_no_standard_errors():
    masks, outcomes, _ = planted(40)
    data = measured(masks, outcomes)
    assert np.isnan(joined(Lasso(data, ROOM, 0.2, 0).fit(data.examples)).standard_error).all()


def test_lasso_leaves_all_classes_out_where_the_fitted_models_have_one_outcome():
    masks, _, _ = planted(60, 20)
    outcomes = np.full((60, 2), 0.1)
    data = measured(masks, outcomes)
    # With a judge first, whose outcome the others are taken relative to.
    seed = next(seed for seed in range(100) if 0 in split(data.groups, 0.2, seed)[1])
    judges = split(data.groups, 0.2, seed)[1]
    outcomes[judges, 1] = np.random.default_rng(0).normal(size=len(judges))
    found = joined(Lasso(measured(masks, outcomes), ROOM, 0.2, seed).fit(Outcomes.of(outcomes)))
    assert (found.influence == 0).all()


def test_what_lasso_says_of_a_column_does_not_depend_on_the_others():
    masks, _, _ = planted(30, 50)
    outcomes = np.random.default_rng(7).normal(size=(30, 2 * COLUMNS_AT_A_TIME))
    lasso = Lasso(measured(masks, outcomes), ROOM, 0.2, 0)
    together = joined(lasso.fit(Outcomes.of(outcomes))).influence
    # For some of them, a penalty beyond the last one tried alone predicts best.
    for column in (39, 78, 169, 255, 256, 357, 456, 511):
        alone = joined(lasso.fit(Outcomes.of(outcomes[:, [column]]))).influence
        np.testing.assert_allclose(together[:, [column]], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ["ridge", "lasso"])
def test_what_does_not_fit_into_memory_is_refused(estimator):
    masks, outcomes, _ = planted(60, 20)
    data = measured(masks, outcomes)
    settings = {**STAGE, "estimator": estimator}
    with pytest.raises(
        UserError, match=rf"^influence\.memory_gb: {estimator} needs about 0\.0 GB .*; raise mem"
    ):
        make_estimator(InfluenceStage(**settings), data, 1000)
    wide = make_estimator(InfluenceStage(**settings), data, 10**6)
    with pytest.raises(UserError, match=r"^influence\.memory_gb: .* needs about 0\.\d GB"):
        next(iter(wide.fit(Outcomes(10**5, data.examples.chunks))))


def test_lasso_refuses_too_few_models():
    masks, outcomes, _ = planted(3, 4)
    with pytest.raises(UserError, match=r"lasso cannot hold out some of 3 models .*; raise"):
        Lasso(measured(masks, outcomes), ROOM, 0.2, 0)
