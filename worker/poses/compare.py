"""Two tables of poses of one film, compared keypoint by keypoint.

Rows are matched by their frame's number, bodyparts by name. Both tables are read part by part: in
memory at a time are some thousand rows of each, and on the disk one number for each position.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from posedrop.buckets.records.comparison import (
    MOST_COMPARED,
    WORST_FRAMES,
    ComparedRun,
    Comparison,
    Distances,
    KeypointDistances,
    WorstFrame,
)
from posedrop.buckets.records.quality import MOST_QUALITIES
from posedrop.errors import AnalysisError
from worker.child.messages import ComparePoses, PosesToCompare
from worker.poses import table
from worker.poses.table import PoseTable

Floats = npt.NDArray[np.float64]
Matched = Literal["one", "names", "distance"]

#: Pixels within which positions are counted; two runs disagree where they are farther apart than
#: the last.
NEAR = (1.0, 2.0, 5.0)
#: Pixels. What is farther apart is as far: in a table may be any number.
FARTHEST = 1e9
#: Of more positions than these, the percentiles of all together are those of some, evenly spread.
MOST_SORTED = 1 << 25
#: Pairs of animals, in all frames that are looked at together.
_PAIRS = 1 << 20


def compare(payload: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Compare the poses of two runs, and write what was found as a JSON file.

    Args:
        payload: :class:`worker.child.messages.ComparePoses` as JSON.
        report: tells the parent how many frames were read.

    Returns:
        :class:`worker.child.messages.ExportOutput` as JSON.

    Raises:
        AnalysisError: code ``damaged_poses``: a table can't be read; ``too_many_bodyparts``: the
            comparison would be larger than any is.
    """
    task = ComparePoses.model_validate(payload)
    a, b = (_Rows(table.read_parts(Path(each.poses))) for each in (task.a, task.b))
    out = Path(task.out)
    with tempfile.TemporaryFile(dir=out.parent) as scratch:
        most = table.lines(Path(task.a.poses))
        comparer = Comparer(a.head, b.head, task, most, scratch)
        for frames, of_a, of_b in aligned(a, b):
            comparer.add(frames, of_a, of_b)
            report("write", a.read)
        times = Path(task.timestamps) if task.timestamps is not None else None
        numbers = np.concatenate(a.frames)
        seconds = table.read_times(times, numbers, task.fps)
        found = comparer.comparison((a.read, b.read), numbers, seconds)
    out.write_bytes(found.to_json())
    return {"versions": {name: version(name) for name in ("numpy", "scipy")}}


class _Rows(Iterator[PoseTable]):
    """The parts of a table, whose frames have to ascend, from 0."""

    def __init__(self, parts: Iterator[PoseTable]) -> None:
        self._parts = parts
        self.head = next(parts)
        """The first part: names, and rows that are yielded first of all."""
        self.frames = [self.head.frames]
        """The numbers of the frames that were read."""
        self._next: PoseTable | None = self.head
        self._last = -1

    @property
    def read(self) -> int:
        """How many rows were read."""
        return sum(map(len, self.frames))

    def __next__(self) -> PoseTable:
        part, self._next = self._next, None
        if part is None:
            part = next(self._parts)
            self.frames.append(part.frames)
        if (np.diff(part.frames, prepend=self._last) <= 0).any():
            words = "the run's poses.csv can't be read: its frames do not ascend"
            raise AnalysisError(words, code="damaged_poses")
        self._last = int(part.frames[-1]) if len(part.frames) else self._last
        return part


def aligned(
    a: Iterator[PoseTable], b: Iterator[PoseTable]
) -> Iterator[tuple[npt.NDArray[np.int64], Floats, Floats]]:
    """Yield the rows of both tables that are of one frame; both are read to their ends.

    Returns:
        Numbers of frames (n), and the values of both tables
        (n, individuals, bodyparts, 3).
    """
    left, right = next(a, None), next(b, None)
    while left is not None and right is not None:
        frames, of_a, of_b = np.intersect1d(
            left.frames, right.frames, assume_unique=True, return_indices=True
        )
        yield frames, left.values[of_a], right.values[of_b]
        if left.frames[-1:].tolist() <= right.frames[-1:].tolist():
            left = next(a, None)
        else:
            right = next(b, None)
    for rest in (a, b):
        for _ in rest:
            pass


def nearest(a: Floats, b: Floats) -> npt.NDArray[np.intp]:
    """Return which animal of ``b`` each of ``a`` is, in each frame by itself.

    The mean distance of all bodyparts that both have, summed over the animals, is least.

    Args:
        a: positions (n, animals, bodyparts, 2), NaN where there is none.
        b: positions (n, animals of its own, bodyparts, 2).

    Returns:
        Places in ``b``, -1 where none is left (n, animals of ``a``).
    """
    shape = len(a), a.shape[1], b.shape[1]
    total, shared = np.zeros(shape), np.zeros(shape)
    for part in range(a.shape[2]):
        apart = np.hypot(*np.moveaxis(a[:, :, None, part] - b[:, None, :, part], -1, 0))
        shared += np.isfinite(apart)
        total += np.nan_to_num(np.minimum(apart, FARTHEST), copy=False)
    cost = np.where(shared > 0, total / np.maximum(shared, 1), FARTHEST)
    if shape[1] > shape[2]:
        found = np.full(shape[:2], -1, np.intp)
        rows = np.arange(len(a))[:, None]
        found[rows, _assigned(cost.transpose(0, 2, 1))] = np.arange(shape[2])
        return found
    return _assigned(cost)


