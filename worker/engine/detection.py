"""Animals found in frames, for top-down models: DeepLabCut's detector, in batches, and faster.

On a CPU torchvision's detectors are computed faster (:mod:`worker.engine.quick_detector`). A
frame in which that could lead to another box is detected again by DeepLabCut's detector as it is.

Other detectors, and those on an accelerator, are called as they are, on a batch of frames.
"""

from __future__ import annotations

import logging
import math
import time
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
from torch import Tensor

from worker import hardware
from worker.engine.padding import padding_of
from worker.engine.quick_detector import FoundBoxes, Noise, Outputs, QuickDetector, quick_of
from worker.gpu.staging import normalised
from worker.memory import is_out_of_memory

log = logging.getLogger(__name__)

Frame = npt.NDArray[np.uint8]
#: What DeepLabCut's runner for poses takes with a frame: ``bboxes`` (n, 4), left, top, width and
#: height, and ``bbox_scores`` (n,).
FrameContext = dict[str, Any]

#: One of so many frames is computed both ways.
CHECK_EVERY = 256
#: The largest difference of all frames may be so many times that of the frames checked.
SAFETY = 4.0
#: Frames at once on an accelerator, to begin with. (A CPU begins with one.)
FIRST_BATCH = 8
#: Frames at once, at most: without (False) and with an accelerator.
LAST_BATCH = {False: 8, True: 64}
#: A larger batch has to be so many times as fast, a frame, of so many calls.
GROWTH, CALLS = 1.05, 3
#: Where a call takes so many seconds on a CPU, no more frames at once are tried.
LONG = 0.15
#: In films of fewer frames the noise is not measured: the detector runs as it is.
WORTH_FRAMES = 8


class UnfaithfulDetectorError(Exception):
    """The faster detector found another box and did not notice: begin again, it is gone."""


class Detector:
    """A model's detector, loaded and ready to run: as it is, and on a CPU a faster form."""

    def __init__(self, runner: Any, device: str) -> None:
        """Prepare DeepLabCut's DetectorInferenceRunner, which is on ``device``."""
        self.runner = runner
        self.device = torch.device(device)
        self.padding = padding_of(runner, [LoadImage, AugmentImage, ToTensor, ToBatch])
        """How frames are padded; None where DeepLabCut does more to them, but for normalising."""
        self._quick: QuickDetector | None = None
        self._quick_is_tried = False
        self.batches: dict[tuple[int, ...], int] = {}
        """The batch that was found best, by the size of frames."""

    def make_quick(self) -> QuickDetector | None:
        """Return the faster form, which the first call makes; None: there is none."""
        if not self._quick_is_tried:
            self._quick = self._made()
            self._quick_is_tried = True
        return self._quick

    def forget_quick(self) -> None:
        """Drop the faster form: from now on there is none."""
        self._quick, self._quick_is_tried = None, True

    def modules(self) -> list[Any]:
        """Return all that was made of the network."""
        return [self.runner.model, *([] if self._quick is None else self._quick.modules())]

    def _made(self) -> QuickDetector | None:
        if self.device.type != "cpu" or self.runner.inference_cfg.autocast.enabled:
            return None
        steps = self.runner.postprocessor.components
        [most] = [step.max_individuals["bboxes"] for step in steps if type(step) is TrimOutputs]
        return quick_of(self.runner.model, most)


@dataclass
class Detected:
    """What one video has taught of its detector; a checkpoint keeps it."""

    noise: Noise
    frames: int = 0
    again: int = 0
    """Frames detected again by the detector as it is."""
    quick: bool = True
    """Whether the faster form is of use."""
    seen: bool = False
    """Whether the noise was measured on a frame that has a box."""
    tiled: bool = True
    """Whether it was measured with most multiplications of 3x3 convolutions saved."""


