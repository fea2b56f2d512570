"""Several animals: DeepLabCut's own assemblies, tracklets and stitching, on what a network found.

Imported in the child process only. ``analyze_videos(auto_track=True)`` does the same by way of a
project's folder: it reads and writes config files there, which here is nobody's to write to. What
it calls for the arithmetic is called here too.
"""

from __future__ import annotations

import pickle
import tempfile
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
    create_df_from_prediction,
)
from deeplabcut.refine_training_dataset.stitch import TrackletStitcher
from deeplabcut.utils import auxiliaryfunctions

from posedrop.errors import AnalysisError, ModelError
from worker.analyses.deeplabcut_2d import Crop, DeepLabCut2D

#: One frame, as ``PoseInferenceRunner.inference`` gives it: ``bodyparts`` (individuals, bodyparts,
#: (x, y, likelihood, ...)), and where the model has such heads ``unique_bodyparts`` (1, unique
#: bodyparts, (x, y, likelihood)) and ``identity_scores`` (individuals, bodyparts, individuals).
Prediction = Mapping[str, npt.NDArray[Any]]

#: DeepLabCut's project-wide settings of tracking, in the model's folder.
INFERENCE_CONFIG = "inference_cfg.yaml"
METHODS = ("ellipse", "box", "skeleton")
#: By how much DeepLabCut widens the box around the only bodypart of an animal, in pixels.
POINT_SLACK = 40


@dataclass(frozen=True)
class Herd:
    """What tracking has to know of a model."""

    scorer: str
    bodyparts: list[str]
    """Those that every individual has."""
    unique_bodyparts: list[str]
    """Those that there is one of in the picture."""
    individuals: list[str]
    track_method: str
    """The project's own."""
    settings: dict[str, Any]
    """DeepLabCut's inference_cfg."""


@dataclass(frozen=True)
class Tracked:
    """Tracks, and how they came about."""

    table: pd.DataFrame
    """Columns scorer, individuals, bodyparts, coords; a row for every frame that was analysed."""
    track_method: str
    tracklets: int
    tracks: int
    """How many animals have one; the columns of the others are empty."""


def slim(prediction: Prediction) -> Prediction:
    """Return what tables and tracks are made of: the rest is not kept for every frame."""
    return {
        name: prediction[name][..., :width].copy()
        for name, width in (("bodyparts", 3), ("unique_bodyparts", 3), ("identity_scores", None))
        if name in prediction
    }


def herd(
    metadata: Mapping[str, Any], scorer: str, project: Mapping[str, Any], settings: Any = None
) -> Herd:
    """Return what tracking has to know of a model.

    Args:
        metadata: the part of that name of its pytorch_config.yaml.
        scorer: what the table will be called by.
        project: its config.yaml; empty for an export.
        settings: the content of its inference_cfg.yaml; None: it has none, DeepLabCut's own count.

    Raises:
        ModelError: code ``model_damaged``: the settings lack something.
    """
    individuals = [str(name) for name in metadata["individuals"]]
    default = auxiliaryfunctions.read_plainconfig(
        auxiliaryfunctions.get_deeplabcut_path() / INFERENCE_CONFIG
    )
    complete = {**default, "topktoretain": len(individuals)} if settings is None else settings
    if not isinstance(complete, Mapping) or default.keys() - complete.keys():
        raise ModelError(f"the model's {INFERENCE_CONFIG} is incomplete", code="model_damaged")
    method = str(project.get("default_track_method") or METHODS[0])
    return Herd(
        scorer=scorer,
        bodyparts=[str(name) for name in metadata["bodyparts"]],
        unique_bodyparts=[str(name) for name in metadata.get("unique_bodyparts") or []],
        individuals=individuals,
        track_method=method if method in METHODS else METHODS[0],
        settings=dict(complete),
    )


