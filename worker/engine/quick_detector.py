"""A faster form of torchvision's detectors for a CPU, that knows which of its boxes are certain.

What a detector decides is which rectangle of whole pixels is cut out for each animal, and in which
order. Nothing else of it reaches a pose. So on a CPU torchvision's detectors are computed with
their norms folded, their weights laid out and most multiplications saved (:mod:`worker.cpu.fused`),
which errs by some millionths; and where such an error could lead to another rectangle, the frame is
detected again by DeepLabCut's detector as it is:

* The first frame, and the first with a box, are computed both ways, stage by stage, which gives the
  *noise* of each stage: objectness, proposals, scores, boxes. So is every ``CHECK_EVERY``-th, by
  which noise may grow. What the detector as it is comes to on the way is listened to, so that it
  runs once.
* A proposal is certain if neither the noise of a score nor that of an overlap decides whether
  non-maximum suppression keeps it, and it is judged by features of the same level in any case.
  What is uncertain is judged as well, as far as it comes near to the others.
* Of the boxes that come out, as many count as the model has individuals. Each of them and all that
  could take their place have to be certain, their order too, and no side of what is cut out may be
  so near to the middle of two pixels that noise decides which of them it is rounded to.
* Of a thousand proposals few can be among those boxes. Where the processor multiplies bf16 faster,
  all are judged in bf16 first, and in fp32 only those that are, by the noise of that, good enough.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
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

from worker import hardware
from worker.cpu import fused
from worker.engine import boxes
from worker.precision.variants import fold

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Pixels that an edge is off in any case: torchvision shifts boxes to suppress those of each kind
#: by themselves, and rounds them by it.
LEAST_ERROR = 1e-3
#: Two likelihoods that differ by less may be the same in fp32.
LEAST_STEP = 2e-7
#: More noise than this is no noise: of a score's logarithmic odds, and of a box's edge in pixels.
MOST_NOISE = 0.02, 0.1
#: Regions that are judged at once: they stay in the processor's caches.
REGIONS = 256
#: The same of the few that a first look in bf16 has left.
PICKED = 64
#: Of so many boxes the noise is measured whatever their scores.
LIKELIEST = 20
#: Proposals beyond the last that counts, which noise might put before it.
BEYOND = 32


@dataclass
class Noise:
    """The largest differences of the faster detector to the exact one.

    As they were measured, or, where boxes are judged by them, times ``detection.SAFETY``.
    """

    objectness: float = 0.0
    proposal: float = 0.0
    """Pixels of the detector's own picture."""
    merit: float = 0.0
    """Of a score's logarithmic odds."""
    box: float = 0.0
    """Pixels of the detector's own picture."""
    rough: float = 0.0
    """Of the odds in bf16, to those in fp32; 0: not known."""

    @property
    def is_little(self) -> bool:
        """Whether boxes could be certain for such noise; not, if it is not a number."""
        merit, box = MOST_NOISE
        return self.merit < merit and self.box < box and self.proposal < box

    def grow(self, other: Noise) -> None:
        """Take the larger of each."""
        for name, value in asdict(other).items():
            setattr(self, name, max(getattr(self, name), value))


@dataclass(frozen=True)
class FoundBoxes:
    """The boxes of a frame."""

    boxes: Tensor
    """(n, 4): left, top, right, bottom, in pixels of the frame, the best first."""
    scores: Tensor
    certain: bool
    error: float = 0.0
    """Pixels that an edge may be off."""


@dataclass(frozen=True)
class Outputs:
    """What a detector's network makes of some pictures, before a box is chosen."""

    images: ImageList
    """The pictures as the network gets them."""
    whole: tuple[int, ...]
    """Height and width of a frame."""
    features: dict[str, Tensor]
    head: Any
    """What its head for all anchors returned."""


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