def _assigned(cost: Floats) -> npt.NDArray[np.intp]:
    """Return the column of each row of each matrix (n, rows, columns at least as many)."""
    best: npt.NDArray[np.intp] = cost.argmin(axis=2)
    # Where each has another one as its nearest, nothing is better.
    taken = np.sort(best, axis=1)
    for frame in np.flatnonzero((taken[:, 1:] == taken[:, :-1]).any(axis=1)):
        best[frame] = linear_sum_assignment(cost[frame])[1]
    return best


class Comparer:
    """Two tables of one film, told to it frames by frames."""

    def __init__(
        self, a: PoseTable, b: PoseTable, task: ComparePoses, most: int, scratch: IO[bytes]
    ) -> None:
        """Nothing is compared yet.

        Args:
            a: names of the first table.
            b: names of the second one.
            task: what is known of both runs.
            most: rows of the first table, at most.
            scratch: an empty file, for what does not fit into memory.

        Raises:
            AnalysisError: there are too many keypoints.
        """
        self._a, self._b, self._task = a, b, task
        self._parts = [part for part in a.bodyparts if part in b.bodyparts]
        self._of_a = [a.bodyparts.index(part) for part in self._parts]
        self._of_b = [b.bodyparts.index(part) for part in self._parts]
        self._matched: Matched = "distance"
        if len(a.individuals) == len(b.individuals) == 1:
            self._matched = "one"
        elif task.by_name and {*a.individuals} & {*b.individuals}:
            self._matched = "names"
        shape = len(a.individuals), len(self._parts)
        if (
            max(len(a.bodyparts), len(b.bodyparts), len(a.individuals), len(b.individuals))
            > (MOST_QUALITIES)
            or shape[0] * shape[1] > MOST_COMPARED
        ):
            words = f"no more than {MOST_COMPARED:,} keypoints of two runs are compared"
            raise AnalysisError(words, code="too_many_bodyparts")
        self._rows = 0
        self._near = np.zeros((len(NEAR), *shape), np.int64)
        self._both, self._only_a, self._only_b = np.zeros((3, *shape), np.int64)
        self._sure, self._disagree = np.zeros((2, *shape), np.int64)
        self._all_of_b = 0
        self._worst = {False: np.empty((0, 4)), True: np.empty((0, 4))}
        size = max(1, shape[0] * shape[1]), max(1, most)
        self._distances = np.memmap(scratch, np.float32, "w+", shape=size)

    def add(self, frames: npt.NDArray[np.int64], a: Floats, b: Floats) -> None:
        """Compare some frames: their numbers (n), and the rows of both tables."""
        pairs = a.shape[1] * b.shape[1]
        step = max(1, _PAIRS // max(1, pairs, a.shape[1] * a.shape[2]))
        for start in range(0, len(frames), step):
            rows = slice(start, start + step)
            self._add(frames[rows], a[rows][:, :, self._of_a], b[rows][:, :, self._of_b])

    def _add(self, frames: npt.NDArray[np.int64], a: Floats, b: Floats) -> None:
        of_a: Any = np.isfinite(a[..., :2]).all(axis=-1)
        self._all_of_b += int(np.isfinite(b[..., :2]).all(axis=-1).sum())
        b = self._in_order_of_a(a, b)
        of_b: Any = np.isfinite(b[..., :2]).all(axis=-1)
        both = of_a & of_b
        apart = np.hypot(*np.moveaxis(np.where(both[..., None], a[..., :2] - b[..., :2], 0), -1, 0))
        apart = np.minimum(apart, FARTHEST)
        cutoffs = self._task.a.pcutoff, self._task.b.pcutoff
        sure = both & (a[..., 2] >= cutoffs[0]) & (b[..., 2] >= cutoffs[1])
        self._both += both.sum(axis=0)
        self._only_a += (of_a & ~of_b).sum(axis=0)
        self._only_b += (of_b & ~of_a).sum(axis=0)
        self._sure += sure.sum(axis=0)
        self._disagree += (sure & (apart > NEAR[-1])).sum(axis=0)
        for place, near in enumerate(NEAR):
            self._near[place] += (both & (apart <= near)).sum(axis=0)
        flat = np.where(both, apart, np.nan).reshape(len(frames), -1)
        if flat.shape[1]:
            self._distances[:, self._rows : self._rows + len(frames)] = flat.T
            flat_sure = sure.reshape(flat.shape)
            self._keep_worst(False, frames, flat, flat_sure)
            self._keep_worst(True, frames, np.where(flat_sure, flat, np.nan), flat_sure)
        self._rows += len(frames)

    def _in_order_of_a(self, a: Floats, b: Floats) -> Floats:
        """Return the rows of the second table with their animals as the first one has them."""
        names = self._b.individuals
        match self._matched:
            case "one":
                return b
            case "names":
                order: Any = [names.index(n) if n in names else -1 for n in self._a.individuals]
                order = np.broadcast_to(order, a.shape[:2])
            case "distance":
                order = nearest(a[..., :2], b[..., :2])
        found = np.take_along_axis(b, np.maximum(order, 0)[:, :, None, None], axis=1)
        return np.where((order < 0)[:, :, None, None], np.nan, found)

    def _keep_worst(
        self, of_sure: bool, frames: npt.NDArray[np.int64], apart: Floats, sure: Any
    ) -> None:
        """Keep the frames whose farthest keypoint is farther than that of all others."""
        apart = np.nan_to_num(apart)
        keypoint = apart.argmax(axis=1)
        rows = np.arange(len(frames))
        new = np.stack([frames, keypoint, apart[rows, keypoint], sure[rows, keypoint]], axis=1)
        found = np.concatenate([self._worst[of_sure], new[new[:, 2] > 0]])
        order = np.lexsort((found[:, 0], -found[:, 2]))
        self._worst[of_sure] = found[order[:WORST_FRAMES]]

    def comparison(
        self, rows: tuple[int, int], frames: npt.NDArray[np.int64], seconds: Floats
    ) -> Comparison:
        """Return what was found.

        Args:
            rows: how many each table has.
            frames: the numbers of those of the first table, ascending (n).
            seconds: when each of them is shown (n).
        """
        a, b = self._a, self._b
        places: Any = np.argwhere(a.tracked[:, self._of_a]).tolist()
        return Comparison(
            a=_run(self._task.a, a, b, rows[0]),
            b=_run(self._task.b, b, a, rows[1]),
            frames=self._rows,
            matched=self._matched,
            total=self._total(),
            keypoints=[self._keypoint(animal, part) for animal, part in places],
            worst=self._worst_frames(False, frames, seconds),
            worst_sure=self._worst_frames(True, frames, seconds),
        )

    def _keypoint(self, animal: int, part: int) -> KeypointDistances:
        place = animal, part
        return KeypointDistances(
            individual=_plain(self._a.individuals[animal]),
            bodypart=_plain(self._parts[part]),
            only_b=int(self._only_b[place]),
            **self._counts(place),
            **_percentiles(self._distances[animal * len(self._parts) + part, : self._rows]),
        )

    def _total(self) -> Distances:
        # A position of an animal that the first run has not stands at none of its keypoints.
        only_b = self._all_of_b - int(self._both.sum())
        distances = self._distances[:, : self._rows]
        step = 1 + distances.size // MOST_SORTED
        return Distances(
            only_b=only_b, **self._counts(...), **_percentiles(distances[:, ::step].ravel())
        )

    def _counts(self, place: Any) -> dict[str, Any]:
        positions = int(self._both[place].sum())
        near = (int(each[place].sum()) for each in self._near)
        shares = (round(count / positions, 6) if positions else None for count in near)
        return {
            "positions": positions,
            **dict(zip(("within_1", "within_2", "within_5"), shares, strict=True)),
            "only_a": int(self._only_a[place].sum()),
            "both_sure": int(self._sure[place].sum()),
            "disagree": int(self._disagree[place].sum()),
        }

    def _worst_frames(
        self, of_sure: bool, frames: npt.NDArray[np.int64], seconds: Floats
    ) -> list[WorstFrame]:
        names, parts = self._a.individuals, self._parts
        return [
            WorstFrame(
                frame=int(frame),
                seconds=float(seconds[np.searchsorted(frames, int(frame))]),
                individual=_plain(names[int(keypoint) // len(parts)]),
                bodypart=_plain(parts[int(keypoint) % len(parts)]),
                distance=round(float(distance), 4),
                sure=bool(sure),
            )
            for frame, keypoint, distance, sure in self._worst[of_sure]
        ]


def _run(told: PosesToCompare, of: PoseTable, other: PoseTable, rows: int) -> ComparedRun:
    return ComparedRun(
        analysis_id=told.analysis_id,
        model=_plain(told.model) if told.model is not None else None,
        scorer=_plain(of.scorer),
        pcutoff=told.pcutoff,
        frames=rows,
        individuals=[_plain(name) for name in of.individuals],
        only=[_plain(part) for part in of.bodyparts if part not in other.bodyparts],
    )


def _percentiles(distances: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return percentiles of distances in pixels (n), NaN where there is none; empty: of nothing."""
    found = distances[np.isfinite(distances)]
    if not len(found):
        return {}
    values = [*np.percentile(found, (50, 95, 99)), found.max()]
    return {
        name: round(float(value), 4)
        for name, value in zip(("median", "p95", "p99", "most"), values, strict=True)
    }


def _plain(name: str) -> str:
    """Return a name as a record takes it: a few characters, all of which can be seen."""
    return "".join(c if c.isprintable() else "?" for c in name)[:300]
