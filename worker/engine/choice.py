"""Which predictor a model and the caller's arguments want."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper

from posedrop.analyses.deeplabcut_2d import DeepLabCut2D, PoseArgs
from posedrop.errors import AnalysisError
from worker.engine import topdown
from worker.engine.conditional import ConditionalPredictor
from worker.engine.detection import Detections
from worker.engine.loaded import LoadedModel
from worker.engine.network import Network
from worker.engine.passes import Pass
from worker.engine.predictors import BatchPredictor, DeepLabCutPredictor, Predictor
from worker.engine.topdown import TopDownPredictor
from worker.poses.animals import no_identity
from worker.precision.tuning import Memory
from worker.precision.variants import Precision


@dataclass(frozen=True)
class Learning:
    """Where timings of a network are remembered."""

    part: str
    """Of the model that the network is."""
    memory: Memory


def predictor_for(
    args: PoseArgs, loaded: LoadedModel, precision: Precision, total: int, learning: Learning
) -> Predictor:
    """Return what takes a video's frames through a loaded model.

    Args:
        args: what the caller asked for.
        loaded: the model.
        precision: of the network's numbers; ``fp32`` where fewer bits were not faithful.
        total: frames to come, as the container promises.
        learning: where timings are remembered.

    Raises:
        AnalysisError: codes ``bad_dynamic``, ``bad_track_method``, ``no_identity``: arguments that
            are not for it.
    """
    pcutoff = watched_pcutoff(args, loaded.network)
    dynamic = _dynamic(args, loaded.network)
    tracking = _tracks_itself(args, loaded.network)
    _check_identity(args, loaded.network, tracking=tracking)
    crop = topdown.crop_of(loaded)
    if crop is not None and loaded.detector is not None:
        model = loaded.network
        # A project's own batches are those of a GPU.
        pose, boxes = args.batch_size, args.batch_size
        if torch.device(model.device).type != "cpu":
            pose, boxes = pose or model.batch_size, boxes or model.detector_batch_size
        crops = Pass(
            loaded, pose, precision, pcutoff,
            part=learning.part, memory=learning.memory, pictures=total, fills=True,
        )  # fmt: skip
        return TopDownPredictor(loaded, crops, Detections(loaded.detector, crop, boxes, total))
    # Nothing watches the arithmetic on DeepLabCut's own way through a detector or a crop.
    plain: Precision = "fp32" if precision == "auto" else precision
    as_stock = precision == "auto"
    if loaded.conditions is not None:
        batch = args.batch_size
        if torch.device(loaded.network.device).type != "cpu":
            batch = batch or loaded.network.batch_size
        bottom_up = _bottom_up(batch, loaded.conditions, plain, total, learning, as_stock=as_stock)
        return ConditionalPredictor(
            loaded, bottom_up, batch, plain, as_stock=as_stock, tracking=tracking
        )
    if dynamic is not None or loaded.padding is None:
        frames = args.batch_size or loaded.network.batch_size or 1
        return DeepLabCutPredictor(
            loaded, 1 if dynamic else frames, plain, dynamic, as_stock=as_stock
        )
    pictures = Pass(
        loaded, args.batch_size, precision, pcutoff,
        part=learning.part, memory=learning.memory, pictures=total,
    )  # fmt: skip
    return BatchPredictor(pictures, loaded.network.pose.postprocessor)


def _bottom_up(
    batch: int | None,
    loaded: LoadedModel,
    precision: Precision,
    total: int,
    learning: Learning,
    *,
    as_stock: bool,
) -> Predictor:
    """Return what finds the conditions of a conditional top-down model."""
    if loaded.padding is None:
        return DeepLabCutPredictor(loaded, batch or 1, precision, None, as_stock=as_stock)
    pictures = Pass(
        loaded, batch, precision, 0.0,  # all of a condition counts, whatever its likelihood
        part=f"conditions of {learning.part}", memory=learning.memory, pictures=total,
    )  # fmt: skip
    return BatchPredictor(pictures, loaded.network.pose.postprocessor)


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


def _check_identity(args: PoseArgs, model: Network, *, tracking: bool) -> None:
    """Refuse, before hours at the network, what tracking would refuse behind it."""
    wanted = isinstance(args, DeepLabCut2D) and args.identity_only and not tracking
    if wanted and model.multi_animal is not None and not model.identity:
        raise no_identity()


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


def watched_pcutoff(args: PoseArgs, model: Network) -> float:
    """Return the likelihood of keypoints that fewer bits must not move: that or more.

    What follows animals from frame to frame goes by less likely ones, too.
    """
    least = min(pcutoff_of(args, model), model.pcutoff)
    animals = model.multi_animal
    return least if animals is None else min(least, float(animals.settings["pcutoff"]))


def pcutoff_of(args: PoseArgs, model: Network) -> float:
    """Return the likelihood of which keypoints count: the caller's, else the model's."""
    return model.pcutoff if args.pcutoff is None else args.pcutoff