class Detections:
    """The detector on one video: frames in, and out with the boxes in them, in the same order."""

    def __init__(
        self, detector: Detector, crop: TopDownCrop, batch: int | None, frames: int | None
    ) -> None:
        """Prepare to detect in one video.

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
        self._context: FrameContext | None = None
        self._size: tuple[int, ...] = ()
        self._seconds: dict[int, list[float]] = {}
        self._slow = self._fast = math.inf
        self._prepared_for: set[int] = set()
        """Numbers of frames at once that the faster form was called with."""
        there = detector.make_quick() is not None
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
        """Take up what :meth:`state` returned in an earlier attempt."""
        if state:
            known = state["known"]
            self.known = Detected(**{**known, "noise": Noise(**known["noise"])})
            self.batch = int(state["batch"])
            quick = self._detector.make_quick()
            if quick is not None and quick.is_tiled and not self.known.tiled:
                quick.untile()  # else it would err by more than is known

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of the detector."""
        return {
            "batch_size": self.batch,
            "used": "quick" if self.known.quick else "as it is",
            "frames_detected_again": self.known.again,
        }

    def found(
        self, frames: Iterator[tuple[int, Frame]]
    ) -> Iterator[tuple[int, Frame, FrameContext]]:
        """Yield frames with the boxes in them: number, frame (BGR), and DeepLabCut's context.

        Raises:
            UnfaithfulDetectorError: the faster detector came to another box unnoticed; begin again.
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
        """Learn the frames' size from the first one, and take the batch that was best for it."""
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
            hardware.released()

    @torch.inference_mode()
    def _launch(self, frames: list[Frame]) -> list[FrameContext]:
        x = self._prepared(frames)
        if not self.known.quick:
            began = time.perf_counter()
            found = self._runner.predict(x)[: len(frames)]
            self._learn(len(frames), time.perf_counter() - began)
            return [self._boxes(one) for one in found]
        quick = self._detector.make_quick()
        assert quick is not None  # noqa: S101  # else it is not of use
        first = self.known.frames
        began = time.perf_counter()
        outputs = quick.outputs(x)
        seconds = time.perf_counter() - began
        exact: dict[int, Any] = {}
        for row in range(len(x)):
            if (first + row) % CHECK_EVERY == 0:
                exact[row], outputs = self._measured(quick, outputs, x, row)
        began = time.perf_counter()
        seen = quick.found(outputs, self.known.noise) if self.known.quick else []
        seconds += time.perf_counter() - began
        with_box = next((row for row, one in enumerate(seen) if len(one.boxes)), None)
        if with_box is not None and not self.known.seen:
            if with_box not in exact:
                # Of frames with nothing in them, the noise tells little: all are judged once more.
                exact[with_box], outputs = self._measured(quick, outputs, x, with_box)
                seen = quick.found(outputs, self.known.noise)
            self.known.seen = True  # now: for the measuring memory may have been short
        del outputs
        if not self.known.quick:
            rows = range(len(x))
            return [self._boxes(exact.get(row) or self._exactly(x, row)) for row in rows]
        self._learn(len(frames), seconds)
        # The least of each: what else a machine does makes one call or another slow. The first call
        # of a size prepares.
        if len(frames) in self._prepared_for:
            self._fast = min(self._fast, seconds / len(frames))
        self._prepared_for.add(len(frames))
        contexts = [self._settled(x, row, one, exact.get(row)) for row, one in enumerate(seen)]
        self._weigh(len(frames))
        return contexts

    def _settled(self, x: Tensor, row: int, one: FoundBoxes, exact: Any) -> FrameContext:
        """Return the boxes of a picture, detected again where they are uncertain.

        Args:
            x: pictures, (n, 3, height, width).
            row: which of them it is.
            one: what the faster detector found in it.
            exact: what the detector as it is finds, if that is known: it counts.
        """
        raw = {"bboxes": one.boxes.numpy(), "scores": one.scores.numpy()}
        context = self._boxes({"detection": raw})
        certain = one.certain and self._is_certain(context["bboxes"], one.error)
        self.known.again += not certain
        if exact is None and certain:
            return context
        settled = self._boxes(self._exactly(x, row) if exact is None else exact)
        if certain and not self._same(context, settled):
            self._detector.forget_quick()
            raise UnfaithfulDetectorError("the faster detector found another box unnoticed")
        return settled

    def _exactly(self, x: Tensor, row: int) -> Any:
        """Return what the detector as it is finds in one of some pictures."""
        began = time.perf_counter()
        [found] = self._runner.predict(x[row : row + 1])
        self._slow = min(self._slow, time.perf_counter() - began)
        return found

    def _prepared(self, frames: list[Frame]) -> Tensor:
        """Return frames as the detector takes them, (n, 3, height, width); as many as it wants."""
        size = self.batch if self._accelerated else len(frames)
        frames = frames + frames[-1:] * (size - len(frames))
        if self._context is None or self._detector.padding is None:
            parts = []
            for frame in frames:
                self._context = {}
                rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                x, self._context = self._runner.preprocessor(rgb, self._context)
                parts.append(x)
            return torch.cat(parts).to(self._detector.device)
        pixels = torch.from_numpy(np.stack(frames)).to(self._detector.device)
        return normalised(self._detector.padding.padded(pixels))

    def _boxes(self, found: dict[str, Any]) -> FrameContext:
        """Return what DeepLabCut's runner makes of what the detector returned for a frame."""
        copied = {name: value.copy() for name, value in found["detection"].items()}
        context, _ = self._runner.postprocessor([{"detection": copied}], dict(self._context or {}))
        return dict(context)

    def _measured(
        self, quick: QuickDetector, fast: Outputs, x: Tensor, row: int
    ) -> tuple[Any, Outputs]:
        """Measure the noise on one of some pictures.

        Returns:
            What the detector as it is finds in it; and what the faster one made of all, which is
            something else where it has to multiply as often as the other.
        """
        found, exact = quick.heard(lambda one: self._exactly(one, 0), x[row : row + 1])
        noise = quick.noise_of(exact, fast, row)
        if not noise.is_little and quick.is_tiled:
            quick.untile()
            fast = quick.outputs(x)
            noise = quick.noise_of(exact, fast, row)
        if not noise.is_little:
            log.info("the detector stays as it is: %s", noise)
            self.known.quick = False
        self.known.tiled = quick.is_tiled
        self.known.noise.grow(
            Noise(**{name: SAFETY * value for name, value in asdict(noise).items()})
        )
        return found, fast

    def _weigh(self, frames: int) -> None:
        """Drop the faster form where too many frames have to be detected again."""
        done = self.known.frames + frames
        share = self.known.again / done
        slow = self._slow if self._slow < math.inf else 0.0
        known = done >= WORTH_FRAMES and self._fast < math.inf
        if known and self._fast + share * slow > slow / GROWTH > 0:
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
        found = found.astype(np.float64)
        edges = edges_of(found, self._crop)
        scales = (self._context or {}).get("scales", (1.0, 1.0))
        off = errors_of_edges(found, self._crop, error * max(scales))
        off += 4 * float(np.spacing(np.float32(max(1.0, np.abs(edges).max(initial=0.0)))))
        # Both are rounded: how far it is to the middle of two pixels.
        away = np.abs(edges - np.floor(edges) - 0.5)
        return bool((away > off).all())

    def _same(self, one: FrameContext, other: FrameContext) -> bool:
        if len(one["bboxes"]) != len(other["bboxes"]):
            return False
        edges = [edges_of(its["bboxes"].astype(np.float64), self._crop) for its in (one, other)]
        return bool((np.rint(edges[0]) == np.rint(edges[1])).all())


