"""precision.guard on every architecture that DeepLabCut builds: other forms, the same outcome."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.config.pose import PoseConfig
from deeplabcut.pose_estimation_pytorch.models import PoseModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from worker import hardware
from worker.cpu.fused import Block, Doubling, PafHead, Tiled, fuse
from worker.engine.loaded import LoadedModel
from worker.precision.variants import ModelVariants

#: With residual blocks that are done in one. DeepLabCut's ResNet-50 has GroupNorm by default.
RESIDUAL = [
    "resnet_50 of BatchNorm",
    "resnet_101",
    "hrnet_w18",
    "hrnet_w32",
    "dekr_w18",
    "dlcrnet_stride16_ms5",
    "dlcrnet_stride32_ms5",
    "resnet_50",
    "top_down_resnet_50",
]
OTHERS = ["cspnext_s", "rtmpose_s"]
#: What oneDNN's convolutions take on this processor.
MULTIPLIED = [torch.float32, *filter(None, [hardware.native_dtype(torch.device("cpu"))])]


def build(folder: Path, net_type: str) -> Any:
    """Return a network of this kind, with weights that leave no part of it without effect."""
    net_type, _, kind = net_type.partition(" ")
    several = not net_type.startswith(("resnet", "hrnet", "cspnext"))
    parts = ["snout", "tail", "ear"]
    project = {
        "Task": "t", "scorer": "s", "date": "d", "project_path": str(folder), "engine": "pytorch",
        "multianimalproject": several, "identity": False, "video_sets": {}, "uniquebodyparts": [],
        "bodyparts": "MULTI!" if several else parts,
        "multianimalbodyparts": parts if several else [],
        "individuals": ["ada", "bob"] if several else ["ada"],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(project))
    config = PoseConfig.build(
        folder / "config.yaml", folder / "pytorch_config.yaml", net_type=net_type,
        top_down=net_type.startswith(("top_down", "rtmpose")),
    )  # fmt: skip
    described = dict(config["model"])
    if kind:
        described["backbone"] = {**described["backbone"], "model_name": "resnet50"}
    torch.manual_seed(0)
    model = PoseModel.build(described).eval()
    for name, value in model.state_dict().items():
        # timm begins with the last normalisation of each block at 0: its convolutions do nothing.
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        elif value.dim() == 1 and name.endswith("weight"):
            value.uniform_(0.4, 0.8)
    return model


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn((count, height, width, 3), generator=generator)
    return noise.permute(0, 3, 1, 2)  # channels last, as frames come


def assert_alike(ours: Any, stock: Any, share: float) -> None:
    """Each map of each head, within this share of its largest value."""
    assert {head: set(maps) for head, maps in ours.items()} == {
        head: set(maps) for head, maps in stock.items()
    }
    for head, maps in stock.items():
        for name, value in maps.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(ours[head][name], value, rtol=0, atol=share * scale)


@pytest.mark.parametrize("net_type", [*RESIDUAL, *OTHERS])
def test_exact_and_fast_forms_find_what_deeplabcuts_network_finds(
    net_type: str, tmp_path: Path
) -> None:
    """On batches of changing sizes: exactly, and in bfloat16 as near as bfloat16 is."""
    stock = build(tmp_path, net_type)
    variants = ModelVariants(build(tmp_path, net_type), "cpu")
    fast = variants.form("bf16", variants.kinds("bf16")[-1])
    blocks = [part for part in variants.exact.modules() if type(part) is Block]
    assert bool(blocks) == (net_type in RESIDUAL)
    for form in (variants.exact, fast):
        joined = any(type(part) is PafHead for part in form.modules())
        assert joined == net_type.startswith("dlcrnet")
        assert any(type(part) is Doubling for part in form.modules()) == joined
    assert variants.exact is not variants.plain
    # A new CSPNeXt errs by as much as is allowed before anything is saved; it gains nothing by it.
    errs = net_type.startswith(("cspnext", "rtmpose"))
    assert variants.tiled() is not variants.exact or errs
    with torch.inference_mode():
        # A top-down network has one size.
        side = 256 if net_type.startswith(("top_down", "rtmpose")) else 128
        for count in (1, 2, 1):
            x = pictures(count, side, side)
            before = x.clone()
            wanted = stock(x)
            assert_alike(variants.exact(x), wanted, 1e-4)
            assert_alike(variants.plain(x), wanted, 1e-4)
            assert_alike(variants.tiled()(x), wanted, 1e-4)
            assert_alike(fast(x), wanted, 0.2)
            assert torch.equal(x, before)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(MULTIPLIED),
    bias=st.booleans(),
)
def test_a_deconvolution_by_convolutions_is_torchs(
    size: tuple[int, int, int], channels: tuple[int, int], dtype: torch.dtype, bias: bool
) -> None:
    """Of any height and width; in bfloat16 each value is rounded once, as torch rounds it."""
    plain = nn.ConvTranspose2d(*channels, 3, 2, 1, 1, bias=bias)
    network = nn.Sequential(plain).to(dtype).eval()
    n, height, width = size
    x = torch.randn((n, channels[0], height, width)).to(dtype)
    with torch.inference_mode():
        wanted = copy.deepcopy(plain).double()(x.double())
        assert fuse(network) == 1
        found = network(x.contiguous(memory_format=torch.channels_last))
    assert type(network[0]) is Doubling
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near / 8)


def test_a_network_that_takes_one_size_of_pictures_is_tried_on_that(tmp_path: Path) -> None:
    """RTMPose's larger ones are for crops of 384 x 384: tried on others they would stay slow."""
    variants = ModelVariants(build(tmp_path, "rtmpose_x"), "cpu", (384, 384))
    assert variants.exact is not variants.plain


def test_what_a_fused_network_takes_is_counted(tmp_path: Path) -> None:
    """The weights that oneDNN lays out for itself are within the bound of bytes too."""
    variants = ModelVariants(build(tmp_path, "resnet_50"), "cpu")
    model = LoadedModel(NoDetector, variants, padding=None)  # type: ignore[arg-type]
    weights = 4 * sum(value.numel() for value in variants.exact.parameters())
    assert model.bytes == pytest.approx(weights, rel=0.02)
    with torch.inference_mode():
        variants.exact(pictures(1, 128, 128))
        assert model.bytes == pytest.approx(2 * weights, rel=0.02)
        variants.tiled()(pictures(1, 128, 128))
        whole = [p.plain.weight.nbytes for p in variants.tiled().modules() if isinstance(p, Tiled)]
        exact = 3 * weights + 3 * sum(whole)
        assert model.bytes == pytest.approx(exact, rel=0.02)
        if hardware.native_dtype(torch.device("cpu")) is not None:
            variants.form("bf16", "winograd")(pictures(1, 128, 128))
            assert model.bytes == pytest.approx(exact + weights + 1.5 * sum(whole), rel=0.02)


class NoDetector:
    """A loaded model's other half."""

    detector = None
