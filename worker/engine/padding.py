"""Pictures made larger before a network sees them, as DeepLabCut's ``auto_padding`` does.

An HRNet halves a picture five times, and adds each half to what it was made of: so DeepLabCut pads
its pictures until their sides are multiples of 32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from deeplabcut.pose_estimation_pytorch.data.preprocessor import AugmentImage
from torch import Tensor

from posedrop.errors import ModelError

Size = tuple[int, int]
#: Pixels that a picture may grow by on a side: networks want multiples of 32, or some fixed size.
MOST = 4096


class Sides(NamedTuple):
    """By how many pixels a picture grows on each side."""

    top: int
    bottom: int
    left: int
    right: int


class Padding:
    """How pictures are padded; they are uint8 (n, height, width, 3), BGR."""

    def __init__(self, step: Any = None) -> None:
        """Pad as ``step``, albumentations' ``PadIfNeeded``, does to RGB; None: not at all."""
        self._step = step

    def sides(self, size: Size) -> Sides:
        """Return by how many pixels a picture of this height and width grows on each side.

        Raises:
            ModelError: the config asks for what is no picture, or a giant one.
        """
        if self._step is None:
            return Sides(0, 0, 0, 0)
        try:
            told = self._step.update_params({}, image=np.broadcast_to(np.uint8(0), (*size, 3)))
            sides = Sides(*(int(told[f"pad_{side}"]) for side in Sides._fields))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ModelError(
                f"auto_padding in the model's pytorch_config.yaml can't be followed: {error}",
                code="model_damaged",
            ) from error
        if max(sides) > MOST or min(sides) < 0:
            raise ModelError(
                "auto_padding in the model's pytorch_config.yaml adds "
                f"{max(sides, key=abs)} pixels to a frame of {size[1]}x{size[0]}: {MOST} at most",
                code="model_damaged",
            )
        return sides

    def padded_size(self, size: Size) -> Size:
        """Return the height and width that the network sees of a picture of this size."""
        sides = self.sides(size)
        return size[0] + sides.top + sides.bottom, size[1] + sides.left + sides.right

    def padded(self, pixels: Tensor) -> Tensor:
        """Return pictures as the network sees them, where they are: on any device."""
        height, width = pixels.shape[1:3]
        sides = self.sides((height, width))
        if not any(sides):
            return pixels
        mode = self._step.border_mode
        if mode == cv2.BORDER_CONSTANT:
            shape = (len(pixels), *self.padded_size((height, width)), 3)
            found = torch.empty(shape, dtype=pixels.dtype, device=pixels.device)
            found[:] = torch.from_numpy(_colour(self._step.value)).to(pixels.device)
            inside = found[:, sides.top :, sides.left :]
            inside[:, :height, :width] = pixels
            return found
        rows = _places(height, sides.top, sides.bottom, mode, str(pixels.device))
        columns = _places(width, sides.left, sides.right, mode, str(pixels.device))
        return pixels.index_select(1, rows).index_select(2, columns)


def _colour(value: Any) -> Any:
    """Return the colour, BGR, of a constant border: that which OpenCV makes of ``value`` in RGB."""
    dot = np.zeros((1, 1, 3), np.uint8)
    return cv2.copyMakeBorder(dot, 1, 0, 0, 0, cv2.BORDER_CONSTANT, value=value)[0, 0, ::-1].copy()


@lru_cache(maxsize=64)
def _places(size: int, before: int, behind: int, mode: int, device: str) -> Tensor:
    """Return which row (or column) of a picture each of the padded one's is."""
    places = [cv2.borderInterpolate(at, size, mode) for at in range(-before, size + behind)]
    return torch.tensor(places, device=device)


def padding_of(runner: Any, kinds: list[type]) -> Padding | None:
    """Return how a runner's preprocessor pads, if it does but that and normalises; else None.

    Args:
        runner: DeepLabCut's.
        kinds: the types of the steps that it has to have.
    """
    steps = runner.preprocessor.components
    if [type(step) for step in steps] != kinds:
        return None
    transforms = list(steps[kinds.index(AugmentImage)].transform)
    match [type(one).__name__ for one in transforms]:
        case ["Normalize"]:
            return Padding()
        case ["PadIfNeeded", "Normalize"]:
            return Padding(transforms[0])
    return None