def can_be_cut(
    found: npt.NDArray[Any], crop: TopDownCrop, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Tell of which boxes DeepLabCut's ``top_down_crop`` can make a picture: it fails at others.

    Args:
        found: (n, 4): boxes inside of the frame, left, top, width, height, as they were detected.
        crop: DeepLabCut's step.
        size: height and width of the frame.
    """
    edges = np.rint(edges_of(found, crop))
    if not crop.with_context:
        edges = np.clip(edges, 0, [size[1], size[0]] * 2)
    across, down = (edges[:, 2:] - edges[:, :2]).T
    there: npt.NDArray[np.bool_] = (down > 0) & (across > 0)
    if not crop.with_context:
        # It fills them up to the sides' ratio: what has no width gets one, from two rows on.
        there |= (across == 0) & (down > 1)
    return there


def edges_of(found: npt.NDArray[Any], crop: TopDownCrop) -> npt.NDArray[Any]:
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


def errors_of_edges(
    found: npt.NDArray[Any], crop: TopDownCrop, error: float
) -> npt.NDArray[np.float64]:
    """Return by how much :func:`edges_of` may be off, (n, 4), for boxes whose sides may be.

    Args:
        found: (n, 4): boxes: left, top, width, height.
        crop: DeepLabCut's step.
        error: pixels that each side of a box may be off, by itself.
    """
    off = np.full(found.shape, error)
    if crop.with_context:
        ratio = crop.output_size[0] / crop.output_size[1]
        width, height = found[:, 2] + 2 * crop.margin, found[:, 3] + 2 * crop.margin
        for sides, own, other, times in (
            ([0, 2], width, height, ratio), ([1, 3], height, width, 1 / ratio)
        ):  # fmt: skip
            # What is cut out as wide as the box is, begins where the box does. Else it is put
            # around the box's middle, as wide as the box's height has it: two sides count.
            is_own = own > other * times + 2 * error * (1 + times)
            off[:, sides] = (error * np.where(is_own, 1.0, 1 + times))[:, None]
    return off
