"""Animals found in frames, for top-down models: DeepLabCut's detector, in batches, and faster.

What a detector decides is which rectangle of whole pixels is cut out for each animal, and in which
order. Nothing else of it reaches a pose. So on a CPU torchvision's detectors are computed with
their norms folded, their weights laid out and most multiplications saved (:mod:`worker.cpu.fused`),
which errs by some millionths; and where such an error could lead to another rectangle, the frame is
detected again by DeepLabCut's detector as it is:

* The first frame, and the first with a box, are computed both ways, stage by stage, which gives the
  *noise* of each stage: objectness, proposals, scores, boxes. So is every ``CHECK_EVERY``-th, by
  which noise may grow.
* A proposal is certain if neither the noise of a score nor that of an overlap decides whether
  non-maximum suppression keeps it, and it is judged by features of the same level in any case.
  What is uncertain is judged as well.
* Of the boxes that come out, as many count as the model has individuals. Each of them and all that
  could take their place have to be certain, their order too, and no side of what is cut out may be
  so near to the middle of two pixels that noise decides which of them it is rounded to.

Other detectors, and those on an accelerator, are called as they are, on a batch of frames.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from deeplabcut.pose_estimation_pytorch.data.postprocessor import TrimOutputs
from deeplabcut.pose_estimation_pytorch.data.preprocessor import (
    AugmentImage,
    LoadImage,
    ToBatch,
    TopDownCrop,
    ToTensor,
)
from deeplabcut.pose_estimation_pytorch.models.detectors import FasterRCNN as AdaptedFasterRCNN
from deeplabcut.pose_estimation_pytorch.models.detectors import SSDLite as AdaptedSSDLite
from deeplabcut.pose_estimation_pytorch.models.detectors.filtered_detector import FilteredDetector
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.poolers import MultiScaleRoIAlign

from worker.cpu import fused
from worker.engine import boxes
from worker.memory import is_out_of_memory
from worker.precision.guard import UnfaithfulError, fold, normalised

log = logging.getLogger(__name__)

Frame = npt.NDArray[np.uint8]
#: What DeepLabCut's runner for poses takes with a frame: ``bboxes`` (n, 4), left, top, width and
#: height, and ``bbox_scores`` (n,).
Context = dict[str, Any]

#: One of so many frames is computed both ways.
CHECK_EVERY = 256
#: The largest difference of all frames may be so many times that of the frames checked.
SAFETY = 4.0
#: Pixels that an edge is off in any case: torchvision shifts boxes to suppress those of each kind
#: by themselves, and rounds them by it.
LEAST_ERROR = 1e-3
#: A difference of two fp32 likelihoods that may be none.
LEAST_STEP = 2e-7
#: More noise than this is no noise: of a score's logarithmic odds, and of a box's edge in pixels.
MOST_NOISE = 0.02, 0.1
#: Regions that are judged at once: they stay in the processor's caches.
REGIONS = 256
#: Of so many boxes the noise is measured whatever their scores.
LIKELIEST = 20
#: Proposals beyond the last that counts, which noise might put before it.
BEYOND = 32
#: Frames at once on an accelerator to begin with, and at most without and with one, where it is
#: found out; by how much more has to be faster, and how many calls it takes to know.
FIRST_BATCH, LAST_BATCH = 8, {False: 8, True: 64}
GROWTH, CALLS = 1.05, 3
#: Seconds of a call, on a CPU, from which on more frames at once aren't tried.
LONG = 0.15
#: Fewer frames aren't worth measuring noise.
WORTH_FRAMES = 8


@dataclass
class Noise:
    """The largest differences of the faster detector to the exact one, with the safety."""

    objectness: float = 0.0
    proposal: float = 0.0
    """Pixels of the detector's own picture."""
    merit: float = 0.0
    """Of a score's logarithmic odds."""
    box: float = 0.0
    """Pixels of the detector's own picture."""

    def grow(self, other: Noise) -> None:
        """Take the larger of each."""
        for name, value in asdict(other).items():
            setattr(self, name, max(getattr(self, name), value))


