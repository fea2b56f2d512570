"""Frames into the network, predictions out: in batches of our own, or by DeepLabCut's runners."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper

from posedrop.errors import AnalysisError
from worker import video
from worker.arithmetic import Arithmetic, Launched, Precision, State
from worker.child_main import is_out_of_memory
from worker.warm import Warm

Frame = npt.NDArray[np.uint8]
Prediction = dict[str, npt.NDArray[Any]]

#: Batches at work at the same time on a GPU: it computes one while another is read.
IN_FLIGHT = 2
#: Frames a batch on a GPU, to begin with and at most.
FIRST_BATCH, LAST_BATCH = 8, 64
#: A batch twice as large has to be so many times faster, a frame.
GROWTH = 1.05

Setup = tuple[str, str, tuple[int, ...]]
#: The batch that was found best, and the largest that memory sufficed for, by model, device and
#: size of the frames.
_best: dict[Setup, int] = {}
_most: dict[Setup, int] = {}


class Feed(ABC):
    """Takes frames, gives predictions in the same order."""

    batch: int
    """Frames at once."""
    order: video.Order = "rgb"
    """Of the bytes of a pixel that it takes."""
    setup: dict[str, Any]
    """What a checkpoint has to have been made with."""
    between_batches = True
    """Whether the last batch was given to its end: the moment for a checkpoint."""

    @abstractmethod
    def predictions(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[tuple[int, Prediction]]:
        """Yield each frame's number and what DeepLabCut's postprocessor makes of it."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here as if nothing had happened; JSON types."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:  # noqa: B027  # most have none
        """Go on from a state."""

    def told(self, wanted: Precision) -> dict[str, Any]:
        """Return what the result tells of the arithmetic."""
        return State(None).told(wanted)


