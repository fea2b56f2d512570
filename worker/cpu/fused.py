"""Parts of a network that do in one operation what torch does in several, with the same outcome.

torch runs a convolution, a sum and a ReLU one after the other, each of them through memory, and
lays a convolution's weights out anew at each call. oneDNN can do the three in one, with weights
laid out once: it is what ``torch.compile`` makes of them, had without a compiler. The operators are
private to torch, so nobody should use what is made here without comparing what comes out.

Blocks are those of timm's ResNets and HRNets, which DeepLabCut's backbones are made of, of its own
CSPNeXt and of torchvision's detectors, where their normalisations were folded into the
convolutions. A group normalisation can't be: it is done with what follows it
(:mod:`worker.cpu.group_norm`). Other convolutions gain by their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from deeplabcut.pose_estimation_pytorch.models.heads import DLCRNetHead, HeatmapHead
from deeplabcut.pose_estimation_pytorch.models.modules.csp import CSPConvModule
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops.misc import Conv2dNormActivation

from worker.cpu import group_norm, winograd

#: What comes after a convolution.
After = Literal["relu", "none", "hardswish", "relu6", "swish"]
#: As oneDNN names them, with what they take.
_AFTER: dict[After, tuple[str, list[float]]] = {
    "relu": ("relu", []),
    "none": ("none", []),
    "hardswish": ("hardswish", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "swish": ("swish", []),
}
_ACTIVATIONS: dict[type, After] = {
    nn.ReLU: "relu",
    nn.Hardswish: "hardswish",
    nn.ReLU6: "relu6",
    nn.SiLU: "swish",
}
#: Weights are laid out for so many sizes at once: a detector's convolutions see five.
SIZES = 8
#: When a film begins, so many of those that were used last stay: its batches', most likely.
STAY = 2


class Convolution(nn.Module):
    """A convolution, alone or with what comes after it."""

    def __init__(self, plain: nn.Conv2d, after: After) -> None:
        """Compute what ``plain`` does, by the same weights, and what comes ``after``."""
        super().__init__()
        self.plain = plain
        self._after = after
        self._how = (list(plain.padding), list(plain.stride), list(plain.dilation), plain.groups)
        self._packed: dict[tuple[int, ...], Tensor] = {}

    @property
    def packed_bytes(self) -> int:
        """Bytes that the weights take a second time, as oneDNN wants them."""
        return len(self._packed) * self.plain.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution makes of x, after the ReLU if there is one."""
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._laid_out(x), self.plain.bias, *self._how, *_AFTER[self._after], ""
        )
        return found

    def added_to(self, other: Tensor, x: Tensor, *, inplace: bool) -> Tensor:
        """Return the sum of ``other`` and the convolution of x, after a ReLU.

        Args:
            inplace: ``other`` is nobody else's; the sum may take its place.
        """
        how: tuple[Any, ...] = (
            self._laid_out(x), self.plain.bias, *self._how, "add", 1.0, "relu", [], ""
        )  # fmt: skip
        found: Tensor
        if inplace:
            found = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *how)
        else:
            found = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *how)
        return found

    def forget(self, stay: int = 0) -> None:
        """Drop the weights that were laid out, but for the sizes that came last."""
        _drop(self._packed, stay)

    def _laid_out(self, x: Tensor) -> Tensor:
        # How is best depends on the size of what comes: asked without one, oneDNN halves the speed.
        def lay() -> Tensor:
            found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
                self.plain.weight, *self._how, list(x.shape)
            )
            return found

        return _kept(self._packed, tuple(x.shape), lay)