@dataclass(frozen=True)
class Found:
    """The boxes of a frame."""

    boxes: Tensor
    """(n, 4): left, top, right, bottom, in pixels of the frame, the best first."""
    scores: Tensor
    certain: bool
    error: float = 0.0
    """Pixels that an edge may be off."""


@dataclass(frozen=True)
class _Proposals:
    places: Tensor
    """(r,), of the anchors."""
    boxes: Tensor
    exist: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Judged:
    boxes: Tensor
    """(r, 4)"""
    merits: Tensor
    """(r,), float64: logarithmic odds."""


class QuickDetector(ABC):
    """A detector of torchvision's in its faster form, on a CPU."""

    def __init__(self, plain: Any, label: int, most: int) -> None:
        """Prepare ``plain``, which stays as it is; of its boxes the first ``most`` count."""
        self.plain = plain
        self.is_tiled = True
        self.fast = self._made()
        self._label = label
        self._most = most
        self._anchors: tuple[Any, Tensor] = (None, torch.empty(0))

    def untile(self) -> None:
        """Multiply as often as the exact form does: less fast, and ten times less noise."""
        self.is_tiled = False
        self.fast = self._made()

    def _made(self) -> Any:
        plain = self.plain
        lines = (module for module in plain.modules() if type(module) is nn.Linear)
        shared = {id(weight): weight for one in lines for weight in one.parameters()}
        made = copy.deepcopy(plain, shared)
        fold(made)
        made.to(memory_format=torch.channels_last)
        (fused.fuse_tiled if self.is_tiled else fused.fuse)(made)
        return made

    def found(self, x: Tensor, noise: Noise) -> list[Found]:
        """Return what is in each of some pictures; x (n, 3, height, width)."""
        images = self._images(x)
        judged = self._all_judged(self.fast, images, noise)
        sizes = images.image_sizes, [tuple(x.shape[-2:])] * len(x)
        return [
            self._verdict(*one, noise, *size) for one, *size in zip(judged, *sizes, strict=True)
        ]

    @abstractmethod
    def measured(self, x: Tensor) -> Noise:
        """Return the noise on some pictures, without the safety."""

    @abstractmethod
    def _all_judged(
        self, network: Any, images: ImageList, noise: Noise
    ) -> list[tuple[_Judged, npt.NDArray[np.bool_]]]:
        """Return of each picture what may be boxes, and which of it exists in any case."""

    @property
    @abstractmethod
    def _limits(self) -> tuple[float, float, int, float]:
        """The least score, the most overlap, how many boxes there are at most, their least side."""

    def _images(self, x: Tensor) -> ImageList:
        images, _ = self.plain.transform(list(x))
        tensors = images.tensors.contiguous(memory_format=torch.channels_last)
        return ImageList(tensors, images.image_sizes)

    def _anchors_of(self, images: ImageList, features: list[Tensor]) -> Tensor:
        generator = getattr(self.plain, "rpn", self.plain).anchor_generator
        size = (images.tensors.shape[-2:], *(feature.shape[-2:] for feature in features))
        if self._anchors[0] != size:
            one = ImageList(images.tensors[:1], images.image_sizes[:1])
            [anchors] = generator(one, [feature[:1] for feature in features])
            self._anchors = size, anchors
        return self._anchors[1]

    def _verdict(
        self,
        judged: _Judged,
        exist: npt.NDArray[np.bool_],
        noise: Noise,
        size: tuple[int, int],
        whole: tuple[int, int],
    ) -> Found:
        """Return the boxes that count, and whether they would be the same without the noise."""
        least, limit, count, side = self._limits
        floor = _odds(least)
        order = judged.merits.argsort(descending=True, stable=True)
        order = order[judged.merits[order] > floor - noise.merit]
        odds = judged.merits[order].numpy()
        found = clip_boxes_to_image(judged.boxes[order], size)
        array = found.numpy()
        exist = exist[order.numpy()] & (odds > floor + noise.merit)
        wide = (array[:, 2:] - array[:, :2]).min(axis=1, initial=np.inf)
        exist &= wide > side + 2 * LEAST_ERROR
        slack = boxes.slack_of(array, max(noise.box, LEAST_ERROR))
        kinds = np.zeros(len(odds), np.int64)
        state = boxes.kept(array, odds, kinds, exist, limit, noise.merit, slack)
        left = np.flatnonzero(state)
        rows = left[state[left] == boxes.KEPT][: min(self._most, count)]
        # Whatever comes before the last that counts, or might, has to be certain, its order too.
        last = int(rows[-1]) if len(rows) == min(self._most, count) else len(odds) - 1
        near = left[odds[left] >= odds[last] - noise.merit] if len(odds) else left
        likely = 1 / (1 + np.exp(-odds[near]))
        certain = (
            bool(np.isfinite(array).all() and np.isfinite(odds).all())
            and bool((state[near] == boxes.KEPT).all())
            and bool((np.diff(-odds[near]) > noise.merit).all())
            and bool((np.diff(-likely) > LEAST_STEP).all())
        )
        ratio = max(whole[0] / size[0], whole[1] / size[1])
        return Found(
            resize_boxes(found[rows], list(size), list(whole)),
            torch.from_numpy(1 / (1 + np.exp(-odds[rows]))).float(),
            certain,
            noise.box * ratio,
        )


