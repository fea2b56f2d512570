"""A group normalisation with what comes after it, in two passes over memory instead of five.

DeepLabCut's ResNet-50 has a group normalisation (Wu & He, arXiv:1803.08494) behind each of its 53
convolutions, which can't be folded into them as a batch normalisation can. torch computes it, the
sum with a block's shortcut and the ReLU one after the other: with two processors that took a third
of the network's time. Here a frame is read for its mean and variance, then once more, while it is
in the processor's caches, to be scaled, added to and cut at zero.

The outcome does not depend on how many frames come at once or on how many threads there are: sums
are of the same pixels in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from timm.layers.norm import GroupNorm
from torch import Tensor, nn

from worker.cpu.lanes import FLOATS, LANES, Array, Numbers, array_of, inlined, run_on_threads

#: Pixels whose sums, of values and of squares, are fp32; the sums of these are fp64.
_TOGETHER = 8
#: Threads at most, and bytes for one at least: Python hands out to them, which takes time, too.
_MOST_THREADS, _THREAD_BYTES = 8, 1 << 18
#: Parts of a frame, each of which a thread may have, and the least pixels of one.
_MOST_PARTS, _LEAST_PIXELS = 8, 256


def suits(norm: Any) -> bool:
    """Tell whether a module is a group normalisation that :func:`normed` computes."""
    return (
        type(norm) in {nn.GroupNorm, GroupNorm}
        and norm.weight is not None
        and norm.num_channels % LANES == 0
        and not norm._forward_hooks
    )


def normed(norm: nn.GroupNorm, x: Tensor, *, relu: bool, other: Tensor | None = None) -> Tensor:
    """Return x, normalised, added to ``other``, after a ReLU; it takes the place of x.

    Args:
        norm: one that :func:`suits`.
        x: (n, channels, height, width), fp32 or bf16; nobody else's.
        relu: whether what is below zero becomes zero.
        other: to be added, of x's shape and type.

    Raises:
        ValueError: ``other`` is of another shape or type.
    """
    if other is not None and (other.shape, other.dtype) != (x.shape, x.dtype):
        raise ValueError(f"{tuple(other.shape)} can't be added to {tuple(x.shape)}")
    made = _lines(x)
    n, pixels, channels = made.shape
    nothing = torch.zeros(channels, dtype=x.dtype).expand(made.shape)
    added = nothing if other is None else _lines(other)
    weights = (norm.weight.detach().float().numpy(), norm.bias.detach().float().numpy())
    floor = np.float32(0.0 if relu else -math.inf)
    parts = max(1, min(_MOST_PARTS, pixels // _LEAST_PIXELS))
    of = kernels(x.dtype)
    sums = np.empty((n, parts, 2, channels))
    factors = np.empty((n, 2, channels), np.float32)
    how = (norm.num_groups, norm.eps)
    frames = (array_of(made), array_of(added), sums, factors)
    # Whole frames, as many for each thread; what is left over, by parts of frames.
    threads = max(1, min(torch.get_num_threads(), _MOST_THREADS, made.nbytes // _THREAD_BYTES))
    whole = n - n % threads
    if whole:
        run_on_threads(of.whole, (*frames, *weights, *how, floor), 0, whole, threads)
    if whole < n:
        first, last = whole * parts, n * parts
        run_on_threads(of.add_up, (frames[0], sums), first, last, threads)
        of.derive(sums, factors, *weights, *how, pixels, whole, n)
        run_on_threads(of.scale, (*frames[:2], factors, parts, floor), first, last, threads)
    return made.reshape(n, *x.shape[2:], channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Kernels:
    """What is computed for one type of numbers.

    Frames are (n, pixels, channels); sums (n, parts, 2, channels) of values and of squares; factors
    (n, 2, channels), by which a frame is multiplied, and what is added.
    """

    whole: Callable[..., None]
    """(frames, other, sums, factors, weight, bias, groups, eps, floor, start, first, last): all
    that is done to the frames from first to last."""
    add_up: Callable[..., None]
    """(frames, sums, start, first, last): the sums of these parts."""
    derive: Callable[..., None]
    """(sums, factors, weight, bias, groups, eps, pixels, first, last): the factors of frames."""
    scale: Callable[..., None]
    """(frames, other, factors, parts, floor, start, first, last): what is done by them to parts."""


@cache
def kernels(dtype: torch.dtype) -> Kernels:
    """Compile the kernels, which takes a second."""
    numbers = Numbers(dtype)
    size, together = numbers.bits // 8, _TOGETHER
    add, add_one = _add_of(numbers, together), _add_of(numbers, 1)
    scaled = _scaled_of(numbers)
    frames, others = types.Array(numbers.kind, 3, "C"), types.Array(numbers.kind, 3, "A")
    sums_, factors_ = types.Array(types.float64, 4, "C"), types.Array(types.float32, 3, "C")
    weights, whole_number = types.Array(types.float32, 1, "C"), types.intp

    @njit(types.void(frames, sums_, *[whole_number] * 2), nogil=True)
    def add_up_part(x: Array, sums: Array, frame: int, part: int) -> None:
        _, pixels, channels = x.shape
        first, last = pixels * part // sums.shape[1], pixels * (part + 1) // sums.shape[1]
        line = channels * size
        start = x.ctypes.data + (frame * pixels) * line
        into = sums[frame, part]
        into[:] = 0.0
        values, squares = into[0].ctypes.data, into[1].ctypes.data
        full = first + (last - first) // together * together
        for pixel in range(first, full, together):
            for channel in range(0, channels, LANES):
                at = start + pixel * line + channel * size
                add(at, line, values + channel * 8, squares + channel * 8)
        for pixel in range(full, last):
            for channel in range(0, channels, LANES):
                at = start + pixel * line + channel * size
                add_one(at, line, values + channel * 8, squares + channel * 8)

    @njit(
        types.void(
            sums_, factors_, weights, weights, whole_number, types.float64, *[whole_number] * 3
        ),
        nogil=True,
    )
    def derive(
        sums: Array, factors: Array, weight: Array, bias: Array, groups: int, eps: float,
        pixels: int, first: int, last: int,
    ) -> None:  # fmt: skip
        parts, channels = sums.shape[1], sums.shape[3]
        one = channels // groups
        for frame in range(first, last):
            for group in range(groups):
                value = square = 0.0
                for part in range(parts):
                    for channel in range(group * one, (group + 1) * one):
                        value += sums[frame, part, 0, channel]
                        square += sums[frame, part, 1, channel]
                mean = value / (one * pixels)
                variance = square / (one * pixels) - mean * mean
                # What is not a number stays none.
                variance = 0.0 if variance < 0.0 else variance
                for channel in range(group * one, (group + 1) * one):
                    factor = weight[channel] / math.sqrt(variance + eps)
                    factors[frame, 0, channel] = factor
                    factors[frame, 1, channel] = bias[channel] - mean * factor

    @njit(types.void(frames, others, factors_, types.float32, *[whole_number] * 3), nogil=True)
    def scale_part(
        x: Array, other: Array, factors: Array, floor: float, frame: int, part: int, parts: int
    ) -> None:
        _, pixels, channels = x.shape
        line = channels * size
        start = x.ctypes.data + frame * pixels * line
        added = other.ctypes.data + frame * other.strides[0]
        apart = other.strides[1]
        factor, addend = factors[frame, 0].ctypes.data, factors[frame, 1].ctypes.data
        for pixel in range(pixels * part // parts, pixels * (part + 1) // parts):
            for channel in range(0, channels, LANES):
                scaled(
                    start + pixel * line + channel * size,
                    added + pixel * apart + channel * size,
                    factor + channel * 4,
                    addend + channel * 4,
                    floor,
                )

    @njit(
        types.void(
            frames, others, sums_, factors_, weights, weights, whole_number, types.float64,
            types.float32, *[whole_number] * 3,
        ),
        nogil=True,
    )  # fmt: skip
    def whole(
        x: Array, other: Array, sums: Array, factors: Array, weight: Array, bias: Array,
        groups: int, eps: float, floor: float, _: int, first: int, last: int,
    ) -> None:  # fmt: skip
        parts = sums.shape[1]
        for frame in range(first, last):
            for part in range(parts):
                add_up_part(x, sums, frame, part)
            derive(sums, factors, weight, bias, groups, eps, x.shape[1], frame, frame + 1)
            for part in range(parts):
                scale_part(x, other, factors, floor, frame, part, parts)

    @njit(types.void(frames, sums_, *[whole_number] * 3), nogil=True)
    def add_up(x: Array, sums: Array, _: int, first: int, last: int) -> None:
        parts = sums.shape[1]
        for row in range(first, last):
            add_up_part(x, sums, row // parts, row % parts)

    @njit(
        types.void(frames, others, factors_, whole_number, types.float32, *[whole_number] * 3),
        nogil=True,
    )
    def scale(
        x: Array, other: Array, factors: Array, parts: int, floor: float, _: int, first: int,
        last: int,
    ) -> None:  # fmt: skip
        for row in range(first, last):
            scale_part(x, other, factors, floor, row // parts, row % parts, parts)

    return Kernels(whole, add_up, derive, scale)


def _add_of(numbers: Numbers, count: int) -> Any:
    """Return a function of numba's: of the same 16 channels of pixels, add up values and squares.

    Its arguments: the address of the first pixel's; bytes from pixel to pixel; the addresses of the
    sums of values and of squares, fp64.
    """
    doubles = ir.VectorType(ir.DoubleType(), LANES)

    def write(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
        at, apart, values, squares = arguments
        pixels = []
        for _ in range(count):
            pixels.append(numbers.load(builder, at))
            at = builder.add(at, apart)
        value, square = pixels[0], builder.fmul(pixels[0], pixels[0])
        for pixel in pixels[1:]:
            value = builder.fadd(value, pixel)
            product = builder.fmul(pixel, pixel, flags=["contract"])
            square = builder.fadd(square, product, flags=["contract"])
        for total, address in ((value, values), (square, squares)):
            place = builder.inttoptr(address, doubles.as_pointer())
            before = builder.load(place, align=8)
            builder.store(builder.fadd(before, builder.fpext(total, doubles)), place, align=8)

    return inlined([types.uintp, types.intp, types.uintp, types.uintp], write)


def _scaled_of(numbers: Numbers) -> Any:
    """Return a function of numba's: scale 16 channels of a pixel, add to them, cut them.

    Its arguments: their address; that of what is added, of the factors and of the addends, fp32;
    the least value.
    """

    def write(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
        at, other, factors, addends, least = arguments
        factor, addend = (
            builder.load(builder.inttoptr(each, FLOATS.as_pointer()), align=4)
            for each in (factors, addends)
        )
        floor = ir.Constant(FLOATS, ir.Undefined)
        for lane in range(LANES):
            floor = builder.insert_element(floor, least, ir.IntType(32)(lane))
        product = builder.fmul(numbers.load(builder, at), factor, flags=["contract"])
        value = builder.fadd(product, addend, flags=["contract"])
        value = builder.fadd(value, numbers.load(builder, other))
        # What is not a number stays none.
        below = builder.fcmp_ordered("<", value, floor)
        numbers.store(builder, builder.select(below, floor, value), at)

    return inlined([*[types.uintp] * 4, types.float32], write)


def _lines(x: Tensor) -> Tensor:
    """Return (n, pixels, channels), channels side by side in memory."""
    last = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return last.reshape(x.shape[0], -1, x.shape[1])
