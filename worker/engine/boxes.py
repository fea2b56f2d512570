"""Boxes of a detector: which of them are certain to be kept, and the features inside them.

A detector drops each box that overlaps a better one too much. Where its numbers err a little, the
better one may be another, and so may what is dropped: :func:`kept` says which boxes are kept in any
case, which perhaps. Both functions are loops over thousands of boxes, compiled by numba.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types
from torch import Tensor

from worker.cpu.lanes import run_on_threads

Array = np.ndarray[Any, Any]
#: What becomes of a box.
DROPPED, PERHAPS, KEPT = 0, 1, 2


@dataclass(frozen=True)
class Kernels:
    """The loops, compiled."""

    pool: Callable[..., None]
    keep: Callable[..., None]


def pooled(
    feature: Tensor, regions: Tensor, out: Tensor, places: Tensor, scale: float, ratio: int
) -> None:
    """Write what torchvision's ``roi_align`` (not aligned) makes of regions of a feature map.

    Args:
        feature: (n, channels, height, width), fp32, channels last in memory.
        regions: (r, 5): the row of ``feature``, left, top, right, bottom, in the picture's pixels.
        out: (m, channels, side, side), channels last in memory: written at ``places``, (r,).
        scale: of the feature map to the picture.
        ratio: so many samples a cell, in each direction.
    """
    pixels = feature.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    arguments = (
        pixels.numpy(),
        np.ascontiguousarray(regions.numpy()),
        np.ascontiguousarray(places.numpy()),
        out.permute(0, 2, 3, 1).numpy(),
        np.float32(scale),
        ratio,
    )
    if len(regions):
        run_on_threads(_kernels().pool, arguments, 0, len(regions))


def kept(
    boxes: npt.NDArray[np.float32],
    merits: npt.NDArray[np.float64],
    kinds: npt.NDArray[np.int64],
    exist: npt.NDArray[np.bool_],
    limit: float,
    behind: npt.NDArray[np.float64],
    slack: npt.NDArray[np.float64],
) -> npt.NDArray[np.uint8]:
    """Say of each box whether non-maximum suppression keeps it: DROPPED, PERHAPS or KEPT.

    Args:
        boxes: (n, 4), left, top, right, bottom, the best first.
        merits: (n,), descending: the larger, the better a box is.
        kinds: (n,); boxes of two kinds leave each other alone.
        exist: (n,): whether a box is one at all in any case.
        limit: a box that overlaps a better one by more (intersection over union) is dropped.
        behind: (n,), descending: a box of less merit than this comes behind it in any case.
        slack: (n,), by which a box's overlaps may be off.
    """
    state = np.full(len(boxes), KEPT, np.uint8)
    arrays = (
        np.ascontiguousarray(array, dtype)
        for array, dtype in (
            (boxes, np.float32), (merits, np.float64), (kinds, np.int64), (exist, np.uint8),
            (behind, np.float64), (slack, np.float64),
        )
    )  # fmt: skip
    _kernels().keep(*arrays, limit, state)
    return state


def without_twins(
    boxes: npt.NDArray[np.float32],
    merits: npt.NDArray[np.float64],
    exist: npt.NDArray[np.bool_],
    behind: npt.NDArray[np.float64],
) -> npt.NDArray[np.intp]:
    """Return the places of boxes that are no twin of a better one, ascending.

    Twins lie in the same place, and noise decides which of them is the better one. It drops the
    other, and whichever is left is the same box: detectors find one from several sizes of anchors,
    or from several that the picture's edges cut to the same.

    Args:
        boxes: (n, 4), the best first.
        merits: (n,), descending.
        exist: (n,): whether a box is one at all in any case.
        behind: (n,): a box of less merit than this comes behind it in any case.
    """
    if not len(boxes):
        return np.arange(0)
    _, first, which = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    best = first[which.reshape(-1)]
    twins = (best != np.arange(len(boxes))) & (merits >= behind[best]) & exist[best]
    return np.flatnonzero(~twins)


def slack_of(boxes: npt.NDArray[np.float32], error: float) -> npt.NDArray[np.float64]:
    """Return by how much the overlaps of boxes may be off whose edges are off by ``error``.

    Of two boxes the larger of both figures counts: intersection and union change by at most the
    error times the edges, each.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3).astype(np.float64)
    found: npt.NDArray[np.float64] = 8 * error * (1 / sides).sum(axis=1)
    return found


