"""A run's table of poses, read as numbers: of its CSV, in which nothing is ever executed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from posedrop.errors import AnalysisError

#: What the animal of a table without names is called, as movement calls it.
UNNAMED = "id_0"
#: Cells of a table that are in memory at a time, where it is read part by part.
CELLS = 2_000_000
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
    parts = read_parts(path)
    head = next(parts)
    most = max(lines(path), len(head.frames))
    frames, values = np.empty(most, np.int64), np.empty((most, *head.values.shape[1:]))
    rows = 0
    for part in chain([head], parts):
        end = rows + len(part.frames)
        frames[rows:end], values[rows:end] = part.frames, part.values
        rows = end
    return replace(head, frames=frames[:rows], values=values[:rows])


def lines(path: Path) -> int:
    """Return how many lines a file has, at least as many as it has rows."""
    with path.open("rb") as file:
        return 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def read_parts(path: Path, cells: int = CELLS) -> Iterator[PoseTable]:
    """Read ``poses.csv`` part by part, of so many cells at most; one without rows has one part.

    Raises:
        AnalysisError: code ``damaged_poses``: it is no table of DeepLabCut's.
    """
    try:
        yield from _read_parts(path, cells)
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        words = f"the run's poses.csv can't be read as DeepLabCut's table: {error}"[:500]
        raise AnalysisError(words, code="damaged_poses") from error


def _read_parts(path: Path, cells: int) -> Iterator[PoseTable]:
    with path.open(encoding="utf-8", newline="") as file:
        head = {row[0]: row[1:] for row in islice(csv.reader(file), len(_LEVELS)) if row}
    levels = [name for name in _LEVELS if name in head]
    if levels[-1:] != ["coords"] or "bodyparts" not in head:
        raise ValueError("it has no rows 'bodyparts' and 'coords' at its top")
    parts, coords = head["bodyparts"], head["coords"]
    animals = head.get("individuals", [UNNAMED] * len(parts))
    individuals, bodyparts = list(dict.fromkeys(animals)), list(dict.fromkeys(parts))
    places = [
        (individuals.index(animal), bodyparts.index(part), _COORDS.index(coord))
        for animal, part, coord in zip(animals, parts, coords, strict=True)
    ]
    tracked = np.zeros((len(individuals), len(bodyparts)), bool)
    for animal, part, _ in places:
        tracked[animal, part] = True
    scorer = next(iter(head.get("scorer", [])), "")
    for found in _numbers(path, len(levels), 1 + len(coords), cells):
        values = np.full((len(found), *tracked.shape, len(_COORDS)), np.nan)
        for column, place in enumerate(places, 1):
            values[:, *place] = found[:, column]
        values[values[..., 2] < 0] = np.nan
        frames = found[:, 0].astype(np.int64)
        yield PoseTable(frames, individuals, bodyparts, values, tracked, scorer)


def _numbers(path: Path, head: int, columns: int, cells: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the rows below the head of a table, so many cells of them at a time."""
    try:
        with pd.read_csv(
            path,
            header=None,
            skiprows=head,
            float_precision="round_trip",
            dtype=np.float64,
            chunksize=max(1, cells // columns),
        ) as reader:
            for found in reader:
                yield found.to_numpy()
    except pd.errors.EmptyDataError:  # a table without rows
        yield np.empty((0, columns))


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
