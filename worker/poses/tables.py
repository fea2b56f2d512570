"""The tables of an inference, as DeepLabCut writes them: plain and filtered, HDF5 and CSV.

They are made in another child than the network's, which goes on with the next video meanwhile.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import signal
from tables.exceptions import HDF5ExtError

from posedrop.analyses import UNFINISHED, Job, is_covered
from posedrop.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from posedrop.analyses.superanimal import SuperAnimalArgs
from posedrop.buckets import layout
from posedrop.buckets.records.quality import Quality
from posedrop.errors import AnalysisError
from worker.poses import predictions, quality, viewer
from worker.poses.predictions import Predictions

#: DeepLabCut's, of a project that says nothing.
DEFAULT_PCUTOFF = 0.6
#: The times of the rows, beside the poses.
TIMESTAMPS = "timestamps.csv"
#: What DeepLabCut's own tools read beside the poses.
METADATA = "meta.pickle"


def finish(job: Job) -> dict[str, Any]:
    """Make tables of ``predictions.npz``: ``poses``, ``poses_filtered``, times and metadata.

    The tables are DeepLabCut's own (key ``df_with_missing``; columns scorer, individuals where
    there are several, bodyparts, coords; x and y in pixels of the whole frame, whatever the crop).
    Each frame that was asked for has a row; their index is the frame's number in the video, counted
    from 0. The row of a frame that could not be decoded is NaN, its likelihoods too.

    Raises:
        AnalysisError: several animals could not be followed, see ``poses.tracking.track``; code
            ``damaged_predictions``: what the network found can't be read, or is of another film.
    """
    return _finish(job, DeepLabCut2D.model_validate(job.args))


def finish_superanimal(job: Job) -> dict[str, Any]:
    """Make the tables of a SuperAnimal's ``predictions.npz``, whose animals are not followed."""
    return _finish(job, SuperAnimalArgs.model_validate(job.args))


def _finish(job: Job, args: PoseArgs) -> dict[str, Any]:
    started = time.monotonic()
    found = predictions.read(job.out / layout.PREDICTIONS)
    about = found.about
    pcutoff = _checked_pcutoff(about, args, job)
    rows = len(found.frames)
    _write_times(found, job.out / TIMESTAMPS)
    table, tracks = _tabulated(found, args, job)
    tabulated = time.monotonic()
    _write_metadata(found, job)
    job.report("write", rows, rows)
    whole = _with_the_lost(table, found)
    _write(whole, job.out / "poses")
    _write_view(whole, found, pcutoff, job)
    written = time.monotonic()
    if args.filter != "none":
        job.report("filter", rows, rows)
        # Without the lost frames: a median over NaN would invent values for their neighbours.
        smooth = _smoothed(table, args)
        job.report("write", rows, rows)
        _write(_with_the_lost(smooth, found), job.out / "poses_filtered")
    answer = about["answer"]
    judged = _judged(whole, found, pcutoff, job, is_followed="track_method" in tracks)
    timings = {
        "track": round(tabulated - started, 3),
        "write": round(written - tabulated, 3),
        "filter": round(time.monotonic() - written, 3),
    }
    asked = {"model": args.model, "filter": args.filter, "pcutoff": pcutoff}
    return {
        **answer,
        "rows": len(whole),
        "quality": judged.model_dump(mode="json"),
        # Of another run, the network's seconds are that one's.
        "timings": {**(answer["timings"] if job.is_own else {}), **timings},
        "details": {**answer["details"], **asked, **tracks},
    }


def _checked_pcutoff(about: dict[str, Any], args: PoseArgs, job: Job) -> float:
    """Return the cutoff of a run whose predictions are those of its film and its model.

    Raises:
        AnalysisError: codes ``damaged_predictions``: they are not; ``not_covered``: the network
            was not watched for what is asked for.
    """
    for name, wanted in (("video_sha256", job.sha256), ("model_digest", job.model_digest)):
        if wanted and about[name] and about[name] != wanted:
            raise AnalysisError(
                f"predictions.npz is of another {name}: {about[name]}; ask with --force (API: "
                '"force": true), and the network finds the poses anew',
                code="damaged_predictions",
            )
    told = about["answer"].get("details", {})
    models = job.pcutoff if about["pcutoff"] is None else about["pcutoff"]
    if not job.is_own and not is_covered(told, args.pcutoff, models):
        raise AnalysisError(
            "the network computed them in fewer bits, watched for a higher pcutoff than is asked "
            "for now",
            code="not_covered",
        )
    return _pcutoff(args, models, told)


def _pcutoff(args: PoseArgs, models: float | None, told: dict[str, Any]) -> float:
    """Return the cutoff of a run: its own, else the model's; of that, a film's child has told."""
    if args.pcutoff is not None:
        return args.pcutoff
    known = told.get("pcutoff") if models is None else models
    is_one = isinstance(known, int | float) and 0 <= known <= 1
    return float(known) if is_one else DEFAULT_PCUTOFF  # type: ignore[arg-type]


