"""A run's table of poses, read as numbers: of its CSV, in which nothing is ever executed."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from posedrop.errors import AnalysisError

#: What the animal of a table without names is called, as movement calls it.
UNNAMED = "id_0"
_COORDS = ("x", "y", "likelihood")
_LEVELS = ("scorer", "individuals", "bodyparts", "coords")


@dataclass(frozen=True)
class PoseTable:
    """DeepLabCut's table as an array.

    Where DeepLabCut marks that a frame has fewer animals (a likelihood below 0), and where a frame
    was lost, all is NaN.
    """

    frames: npt.NDArray[np.int64]
    """Numbers of the frames in the film, from 0 (n)."""
    individuals: list[str]
    """Names of the animals; one called :data:`UNNAMED`, where the table names none."""
    bodyparts: list[str]
    values: npt.NDArray[np.float64]
    """x and y in pixels, likelihood (n, individuals, bodyparts, 3)."""
    tracked: npt.NDArray[np.bool_]
    """Which animal has which bodypart at all (individuals, bodyparts)."""
    scorer: str = ""


def read(path: Path) -> PoseTable:
    """Read ``poses.csv``.

    Raises:
        AnalysisError: code ``damaged_poses``: it is no table of DeepLabCut's.
    """
    try:
        return _read(path)
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        words = f"the run's poses.csv can't be read as DeepLabCut's table: {error}"[:500]
        raise AnalysisError(words, code="damaged_poses") from error


def _read(path: Path) -> PoseTable:
    with path.open(encoding="utf-8", newline="") as file:
        head = {row[0]: row[1:] for row in islice(csv.reader(file), len(_LEVELS)) if row}
    levels = [name for name in _LEVELS if name in head]
    if levels[-1:] != ["coords"] or "bodyparts" not in head:
        raise ValueError("it has no rows 'bodyparts' and 'coords' at its top")
    try:
        cells: Any = pd.read_csv(
            path, header=None, skiprows=len(levels), float_precision="round_trip", dtype=np.float64
        ).to_numpy()
    except pd.errors.EmptyDataError:  # a table without rows
        cells = np.empty((0, 1 + len(head["coords"])))
    parts, coords = head["bodyparts"], head["coords"]
    animals = head.get("individuals", [UNNAMED] * len(parts))
    individuals, bodyparts = list(dict.fromkeys(animals)), list(dict.fromkeys(parts))
    shape = (len(cells), len(individuals), len(bodyparts), len(_COORDS))
    values = np.full(shape, np.nan)
    tracked = np.zeros(shape[1:3], bool)
    for column, (animal, part, coord) in enumerate(zip(animals, parts, coords, strict=True), 1):
        place = individuals.index(animal), bodyparts.index(part)
        values[:, *place, _COORDS.index(coord)] = cells[:, column]
        tracked[place] = True
    values[values[..., 2] < 0] = np.nan
    scorer = next(iter(head.get("scorer", [])), "")
    return PoseTable(cells[:, 0].astype(np.int64), individuals, bodyparts, values, tracked, scorer)


def read_times(path: Path | None, frames: npt.NDArray[np.int64], fps: float) -> Any:
    """Return when each frame is shown, in seconds, by ``timestamps.csv`` (n).

    Args:
        path: None: there is none, and the film's average rate counts.
        frames: their numbers.
        fps: frames a second.

    Raises:
        AnalysisError: code ``damaged_poses``: the file is of other frames.
    """
    if path is None:
        return frames / fps
    try:
        times = pd.read_csv(path, float_precision="round_trip", dtype=np.float64).to_numpy()
    except ValueError as error:
        words = f"the run's timestamps.csv can't be read: {error}"[:500]
        raise AnalysisError(words, code="damaged_poses") from error
    if times.shape != (len(frames), 2) or (times[:, 0] != frames).any():
        words = "the run's timestamps.csv is of other frames than poses.csv"
        raise AnalysisError(words, code="damaged_poses")
    return times[:, 1]
