"""Frames into the network, predictions out: in batches of our own, or by DeepLabCut's runners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper

from posedrop.errors import AnalysisError
from worker import hardware
from worker.engine.loaded import LoadedModel
from worker.engine.passes import Pass
from worker.engine.postprocess import postprocessed
from worker.gpu.staging import AnyFrame
from worker.precision.guard import PrecisionStats
from worker.precision.variants import Numbers, Precision
from worker.video import decode

Prediction = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class PredictedBatch:
    """Predictions of some frames in a row, and whether a checkpoint may follow them."""

    frames: list[tuple[int, Prediction]]
    """Each frame's number, and what DeepLabCut's postprocessor makes of it."""
    complete: bool = True
    """Whether no frame before the end of the batch is left: ``state()`` is that of its end."""


class Predictor(ABC):
    """A way of a film's frames through a network: frames in, predictions out, in the same order."""

    order: decode.Order = "rgb"
    """Of the bytes of a pixel that it takes."""
    setup: dict[str, Any]
    """What a checkpoint has to have been made with."""
    as_stock = False
    """Whether a card may compute fp32 as it does for stock DeepLabCut, in TF32."""

    def rest(self) -> None:  # noqa: B027  # most rest after each batch
        """Finish the frames that were begun before more are begun, for a checkpoint."""

    @abstractmethod
    def predictions(self, frames: Iterator[tuple[int, AnyFrame]]) -> Iterator[PredictedBatch]:
        """Yield the frames' predictions, in the order of the frames.

        Args:
            frames: each frame's number, and its pixels in :attr:`order`.
        """

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here as if nothing had happened; JSON types."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:  # noqa: B027  # most have none
        """Take up what :meth:`state` returned in an earlier attempt."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return what result.json says: ``precision``, ``batch_size``, ``tuning``."""


class DeepLabCutPredictor(Predictor):
    """DeepLabCut's own runners, for what comes in more steps: a detector, crops, resizing."""

    def __init__(
        self,
        loaded: LoadedModel,
        batch: int,
        precision: Precision,
        dynamic: DynamicCropper | None,
        *,
        as_stock: bool,
    ) -> None:
        """Begin a film.

        Args:
            loaded: the model.
            batch: frames at once.
            precision: of the arithmetic.
            dynamic: crops each frame by the one before.
            as_stock: whether a card may compute fp32 as it does for stock DeepLabCut, in TF32.
        """
        self.as_stock = as_stock
        self._dynamic = dynamic
        self._network = loaded.network
        self._dtype = loaded.variants.dtype_for(precision)
        # Autocast casts what goes into torch's own operators alone.
        model = loaded.variants.exact if self._dtype is None else loaded.variants.plain
        self._network.pose.model = model
        self._precision = precision
        self._batch = batch
        self.setup = {"precision": precision, "batch": batch}

    def predictions(self, frames: Iterator[tuple[int, AnyFrame]]) -> Iterator[PredictedBatch]:
        """Yield the predictions of DeepLabCut's runner, batch by batch."""
        pose = self._network.pose
        pose.batch_size, pose.dynamic = self._batch, self._dynamic
        for group in _grouped(frames, self._batch):
            images: list[Any] = [image for _, image in group]
            device = torch.device(self._network.device).type
            with (
                hardware.tf32(allowed=self.as_stock),
                torch.autocast(device, self._dtype, enabled=self._dtype is not None),
            ):
                if self._network.detector is not None:
                    boxes = self._network.detector.inference(images)
                    images = list(zip(images, boxes, strict=True))
                found = pose.inference(images)
            if len(found) != len(group):
                raise AnalysisError(f"{len(group)} frames went in, {len(found)} poses came out")
            numbers = [number for number, _ in group]
            yield PredictedBatch(list(zip(numbers, found, strict=True)))

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of precision, batch and tuning."""
        used: Numbers = "fp32" if self._precision == "auto" else self._precision
        told = PrecisionStats(used).summary(self._precision)
        return {"precision": told, "batch_size": self._batch, "tuning": None}


class BatchPredictor(Predictor):
    """Frames that need no more than padding: through the network as they are decoded."""

    def __init__(self, pictures: Pass, postprocessor: Any) -> None:
        """Send frames through ``pictures``, and what comes out through DeepLabCut's steps."""
        self._pass = pictures
        self._postprocessor = postprocessor
        self.order = pictures.order  # the device turns them round
        self.setup = pictures.setup

    def rest(self) -> None:
        """Finish the frames that were begun before more are begun."""
        self._pass.rests = True

    def state(self) -> dict[str, Any]:
        """Return what is known of the precision, and the batch; JSON types."""
        return self._pass.state()

    def resume(self, state: dict[str, Any]) -> None:
        """Take up the precision and the batch of an earlier attempt."""
        self._pass.resume(state)

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of precision, batch and tuning."""
        return self._pass.summary()

    def predictions(self, frames: Iterator[tuple[int, AnyFrame]]) -> Iterator[PredictedBatch]:
        """Yield the predictions of the network's batches, as they are complete."""
        numbers: deque[int] = deque()
        size = (0, 0)

        def seen() -> Iterator[AnyFrame]:
            nonlocal size
            for number, frame in frames:
                numbers.append(number)
                size = (frame.shape[1], frame.shape[0])
                yield frame

        for raw, count in self._pass.batches(seen()):
            its = {
                head: {name: rows[:count] for name, rows in named.items()}
                for head, named in raw.items()
            }
            sides = self._pass.padding.sides((size[1], size[0]))
            found = postprocessed(self._postprocessor, its, size, (-sides.left, -sides.top))
            predicted = [(numbers.popleft(), prediction) for prediction in found]
            yield PredictedBatch(predicted, complete=self._pass.is_empty)


def _grouped(
    frames: Iterator[tuple[int, AnyFrame]], size: int
) -> Iterator[list[tuple[int, AnyFrame]]]:
    group = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
