"""The network on a video: frames in, predictions out, as ``analyze_videos`` finds them.

Imported in the child process only: it brings torch and DeepLabCut along. The network, and what
comes after it, are DeepLabCut's own; what is done here is decoding ahead, the feeding in batches,
the arithmetic (``precision.guard``) and the checkpoints (``engine.parts``). The tables are made
elsewhere (``worker.poses.tables``), so that the accelerator need not wait for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
import torch
from deeplabcut.pose_estimation_pytorch.data.preprocessor import (
    AugmentImage,
    LoadImage,
    ToBatch,
    ToTensor,
)
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from posedrop.buckets import layout
from posedrop.errors import AnalysisError, ModelError
from worker import hardware
from worker.child.messages import MAX_RANGES
from worker.cpu.winograd_transforms import kernels
from worker.engine import network, topdown
from worker.engine.batches import Batches, Feed, Prediction, Runner
from worker.engine.conditional import Conditional
from worker.engine.detection import Detections, Detector, only_normalises
from worker.engine.loaded import Shelf, Warm, is_short, released
from worker.engine.network import Network
from worker.engine.passes import Pass
from worker.engine.topdown import TopDown
from worker.gpu.staging import AnyFrame
from worker.gpu.streams import apart
from worker.memory import is_out_of_memory
from worker.poses import predictions
from worker.poses.parts import Found, Parts
from worker.poses.predictions import Predictions
from worker.precision import paf
from worker.precision.guard import Machine, Precision, UnfaithfulError
from worker.precision.tuning import Memory
from worker.precision.watch import watches_of
from worker.video import decode
from worker.video.cuda_decode import Card, DecodedOtherwiseError
from worker.video.planes import ROWS, Planes

#: Frames decoded ahead of the network, beside a batch.
AHEAD = 16
#: Threads that convert what is decoded to RGB.
CONVERTERS = 2

_warm = Shelf()


@dataclass
class Stay:
    """When a video had the accelerator; all but ``seconds`` is seconds since 1970."""

    ready: float = 0.0
    """Its first frame was decoded, and it asked for its turn."""
    began: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    """It had it for so long, in all its turns."""
    device: str = "cpu"
    """As torch names it."""

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """Take the job's turn for the block."""
        self.ready = self.ready or time.time()
        with job.permit():
            started = time.time()
            self.began = self.began or started
            try:
                with apart(torch.device(self.device)):
                    yield
            finally:
                # To give memory back, and to take it again, keeps a card from work.
                if is_short(torch.device(self.device)):
                    _warm.rest(job.model_bytes)
                    released()
                self.ended = time.time()
                self.seconds += self.ended - started


@dataclass(frozen=True)
class Learning:
    """Where timings of a network are remembered."""

    part: str
    """Of the model that the network is."""
    memory: Memory


