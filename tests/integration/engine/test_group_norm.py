"""worker.cpu.group_norm: torch's group normalisation, and what comes after it."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from worker.cpu import fused, group_norm

#: Of the largest value of the outcome: how far each type of numbers is from fp64. These kernels
#: know bf16 on any processor.
NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.04}


def norm_of(channels: int, groups: int) -> nn.GroupNorm:
    """Return a normalisation that has learnt something."""
    norm = nn.GroupNorm(groups, channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels))
    return norm


@settings(max_examples=80, deadline=None)
@given(
    frames=st.integers(1, 5),
    channels=st.sampled_from([(16, 1), (32, 32), (64, 32), (96, 8), (256, 32)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mean=st.sampled_from([0.0, 3.0, -200.0]),
    dtype=st.sampled_from(list(NEAR)),
    threads=st.sampled_from([1, 2, 3, 16]),
    relu=st.booleans(),
    added=st.booleans(),
    channels_last=st.booleans(),
)
def test_frames_of_any_size_are_torchs(
    frames: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    mean: float,
    dtype: torch.dtype,
    threads: int,
    *,
    relu: bool,
    added: bool,
    channels_last: bool,
) -> None:
    """Whole frames or parts of them for a thread; what is added, and the ReLU.

    A frame's bits are the same beside others and alone, by one thread and by many.
    """
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    norm = norm_of(*channels)
    x = (torch.randn(frames, channels[0], *size) + mean).to(dtype).contiguous(memory_format=layout)
    other = torch.randn(x.shape).to(dtype).contiguous(memory_format=layout)
    # In fp64: with a large mean, torch's own fp32 is farther away.
    grouped = x.double().reshape(frames, norm.num_groups, -1)
    apart = grouped - grouped.mean(-1, keepdim=True)
    wanted = (apart / (apart.square().mean(-1, keepdim=True) + norm.eps).sqrt()).reshape(x.shape)
    wanted = wanted * norm.weight[:, None, None] + norm.bias[:, None, None]
    wanted = wanted + other.double() if added else wanted
    wanted = (wanted.relu() if relu else wanted).detach()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = group_norm.normed(norm, x.clone(), relu=relu, other=other if added else None)
    finally:
        torch.set_num_threads(before)
    alone = group_norm.normed(norm, x[-1:].clone(), relu=relu, other=other[-1:] if added else None)
    assert (made.dtype, made.shape) == (dtype, wanted.shape)
    assert bool((made[-1:] == alone).all())
    # A frame of few pixels that are all alike has no variance: what is left of it is rounding.
    near = 3 * NEAR[dtype] * max(1.0, abs(mean)) * (float(wanted.abs().max()) or 1.0)
    if size[0] * size[1] * channels[0] // channels[1] > 8:
        torch.testing.assert_close(made.double(), wanted, rtol=0, atol=near)


@pytest.mark.parametrize("dtype", NEAR)
def test_what_is_not_a_number_stays_none(dtype: torch.dtype) -> None:
    """A network gone mad is not taken for one that sees nothing; other groups are untouched."""
    x = torch.randn(1, 32, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    x[0, 5, 2, 2] = torch.nan
    made = group_norm.normed(norm_of(32, 2), x, relu=True)
    assert bool(made[0, :16].isnan().all())
    assert not bool(made[0, 16:].isnan().any())


def test_what_does_not_fit_is_not_added() -> None:
    """A model whose branches differ in size is an error, not a read of other memory."""
    x = torch.randn(1, 32, 9, 9)
    for other in (torch.randn(1, 32, 9, 8), torch.randn(1, 32, 9, 9).double()):
        with pytest.raises(ValueError, match="can't be added"):
            group_norm.normed(norm_of(32, 2), x, relu=True, other=other)


@pytest.mark.parametrize("fuse", [fused.fuse, fused.fuse_tiled])
def test_each_normalisation_of_a_resnet_is_done_so(fuse: object) -> None:
    """DeepLabCut's ResNet-50 is timm's ``resnet50_gn``: none of its 53 is left to torch."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50_gn", pretrained=False).eval()
    for each in model.modules():
        if isinstance(each, nn.GroupNorm):
            nn.init.normal_(each.weight)
            nn.init.normal_(each.bias)
    x = torch.randn(2, 3, 96, 64).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = model.forward_features(x)
        fuse(model)  # type: ignore[operator]
        made = model.to(memory_format=torch.channels_last).forward_features(x)
    assert sum(isinstance(each, fused.Normed) for each in model.modules()) == 53
    assert float((made - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
