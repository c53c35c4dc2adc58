"""The one place that imports torchvision.

A torchvision built for CUDA cannot load its compiled operators beside a CPU build of torch, and
then fails at import because two operator schemas are missing. Declaring the two schemas first
makes models, transforms and data sets work; the compiled operators themselves stay out.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_missing_operators() -> "torch.library.Library | None":
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                library.define(schema)
            return library
    return None


_library = _declare_missing_operators()  # kept: the schemas live as long as the object

import torchvision  # noqa: E402

__all__ = ["torchvision"]