def begin(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Do at leisure what needs no model yet: a child's first task.

    Args:
        payload: ``device``, ``auto`` or as torch names it.
        report: there is nothing to.

    Returns:
        ``accelerated``: whether networks are computed by something beside the processor.
    """
    beside = hardware.accelerates(payload["device"])
    if not beside:
        with suppress(Exception):  # who needs them will tell why there are none
            for dtype in {torch.float32, hardware.native_dtype(torch.device("cpu"))} - {None}:
                kernels(dtype)
    return {"accelerated": beside}


def run(job: Job) -> dict[str, Any]:
    """Find the poses of a video; leaves ``predictions.npz``, which ``poses.tables`` goes on from.

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
    started = time.time()
    job.report("load", 0, None)
    warm = _kept(job, part, load)
    crop = args.crop or warm.network.crop
    total = len(_selected(args, decode.count(job.video)))  # as the container promises
    stay = Stay(device=warm.network.device)
    memory = Memory(job.tuning)
    found, reading, told = _infer(job, args, warm, crop, total, stay, Learning(part, memory))
    model = warm.network
    # What came out counts, whatever the container promises.
    expected = _selected(args, reading.end)
    numbers = np.array(expected, np.int64)
    seconds, source = reading.seconds(numbers)
    answer = {
        "frames_expected": len(expected),
        "frames_decoded": len(found.indexes),
        "rows": len(expected),
        "missing": _missing(expected, found.indexes, args.stride),
        "cut": reading.cut,
        "concealed": reading.concealed,
        "timestamps": source,
        "analysis_version": job.version,
        "timings": {
            "load": round(stay.ready - started, 3),
            "wait": round(stay.began - stay.ready, 3),
            "inference": round(stay.seconds, 3),
        },
        "versions": {
            **{name: version(name) for name in ("deeplabcut", "torch", "numpy", "av")},
            "opencv": cv2.__version__,
        },
        "details": {
            "model": args.model,
            "scorer": model.scorer,
            "snapshot": model.snapshot,
            "net_type": model.net_type,
            "device": model.device,
            "inference_began_at": round(stay.began, 3),
            "inference_ended_at": round(stay.ended, 3),
            **told,
            "bodyparts": model.bodyparts,
            "skeleton": model.skeleton,
            "pcutoff": _pcutoff(args, model),
            "crop": crop.model_dump() if crop else None,
            "filter": args.filter,
        },
    }
    values = found.arrays()
    decoded = np.isin(numbers, values.pop("indexes"))
    values = predictions.spread(values, decoded)
    brightness = values.pop("brightness")
    whole = Predictions(numbers, seconds, decoded, values, _about(job, model, answer), brightness)
    predictions.write(job.out / layout.PREDICTIONS, whole)
    return {**answer, "tuning": memory.learned}


def _about(job: Job, model: Network, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what predictions.npz says of itself."""
    details = answer["details"]
    setup = ("precision", "batch_size", "device", "snapshot", "net_type")
    return {
        "video_sha256": job.sha256,
        "model_digest": job.model_digest,
        "analysis_version": job.version,
        "scorer": model.scorer,
        "bodyparts": model.bodyparts,
        "unique_bodyparts": model.herd.unique_bodyparts if model.herd else [],
        "individuals": model.individuals,
        "crop": details["crop"],
        "setup": {**{name: details[name] for name in setup}, "versions": answer["versions"]},
        "herd": asdict(model.herd) if model.herd else None,
        "answer": answer,
    }


def _pcutoff(args: PoseArgs, model: Network) -> float:
    return model.pcutoff if args.pcutoff is None else args.pcutoff


# -- the model -------------------------------------------------------------------------------------


def _kept(job: Job, part: str, load: Callable[[str], Network]) -> Warm:
    device = network.device_of(job.device)
    if job.model_digest is None:  # nothing says that the same folder holds the same files
        return _prepared(load(device))
    key = (job.model_digest, part, device)

    def loaded() -> Warm:
        return _prepared(load(device))

    try:
        return _warm.get(key, loaded, job.model_bytes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # The accelerator is full of what others need: once more, when it is this one's turn.
    with job.permit():
        _warm.clear()
        return _warm.get(key, loaded, job.model_bytes)


def _prepared(model: Network) -> Warm:
    paf.hasten(model.pose.model)
    machine = Machine(model.pose.model, model.device)
    model.pose.model = machine.exact  # the one it was loaded as is needed no more
    if model.conditions is None and watches_of(machine.exact, model.pcutoff) is not None:
        _ = machine.tiled  # compiled and tried before the first frame waits for it
    steps = [LoadImage, AugmentImage, ToTensor, ToBatch]
    normalises = model.detector is None and only_normalises(model.pose, steps)
    detector = None if model.detector is None else Detector(model.detector, model.device)
    conditions = _prepared(model.conditions) if model.conditions is not None else None
    return Warm(model, machine, normalises, detector=detector, conditions=conditions)


# -- frames through the network --------------------------------------------------------------------


def _infer(
    job: Job,
    args: PoseArgs,
    warm: Warm,
    crop: Crop | None,
    total: int,
    stay: Stay,
    learning: Learning,
) -> tuple[Found, decode.Reading, dict[str, Any]]:
    """Return what is found in the frames asked for, how the film was read, and how it was found."""
    # What dynamic cropping knows of the frame before is not in a checkpoint.
    dynamic = isinstance(args, DeepLabCut2D) and args.dynamic is not None
    parts = Parts(None if dynamic else job.parts, job.part_seconds)
    precision = args.precision
    card = Card(job.decode, warm.network.device)
    while True:
        try:
            feed = _feed(args, warm, precision, total, learning)
            found, reading = _through(job, args, feed, crop, total, parts, stay, card)
        except UnfaithfulError as error:
            print(f"{error}: once more in fp32")
            precision = "fp32"
            card = card.afresh()
        except DecodedOtherwiseError as error:
            print(f"{error}: once more, decoded by the processor")
            card = card.distrusted(error)
        else:
            break
    if not found.indexes:
        what = "can be decoded" if _selected(args, reading.end) else "is"
        raise AnalysisError(
            f"no frame from {args.start} to {args.stop or 'the end'} {what} in this video",
            code="no_frames",
            field="args.start",
        )
    told = feed.told()
    told["precision"]["asked"] = args.precision
    return found, reading, {**told, "decode": card.told()}


def _through(
    job: Job,
    args: PoseArgs,
    feed: Feed,
    crop: Crop | None,
    total: int,
    parts: Parts,
    stay: Stay,
    card: Card,
) -> tuple[Found, decode.Reading]:
    # By another version, frames may have other numbers or other pixels.
    setup = {
        **feed.setup, **card.setup, "analysis_version": job.version, "av": version("av"),
        "brightness_rows": ROWS,
    }  # fmt: skip
    found, state = parts.load(setup)
    begin = args.start
    if found.indexes and state is not None:
        begin = found.indexes[-1] + args.stride
        card.goes_on(state.pop("decode", {}))
        feed.resume(state)
        print(f"goes on from frame {begin}, behind {len(found.indexes)} of an earlier attempt")
    reading = decode.Reading(brightness={})
    # From the first frame on all the same: frames have their numbers by being decoded.
    frames = decode.frames(
        job.video,
        start=begin,
        stop=args.stop,
        stride=args.stride,
        order=feed.order,
        threads=CONVERTERS,
        reading=reading,
        card=card,
    )
    with closing(decode.ahead(frames, AHEAD)) as ready:
        # With the first one taken, more are decoded, whoever has the network meanwhile.
        early = list(islice(ready, 1))
        with stay.of(job):
            job.report("infer", len(found.indexes), total)
            shown = _cropped_all(chain(early, ready), crop)
            _predict(job, feed, shown, reading, found, parts, setup, total, card)
    card.confirm(job.video)
    return found, reading


def _predict(
    job: Job,
    feed: Feed,
    frames: Iterator[tuple[int, AnyFrame]],
    reading: decode.Reading,
    found: Found,
    parts: Parts,
    setup: dict[str, Any],
    total: int,
    card: Card,
) -> None:
    try:
        for number, prediction in feed.predictions(frames):
            brightness = np.array((reading.brightness or {}).pop(number), np.float32)
            found.add(number, {**_slim(prediction), "brightness": brightness})
            job.report("infer", len(found.indexes), total)
            if parts.due(found):
                feed.rest()
                if feed.between_batches and (known := card.checkpoint(job.video)) is not None:
                    decode = {"decode": known} if known else {}
                    parts.keep(found, setup, {**feed.state(), **decode})
    except BaseException:
        if isinstance(feed, Runner):
            _warm.clear()  # it may hold half a batch: the next video must not get it
        raise


def _slim(prediction: Prediction) -> Prediction:
    """Return what tables and tracks are made of: the rest is not kept for every frame."""
    return {
        name: prediction[name][..., :width].copy()
        for name, width in (("bodyparts", 3), ("unique_bodyparts", 3), ("identity_scores", None))
        if name in prediction
    }


def _feed(args: PoseArgs, warm: Warm, precision: Precision, total: int, learning: Learning) -> Feed:
    pcutoff = min(_pcutoff(args, warm.network), warm.network.pcutoff)
    dynamic = _dynamic(args, warm.network)
    tracking = _tracks_itself(args, warm.network)
    crop = topdown.crop_of(warm)
    if crop is not None and warm.detector is not None:
        model = warm.network
        # A project's own batches are those of a GPU.
        pose, boxes = args.batch_size, args.batch_size
        if torch.device(model.device).type != "cpu":
            pose, boxes = pose or model.batch_size, boxes or model.detector_batch_size
        crops = Pass(
            warm, pose, precision, pcutoff,
            part=learning.part, memory=learning.memory, pictures=total, fills=True,
        )  # fmt: skip
        return TopDown(warm, crops, Detections(warm.detector, crop, boxes, total))
    # Nothing watches the arithmetic on DeepLabCut's own way through a detector or a crop.
    plain: Precision = "fp32" if precision == "auto" else precision
    if warm.conditions is not None:
        batch = args.batch_size
        if torch.device(warm.network.device).type != "cpu":
            batch = batch or warm.network.batch_size
        bottom_up = _bottom_up(batch, warm.conditions, plain, total, learning)
        return Conditional(warm, bottom_up, batch, plain, tracking=tracking)
    if dynamic is not None or not warm.normalises:
        frames = args.batch_size or warm.network.batch_size or 1
        return Runner(warm, 1 if dynamic else frames, plain, dynamic)
    pictures = Pass(
        warm, args.batch_size, precision, pcutoff,
        part=learning.part, memory=learning.memory, pictures=total,
    )  # fmt: skip
    return Batches(pictures, warm.network.pose.postprocessor)


def _bottom_up(
    batch: int | None, warm: Warm, precision: Precision, total: int, learning: Learning
) -> Feed:
    """Return what finds the conditions of a conditional top-down model."""
    if not warm.normalises:
        return Runner(warm, batch or 1, precision, None)
    pictures = Pass(
        warm, batch, precision, 0.0,  # all of a condition counts, whatever its likelihood
        part=f"conditions of {learning.part}", memory=learning.memory, pictures=total,
    )  # fmt: skip
    return Batches(pictures, warm.network.pose.postprocessor)


def _tracks_itself(args: PoseArgs, model: Network) -> bool:
    """Tell whether a conditional model follows the animals: DeepLabCut's ``ctd_tracking``."""
    if not isinstance(args, DeepLabCut2D) or args.track_method != "ctd":
        return False
    if model.conditions is None:
        raise AnalysisError(
            f"track_method ctd is for conditional top-down models, and this one is {model.net_type}"
            ": use ellipse, box or skeleton",
            code="bad_track_method",
            field="args.track_method",
        )
    if args.animals not in {None, len(model.individuals)}:
        raise AnalysisError(
            f"with track_method ctd, animals is what the project has: {len(model.individuals)}",
            code="bad_track_method",
            field="args.animals",
        )
    return True


def _dynamic(args: PoseArgs, model: Network) -> DynamicCropper | None:
    if not isinstance(args, DeepLabCut2D) or args.dynamic is None:
        return None
    if model.detector is not None or model.conditions is not None:
        raise AnalysisError(
            "dynamic cropping is not for top-down models: they look at each animal by itself",
            code="bad_dynamic",
            field="args.dynamic",
        )
    return DynamicCropper(args.dynamic.threshold, args.dynamic.margin)


def _cropped_all(
    frames: Iterator[tuple[int, AnyFrame]], crop: Crop | None
) -> Iterator[tuple[int, AnyFrame]]:
    for number, frame in frames:
        yield number, _cropped(frame, crop)


def _cropped(frame: AnyFrame, crop: Crop | None) -> AnyFrame:
    if crop is None:
        return frame
    height, width = frame.shape[:2]
    if crop.x2 > width or crop.y2 > height:
        raise AnalysisError(
            f"the crop reaches to ({crop.x2}, {crop.y2}), the frame only to ({width}, {height})",
            code="bad_crop",
            field="args.crop",
        )
    if isinstance(frame, Planes):
        return frame.cropped(crop.x1, crop.y1, crop.x2, crop.y2)
    return np.ascontiguousarray(frame[crop.y1 : crop.y2, crop.x1 : crop.x2])


def _selected(args: PoseArgs, frames: int) -> range:
    return range(args.start, frames if args.stop is None else min(args.stop, frames), args.stride)


def _missing(expected: range, indexes: Sequence[int], stride: int) -> list[dict[str, int]]:
    gone = np.setdiff1d(np.asarray(expected, np.int64), np.asarray(indexes, np.int64))
    if not len(gone):
        return []
    # Of more than an answer may have, the last one spans the rest; predictions.npz has them all.
    breaks = np.flatnonzero(np.diff(gone) != stride)[: MAX_RANGES - 1]
    ranges = np.split(gone, breaks + 1)
    return [{"first": int(part[0]), "last": int(part[-1])} for part in ranges]
