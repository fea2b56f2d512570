"""The network on a video: frames in, predictions out, as ``analyze_videos`` finds them.

Imported in the child process only: it brings torch and DeepLabCut along. The network, and what
comes after it, are DeepLabCut's own; what is done here is decoding ahead, the feeding in batches,
the arithmetic (``worker.arithmetic``) and the checkpoints (``worker.parts``). The tables are made
elsewhere (``worker.tables``), so that the accelerator need not wait for them.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from deeplabcut.pose_estimation_pytorch.data.preprocessor import (
    AugmentImage,
    LoadImage,
    ToBatch,
    ToTensor,
)
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper

from posedrop.analyses import Job
from posedrop.errors import AnalysisError, ModelError
from worker import network, video
from worker.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from worker.arithmetic import Arithmetic, Launched, Machine, Precision, State, UnfaithfulError
from worker.child_main import is_out_of_memory
from worker.network import Network
from worker.parts import Found, Parts
from worker.tables import PREDICTIONS, write_predictions

Frame = npt.NDArray[np.uint8]
Prediction = dict[str, npt.NDArray[Any]]

#: Models that stay loaded, the last used.
WARM_MODELS = 2
#: Frames decoded ahead of the network, beside a batch.
AHEAD = 16
#: Threads that convert what is decoded to RGB.
CONVERTERS = 2
#: Batches at work at the same time on a GPU: it computes one while another is read.
IN_FLIGHT = 2
#: Frames a batch on a GPU, to begin with and at most.
FIRST_BATCH, LAST_BATCH = 8, 64
#: A batch twice as large has to be so many times faster, a frame.
GROWTH = 1.05


@dataclass(frozen=True)
class Warm:
    """A model, loaded and ready to run."""

    network: Network
    machine: Machine
    normalises: bool
    """Whether all that DeepLabCut does to a picture before the network is to normalise it."""


_warm: OrderedDict[tuple[str, str, str], Warm] = OrderedDict()
Setup = tuple[str, str, tuple[int, ...]]
#: The batch that was found best, and the largest that memory sufficed for, by model, device and
#: size of the frames.
_best: dict[Setup, int] = {}
_most: dict[Setup, int] = {}


def run(job: Job) -> dict[str, Any]:
    """Find the poses of a video; leaves ``predictions.npz`` for ``worker.tables``.

    Raises:
        ModelError: the model is damaged, unsafe, of another engine, or has no such snapshot.
        AnalysisError: codes ``no_frames``, ``bad_crop``, ``no_such_device``.
        RefusedVideoError: the video can't be decoded.
    """
    args = DeepLabCut2D.model_validate(job.args)
    if job.model is None:
        raise ModelError("deeplabcut_2d needs a model")
    folder = job.model
    return analyse(
        job, args, args.snapshot or "", lambda device: network.load(folder, args.snapshot, device)
    )


def analyse(job: Job, args: PoseArgs, part: str, load: Callable[[str], Network]) -> dict[str, Any]:
    """Do what :func:`run` does with a network of any origin.

    Args:
        part: of the model; with its digest and the device it names a network.
        load: returns the network, on a device.
    """
    started = time.monotonic()
    job.report("load", 0, None)
    warm = _kept(job, part, load)
    crop = args.crop or warm.network.crop
    loaded = time.monotonic()
    frames = video.count(job.video)
    total = len(_selected(args, frames))
    found, told = _infer(job, args, warm, crop, total)
    inferred, ended = time.monotonic(), time.time()
    write_predictions(job.out / PREDICTIONS, found.arrays(), warm.network)
    # What came out counts where it is more than the container promises.
    expected = _selected(args, max(frames, found.indexes[-1] + 1))
    model = warm.network
    return {
        "frames_expected": len(expected),
        "frames_decoded": len(found.indexes),
        "rows": len(found.indexes),
        "missing": _missing(expected, found.indexes, args.stride),
        "timings": {
            "load": round(loaded - started, 3),
            "inference": round(inferred - loaded, 3),
        },
        "versions": {name: version(name) for name in ("deeplabcut", "torch", "numpy", "av")},
        "details": {
            "model": args.model,
            "scorer": model.scorer,
            "snapshot": model.snapshot,
            "net_type": model.net_type,
            "device": model.device,
            "inference_ended_at": round(ended, 3),
            **told,
            "bodyparts": model.bodyparts,
            "skeleton": model.skeleton,
            "pcutoff": _pcutoff(args, model),
            "crop": crop.model_dump() if crop else None,
            "filter": args.filter,
        },
    }


def _pcutoff(args: PoseArgs, model: Network) -> float:
    return model.pcutoff if args.pcutoff is None else args.pcutoff


# -- the model -------------------------------------------------------------------------------------


def _kept(job: Job, part: str, load: Callable[[str], Network]) -> Warm:
    device = network.device_of(job.device)
    if job.model_digest is None:  # nothing says that the same folder holds the same files
        return _prepared(load(device))
    key = (job.model_digest, part, device)
    if key not in _warm:
        while len(_warm) >= WARM_MODELS:  # before the next one is loaded: memory is for one more
            _warm.popitem(last=False)
        _warm[key] = _prepared(load(device))
    _warm.move_to_end(key)
    return _warm[key]


def _prepared(model: Network) -> Warm:
    machine = Machine(model.pose.model, model.device)
    model.pose.model = machine.exact
    return Warm(model, machine, model.detector is None and _only_normalises(model.pose))


def _only_normalises(pose: Any) -> bool:
    parts = pose.preprocessor.components
    if [type(part) for part in parts] != [LoadImage, AugmentImage, ToTensor, ToBatch]:
        return False
    steps = list(parts[1].transform)
    return [type(step).__name__ for step in steps] == ["Normalize"]


# -- frames through the network --------------------------------------------------------------------


def _infer(
    job: Job, args: PoseArgs, warm: Warm, crop: Crop | None, total: int
) -> tuple[Found, dict[str, Any]]:
    """Return what is found in the frames asked for, and what the result tells of how."""
    job.report("infer", 0, total)
    # What dynamic cropping knows of the frame before is not in a checkpoint.
    dynamic = isinstance(args, DeepLabCut2D) and args.dynamic is not None
    parts = Parts(None if dynamic else job.parts, job.part_seconds)
    precision = args.precision
    try:
        feed = _feed(job, args, warm, precision)
        found = _through(job, args, feed, crop, total, parts)
    except UnfaithfulError as error:
        print(f"{error}: once more in fp32")
        parts.clear()
        precision = "fp32"
        feed = _feed(job, args, warm, precision)
        found = _through(job, args, feed, crop, total, parts)
    if not found.indexes:
        raise AnalysisError(
            f"there is no frame from {args.start} to {args.stop or 'the end'} in this video",
            code="no_frames",
            field="args.start",
        )
    return found, {"precision": feed.told(args.precision), "batch_size": feed.batch}


def _through(
    job: Job, args: PoseArgs, feed: Feed, crop: Crop | None, total: int, parts: Parts
) -> Found:
    found, state = parts.load(feed.setup)
    begin = args.start
    if found.indexes and state is not None:
        begin = found.indexes[-1] + args.stride
        feed.resume(state)
        print(f"goes on from frame {begin}, behind {len(found.indexes)} of an earlier attempt")
        job.report("infer", len(found.indexes), total)
    # From the first frame on all the same: frames have their numbers by being decoded.
    frames = video.frames(
        job.video,
        start=begin,
        stop=args.stop,
        stride=args.stride,
        order=feed.order,
        threads=CONVERTERS,
    )
    with closing(video.ahead(frames, AHEAD)) as ready:
        for number, prediction in feed.predictions(_cropped_all(ready, crop)):
            found.add(number, _slim(prediction))
            if feed.between_batches:
                if parts.due(found):
                    parts.keep(found, feed.setup, feed.state())
                job.report("infer", len(found.indexes), total)
    return found


def _slim(prediction: Prediction) -> Prediction:
    """Return what tables and tracks are made of: the rest is not kept for every frame."""
    return {
        name: prediction[name][..., :width].copy()
        for name, width in (("bodyparts", 3), ("unique_bodyparts", 3), ("identity_scores", None))
        if name in prediction
    }


def _feed(job: Job, args: PoseArgs, warm: Warm, precision: Precision) -> Feed:
    pcutoff = min(_pcutoff(args, warm.network), warm.network.pcutoff)
    digest = job.model_digest or ""
    dynamic = _dynamic(args, warm.network)
    if dynamic is not None or not warm.normalises:
        # Nothing watches the arithmetic on DeepLabCut's own way through a detector or a crop.
        plain: Precision = "fp32" if precision == "auto" else precision
        return Runner(warm, 1 if dynamic else args.batch_size or 1, plain, dynamic)
    return Batches(warm, args.batch_size, precision, pcutoff, digest)


def _dynamic(args: PoseArgs, model: Network) -> DynamicCropper | None:
    if not isinstance(args, DeepLabCut2D) or args.dynamic is None:
        return None
    if model.detector is not None:
        raise AnalysisError(
            "dynamic cropping is not for top-down models: their detector finds the animals",
            code="bad_dynamic",
            field="args.dynamic",
        )
    return DynamicCropper(args.dynamic.threshold, args.dynamic.margin)


class Feed:
    """Takes frames, gives predictions in the same order."""

    batch: int
    """Frames at once."""
    order: video.Order = "rgb"
    """Of the bytes of a pixel that it takes."""
    setup: dict[str, Any]
    """What a checkpoint has to have been made with."""
    between_batches = True
    """Whether the last batch was given to its end: the moment for a checkpoint."""

    def predictions(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[tuple[int, Prediction]]:
        """Yield each frame's number and what DeepLabCut's postprocessor makes of it."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here as if nothing had happened; JSON types."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
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
            try:
                with torch.autocast(device, self._dtype, enabled=self._dtype is not None):
                    if self._network.detector is not None:
                        boxes = self._network.detector.inference(images)
                        images = list(zip(images, boxes, strict=True))
                    found = pose.inference(images)
            except BaseException:
                _warm.clear()  # it may hold half a batch: the next video must not get it
                raise
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


def _cropped_all(
    frames: Iterator[tuple[int, Frame]], crop: Crop | None
) -> Iterator[tuple[int, Frame]]:
    for number, frame in frames:
        yield number, _cropped(frame, crop)


def _cropped(frame: Frame, crop: Crop | None) -> Frame:
    if crop is None:
        return frame
    height, width = frame.shape[:2]
    if crop.x2 > width or crop.y2 > height:
        raise AnalysisError(
            f"the crop reaches to ({crop.x2}, {crop.y2}), the frame only to ({width}, {height})",
            code="bad_crop",
            field="args.crop",
        )
    return np.ascontiguousarray(frame[crop.y1 : crop.y2, crop.x1 : crop.x2])


def _selected(args: PoseArgs, frames: int) -> range:
    return range(args.start, frames if args.stop is None else min(args.stop, frames), args.stride)


def _missing(expected: range, indexes: Sequence[int], stride: int) -> list[dict[str, int]]:
    gone = np.setdiff1d(np.asarray(expected, np.int64), np.asarray(indexes, np.int64))
    if not len(gone):
        return []
    ranges = np.split(gone, np.flatnonzero(np.diff(gone) != stride) + 1)
    return [{"first": int(part[0]), "last": int(part[-1])} for part in ranges]
