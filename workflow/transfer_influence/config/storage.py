"""How images are written; apart from the kinds of data set, as no model depends on those."""

from typing import Literal

from pydantic import Field, PositiveInt

from transfer_influence.config.settings import Settings


class Storage(Settings):
    """How FFCV writes an image."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = Field(
        "raw",
        description="`raw`: pixels; `jpg`: JPEG; `smart`: JPEG where raw is over "
        "`smart_threshold`; `proportion`: JPEG for a share of the images, at random.",
        examples=["proportion"],
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality, 1 to 100.", examples=[95])
    max_resolution: PositiveInt | None = Field(
        None,
        description="Longest side in pixels; larger images are shrunk.",
        examples=[400],
    )
    smart_threshold: PositiveInt = Field(
        100_000, description="Bytes, for `smart`.", examples=[200_000]
    )
    proportion: float = Field(
        0.5, ge=0, le=1, description="Share written as JPEG, for `proportion`.", examples=[0.25]
    )
