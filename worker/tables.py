"""The tables of an inference, as DeepLabCut writes them: plain and filtered, HDF5 and CSV.

They are made in another child than the network's, which goes on with the next video meanwhile.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import signal

from posedrop.analyses import Job
from worker.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from worker.analyses.superanimal import SuperAnimalArgs
from worker.parts import Values, write_arrays

if TYPE_CHECKING:
    from worker.network import Network

#: What the network's child leaves in the folder of the artefacts, and this one takes out of it.
PREDICTIONS = "predictions.npz"


def write_predictions(path: Path, values: Values, model: Network) -> None:
    """Write what a network found, and what its tables need to know of it."""
    about = {
        "herd": asdict(model.herd) if model.herd else None,
        "individuals": model.individuals,
    }
    write_arrays(path, {**values, "about": np.array(json.dumps(about))})


def finish(job: Job, answer: dict[str, Any]) -> dict[str, Any]:
    """Make the tables of what ``worker.inference`` found: ``poses`` and ``poses_filtered``.

    The tables are DeepLabCut's own (key ``df_with_missing``; columns scorer, individuals where
    there are several, bodyparts, coords; x and y in pixels of the whole frame, whatever the crop).
    Their index is the frame's number in the video, counted from 0; a frame that can't be decoded
    has no row.

    Raises:
        AnalysisError: several animals could not be followed; see ``worker.tracking.track``.
    """
    return _finish(job, DeepLabCut2D.model_validate(job.args), answer)


def finish_superanimal(job: Job, answer: dict[str, Any]) -> dict[str, Any]:
    """Do the same for the model zoo, whose animals are not followed."""
    return _finish(job, SuperAnimalArgs.model_validate(job.args), answer)


def _finish(job: Job, args: PoseArgs, answer: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    source = job.out / PREDICTIONS
    with np.load(source, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    source.unlink()
    about = json.loads(str(values.pop("about")))
    indexes = values.pop("indexes")
    job.report("write", len(indexes), len(indexes))
    table, tracks = _tabulated(indexes, values, about, answer["details"], args)
    _write(table, job.out / "poses")
    if args.filter != "none":
        _write(filtered(table, args), job.out / "poses_filtered")
    return {
        **answer,
        "rows": len(table),
        "timings": {**answer["timings"], "write": round(time.monotonic() - started, 3)},
        "details": {**answer["details"], **tracks},
    }


def _tabulated(
    indexes: npt.NDArray[np.int64],
    values: Values,
    about: dict[str, Any],
    details: dict[str, Any],
    args: PoseArgs,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return DeepLabCut's table, and what result.json says of the animals in it."""
    scorer, bodyparts = details["scorer"], details["bodyparts"]
    crop = Crop.model_validate(details["crop"]) if details["crop"] else None
    if not about["individuals"]:
        return shifted(
            table_of(indexes, values["bodyparts"][:, 0, :, :3], scorer, bodyparts), crop
        ), {}
    # DeepLabCut and all it brings along, for several animals alone.
    from worker import tracking
    from worker.herd import Herd

    rows = [{name: value[row] for name, value in values.items()} for row in range(len(indexes))]
    if about["herd"] and isinstance(args, DeepLabCut2D):
        herd = Herd(**about["herd"])
        with tempfile.TemporaryDirectory() as folder:
            tracked = tracking.track(rows, indexes, herd, args, Path(folder))
        return shifted(tracked.table, crop), tracking.told(herd, tracked)
    individuals = about["individuals"]
    table = tracking.untracked(rows, indexes, scorer, individuals, bodyparts)
    return shifted(table, crop), {"individuals": individuals}


def table_of(
    indexes: npt.NDArray[np.int64], poses: npt.NDArray[Any], scorer: str, bodyparts: list[str]
) -> pd.DataFrame:
    """Return DeepLabCut's table: its ``create_df_from_prediction``, but for the index.

    Args:
        indexes: frame numbers (n).
        poses: x and y in pixels, likelihood (n, bodyparts, 3).
    """
    columns = pd.MultiIndex.from_product(
        [[scorer], bodyparts, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    return pd.DataFrame(poses.reshape((len(poses), -1)), columns=columns, index=indexes)


def shifted(table: pd.DataFrame, crop: Crop | None) -> pd.DataFrame:
    """Return a table made of cropped frames in coordinates of the whole frame."""
    if crop is None:
        return table
    # Tracked in the crop's own coordinates, as a negative one is DeepLabCut's mark for none.
    values = table.to_numpy(copy=True).reshape((len(table), -1, 3))
    values[..., :2] += np.where(values[..., 2:] < 0, 0, np.array([crop.x1, crop.y1]))
    return pd.DataFrame(values.reshape((len(table), -1)), columns=table.columns, index=table.index)


def filtered(table: pd.DataFrame, args: PoseArgs) -> pd.DataFrame:
    """Return ``table`` smoothed over time, as ``deeplabcut.filterpredictions`` does.

    The arithmetic is that function's (deeplabcut/post_processing/filtering.py), which itself reads
    and writes files of a project. Rows count as neighbours in time, whatever frames lack between.
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
    table.to_hdf(stem.with_suffix(".h5"), key="df_with_missing", format="table", mode="w")
    table.to_csv(stem.with_suffix(".csv"))
