"""The tables of an inference, as DeepLabCut writes them: plain and filtered, HDF5 and CSV.

They are made in another child than the network's, which goes on with the next video meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import signal

from posedrop.analyses import Job
from worker.analyses.deeplabcut_2d import DeepLabCut2D

#: What the network's child leaves in the folder of the artefacts, and this one takes out of it.
PREDICTIONS = "predictions.npz"


def finish(job: Job, answer: dict[str, Any]) -> dict[str, Any]:
    """Make the tables of what ``worker.inference`` found: ``poses`` and ``poses_filtered``.

    The tables are DeepLabCut's own (key ``df_with_missing``; columns scorer, bodyparts, coords; x
    and y in pixels of the whole frame, whatever the crop). Their index is the frame's number in
    the video, counted from 0; a frame that can't be decoded has no row.
    """
    args = DeepLabCut2D.model_validate(job.args)
    started = time.monotonic()
    source = job.out / PREDICTIONS
    with np.load(source, allow_pickle=False) as file:
        indexes, poses = file["indexes"], file["bodyparts"][:, 0, :, :3]
    source.unlink()
    job.report("write", len(indexes), len(indexes))
    details = answer["details"]
    table = table_of(indexes, poses, details["scorer"], details["bodyparts"])
    _write(table, job.out / "poses")
    if args.filter != "none":
        _write(filtered(table, args), job.out / "poses_filtered")
    timings = {**answer["timings"], "write": round(time.monotonic() - started, 3)}
    return {**answer, "rows": len(table), "timings": timings}


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


def filtered(table: pd.DataFrame, args: DeepLabCut2D) -> pd.DataFrame:
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