@dataclass(frozen=True)
class _Picked:
    """What of a picture may be boxes that count."""

    judged: _Judged
    exist: npt.NDArray[np.bool_]
    """(r,), which of it exists in any case."""
    others: float = -math.inf
    """The logarithmic odds that nothing else exceeds."""


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
        if self.is_tiled:
            fused.fuse_tiled(made)
        else:
            fused.fuse(made)
        return made

    def modules(self) -> list[Any]:
        """Return all that was made of the detector."""
        return [self.fast]

    def outputs(self, x: Tensor) -> Outputs:
        """Return what the faster form makes of some pictures; x (n, 3, height, width)."""
        images = self._images(x)
        features = self.fast.backbone(images.tensors)
        head = self._head_of(self.fast)(list(features.values()))
        return Outputs(images, tuple(x.shape[-2:]), features, head)

    def heard(self, predict: Callable[[Tensor], T], x: Tensor) -> tuple[T, Outputs]:
        """Return what the detector as it is finds, and what it came to on the way.

        Args:
            predict: runs it.
            x: pictures, (n, 3, height, width).
        """
        said: dict[str, Any] = {}
        parts = {"features": self.plain.backbone, "head": self._head_of(self.plain)}
        with ExitStack() as stack:
            for name, part in parts.items():
                hook = part.register_forward_hook(
                    lambda _, __, output, name=name: said.update({name: output})
                )
                stack.callback(hook.remove)
            answer = predict(x)
        return answer, Outputs(self._images(x), tuple(x.shape[-2:]), **said)

    def found(self, outputs: Outputs, noise: Noise) -> list[FoundBoxes]:
        """Return what is in each of the pictures whose outputs these are."""
        return [
            self._verdict(one, noise, size, outputs.whole)
            for one, size in zip(
                self._picked(outputs, noise), outputs.images.image_sizes, strict=True
            )
        ]

    @abstractmethod
    def noise_of(self, exact: Outputs, fast: Outputs, row: int) -> Noise:
        """Return the noise on a picture, without the safety.

        Args:
            exact: what the detector as it is made of this picture alone.
            fast: what the faster form made of several.
            row: which of those it is.
        """

    @abstractmethod
    def _picked(self, outputs: Outputs, noise: Noise) -> list[_Picked]:
        """Return of each picture what may be boxes that count."""

    @abstractmethod
    def _head_of(self, network: Any) -> nn.Module:
        """Return the part that judges all anchors by the features of all levels."""

    @property
    @abstractmethod
    def _limits(self) -> tuple[float, float, int, float]:
        """The least score, the most overlap, how many boxes there are at most, their least side."""

    def _images(self, x: Tensor) -> ImageList:
        images, _ = self.plain.transform(list(x))
        tensors = images.tensors.contiguous(memory_format=torch.channels_last)
        return ImageList(tensors, images.image_sizes)

    def _anchors_of(self, outputs: Outputs) -> Tensor:
        generator = getattr(self.plain, "rpn", self.plain).anchor_generator
        images, features = outputs.images, list(outputs.features.values())
        size = (images.tensors.shape[-2:], *(feature.shape[-2:] for feature in features))
        if self._anchors[0] != size:
            one = ImageList(images.tensors[:1], images.image_sizes[:1])
            [anchors] = generator(one, [feature[:1] for feature in features])
            self._anchors = size, anchors
        return self._anchors[1]

    def _verdict(
        self,
        picked: _Picked,
        noise: Noise,
        size: tuple[int, int],
        whole: tuple[int, ...],
    ) -> FoundBoxes:
        """Return the boxes that count, and whether they would be the same without the noise."""
        least, limit, count, side = self._limits
        floor = _odds(least)
        judged = picked.judged
        order = judged.merits.argsort(descending=True, stable=True)
        order = order[judged.merits[order] > floor - noise.merit]
        odds = judged.merits[order].numpy()
        found = clip_boxes_to_image(judged.boxes[order], size)
        exist = picked.exist[order.numpy()] & (odds > floor + noise.merit)
        behind = _behind(odds, noise.merit)
        single = boxes.without_twins(found.numpy(), odds, exist, behind)
        odds, exist, behind = odds[single], exist[single], behind[single]
        found = found[torch.from_numpy(single)]
        array = found.numpy()
        wide = (array[:, 2:] - array[:, :2]).min(axis=1, initial=np.inf)
        exist &= wide > side + 2 * LEAST_ERROR
        slack = boxes.slack_of(array, max(noise.box, LEAST_ERROR))
        kinds = np.zeros(len(odds), np.int64)
        state = boxes.kept(array, odds, kinds, exist, limit, behind, slack)
        left = np.flatnonzero(state)
        rows = left[state[left] == boxes.KEPT][: min(self._most, count)]
        # Whatever comes before the last that counts, or might, has to be certain, its order too.
        full = len(rows) == min(self._most, count)
        last = int(rows[-1]) if full else len(odds) - 1
        near = left[odds[left] >= behind[last]] if len(odds) else left
        likely = 1 / (1 + np.exp(-odds[near]))
        certain = (
            bool(np.isfinite(array).all() and np.isfinite(odds).all())
            and bool((state[near] == boxes.KEPT).all())
            and bool((np.diff(-odds[near]) > noise.merit).all())
            and bool((np.diff(-likely) > LEAST_STEP).all())
            and picked.others < (behind[last] if full else floor - noise.merit)
        )
        return FoundBoxes(
            resize_boxes(found[rows], list(size), list(whole)),
            torch.from_numpy(1 / (1 + np.exp(-odds[rows]))).float(),
            certain,
            noise.box * max(whole[0] / size[0], whole[1] / size[1]),
        )