def track(
    predictions: Sequence[Prediction],
    indexes: npt.NDArray[np.int64],
    animals: Herd,
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
            to make tracks of; ``bad_track_method``: the tracker is not for this model. The message
            says what there was and what to do.
    """
    method, settings = _method(animals, args)
    assemblies = _assemblies(predictions, animals, folder)
    tracklets = _tracklets(assemblies, len(predictions), animals, args, method, settings)
    _check(tracklets, assemblies, len(predictions), args, settings)
    stitcher = _stitched(tracklets, animals, args)
    table = stitcher.format_df(animals.individuals)
    # DeepLabCut's own table ends with the last track.
    table = table.reindex(range(len(predictions))).set_axis(indexes, axis="index")
    return Tracked(table, method, len(stitcher.tracklets), len(stitcher.tracks))


def untracked(
    predictions: Sequence[Prediction],
    indexes: npt.NDArray[np.int64],
    scorer: str,
    individuals: list[str],
    bodyparts: list[str],
) -> pd.DataFrame:
    """Return DeepLabCut's table of animals that are not followed; -1 where there are fewer."""
    metadata = {"bodyparts": bodyparts, "unique_bodyparts": [], "individuals": individuals}
    with tempfile.TemporaryDirectory() as folder:  # it writes a file of its own, too
        table: pd.DataFrame = create_df_from_prediction(
            predictions=list(predictions),
            dlc_scorer=scorer,
            multi_animal=True,
            model_cfg={"metadata": metadata},
            output_path=folder,
            output_prefix="poses",
        )
    return table.set_axis(indexes, axis="index")


def told(animals: Herd, tracked: Tracked) -> dict[str, Any]:
    """Return what result.json says of it."""
    return {
        "individuals": animals.individuals,
        "track_method": tracked.track_method,
        "tracklets": tracked.tracklets,
        "tracks": tracked.tracks,
    }


def shifted(table: pd.DataFrame, crop: Crop | None) -> pd.DataFrame:
    """Return a table made of cropped frames in coordinates of the whole frame."""
    if crop is None:
        return table
    # Tracked in the crop's own coordinates, as a negative one is DeepLabCut's mark for none.
    values = table.to_numpy(copy=True).reshape((len(table), -1, 3))
    values[..., :2] += np.where(values[..., 2:] < 0, 0, np.array([crop.x1, crop.y1]))
    return pd.DataFrame(values.reshape((len(table), -1)), columns=table.columns, index=table.index)


def _method(animals: Herd, args: DeepLabCut2D) -> tuple[str, dict[str, Any]]:
    method = args.track_method or animals.track_method
    settings = animals.settings
    if method == "skeleton" and animals.unique_bodyparts:
        raise AnalysisError(
            "DeepLabCut's skeleton tracker can't do with unique bodyparts "
            f"({', '.join(animals.unique_bodyparts)}): use track_method ellipse or box",
            code="bad_track_method",
            field="args.track_method",
        )
    if len(animals.bodyparts) == 1 and method != "box":
        # Like DeepLabCut; it also means to widen the box then, as one without an area overlaps
        # with nothing, but is kept from it by the way it gets there.
        method = "box"
        slack = max(settings["boundingboxslack"], POINT_SLACK)
        settings = {**settings, "boundingboxslack": slack}
    return method, settings


def _assemblies(predictions: Sequence[Prediction], animals: Herd, folder: Path) -> dict[Any, Any]:
    names = [*animals.bodyparts, *animals.unique_bodyparts]
    pose_config = {"all_joints": [[n] for n in range(len(names))], "all_joints_names": names}
    full, assembled = folder / "full.pickle", folder / "assemblies.pickle"
    with full.open("wb") as file:
        output = _generate_output_data(pose_config, list(predictions))
        pickle.dump(output, file, pickle.HIGHEST_PROTOCOL)
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
    animals: Herd,
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
    """Refuse to stitch what can't be."""
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


def _stitched(tracklets: dict[Any, Any], animals: Herd, args: DeepLabCut2D) -> Any:
    """Return DeepLabCut's TrackletStitcher when it has done its work, like stitch_tracklets."""
    wanted = args.animals or len(animals.individuals)
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