@cache
def _kernels() -> Kernels:
    """Compile the loops, which takes a second.

    They stand inside of this function, though it is long, as numba compiles them with the types
    that are made here, when they are first needed.
    """
    floats = [types.Array(types.float32, count, "C") for count in range(5)]
    words, doubles, bytes_ = (
        types.Array(kind, 1, "C") for kind in (types.int64, types.float64, types.uint8)
    )

    @njit(
        types.void(
            floats[4], floats[2], words, floats[4], types.float32, *[types.intp] * 4
        ),
        nogil=True,
        fastmath={"contract"},
    )  # fmt: skip
    def pool(
        x: Array, regions: Array, places: Array, out: Array,
        scale: float, ratio: int, start: int, first: int, last: int,  # noqa: ARG001
    ) -> None:  # fmt: skip
        _, height, width, channels = x.shape
        side = out.shape[1]
        one, nothing = np.float32(1), np.float32(0)
        share = one / np.float32(ratio * ratio)
        for number in range(first, last):
            frame = x[np.int64(regions[number, 0])]
            left, top = regions[number, 1] * scale, regions[number, 2] * scale
            across = max(regions[number, 3] * scale - left, one) / np.float32(side)
            down = max(regions[number, 4] * scale - top, one) / np.float32(side)
            target = out[places[number]]
            for i in range(side):
                for j in range(side):
                    made = target[i, j]
                    for channel in range(channels):
                        made[channel] = nothing
                    for k in range(ratio * ratio):
                        y = top + np.float32(i) * down
                        y += (np.float32(k // ratio) + np.float32(0.5)) * down / np.float32(ratio)
                        z = left + np.float32(j) * across
                        z += (np.float32(k % ratio) + np.float32(0.5)) * across / np.float32(ratio)
                        if y < -1 or y > height or z < -1 or z > width:
                            continue
                        y, z = max(y, nothing), max(z, nothing)
                        up, by = np.int64(y), np.int64(z)
                        if up >= height - 1:
                            up = height - 1
                            y = np.float32(up)
                        if by >= width - 1:
                            by = width - 1
                            z = np.float32(by)
                        below, beside = min(up + 1, height - 1), min(by + 1, width - 1)
                        low, far = y - np.float32(up), z - np.float32(by)
                        a = (one - low) * (one - far) * share
                        b = (one - low) * far * share
                        c = low * (one - far) * share
                        d = low * far * share
                        p, q = frame[up, by], frame[up, beside]
                        r, s = frame[below, by], frame[below, beside]
                        for channel in range(channels):
                            made[channel] += (
                                a * p[channel] + b * q[channel] + c * r[channel] + d * s[channel]
                            )

    @njit(
        types.void(
            floats[2], doubles, words, bytes_, doubles, doubles, types.float64, bytes_
        ),
        nogil=True,
    )  # fmt: skip
    def keep(
        boxes: Array, merits: Array, kinds: Array, exist: Array, behind: Array, slack: Array,
        limit: float, state: Array,
    ) -> None:  # fmt: skip
        count = len(boxes)
        for i in range(count):
            if state[i] == DROPPED:
                continue
            if exist[i] == 0:
                state[i] = PERHAPS
            area = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            for sweep in range(2):
                # The boxes that might be better after all come first: they make this one uncertain.
                for j in range(i + 1, count):
                    near = merits[j] >= behind[i]
                    if sweep == 0 and not near:
                        break
                    if kinds[j] != kinds[i] or state[j] == DROPPED:
                        continue
                    width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
                    height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
                    if width <= 0 or height <= 0:
                        continue
                    common = width * height
                    other = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
                    overlap = common / (area + other - common)
                    off = max(slack[i], slack[j])
                    if overlap <= limit - off:
                        continue
                    if sweep == 0:
                        state[i] = PERHAPS
                    elif not near and state[i] == KEPT and overlap > limit + off:
                        state[j] = DROPPED
                    else:
                        state[j] = PERHAPS

    return Kernels(pool, keep)
