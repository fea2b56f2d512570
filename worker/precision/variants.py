"""The variants of a network that are computed: exact in fp32, and in fewer bits.

Exact is fp32, each batch normalisation folded into the convolution before it. There are up to three
kinds of it, which of them is fastest being found by timing (``precision.tuning``): as torch has it;
*direct*, with channels last in memory and what follows a convolution done by it
(:mod:`worker.cpu.fused`); *winograd*, with most multiplications of 3x3 convolutions saved
(:mod:`worker.cpu.winograd`), which errs by some millionths: a picture in which that could move a
keypoint is computed once more without.

Fewer bits (bf16, fp16) are faster still; what they may change is watched by ``precision.guard``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

from worker import hardware
from worker.cpu import fused
from worker.gpu.graphs import Graphs, recorder_of
from worker.memory import is_out_of_memory
from worker.precision import ways

log = logging.getLogger(__name__)
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Numbers = Literal["fp32", "bf16", "fp16"]
#: How convolutions are computed: see above. (Or by a plug-in of this name, ``precision.ways``.)
Kind = Literal["torch", "direct", "winograd"]
#: Of a picture's largest value: by how much saving multiplications in fp32 may change a heatmap.
#: The mouse's model errs by a thirtieth of it, a new ResNet-50 with GroupNorm by half; one that
#: errs by more when it is loaded does without.
TILED_NOISE = 2e-5
#: Height and width of a picture to try a network on which takes any, in pixels.
ANY_SIZE = (256, 256)
#: Where DLCRNet keeps what its hooks have seen.
_FEATURES = "interm_features"
#: What can be folded into the convolution before it; the second is that of torchvision's detectors.
_NORMS = {nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d}
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ModelVariants:
    """A network ready to run in each of its variants, which are made when first asked for."""

    def __init__(self, model: Any, device: str, size: tuple[int, int] | None = None) -> None:
        """Prepare ``model`` (DeepLabCut's PoseModel, in eval mode), which is changed by it.

        Args:
            size: height and width of its pictures, in pixels, if it takes no other.
        """
        self.device = torch.device(device)
        self._size = size or ANY_SIZE
        #: The exact form for who casts by itself: of torch's own operators alone.
        self.plain = _tried(model, fold, self._size).to(memory_format=torch.channels_last)
        self.exact = self.plain
        if self.device.type == "cpu":
            self.exact = _tried(self.plain, fused.fuse, self._size)
        self._tiled: Any = None
        self._reduced: dict[Numbers, Any] = {}
        self._made: dict[tuple[Numbers, Kind], Any] = {}
        self.graphs = Graphs(recorder_of(self.device))

    def tiled(self) -> Any:
        """Return the exact form with fewer multiplications, or the exact form where there is none.

        The first call makes and tries it, which takes seconds.
        """
        if self._tiled is None:
            made = self.plain
            if self.exact is not self.plain:
                made = _tried(self.plain, fused.fuse_tiled, self._size, TILED_NOISE)
            self._tiled = self.exact if made is self.plain else made
        return self._tiled

    def others(self, numbers: Numbers) -> list[Kind]:
        """Return the ways of plug-ins for such numbers, to be watched."""
        if numbers == "fp32" or _DTYPES[numbers] != hardware.native_dtype(self.device):
            return []
        return [cast(Kind, name) for name in ways.installed()]

    def kinds(self, numbers: Numbers, *, watched: bool = True) -> list[Kind]:
        """Return the kinds of convolutions there are for such numbers.

        Args:
            watched: whether somebody looks at what the faster ones change.
        """
        if self.exact is self.plain:
            return ["direct"]
        # oneDNN knows only the numbers that the processor multiplies; others are torch's.
        if numbers != "fp32" and _DTYPES[numbers] != hardware.native_dtype(self.device):
            return ["direct"]
        tiled: list[Kind] = ["winograd"] if watched and self.tiled() is not self.exact else []
        plain: list[Kind] = ["torch"] if numbers == "fp32" else []
        return ["direct", *tiled, *plain]

    def form(self, numbers: Numbers, kind: Kind) -> Any:
        """Return the variant of these numbers and convolutions; its last layers stay fp32."""
        if numbers == "fp32":
            if kind == "direct":
                return self.exact
            if kind == "winograd":
                return self.tiled()
        if (numbers, kind) not in self._made:
            self._made[numbers, kind] = (
                _Planar(self.plain) if numbers == "fp32" else self.fast(numbers, kind)
            )
        return self._made[numbers, kind]

    def fast(self, numbers: Numbers, kind: Kind) -> Any:
        """Make the form with all but the last layers in fewer bits."""
        if numbers not in self._reduced:
            model = copy.deepcopy(self.plain, _shared(self.plain))
            model.backbone = _Reduced(model.backbone, _DTYPES[numbers])
            for name, head in model.heads.items():
                model.heads[name] = fused.narrowed(head, _DTYPES[numbers])
            self._reduced[numbers] = model
        plain = self._reduced[numbers]
        if kind in ways.installed():
            return ways.Other(kind, self.plain, _DTYPES[numbers], plain)
        if kind not in self.kinds(numbers) or self.exact is self.plain:
            return plain
        if _DTYPES[numbers] != hardware.native_dtype(self.device):
            return plain
        model = copy.deepcopy(plain, _shared(plain, *plain.parameters()))
        if kind == "winograd":
            fused.fuse_tiled(model)
        else:
            fused.fuse(model)
        return model

    def keep(self, used: set[tuple[Numbers, Kind]]) -> None:
        """Drop the variants that are not used: they were timed and found slower."""
        for key in [key for key in self._made if key not in used]:
            del self._made[key]
        self.graphs.keep(self.forms())
        if ("fp32", "winograd") not in used and self._tiled not in {None, self.exact}:
            fused.forget(self._tiled)

    def rest(self) -> None:
        """Drop what other films' sizes have left behind; a film begins."""
        for form in self.forms():
            fused.forget(form, fused.STAY)

    def forms(self) -> list[Any]:
        """Return all variants made so far; they share what they can."""
        tiled = [] if self._tiled is None else [self._tiled]
        return [self.plain, self.exact, *tiled, *self._reduced.values(), *self._made.values()]

    def numbers_for(self, precision: Precision, *, watched: bool) -> Numbers:
        """Return what to compute in: ``auto`` means fewer bits where that is fast and watched."""
        if precision != "auto":
            return precision
        native = hardware.native_dtype(self.device) if watched else None
        return next((name for name in ("bf16", "fp16") if _DTYPES[name] == native), "fp32")

    def dtype_for(self, precision: Precision) -> torch.dtype | None:
        """Return what autocast is to cast to; None: nothing."""
        return _DTYPES.get(precision)


class _Reduced(nn.Module):
    """A module computed in a smaller type, seen from outside as before."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._inner = inner.to(dtype)
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module returns, in fp32."""
        found: Tensor = self._inner(x.to(self._dtype)).float()
        return found


class _Planar(nn.Module):
    """A network as torch runs it: each channel a plane in memory."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self._inner = copy.deepcopy(plain, _shared(plain)).to(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns."""
        return self._inner(x.contiguous())


def _tried(
    model: Any, change: Callable[[nn.Module], int], size: tuple[int, int], share: float = 1e-4
) -> Any:
    """Return a network with a change that is to change nothing but its speed, else as it is.

    Which module runs after which is not written anywhere, so a change goes by how they stand, and
    what comes out is compared with what came out before: ``share`` of the largest value may differ.
    """
    picture = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)) * 4 - 2
    device = next(model.parameters()).device
    try:
        changed = copy.deepcopy(model, _shared(model, *model.parameters()))
        if not change(changed):
            return model
        with torch.inference_mode():
            beside = _conditions_of(model)
            before, after = (each(picture.to(device), **beside) for each in (model, changed))
        for head, named in before.items():
            for name, value in named.items():
                scale = float(value.abs().max())
                torch.testing.assert_close(
                    after[head][name], value, rtol=0, atol=share * scale + 1e-7
                )
    except (
        AssertionError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    ) as error:  # fmt: skip
        if is_out_of_memory(error):  # it says nothing of the network, which stays loaded
            raise
        log.info("the network stays as it is, without %s", change.__name__)
        return model
    fused.forget(changed)  # frames have another size, and the exact form seldom sees one
    return changed


