"""How a network is computed: exactly, or in fewer bits where no keypoint changes by it.

Exact is fp32 with the weights and pictures in channels-last order, in which convolutions are
fastest, with each batch normalisation folded into the convolution before it, and with what follows
a convolution done by it (:mod:`worker.fused`). On a CPU most of the multiplications are saved too
(:mod:`worker.winograd`), which errs by some millionths: a frame on which that could decide between
two cells of a heatmap is computed once more without.

Fewer bits (bf16, fp16) are faster still, but two peaks of a heatmap that nearly tie may change
places, by which a keypoint jumps. So ``auto`` watches itself:

* The first frames that show a keypoint are computed both ways. By how much the step from a peak
  down to its like differs between the two is the *noise* of the fast way, on this video with this
  model.
* Of each further frame, every cell of a heatmap that is within the noise of its highest could be
  the highest in fp32. Where these cells, each with its own refinement, put the keypoint more than
  ``REACH`` pixels apart, the frame is computed again, exactly.
* Every ``CHECK_EVERY``-th frame is computed both ways too. If a keypoint that was not caught moves
  by more than ``TOLERANCE``, the fast way is given up for the whole video.

That is known how to do for heatmaps with one peak a keypoint; other networks run exactly.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import cv2
import torch
from deeplabcut.pose_estimation_pytorch.models.predictors import HeatmapPredictor
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

from worker import fused, hardware

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
#: Per head, per name: a tensor with a row a frame.
Predictions = dict[str, dict[str, Tensor]]
Outputs = dict[str, dict[str, Tensor]]

#: Frames with a keypoint that are computed both ways at the start.
SAMPLES = 6
#: Later, each of so many frames is.
CHECK_EVERY = 64
#: Pixels by which a keypoint may be uncertain in the fast arithmetic.
REACH = 0.4
#: Pixels by which a keypoint of the fast arithmetic may differ from fp32's.
TOLERANCE = 0.5
#: Cells that rival a peak reach this share of its height.
LIKE = 0.9
#: The samples are few: the largest difference of all frames may be so many times theirs.
SAFETY = 1.5
#: Of a frame's largest value: by how much saving multiplications in fp32 may change a heatmap. The
#: mouse's model errs by a thirtieth of it, a new ResNet-50 with GroupNorm by half; one that errs by
#: more when it is loaded does without.
TILED_NOISE = 2e-5
#: Pixels by which a keypoint may be uncertain for it.
TILED_REACH = 0.005
#: The fast arithmetic has to be so many times faster, or it isn't worth its checks.
WORTH = 1.15

#: Where DLCRNet keeps what its hooks have seen.
_FEATURES = "interm_features"
#: What can be folded into the convolution before it; the second is that of torchvision's detectors.
_NORMS = {nn.BatchNorm2d, FrozenBatchNorm2d}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnfaithfulError(Exception):
    """The fast arithmetic moved a keypoint and did not notice: begin again without it."""


class Machine:
    """A network ready to run: its exact form and, made when first asked for, its fast one."""

    def __init__(self, model: Any, device: str) -> None:
        """Prepare ``model`` (DeepLabCut's PoseModel, in eval mode), which is changed by it."""
        self.device = torch.device(device)
        #: The exact form for who casts by itself: of torch's own operators alone.
        self.plain = _tried(model, _fold).to(memory_format=torch.channels_last)
        self.exact = self.plain
        if self.device.type == "cpu":
            self.exact = _tried(self.plain, fused.fuse)
        self._tiled: Any = None
        self._fast: dict[torch.dtype, Any] = {}

    @property
    def tiled(self) -> Any:
        """The exact form with fewer multiplications; the exact form itself where there is none."""
        if self._tiled is None:
            self._tiled = self.exact
            if self.exact is not self.plain:
                made = _tried(self.plain, fused.fuse_tiled, TILED_NOISE)
                self._tiled = self.exact if made is self.plain else made
        return self._tiled

    def fast(self, dtype: torch.dtype) -> Any:
        """Return the network with its backbone in ``dtype``; what follows it stays in fp32."""
        if dtype not in self._fast:
            model = copy.deepcopy(self.plain, _shared(self.plain))
            model.backbone = _Reduced(model.backbone, dtype)
            # oneDNN knows only the numbers that the processor multiplies; others are torch's.
            if self.exact is not self.plain and dtype == hardware.native_dtype(self.device):
                (fused.fuse if self.tiled is self.exact else fused.fuse_tiled)(model)
            self._fast[dtype] = model
        return self._fast[dtype]

    def forms(self) -> list[Any]:
        """Return all that was made of the network; they share what they can."""
        tiled = [] if self._tiled is None else [self._tiled]
        return [self.plain, self.exact, *tiled, *self._fast.values()]

    def dtype_for(self, precision: Precision) -> torch.dtype | None:
        """Return what to compute in besides fp32; None: nothing."""
        if precision == "auto":
            return hardware.native_dtype(self.device) if self.has_peaks else None
        return _DTYPES.get(precision)

    @property
    def has_peaks(self) -> bool:
        """Whether all it finds are heatmaps with one peak a keypoint."""
        heads = self.exact.heads.values()
        return all(type(head.predictor) is HeatmapPredictor for head in heads)


@dataclass
class State:
    """What is known of the fast arithmetic on one video; with it a run goes on as it would have."""

    dtype: str | None
    """``bf16``, ``fp16``, or None: all is computed exactly."""
    noise: float = 0.0
    """Largest difference to fp32 in the step from a peak to its rivals, of the frames checked."""
    samples: int = 0
    checked: int = 0
    """Frames computed both ways."""
    again: int = 0
    """Frames computed again because their peaks nearly tie."""
    untiled: int = 0
    """Frames computed again with all multiplications: their peaks tie but for millionths."""
    frames: int = 0
    deviation: float = 0.0
    """Largest distance in pixels of a keypoint that would have been kept, of the checked frames."""
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Of the samples: exactly, fast."""

    def told(self, wanted: Precision) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {
            "asked": wanted,
            "used": self.dtype or "fp32",
            "frames_checked_in_fp32": self.checked,
            "frames_repeated_in_fp32": self.again,
            "frames_repeated_untiled": self.untiled,
            "share_repeated": round(self.again / self.frames, 4) if self.frames else 0.0,
            "largest_deviation_px": round(self.deviation, 4),
            "heatmap_noise": self.noise,
        }


@dataclass(frozen=True)
class Launched:
    """A batch that is being computed; on a GPU, nobody has waited for it yet."""

    x: Tensor
    outputs: Outputs | None
    """None: not begun."""
    fast: bool


class Arithmetic:
    """Computes the batches of one video."""

    def __init__(
        self, machine: Machine, wanted: Precision, pcutoff: float, state: State | None = None
    ) -> None:
        """Begin a video, or go on with ``state``, which an earlier one of these had.

        Keypoints below ``pcutoff`` are not held to the tolerance: nobody uses them.
        """
        self._machine = machine
        self._pcutoff = pcutoff
        self._wanted = wanted
        dtype = machine.dtype_for(wanted)
        names = {value: name for name, value in _DTYPES.items()}
        self.state = state or State(None if dtype is None else names[dtype])
        self._watched = machine.has_peaks
        self._fast = None
        if self.state.dtype is not None:
            self._fast = machine.fast(_DTYPES[self.state.dtype])

    def told(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return self.state.told(self._wanted)

    def state_as_json(self) -> dict[str, Any]:
        """Return the state as JSON types; ``State(**it)`` is the state again."""
        return asdict(self.state)

    def launch(self, pixels: Tensor) -> Launched:
        """Begin a batch: frames (n, height, width, 3), BGR, uint8, on the device."""
        x = normalised(pixels)
        if self._fast is None:
            return Launched(x, self._exactly(x), fast=False)
        if self._watched and self.state.samples < SAMPLES:
            return Launched(x, None, fast=False)
        return Launched(x, self._fast(x), fast=True)

    def collect(self, batch: Launched) -> Predictions:
        """Return a batch's predictions, by the same names as DeepLabCut's ``get_predictions``.

        Batches are collected in the order in which they were launched.

        Raises:
            UnfaithfulError: see there.
        """
        predictions = self._collect(batch)
        self.state.frames += len(batch.x)
        return predictions

    def _collect(self, batch: Launched) -> Predictions:
        if batch.outputs is None:
            return self._both(batch.x)
        fast = self._predictions(batch.outputs)
        if not (batch.fast and self._watched):
            return fast
        first = self.state.frames
        checked = {i for i in range(len(batch.x)) if (first + i) % CHECK_EVERY == 0}
        unsure: set[int] = set()
        if self._wanted == "auto":
            unsure = self._unsure(batch.outputs, lambda _: SAFETY * self.state.noise, REACH)
        self.state.again += len(unsure - checked)
        rows = sorted(checked | unsure)
        if not rows:
            return fast
        outputs = self._exactly(batch.x[rows])
        exact = self._predictions(outputs)
        held = [number for number, row in enumerate(rows) if row in checked]
        if held:
            frames = [rows[number] for number in held]
            noticed = torch.tensor([row in unsure for row in frames], device=batch.x.device)
            self._compare(
                _of(batch.outputs, frames),
                _of(fast, frames),
                _of(outputs, held),
                _of(exact, held),
                noticed,
            )
        return _put(fast, rows, exact) if self._wanted == "auto" else fast

    def _both(self, x: Tensor) -> Predictions:
        """Compute a batch in fp32 and, where it shows a keypoint, the fast way too."""
        started = time.perf_counter()
        outputs = self._exactly(x)
        exact = self._predictions(outputs)
        seconds = time.perf_counter() - started
        if self._fast is None or not bool(self._sure(exact).any()):
            return exact
        if self.state.samples == 0:
            self._fast(x)  # its first call prepares; the second one counts
        started = time.perf_counter()
        fast_outputs = self._fast(x)
        fast = self._predictions(fast_outputs)
        self.state.seconds[0] += seconds
        self.state.seconds[1] += time.perf_counter() - started
        self.state.samples += len(x)
        # While the noise is not known, nothing is kept that could go unnoticed.
        noticed = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._compare(fast_outputs, fast, outputs, exact, noticed)
        if self.state.samples >= SAMPLES and self._wanted == "auto":
            slow, quick = self.state.seconds
            if slow < WORTH * quick:
                log.info("fp32 throughout: %s is not faster here", self.state.dtype)
                self._give_up()
        return exact if self._wanted == "auto" else fast

    def _give_up(self) -> None:
        self.state.dtype = None
        self._fast = None

    def _predictions(self, outputs: Outputs) -> Predictions:
        predictions: Predictions = self._machine.exact.get_predictions(outputs)
        return predictions

    def _sure(self, predictions: Predictions) -> Tensor:
        """Return which keypoints (n, all of all heads) are above the cutoff."""
        likelihood = [head["poses"][:, 0, :, 2] for head in predictions.values() if "poses" in head]
        return torch.cat(likelihood, dim=1) >= self._pcutoff

    def _exactly(self, x: Tensor) -> Outputs:
        """Compute a batch in fp32."""
        if not self._watched or self._machine.tiled is self._machine.exact:
            outputs: Outputs = self._machine.exact(x)
            return outputs
        outputs = self._machine.tiled(x)
        unsure = self._unsure(outputs, lambda maps: TILED_NOISE * maps.largest(), TILED_REACH)
        if unsure:
            self.state.untiled += len(unsure)
            rows = sorted(unsure)
            _put(outputs, rows, self._machine.exact(x[rows]))
        return outputs

    def _unsure(
        self, outputs: Outputs, noise_of: Callable[[_Maps], float | Tensor], reach: float
    ) -> set[int]:
        """Return the frames in which noise could put a keypoint elsewhere, further than ``reach``.

        Args:
            noise_of: returns a head's noise, one for all or (n, 1).
        """
        found = torch.zeros(len(next(iter(outputs["bodypart"].values()))), dtype=torch.bool)
        for name, values in outputs.items():
            maps = _Maps(self._machine.exact, name, values)
            noise = noise_of(maps)
            # What does not compare, because it is not a number, is unsure.
            close = ~(maps.reach(noise) <= reach) & ~(maps.likelihood() < self._pcutoff - noise)
            found |= close.any(dim=1).cpu()
        return set(found.nonzero().flatten().tolist())

    def _compare(
        self,
        fast_outputs: Outputs,
        fast: Predictions,
        exact_outputs: Outputs,
        exact: Predictions,
        noticed: Tensor,
    ) -> None:
        """Learn from frames computed both ways; ``noticed`` (n): those that would be repeated."""
        self.state.checked += len(noticed)
        if self._wanted == "auto":
            for name, values in exact_outputs.items():
                true = _Maps(self._machine.exact, name, values)
                noise = true.noise_of(fast_outputs[name]["heatmap"], self._pcutoff)
                self.state.noise = max(self.state.noise, noise)
        for name, values in exact.items():
            if "poses" not in values:
                continue
            true_poses, poses = values["poses"][:, 0], fast[name]["poses"][:, 0]
            moved = (poses[..., :2] - true_poses[..., :2]).norm(dim=-1)
            kept = (true_poses[..., 2] >= self._pcutoff) & ~noticed[:, None]
            if bool(kept.any()):
                self.state.deviation = max(self.state.deviation, float(moved[kept].max()))
        if self._wanted == "auto" and not self.state.deviation <= TOLERANCE:
            raise UnfaithfulError(
                f"a keypoint moved by {self.state.deviation:.2f} pixels unnoticed"
            )


class _Maps:
    """A head's heatmaps (n, keypoints, rows, columns), and where each cell puts its keypoint."""

    def __init__(self, model: Any, name: str, outputs: dict[str, Tensor]) -> None:
        predictor = model.heads[name].predictor
        stride = model.get_stride(name)
        self._heat = outputs["heatmap"]
        self._sigmoid = predictor.apply_sigmoid
        n, keypoints, height, width = self._heat.shape
        self._top = self._heat.amax(dim=(2, 3))
        # As DeepLabCut's HeatmapPredictor places them.
        self._x = stride * (torch.arange(width, device=self._heat.device) + 0.5)
        self._y = stride * (torch.arange(height, device=self._heat.device) + 0.5)[:, None]
        if predictor.location_refinement:
            refined = outputs["locref"].reshape(n, keypoints, 2, height, width)
            self._x = self._x + refined[:, :, 0] * predictor.locref_std
            self._y = self._y + refined[:, :, 1] * predictor.locref_std

    def likelihood(self) -> Tensor:
        """Return (n, keypoints)."""
        return self._top.sigmoid() if self._sigmoid else self._top

    def largest(self) -> Tensor:
        """Return each frame's largest value, (n, 1)."""
        return self._heat.abs().amax(dim=(1, 2, 3))[:, None]

    def reach(self, noise: float | Tensor) -> Tensor:
        """Return how far apart, in pixels, the cells within ``noise`` of the top are."""
        rivals = self._heat >= (self._top - noise)[..., None, None]
        across = _span(self._x.expand_as(self._heat), rivals)
        down = _span(self._y.expand_as(self._heat), rivals)
        return torch.hypot(across, down)

    def noise_of(self, heat: Tensor, pcutoff: float) -> float:
        """Return by how much the steps from peak to rivals differ in ``heat``, at most."""
        rivals = self._heat >= LIKE * self._top[..., None, None]
        rivals &= (self.likelihood() >= pcutoff)[..., None, None]
        difference = heat - self._heat
        peak = self._heat.flatten(2).argmax(dim=2, keepdim=True)
        at_peak = difference.flatten(2).gather(2, peak)[..., None]
        return float(torch.where(rivals, (difference - at_peak).abs(), 0.0).max())


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels (n, height, width, 3), BGR, uint8, as RGB (n, 3, height, width) for a network.

    It is albumentations' ``Normalize`` with ImageNet's mean and deviation, which DeepLabCut uses.
    """
    # The channels stay last in memory, where convolutions want them.
    if pixels.device.type == "cpu":
        # A byte has but 256 outcomes, the same bits as by arithmetic.
        table = _normalised(torch.arange(256)[:, None])[:, None].numpy()
        found = torch.empty(pixels.shape)
        for frame, target in zip(pixels, found, strict=True):
            rgb = cv2.cvtColor(frame.numpy(), cv2.COLOR_BGR2RGB)
            cv2.LUT(rgb, table, target.numpy())
        return found.permute(0, 3, 1, 2)
    return _normalised(pixels.flip(3)).permute(0, 3, 1, 2)


def _normalised(rgb: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406], device=rgb.device) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225], device=rgb.device) * 255
    return rgb.float().sub(mean).mul_(1 / deviation)


def _span(values: Tensor, chosen: Tensor) -> Tensor:
    high = values.masked_fill(~chosen, -torch.inf).amax(dim=(2, 3))
    return high - values.masked_fill(~chosen, torch.inf).amin(dim=(2, 3))


def _of(values: dict[str, dict[str, Tensor]], rows: list[int]) -> dict[str, dict[str, Tensor]]:
    return {
        head: {name: value[rows] for name, value in named.items()} for head, named in values.items()
    }


def _put(
    target: dict[str, dict[str, Tensor]], rows: list[int], values: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    for head, named in values.items():
        for name, value in named.items():
            target[head][name][rows] = value
    return target


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


def _tried(model: Any, change: Callable[[nn.Module], int], share: float = 1e-4) -> Any:
    """Return a network with a change that is to change nothing but its speed, else as it is.

    Which module runs after which is not written anywhere, so a change goes by how they stand, and
    what comes out is compared with what came out before: ``share`` of the largest value may differ.
    """
    # Of the size that DeepLabCut gives to networks which take but one.
    picture = torch.rand((1, 3, 256, 256), generator=torch.Generator().manual_seed(0)) * 4 - 2
    device = next(model.parameters()).device
    try:
        changed = copy.deepcopy(model, _shared(model, *model.parameters()))
        if not change(changed):
            return model
        with torch.inference_mode():
            before, after = model(picture.to(device)), changed(picture.to(device))
        for head, named in before.items():
            for name, value in named.items():
                scale = float(value.abs().max())
                torch.testing.assert_close(
                    after[head][name], value, rtol=0, atol=share * scale + 1e-7
                )
    except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError, LookupError):
        log.info("the network stays as it is, without %s", change.__name__)
        return model
    fused.forget(changed)  # frames have another size, and the exact form seldom sees one
    return changed


def _shared(model: Any, *others: Any) -> dict[int, Any]:
    """Return, for ``copy.deepcopy``, what a network and its copy are to have in common.

    DLCRNet's hooks write into the dictionary of the network that they were made for, its copies'
    too: unless it is one, a copy finds nothing in its own.
    """
    found = [module.interm_features for module in model.modules() if hasattr(module, _FEATURES)]
    return {id(thing): thing for thing in (*found, *others)}


def _fold(module: nn.Module) -> int:
    folds = 0
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        # No subclasses: what else they do would be lost.
        if before and type(before[1]) is nn.Conv2d and type(child) in _NORMS:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
            folds += 1
        folds += _fold(child)
        before = (name, child)
    return folds