def _with_the_lost(table: pd.DataFrame, found: Predictions) -> pd.DataFrame:
    return table if found.decoded.all() else table.reindex(found.frames)


def _write_view(table: pd.DataFrame, found: Predictions, pcutoff: float, job: Job) -> None:
    """Write the poses for the page of the run, unless the size of a frame is not known."""
    if job.frame_size is None:
        return
    names = table.columns[::3]
    several = "individuals" in names.names
    view = viewer.View(
        frames=found.frames,
        seconds=found.seconds,
        decoded=found.decoded,
        values=table.to_numpy().reshape((len(table), len(names), 3)),
        columns=[
            (str(animal), str(part))
            for animal, part in zip(
                names.get_level_values("individuals") if several else [""] * len(names),
                names.get_level_values("bodyparts"),
                strict=True,
            )
        ],
        size=job.frame_size,
        pcutoff=pcutoff,
        skeleton=_skeleton(found.about["answer"]["details"]),
    )
    viewer.write(view, job.out / layout.VIEWER)


def _judged(
    table: pd.DataFrame, found: Predictions, pcutoff: float, job: Job, *, is_followed: bool
) -> Quality:
    """Return how good the poses are; the table has a row for each frame that was asked for."""
    names = table.columns[::3]
    animals: list[str | None] = [None] * len(names)
    if "individuals" in names.names:
        # DeepLabCut's name for whom the unique bodyparts belong to: nobody.
        of = names.get_level_values("individuals")
        animals = [None if name == "single" else str(name) for name in of]
    several = len(set(animals) - {None}) > 1
    return quality.assess(
        quality.Poses(
            values=table.to_numpy().reshape((len(table), len(names), 3)),
            bodyparts=[str(name) for name in names.get_level_values("bodyparts")],
            animals=animals,
            frames=found.frames,
            seconds=found.seconds,
            decoded=found.decoded,
            brightness=found.brightness,
            pcutoff=pcutoff,
            size=job.frame_size,
            skeleton=_skeleton(found.about["answer"]["details"]),
            # Of the model zoo's animals it is only known that there are no more.
            expected=len(set(animals) - {None}) if several and is_followed else None,
            tracked=is_followed or not several,
        )
    )


