"""worker.cpu.winograd: torch's convolution, with fewer multiplications."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from worker import hardware
from worker.cpu import fused, winograd

#: Of the largest value of the outcome: how far each type of numbers is from torch's fp32.
NEAR = {torch.float32: 1e-5}
if hardware.native_dtype(torch.device("cpu")) == torch.bfloat16:  # oneDNN knows no others
    NEAR[torch.bfloat16] = 0.04


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 3),
    channels=st.tuples(st.sampled_from([64, 80]), st.sampled_from([64, 96])),
    size=st.tuples(st.integers(1, 37), st.integers(1, 37)),
    dilation=st.integers(1, 4),
    dtype=st.sampled_from(list(NEAR)),
    relu=st.booleans(),
    added=st.booleans(),
    channels_last=st.booleans(),
    band_bytes=st.sampled_from([1, 200_000, winograd.BAND_BYTES]),
)
def test_convolutions_of_any_size_are_torchs(
    frames: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    dilation: int,
    dtype: torch.dtype,
    *,
    relu: bool,
    added: bool,
    channels_last: bool,
    band_bytes: int,
) -> None:
    """Frames that fill no tile, or many; in bands or at once; what is added, and the ReLU."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    into, out = channels
    x = torch.randn(frames, into, *size).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(out, into, 3, 3) / into**0.5 / 3
    bias = torch.randn(out)
    other = torch.randn(frames, out, *size).to(dtype).contiguous(memory_format=layout)
    wanted = functional.conv2d(x.float(), weight, bias, padding=dilation, dilation=dilation)
    wanted = wanted + other.float() if added else wanted
    wanted = wanted.relu() if relu else wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BAND_BYTES", band_bytes)
        packed = winograd.packed(weight, x, dilation)
        made = winograd.convolved(
            x, packed, bias, dilation, relu=relu, other=other if added else None
        )
    assert made.dtype == dtype
    assert made.shape == wanted.shape
    largest = float(wanted.abs().max()) or 1.0
    torch.testing.assert_close(made.float(), wanted, rtol=0, atol=NEAR[dtype] * largest)


@pytest.mark.parametrize("dtype", NEAR)
def test_what_is_not_a_number_stays_none(dtype: torch.dtype) -> None:
    """A network gone mad is not taken for one that sees nothing; far pixels are untouched."""
    x = torch.ones(1, 64, 20, 20, dtype=dtype)
    x[0, 5, 2, 2] = torch.nan
    packed = winograd.packed(torch.ones(64, 64, 3, 3), x, 1)
    made = winograd.convolved(x, packed, torch.zeros(64), 1, relu=True, other=None)
    assert bool(made[0, :, 1:4, 1:4].isnan().all())
    assert not bool(made[0, :, 8:, 8:].isnan().any())


def test_what_does_not_fit_is_not_added() -> None:
    """A model whose branches differ in size is an error, not a read of other memory."""
    x = torch.ones(1, 64, 20, 20)
    packed = winograd.packed(torch.ones(64, 64, 3, 3), x, 1)
    with pytest.raises(ValueError, match="can't be added"):
        winograd.convolved(x, packed, torch.zeros(64), 1, relu=True, other=x[:, :, :10])


@pytest.mark.parametrize(
    "other_kind",
    [
        {"kernel_size": 1, "padding": 0}, {"stride": 2}, {"padding": 0}, {"dilation": 2},
        {"groups": 64}, {"in_channels": 72}, {"out_channels": 32},
    ],
)  # fmt: skip
def test_other_convolutions_are_left_to_torch(other_kind: dict[str, int]) -> None:
    """Strides, groups, other paddings: not what the method is for."""
    usual = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1, "dilation": 1}
    assert winograd.suits(nn.Conv2d(**usual))
    assert not winograd.suits(nn.Conv2d(**{**usual, **other_kind}))


def test_frames_of_changing_size_and_number() -> None:
    """A layer that was laid out for one size serves the next one, tiled or not."""
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
    layer = fused.Tiled(plain, "relu")
    ways = set()
    with torch.inference_mode():
        for frames, height, width in (
            (1, 40, 48),
            (3, 40, 48),
            (1, 3, 5),
            (2, 24, 32),
            (1, 40, 48),
        ):
            x = torch.randn(frames, 64, height, width)
            ways.add(winograd.pays(x, 2))
            torch.testing.assert_close(layer(x), plain(x).relu(), rtol=0, atol=1e-5)
            sum_ = layer.added_to(x, x, inplace=False)
            torch.testing.assert_close(sum_, (plain(x) + x).relu(), rtol=0, atol=1e-5)
    assert ways == {True, False}