class QuickSSD(QuickDetector):
    """torchvision's ``SSD``."""

    @property
    def _limits(self) -> tuple[float, float, int, float]:
        plain = self.plain
        return plain.score_thresh, plain.nms_thresh, plain.detections_per_img, -math.inf

    def measured(self, x: Tensor) -> Noise:
        """Return the noise on some pictures."""
        images, noise = self._images(x), Noise()
        both = [self._looked(network, images) for network in (self.plain, self.fast)]
        for exact, fast in zip(*both, strict=True):
            noise.grow(_difference(exact, fast, self._limits[0]))
        return noise

    def _looked(self, network: Any, images: ImageList) -> list[_Judged]:
        features = list(network.backbone(images.tensors).values())
        head = network.head(features)
        anchors = self._anchors_of(images, features)
        merits = _merits(head["cls_logits"], self._label)
        found = []
        for row, merit in enumerate(merits):
            decoded = self.plain.box_coder.decode_single(head["bbox_regression"][row], anchors)
            found.append(_Judged(decoded, merit))
        return found

    def _all_judged(
        self, network: Any, images: ImageList, noise: Noise
    ) -> list[tuple[_Judged, npt.NDArray[np.bool_]]]:
        found = []
        for one in self._looked(network, images):
            places, exist = _best(one.merits, self.plain.topk_candidates, noise.merit)
            found.append((_Judged(one.boxes[places], one.merits[places]), exist))
        return found


@dataclass(frozen=True)
class _Seen:
    features: dict[str, Tensor]
    objectness: list[Tensor]
    """Of each level: (n, anchors)."""
    deltas: list[Tensor]
    """Of each level: (n, anchors, 4)."""


