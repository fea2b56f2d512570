"""An analysis that measures how bright each frame is: its light half, which the handlers import."""

from __future__ import annotations

from pydantic import Field

from posedrop.analyses import Analysis, Args


class BrightnessArgs(Args):
    """The arguments of ``brightness``, as a caller gives them."""

    every: int = Field(default=1, ge=1, description="measure each frame (1), each second one (2)")


brightness = Analysis(
    name="brightness",
    version="1",  # count it up when the same film would get other numbers: it is measured anew then
    args=BrightnessArgs,
    run="posedrop_brightness.measure:run",
    summary="How bright the frames of a film are, from 0 (black) to 255: brightness.csv.",
    renders=False,  # it finds no poses, so no labelled video is drawn
)