class QuickSSD(QuickDetector):
    """torchvision's ``SSD``."""

    @property
    def _limits(self) -> tuple[float, float, int, float]:
        plain = self.plain
        return plain.score_thresh, plain.nms_thresh, plain.detections_per_img, -math.inf

    def noise_of(self, exact: Outputs, fast: Outputs, row: int) -> Noise:
        """Return the noise on a picture."""
        return _difference(self._judged(exact, 0), self._judged(fast, row), self._limits[0])

    def _head_of(self, network: Any) -> nn.Module:
        head: nn.Module = network.head
        return head

    def _judged(self, outputs: Outputs, row: int) -> _Judged:
        """Return what the head says of a picture's anchors."""
        moves = outputs.head["bbox_regression"][row]
        return _Judged(
            self.plain.box_coder.decode_single(moves, self._anchors_of(outputs)),
            _merits(outputs.head["cls_logits"][row], self._label),
        )

    def _picked(self, outputs: Outputs, noise: Noise) -> list[_Picked]:
        found = []
        for row in range(len(outputs.images.image_sizes)):
            one = self._judged(outputs, row)
            places, exist = _best(one.merits, self.plain.topk_candidates, noise.merit)
            found.append(_Picked(_Judged(one.boxes[places], one.merits[places]), exist))
        return found