class QuickRCNN(QuickDetector):
    """torchvision's ``FasterRCNN``."""

    @property
    def _limits(self) -> tuple[float, float, int, float]:
        heads = self.plain.roi_heads
        return heads.score_thresh, heads.nms_thresh, heads.detections_per_img, 1e-2

    def measured(self, x: Tensor) -> Noise:
        """Return the noise on some pictures."""
        images, noise = self._images(x), Noise()
        exact, fast = (self._seen(network, images) for network in (self.plain, self.fast))
        for true, other in zip(exact.objectness, fast.objectness, strict=True):
            noise.objectness = max(noise.objectness, float((true - other).abs().max()))
        for row in range(len(x)):
            there = self._proposals(fast, images, row, noise)
            boxes_ = self._decoded(exact, images, row, there.places)
            noise.proposal = max(noise.proposal, float(_largest(boxes_ - there.boxes)))
            [true_] = self._judged(self.plain, exact, images, [(row, boxes_)])
            [other_] = self._judged(self.fast, fast, images, [(row, there.boxes)])
            noise.grow(_difference(true_, other_, self._limits[0]))
        return noise

    def _all_judged(
        self, network: Any, images: ImageList, noise: Noise
    ) -> list[tuple[_Judged, npt.NDArray[np.bool_]]]:
        seen = self._seen(network, images)
        proposals = [
            self._proposals(seen, images, row, noise) for row in range(len(images.image_sizes))
        ]
        regions = [(row, one.boxes) for row, one in enumerate(proposals)]
        judged = self._judged(network, seen, images, regions)
        return [(one, there.exist) for one, there in zip(judged, proposals, strict=True)]

    def _seen(self, network: Any, images: ImageList) -> _Seen:
        features = network.backbone(images.tensors)
        objectness, deltas = network.rpn.head(list(features.values()))
        n = len(images.tensors)
        return _Seen(
            features,
            [level.permute(0, 2, 3, 1).reshape(n, -1) for level in objectness],
            [level.permute(0, 2, 3, 1).reshape(n, -1, 4) for level in deltas],
        )

    def _decoded(self, seen: _Seen, images: ImageList, row: int, places: Tensor) -> Tensor:
        """Return the boxes that anchors were moved to, within the picture."""
        rpn = self.plain.rpn
        anchors = self._anchors_of(images, list(seen.features.values()))
        starts = np.cumsum([0, *(level.shape[1] for level in seen.objectness)])
        moves = torch.empty((len(places), 4))
        for start, end, level in zip(starts, starts[1:], seen.deltas, strict=False):
            mine = (places >= int(start)) & (places < int(end))
            moves[mine] = level[row, places[mine] - int(start)]
        found = rpn.box_coder.decode_single(moves, anchors[places])
        inside: Tensor = clip_boxes_to_image(found, images.image_sizes[row])
        return inside

    def _proposals(self, seen: _Seen, images: ImageList, row: int, noise: Noise) -> _Proposals:
        """Return all that may be proposals, as torchvision's ``filter_proposals``."""
        rpn, start = self.plain.rpn, 0
        places, merits, exist, levels = [], [], [], []
        for number, level in enumerate(seen.objectness):
            best, there = _best(level[row], rpn.pre_nms_top_n(), noise.objectness)
            places.append(best + start)
            merits.append(level[row, best].double())
            exist.append(there)
            levels.append(np.full(len(best), number))
            start += level.shape[1]
        place, objectness = torch.cat(places), torch.cat(merits)
        there, kinds = np.concatenate(exist), np.concatenate(levels)
        found = self._decoded(seen, images, row, place)
        sides = (found[:, 2:] - found[:, :2]).amin(dim=1)
        floor = _odds(rpn.score_thresh)
        order = objectness.argsort(descending=True, stable=True)
        order = order[sides[order] >= rpn.min_size]
        order = order[objectness[order] >= floor - noise.objectness]
        rows = order.numpy()
        place, merit, found = place[order], objectness[order].numpy(), found[order]
        there = there[rows] & (merit >= floor + noise.objectness)
        array = found.numpy()
        slack = boxes.slack_of(array, max(noise.proposal, LEAST_ERROR))
        state = boxes.kept(
            array, merit, kinds[rows], there, rpn.nms_thresh, noise.objectness, slack
        )
        left = np.flatnonzero(state)
        certain = state[left] == boxes.KEPT
        # Of all levels together, the best are kept.
        before = np.searchsorted(-merit[left], -merit[left] - noise.objectness, side="left")
        sure = np.concatenate([[0], np.cumsum(certain)])
        left, certain, before = (
            values[sure[before] < rpn.post_nms_top_n()] for values in (left, certain, before)
        )
        behind = np.searchsorted(-merit[left], -merit[left] + noise.objectness, side="right")
        certain = (
            certain
            & (behind <= rpn.post_nms_top_n())
            & self._level_is_certain(array[left], slack[left])
        )
        return _Proposals(place[left], found[left], certain)

    def _level_is_certain(
        self, found: npt.NDArray[np.float32], slack: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Tell whose features come from the same level, whatever the noise of their sides."""
        pool = self.plain.roi_heads.box_roi_pool
        sides = np.maximum(found[:, 2:] - found[:, :2], 1e-3).astype(np.float64)
        level = np.log2(np.sqrt(sides.prod(axis=1)) / pool.canonical_scale) + 1e-6
        certain: npt.NDArray[np.bool_] = np.abs(level - level.round()) > slack
        return certain

    def _judged(
        self, network: Any, seen: _Seen, images: ImageList, regions: list[tuple[int, Tensor]]
    ) -> list[_Judged]:
        heads = network.roi_heads
        all_ = torch.cat([found for _, found in regions])
        rows = torch.cat([torch.full((len(found), 1), float(row)) for row, found in regions])
        merits, moves = [], []
        for whole in torch.split(torch.cat([rows, all_], dim=1), REGIONS):
            features = heads.box_head(self._pooled(seen, images, whole))
            logits, deltas = heads.box_predictor(features[: len(whole)])
            merits.append(_merits(logits, self._label))
            moves.append(deltas)
        merit, deltas = torch.cat(merits), torch.cat(moves)
        label = slice(4 * self._label, 4 * self._label + 4)
        decoded = heads.box_coder.decode_single(deltas[:, label], all_)
        counts = [len(found) for _, found in regions]
        both = zip(torch.split(decoded, counts), torch.split(merit, counts), strict=True)
        return [_Judged(*one) for one in both]

    def _pooled(self, seen: _Seen, images: ImageList, regions: Tensor) -> Tensor:
        """Return what torchvision's ``MultiScaleRoIAlign`` does of ``REGIONS``; some are none."""
        pool = self.plain.roi_heads.box_roi_pool
        levels = [value for name, value in seen.features.items() if name in pool.featmap_names]
        if pool.scales is None or pool.map_levels is None:
            pool(dict(seen.features), [regions[:1, 1:]], images.image_sizes)
        which = pool.map_levels([regions[:, 1:]]) if len(levels) > 1 else torch.zeros(len(regions))
        side = pool.output_size[0]
        # Always as many, for whose number weights are laid out.
        out = torch.zeros((REGIONS, side, side, levels[0].shape[1])).permute(0, 3, 1, 2)
        for number, (level, scale) in enumerate(zip(levels, pool.scales, strict=True)):
            places = (which == number).nonzero().flatten()
            boxes.pooled(level, regions[places], out, places, scale, pool.sampling_ratio)
        return out


def quick_of(model: Any, most: int) -> QuickDetector | None:
    """Return the faster form of a detector; None: its kind is not known.

    Args:
        model: what DeepLabCut's runner for detectors calls, on a CPU.
        most: boxes that count.
    """
    label = 1  # of two: the other is nothing
    if type(model) is FilteredDetector:
        plain, label = model.base_model, model.class_id
    elif type(model) in {AdaptedFasterRCNN, AdaptedSSDLite}:
        plain = model.model
    else:
        return None
    try:
        if type(plain) is FasterRCNN and _is_plain_rcnn(plain, type(model) is FilteredDetector):
            return QuickRCNN(plain, label, most)
        if type(plain) is SSD and type(model) is AdaptedSSDLite:
            return QuickSSD(plain, label, most)
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        log.info("the detector stays as it is: %s", error)
    return None


def _is_plain_rcnn(plain: Any, filtered: bool) -> bool:
    """Tell whether a FasterRCNN has the parts that are known, and all its boxes are of a kind."""
    heads = plain.roi_heads
    classes = heads.box_predictor.cls_score.out_features
    return (
        type(heads.box_roi_pool) is MultiScaleRoIAlign
        and len(set(heads.box_roi_pool.output_size)) == 1
        and heads.box_roi_pool.sampling_ratio > 0
        and not (heads.has_mask() or heads.has_keypoint())
        and (filtered or classes == 2)  # background and animal
    )


def _merits(logits: Tensor, label: int) -> Tensor:
    """Return the logarithmic odds of a class (..., classes); float64."""
    logits = logits.double()
    others = [number for number in range(logits.shape[-1]) if number != label]
    return logits[..., label] - logits[..., others].logsumexp(dim=-1)


def _odds(likelihood: float) -> float:
    if likelihood <= 0:
        return -math.inf
    return math.log(likelihood / (1 - likelihood)) if likelihood < 1 else math.inf


def _best(merits: Tensor, count: int, noise: float) -> tuple[Tensor, npt.NDArray[np.bool_]]:
    """Return which are, or may be, among the best, and which of those are in any case."""
    if len(merits) <= count:
        return torch.arange(len(merits)), np.ones(len(merits), bool)
    values, places = merits.topk(min(len(merits), count + BEYOND))
    inside = values[:count] > values[count] + noise
    beyond = values[count:] >= values[count - 1] - noise
    return places[: count + int(beyond.sum())], torch.cat([inside, beyond[beyond] & False]).numpy()


def _difference(exact: _Judged, fast: _Judged, least: float) -> Noise:
    """Return how much the odds and boxes of what may count differ."""
    counts = exact.merits > _odds(least) - 1
    counts[exact.merits.topk(min(LIKELIEST, len(exact.merits))).indices] = True
    merit = (exact.merits - fast.merits)[counts].abs()
    return Noise(
        merit=float(_largest(merit)), box=float(_largest((exact.boxes - fast.boxes)[counts]))
    )


def _is_little(noise: Noise) -> bool:
    """Tell whether boxes could be certain for such noise; not, if it is not a number."""
    merit, box = MOST_NOISE
    return noise.merit < merit and noise.box < box and noise.proposal < box


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


class Detector:
    """A model's detector, loaded and ready to run: as it is, and on a CPU a faster form."""

    def __init__(self, runner: Any, device: str) -> None:
        """Prepare DeepLabCut's DetectorInferenceRunner, which is on ``device``."""
        self.runner = runner
        self.device = torch.device(device)
        self.normalises = only_normalises(runner, [LoadImage, AugmentImage, ToTensor, ToBatch])
        self._quick: list[QuickDetector | None] = []
        self.batches: dict[tuple[int, ...], int] = {}
        """The batch that was found best, by the size of frames."""

    @property
    def quick(self) -> QuickDetector | None:
        """The faster form, made when first asked for; None: there is none."""
        if not self._quick:
            self._quick.append(self._made())
        return self._quick[0]

    def forget_quick(self) -> None:
        """Do without the faster form from now on."""
        self._quick = [None]

    def modules(self) -> list[Any]:
        """Return all that was made of the network."""
        return [self.runner.model, *(one.fast for one in self._quick if one is not None)]

    def _made(self) -> QuickDetector | None:
        if self.device.type != "cpu" or self.runner.inference_cfg.autocast.enabled:
            return None
        steps = self.runner.postprocessor.components
        [most] = [step.max_individuals["bboxes"] for step in steps if type(step) is TrimOutputs]
        return quick_of(self.runner.model, most)


@dataclass
class Detected:
    """What is known of the detector on one video; with it a run goes on as it would have."""

    noise: Noise
    frames: int = 0
    again: int = 0
    """Frames detected again by the detector as it is."""
    quick: bool = True
    """Whether the faster form is of use."""
    seen: bool = False
    """Whether the noise was measured on a frame that has a box."""


class Detections:
    """Takes the frames of a video, gives each with the boxes in it, in the same order."""

    def __init__(
        self, detector: Detector, crop: TopDownCrop, batch: int | None, frames: int | None
    ) -> None:
        """Prepare.

        Args:
            detector: the model's.
            crop: by which the boxes are cut out.
            batch: frames at once; None: found by timing.
            frames: of the video, as far as it is known.
        """
        self._detector = detector
        self._runner = detector.runner
        self._crop = crop
        self._asked = batch
        self._accelerated = detector.device.type != "cpu"
        self._context: Context | None = None
        self._size: tuple[int, ...] = ()
        self._seconds: dict[int, list[float]] = {}
        self._slow = self._fast = 0.0
        there = detector.quick is not None
        worth = frames is None or frames >= WORTH_FRAMES
        self.known = Detected(Noise(), quick=worth and there)
        self.setup = {"quick_detector": there}
        """What a state has to have been made with."""
        self.batch = batch or (FIRST_BATCH if self._accelerated else 1)
        """Frames at once."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here; JSON types."""
        return {"known": asdict(self.known), "batch": self.batch}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if state:
            known = state["known"]
            self.known = Detected(**{**known, "noise": Noise(**known["noise"])})
            self.batch = int(state["batch"])

    def summary(self) -> dict[str, Any]:
        """Return what the result tells."""
        return {
            "batch_size": self.batch,
            "used": "quick" if self.known.quick else "as it is",
            "frames_detected_again": self.known.again,
        }

    def found(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[tuple[int, Frame, Context]]:
        """Yield each frame's number, the frame (BGR), and its boxes.

        Raises:
            UnfaithfulError: the faster detector came to another box unnoticed; begin again.
        """
        waiting: deque[tuple[int, Frame]] = deque()
        flying: deque[tuple[list[tuple[int, Frame]], list[Any]]] = deque()
        in_flight = 2 if self._accelerated else 1
        more = True
        while more or waiting or flying:
            while more and len(waiting) < self.batch:
                frame = next(frames, None)
                if frame is None:
                    more = False
                else:
                    self._know(frame[1])
                    waiting.append(frame)
            group: list[tuple[int, Frame]] = []
            try:
                if waiting:
                    group = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
                    flying.append((group, self._launch([frame for _, frame in group])))
                    group = []
                    # On an accelerator, the next batch is begun before this one's poses are read.
                    if len(flying) < in_flight and more:
                        continue
                if not flying:
                    return
                group, launched = flying.popleft()
            except Exception as error:
                if not is_out_of_memory(error) or self.batch == 1:
                    raise
                waiting.extendleft(reversed(group))
                self._halve()
                continue
            for one, context in zip(group, launched, strict=True):
                self.known.frames += 1
                yield (*one, context)

    def _know(self, frame: Frame) -> None:
        """Take the batch that was found for frames of this size before."""
        if not self._size:
            self._size = frame.shape
            if self._asked is None:
                self.batch = self._detector.batches.get(self._size, self.batch)

    def _halve(self) -> None:
        self.batch = max(1, self.batch // 2)
        self._seconds = {2 * self.batch: [math.inf, math.inf]}  # known to be too much
        self._detector.batches[self._size] = self.batch
        print(f"out of memory: {self.batch} frames at once from now on")
        if self._accelerated:
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _launch(self, frames: list[Frame]) -> list[Context]:
        x = self._prepared(frames)
        if not self.known.quick:
            began = time.perf_counter()
            found = self._runner.predict(x)[: len(frames)]
            self._learn(len(frames), time.perf_counter() - began)
            return [self._boxes(one) for one in found]
        quick = self._detector.quick
        assert quick is not None  # noqa: S101  # else it is not of use
        first = self.known.frames
        checked = [row for row in range(len(x)) if (first + row) % CHECK_EVERY == 0]
        for row in checked:
            self._measure(quick, x[row : row + 1])
        if not self.known.quick:
            return [self._boxes(one) for one in self._runner.predict(x)]
        began = time.perf_counter()
        seen = quick.found(x, self.known.noise)
        seconds = time.perf_counter() - began
        self._learn(len(frames), seconds)
        self._fast = seconds / len(frames)
        contexts = []
        for row, one in enumerate(seen):
            if len(one.boxes) and not self.known.seen:
                # Of frames with nothing in them, the noise tells little.
                self.known.seen = True
                self._measure(quick, x[row : row + 1])
                [one] = quick.found(x[row : row + 1], self.known.noise)
                checked.append(row)
            raw = {"bboxes": one.boxes.numpy(), "scores": one.scores.numpy()}
            context = self._boxes({"detection": raw})
            certain = one.certain and self._is_certain(context["bboxes"], one.error)
            if not certain or row in checked:
                began = time.perf_counter()
                exact = self._boxes(self._runner.predict(x[row : row + 1])[0])
                self._slow = time.perf_counter() - began
                if certain and not self._same(context, exact):
                    self._detector.forget_quick()
                    raise UnfaithfulError("the faster detector found another box unnoticed")
                context = exact
            self.known.again += not certain
            contexts.append(context)
        self._weigh(len(frames))
        return contexts

    def _prepared(self, frames: list[Frame]) -> Tensor:
        """Return frames as the detector takes them, (n, 3, height, width); as many as it wants."""
        size = self.batch if self._accelerated else len(frames)
        frames = frames + frames[-1:] * (size - len(frames))
        if self._context is None or not self._detector.normalises:
            parts = []
            for frame in frames:
                self._context = {}
                rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                x, self._context = self._runner.preprocessor(rgb, self._context)
                parts.append(x)
            return torch.cat(parts).to(self._detector.device)
        pixels = torch.from_numpy(np.stack(frames)).to(self._detector.device)
        return normalised(pixels)

    def _boxes(self, found: dict[str, Any]) -> Context:
        """Return what DeepLabCut's runner makes of what the detector returned for a frame."""
        copied = {name: value.copy() for name, value in found["detection"].items()}
        context, _ = self._runner.postprocessor([{"detection": copied}], dict(self._context or {}))
        return dict(context)

    def _measure(self, quick: QuickDetector, x: Tensor) -> None:
        noise = quick.measured(x)
        if not _is_little(noise) and quick.is_tiled:
            quick.untile()
            noise = quick.measured(x)
        if not _is_little(noise):
            log.info("the detector stays as it is: %s", noise)
            self.known.quick = False
        self.known.noise.grow(
            Noise(**{name: SAFETY * value for name, value in asdict(noise).items()})
        )

    def _weigh(self, frames: int) -> None:
        """Do without the faster form where it has to be repeated too often."""
        done = self.known.frames + frames
        share = self.known.again / done
        if done >= WORTH_FRAMES and self._fast + share * self._slow > self._slow / GROWTH > 0:
            log.info("the detector as it is, from now on: %s of %s again", self.known.again, done)
            self.known.quick = False

    def _learn(self, frames: int, seconds: float) -> None:
        """Try twice as many frames at once, as long as that is faster."""
        if self._asked is not None or frames != self.batch:
            return
        # The first call of a size prepares; of the others the fastest counts.
        self._seconds.setdefault(frames, []).append(seconds / frames)
        if len(self._seconds[frames]) < CALLS:
            return
        best = {size: min(some[1:]) for size, some in self._seconds.items() if len(some) > 1}
        half = best.get(frames // 2)
        if half is not None and best[frames] * GROWTH > half:
            self.batch = frames // 2
        elif self._may_grow(frames, best):
            self.batch = 2 * frames
        self._detector.batches[self._size] = self.batch

    def _may_grow(self, frames: int, best: dict[int, float]) -> bool:
        if 2 * frames in best or 2 * frames > LAST_BATCH[self._accelerated]:
            return False
        # What takes a processor long fills its caches by itself.
        return self._accelerated or frames * best[frames] < LONG

    def _is_certain(self, found: npt.NDArray[Any], error: float) -> bool:
        """Tell whether an error of boxes' edges can't change what is cut out."""
        edges = edges_of(found.astype(np.float64), self._crop)
        width, height = self._crop.output_size
        scales = (self._context or {}).get("scales", (1.0, 1.0))
        off = error * max(scales) * (1 + max(1.0, width / height, height / width))
        off += 4 * float(np.spacing(np.float32(max(1.0, np.abs(edges).max(initial=0.0)))))
        # Both are rounded: how far it is to the middle of two pixels.
        away = np.abs(edges - np.floor(edges) - 0.5)
        return bool((away > off).all())

    def _same(self, one: Context, other: Context) -> bool:
        if len(one["bboxes"]) != len(other["bboxes"]):
            return False
        edges = [edges_of(its["bboxes"].astype(np.float64), self._crop) for its in (one, other)]
        return bool((np.rint(edges[0]) == np.rint(edges[1])).all())


def edges_of(found: npt.NDArray[np.float64], crop: TopDownCrop) -> npt.NDArray[np.float64]:
    """Return left, top, right, bottom of what DeepLabCut's ``top_down_crop`` cuts out, unrounded.

    Args:
        found: (n, 4): boxes: left, top, width, height.
        crop: DeepLabCut's step.
    """
    left, top, width, height = found.T
    x, y = left + width / 2, top + height / 2
    width, height = width + 2 * crop.margin, height + 2 * crop.margin
    if crop.with_context:
        ratio = crop.output_size[0] / crop.output_size[1]
        width, height = np.maximum(width, height * ratio), np.maximum(height, width / ratio)
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)


def only_normalises(runner: Any, kinds: list[type]) -> bool:
    """Tell whether a runner's preprocessor is of these steps, the augmentation a mere Normalize."""
    steps = runner.preprocessor.components
    if [type(step) for step in steps] != kinds:
        return False
    transforms = list(steps[kinds.index(AugmentImage)].transform)
    return [type(one).__name__ for one in transforms] == ["Normalize"]
