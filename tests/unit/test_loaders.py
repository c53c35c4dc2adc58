from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, convert_arrays, random_images, recipe

from transfer_influence.config.recipe import Augmentation, Recipe
from transfer_influence.datasets import beton, loaders
from transfer_influence.datasets.loaders import Loader, ResidentLoader, StreamLoader, open_loader
from transfer_influence.errors import UserError

PADDED = Augmentation(crop="padded", padding=3, flip=True)
RANDOM = Augmentation(crop="random_resized", flip=True)


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 16 × 16 pixels, 40 of them for training."""
    return convert_arrays(tmp_path_factory.mktemp("square"), random_images(60, 16, 16))


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_arrays(tmp_path_factory.mktemp("oblong"), random_images(30, 20, 27))


def read(
    loader: Loader, examples: np.ndarray, batch_size: int, key: int | None, resolution: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader.batches(examples, batch_size, key, resolution))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def stored(folder: Path, split: str = "train") -> torch.Tensor:
    return torch.from_numpy(beton.decode_all(folder / f"{split}.beton")).permute(0, 3, 1, 2)


ORDER = np.random.default_rng(5).permutation(40)[:33]


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_batches_have_the_promised_form(interpreted: None, square: Path, kind: str) -> None:
    loader = open_loader(square, "train", recipe(loader=kind, augmentation=PADDED), CPU, 1)
    batches = list(loader.batches(ORDER, 8, 1, 16))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 8, 1]
    for images, labels in batches:
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, 16, 16)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    assert loader.labels.dtype == np.int64
    assert torch.cat([labels for _, labels in batches]).tolist() == loader.labels[ORDER].tolist()
    assert list(loader.batches(np.empty(0, np.int64), 8, 1, 16)) == []


@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_without_resizing_the_test_view_is_pixel_exact(
    interpreted: None, square: Path, kind: str, split: loaders.Split
) -> None:
    loader = open_loader(square, split, recipe(loader=kind, augmentation=RANDOM), CPU, 1)
    examples = np.arange(len(loader.labels))[::-1].copy()
    images, _ = read(loader, examples, 7, None)
    assert torch.equal(images, stored(square, split)[examples])


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_a_smaller_centre_is_cut_out_exactly(interpreted: None, oblong: Path, kind: str) -> None:
    settings = recipe(loader=kind, test_crop=0.8)
    loader = open_loader(oblong, "train", settings, CPU, 1)
    images, _ = read(loader, np.arange(20), 7, None)
    assert torch.equal(images, stored(oblong)[:, :, 2:18, 5:21])


@pytest.mark.parametrize(
    "settings",
    [
        recipe(augmentation=PADDED),
        recipe(augmentation=Augmentation(flip=True)),
        recipe(augmentation=Augmentation(crop="padded", padding=20)),
        recipe(augmentation=PADDED, resolution=12, test_crop=0.75),
    ],
    ids=["padded_flip", "flip", "far", "cropped"],
)
def test_resident_and_stream_agree_exactly(
    interpreted: None, square: Path, settings: Recipe
) -> None:
    resident = ResidentLoader(square / "train.beton", labels(square), settings, CPU, 1)
    stream = StreamLoader(square / "train.beton", labels(square), settings, CPU, 1)
    for key in (0, 1, 2**63 - 1):
        side = settings.evaluation_resolution
        ours, theirs = (
            read(resident, ORDER, 8, key, side),
            read(stream, ORDER, 5, key, side),
        )
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(read(stream, ORDER, 8, 0)[0], read(stream, ORDER, 8, 1)[0])


def labels(folder: Path) -> np.ndarray:
    return np.load(folder / "train.labels.npy")


def test_resident_and_stream_nearly_agree_when_shrinking(interpreted: None, tmp_path: Path) -> None:
    # Smooth images: the two filters differ, bilinear with antialiasing here and area there.
    rows, columns = np.mgrid[0:64, 0:64]
    images = np.stack([rows * 2 + columns + shade for shade in range(6)])[..., None].repeat(3, 3)
    folder = convert_arrays(tmp_path, images.astype(np.uint8))
    settings = recipe(augmentation=RANDOM)
    resident = ResidentLoader(folder / "train.beton", labels(folder), settings, CPU, 1)
    stream = StreamLoader(folder / "train.beton", labels(folder), settings, CPU, 1)
    for key in (None, 3, 4):
        ours, theirs = (read(one, np.arange(4), 3, key)[0].int() for one in (resident, stream))
        assert (ours - theirs).abs().max() <= 4


@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize("augmentation", [PADDED, RANDOM], ids=["padded", "random_resized"])
def test_a_view_depends_on_key_and_example_alone(
    interpreted: None, square: Path, kind: str, augmentation: Augmentation
) -> None:
    settings = recipe(loader=kind, augmentation=augmentation)
    loader = open_loader(square, "train", settings, CPU, 1)
    together, _ = read(loader, np.arange(40), 40, 9)
    for examples, batch_size in ((ORDER, 4), (ORDER[::-1].copy(), 40), (np.array([7, 7, 7]), 2)):
        images, _ = read(loader, examples, batch_size, 9)
        tolerance = 1 if augmentation is RANDOM and kind == "resident" else 0  # matrix products
        assert (images.int() - together[examples].int()).abs().max() <= tolerance


def test_compiled_streams_agree_whatever_the_workers(square: Path) -> None:
    settings = recipe(loader="stream", augmentation=RANDOM)
    one, two = (open_loader(square, "train", settings, CPU, workers) for workers in (1, 2))
    for key in (None, 1, 2):
        assert torch.equal(read(one, ORDER, 8, key)[0], read(two, ORDER, 11, key)[0])


def test_auto_keeps_small_splits_in_memory(
    interpreted: None, square: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_loader(square, "train", recipe(), CPU, 1), ResidentLoader)
    monkeypatch.setattr(loaders, "RESIDENT_BYTES", 40 * 16 * 16 * 3)
    assert isinstance(open_loader(square, "train", recipe(), CPU, 1), StreamLoader)
    assert isinstance(open_loader(square, "test", recipe(), CPU, 1), ResidentLoader)


def test_images_of_different_sizes_are_streamed(interpreted: None, tmp_path: Path) -> None:
    from conftest import write_settings
    from PIL import Image

    from transfer_influence.datasets.conversion import convert

    for index, size in enumerate([(20, 30), (40, 20), (25, 25), (50, 20)]):
        for name in ("cat", "dog"):
            path = tmp_path / "images" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise(size, 50).save(path)
    settings = {"kind": "folder", "train": str(tmp_path / "images")}
    write_settings(tmp_path, "pets", **settings, split={"test_per_class": 1})
    convert("pets", [tmp_path], tmp_path / "out")
    loader = open_loader(tmp_path / "out", "train", recipe(augmentation=RANDOM), CPU, 1)
    assert isinstance(loader, StreamLoader)
    assert read(loader, np.arange(6), 4, 1)[0].shape == (6, 3, 16, 16)
    with pytest.raises(UserError, match=r"`loader: resident` needs images of one size"):
        open_loader(tmp_path / "out", "train", recipe(loader="resident"), CPU, 1)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json: no such file; convert"):
        open_loader(tmp_path, "train", recipe(), CPU, 1)
    folder = convert_arrays(tmp_path, random_images(12, 16, 16))
    (folder / "test.labels.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"test\.labels\.npy: not readable .*; convert"):
        open_loader(folder, "test", recipe(), CPU, 1)
    (folder / "train.beton").write_bytes(b"not a beton")
    for kind in ("resident", "stream"):
        with pytest.raises(UserError, match=r"train\.beton: not a whole \.beton file"):
            open_loader(folder, "train", recipe(loader=kind), CPU, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(), PADDED, RANDOM], ids=lambda augmentation: augmentation.crop
)
def test_a_gpu_gives_the_same_batches(square: Path, kind: str, augmentation: Augmentation) -> None:
    settings = recipe(loader=kind, augmentation=augmentation)
    on_cpu = open_loader(square, "train", settings, CPU, 2)
    on_gpu = open_loader(square, "train", settings, torch.device("cuda"), 2)
    for key in (None, 1, 2):
        (images, ours), (gpu_images, theirs) = (
            read(on_cpu, ORDER, 4, key),
            read(on_gpu, ORDER, 4, key),
        )
        assert gpu_images.is_cuda
        assert theirs.is_cuda
        assert torch.equal(ours, theirs.cpu())
        assert (images.int() - gpu_images.cpu().int()).abs().max() <= 1


RAMP = {"start": 8, "end": 16, "start_epoch": 0, "end_epoch": 2, "multiple": 4}


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_a_loader_changes_its_resolution_between_epochs(
    interpreted: None, oblong: Path, kind: str
) -> None:
    settings = recipe(loader=kind, augmentation=RANDOM, resolution=RAMP, epochs=3)
    loader = open_loader(oblong, "train", settings, CPU, 1)
    for key, side in enumerate((8, 12, 16, 8)):
        found, _ = read(loader, np.arange(20), 7, key, side)
        assert found.shape == (20, 3, side, side)
        fresh = open_loader(oblong, "train", recipe(loader=kind, augmentation=RANDOM), CPU, 1)
        assert torch.equal(found, read(fresh, np.arange(20), 7, key, side)[0])


def test_another_resolution_compiles_nothing_anew(
    square: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(loader="stream", augmentation=RANDOM)
    loader = open_loader(square, "train", settings, CPU, 1)
    compiled: list[str] = []
    compile_function = beton.numba.core.dispatcher.Dispatcher.compile

    def compile_and_note(dispatcher: Any, signature: Any) -> Any:
        compiled.append(dispatcher.py_func.__name__)
        return compile_function(dispatcher, signature)

    monkeypatch.setattr(beton.numba.core.dispatcher.Dispatcher, "compile", compile_and_note)
    first, _ = read(loader, ORDER, 8, 1)
    assert "decode" in compiled
    compiled.clear()
    small, _ = read(loader, ORDER, 8, 1, 8)
    assert small.shape == (33, 3, 8, 8)
    assert torch.equal(read(loader, ORDER, 8, 1)[0], first)
    assert compiled == []


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_images_are_enlarged_in_the_end(interpreted: None, square: Path, kind: str) -> None:
    small, large = (
        open_loader(
            square,
            "train",
            recipe(loader=kind, augmentation=PADDED, upsample_to=side),
            CPU,
            workers=1,
        )
        for side in (None, 32)
    )
    for key in (None, 4):
        images, _ = read(small, ORDER, 7, key)
        found, _ = read(large, ORDER, 7, key)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, images.repeat_interleave(2, 2).repeat_interleave(2, 3))
