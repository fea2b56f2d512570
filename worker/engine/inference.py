"""The network on a video: frames in, predictions out, as ``analyze_videos`` finds them.

Imported in the child process only: it brings torch and DeepLabCut along. The network, and what
comes after it, are DeepLabCut's own; what is done here is decoding ahead, the feeding in batches,
the arithmetic (``precision.guard``) and the checkpoints (``poses.checkpoint``). The tables are made
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
    TopDownCrop,
    ToTensor,
)

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from posedrop.buckets import layout
from posedrop.errors import AnalysisError, ModelError
from worker import hardware
from worker.child.messages import MAX_RANGES
from worker.cpu import group_norm, winograd_transforms
from worker.engine import network
from worker.engine.choice import Learning, pcutoff_of, predictor_for, watched_pcutoff
from worker.engine.detection import Detector, UnfaithfulDetectorError
from worker.engine.loaded import LoadedModel, is_short
from worker.engine.network import Network
from worker.engine.padding import padding_of
from worker.engine.predictors import DeepLabCutPredictor, Prediction, Predictor
from worker.engine.state import ENGINE
from worker.gpu.staging import AnyFrame
from worker.gpu.streams import apart
from worker.memory import freed_memory_kept, is_out_of_memory
from worker.poses import predictions
from worker.poses.checkpoint import Checkpoint, PredictionBuffer
from worker.poses.predictions import Predictions
from worker.precision import paf
from worker.precision.guard import UnfaithfulError
from worker.precision.heads import watches_of
from worker.precision.tuning import Memory
from worker.precision.variants import ModelVariants
from worker.video import containers, decode
from worker.video.cuda_decode import Card, DecodedOtherwiseError
from worker.video.numbering import Reading, passing
from worker.video.planes import ROWS, Planes

#: Frames decoded ahead of the network, beside a batch: at least, and at most (two of the largest
#: batches), as far as these bytes suffice, without (False) and with an accelerator.
AHEAD, MOST_AHEAD = 16, 128
AHEAD_BYTES = {False: 2**24, True: 2**26}
#: Threads that convert what is decoded to RGB.
CONVERTERS = 2


@dataclass
class AcceleratorUse:
    """When a video had the accelerator; times are seconds since 1970, but ``seconds``."""

    ready: float = 0.0
    """Its first frame was decoded, and it asked for its turn."""
    began: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    """It had it for so long, in all its turns."""
    device: str = "cpu"
    """As torch names it."""

    def timings(self, started: float) -> dict[str, float]:
        """Return the seconds of each step, of a video whose model began to load at ``started``."""
        return {
            "load": round(self.ready - started, 3),
            "wait": round(self.began - self.ready, 3),
            "inference": round(self.seconds, 3),
        }

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """Hold the job's permit for the accelerator during the block."""
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
                    ENGINE.models.rest(job.model_bytes)
                    hardware.released()
                self.ended = time.time()
                self.seconds += self.ended - started


