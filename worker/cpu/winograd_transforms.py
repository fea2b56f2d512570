"""The transforms of Winograd's F(4x4, 3x3), as code that a processor runs on 16 channels at once.

By torch's operators they would take the time that is saved (:mod:`worker.cpu.lanes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types

from worker.cpu.lanes import FLOATS, LANES, Array, Numbers, inlined, splat

#: Pixels a side of an output tile, and of the input that it takes.
OUT, IN = 4, 6
_B = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)
_A = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)

_INDEX = ir.IntType(64)


@dataclass(frozen=True)
class Kernels:
    """The transforms for one type of numbers; each does the rows of tiles from first to last."""

    tile: Callable[..., None]
    """(x, tiles, dilation, first, last): of x, padded, into tiles."""
    untile: Callable[..., None]
    """(products, made, bias, other, floor, dilation, first, last): of products, into made."""


@cache
def kernels(dtype: torch.dtype) -> Kernels:
    """Compile the kernels, which takes a second or two.

    Of more than one frame, and of the dilation^2 grids of pixels that a dilated convolution sees
    one by one, the tiles lie one after the other.
    """
    numbers = Numbers(dtype)
    tile_of, pixels_of, size = _tile_of(numbers), _pixels_of(numbers), numbers.bits // 8
    # Of any strides, or it would compile for each.
    images, lines = (types.Array(numbers.kind, count, "A") for count in (4, 2))
    floats = types.Array(types.float32, 1, "C")

    @njit(types.void(images, lines, *[types.intp] * 4), nogil=True)
    def tile(x: Array, tiles: Array, dilation: int, start: int, first: int, last: int) -> None:
        _, height, width, channels = x.shape
        down = (height + dilation * OUT - 1) // (dilation * OUT)
        across = (width + dilation * OUT - 1) // (dilation * OUT)
        nothing = np.zeros(LANES, np.float32)
        for row in range(first, last):
            grid = row // down
            top = row % down * OUT * dilation + grid // dilation % dilation - dilation
            left = grid % dilation - dilation
            frame = x[grid // dilation // dilation]
            for column in range(across):
                made = tiles[(row - start) * across + column]
                for channel in range(0, channels, LANES):
                    tile_of(
                        frame.ctypes.data + channel * size,
                        nothing.ctypes.data,
                        top,
                        left + column * OUT * dilation,
                        dilation,
                        height,
                        width,
                        frame.strides[0],
                        frame.strides[1],
                        made.ctypes.data + channel * size,
                        channels * size,
                    )

    @njit(types.void(lines, images, floats, images, types.float32, *[types.intp] * 4), nogil=True)
    def untile(
        products: Array, made: Array, bias: Array, other: Array, floor: float,
        dilation: int, start: int, first: int, last: int,
    ) -> None:  # fmt: skip
        _, height, width, channels = made.shape
        down = (height + dilation * OUT - 1) // (dilation * OUT)
        across = (width + dilation * OUT - 1) // (dilation * OUT)
        dump = np.zeros(LANES, np.float32)
        for row in range(first, last):
            grid = row // down
            top = row % down * OUT * dilation + grid // dilation % dilation
            frame, added = made[grid // dilation // dilation], other[grid // dilation // dilation]
            for column in range(across):
                left = column * OUT * dilation + grid % dilation
                product = products[(row - start) * across + column]
                for channel in range(0, channels, LANES):
                    pixels_of(
                        product.ctypes.data + channel * size,
                        channels * size,
                        bias.ctypes.data + channel * 4,
                        floor,
                        top,
                        left,
                        dilation,
                        height,
                        width,
                        frame.ctypes.data + channel * size,
                        frame.strides[0],
                        frame.strides[1],
                        added.ctypes.data + channel * size,
                        added.strides[0],
                        added.strides[1],
                        dump.ctypes.data,
                    )

    return Kernels(tile, untile)


def _combined(
    builder: ir.IRBuilder, matrix: Sequence[Sequence[float]], values: Sequence[ir.Value]
) -> list[ir.Value]:
    """Return the product of a matrix and a column of vectors."""
    made = []
    for row in matrix:
        total = None
        for factor, value in zip(row, values, strict=True):
            if factor == 0:
                continue
            part = value
            if abs(factor) != 1:
                part = builder.fmul(splat(FLOATS, abs(factor)), value, flags=["contract"])
            if total is None:
                total = part if factor > 0 else builder.fneg(part, flags=["contract"])
            elif factor > 0:
                total = builder.fadd(total, part, flags=["contract"])
            else:
                total = builder.fsub(total, part, flags=["contract"])
        made.append(total)
    return made


def _sandwiched(
    builder: ir.IRBuilder, matrix: Sequence[Sequence[float]], tile: list[list[ir.Value]]
) -> list[list[ir.Value]]:
    """Return the product of a matrix, a tile and the matrix transposed."""
    columns = [_combined(builder, matrix, column) for column in zip(*tile, strict=True)]
    return [_combined(builder, matrix, row) for row in zip(*columns, strict=True)]


def _tile_of(numbers: Numbers) -> Any:
    """Return a function of numba's: 6x6 pixels of an image to a tile.

    Its arguments: the image's address; that of zeros; top and left of the tile; the dilation; the
    image's height, width, and bytes from pixel to pixel down and across; the address of the tile,
    and bytes from element to element.
    """

    def write(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
        image, zeros, top, left, step, height, width, down, across, tile, apart = arguments
        lines = [_at(builder, top, step, i, height, down) for i in range(IN)]
        posts = [_at(builder, left, step, i, width, across) for i in range(IN)]
        pixels = []
        for within, line in lines:
            start = builder.add(image, line)
            places = [
                builder.select(builder.and_(within, also), builder.add(start, post), zeros)
                for also, post in posts
            ]
            pixels.append([numbers.load(builder, place) for place in places])
        for number, value in enumerate(chain.from_iterable(_sandwiched(builder, _B, pixels))):
            numbers.store(builder, value, _element(builder, tile, apart, number))

    return inlined([types.uintp, types.uintp, *[types.intp] * 7, types.uintp, types.intp], write)


def _pixels_of(numbers: Numbers) -> Any:
    """Return a function of numba's: a tile of products to 4x4 pixels of an image.

    Its arguments: the tile's address, and bytes from element to element; the address of the biases;
    the least value; top and left of the pixels; the dilation; the image's height and width; its
    address and bytes from pixel to pixel down and across; the same of what is to be added; the
    address of 64 bytes that nobody reads.
    """

    def write(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
        (
            tile, apart, bias, least, top, left, step, height, width,
            image, down, across, other, other_down, other_across, dump,
        ) = arguments  # fmt: skip
        products = [
            [numbers.load(builder, _element(builder, tile, apart, IN * i + j)) for j in range(IN)]
            for i in range(IN)
        ]
        biases = builder.load(builder.inttoptr(bias, FLOATS.as_pointer()), align=4)
        floor = ir.Constant(FLOATS, ir.Undefined)
        for lane in range(LANES):
            floor = builder.insert_element(floor, least, ir.IntType(32)(lane))
        values = _sandwiched(builder, _A, products)
        for i in range(OUT):
            within, line = _at(builder, top, step, i, height, down)
            _, other_line = _at(builder, top, step, i, height, other_down)
            for j in range(OUT):
                also, post = _at(builder, left, step, j, width, across)
                _, other_post = _at(builder, left, step, j, width, other_across)
                inside = builder.and_(within, also)
                added = builder.add(other, builder.add(other_line, other_post))
                added = numbers.load(builder, builder.select(inside, added, dump))
                value = builder.fadd(builder.fadd(values[i][j], biases), added)
                # What is not a number stays none.
                below = builder.fcmp_ordered("<", value, floor)
                place = builder.add(image, builder.add(line, post))
                place = builder.select(inside, place, dump)
                numbers.store(builder, builder.select(below, floor, value), place)

    image = [types.uintp, types.intp, types.intp]
    return inlined(
        [
            types.uintp, types.intp, types.uintp, types.float32, *[types.intp] * 5,
            *image, *image, types.uintp,
        ],
        write,
    )  # fmt: skip


def _at(
    builder: ir.IRBuilder,
    first: ir.Value,
    step: ir.Value,
    number: int,
    end: ir.Value,
    apart: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Return whether the pixel ``number`` steps behind the first is in the image, and its bytes."""
    pixel = builder.add(first, builder.mul(step, _INDEX(number)))
    return builder.icmp_unsigned("<", pixel, end), builder.mul(pixel, apart)


def _element(builder: ir.IRBuilder, tile: ir.Value, apart: ir.Value, number: int) -> ir.Value:
    return builder.add(tile, builder.mul(apart, _INDEX(number)))
