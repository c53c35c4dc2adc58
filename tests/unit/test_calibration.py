from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import CLASSES, TEST_PER_CLASS, recipe_values

from transfer_influence.config.stages import SourceStage, TransferStage
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions
from transfer_influence.operation.calibration import _Bench, calibrate, process_seconds
from transfer_influence.operation.costs import Calibration, read_calibration
from transfer_influence.provenance import Origin
from transfer_influence.subsets import source_models
from transfer_influence.training.sources import train_sources
from transfer_influence.training.trainer import Trainer

ALONE = JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models="stop")
ARCHITECTURE = {"name": "small_resnet", "width": 4}


def source_settings(**changes: Any) -> SourceStage:
    return SourceStage.model_validate(
        {
            "seed": 0,
            "subset": {"fraction": 0.5},
            "architecture": ARCHITECTURE,
            "recipe": recipe_values(**changes),
        }
    )


def transfer_settings(mode: str, **changes: Any) -> TransferStage:
    return TransferStage.model_validate(
        {
            "seed": 0,
            "target": "birds",
            "mode": mode,
            "architecture": ARCHITECTURE,
            "recipe": recipe_values(**changes),
        }
    )


@pytest.fixture(autouse=True)
def soon_enough(monkeypatch):
    """Half a second of training is long enough for these."""
    monkeypatch.setattr("transfer_influence.operation.calibration.LONG_ENOUGH", 0.5)


def calibrated(stage, planted, folder) -> Calibration:
    output = folder / "plan" / "stage.json"
    origin = Origin(stage.model_dump(mode="json"), {"data": "d"}, "code")
    calibrate(stage, planted, output, origin, ALONE)
    assert [path.name for path in output.parent.iterdir()] == ["stage.json"], "left something"
    found = read_calibration(output)
    assert found is not None
    return found


def test_a_source_models_weights_take_what_they_take_in_a_real_shard(planted, tmp_path):
    stage = source_settings()
    models = 3
    found = calibrated(stage, planted, tmp_path)
    weights, table = tmp_path / "s.safetensors", tmp_path / "s.parquet"
    train_sources(
        source_models(stage, range(models), list(map(str, range(CLASSES)))),
        stage,
        planted,
        weights,
        table,
        Origin({}, {}, ""),
        ALONE,
    )
    assert found.weights_bytes == pytest.approx(weights.stat().st_size / models, rel=0.1)
    assert found.model > 0


def test_costs_are_those_of_a_step_and_of_all_test_images(planted, tmp_path, monkeypatch):
    evaluate = _Bench.evaluate
    monkeypatch.setattr(_Bench, "train", lambda bench, model, steps, resolution=None: 0.125)
    monkeypatch.setattr(
        _Bench,
        "evaluate",
        lambda bench, model, images: (0.25, evaluate(bench, model, images)[1]),
    )
    found = calibrated(source_settings(), planted, tmp_path)
    assert found.step == 0.125
    assert found.evaluation == 0.25 * CLASSES * TEST_PER_CLASS


def bench_of(stage: SourceStage, data: Path, room: Path) -> _Bench:
    return _Bench(stage, Trainer(data, stage.recipe, torch.device("cpu"), workers=1), data, room)


def test_a_step_costs_the_mean_over_the_epochs_of_a_ramp(planted, tmp_path, monkeypatch):
    def train(bench: _Bench, model: Any, steps: int, resolution: int = 0) -> float:
        return resolution / 100

    monkeypatch.setattr(_Bench, "train", train)
    ramp = {"start": 8, "end": 16, "start_epoch": 1, "end_epoch": 3, "multiple": 4}
    stage = source_settings(resolution=ramp, epochs=6)  # 8, 8, 12, 16, 16, 16
    bench = bench_of(stage, planted, tmp_path)
    assert bench.step(bench.make()) == pytest.approx(0.76 / 6)


def test_a_calibration_trains_at_the_resolution_it_is_asked_for(planted, tmp_path):
    ramp = {"start": 8, "end": 16, "start_epoch": 0, "end_epoch": 1, "multiple": 4}
    bench = bench_of(source_settings(resolution=ramp), planted, tmp_path)
    model = bench.make()
    sides: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    bench.train(model, 2)
    bench.train(model, 2, 16)
    assert sides == [8, 8, 16, 16]


@pytest.mark.parametrize("mode", ["fixed", "full"])
def test_a_transfer_keeps_no_weights_and_a_row_of_all_test_images(planted, tmp_path, mode):
    found = calibrated(transfer_settings(mode), planted, tmp_path)
    assert found.weights_bytes == 0
    images = CLASSES * TEST_PER_CLASS
    assert found.row_bytes > 16 * images  # four float32 columns an image
    assert 0 < found.startup < process_seconds()
    assert found.provenance["settings"]["mode"] == mode


def test_training_a_head_costs_less_than_training_all(planted, tmp_path):
    head = calibrated(transfer_settings("fixed", batch_size=100), planted, tmp_path / "head")
    whole = calibrated(transfer_settings("full", batch_size=100), planted, tmp_path / "whole")
    assert head.step < whole.step


@pytest.mark.parametrize("head", [{}, {"solver": "lbfgs"}])
def test_training_on_kept_features_costs_less_than_on_images(planted, tmp_path, head):
    steps = {
        batchnorm: calibrated(
            transfer_settings("fixed", batchnorm=batchnorm, epochs=200, **more),
            planted,
            tmp_path / batchnorm,
        ).step
        for batchnorm, more in [("train", {}), ("frozen", {"head": head})]
    }
    assert steps["frozen"] < steps["train"] / 2


def test_fewer_images_than_a_batch_still_calibrate(planted, tmp_path):
    assert calibrated(transfer_settings("fixed", batch_size=1000), planted, tmp_path).step > 0


def test_a_rate_that_lets_a_loss_run_away_does_not_matter(planted, tmp_path):
    schedule = {"kind": "step", "every": 1, "factor": 1}
    stage = source_settings(learning_rate=1e30, schedule=schedule)
    assert calibrated(stage, planted, tmp_path).step > 0


def test_images_that_were_not_converted_are_named(tmp_path):
    with pytest.raises(UserError, match="convert the data set first"):
        calibrated(source_settings(), tmp_path, tmp_path)
