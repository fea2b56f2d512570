"""Several animals: DeepLabCut's own assemblies, tracklets and stitching, on what a network found.

Imported in the child process only. ``analyze_videos(auto_track=True)`` does the same by way of a
project's folder: it reads and writes config files there, which here is nobody's to write to. What
it calls for the arithmetic is called here too.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from deeplabcut.pose_estimation_pytorch.apis.tracklets import build_tracklets
from deeplabcut.pose_estimation_pytorch.apis.videos import (
    _generate_assemblies_file,
    _generate_output_data,
)
from deeplabcut.refine_training_dataset.stitch import TrackletStitcher

from posedrop.analyses.deeplabcut_2d import DeepLabCut2D
from posedrop.errors import AnalysisError
from worker.poses.animals import INFERENCE_CONFIG, METHODS, MultiAnimalConfig, no_identity

#: One frame, as ``PoseInferenceRunner.inference`` gives it: ``bodyparts`` (individuals, bodyparts,
#: (x, y, likelihood, ...)), and where the model has such heads ``unique_bodyparts`` (1, unique
#: bodyparts, (x, y, likelihood)) and ``identity_scores`` (individuals, bodyparts, individuals).
Prediction = Mapping[str, npt.NDArray[Any]]

#: By how much DeepLabCut widens the box around the only bodypart of an animal, in pixels.
POINT_SLACK = 40


@dataclass(frozen=True)
class Tracked:
    """Tracks, and how they came about."""

    table: pd.DataFrame
    """Columns scorer, individuals, bodyparts, coords; a row for every frame that was analysed."""
    track_method: str
    tracklets: int
    tracks: int
    """How many animals have one; the columns of the others are empty."""


def track(
    predictions: Sequence[Prediction],
    indexes: npt.NDArray[np.int64],
    animals: MultiAnimalConfig,
    args: DeepLabCut2D,
    folder: Path,
) -> Tracked:
    """Make tracks of what was found frame by frame, as ``analyze_videos`` does.

    Frames count as neighbours in time, whatever lies between them in the video.

    Args:
        predictions: one a frame.
        indexes: the frames' numbers in the video, (frames,).
        animals: what there is to know of the model.
        args: ``track_method``, ``animals``, ``identity_only`` and ``min_tracklet`` count.
        folder: scratch space for DeepLabCut's own files.

    Raises:
        AnalysisError: codes ``no_detections``, ``no_tracklets`` and ``no_tracks``: there is nothing
            to make tracks of; ``bad_track_method``: the tracker is not for this model;
            ``no_identity``: the network does not tell animals apart. The message says what there
            was and what to do.
    """
    if args.identity_only and not all("identity_scores" in found for found in predictions):
        raise no_identity()
    method, settings = _method(animals, args)
    assemblies = _assemblies(predictions, animals, folder)
    tracklets = _tracklets(assemblies, len(predictions), animals, args, method, settings)
    _check(tracklets, assemblies, len(predictions), args, settings)
    stitcher = _stitched(tracklets, animals, args)
    table = stitcher.format_df(animals.tracks)
    # DeepLabCut's own table ends with the last track.
    table = table.reindex(range(len(predictions))).set_axis(indexes, axis="index")
    return Tracked(table, method, len(stitcher.tracklets), len(stitcher.tracks))


def summary(tracked: Tracked) -> dict[str, Any]:
    """Return what result.json says of the tracks, by the names that the table has."""
    names = tracked.table.columns.get_level_values("individuals").unique()
    return {
        "individuals": [name for name in names if name != "single"],  # of unique bodyparts
        "track_method": tracked.track_method,
        "tracklets": tracked.tracklets,
        "tracks": tracked.tracks,
    }


def _method(animals: MultiAnimalConfig, args: DeepLabCut2D) -> tuple[str, dict[str, Any]]:
    method = args.track_method or animals.track_method
    settings = animals.settings
    if method == "skeleton" and animals.unique_bodyparts:
        raise AnalysisError(
            "DeepLabCut's skeleton tracker can't do with unique bodyparts "
            f"({', '.join(animals.unique_bodyparts)}): use track_method ellipse or box",
            code="bad_track_method",
            field="args.track_method",
        )
    if len(animals.bodyparts) == 1:
        # Like DeepLabCut; it also means to widen the box then, as one without an area overlaps
        # with nothing, but is kept from it by the way it gets there: it writes `box` into the
        # project first, where the next run finds it. A lab's own box of some width is its own.
        slack = settings["boundingboxslack"]
        if method != "box" or slack <= 0:
            settings = {**settings, "boundingboxslack": max(slack, POINT_SLACK)}
        method = "box"
    return method, settings


def _assemblies(
    predictions: Sequence[Prediction], animals: MultiAnimalConfig, folder: Path
) -> dict[Any, Any]:
    names = [*animals.bodyparts, *animals.unique_bodyparts]
    pose_config = {"all_joints": [[n] for n in range(len(names))], "all_joints_names": names}
    full, assembled = folder / "full.pickle", folder / "assemblies.pickle"
    with full.open("wb") as file:
        # Not kept: of a long film it is large, and DeepLabCut reads all of it again.
        pickle.dump(
            _generate_output_data(pose_config, list(predictions)), file, pickle.HIGHEST_PROTOCOL
        )
    _generate_assemblies_file(
        full, assembled, len(animals.bodyparts), len(animals.unique_bodyparts)
    )
    full.unlink()
    with assembled.open("rb") as file:
        assemblies: dict[Any, Any] = pickle.load(file)  # noqa: S301 - written just now
    assembled.unlink()
    return assemblies


def _tracklets(
    assemblies: dict[Any, Any],
    frames: int,
    animals: MultiAnimalConfig,
    args: DeepLabCut2D,
    method: str,
    settings: dict[str, Any],
) -> dict[Any, Any]:
    try:
        tracklets: dict[Any, Any] = build_tracklets(
            assemblies_data=assemblies,
            track_method=method,
            inference_cfg=settings,
            joints=[*animals.bodyparts, *animals.unique_bodyparts],
            scorer=animals.scorer,
            num_frames=frames,
            unique_bodyparts=animals.unique_bodyparts,
            identity_only=args.identity_only,
        )
    except Exception as error:  # DeepLabCut raises whatever it runs into
        raise AnalysisError(
            f"DeepLabCut's {method} tracker failed ({type(error).__name__}: {error}): try another "
            f"track_method ({', '.join(METHODS)}), and look at the model's {INFERENCE_CONFIG}",
            code="no_tracklets",
            field="args.track_method",
        ) from error
    return tracklets


def _check(
    tracklets: dict[Any, Any],
    assemblies: dict[Any, Any],
    frames: int,
    args: DeepLabCut2D,
    settings: dict[str, Any],
) -> None:
    """Refuse to stitch tracklets that can't be stitched."""
    seen = sum(len(assemblies[frame]) > 0 for frame in range(frames))
    lengths = [len(part) for name, part in tracklets.items() if name not in {"header", "single"}]
    if not lengths:
        where = "no animal in any frame"
        if seen:
            pcutoff = settings["pcutoff"]
            where = f"something in {seen} of {frames} frames, all of a likelihood below {pcutoff}"
        raise AnalysisError(
            f"no tracklets: the network found {where}. Is it the model for this kind of video "
            "(animal, view, light, size in pixels)? Is the crop the right one? A few labelled "
            "frames of this video in the training set often help",
            code="no_detections",
        )
    if max(lengths) < args.min_tracklet:
        raise AnalysisError(
            f"no tracklets: none lasts {args.min_tracklet} frames, the longest of {len(lengths)} "
            f"lasts {max(lengths)}; the network found animals in {seen} of {frames} frames. "
            + _remedy(frames, args),
            code="no_tracklets",
            field="args.min_tracklet",
        )


