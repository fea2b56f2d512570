"""Conditional top-down models: the poses of a bottom-up network, improved by a second one in crops.

DeepLabCut's runner gives each frame to the bottom-up network alone, then to the conditional one.
Here the first has its frames as any bottom-up model has, in batches, and DeepLabCut's runner gets
what it found, as conditions, with the frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from deeplabcut.pose_estimation_pytorch.data.preprocessor import (
    FilterInvalidBoundingBoxes,
    Preprocessor,
    TopDownCrop,
)
from deeplabcut.pose_estimation_pytorch.data.utils import out_of_bounds_keypoints
from deeplabcut.pose_estimation_pytorch.models.modules import StackedKeypointEncoder
from deeplabcut.pose_estimation_pytorch.runners import CTDTrackingConfig

from posedrop.errors import AnalysisError
from worker import hardware
from worker.engine.loaded import LoadedModel
from worker.engine.predictors import PredictedBatch, Prediction, Predictor
from worker.gpu.staging import AnyFrame, Frame
from worker.memory import is_out_of_memory
from worker.precision.variants import Precision
from worker.video.planes import Planes

#: Crops that go through the network at once, and frames whose crops are put together, at first.
BATCH = 8

#: What DeepLabCut's runner knows of the frame before, and how it begins.
_BEGINNING: dict[str, Any] = {
    "_bu_age": -1,
    "_missing_idvs": False,
    "_prev_pose": None,
    "_idx_to_id": None,
    "_ctd_track_ages": None,
}


class ConditionalPredictor(Predictor):
    """A bottom-up network's poses are the conditions of each frame, and the second one's result.

    When *tracking* (DeepLabCut's ``ctd_tracking``), the poses of a frame are the conditions of the
    next one, and each animal keeps its row. The bottom-up network is asked for the first frame, and
    when an animal is lost, every 100th at most. Frames then go one by one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bottom_up: Predictor,
        batch: int | None,
        precision: Precision,
        *,
        as_stock: bool,
        tracking: bool = False,
    ) -> None:
        """Begin a film.

        Args:
            loaded: the conditional model, with its ``conditions``.
            bottom_up: takes the frames to those; of no use when tracking.
            batch: crops at once; None: as many as are fast.
            precision: of the arithmetic.
            as_stock: whether a card may compute fp32 as it does for stock DeepLabCut, in TF32.
            tracking: whether the poses of the frame before are the conditions.
        """
        self.as_stock = as_stock
        assert loaded.conditions is not None  # noqa: S101  # else it is no conditional model
        self._bottom_up = bottom_up
        self._tracking = tracking
        self._pose = loaded.network.pose
        self._device = torch.device(loaded.network.device).type
        self._dtype = loaded.variants.dtype_for(precision)
        for network, variants in (
            (self._pose, loaded.variants),
            (loaded.conditions.network.pose, loaded.conditions.variants),
        ):
            # Autocast casts what goes into torch's own operators alone.
            network.model = variants.exact if self._dtype is None else variants.plain
        self._pose.bu_runner = loaded.conditions.network.pose
        self._pose.tracking = CTDTrackingConfig() if tracking else None
        self._pose.dynamic = None
        encoder = getattr(self._pose.model.backbone, "cond_enc", None)
        if type(encoder) is StackedKeypointEncoder:
            self._pose.model.backbone.cond_enc = DrawnConditions(encoder)
        _drop_flat_boxes(self._pose.preprocessor.components)
        self._take_up(_BEGINNING)
        self._batch = 1 if tracking else batch or BATCH
        self._bottom_up_is_complete = True
        self.order = "rgb" if tracking or bottom_up.order == "rgb" else "bgr"
        self.setup = {
            "precision": precision,
            "batch": batch,
            "tracking": tracking,
            "conditions": bottom_up.setup,
        }

    def predictions(self, frames: Iterator[tuple[int, AnyFrame]]) -> Iterator[PredictedBatch]:
        """Yield the improved poses, in groups of frames whose crops went together."""
        self._forget()
        pixels = ((number, one) for number, one in frames if not isinstance(one, Planes))
        if self._tracking:
            for number, frame in pixels:
                yield PredictedBatch([(number, self._improved([frame])[0])])
            return
        numbers: list[int] = []
        group: list[Any] = []
        for number, frame, begun in self._begun(pixels):
            numbers.append(number)
            group.append((self._rgb(frame), {"cond_kpts": conditions_in(begun)}))
            if len(group) >= self._batch:
                yield self._whole(numbers, self._improved(group))
                numbers, group = [], []
        if group:
            yield self._whole(numbers, self._improved(group))

    def _begun(
        self, frames: Iterator[tuple[int, Frame]]
    ) -> Iterator[tuple[int, Frame, Prediction]]:
        """Yield every frame with what the bottom-up network finds in it."""
        shown: deque[Frame] = deque()

        def passed() -> Iterator[tuple[int, Frame]]:
            for number, frame in frames:
                shown.append(frame)
                yield number, frame

        for batch in self._bottom_up.predictions(passed()):
            for place, (number, begun) in enumerate(batch.frames, 1):
                self._bottom_up_is_complete = batch.complete and place == len(batch.frames)
                yield number, shown.popleft(), begun

    def _whole(self, numbers: list[int], found: list[Prediction]) -> PredictedBatch:
        if len(found) != len(numbers):
            raise AnalysisError(f"{len(numbers)} frames went in, {len(found)} poses came out")
        complete = self._bottom_up_is_complete
        return PredictedBatch(list(zip(numbers, found, strict=True)), complete)

    def _improved(self, group: list[Any]) -> list[Prediction]:
        """Return what DeepLabCut's runner makes of frames, and of their conditions."""
        while True:
            self._pose.batch_size = self._batch
            try:
                with (
                    hardware.tf32(allowed=self.as_stock),
                    torch.autocast(self._device, self._dtype, enabled=self._dtype is not None),
                ):
                    found: list[Prediction] = self._pose.inference(group)
            except Exception as error:
                self._forget()
                if not is_out_of_memory(error) or self._batch == 1:
                    raise
            else:
                return found
            self._batch //= 2
            print(f"out of memory: {self._batch} crops at once from now on")
            if self._device == "cuda":
                hardware.released()

    def rest(self) -> None:
        """Have the bottom-up network rest; groups are of the same frames all the same."""
        self._bottom_up.rest()

    def _forget(self) -> None:
        """Drop what the runner holds of a group that it could not bring to its end."""
        self._pose._batch_list, self._pose._model_kwargs = [], {}
        self._pose._contexts, self._pose._image_batch_sizes = [], []
        self._pose._predictions = []

    def _rgb(self, frame: Frame) -> Any:
        return frame if self.order == "rgb" else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def state(self) -> dict[str, Any]:
        """Return both networks' state, and when tracking the frame before's."""
        return {
            "batch": self._batch,
            "conditions": {} if self._tracking else self._bottom_up.state(),
            "tracking": {name: _as_json(getattr(self._pose, name)) for name in _BEGINNING},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what both networks knew in an earlier attempt."""
        self._batch = int(state["batch"])
        if not self._tracking:
            self._bottom_up.resume(state["conditions"])
        self._take_up({name: _of_json(value) for name, value in state["tracking"].items()})

    def _take_up(self, known: dict[str, Any]) -> None:
        for name, value in known.items():
            setattr(self._pose, name, value)

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of how the conditions were found."""
        return self._bottom_up.summary()


class DrawnConditions:
    """DeepLabCut's ``StackedKeypointEncoder``: a blurred spot a keypoint, each on its own plane.

    DeepLabCut blurs planes of zeros, which takes as long as a small network; here the surroundings
    of each keypoint alone. The values are the same, as floats.
    """

    def __init__(self, encoder: StackedKeypointEncoder) -> None:
        self.num_joints: int = encoder.num_joints
        self.num_channels: int = encoder.num_channels
        self.img_size = encoder.img_size
        self._kernel = tuple(encoder.kernel_size)

    def __call__(self, keypoints: Any, size: tuple[int, int]) -> Any:
        """Return (n, height, width, keypoints), 0 to 255, for keypoints (n, keypoints, 3)."""
        places = keypoints.copy()
        places[keypoints[..., 2] <= 0] = 0
        places[places[..., 2] > 0, 2] = 2
        places = np.nan_to_num(places)
        places[out_of_bounds_keypoints(places, self.img_size)] = 0
        places = places.astype(int)
        drawn = np.zeros((len(places), *size, self.num_joints), np.float32)
        for pose, planes in zip(places, drawn, strict=True):
            spots = [
                (number, *self._spot(y - 1, x - 1, size))
                for number, (x, y, seen) in enumerate(pose)
                if seen > 0
            ]
            most = max((float(spot.max()) for *_, spot in spots), default=0.0)
            for number, rows, columns, spot in spots:
                planes[rows, columns, number] = spot if most == 0 else spot / (most / 255)
        return drawn

    def _spot(self, row: int, column: int, size: tuple[int, int]) -> tuple[slice, slice, Any]:
        """Return where a spot is in a picture, and its values: a point that was blurred."""
        # A keypoint at 0 is drawn at the other end, like DeepLabCut's.
        middle = row % size[0], column % size[1]
        around = [
            # So wide that a picture's edge alone is near enough to reflect the spot.
            slice(max(0, at - 2 * reach), min(end, at + 2 * reach + 1))
            for at, end, reach in zip(middle, size, reversed(self._kernel), strict=True)
        ]
        spot = np.zeros([part.stop - part.start for part in around])
        spot[middle[0] - around[0].start, middle[1] - around[1].start] = 255
        return around[0], around[1], cv2.GaussianBlur(spot, self._kernel, sigmaX=0)


def conditions_in(begun: Prediction) -> Any:
    """Return the poses of a frame that a conditional model begins with: (animals, bodyparts, 3).

    They are those that have a keypoint, as in DeepLabCut's ``CTDInferenceRunner.add_conditions``.
    """
    poses = begun["bodyparts"][..., :3]
    there = ~np.all(np.any((poses <= 0) | np.isnan(poses), axis=2), axis=1)
    return poses[there] if there.any() else np.zeros((0, poses.shape[1], 3))


class _DropFlatBoxes(Preprocessor):  # type: ignore[misc]  # DeepLabCut is untyped
    """Drops conditions whose box has no whole row, by which DeepLabCut's crop would divide."""

    def __init__(self, margin: int) -> None:
        self._margin = margin

    def __call__(self, image: Any, context: Any) -> Any:
        """Return the picture as it is, and its context."""
        kept = [
            number
            for number, (_, y, _, h) in enumerate(context["bboxes"])
            if self._has_rows(y, h, image.shape[0])
        ]
        context["bboxes"] = [context["bboxes"][number] for number in kept]
        context["cond_kpts"] = context["cond_kpts"][kept]
        return image, context

    def _has_rows(self, begin: float, size: float, end: int) -> bool:
        # As DeepLabCut's ``top_down_crop`` rounds.
        centre, half = begin + size / 2, size / 2 + self._margin
        return bool(max(round(centre - half), 0) < min(round(centre + half), end))


def _drop_flat_boxes(components: list[Any]) -> None:
    kinds = [type(part) for part in components]
    crop = components[kinds.index(TopDownCrop)]
    if _DropFlatBoxes not in kinds and not crop.with_context:
        place = kinds.index(FilterInvalidBoundingBoxes) + 1
        components.insert(place, _DropFlatBoxes(crop.margin))


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist(), "shape": value.shape}
    return value.item() if isinstance(value, np.generic) else value


def _of_json(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array(value["values"], value["dtype"]).reshape(value["shape"])
    return value