class Tiled(Convolution):
    """A convolution of 3x3 with a quarter of the multiplications (:mod:`worker.cpu.winograd`).

    What comes after it is a ReLU or nothing.
    """

    def __init__(self, plain: nn.Conv2d, after: After) -> None:
        """Compute what ``plain`` does, by the same weights, and what comes ``after``."""
        super().__init__(plain, after)
        self._dilation = plain.dilation[0]
        self._tiles: dict[tuple[int, ...], Tensor] = {}
        bias = torch.zeros(plain.out_channels) if plain.bias is None else plain.bias
        self._bias = bias.detach().float()

    @property
    def packed_bytes(self) -> int:
        """Bytes that the weights take a second time."""
        return super().packed_bytes + sum(tiles.nbytes for tiles in self._tiles.values())

    def forget(self, stay: int = 0) -> None:
        """Drop the weights that were laid out, but for the sizes that came last."""
        super().forget(stay)
        _drop(self._tiles, stay)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution makes of x, after the ReLU if there is one."""
        if not winograd.pays(x, self._dilation):
            return super().forward(x)
        return self._tiled(x, None, relu=self._after == "relu")

    def added_to(self, other: Tensor, x: Tensor, *, inplace: bool) -> Tensor:
        """Return the sum of ``other`` and the convolution of x, after a ReLU."""
        if not winograd.pays(x, self._dilation):
            return super().added_to(other, x, inplace=inplace)
        return self._tiled(x, other, relu=True)

    def _tiled(self, x: Tensor, other: Tensor | None, *, relu: bool) -> Tensor:
        tiles = _kept(
            self._tiles,
            winograd.layout(x, self.plain.out_channels, self._dilation),
            lambda: winograd.packed(self.plain.weight, x, self._dilation),
        )
        return winograd.convolved(x, tiles, self._bias, self._dilation, relu=relu, other=other)


#: Makes a convolution of a plain one.
Maker = Callable[[nn.Conv2d, After], Convolution]


class Normed(nn.Module):
    """A convolution, a group normalisation, and a ReLU or none."""

    def __init__(self, convolution: Convolution, norm: nn.GroupNorm, *, relu: bool) -> None:
        """Compute what the two do, and the ReLU."""
        super().__init__()
        self.convolution = convolution
        self.norm = norm
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes of x."""
        return group_norm.normed(self.norm, self.convolution(x), relu=self._relu)

    def added_to(self, other: Tensor, x: Tensor, *, inplace: bool) -> Tensor:  # noqa: ARG002
        """Return the sum of ``other`` and what comes of x, after a ReLU.

        Args:
            inplace: is not needed: the sum takes the place of what the convolution made.
        """
        return group_norm.normed(self.norm, self.convolution(x), relu=True, other=other)


def _unit(make: Maker, plain: nn.Conv2d, norm: Any, after: After) -> Convolution | Normed:
    """Return a convolution with its normalisation, if one is left, and what comes after them."""
    if _is_nothing(norm):
        return make(plain, after)
    return Normed(make(plain, "none"), norm, relu=after == "relu")


class Block(nn.Module):
    """timm's or torchvision's ``BasicBlock`` or ``Bottleneck``."""

    def __init__(self, plain: Any, make: Maker, *, owns_input: bool) -> None:
        """Compute what ``plain`` does; its output may replace an input that it ``owns``."""
        super().__init__()
        *first, last = [(plain.conv1, plain.bn1), (plain.conv2, plain.bn2)]
        if type(plain) in {Bottleneck, resnet.Bottleneck}:
            first, last = [*first, last], (plain.conv3, plain.bn3)
        self.first = nn.Sequential(*(_unit(make, *one, "relu") for one in first))
        self.last = _unit(make, *last, "none")
        self.shortcut: nn.Module | None = None
        if plain.downsample is not None:
            shortcut, *norms = plain.downsample
            self.shortcut = _unit(make, shortcut, norms[0] if norms else None, "none")
        self._owns_shortcut = owns_input or self.shortcut is not None
        self._forward_hooks = plain._forward_hooks  # DLCRNet takes features by them

    def forward(self, x: Tensor) -> Tensor:
        """Return what the plain block returns."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.last.added_to(shortcut, self.first(x), inplace=self._owns_shortcut)


class Head(nn.Module):
    """DeepLabCut's ``HeatmapHead``, whose two deconvolutions of the same features are one.

    Each has so few channels that most of oneDNN's work for it is for none.
    """

    def __init__(self, plain: Any) -> None:
        """Compute what ``plain`` does."""
        super().__init__()
        both = [plain.heatmap_head.deconv_layers[0], plain.locref_head.deconv_layers[0]]
        self.predictor = plain.predictor
        self._channels = [one.out_channels for one in both]
        self.joint = _side_by_side(both)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the plain head returns."""
        heatmap, locref = self.joint(x).split(self._channels, dim=1)
        return {"heatmap": heatmap, "locref": locref}


