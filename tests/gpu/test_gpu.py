"""Training on a CUDA device: the same images as on the CPU, close numbers, nothing torn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from transfer_influence.config.recipe import Architecture, Augmentation, Recipe, TargetRecipe
from transfer_influence.config.stages import SourceStage, TransferStage
from transfer_influence.config.study import Subset
from transfer_influence.datasets.beton import BetonStream
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.loaders import Loader, ResidentLoader, StreamLoader, open_loader
from transfer_influence.job import JobOptions
from transfer_influence.models.building import build_model, freeze_for, place
from transfer_influence.provenance import Origin
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.subsets import SourceModel
from transfer_influence.training.sources import train_sources
from transfer_influence.training.trainer import Trainer, augmentation_key, epoch_order
from transfer_influence.training.transfers import transfer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES, SIZE = 4, 40
SMALL = Architecture(name="small_resnet", width=8)
SEEDS = TrainingSeeds(weights=1, order=2, augmentation=3)
ALONE = JobOptions(gpus=0, processes=1, workers=2, scratch=None, failed_models="stop")


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes whose direction and colour tell the class, in noise: easy to learn."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    down, right = np.mgrid[:SIZE, :SIZE] / 5
    waves = np.stack([np.sin(down), np.sin(right), np.sin(down + right), np.sin(down - right)])
    images = 128 + 60 * waves[labels][..., None] + random.normal(0, 20, (count, SIZE, SIZE, 3))
    images[..., 0] += 20 * (labels % 2)[:, None, None]
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module", params=["raw", "jpg"])
def any_data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), "raw")


def make_data(folder: Path, storage: str) -> Path:
    arrays = {}
    for part, count, seed in (("train", 240, 0), ("test", 80, 1)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = make_images(count, seed)
    np.savez(folder / "stripes.npz", **arrays)
    settings = {
        "kind": "arrays",
        "source": str(folder / "stripes.npz"),
        "storage": {"mode": storage},
    }
    (folder / "stripes.yaml").write_text(yaml.safe_dump(settings))
    convert("stripes", [folder], folder / "converted")
    return folder / "converted"


def make_recipe(**changes: object) -> Recipe:
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 0.1,
        "schedule": {"kind": "cyclic", "peak_epoch": 1},
        "resolution": SIZE,
        "precision": "float32",
    }
    return Recipe.model_validate(settings | changes)


AUGMENTATIONS = {
    "center": Augmentation(crop="center", flip=False),
    "padded": Augmentation(crop="padded", padding=4, flip=True),
    "random_resized": Augmentation(crop="random_resized", flip=True),
}


def all_batches(
    loader: Loader, key: int | None, batch_size: int = 7, resolution: int = SIZE
) -> list[torch.Tensor]:
    """Keep every batch of an epoch, and look at none before the last has come."""
    order = epoch_order(np.arange(len(loader.labels)), SEEDS.order, 0)
    return [images for images, _ in loader.batches(order, batch_size, key, resolution)]


def on_cpu(batches: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([batch.cpu() for batch in batches])


@pytest.mark.parametrize(
    ("crop", "resolution"),
    [("center", SIZE), ("center", 32), ("padded", SIZE), ("random_resized", 32)],
)
@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_epochs_are_those_of_the_cpu(
    any_data: Path, loader: str, crop: str, resolution: int
) -> None:
    augmentation = AUGMENTATIONS[crop]
    recipe = make_recipe(loader=loader, augmentation=augmentation, resolution=resolution)
    on = {device: open_loader(any_data, "train", recipe, device, 2) for device in (CPU, CUDA)}
    # The stream loader resizes on the CPU in any case; the resident one on the GPU, where sums in
    # another order may round a pixel the other way. Without resizing, no pixel may differ.
    tolerance = 1 if loader == "resident" and resolution != SIZE else 0
    seen = []
    for epoch in range(2):
        key = augmentation_key(SEEDS.augmentation, epoch)
        expected, found = (
            on_cpu(all_batches(on[device], key, resolution=resolution)) for device in (CPU, CUDA)
        )
        difference = (found.int() - expected.int()).abs()
        assert difference.max() <= tolerance
        assert (difference > 0).float().mean() < 1e-3
        seen.append(found)
    assert torch.equal(seen[0], seen[1]) == (crop == "center")  # else each epoch is another


@pytest.mark.parametrize("enlarged", [None, 80])
@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_the_resolution_changes_between_epochs(
    any_data: Path, loader: str, enlarged: int | None
) -> None:
    augmentation = AUGMENTATIONS["random_resized"]
    recipe = make_recipe(loader=loader, augmentation=augmentation, upsample_to=enlarged)
    on = {device: open_loader(any_data, "train", recipe, device, 2) for device in (CPU, CUDA)}
    for key, side in enumerate((16, 32, SIZE, 16)):
        expected, found = (on_cpu(all_batches(on[device], key, 7, side)) for device in (CPU, CUDA))
        assert found.shape[2:] == (enlarged or side,) * 2
        assert (found.int() - expected.int()).abs().max() <= (loader == "resident")


@pytest.mark.parametrize("kind", [ResidentLoader, StreamLoader])
def test_batches_are_on_the_gpu_in_channels_last(data: Path, kind: type) -> None:
    loader_name = "resident" if kind is ResidentLoader else "stream"
    loader = open_loader(data, "train", make_recipe(loader=loader_name), CUDA, 2)
    assert isinstance(loader, kind)
    order = np.array([3, 1, 4, 1, 5])
    ((images, labels),) = loader.batches(order, 8, None, SIZE)
    assert images.is_cuda
    assert labels.is_cuda
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == loader.labels[order].tolist()


# FFCV decodes and copies in a thread of its own, on CUDA streams of its own. In the tests below the
# GPU is kept busy, as a large network would, so that everything the CPU asks for waits.

BUSY = 20_000_000  # clock cycles: some 10 ms


def stream_loaders(data: Path) -> tuple[Loader, Loader]:
    recipe = make_recipe(loader="stream")
    return tuple(open_loader(data, "train", recipe, device, 2) for device in (CPU, CUDA))


def test_stream_waits_for_a_busy_gpu(data: Path) -> None:
    reference, loader = stream_loaders(data)
    expected = on_cpu(all_batches(reference, None))
    for _ in range(3):
        order = epoch_order(np.arange(len(loader.labels)), SEEDS.order, 0)
        kept = []
        for images, _ in loader.batches(order, 7, None, SIZE):
            torch.cuda._sleep(BUSY)
            kept.append(images.clone())
        assert torch.equal(on_cpu(kept), expected)


def test_stream_does_not_write_where_the_gpu_still_reads(data: Path) -> None:
    stream = BetonStream(data / "train.beton", CUDA, 2)
    examples = np.arange(len(stream.sizes))
    boxes = np.tile([0, 0, SIZE, SIZE], (len(examples), 1))
    for _ in range(3):
        # Memory that the CPU has freed while the GPU has yet to read it: the very blocks that the
        # next epoch gets for its batches.
        waiting = [
            torch.full((48, SIZE, SIZE, 3), 7, dtype=torch.uint8, device=CUDA) for _ in range(8)
        ]
        torch.cuda.synchronize()
        torch.cuda._sleep(20 * BUSY)
        copies = [block.clone() for block in waiting]
        del waiting
        for _ in stream.epoch(examples, boxes, 48, SIZE):
            pass
        assert all((copy == 7).all().item() for copy in copies)


def test_stream_works_in_inference_mode_and_after_it(data: Path) -> None:
    reference, loader = stream_loaders(data)
    expected = on_cpu(all_batches(reference, None))
    for inference in (False, True, False):
        with torch.inference_mode(inference):
            assert torch.equal(on_cpu(all_batches(loader, None)), expected)


def test_stream_that_is_left_early_writes_no_more(data: Path) -> None:
    reference, loader = stream_loaders(data)
    expected = on_cpu(all_batches(reference, None))
    order = np.arange(len(loader.labels))
    for _ in range(5):
        batches = loader.batches(order, 7, None, SIZE)
        next(batches)
        torch.cuda._sleep(BUSY)
        next(batches)
        del batches
        blocks = [
            torch.full((7, SIZE, SIZE, 3), 7, dtype=torch.uint8, device=CUDA) for _ in range(8)
        ]
        torch.cuda.synchronize()
        assert all((block == 7).all().item() for block in blocks)
    assert torch.equal(on_cpu(all_batches(loader, None)), expected)


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Without TF32, which keeps 10 bits of a float32's 23 and is PyTorch's choice for cuDNN."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("exact_float32")
def test_outcomes_are_those_of_the_cpu(data: Path) -> None:
    recipe = make_recipe()
    found = {}
    trained = trained_model(data, recipe, CPU)
    for device in (CPU, CUDA):
        model = place(build_model(SMALL, CLASSES, 0), device)
        model.load_state_dict(trained.state_dict())
        found[device] = evaluated(model, data, recipe, device)
    expected, outcomes = found[CPU], found[CUDA]
    assert expected.accuracy > 0.5  # trained weights, so that logits are of a usual size
    for name in ("raw_margin", "softmax_margin", "raw_logit", "softmax_probability"):
        np.testing.assert_allclose(
            getattr(outcomes, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )
    decided = np.abs(expected.raw_margin) > 1e-3
    assert (outcomes.prediction == expected.prediction)[decided].all()
    assert outcomes.loss == pytest.approx(expected.loss, abs=1e-4)


def trained_model(data: Path, recipe: Recipe, device: torch.device) -> torch.nn.Module:
    trainer = Trainer(data, recipe, device, workers=2)
    model = trainer.build(SMALL, SEEDS.weights)
    trainer.fit(model, np.arange(len(trainer.train_loader.labels)), SEEDS, "model")
    return model


def evaluated(model: torch.nn.Module, data: Path, recipe: Recipe, device: torch.device):
    return Trainer(data, recipe, device, workers=2).evaluate(model)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_every_precision_learns(data: Path, loader: str, precision: str) -> None:
    recipe = make_recipe(
        precision=precision, loader=loader, augmentation=AUGMENTATIONS["padded"], epochs=6
    )
    model = trained_model(data, recipe, CUDA)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert evaluated(model, data, recipe, CUDA).accuracy > 0.95


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("network", ["small_resnet", "resnet18"])
def test_convolutions_see_channels_last_in_the_chosen_precision(
    data: Path, network: str, precision: str
) -> None:
    recipe = make_recipe(precision=precision, epochs=1)
    model = place(build_model(Architecture(name=network, width=8), CLASSES, 0), CUDA)
    seen = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        tensors = (inputs[0], module.weight, output)
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in tensors])
        assert output.dtype == getattr(torch, precision)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    Trainer(data, recipe, CUDA, workers=2).fit(model, np.arange(32), SEEDS, "model")
    assert seen
    assert np.all(seen)


def test_fixed_mode_trains_the_head_alone(data: Path) -> None:
    recipe = TargetRecipe.model_validate(
        make_recipe(precision="float16").model_dump() | {"batchnorm": "frozen"}
    )
    model = build_model(SMALL, CLASSES, 0)
    freeze_for(model, "fixed")
    model = place(model, CUDA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(data, recipe, CUDA, workers=2).fit(model, np.arange(64), SEEDS, "model")
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"head.weight", "head.bias"}


class PreemptedError(Exception):
    pass


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_shards_resume_and_transfer(
    data: Path, tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(loader=loader, precision="bfloat16")
    masks = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
    models = [
        SourceModel(number, mask, TrainingSeeds(number, number, number))
        for number, mask in enumerate(masks)
    ]
    trained: list[str] = []
    fit, allowed = Trainer.fit, 2

    def counted(trainer: Trainer, *arguments: Any, **others: Any) -> None:
        if len(trained) == allowed:
            raise PreemptedError
        trained.append(arguments[-1])
        fit(trainer, *arguments, **others)

    monkeypatch.setattr(Trainer, "fit", counted)
    stage = SourceStage(seed=0, subset=Subset(fraction=0.5), architecture=SMALL, recipe=recipe)

    def sources() -> None:
        train_sources(
            models=models,
            stage=stage,
            data=data,
            weights=tmp_path / "sources.safetensors",
            table=tmp_path / "sources.parquet",
            origin=Origin({}, {}, "0"),
            options=ALONE,
        )

    with pytest.raises(PreemptedError):
        sources()
    assert not (tmp_path / "sources.parquet").exists()
    allowed = 100
    sources()
    assert trained == ["source model 0", "source model 1", "source model 2"]
    table = pq.read_table(tmp_path / "sources.parquet")
    assert table["model"].to_pylist() == [0, 1, 2]
    assert min(table["accuracy"].to_pylist()) > 0.8
    assert torch.cuda.get_device_name().encode() in table.schema.metadata[b"transfer_influence"]

    for mode in ("fixed", "full"):
        target = TargetRecipe.model_validate(recipe.model_dump() | {"batchnorm": "train"})
        stage = TransferStage(
            seed=0, target="stripes", mode=mode, architecture=SMALL, recipe=target
        )
        transfer(
            weights=tmp_path / "sources.safetensors",
            sources=tmp_path / "sources.parquet",
            stage=stage,
            data=data,
            table=tmp_path / f"{mode}.parquet",
            origin=Origin({}, {}, mode),
            options=ALONE,
        )
        outcomes = pq.read_table(tmp_path / f"{mode}.parquet")
        assert outcomes["model"].to_pylist() == [0, 1, 2]
        assert min(outcomes["accuracy"].to_pylist()) > (0.6 if mode == "fixed" else 0.9)
        assert outcomes["raw_margin"].type.list_size == 80
