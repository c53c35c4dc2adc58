"""How images are written; apart from the kinds of data set, as no model depends on those."""

from typing import Literal

from pydantic import Field, PositiveInt

from transfer_influence.config.settings import Settings


class Storage(Settings):
    """How FFCV writes an image."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = Field(
        "raw",
        description="`smart`: JPEG where raw is over `smart_threshold`; `proportion`: at random.",
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality.")
    max_resolution: PositiveInt | None = Field(
        None, description="Longest side in pixels; larger images are shrunk."
    )
    smart_threshold: PositiveInt = Field(100_000, description="Bytes, for `smart`.")
    proportion: float = Field(
        0.5, ge=0, le=1, description="Share written as JPEG, for `proportion`."
    )