class Runner(Feed):
    """DeepLabCut's own runners, for what comes in more steps: a detector, crops, resizing."""

    def __init__(
        self, warm: Warm, batch: int, precision: Precision, dynamic: DynamicCropper | None
    ) -> None:
        self._dynamic = dynamic
        self._network = warm.network
        self._dtype = warm.machine.dtype_for(precision)
        # Autocast casts what goes into torch's own operators alone.
        model = warm.machine.exact if self._dtype is None else warm.machine.plain
        self._network.pose.model = model
        self._precision = precision
        self.batch = batch
        self.setup = {"precision": precision, "batch": batch}

    def predictions(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[tuple[int, Prediction]]:
        """Yield each frame's; see there."""
        pose = self._network.pose
        pose.batch_size, pose.dynamic = self.batch, self._dynamic
        for group in _grouped(frames, self.batch):
            images: list[Any] = [image for _, image in group]
            device = torch.device(self._network.device).type
            with torch.autocast(device, self._dtype, enabled=self._dtype is not None):
                if self._network.detector is not None:
                    boxes = self._network.detector.inference(images)
                    images = list(zip(images, boxes, strict=True))
                found = pose.inference(images)
            if len(found) != len(group):
                raise AnalysisError(f"{len(group)} frames went in, {len(found)} poses came out")
            for place, ((number, _), prediction) in enumerate(zip(group, found, strict=True), 1):
                self.between_batches = place == len(group)
                yield number, prediction

    def told(self, wanted: Precision) -> dict[str, Any]:
        """Return what the result tells of the arithmetic."""
        return State(None if self._dtype is None else self._precision).told(wanted)


class Batches(Feed):
    """Frames that only need to be normalised: in batches on the device, a few in flight.

    The size of a batch is the user's or found: on a CPU one frame at a time is fastest, for its
    caches; on a GPU it grows while that helps. It is halved whenever memory does not suffice.
    """

    order = "bgr"  # as they are decoded: the device turns them round

    def __init__(
        self,
        warm: Warm,
        batch: int | None,
        precision: Precision,
        pcutoff: float,
        digest: str,
    ) -> None:
        self._warm = warm
        self._wanted = precision
        self._pcutoff = pcutoff
        self._digest = digest
        self._device = torch.device(warm.network.device)
        self._arithmetic = Arithmetic(warm.machine, precision, pcutoff)
        self._asked = batch
        self._size: tuple[int, ...] | None = None
        self._rates: dict[int, float] = {}
        self._accelerated = accelerated(self._device)
        self.batch = batch or (FIRST_BATCH if self._accelerated else 1)
        self.setup = {"precision": precision, "batch": batch, "pcutoff": pcutoff}

    def state(self) -> dict[str, Any]:
        """Return the arithmetic's state and the batch."""
        return {"arithmetic": self._arithmetic.state_as_json(), "batch": self.batch}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.batch = int(state["batch"])
        known = State(**state["arithmetic"])
        self._arithmetic = Arithmetic(self._warm.machine, self._wanted, self._pcutoff, known)

    def told(self, wanted: Precision) -> dict[str, Any]:
        """Return what the result tells of the arithmetic."""
        return self._arithmetic.state.told(wanted)

    @torch.inference_mode()
    def predictions(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[tuple[int, Prediction]]:
        """Yield each frame's; see there."""
        waiting: deque[tuple[int, Frame]] = deque()
        flying: deque[tuple[list[tuple[int, Frame]], Launched]] = deque()
        in_flight = IN_FLIGHT if self._accelerated else 1
        more = True
        since = time.monotonic()
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
                    flying.append((group, self._launch([image for _, image in group])))
                    group = []
                    if len(flying) < in_flight and more:
                        continue
                if not flying:
                    return
                group, launched = flying[0]
                found = self._collect(launched, [image for _, image in group])
                flying.popleft()
            except Exception as error:
                if not is_out_of_memory(error) or self.batch == 1:
                    raise
                # All that was begun goes back to the front of the queue, in its order.
                groups = [one for one, _ in flying]
                if not (groups and groups[0] is group):
                    groups.append(group)
                waiting.extendleft(frame for one in reversed(groups) for frame in reversed(one))
                flying.clear()
                self._halve()
                continue
            now = time.monotonic()
            self._learn(len(group), now - since)
            since = now
            for place, ((number, _), prediction) in enumerate(zip(group, found, strict=True), 1):
                self.between_batches = place == len(group)
                yield number, prediction

    def _know(self, frame: Frame) -> None:
        """Take the batch that was found for frames of this size before."""
        if self._size is None:
            self._size = frame.shape
            if self._asked is None:
                self.batch = _best.get(self._key, self.batch)
            self.batch = min(self.batch, _most.get(self._key, self.batch))

    @property
    def _key(self) -> Setup:
        return self._digest, str(self._device), self._size or ()

    def _halve(self) -> None:
        self.batch = max(1, self.batch // 2)
        self._rates.clear()
        self._rates[2 * self.batch] = 0.0  # known to be too much
        _most[self._key] = self.batch
        print(f"out of memory: {self.batch} frames at once from now on")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _learn(self, frames: int, seconds: float) -> None:
        """On a GPU, try twice as many frames at once, as long as that is faster."""
        if self._asked is not None or not self._accelerated or frames != self.batch:
            return
        self._rates[frames] = max(self._rates.get(frames, 0.0), frames / max(seconds, 1e-6))
        half = self._rates.get(frames // 2)
        if half is not None and self._rates[frames] < GROWTH * half:
            self.batch = frames // 2
        elif 2 * frames <= LAST_BATCH and 2 * frames not in self._rates:
            self.batch = 2 * frames
        _best[self._key] = self.batch

    def _launch(self, images: list[Frame]) -> Launched:
        pixels = torch.from_numpy(np.stack(images) if len(images) > 1 else images[0][None])
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        return self._arithmetic.launch(pixels.to(self._device, non_blocking=True))

    def _collect(self, launched: Launched, images: list[Frame]) -> list[Prediction]:
        found = self._arithmetic.collect(launched)
        # One copy a tensor, not one a frame.
        here = {
            head: {name: value.cpu().numpy() for name, value in named.items()}
            for head, named in found.items()
        }
        predictions = []
        for row, image in enumerate(images):
            raw = {
                head: {name: value[row] for name, value in named.items()}
                for head, named in here.items()
            }
            height, width = image.shape[:2]
            context = {"image_size": (width, height), "offsets": (0.0, 0.0), "scales": (1.0, 1.0)}
            prediction, _ = self._warm.network.pose.postprocessor([raw], context)
            predictions.append(prediction)
        return predictions


def accelerated(device: torch.device) -> bool:
    """Whether a device computes by itself: it wants work ahead, and much of it at once."""
    return device.type != "cpu"


def _grouped(frames: Iterator[tuple[int, Frame]], size: int) -> Iterator[list[tuple[int, Frame]]]:
    group = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