class Doubling(nn.Module):
    """A deconvolution of 3x3 that makes two rows and columns of each, as convolutions.

    oneDNN takes half as long again for one, and twice as long for one that makes few channels.
    """

    def __init__(self, plain: nn.ConvTranspose2d) -> None:
        """Compute what ``plain`` does, which :func:`_is_doubling` knows."""
        super().__init__()
        weight = plain.weight.detach().transpose(0, 1)  # (out, in, 3, 3)
        self._channels = plain.out_channels
        self._bias = plain.bias
        self.products: Convolution | None = None
        self.parts = nn.ModuleList()
        if weight.dtype == torch.float32:
            taps = weight.permute(2, 3, 0, 1).reshape(-1, plain.in_channels, 1, 1)
            self.products = _convolution_of(taps, None)
            return
        # In fewer bits products are not to be rounded before they are summed.
        for rows in _TAPS:
            for columns in _TAPS:
                kernel = weight[:, :, rows][..., columns]
                self.parts.append(_convolution_of(kernel, plain.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, out, 2 * height, 2 * width) of x (n, in, height, width)."""
        n, _, height, width = x.shape
        made = x.new_empty((n, 2 * height, 2 * width, self._channels))
        if self.products is None:
            for number, part in enumerate(self.parts):
                row, column = divmod(number, 2)
                # It begins a pixel before the first.
                found = part(x)[:, :, row:, column:]
                made[:, row::2, column::2] = found.permute(0, 2, 3, 1)
            return made.permute(0, 3, 1, 2)
        products = self.products(x).permute(0, 2, 3, 1).reshape(n, height, width, 3, 3, -1)
        made.zero_() if self._bias is None else made.copy_(self._bias.expand_as(made))
        for row in range(3):
            for column in range(3):
                # The kernel's first row is of the odd one above, of which the first has none.
                there = products[:, int(row == 0) :, int(column == 0) :, row, column]
                down, across = there.shape[1:3]
                into = made[:, int(row != 1) :: 2, int(column != 1) :: 2]
                into[:, :down, :across] += there
        return made.permute(0, 3, 1, 2)


#: Which rows of a kernel make an even row of :class:`Doubling`, and an odd one of two rows in turn.
_TAPS = [1], [2, 0]


def _convolution_of(weight: Tensor, bias: Tensor | None) -> Convolution:
    """Return a convolution by such weights, padded so that it begins a kernel before the first."""
    out, channels, height, width = weight.shape
    padding = (height - 1, width - 1)
    plain = nn.Conv2d(channels, out, (height, width), padding=padding, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    plain.bias = bias
    return Convolution(plain, "none")


class PafHead(nn.Module):
    """DeepLabCut's ``DLCRNetHead``: of its layers, those that see the same features are one.

    It can be computed in fewer bits, but for the last layers, which make what is read.
    """

    def __init__(self, plain: Any, dtype: torch.dtype = torch.float32) -> None:
        """Compute what ``plain`` does, in ``dtype``."""
        super().__init__()
        self.predictor = plain.predictor
        stages = list(zip(plain.hm_ref_layers, plain.paf_ref_layers, strict=True))
        self._maps = [one.out_channels for one in stages[0]]
        self.joint: nn.Module = _side_by_side(
            [plain.convt1, plain.convt3, plain.convt4, plain.convt2], padding=1, output_padding=1
        ).to(dtype)
        self._dtype = dtype
        self._features = [plain.convt4.out_channels, plain.convt2.out_channels]
        self.stages = nn.ModuleList()
        for both in stages:
            stage = nn.Conv2d(both[0].in_channels, sum(self._maps), 3, padding=1)
            stage.weight = nn.Parameter(torch.cat([one.weight for one in both]))
            stage.bias = nn.Parameter(torch.cat([one.bias for one in both]))
            self.stages.append(stage.to(dtype).to(memory_format=torch.channels_last))
        last = [plain.heatmap_head, plain.paf_head]
        self.last: nn.Module | None = None
        if _are_alike(last):
            self.last = _side_by_side([one.deconv_layers[0] for one in last])
        self.heatmap_head, self.paf_head, self.locref_head = *last, plain.locref_head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the plain head returns."""
        made = self.joint(x.to(self._dtype))
        *maps, features, refined = made.split([*self._maps, *self._features], dim=1)
        heatmap = maps[0]
        x = torch.cat([*maps, features], dim=1)
        for number, stage in enumerate(self.stages):
            fresh, paf = stage(x).split(self._maps, dim=1)
            heatmap = fresh + heatmap if number else fresh
            x = torch.cat([heatmap, paf, features], dim=1)
        x = x.float()
        found = {"locref": self.locref_head(refined.float())}
        if self.last is None:
            return {"heatmap": self.heatmap_head(x), **found, "paf": self.paf_head(x)}
        heatmap, paf = self.last(x).split(self._maps, dim=1)
        return {"heatmap": heatmap, **found, "paf": paf}


def narrowed(head: Any, dtype: torch.dtype) -> Any:
    """Return a head of which most is computed in ``dtype``; itself where that is not known how."""
    return PafHead(head, dtype) if _is_plain_paf_head(head) else head


def fuse(module: nn.Module, make: Maker = Convolution) -> int:
    """Put fused parts in the place of a module's plain ones; return how many there were."""
    fused = _fuse_itself(module, make)
    before: Any = None
    child: Any
    for name, child in list(module.named_children()):
        if isinstance(child, Convolution):
            continue
        new: nn.Module | None = None
        if _is_plain_block(child):
            # What a block made only the next one gets, unless somebody else looks.
            follows = type(module) is nn.Sequential and type(before) is Block
            new = Block(child, make, owns_input=follows and not before._forward_hooks)
        elif _is_plain_head(child):
            new = Head(child)
        elif _is_plain_paf_head(child):
            new = PafHead(child)
            fuse(new, make)
        elif _is_convolution(child):
            new = make(child, "none")
        elif _is_doubling(child):
            new = Doubling(child)
        if new is None:
            fused += fuse(child, make)
        else:
            setattr(module, name, new)
            fused += 1
        before = new
    return fused


def _fuse_itself(module: nn.Module, make: Maker) -> int:
    """Fuse a module that is a convolution and what follows it; return how many there were."""
    fused = 0
    if _has_plain_stem(module):
        stem: Any = module
        stem.conv1 = _unit(make, stem.conv1, stem.bn1, "relu")
        stem.bn1 = stem.act1 = nn.Identity()
        fused += 1
    if type(module) is Conv2dNormActivation and _is_plain_sequence(module):
        parts: Any = module
        parts[0] = make(parts[0], _ACTIVATIONS[type(parts[-1])])
        parts[-1] = nn.Identity()
        fused += 1
    if type(module) is CSPConvModule and _is_plain_csp(module):
        csp: Any = module
        csp.conv = make(csp.conv, _ACTIVATIONS[type(csp.activate)])
        csp.activate = nn.Identity()
        fused += 1
    return fused


def fuse_tiled(module: nn.Module) -> int:
    """Put fused parts into a module like :func:`fuse`; return how many of them multiply less."""

    def made(one: nn.Conv2d, after: After) -> Convolution:
        tiled = winograd.suits(one) and after in {"relu", "none"}
        return Tiled(one, after) if tiled else Convolution(one, after)

    fuse(module, made)
    return sum(isinstance(part, Tiled) for part in module.modules())


def forget(module: nn.Module, stay: int = 0) -> None:
    """Drop the weights that were laid out, but for the ``stay`` sizes of frames that came last."""
    for part in module.modules():
        if isinstance(part, Convolution):
            part.forget(stay)


def packed_bytes(module: nn.Module) -> int:
    """Return what a module's weights take a second time, as oneDNN wants them."""
    return sum(m.packed_bytes for m in module.modules() if isinstance(m, Convolution))


def _has_plain_stem(module: Any) -> bool:
    return (
        type(module) is ResNet
        and _is_convolution(module.conv1)
        and _is_done_after(module.bn1)
        and type(module.act1) is nn.ReLU
    )


def _is_plain_block(block: Any) -> bool:
    """Tell whether a block is nothing but convolutions, group normalisations, ReLUs and a sum."""
    if type(block) is BasicBlock:
        convolutions: list[Any] = [block.conv1, block.conv2]
        norms = [block.bn1, block.bn2]
        relus = [block.act1, block.act2]
    elif type(block) is Bottleneck:
        convolutions = [block.conv1, block.conv2, block.conv3]
        norms = [block.bn1, block.bn2, block.bn3]
        relus = [block.act1, block.act2, block.act3]
    elif type(block) in {resnet.BasicBlock, resnet.Bottleneck}:
        return _is_plain_torchvision_block(block)
    else:
        return False
    if block.downsample is not None:
        if type(block.downsample) is not nn.Sequential:
            return False
        first, *rest = block.downsample
        convolutions.append(first)
        norms += rest[:1]
        if not all(map(_is_nothing, rest[1:])):
            return False
    return (
        all(map(_is_convolution, convolutions))
        and all(map(_is_done_after, norms))
        and all(map(_is_nothing, [block.drop_block, block.aa, block.se, block.drop_path]))
        and all(type(relu) is nn.ReLU for relu in relus)
    )


def _is_plain_torchvision_block(block: Any) -> bool:
    layers = (1, 2, 3) if type(block) is resnet.Bottleneck else (1, 2)
    shortcut = [] if block.downsample is None else list(block.downsample)
    return (
        all(_is_convolution(getattr(block, f"conv{layer}")) for layer in layers)
        and all(_is_nothing(getattr(block, f"bn{layer}")) for layer in layers)
        and all(map(_is_convolution, shortcut[:1]))
        and all(map(_is_nothing, shortcut[1:]))
        and type(block.relu) is nn.ReLU
    )


def _is_plain_sequence(parts: Any) -> bool:
    """Tell whether torchvision's sequence is nothing but a convolution and an activation."""
    first, *rest = parts
    return (
        _is_convolution(first)
        and all(map(_is_nothing, rest[:-1]))
        and all(type(last) in _ACTIVATIONS for last in rest[-1:])
        and bool(rest)
    )


def _is_plain_csp(module: Any) -> bool:
    """Tell whether one of CSPNeXt's modules is nothing but a convolution and its activation."""
    return (
        _is_convolution(module.conv)
        and _is_nothing(module.norm)
        and type(module.activate) in _ACTIVATIONS
    )


def _is_plain_head(head: Any) -> bool:
    """Tell whether a head is nothing but two deconvolutions that differ in their channels."""
    if type(head) is not HeatmapHead or head.locref_head is None:
        return False
    return _are_alike([head.heatmap_head, head.locref_head])


def _is_plain_paf_head(head: Any) -> bool:
    """Tell whether a head of part affinity fields refines its maps in stages, and nothing else."""
    if type(head) is not DLCRNetHead or not head.num_stages:
        return False
    first = [head.convt1, head.convt2, head.convt3, head.convt4]
    refined = [*head.hm_ref_layers, *head.paf_ref_layers]
    parts = [*first, *refined, head.heatmap_head, head.locref_head, head.paf_head]
    return (
        {type(one) for one in first} == {nn.ConvTranspose2d}
        and {type(one) for one in refined} == {nn.Conv2d}
        and not any(part._forward_hooks for part in parts)
    )


def _are_alike(modules: list[Any]) -> bool:
    """Tell whether modules are deconvolutions that differ in their channels alone."""
    layers = [layer for one in modules for layer in one.deconv_layers.children()]
    return (
        len(layers) == len(modules)
        and all(map(_is_deconvolution, layers))
        and all(_is_nothing(one.final_conv) for one in modules)
        and len({(layer.kernel_size, layer.stride) for layer in layers}) == 1
    )


def _side_by_side(layers: list[Any], **how: Any) -> nn.ConvTranspose2d:
    """Return one deconvolution that gives the channels of several of the same features in turn."""
    channels = [one.out_channels for one in layers]
    joint = nn.ConvTranspose2d(
        layers[0].in_channels, sum(channels), layers[0].kernel_size, layers[0].stride, **how
    )
    joint.weight = nn.Parameter(torch.cat([one.weight for one in layers], dim=1))
    joint.bias = nn.Parameter(torch.cat([one.bias for one in layers]))
    return joint.to(memory_format=torch.channels_last)


def _is_deconvolution(layer: Any) -> bool:
    if type(layer) is not nn.ConvTranspose2d or layer.bias is None:
        return False
    padded = {*layer.padding, *layer.output_padding}
    return padded == {0} and set(layer.dilation) == {1} and layer.groups == 1


def _is_doubling(layer: Any) -> bool:
    """Tell whether a layer is a deconvolution of 3x3 that makes two rows and columns of each."""
    if type(layer) is not nn.ConvTranspose2d or layer.groups != 1:
        return False
    how = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    return how == ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1))


def _is_convolution(module: Any) -> bool:
    # One whose padding is a word works it out when called.
    if type(module) is not nn.Conv2d or isinstance(module.padding, str):
        return False
    return module.padding_mode == "zeros"


def _is_nothing(module: Any) -> bool:
    return module is None or type(module) is nn.Identity


def _is_done_after(norm: Any) -> bool:
    """Tell whether a normalisation was folded into its convolution, or can be done behind it."""
    return _is_nothing(norm) or group_norm.suits(norm)


def _kept(
    laid_out: dict[tuple[int, ...], Tensor], size: tuple[int, ...], lay: Callable[[], Tensor]
) -> Tensor:
    """Return the weights laid out for a size, which are kept for the last few sizes."""
    found = laid_out.pop(size, None)
    if found is None:
        _drop(laid_out, SIZES - 1)
        found = lay()
    laid_out[size] = found  # behind all others: it came last
    return found


def _drop(laid_out: dict[tuple[int, ...], Tensor], stay: int) -> None:
    for size in list(laid_out)[: max(0, len(laid_out) - stay)]:
        del laid_out[size]
