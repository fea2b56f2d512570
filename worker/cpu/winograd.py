"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

An output tile of 4x4 pixels is made from 6x6 of the input. Both are transformed by small matrices,
and between them stands one multiplication of channels by weights for each of 36 elements: 36 for
what takes 144. The method is Lavin & Gray's (arXiv:1509.09308), its points 0, 1, -1, 1/2, -2 those
of four outputs that err least (Barabasz et al., arXiv:1803.10986): in fp32 by some millionths of
the largest value. cuDNN computes so on a GPU.

The multiplications are oneDNN's, a convolution of 1x1 in 36 groups; the transforms are those of
:mod:`worker.cpu.winograd_transforms`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.cpu.lanes import LANES, array_of, run_on_threads
from worker.cpu.winograd_transforms import IN, OUT, kernels

#: With fewer, the transforms take what the multiplications save.
LEAST_CHANNELS = 64
#: Of those without tiles, this share is worth the transforms; a quarter where all tiles are full.
MOST_MULTIPLICATIONS = 0.4
#: Of tiles and products at once, roughly: they should stay in the processor's caches.
BAND_BYTES = 8 << 20

_G = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
#: Of the convolution that multiplies: padding, stride, dilation, groups.
_MULTIPLY: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], IN * IN)


def suits(convolution: nn.Conv2d) -> bool:
    """Tell whether a convolution, padded by zeros, can be computed so, and is large enough."""
    dilation = convolution.dilation[0]
    channels = (convolution.in_channels, convolution.out_channels)
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.groups == 1
        and {*convolution.dilation, *convolution.padding} == {dilation}
        and min(channels) >= LEAST_CHANNELS
        and all(count % LANES == 0 for count in channels)
    )


def pays(x: Tensor, dilation: int) -> bool:
    """Tell whether x, of any number of channels, fills the tiles that it is cut into."""
    height, width = x.shape[2:]
    tiles = _grid_rows(x, dilation) * _across(width, dilation)
    return tiles * IN * IN <= MOST_MULTIPLICATIONS * 9 * height * width


def layout(x: Tensor, out: int, dilation: int) -> tuple[int, ...]:
    """Return what the layout of :func:`packed` depends on besides the weights."""
    return _band(x, out, dilation), _across(x.shape[3], dilation)


def packed(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """Return weights (out, in, 3, 3) as :func:`convolved` wants them for frames of x's size."""
    out, channels = weight.shape[:2]
    g = torch.tensor(_G, dtype=torch.float64)
    # As one product of matrices: einsum takes three times as long, most of a second of an HRNet.
    groups = torch.kron(g, g) @ weight.detach().reshape(out * channels, -1).double().t()
    groups = groups.to(x.dtype).reshape(-1, channels, 1, 1)
    tiles = _band(x, out, dilation) * _across(x.shape[3], dilation)
    shape = [1, IN * IN * channels, 1, tiles]
    found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(groups, *_MULTIPLY, shape)
    return found


def convolved(
    x: Tensor, weights: Tensor, bias: Tensor, dilation: int, *, relu: bool, other: Tensor | None
) -> Tensor:
    """Return the sum of ``other`` and the convolution of x, which is padded by ``dilation``.

    Args:
        x: (n, in, height, width), fp32 or bf16, channels last in memory.
        weights: of :func:`packed`.
        bias: (out,), fp32.
        other: to be added, of the output's shape and type.

    Raises:
        ValueError: ``other`` is of another shape or type.
    """
    transforms = kernels(x.dtype)
    n, channels, height, width = x.shape
    pixels = array_of(_channels_last(x))
    made = torch.empty((n, height, width, len(bias)), dtype=x.dtype)
    if other is None:
        other = torch.zeros(len(bias), dtype=x.dtype).expand(made.shape)
    else:
        other = _channels_last(other)
        if (other.shape, other.dtype) != (made.shape, made.dtype):
            raise ValueError(f"{tuple(other.shape)} can't be added to {tuple(made.shape)}")
    floor = np.float32(0.0 if relu else -math.inf)
    outcome = (array_of(made), bias.numpy(), array_of(other), floor, dilation)
    rows, band = n * _grid_rows(x, dilation), _band(x, len(bias), dilation)
    tiles = torch.empty((band * _across(width, dilation), IN * IN * channels), dtype=x.dtype)
    for first in range(0, rows, band):
        last = min(first + band, rows)
        run_on_threads(transforms.tile, (pixels, array_of(tiles), dilation), first, last)
        products = torch.ops.mkldnn._convolution_pointwise(
            tiles[None, None].permute(0, 3, 1, 2), weights, None, *_MULTIPLY, "none", [], ""
        )
        products = products.permute(0, 2, 3, 1).reshape(len(tiles), -1)
        run_on_threads(transforms.untile, (array_of(products), *outcome), first, last)
    return made.permute(0, 3, 1, 2)


def _band(x: Tensor, out: int, dilation: int) -> int:
    """Return how many rows of tiles are done at once.

    Large frames are cut; of small ones (a detector's regions are 7x7) several are taken together.
    """
    rows = _grid_rows(x, dilation)
    size = _across(x.shape[3], dilation) * IN * IN * (x.shape[1] + out) * x.element_size()
    bands = max(1, min(rows, round(rows * size / BAND_BYTES)))
    together = min(x.shape[0], max(1, BAND_BYTES // (rows * size)))
    return rows * together if bands == 1 else -(-rows // bands)


def _grid_rows(x: Tensor, dilation: int) -> int:
    """Return a frame's rows of tiles, of all dilation^2 grids that a dilated convolution sees."""
    return dilation * dilation * _across(x.shape[2], dilation)


def _across(pixels: int, dilation: int) -> int:
    return -(-pixels // (dilation * OUT))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
