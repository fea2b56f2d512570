"""Top-down models on a video: the detector's boxes are cut out, and the poses found in them.

DeepLabCut's own steps, but for the networks, which get frames and crops in batches
(:mod:`worker.engine.detection`, :mod:`worker.engine.passes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from deeplabcut.pose_estimation_pytorch.data.preprocessor import (
    AugmentImage,
    TopDownCrop,
)

from worker.engine.detection import Detections, FrameContext, can_be_cut
from worker.engine.loaded import LoadedModel
from worker.engine.passes import Pass, Raw
from worker.engine.predictors import PredictedBatch, Prediction, Predictor
from worker.gpu.staging import AnyFrame, Frame
from worker.video.planes import Planes

#: Frames that wait for their poses, at most: most of them have no animal.
MOST_WAITING = 512
#: What of a frame's context has a row a box.
_OF_BOXES = ("bboxes", "bbox_scores")


class _Waiting(NamedTuple):
    number: int
    context: FrameContext
    crops: int


class TopDownPredictor(Predictor):
    """Frames whose animals a detector finds: the crops go through the network together."""

    order = "bgr"  # each device turns round what it gets

    def __init__(self, loaded: LoadedModel, pictures: Pass, detections: Detections) -> None:
        """Take boxes from ``detections`` and send what is in them through ``pictures``."""
        self._pose = loaded.network.pose
        self._pass = pictures
        self._detections = detections
        self._rests = False
        self._scale = 1.0
        self._next: tuple[int, Frame, FrameContext] | None = None
        self.setup = {**pictures.setup, **detections.setup}

    def rest(self) -> None:
        """Finish the frames that were begun, with all their crops, before more are begun."""
        self._rests = True

    def state(self) -> dict[str, Any]:
        """Return what is known of the networks' precision, and the batches; JSON types."""
        return {
            "pass": self._pass.state(),
            "detections": self._detections.state(),
            "scale": self._scale,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what both networks knew in an earlier attempt."""
        self._scale = state["scale"]
        self._pass.enlarge(self._scale)
        self._pass.resume(state["pass"])
        self._detections.resume(state["detections"])

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of the pose network and the detector."""
        return {**self._pass.summary(), "detector": self._detections.summary()}

    def predictions(self, frames: Iterator[tuple[int, AnyFrame]]) -> Iterator[PredictedBatch]:
        """Yield frame by frame the poses in its boxes, in the order of the boxes."""
        pixels = ((number, one) for number, one in frames if not isinstance(one, Planes))
        found = self._detections.found(pixels)
        held: tuple[int, Prediction] | None = None
        while not self._is_over(found):
            # To the next rest; the last frame is held until it is known to be the last.
            for one in self._to_rest(found):
                if held is not None:
                    yield PredictedBatch([held], complete=False)
                held = one
            if held is not None:
                yield PredictedBatch([held])
            # A checkpoint was due until then: an attempt that goes on from it knows of no rest.
            self._rests = False
            held = None

    def _is_over(self, found: Iterator[tuple[int, Frame, FrameContext]]) -> bool:
        """Tell whether no frame is left; the next one is kept in ``_next``."""
        if self._next is None:
            self._next = next(found, None)
        return self._next is None

    def _to_rest(
        self, found: Iterator[tuple[int, Frame, FrameContext]]
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield the poses of frames until a rest is due, of all frames that were begun."""
        waiting: deque[_Waiting] = deque()
        raws: list[Raw] = []

        def crops() -> Iterator[Frame]:
            while not self._is_over(found):
                assert self._next is not None  # noqa: S101  # just looked
                number, frame, context = self._next
                self._next = None
                cut, context = self._cut(frame, context)
                waiting.append(_Waiting(number, context, len(cut)))
                yield from cut
                if self._rests or len(waiting) >= MOST_WAITING:
                    return

        def complete() -> Iterator[tuple[int, Prediction]]:
            while waiting and waiting[0].crops <= len(raws):
                number, context, count = waiting.popleft()
                mine, raws[:] = raws[:count], raws[count:]
                prediction, _ = self._pose.postprocessor(mine, context)
                yield number, prediction

        for raw in self._pass.outputs(crops()):
            raws.append(raw)
            yield from complete()
        yield from complete()

    def _cut(self, frame: Frame, context: FrameContext) -> tuple[Any, FrameContext]:
        """Return what is cut out, (n, height, width, 3), and where it is; DeepLabCut's steps."""
        load, crop, _, _ = self._pose.preprocessor.components
        image, context = load(frame, context)
        boxes = np.asarray(context["bboxes"])
        whole_pixels = can_be_cut(boxes.reshape(-1, 4), crop, image.shape[:2])
        if not whole_pixels.all():
            context = {**context, **{name: context[name][whole_pixels] for name in _OF_BOXES}}
        cut, context = crop(image, context)
        n, height, width = cut.shape[:3]
        # As by its next step, which pads and normalises a crop.
        offsets: Any = (0, 0)
        scales: Any = (1, 1)
        if n:
            sides = self._pass.padding.sides((height, width))
            whole = [(sides.left, sides.top, width, height)] * n
            offsets, scales = AugmentImage.get_offsets_and_scales(height, width, whole)
            self._scale = max(self._scale, float(context["scales"].max()))
            self._pass.enlarge(self._scale)
        offsets, scales = AugmentImage.update_offsets_and_scales(context, offsets, scales)
        return cut, {**context, "offsets": offsets, "scales": scales}


def crop_of(loaded: LoadedModel) -> TopDownCrop | None:
    """Return how a model's pictures are cut out, if padding and normalising follow; else None."""
    if loaded.detector is None or loaded.padding is None:
        return None
    crop: TopDownCrop = loaded.network.pose.preprocessor.components[1]
    return crop
