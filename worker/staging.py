"""Pictures on their way to the device: into memory that is used again, and from planes to pixels.

An accelerator is sent a frame's planes, half the bytes of its pixels (a third, of a gray film), and
makes BGR of them by the tables of :mod:`worker.planes`: the same bits as libswscale's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.planes import Colours, Layout, Planes, tables_of

Frame = npt.NDArray[np.uint8]
AnyFrame = Frame | Planes

#: Batches whose memory is in use at the same time, at most: two in flight, and one that is filled.
BUFFERS = 3
#: Pixels that are looked up together: each takes 16 bytes meanwhile.
CHUNK = 2**22


class Staging:
    """Memory from which batches go to one device: pinned for CUDA, and reused."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * BUFFERS
        self._copied: list[Any] = [None] * BUFFERS
        self._turn = 0

    def pixels(self, images: Sequence[AnyFrame]) -> Tensor:
        """Return pictures as pixels on the device.

        Args:
            images: BGR (height, width, 3), or planes; all are of the same size as they are shown.

        Returns:
            uint8 (n, height, width, 3), BGR. On a processor it may be memory that is used again for
            the third batch from here.
        """
        first = images[0]
        if isinstance(first, Planes):
            if all(isinstance(one, Planes) and one.layout == first.layout for one in images):
                return self._of_planes(images, first.layout)  # type: ignore[arg-type]
        elif all(not isinstance(one, Planes) for one in images):
            if len(images) == 1 and self._device.type == "cpu":
                return torch.from_numpy(first[None])
            packed = self._memory(len(images), first.size)
            room = packed.numpy().reshape(len(images), *first.shape)
            for row, image in zip(room, images, strict=True):
                np.copyto(row, image)  # type: ignore[arg-type]  # none is of planes
            return self._sent(packed).reshape(room.shape)
        # A film that changes on the way.
        return torch.cat([self.pixels([image]).clone() for image in images])

    def _of_planes(self, images: Sequence[Planes], layout: Layout) -> Tensor:
        sizes = _sizes(layout)
        packed = self._memory(len(images), sum(height * width for height, width in sizes))
        for row, image in zip(packed.numpy(), images, strict=True):
            at = 0
            for (height, width), part in zip(sizes, image.parts, strict=True):
                room = row[at : at + height * width].reshape(height, width)
                np.copyto(room[: part.shape[0], : part.shape[1]], part)
                at += height * width
        return _shown(self._sent(packed), layout)

    def _memory(self, rows: int, size: int) -> Tensor:
        """Return memory of ours, (rows, size), from which nothing is being copied any more."""
        self._turn = (self._turn + 1) % BUFFERS
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        if len(self._buffers[self._turn]) < rows * size:
            pins = self._device.type == "cuda"
            self._buffers[self._turn] = torch.zeros(rows * size, dtype=torch.uint8, pin_memory=pins)
        return self._buffers[self._turn][: rows * size].reshape(rows, size)

    def _sent(self, packed: Tensor) -> Tensor:
        """Copy memory of the current turn to the device; nobody waits for it."""
        there = packed.to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[self._turn] = event
        return there


def bgr(planes: Planes, device: torch.device) -> Tensor:
    """Return a frame as it is shown, on the device: uint8 (height, width, 3), BGR."""
    return Staging(device).pixels([planes])[0]


def _sizes(layout: Layout) -> list[tuple[int, int]]:
    """Return how large planes are as they are sent: Y with an even number of rows and columns."""
    if layout.colours.format == "gray":
        return [(layout.height, layout.width)]
    height, width = -(-layout.height // 2), -(-layout.width // 2)
    return [(2 * height, 2 * width), (height, width), (height, width)]


def _shown(packed: Tensor, layout: Layout) -> Tensor:
    """Return pictures as they are shown, (n, height, width, 3), from what was sent, (n, bytes)."""
    tables = _tables_on(layout.colours, str(packed.device))
    (height, width), *others = _sizes(layout)
    found = torch.empty((len(packed), height, width, 3), dtype=torch.uint8, device=packed.device)
    rows = max(1, CHUNK // (height * width))
    for some, target in zip(torch.split(packed, rows), torch.split(found, rows), strict=True):
        _look_up(tables, some, target, others)
    kept = found[:, layout.top : layout.height, layout.left : layout.width]
    return torch.rot90(kept, -layout.turns, (1, 2)).contiguous()


def _look_up(
    tables: Sequence[Tensor], packed: Tensor, target: Tensor, others: list[tuple[int, int]]
) -> None:
    n, height, width, _ = target.shape
    if not others:
        luma = packed.reshape(n, height, width).long()
        for colour, table in enumerate(tables):
            target[..., colour] = table[luma]
        return
    size = others[0]
    luma, us, vs = (
        part.long()
        for part in torch.split(packed, [height * width, *(h * w for h, w in others)], 1)
    )
    luma = luma.reshape(n, size[0], 2, size[1], 2)
    us, vs = (plane.reshape(n, size[0], 1, size[1], 1) for plane in (us, vs))
    target = target.view(n, size[0], 2, size[1], 2, 3)
    blue, green, red = tables
    target[..., 0] = blue[luma * 256 + us]
    target[..., 1] = green[luma * 65536 + (us * 256 + vs)]
    target[..., 2] = red[luma * 256 + vs]


@lru_cache(maxsize=4)
def _tables_on(colours: Colours, device: str) -> tuple[Tensor, ...]:
    tables = tables_of(colours)
    assert tables is not None  # noqa: S101  # there are planes of such colours
    return tuple(torch.from_numpy(table.reshape(-1)).to(device) for table in tables)