class QuickRCNN(QuickDetector):
    """torchvision's ``FasterRCNN``."""

    def __init__(self, plain: Any, label: int, most: int) -> None:
        """Prepare ``plain``, which stays as it is; of its boxes the first ``most`` count."""
        super().__init__(plain, label, most)
        self._rough = _rough_of(plain.roi_heads)

    def modules(self) -> list[Any]:
        """Return all that was made of the detector."""
        return [*super().modules(), *([] if self._rough is None else [self._rough])]

    @property
    def _limits(self) -> tuple[float, float, int, float]:
        heads = self.plain.roi_heads
        return heads.score_thresh, heads.nms_thresh, heads.detections_per_img, 1e-2

    def noise_of(self, exact: Outputs, fast: Outputs, row: int) -> Noise:
        """Return the noise on a picture."""
        noise = Noise()
        for true, other in zip(_objectness(exact, 0), _objectness(fast, row), strict=True):
            noise.objectness = max(noise.objectness, float((true - other).abs().max()))
        there = self._proposals(fast, row, noise)
        boxes_ = self._decoded(exact, 0, there.places)
        noise.proposal = float(_largest(boxes_ - there.boxes))
        [true_] = self._judged(self.plain.roi_heads, exact, [(0, boxes_)])
        regions = [(row, there.boxes)]
        [other_] = self._judged(self.fast.roi_heads, fast, regions)
        noise.grow(_difference(true_, other_, self._limits[0]))
        if self._rough is not None:
            [rough] = self._judged(self._rough, fast, regions)
            noise.rough = _difference(other_, rough, self._limits[0]).merit
        return noise

    def _head_of(self, network: Any) -> nn.Module:
        head: nn.Module = network.rpn.head
        return head

    def _picked(self, outputs: Outputs, noise: Noise) -> list[_Picked]:
        rows = range(len(outputs.images.image_sizes))
        proposals = [self._proposals(outputs, row, noise) for row in rows]
        regions = [(row, one.boxes) for row, one in enumerate(proposals)]
        if self._rough is None or not noise.rough:
            judged = self._judged(self.fast.roi_heads, outputs, regions)
            return [_Picked(one, there.exist) for one, there in zip(judged, proposals, strict=True)]
        rough = self._judged(self._rough, outputs, regions)
        return [
            self._judged_again(outputs, row, there, one, noise)
            for row, (there, one) in enumerate(zip(proposals, rough, strict=True))
        ]

    def _judged_again(
        self,
        outputs: Outputs,
        row: int,
        there: _Proposals,
        rough: _Judged,
        noise: Noise,
    ) -> _Picked:
        """Judge in fp32 which of a picture's proposals may be boxes that count, going by bf16."""
        merits = rough.merits.numpy()
        chosen = np.flatnonzero(
            merits >= self._least_that_counts(rough, outputs.images.image_sizes[row], noise)
        )
        places = torch.from_numpy(chosen)
        [judged] = self._judged(self.fast.roi_heads, outputs, [(row, there.boxes[places])], PICKED)
        others = float(np.delete(merits, chosen).max(initial=-math.inf)) + noise.rough
        if _largest(judged.merits - rough.merits[places]) > noise.rough:
            others = math.inf  # the noise is more than was known
        return _Picked(judged, there.exist[chosen], others)

    def _least_that_counts(self, rough: _Judged, size: tuple[int, int], noise: Noise) -> float:
        """Return the odds in bf16 that a box has to have, to be perhaps one of those that count."""
        least, limit, count, _ = self._limits
        order = rough.merits.argsort(descending=True, stable=True)
        found = clip_boxes_to_image(rough.boxes[order], size).numpy()
        odds = rough.merits[order].numpy()
        n = len(odds)
        state = boxes.kept(
            found, odds, np.zeros(n, np.int64), np.ones(n, np.bool_), limit, odds, np.zeros(n)
        )
        kept = odds[state == boxes.KEPT][: min(self._most, count)]
        full = len(kept) == min(self._most, count)
        worst = max(float(kept[-1]), _odds(least)) if full else _odds(least)
        # Both may be off, the worst that counts and what might take its place.
        return worst - 2 * (noise.rough + noise.merit)

    def _decoded(self, outputs: Outputs, row: int, places: Tensor) -> Tensor:
        """Return the boxes that anchors were moved to, within the picture."""
        rpn = self.plain.rpn
        anchors = self._anchors_of(outputs)
        deltas = _deltas(outputs, row)
        starts = np.cumsum([0, *(len(level) for level in deltas)])
        moves = torch.empty((len(places), 4))
        for start, end, level in zip(starts, starts[1:], deltas, strict=False):
            mine = (places >= int(start)) & (places < int(end))
            moves[mine] = level[places[mine] - int(start)]
        found = rpn.box_coder.decode_single(moves, anchors[places])
        inside: Tensor = clip_boxes_to_image(found, outputs.images.image_sizes[row])
        return inside

    def _proposals(self, outputs: Outputs, row: int, noise: Noise) -> _Proposals:
        """Return all that may be proposals, as torchvision's ``filter_proposals``."""
        rpn = self.plain.rpn
        place, objectness, there, kinds = self._best_of_levels(outputs, row, noise)
        found = self._decoded(outputs, row, place)
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
        # Of two that are as good in fp32, torchvision too takes the one of more objectness.
        behind = merit - noise.objectness
        state = boxes.kept(array, merit, kinds[rows], there, rpn.nms_thresh, behind, slack)
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

    def _best_of_levels(
        self, outputs: Outputs, row: int, noise: Noise
    ) -> tuple[Tensor, Tensor, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Return the likeliest anchors of each level, or what may be among them.

        Returns:
            Their places among all anchors, their objectness (float64), which of them are among the
            likeliest in any case, and the level of each; (anchors,).
        """
        start = 0
        places, merits, exist, levels = [], [], [], []
        for number, level in enumerate(_objectness(outputs, row)):
            best, there = _best(level, self.plain.rpn.pre_nms_top_n(), noise.objectness)
            places.append(best + start)
            merits.append(level[best].double())
            exist.append(there)
            levels.append(np.full(len(best), number))
            start += len(level)
        return (
            torch.cat(places), torch.cat(merits), np.concatenate(exist), np.concatenate(levels)
        )  # fmt: skip

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
        self,
        heads: Any,
        outputs: Outputs,
        regions: list[tuple[int, Tensor]],
        at_once: int = REGIONS,
    ) -> list[_Judged]:
        """Return what heads say of regions, by picture: each its row, and boxes (r, 4)."""
        dtype = heads.box_predictor.cls_score.weight.dtype
        all_ = torch.cat([found for _, found in regions])
        rows = torch.cat([torch.full((len(found), 1), float(row)) for row, found in regions])
        merits, moves = [], []
        for whole in torch.split(torch.cat([rows, all_], dim=1), at_once):
            features = heads.box_head(self._pooled(outputs, whole, at_once).to(dtype))
            logits, deltas = heads.box_predictor(features[: len(whole)])
            merits.append(_merits(logits, self._label))
            moves.append(deltas.float())
        merit, deltas = torch.cat(merits), torch.cat(moves)
        label = slice(4 * self._label, 4 * self._label + 4)
        decoded = self.plain.roi_heads.box_coder.decode_single(deltas[:, label], all_)
        counts = [len(found) for _, found in regions]
        both = zip(torch.split(decoded, counts), torch.split(merit, counts), strict=True)
        return [_Judged(*one) for one in both]

    def _pooled(self, outputs: Outputs, regions: Tensor, at_once: int) -> Tensor:
        """Return what torchvision's ``MultiScaleRoIAlign`` does, ``at_once``; some are none."""
        pool = self.plain.roi_heads.box_roi_pool
        levels = [value for name, value in outputs.features.items() if name in pool.featmap_names]
        if pool.scales is None or pool.map_levels is None:
            pool(dict(outputs.features), [regions[:1, 1:]], outputs.images.image_sizes)
        which = pool.map_levels([regions[:, 1:]]) if len(levels) > 1 else torch.zeros(len(regions))
        side = pool.output_size[0]
        # Always as many, for whose number weights are laid out.
        out = torch.zeros((at_once, side, side, levels[0].shape[1])).permute(0, 3, 1, 2)
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


def _rough_of(heads: Any) -> nn.Module | None:
    """Return a detector's last layers in the 16-bit numbers of the processor; None: it has none."""
    dtype = hardware.native_dtype(torch.device("cpu"))
    if dtype is None:
        return None
    made = nn.ModuleDict(
        {name: copy.deepcopy(getattr(heads, name)) for name in ("box_head", "box_predictor")}
    )
    fold(made)
    made.to(dtype).to(memory_format=torch.channels_last)
    fused.fuse(made)
    return made


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


def _objectness(outputs: Outputs, row: int) -> list[Tensor]:
    """Return the objectness of a picture's anchors: of each level, (anchors,)."""
    objectness, _ = outputs.head
    return [level[row].permute(1, 2, 0).flatten() for level in objectness]


def _deltas(outputs: Outputs, row: int) -> list[Tensor]:
    """Return how a picture's anchors are moved: of each level, (anchors, 4)."""
    _, deltas = outputs.head
    return [level[row].permute(1, 2, 0).reshape(-1, 4) for level in deltas]


def _merits(logits: Tensor, label: int) -> Tensor:
    """Return the logarithmic odds of a class (..., classes); float64."""
    logits = logits.double()
    others = [number for number in range(logits.shape[-1]) if number != label]
    return logits[..., label] - logits[..., others].logsumexp(dim=-1)


def _odds(likelihood: float) -> float:
    if likelihood <= 0:
        return -math.inf
    return math.log(likelihood / (1 - likelihood)) if likelihood < 1 else math.inf


def _behind(odds: npt.NDArray[np.float64], noise: float) -> npt.NDArray[np.float64]:
    """Return the odds under which a box comes behind each of these in any case.

    torchvision compares likelihoods in fp32: those near 1 are the same, whatever their odds, and
    then the order of proposals decides.
    """
    rest = 1 / (1 + np.exp(odds)) + LEAST_STEP
    with np.errstate(divide="ignore"):
        stepped = np.log(np.maximum(1 - rest, 0) / rest)
    behind: npt.NDArray[np.float64] = np.minimum(odds - noise, stepped)
    return behind


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


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