def _conditions_of(model: Any) -> dict[str, Any]:
    """Return what a conditional network wants beside a picture: here, a pose along its diagonal."""
    encoder = getattr(model.backbone, "cond_enc", None)
    if encoder is None:
        return {}
    places = np.linspace(64, 192, encoder.num_joints)
    return {"cond_kpts": np.stack([places, places, np.ones_like(places)], axis=1)[None, None]}


def _shared(model: Any, *others: Any) -> dict[int, Any]:
    """Return, for ``copy.deepcopy``, what a network and its copy are to have in common.

    DLCRNet's hooks write into the dictionary of the network that they were made for, its copies'
    too: unless it is one, a copy finds nothing in its own.
    """
    found = [module.interm_features for module in model.modules() if hasattr(module, _FEATURES)]
    return {id(thing): thing for thing in (*found, *others)}


def fold(module: nn.Module) -> int:
    """Fold a module's normalisations into the convolutions before them; return how many."""
    folds = 0
    before: tuple[str, nn.Module] | None = None
    child: Any
    for name, child in list(module.named_children()):
        # No subclasses: what else they do would be lost.
        if before and type(before[1]) is nn.Conv2d and type(child) in _NORMS:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
            folds += 1
        folds += fold(child)
        before = (name, child)
    return folds
