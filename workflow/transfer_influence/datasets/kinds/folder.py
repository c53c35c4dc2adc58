"""Folders of class folders."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_influence.config.dataset import FolderDataset
from transfer_influence.datasets.images import Images
from transfer_influence.datasets.kinds.parts import Parts
from transfer_influence.errors import UserError

log = logging.getLogger(__name__)


class Folder:
    """One folder of images a class; classes and images in the order of their names."""

    def parts(self, settings: FolderDataset, origin: str) -> Parts:
        classes, train = self._images(settings.train, "train", origin)
        if settings.test is None:
            return Parts(classes, train, None)
        test_classes, test = self._images(settings.test, "test", origin)
        if test_classes != classes:
            different = sorted(set(classes) ^ set(test_classes))[0]
            raise UserError(
                f"{origin}: class folder {different!r} is only in one of {settings.train} and "
                f"{settings.test}; give both the same class folders."
            )
        return Parts(classes, train, test)

    def _images(self, folder: Path, key: str, origin: str) -> tuple[list[str], Images]:
        from transfer_influence.vision import torchvision  # slow to import

        if not folder.is_dir():
            raise UserError(
                f"{origin}: {key}: no folder {folder}; correct the path (relative paths start at "
                "the working folder)."
            )
        extensions = torchvision.datasets.folder.IMG_EXTENSIONS
        classes = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        paths: list[Path] = []
        labels: list[int] = []
        suffixes: Counter[str] = Counter()
        for label, name in enumerate(classes):
            files = [
                Path(place, file)
                for place, _, names in os.walk(folder / name, followlinks=True)
                for file in names
                if not file.startswith(".")
            ]
            images = [file for file in files if file.suffix.lower() in extensions]
            suffixes.update(file.suffix.lower() for file in files)
            if not images:
                raise UserError(
                    f"{origin}: {folder / name} holds no images; add some ({', '.join(extensions)})"
                    " or remove the folder."
                )
            paths += sorted(images)
            labels += [label] * len(images)
        passed_over = [pair for pair in suffixes.most_common() if pair[0] not in extensions]
        if passed_over:
            log.warning(
                "%s: %s: files passed over for their suffixes: %s",
                origin,
                folder,
                ", ".join(f"{count} {suffix or 'without any'}" for suffix, count in passed_over),
            )
        return classes, Images(
            np.array(labels, np.int64),
            lambda index: Image.open(paths[index]),
            lambda index: str(paths[index]),
        )