def _skeleton(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the bones of a model, as far as the child of a film told of them."""
    skeleton = details.get("skeleton")
    return [
        (bone[0], bone[1])
        for bone in (skeleton if isinstance(skeleton, list) else [])
        if isinstance(bone, list) and len(bone) == 2 and all(isinstance(end, str) for end in bone)
    ]


def _write_times(found: Predictions, path: Path) -> None:
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("w", encoding="ascii", newline="\n") as file:
        file.write("frame,seconds\n")
        for frame, seconds in zip(found.frames, found.seconds, strict=True):
            file.write(f"{frame},{seconds:.9f}\n")
    unfinished.rename(path)


def _write_metadata(found: Predictions, job: Job) -> None:
    """Write what DeepLabCut's tools want to know beside a table: its ``_generate_metadata``.

    All of it is text and numbers. ``cropping`` is False whatever was cropped, as the poses are in
    pixels of the whole frame; ``pytorch-config`` is empty.
    """
    about, (width, height) = found.about, job.frame_size or (0, 0)
    details = about["answer"].get("details", {})
    began, ended = details.get("inference_began_at", 0.0), details.get("inference_ended_at", 0.0)
    data = {
        "start": began,
        "stop": ended,
        "run_duration": ended - began,
        "Scorer": about["scorer"],
        "pytorch-config": {},
        "fps": job.fps,
        "batch_size": details.get("batch_size"),
        "frame_dimensions": (width, height),
        "nframes": len(found.frames),
        "cropping": False,
        "cropping_parameters": [0, width, 0, height],
        "individuals": about["individuals"],
        "bodyparts": about["bodyparts"],
        "unique_bodyparts": about.get("unique_bodyparts", []),
    }
    unfinished = (job.out / METADATA).with_suffix(UNFINISHED)
    unfinished.write_bytes(pickle.dumps({"data": data}, protocol=4))
    unfinished.rename(job.out / METADATA)


def _tabulated(found: Predictions, args: PoseArgs, job: Job) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return DeepLabCut's table of the decoded frames, and what result.json says of its animals."""
    about = found.about
    scorer, bodyparts = about["scorer"], about["bodyparts"]
    crop = Crop.model_validate(about["crop"]) if about["crop"] else None
    indexes, values = found.frames[found.decoded], found.seen()
    if not about["individuals"]:
        table = table_of(indexes, values["bodyparts"][:, :1], scorer, [], bodyparts)
        return shifted(table, crop), {}
    itself = isinstance(args, DeepLabCut2D) and args.track_method == "ctd"
    if about["herd"] and isinstance(args, DeepLabCut2D) and not itself:
        job.report("track", len(indexes), len(indexes))
        # DeepLabCut and all it brings along, for this alone.
        from worker.poses import tracking
        from worker.poses.animals import MultiAnimalConfig

        rows = [{name: value[row] for name, value in values.items()} for row in range(len(indexes))]
        config = MultiAnimalConfig(**about["herd"])
        with tempfile.TemporaryDirectory() as folder:
            tracked = tracking.track(rows, indexes, config, args, Path(folder))
        return shifted(tracked.table, crop), tracking.summary(tracked)
    individuals = about["individuals"]
    poses = values["bodyparts"][:, : len(individuals)]
    table = table_of(indexes, poses, scorer, individuals, bodyparts)
    method = {"track_method": "ctd"} if itself else {}
    return shifted(table, crop), {"individuals": individuals, **method}


def table_of(
    indexes: npt.NDArray[np.int64],
    poses: npt.NDArray[Any],
    scorer: str,
    individuals: list[str],
    bodyparts: list[str],
) -> pd.DataFrame:
    """Return DeepLabCut's table: its ``create_df_from_prediction``, but for the index.

    Args:
        indexes: frame numbers (n).
        poses: x and y in pixels, likelihood, and what else there is (n, animals, bodyparts, 3...);
            -1 where a frame has fewer animals.
        scorer: what made them.
        individuals: a name for each animal; none, where there is one without a name.
        bodyparts: their names.
    """
    levels = {
        "scorer": [scorer],
        **({"individuals": individuals} if individuals else {}),
        "bodyparts": bodyparts,
        "coords": ["x", "y", "likelihood"],
    }
    columns = pd.MultiIndex.from_product(list(levels.values()), names=list(levels))
    return pd.DataFrame(poses[..., :3].reshape((len(poses), -1)), columns=columns, index=indexes)


def shifted(table: pd.DataFrame, crop: Crop | None) -> pd.DataFrame:
    """Return a table made of cropped frames in coordinates of the whole frame."""
    if crop is None:
        return table
    # Tracked in the crop's own coordinates, as a negative one is DeepLabCut's mark for none.
    values = table.to_numpy(copy=True).reshape((len(table), -1, 3))
    values[..., :2] += np.where(values[..., 2:] < 0, 0, np.array([crop.x1, crop.y1]))
    return pd.DataFrame(values.reshape((len(table), -1)), columns=table.columns, index=table.index)


def _smoothed(table: pd.DataFrame, args: PoseArgs) -> pd.DataFrame:
    """Return ``table`` smoothed; a SuperAnimal's rows of -1, where it found none, stay as they are.

    DeepLabCut smooths no table of the zoo: a median over -1 would be a place where nothing was.
    """
    if not isinstance(args, SuperAnimalArgs):
        return filtered(table, args)
    is_found = (table.to_numpy().reshape((len(table), -1, 3))[..., 2] >= 0).any(axis=1)
    if not is_found.any():
        return table
    found, none = table.iloc[np.flatnonzero(is_found)], table.iloc[np.flatnonzero(~is_found)]
    return pd.concat([filtered(found, args), none]).sort_index()


def filtered(table: pd.DataFrame, args: PoseArgs) -> pd.DataFrame:
    """Return ``table`` smoothed over time, as ``deeplabcut.filterpredictions`` does.

    The arithmetic is that function's (deeplabcut/post_processing/filtering.py), which itself reads
    and writes files of a project. Rows count as neighbours in time, whatever frames lack between.
    No row may be that of a lost frame.
    """
    if args.filter == "median":
        smooth = table.copy()
        mask = table.columns.get_level_values("coords") != "likelihood"
        smooth.loc[:, mask] = table.loc[:, mask].apply(
            signal.medfilt, args=(args.filter_window,), axis=0
        )
        return smooth
    # DeepLabCut and all it brings along, for this alone.
    from deeplabcut.refine_training_dataset.outlier_frames import FitSARIMAXModel

    values = table.to_numpy().reshape((len(table), -1, 3))
    smoothed = np.empty_like(values)
    for part in range(values.shape[1]):
        x, y, likelihood = values[:, part].T
        for column, coordinate in enumerate((x, y)):
            mean, _ = FitSARIMAXModel(
                coordinate,
                likelihood,
                args.arima_p_bound,
                args.arima_alpha,
                args.arima_ar_degree,
                args.arima_ma_degree,
                False,
            )
            mean[0] = coordinate[0]
            smoothed[:, part, column] = mean
        smoothed[:, part, 2] = likelihood
    return pd.DataFrame(
        smoothed.reshape((len(table), -1)), columns=table.columns, index=table.index
    )


def _write(table: pd.DataFrame, stem: Path) -> None:
    """Write a table as HDF5 and CSV, each whole or not at all."""
    unfinished = stem.with_suffix(UNFINISHED)
    try:
        table.to_hdf(unfinished, key="df_with_missing", format="table", mode="w")
    except HDF5ExtError:
        # Above some 2,400 columns their names have no room in the header of PyTables' format.
        table.to_hdf(unfinished, key="df_with_missing", format="fixed", mode="w")
    unfinished.rename(stem.with_suffix(".h5"))
    table.to_csv(unfinished)
    unfinished.rename(stem.with_suffix(".csv"))
