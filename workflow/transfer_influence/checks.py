"""What can be wrong between a study and its files, looked for before any job.

Each check is a function that yields what is wrong, a sentence each, and leaves to the others what
is theirs. All of them run, so that everything that is wrong is said at once.
"""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from transfer_influence.config.dataset import check_places, conversion_settings, find_with_parts
from transfer_influence.config.lists import list_entries
from transfer_influence.config.study import Study, check_units
from transfer_influence.datasets.originals import state_of_originals
from transfer_influence.datasets.sidecar import Sidecar, read_sidecar, unit_names
from transfer_influence.errors import UserError
from transfer_influence.models.trial import try_architecture
from transfer_influence.results import data_folder
from transfer_influence.subsets import (
    LEAST_BLOCKS,
    LEAST_GROUPS,
    LEAST_KEPT,
    block_models,
    check_both_sides,
    draw_mask,
    imported_models,
    listed_mask,
    open_masks,
    read_units,
)

IMPROBABLE = 1e-9  # as good as impossible
MOST_ENTRIES = 10**8  # of the masks of a bank that are looked at; a second's work


@dataclass(frozen=True)
class StudyFiles:
    """A study and where the files are that it names.

    Attributes:
        study: the study.
        folders: where to look for the descriptions of data sets, in order.
        memory: see `describe_dataset`.
    """

    study: Study
    folders: tuple[Path, ...]
    memory: Path | None = None
    _described: dict[str, str] = field(default_factory=dict, init=False)

    def described(self, dataset: str) -> str:
        """Return what decides a converted data set, looked at once: see `conversion_settings`."""
        if dataset not in self._described:
            settings = conversion_settings(dataset, list(self.folders), self.memory)
            self._described[dataset] = settings
        return self._described[dataset]

    def conversion(self, dataset: str, compared: bool) -> tuple[str, str | None]:
        """Return what decides a converted data set, with the state of its originals.

        Args:
            dataset: its name.
            compared: whether to look for originals that have changed since the conversion.

        Returns:
            Settings as JSON, and a warning where not all originals were looked at.
        """
        settings = json.loads(self.described(dataset))
        warning = None
        if compared:
            folder, folders = data_folder(self.study, dataset), list(self.folders)
            state, warning = state_of_originals(folder, dataset, folders, settings)
            settings["originals"] = state
        return json.dumps(settings), warning

    def sidecar(self, dataset: str) -> Sidecar | None:
        """Return what a converted data set says of itself; None if it is to be converted."""
        try:
            return read_sidecar(self.sidecar_path(dataset))
        except UserError:
            return None

    def sidecar_path(self, dataset: str) -> Path:
        """Return where the sidecar of a converted data set is."""
        return data_folder(self.study, dataset) / "dataset.json"

    @functools.cached_property
    def units(self) -> int | None:
        """How many classes or examples the source has; None if it is to be converted."""
        source = self.study.source
        sidecar = self.sidecar(source.dataset)
        return None if sidecar is None else sidecar.units(source.subset.unit)

    @functools.cached_property
    def unit_names(self) -> list[str]:
        """The names of the source's units; none if it is to be converted."""
        if self.units is None:
            return []
        source = self.study.source
        return unit_names(data_folder(self.study, source.dataset), source.subset.unit)


def check_files(files: StudyFiles) -> None:
    """Run all checks.

    Raises:
        UserError: all that is wrong, a line each.
    """
    wrong = dict.fromkeys(sentence for check in CHECKS for sentence in check(files))
    if wrong:
        raise UserError("\n".join(wrong))


def descriptions(files: StudyFiles) -> Iterator[str]:
    """Look whether every data set is described."""
    for name in files.study.datasets:
        yield from refusal(find_with_parts, name, list(files.folders))


def images(files: StudyFiles) -> Iterator[str]:
    """Look for the images of all data sets that are still to be converted, and at their names."""
    folders = list(files.folders)
    described = [name for name in files.study.datasets if fits(find_with_parts, name, folders)]
    waiting = [name for name in described if not files.sidecar_path(name).exists()]
    yield from refusal(check_places, waiting, folders)
    for name in described:
        if name not in waiting or fits(check_places, [name], folders):
            yield from refusal(files.described, name)


def bank(files: StudyFiles) -> Iterator[str]:
    """Look for masks and checkpoints of source models that exist already."""
    study, source = files.study, files.study.source
    if source.masks is None:
        return
    yield from of_converted(files, refusal(open_masks, source.masks, study.models, files.units))
    missing = [model for model in range(study.models) if not source.checkpoint(model).is_file()]
    if missing:
        others = f", nor for {len(missing) - 1} others," if len(missing) > 1 else ""
        yield (
            f"source.checkpoints: no file {source.checkpoint(missing[0])} for model "
            f"{missing[0]}{others} of {study.models}; correct the path, or lower `models`."
        )


def lists(files: StudyFiles) -> Iterator[str]:
    """Look whether lists can be read, and name units of the source."""
    study, subset = files.study, files.study.source.subset
    named = list(study.counterfactuals.lists.values()) if study.counterfactuals else []
    named += [each.file for target in study.targets.values() for each in target.lists.values()]
    if study.surrogates:
        listed = product(study.surrogates.lists, study.targets)
        named += [study.surrogates.list_of(name, target) for name, target in listed]
    for path in dict.fromkeys(named):
        unreadable = list(refusal(list_entries, path))
        yield from unreadable
        if not unreadable and files.unit_names:
            yield from of_converted(files, refusal(read_units, path, files.unit_names))
    if subset.listed and not subset.listed.is_file():
        yield f"source.subset: no file {subset.listed}; correct the path."
    elif subset.listed and files.unit_names:
        yield from of_converted(files, refusal(listed_mask, subset, files.unit_names))