def _remedy(frames: int, args: DeepLabCut2D) -> str:
    if frames < args.min_tracklet:
        return "Analyse more frames (start, stop, stride), or lower min_tracklet (3 at least)"
    faster = "analyse every frame (stride 1), " if args.stride > 1 else ""
    return (
        f"Lower min_tracklet (3 at least), {faster}try another track_method, or train the model "
        "on frames of this video"
    )


def _stitched(tracklets: dict[Any, Any], animals: MultiAnimalConfig, args: DeepLabCut2D) -> Any:
    """Return DeepLabCut's TrackletStitcher when it has done its work, like stitch_tracklets."""
    wanted = args.animals or len(animals.tracks)
    try:
        stitcher = TrackletStitcher.from_dict_of_dict(tracklets, wanted, args.min_tracklet)
        stitcher.build_graph(weight_func=_weight(stitcher))
        stitcher.stitch()
        stitcher.concatenate_data()
    except Exception as error:  # like above; an OSError says "Tracklets are empty"
        kinds = len([name for name in tracklets if name not in {"header", "single"}])
        raise AnalysisError(
            f"no tracks: DeepLabCut could not stitch {kinds} tracklets to {wanted} animals "
            f"({type(error).__name__}: {error}). Is `animals` the number in this video? Lower "
            "min_tracklet (3 at least), try another track_method, or analyse a part of the video "
            "in which all animals are seen",
            code="no_tracks",
            field="args.animals",
        ) from error
    return stitcher


def _weight(stitcher: Any) -> Callable[[Any, Any], float] | None:
    if all(tracklet.identity == -1 for tracklet in stitcher):
        return None  # DeepLabCut's own

    def weight(one: Any, other: Any) -> float:
        factor = 0.01 if one.identity == other.identity else 1.0
        return factor * float(stitcher.calculate_edge_weight(one, other))

    return weight
