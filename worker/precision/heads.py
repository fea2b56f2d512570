"""Which watch knows a model's heads: heatmaps, part affinity fields, SimCC."""

from __future__ import annotations

from typing import Any

from deeplabcut.pose_estimation_pytorch.models.predictors import (
    HeatmapPredictor,
    PartAffinityFieldPredictor,
    SimCCPredictor,
)

from worker.precision.paf import PafWatch
from worker.precision.simcc import SimCCWatch
from worker.precision.watch import HeatmapWatch, Watch


def watches_of(model: Any, pcutoff: float) -> dict[str, Watch] | None:
    """Return a watch for each of a model's heads by its name; None: one is of no known kind.

    Args:
        model: DeepLabCut's PoseModel.
        pcutoff: likelihood below which nobody uses a keypoint.
    """
    # No subclasses of DeepLabCut's predictors: what else they do is unknown.
    known: dict[type[Any], type[Watch]] = {
        HeatmapPredictor: HeatmapWatch,
        PartAffinityFieldPredictor: PafWatch,
        SimCCPredictor: SimCCWatch,
    }
    watches = {}
    for name, head in model.heads.items():
        kind = known.get(type(head.predictor))
        if kind is None or not kind.knows(head.predictor):
            return None
        watches[name] = kind(model, name, pcutoff)
    return watches