def units(files: StudyFiles) -> Iterator[str]:
    """Look whether the source has enough units for all subsets and removals."""
    study, source = files.study, files.study.source
    paths = study.counterfactuals.lists.values() if study.counterfactuals else ()
    if files.units is not None and all(fits(list_entries, path) for path in paths):
        asked = (source.dataset, source.subset.unit, files.units, study.least_units)
        yield from of_converted(files, refusal(check_units, *asked))
        yield from of_converted(files, too_much_removed(study, files.units))


def too_much_removed(study: Study, units: int) -> Iterator[str]:
    """Look whether the lists of single targets leave enough to train on."""
    for target, settings in study.targets.items():
        for name, listed in settings.lists.items():
            if not fits(list_entries, listed.file):
                continue
            left = units - listed.removed(units)
            if left < LEAST_KEPT:
                yield (
                    f"targets.{target}.lists.{name}: {listed.file} leaves {left} of {units} units, "
                    f"and at least {LEAST_KEPT} are needed to train on; correct the list."
                )


def design(files: StudyFiles) -> Iterator[str]:
    """Look whether influences can be estimated from the subsets of so many models."""
    study, subset = files.study, files.study.source.subset
    if not study.estimates:
        return
    pairs = subset.sampling != "uniform"
    if "lasso" in study.influence.estimators and study.models < LEAST_GROUPS * (1 + pairs):
        yield (
            f"influence.estimators: lasso cannot hold out some of {study.models} models to choose "
            f"its penalty; raise `models`, or leave lasso out."
        )
    if study.influence.intervals == "bootstrap" and subset.sampling == "balanced" and files.units:
        block = block_models(files.units)
        if study.models < LEAST_BLOCKS * block or study.models % block:
            yield (
                f"influence.intervals: bootstrap draws blocks of balanced subsets, and models: "
                f"{study.models} are not {LEAST_BLOCKS} or more whole blocks of {block}; set "
                f"intervals to closed_form, or models to a multiple of {block}, "
                f"{LEAST_BLOCKS * block} at least."
            )
    yield from refusal(check_subsets, files)


def check_subsets(files: StudyFiles) -> None:
    """Check that every unit is in enough subsets and missing from enough, where that is in doubt.

    Raises:
        UserError: one is not, or the masks of a bank are not masks.
    """
    models, masks = files.study.models, list_masks(files)
    if masks is not None:
        counts = functools.reduce(np.add, masks, np.zeros(len(files.unit_names), np.int64))
        check_both_sides(counts, models, files.unit_names)


def list_masks(files: StudyFiles) -> Iterator[np.ndarray] | None:
    """Return the mask of each model, bool (units,).

    None where the units are not known, where reading takes long, or where drawing them is needless,
    as there are so many models that both sides have some.
    """
    study, subset, units = files.study, files.study.source.subset, files.units
    if units is None or subset.size(units) >= units:
        return None
    numbers = range(study.models)
    if study.source.masks:
        readable = fits(open_masks, study.source.masks, study.models, units)
        if not readable or units * study.models > MOST_ENTRIES:
            return None
        return (model.mask for model in imported_models(study.source.masks, numbers, units))
    share = subset.size(units) / units
    too_few = sum(
        part**study.models + study.models * (1 - part) * part ** (study.models - 1)
        for part in (share, 1 - share)
    )
    if units * too_few < IMPROBABLE:
        return None
    return (draw_mask(study.seed, number, units, subset) for number in numbers)


def outcomes(files: StudyFiles) -> Iterator[str]:
    """Look whether the targets have what is to be explained and validated."""
    study = files.study
    fraction = study.counterfactuals.validation_fraction if study.counterfactuals else 0
    for name in study.targets:
        target = files.sidecar(study.dataset_of(name))
        if target is None:
            continue
        if study.influence.outcome == "auroc" and len(target.classes) != 2:
            yield (
                f"influence.outcome: auroc is for two classes, and target {name!r} has "
                f"{len(target.classes)}; choose another outcome."
            )
        if study.proof_fraction and max(target.test_class_counts) < 2:
            yield (
                f"target {name!r}: no class has two test images, so none can be left to prove the "
                f"ranking; set counterfactuals.proof_fraction to 0."
            )
        if fraction and max(target.train_class_counts) < 2:
            yield (
                f"target {name!r}: no class has two training images, so none can be held out; set "
                f"counterfactuals.validation_fraction to 0."
            )


def network(files: StudyFiles) -> Iterator[str]:
    """Look whether the network takes images of all resolutions."""
    architecture = files.study.source.architecture
    if architecture.name != "small_resnet":
        yield from refusal(try_architecture, architecture, files.study.resolutions)


CHECKS = (descriptions, images, bank, lists, units, design, outcomes, network)


def refusal(check: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """Yield why a function refuses its arguments, if it does."""
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)


def fits(check: Callable[..., Any], *arguments: Any) -> bool:
    """Tell whether a function takes its arguments."""
    return not any(refusal(check, *arguments))


def of_converted(files: StudyFiles, sentences: Iterator[str]) -> Iterator[str]:
    """Add what to do if the source has changed since it was converted."""
    if files.units is None:
        yield from sentences
        return
    path = files.sidecar_path(files.study.source.dataset)
    for sentence in sentences:
        yield f"{sentence} If the data set itself has changed, delete {path}."
