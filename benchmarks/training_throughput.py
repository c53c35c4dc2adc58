#!/usr/bin/env python
"""Measure how fast models train with each loader, against a torch.utils.data.DataLoader.

Three cases:

`small`       28-pixel images (a converted data set, such as the demo's) and small_resnet;
`photographs` 256-pixel JPEGs, cut at random out of scikit-learn's two sample photographs, and
              resnet18;
`processes`   how many of the demo's source models one machine trains in an hour when several
              processes share its GPU, or its CPU.

In the first two, one training loop runs on batches of

`dataloader`  the reference: PIL, torchvision transforms, ToTensor and Normalize in the worker
              processes of a DataLoader with pinned memory, as in PyTorch's ImageNet example;
`stream`      FFCV's pipeline;
`resident`    all images in memory, on the GPU where there is one;
`one batch`   the same batch again and again: what the network alone allows.

Everything else is the same: images, augmentation, network, precision, batch size, CPU threads or
workers. One repetition is as many whole epochs as make --steps steps; the first ones are warm-up
and do not count. Results are printed as Markdown and, with --output, written as JSON.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from transfer_influence.config.recipe import Architecture, Augmentation, CyclicSchedule, Recipe
from transfer_influence.config.settings import read_yaml
from transfer_influence.config.stages import SourceStage, source_stage
from transfer_influence.config.study import check_study
from transfer_influence.datasets.beton import decode_all, share_of_cpus
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.loaders import Batch, Loader
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.job import JobOptions
from transfer_influence.provenance import Origin
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.subsets import source_models
from transfer_influence.training.devices import best_device, device_name
from transfer_influence.training.sources import train_sources
from transfer_influence.training.trainer import Trainer
from transfer_influence.vision import torchvision

SEEDS = TrainingSeeds(weights=0, order=0, augmentation=0)
LOADERS = ("dataloader", "stream", "resident", "one batch")
Row = dict[str, Any]


def main() -> None:
    """Run the cases, print their tables, write the JSON file."""
    arguments = parser().parse_args()
    device = best_device()
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    report: Row = {"environment": environment(device, arguments.workers), "throughput": []}
    print_table([report["environment"]])
    if "small" in arguments.cases:
        for batch_size in arguments.small_batch_sizes:
            report["throughput"] += small(arguments, device, batch_size)
    if "photographs" in arguments.cases:
        report["throughput"] += photographs(arguments, device)
    if report["throughput"]:
        print_table(report["throughput"])
    if "processes" in arguments.cases:
        report["processes"] = [processes(arguments, count) for count in arguments.processes]
        print_table(report["processes"])
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


# The two cases of throughput


def small(arguments: argparse.Namespace, device: torch.device, batch_size: int) -> list[Row]:
    """Measure small images in small_resnet."""
    data = arguments.data
    images, labels = decode_all(data / "train.beton"), np.load(data / "train.labels.npy")
    epochs = math.ceil(arguments.steps / (len(labels) // batch_size))
    augmentation = Augmentation(crop="padded", flip=True)
    recipe = make_recipe(arguments, epochs, batch_size, 28, augmentation)
    transforms = torchvision.transforms
    augment = [transforms.RandomCrop(28, padding=4), transforms.RandomHorizontalFlip()]
    reference = InMemory(images, labels, transforms.Compose([*augment, *to_tensor(data)]))
    architecture = Architecture(name="small_resnet", width=16)
    case = f"small_resnet, 28 px, batch {batch_size}"
    return compare(case, arguments, data, recipe, architecture, reference, device)


def photographs(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Measure 256-pixel JPEGs in resnet18."""
    resolution = arguments.resolution
    with tempfile.TemporaryDirectory() as folder:
        data = make_photographs(Path(folder), arguments.images)
        augmentation = Augmentation(crop="random_resized", flip=True)
        epochs = math.ceil(arguments.steps / (arguments.images // arguments.batch_size))
        batch_size = arguments.batch_size
        recipe = make_recipe(arguments, epochs, batch_size, resolution, augmentation)
        transforms = torchvision.transforms
        augment = [
            transforms.RandomResizedCrop(resolution, antialias=True),
            transforms.RandomHorizontalFlip(),
        ]
        reference = torchvision.datasets.ImageFolder(
            Path(folder) / "train", transforms.Compose([*augment, *to_tensor(data)])
        )
        case = f"resnet18, {resolution} px of 256, batch {arguments.batch_size}"
        architecture = Architecture(name="resnet18")
        return compare(case, arguments, data, recipe, architecture, reference, device)


def make_recipe(
    arguments: argparse.Namespace,
    epochs: int,
    batch_size: int,
    resolution: int,
    augmentation: Augmentation,
) -> Recipe:
    """Return the recipe of one repetition."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=0.01,
        schedule=CyclicSchedule(peak_epoch=0),
        resolution=resolution,
        augmentation=augmentation,
        precision=arguments.precision,
    )


def to_tensor(data: Path) -> list[Any]:
    """Return the last steps of the reference's transforms."""
    sidecar = read_sidecar(data / "dataset.json")
    transforms = torchvision.transforms
    return [transforms.ToTensor(), transforms.Normalize(sidecar.mean, sidecar.std)]


def compare(
    case: str,
    arguments: argparse.Namespace,
    data: Path,
    recipe: Recipe,
    architecture: Architecture,
    reference: torch.utils.data.Dataset,
    device: torch.device,
) -> list[Row]:
    """Time the same training with each loader."""
    workers = arguments.workers
    rows = []
    for name in arguments.loaders:
        kind = {"one batch": "resident", "dataloader": "auto"}.get(name, name)
        trainer = Trainer(data, recipe.model_copy(update={"loader": kind}), device, workers)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        if name == "dataloader":
            labels = np.load(data / "train.labels.npy")
            trainer.train_loader = Reference(reference, labels, device, workers)
            trainer.normalize = nn.Identity()  # done by the workers
        if name == "one batch":
            trainer.train_loader = OneBatch(trainer.train_loader)
        examples = np.arange(len(trainer.train_loader.labels))
        opened = time.perf_counter() - started
        model = trainer.build(architecture, seed=0)
        seconds = []
        for _ in range(arguments.warm_up + arguments.repetitions):
            synchronize(device)
            started = time.perf_counter()
            trainer.fit(model, examples, SEEDS, name)
            synchronize(device)
            seconds.append(time.perf_counter() - started)
        images = recipe.epochs * (len(examples) // recipe.batch_size) * recipe.batch_size
        counted = seconds[arguments.warm_up :]
        row: Row = {
            "case": case,
            "loader": name,
            "precision": recipe.precision if device.type == "cuda" else "float32",
            "images/s": round(images / statistics.median(counted)),
            "slowest": round(images / max(counted)),
            "fastest": round(images / min(counted)),
            "first repetition, s": round(opened + seconds[0], 1),
            "GPU memory, MiB": peak_memory(device),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    first = rows[0]["images/s"]
    for row in rows:
        row["ratio"] = round(row["images/s"] / first, 2)
    return rows


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """Return how many MiB of the GPU tensors took at most, None without a GPU."""
    return torch.cuda.max_memory_allocated() // 2**20 if device.type == "cuda" else None


# Loaders to compare with


class InMemory(torch.utils.data.Dataset):
    """Arrays as torchvision's own data sets of small images hold them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Reference:
    """A DataLoader with the workers kept from epoch to epoch."""

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        labels: np.ndarray,
        device: torch.device,
        workers: int,
    ) -> None:
        self.labels = labels
        self._dataset, self._device, self._workers = dataset, device, workers
        self._order: list[int] = []
        self._loader: torch.utils.data.DataLoader | None = None

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """Yield normalised float images, in channels-last memory as the others do."""
        self._order[:] = examples.tolist()
        if self._loader is None:
            self._loader = torch.utils.data.DataLoader(
                self._dataset,
                batch_size,
                sampler=self._order,  # read anew for every epoch
                num_workers=self._workers,
                pin_memory=self._device.type == "cuda",
                persistent_workers=True,
            )
        for images, labels in self._loader:
            images = images.to(self._device, non_blocking=True)
            labels = labels.to(self._device, non_blocking=True)
            yield images.contiguous(memory_format=torch.channels_last), labels


class OneBatch:
    """The first batch of another loader, for ever."""

    def __init__(self, loader: Loader) -> None:
        self.labels = loader.labels
        self._loader = loader

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """Yield the same tensors for every step."""
        first = next(self._loader.batches(examples, batch_size, key, resolution))
        yield from itertools.repeat(first, len(examples) // batch_size)


# Photographs


def make_photographs(folder: Path, count: int) -> Path:
    """Write JPEGs and convert them; the classes are the two photographs."""
    parts = np.array_split(np.arange(count), os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(share_of_cpus(64), mp_context=spawn) as pool:
        list(pool.map(write_photographs, [folder / "train"] * len(parts), parts))
    write_photographs(folder / "test", range(4))
    settings = {
        "kind": "folder",
        "train": str(folder / "train"),
        "test": str(folder / "test"),
        "storage": {"mode": "jpg", "quality": 90},
    }
    (folder / "photographs.yaml").write_text(yaml.safe_dump(settings))
    convert("photographs", [folder], folder / "converted")
    return folder / "converted"


def write_photographs(folder: Path, numbers: Sequence[int]) -> None:
    """Cut square parts of 200 to 400 pixels out, and write them at 256 × 256 pixels."""
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in numbers:
        random = np.random.default_rng(number)
        label = int(number) % len(sources)
        side = int(random.integers(200, 400))
        width, height = sources[label].size
        left, top = random.integers(width - side), random.integers(height - side)
        box = (int(left), int(top), int(left) + side, int(top) + side)
        image = sources[label].resize((256, 256), Image.Resampling.BICUBIC, box)
        place = folder / str(label) / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place, quality=90)


# Models an hour


def processes(arguments: argparse.Namespace, count: int) -> Row:
    """Train source models of the demo in `count` processes at once, each on CPUs of its own."""
    stage = source_stage(check_study(read_yaml(arguments.study), str(arguments.study)))
    cpus = sorted(os.sched_getaffinity(0))
    each = max(1, min(arguments.cpus_per_process, len(cpus) // count))
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(count), spawn.Queue()
    started = time.monotonic()
    workers = []
    for number in range(count):
        own = [cpus[(number * each + i) % len(cpus)] for i in range(each)]
        job = (arguments.data, stage, number, arguments.models, own, barrier, results)
        workers.append(spawn.Process(target=train_shard, args=job))
        workers[-1].start()
    found = [results.get(timeout=3600) for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(one["finished"] for one in found) - min(one["started"] for one in found)
    accuracy = statistics.mean(value for one in found for value in one["accuracy"])
    row = {
        "processes": count,
        "CPUs each": each,
        "models": count * arguments.models,
        "seconds": round(seconds, 1),
        "models/hour": round(3600 * count * arguments.models / seconds),
        "start-up, s": round(min(one["started"] for one in found) - started, 1),
        "GPU memory, MiB": max(one["memory"] for one in found) or None,
        "mean accuracy": round(accuracy, 3),
    }
    print(json.dumps(row), flush=True)
    return row


def train_shard(
    data: Path, stage: SourceStage, number: int, models: int, cpus: list[int], barrier, results
) -> None:
    """Train one model to warm up, wait for the other processes, then train `models` models."""
    os.sched_setaffinity(0, cpus)
    classes = read_sidecar(data / "dataset.json").classes
    with tempfile.TemporaryDirectory() as name:

        def shard(first: int, size: int) -> Path:
            table = Path(name, f"{first}.parquet")
            train_sources(
                models=source_models(stage, range(first, first + size), classes),
                stage=stage,
                data=data,
                weights=Path(name, f"{first}.safetensors"),
                table=table,
                origin=Origin({}, {}, "benchmark"),
                options=JobOptions(
                    gpus=0, processes=1, workers=len(cpus), scratch=None, failed_models="stop"
                ),
            )
            return table

        shard(1_000_000 + number, 1)
        barrier.wait()
        started = time.monotonic()
        table = shard(number * models, models)
        finished = time.monotonic()
        memory = 0
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()  # of all processes together
            memory = (total - free) // 2**20
        barrier.wait()
        import pyarrow.parquet as pq

        accuracy = pq.read_table(table, columns=["accuracy"])["accuracy"].to_pylist()
    results.put({"started": started, "finished": finished, "memory": memory, "accuracy": accuracy})


# Report


def environment(device: torch.device, workers: int) -> Row:
    """Return what the numbers depend on besides the code."""
    import numba

    return {
        "device": device_name(device),
        "CPUs": len(os.sched_getaffinity(0)),
        "workers": workers,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "FFCV": version("ffcv"),
        "numba": numba.__version__,
        "NumPy": np.__version__,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }


def print_table(rows: list[Row]) -> None:
    """Print rows as a Markdown table."""
    columns = list(rows[0])
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = ["–" if row[column] is None else str(row[column]) for column in columns]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = ["small", "photographs", "processes"]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("results/demo/data/digits_and_fashion"),
        help="converted data set of 28-pixel images (default: the demo's, %(default)s)",
    )
    parser.add_argument(
        "--study",
        type=Path,
        default=Path("config/demo.yaml"),
        help="study whose source models `processes` trains (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=share_of_cpus(64),
        help="decoding threads, and worker processes of the DataLoader (default: all CPUs)",
    )
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="bfloat16",
        help="on a GPU (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=300, help="least steps a repetition")
    parser.add_argument("--warm-up", type=int, default=1, help="repetitions (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--small-batch-sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--images", type=int, default=10240, help="photographs to make")
    parser.add_argument("--resolution", type=int, default=224, help="of the photographs' crops")
    parser.add_argument("--batch-size", type=int, default=256, help="of the photographs")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--models", type=int, default=32, help="models each process trains")
    parser.add_argument("--cpus-per-process", type=int, default=2)
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try algorithms")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    main()