def begin(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Compile what every model needs: a child's first task, while it waits for a video.

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
                winograd_transforms.kernels(dtype)
                group_norm.kernels(dtype)
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
    """Find the poses of a video by a network of any origin, like :func:`run`.

    Args:
        part: of the model; with its digest and the device it names a network.
        load: returns the network, on a device.
    """
    started = time.time()
    job.report("load", 0, None)
    memory = Memory(job.tuning)
    with hardware.tf32(allowed=False), freed_memory_kept():
        loaded = _kept(job, part, load)
        total = len(_selected(args, containers.count(job.video)))  # as the container promises
        inference = _Inference(job, args, loaded, total, Learning(part, memory))
        found, reading, summary = inference.run()
    # What came out counts, whatever the container promises.
    expected = _selected(args, reading.end)
    numbers = np.array(expected, np.int64)
    seconds, source = reading.seconds(numbers)
    values = found.arrays()
    decoded = np.isin(numbers, values.pop("indexes"))
    answer = {
        "frames_expected": len(numbers),
        "frames_decoded": len(found.indexes),
        "rows": len(numbers),
        "missing": _missing(expected, found.indexes, args.stride),
        "cut": reading.cut,
        "concealed": reading.concealed,
        "timestamps": source,
        "analysis_version": job.version,
        "timings": inference.use.timings(started),
        "versions": {
            **{name: version(name) for name in ("deeplabcut", "torch", "numpy", "av")},
            "opencv": cv2.__version__,
        },
        "details": inference.details(summary),
    }
    values = predictions.with_missing_rows(values, decoded)
    brightness = values.pop("brightness")
    about = _about(job, loaded.network, answer)
    whole = Predictions(numbers, seconds, decoded, values, about, brightness)
    predictions.write(job.out / layout.PREDICTIONS, whole)
    return {**answer, "tuning": memory.learned}


def _about(job: Job, model: Network, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what predictions.npz says of itself."""
    details = answer["details"]
    setup = ("precision", "batch_size", "device", "snapshot", "net_type")
    several = model.multi_animal
    return {
        "video_sha256": job.sha256,
        "model_digest": job.model_digest,
        "analysis_version": job.version,
        "scorer": model.scorer,
        "bodyparts": model.bodyparts,
        "unique_bodyparts": several.unique_bodyparts if several else [],
        "individuals": model.individuals,
        "pcutoff": model.pcutoff,
        "crop": details["crop"],
        "setup": {**{name: details[name] for name in setup}, "versions": answer["versions"]},
        "herd": asdict(several) if several else None,
        "answer": answer,
    }


# -- the model -------------------------------------------------------------------------------------


def _kept(job: Job, part: str, load: Callable[[str], Network]) -> LoadedModel:
    def get() -> LoadedModel:
        device = network.device_of(job.device)
        if job.model_digest is None:  # nothing says that the same folder holds the same files
            return _prepared(load(device))
        key = (job.model_digest, part, device)
        return ENGINE.models.get(key, lambda: _prepared(load(device)), job.model_bytes)

    try:
        return get()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # The accelerator is full of what others need: once more, when it is this one's turn.
    with job.permit():
        ENGINE.models.clear()
        return get()


def _prepared(model: Network) -> LoadedModel:
    paf.hasten(model.pose.model)
    crops = [one for one in model.pose.preprocessor.components if isinstance(one, TopDownCrop)]
    size = crops[0].output_size[::-1] if crops else None  # of width and height
    variants = ModelVariants(model.pose.model, model.device, size)
    model.pose.model = variants.exact  # the one it was loaded as is needed no more
    if model.conditions is None and watches_of(variants.exact, model.pcutoff) is not None:
        variants.tiled()  # compiled and tried before the first frame waits for it
    steps = [LoadImage, AugmentImage, ToTensor, ToBatch]
    if model.detector is not None:
        steps = [LoadImage, TopDownCrop, AugmentImage, ToTensor]
    padding = padding_of(model.pose, steps)
    detector = None if model.detector is None else Detector(model.detector, model.device)
    conditions = _prepared(model.conditions) if model.conditions is not None else None
    return LoadedModel(model, variants, padding, detector=detector, conditions=conditions)


# -- frames through the network --------------------------------------------------------------------


class _Inference:
    """One video through one loaded model; begun again where precision or card were not faithful."""

    def __init__(
        self, job: Job, args: PoseArgs, loaded: LoadedModel, total: int, learning: Learning
    ) -> None:
        """Prepare.

        Args:
            job: the video and its folders.
            args: what the caller asked for.
            loaded: the model.
            total: frames to come, as the container promises.
            learning: where timings are remembered.
        """
        self._job = job
        self._args = args
        self._loaded = loaded
        self._total = total
        self._learning = learning
        self._crop = args.crop or loaded.network.crop
        # What dynamic cropping knows of the frame before is not in a checkpoint.
        dynamic = isinstance(args, DeepLabCut2D) and args.dynamic is not None
        self._checkpoint = Checkpoint(None if dynamic else job.parts, job.part_seconds)
        self.use = AcceleratorUse(device=loaded.network.device)

    def run(self) -> tuple[PredictionBuffer, Reading, dict[str, Any]]:
        """Return the predictions, how the film was read, and what result.json says of both."""
        args = self._args
        precision = args.precision
        card = Card(self._job.decode, self._loaded.network.device, ENGINE.decode_speeds)
        while True:
            try:
                predictor = predictor_for(
                    args, self._loaded, precision, self._total, self._learning
                )
                found, reading = self._attempt(predictor, card)
            except UnfaithfulDetectorError as error:
                print(f"{error}: once more without it")
                card = card.afresh()
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
        summary = predictor.summary()
        summary["precision"]["asked"] = args.precision
        summary["precision"]["pcutoff"] = watched_pcutoff(args, self._loaded.network)
        return found, reading, {**summary, "decode": card.summary()}

    def details(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return the ``details`` of result.json: the model, the accelerator, and ``summary``."""
        model = self._loaded.network
        return {
            "model": self._args.model,
            "scorer": model.scorer,
            "snapshot": model.snapshot,
            "net_type": model.net_type,
            "device": model.device,
            "inference_began_at": round(self.use.began, 3),
            "inference_ended_at": round(self.use.ended, 3),
            **summary,
            "bodyparts": model.bodyparts,
            "skeleton": model.skeleton,
            "pcutoff": pcutoff_of(self._args, model),
            "crop": self._crop.model_dump() if self._crop else None,
            "filter": self._args.filter,
        }

    def _attempt(self, predictor: Predictor, card: Card) -> tuple[PredictionBuffer, Reading]:
        """Go through the video once, from the last part of a checkpoint on, if there is one."""
        job, args = self._job, self._args
        # By another version, frames may have other numbers or other pixels.
        setup = {
            **predictor.setup, **card.setup, "analysis_version": job.version, "av": version("av"),
            "brightness_rows": ROWS,
        }  # fmt: skip
        if self._loaded.network.device.startswith("cuda"):
            setup["tf32"] = predictor.as_stock  # it was on for all, before
        found, state = self._checkpoint.load(setup)
        begin = args.start
        if found.indexes and state is not None:
            begin = found.indexes[-1] + args.stride
            card.goes_on(state.pop("decode", {}))
            if crop := state.pop("crop", None):  # there may be no frame left to fit one to
                self._crop = Crop.model_validate(crop)
            predictor.resume(state)
            print(f"goes on from frame {begin}, behind {len(found.indexes)} of an earlier attempt")
        reading = Reading(brightness={}, passed=passing(job.report, begin))
        # From the first frame on all the same: frames have their numbers by being decoded.
        frames = decode.frames(
            job.video,
            start=begin,
            stop=args.stop,
            stride=args.stride,
            order=predictor.order,
            threads=CONVERTERS,
            reading=reading,
            card=card,
        )
        beside = self._loaded.network.device != "cpu"
        with closing(decode.ahead(frames, lambda first: _early(first[1], beside))) as ready:
            # With the first one taken, more are decoded, whoever has the network meanwhile.
            early = list(islice(ready, 1))
            with self.use.of(job):
                job.report("infer", len(found.indexes), self._total)
                asked = args.crop or self._loaded.network.crop
                if early and asked is not None:
                    height, width = early[0][1].shape[:2]
                    self._crop = fitted(asked, width, height, clips=args.crop is None)
                shown = _cropped_all(chain(early, ready), self._crop)
                self._predict(predictor, shown, reading, found, setup, card)
        card.confirm(job.video, lambda number: job.report("confirm", number, reading.end))
        return found, reading

    def _predict(
        self,
        predictor: Predictor,
        frames: Iterator[tuple[int, AnyFrame]],
        reading: Reading,
        found: PredictionBuffer,
        setup: dict[str, Any],
        card: Card,
    ) -> None:
        """Add the frames' predictions to ``found``, and keep a part whenever one is due."""
        try:
            for batch in predictor.predictions(frames):
                for number, prediction in batch.frames:
                    brightness = np.array((reading.brightness or {}).pop(number), np.float32)
                    found.add(number, {**_slim(prediction), "brightness": brightness})
                    self._job.report("infer", len(found.indexes), self._total)
                if self._checkpoint.due(found) and card.can_tell:
                    predictor.rest()
                    decoded = card.checkpoint(self._job.video) if batch.complete else None
                    if decoded is not None:
                        state = {**predictor.state(), **({"decode": decoded} if decoded else {})}
                        if self._crop is not None:
                            state["crop"] = self._crop.model_dump()
                        self._checkpoint.keep(found, setup, state)
        except BaseException:
            if isinstance(predictor, DeepLabCutPredictor):
                ENGINE.models.clear()  # it may hold half a batch: the next video must not get it
            raise


def _early(frame: AnyFrame, accelerated: bool) -> int:
    """Return how many frames like this one are decoded before the network has room for them."""
    size = sum(part.nbytes for part in frame.parts) if isinstance(frame, Planes) else frame.nbytes
    return min(max(AHEAD_BYTES[accelerated] // max(size, 1), AHEAD), MOST_AHEAD)


def _slim(prediction: Prediction) -> Prediction:
    """Return what tables and tracks are made of: the rest is not kept for every frame."""
    return {
        name: prediction[name][..., :width].copy()
        for name, width in (("bodyparts", 3), ("unique_bodyparts", 3), ("identity_scores", None))
        if name in prediction
    }


def fitted(crop: Crop, width: int, height: int, *, clips: bool) -> Crop:
    """Return a crop as DeepLabCut's reader cuts it, which keeps it as shares of a frame's sides.

    Args:
        crop: as it was asked for.
        width: of the frames, like ``height``.
        clips: whether one that is larger than the frame is cut down, as DeepLabCut does.

    Raises:
        AnalysisError: code ``bad_crop``: it is larger than the frame, or beside it.
    """
    if crop.x1 >= width or crop.y1 >= height or (not clips and _is_beyond(crop, width, height)):
        raise _bad_crop(crop, width, height)
    if _is_beyond(crop, width, height):
        print(f"the crop of the model's project is cut down to the frame, {width} x {height}")

    def cut(place: int, side: int) -> int:
        return int(side * min(1, place / side))  # one less than ``place``, for some of them

    x1, x2, y1, y2 = (
        cut(crop.x1, width),
        cut(crop.x2, width),
        cut(crop.y1, height),
        cut(crop.y2, height),
    )
    # Where nothing would be left DeepLabCut fails.
    return Crop(x1=x1, x2=max(x2, x1 + 1), y1=y1, y2=max(y2, y1 + 1))


def _is_beyond(crop: Crop, width: int, height: int) -> bool:
    return crop.x2 > width or crop.y2 > height


def _bad_crop(crop: Crop, width: int, height: int) -> AnalysisError:
    return AnalysisError(
        f"the crop reaches from ({crop.x1}, {crop.y1}) to ({crop.x2}, {crop.y2}), the frame only "
        f"to ({width}, {height}): give a smaller crop",
        code="bad_crop",
        field="args.crop",
    )


def _cropped_all(
    frames: Iterator[tuple[int, AnyFrame]], crop: Crop | None
) -> Iterator[tuple[int, AnyFrame]]:
    for number, frame in frames:
        yield number, _cropped(frame, crop)


def _cropped(frame: AnyFrame, crop: Crop | None) -> AnyFrame:
    if crop is None:
        return frame
    height, width = frame.shape[:2]
    if _is_beyond(crop, width, height):  # a film may change its size
        raise _bad_crop(crop, width, height)
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
