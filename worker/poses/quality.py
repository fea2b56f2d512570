"""How good the poses of a film are: defects that are counted, a score, and its reasons in words.

Pure: arrays in, a record out. What counts as a defect, and the formula of the score, stand in
docs/quality.md; :data:`VERSION` is raised when either changes. Lengths of time are seconds, all
else is counted in frames and pixels, so that the rate of a film changes no count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from posedrop.buckets.records.quality import (
    MOST_QUALITIES,
    BodypartQuality,
    BoneQuality,
    Quality,
    Stretches,
)

#: Of the formula in docs/quality.md.
VERSION = 1
#: A step or a length is an outlier when it is so many median absolute deviations off its median...
OUTLIER_MADS = 8.0
#: ... and by more than so many pixels (of a step: a frame).
OUTLIER_PIXELS = 5.0
#: A frame whose mean brightness and whose deviation of it are at most this (0 to 255) is black.
BLACK = 6.0
#: A frame repeats the one before it if neither changes by more than this...
SAME_BRIGHTNESS = 0.01
#: ... and no bodypart by more than so many pixels.
SAME_PIXELS = 1.0
#: So many frames in a row that repeat the one before them are a frozen stretch.
FROZEN_FRAMES = 5
#: Times between two frames, beside the median one, outside of which they are odd.
ODD_TIMES = 0.6, 1.6
#: An animal that was out of sight is compared with where it was at most so many rows before.
REMEMBERED_ROWS = 10
#: Beyond this many pixels no film has a frame.
_FAR = 1e9
#: Costs below this are no reason.
_LEAST_COST = 0.001

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Poses:
    """The poses of a film; n rows, one a frame, and c columns, one a bodypart of an animal."""

    values: Floats
    """x, y (pixels of the whole frame) and likelihood; NaN where there is none; (n, c, 3)."""
    bodyparts: Sequence[str]
    """The bodypart of each column."""
    animals: Sequence[str | None]
    """The animal of each column; None: there is one without a name, or the bodypart is nobody's."""
    frames: npt.NDArray[np.int64]
    """The number of each row's frame, ascending; (n,)."""
    seconds: Floats
    """When it is shown; (n,)."""
    decoded: Mask
    """Whether it could be decoded; (n,)."""
    brightness: Floats | None = None
    """Mean and standard deviation of each frame, 0 to 255; (n, 2). None: not known."""
    pcutoff: float = 0.6
    """A position with at least this likelihood is sure."""
    size: tuple[int, int] | None = None
    """Width and height of a frame, in pixels; None: not known."""
    skeleton: Sequence[tuple[str, str]] = ()
    expected: int | None = None
    """How many animals there are; None: not known, or they have no names."""
    tracked: bool = True
    """Whether an animal is the same from row to row."""


class _Stretch(NamedTuple):
    """Rows that follow each other: how many, how long they last, where they begin."""

    rows: int
    seconds: float
    first_frame: int


_NONE = _Stretch(0, 0.0, 0)


@dataclass(slots=True)
class _Part:
    """What is found of one bodypart, over all animals that have it."""

    positions: int = 0
    sure: int = 0
    gap: _Stretch = _NONE
    """The longest stretch in which an animal's is not sure."""
    steps: int = 0
    jumps: int = 0
    outside: int = 0

    @property
    def below(self) -> float:
        """The share of its positions that are not sure, 0 to 1."""
        return 1 - self.sure / self.positions if self.positions else 1.0


@dataclass(slots=True)
class _Reasons:
    """What is bad, each with its cost: the share of the score that it takes, 0 to 1."""

    found: list[tuple[float, str]] = field(default_factory=list)

    def add(self, cost: float, words: str) -> None:
        cost = min(max(cost, 0.0), 1.0)
        if cost >= _LEAST_COST:
            self.found.append((cost, words[:300]))

    @property
    def score(self) -> float:
        left = float(np.prod([1 - cost for cost, _ in self.found]))
        return round(100 * left, 1)

    def worst(self) -> list[str]:
        return [words for _, words in sorted(self.found, key=lambda each: -each[0])[:3]]


def assess(poses: Poses) -> Quality:
    """Return what is wrong with the poses of a film, and how much of it.

    Args:
        poses: any number of rows and columns, none among them.
    """
    # Of a film's child, who may have been taken over: what can't be reckoned with is left out.
    seconds = np.nan_to_num(poses.seconds.astype(np.float64), posinf=0, neginf=0).clip(-1e12, 1e12)
    with np.errstate(all="ignore"):
        return _assessed(poses, _Times(poses.frames, seconds))


def _assessed(poses: Poses, times: _Times) -> Quality:
    rows = len(poses.frames)
    reasons = _Reasons()
    columns = [_Column.of(poses, number) for number in range(len(poses.bodyparts))]
    _leave_out_the_never_seen(columns)
    lost = times.stretches(~poses.decoded)
    dark, still = (
        times.stretches(mask) if mask is not None else None
        for mask in _dark_and_still(poses, columns)
    )
    parts = _parts(poses, times, columns)
    _add_film(reasons, rows, lost, dark, still)
    _add_parts(reasons, rows, parts, poses.pcutoff)
    bones = _bones(poses, columns, reasons)
    odd, steps = times.odd()
    reasons.add(
        0.1 * _up_to(odd, steps, 0.02),
        f"{_counted(odd, 'frame comes', 'frames come')} at an irregular time: the camera may have "
        "lost some",
    )
    fewer = _fewer(poses, columns, reasons)
    swaps = _swaps(poses, columns, reasons)
    worst = sorted(parts, key=lambda name: -parts[name].below)[:MOST_QUALITIES]
    return Quality(
        version=VERSION,
        score=reasons.score,
        reasons=reasons.worst(),
        pcutoff=poses.pcutoff,
        bodyparts=[
            BodypartQuality(
                name=name[:300],
                below_cutoff=round(part.below, 6),
                longest_gap_seconds=round(part.gap.seconds, 6),
                jumps=part.jumps if poses.tracked else None,
                outside=part.outside if poses.size is not None else None,
            )
            for name, part in parts.items()
            if name in set(worst)
        ],
        missing=lost,
        black=dark,
        frozen=still,
        odd_timestamps=odd,
        bones=bones,
        fewer_animals=fewer,
        suspected_swaps=swaps,
    )


# -- the film --------------------------------------------------------------------------------------


class _Times:
    """The rows of a film as times; all lengths in seconds."""

    def __init__(self, frames: npt.NDArray[np.int64], seconds: npt.NDArray[np.float64]) -> None:
        self.frames = frames
        self._seconds = seconds
        steps = np.diff(seconds)
        self._row = float(np.median(steps)) if len(steps) else 0.0
        self._a_frame = steps / np.diff(frames)

    def stretches(self, mask: Mask) -> Stretches:
        """Return how many stretches of rows a mask has, and the longest of them."""
        longest = self.longest(mask)
        if longest is None:
            return Stretches(frames=0, stretches=0, longest_seconds=0.0)
        return Stretches(
            frames=int(mask.sum()),
            stretches=len(_stretches(mask)[0]),
            longest_seconds=round(longest.seconds, 6),
            first_frame=longest.first_frame,
        )

    def longest(self, mask: Mask) -> _Stretch | None:
        """Return the longest stretch of rows that a mask has, and the first of several."""
        starts, stops = _stretches(mask)
        if not len(starts):
            return None
        last = len(self._seconds) - 1
        # A row lasts until the next one is shown.
        ends = self._seconds[np.minimum(stops, last)] + np.where(stops > last, self._row, 0.0)
        lengths = np.maximum(ends - self._seconds[starts], 0.0)
        longest = int(np.argmax(lengths >= lengths.max() * (1 - 1e-9)))
        start, stop = int(starts[longest]), int(stops[longest])
        return _Stretch(stop - start, float(lengths[longest]), int(self.frames[start]))

    def odd(self) -> tuple[int, int]:
        """Return how many steps from row to row are too short or too long, and of how many."""
        if not len(self._a_frame):
            return 0, 0
        median = float(np.median(self._a_frame))
        least, most = ODD_TIMES
        is_odd = (self._a_frame < least * median) | (self._a_frame > most * median)
        return int(is_odd.sum()), len(self._a_frame)


def _stretches(mask: Mask) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return where the stretches of True begin, and behind which row each ends."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _dark_and_still(
    poses: Poses, columns: Sequence[_Column]
) -> tuple[Mask, Mask] | tuple[None, None]:
    """Return which rows are black, and which are of a frozen stretch."""
    if poses.brightness is None:
        return None, None
    bright = poses.brightness.astype(np.float64)
    black = (bright <= BLACK).all(axis=1) & poses.decoded
    repeats = np.zeros(len(bright), np.bool_)
    repeats[1:] = (np.abs(np.diff(bright, axis=0)) <= SAME_BRIGHTNESS).all(axis=1)
    repeats[1:] &= poses.decoded[1:] & poses.decoded[:-1]
    for column in columns:
        repeats[1:] &= ~(column.steps > SAME_PIXELS)
    repeats &= ~black
    frozen = np.zeros_like(repeats)
    starts, stops = _stretches(repeats)
    long = stops - starts >= FROZEN_FRAMES
    edges = np.zeros(len(repeats) + 1, np.int64)
    edges[starts[long]] += 1
    edges[stops[long]] -= 1
    frozen[:] = np.cumsum(edges[:-1]) > 0
    return black, frozen


def _add_film(
    reasons: _Reasons,
    rows: int,
    lost: Stretches,
    dark: Stretches | None,
    still: Stretches | None,
) -> None:
    if not rows:
        reasons.add(1.0, "the film has no frames")
    for found, one, several in (
        (lost, "frame of the film can't be read", "frames of the film can't be read"),
        (dark, "frame is black", "frames are black"),
        (still, "frame repeats the one before", "frames in long stretches repeat the one before"),
    ):
        if found is not None and found.frames:
            why = ": the camera may have stood still" if found is still else ""
            reasons.add(
                found.frames / rows,
                f"{_counted(found.frames, one, several)}{why}; the longest stretch lasts "
                f"{found.longest_seconds:.2f} s, from frame {found.first_frame}",
            )


# -- bodyparts -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Column:
    """One bodypart of one animal."""

    bodypart: str
    animal: str | None
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    sure: Mask
    steps: npt.NDArray[np.float64]
    """Pixels from each row to the next; NaN where it is not sure in both; (n - 1,)."""
    counts: bool = True
    """False: the animal is never seen, which is told of animals, not of bodyparts."""

    @classmethod
    def of(cls, poses: Poses, number: int) -> _Column:
        x, y, likelihood = np.ascontiguousarray(poses.values[:, number].T, np.float64)
        sure = (likelihood >= poses.pcutoff) & (np.abs(x) < _FAR) & (np.abs(y) < _FAR)
        sure &= poses.decoded
        steps = np.hypot(np.diff(x), np.diff(y))
        steps[~(sure[1:] & sure[:-1])] = np.nan
        return cls(poses.bodyparts[number], poses.animals[number], x, y, sure, steps)


def _leave_out_the_never_seen(columns: Sequence[_Column]) -> None:
    """Have a model that knows more animals than are in the film not tell of poor bodyparts."""
    seen = {column.animal for column in columns if column.sure.any()}
    for column in columns:
        column.counts = not seen or column.animal is None or column.animal in seen


def _parts(poses: Poses, times: _Times, columns: Sequence[_Column]) -> dict[str, _Part]:
    frame_steps = np.diff(poses.frames)
    parts: dict[str, _Part] = {}
    for column in columns:
        part = parts.setdefault(column.bodypart, _Part())
        if not column.counts:
            continue
        part.positions += int(poses.decoded.sum())
        part.sure += int(column.sure.sum())
        gap = times.longest(~column.sure)
        if gap is not None and gap.seconds >= part.gap.seconds:
            part.gap = gap
        if poses.tracked:
            known = ~np.isnan(column.steps)
            jumps = _outliers((column.steps / frame_steps)[known], above_only=True)
            part.steps += len(jumps)
            part.jumps += int((jumps & ~_moves_on(column, frame_steps)[known]).sum())
        if poses.size is not None:
            width, height = poses.size
            x, y = column.x, column.y
            out = (x < 0) | (y < 0) | (x >= width) | (y >= height)
            part.outside += int((out & column.sure).sum())
    return parts


def _moves_on(column: _Column, frame_steps: npt.NDArray[np.int64]) -> Mask:
    """Tell which steps are much like the one before or behind, as when an animal runs; (n - 1,)."""
    is_known = ~np.isnan(column.steps)
    x, y = (
        np.where(is_known, np.diff(each) / frame_steps, np.nan) for each in (column.x, column.y)
    )
    is_alike = np.hypot(np.diff(x), np.diff(y)) <= OUTLIER_PIXELS
    alike = np.zeros(len(column.steps), np.bool_)
    alike[1:] |= is_alike
    alike[:-1] |= is_alike
    return alike


def _outliers(values: npt.NDArray[np.float64], *, above_only: bool = False) -> Mask:
    """Tell which values are far from their median, by their spread and in pixels.

    Args:
        above_only: of steps; one is compared with 0 for its pixels, not with the median.
    """
    if not len(values):
        return np.zeros(0, np.bool_)
    off = values - np.median(values)
    spread = float(np.median(np.abs(off)))
    if above_only:
        return (off > OUTLIER_MADS * spread) & (values > OUTLIER_PIXELS)
    return np.abs(off) > max(OUTLIER_MADS * spread, OUTLIER_PIXELS)


def _add_parts(reasons: _Reasons, rows: int, parts: dict[str, _Part], pcutoff: float) -> None:
    if not parts:
        return
    positions, sure, steps, jumps, outside = (
        sum(getattr(part, name) for part in parts.values())
        for name in ("positions", "sure", "steps", "jumps", "outside")
    )
    if positions:
        worst = max(parts, key=lambda name: parts[name].below)
        below = 1 - sure / positions
        reasons.add(
            below,
            f"{_percent(below)} of the positions are below the cutoff of {pcutoff:g}; most of "
            f"{worst}: {_percent(parts[worst].below)}",
        )
    worst = max(parts, key=lambda name: parts[name].gap.seconds)
    gap = parts[worst].gap
    reasons.add(
        0.2 * _up_to(gap.rows, rows, 1.0),
        f"{worst} is not found for {gap.seconds:.2f} s in a row, from frame {gap.first_frame}",
    )
    worst = max(parts, key=lambda name: parts[name].jumps)
    reasons.add(
        0.3 * _up_to(jumps, steps, 0.02),
        f"{_counted(jumps, 'sudden jump', 'sudden jumps')} from one frame to the next, most of "
        f"{worst}: {parts[worst].jumps:,}",
    )
    worst = max(parts, key=lambda name: parts[name].outside)
    reasons.add(
        0.2 * _up_to(outside, sure, 0.05),
        f"{_counted(outside, 'position lies', 'positions lie')} outside of the picture, most of "
        f"{worst}: {parts[worst].outside:,}",
    )


def _bones(poses: Poses, columns: Sequence[_Column], reasons: _Reasons) -> list[BoneQuality]:
    """Return how often the length of each bone of the skeleton is unlikely."""
    by_name = {(column.animal, column.bodypart): column for column in columns}
    found: dict[tuple[str, str], int] = {}
    measured = 0
    for one, other in list(poses.skeleton)[:MOST_QUALITIES]:
        for animal in dict.fromkeys(poses.animals):
            a, b = by_name.get((animal, one)), by_name.get((animal, other))
            if a is None or b is None:
                continue
            sure = a.sure & b.sure
            lengths = np.hypot(a.x[sure] - b.x[sure], a.y[sure] - b.y[sure])
            measured += len(lengths)
            outliers = int(_outliers(lengths).sum())
            found[one, other] = found.get((one, other), 0) + outliers
    if found:
        worst = max(found, key=lambda bone: found[bone])
        outliers = sum(found.values())
        reasons.add(
            0.2 * _up_to(outliers, measured, 0.05),
            f"{_counted(outliers, 'distance', 'distances')} between bodyparts of the skeleton "
            f"can't be right, most from {worst[0]} to {worst[1]}: {found[worst]:,}",
        )
    return [
        BoneQuality(bodyparts=(one[:300], other[:300]), outliers=outliers)
        for (one, other), outliers in found.items()
    ]


# -- animals ---------------------------------------------------------------------------------------


def _fewer(poses: Poses, columns: Sequence[_Column], reasons: _Reasons) -> int | None:
    """Return how many decoded frames have fewer animals than expected, with any sure bodypart."""
    if poses.expected is None:
        return None
    seen: dict[str, Mask] = {}
    for column in columns:
        if column.animal is not None:
            known = seen.get(column.animal)
            seen[column.animal] = column.sure if known is None else known | column.sure
    number = np.zeros(len(poses.frames), np.int64)
    for mask in seen.values():
        number += mask
    fewer = int(((number < poses.expected) & poses.decoded).sum())
    decoded = int(poses.decoded.sum())
    reasons.add(
        0.2 * _up_to(fewer, decoded, 1.0),
        f"fewer than {poses.expected} animals are found in {_percent(fewer / max(1, decoded))} of "
        "the frames",
    )
    return fewer


def _swaps(poses: Poses, columns: Sequence[_Column], reasons: _Reasons) -> int | None:
    """Return how often animals seem to have changed places from one row to the next."""
    names = [name for name in dict.fromkeys(poses.animals) if name is not None]
    if not poses.tracked or len(names) < 2:
        return None
    parts = dict.fromkeys(column.bodypart for column in columns if column.animal is not None)
    by_name = {(column.animal, column.bodypart): column for column in columns}
    moves = [
        _Move.of([by_name.get((name, part)) for part in parts], poses.frames) for name in names
    ]
    found = _changes(moves)
    swaps = sum(found.values())
    first = f", first at frame {poses.frames[min(found)]}" if found else ""
    reasons.add(
        0.3 * _up_to(swaps, len(poses.frames), 0.001),
        f"animals may have been mixed up {_counted(swaps, 'time', 'times')}{first}",
    )
    return swaps


def _changes(moves: Sequence[_Move]) -> dict[int, int]:
    """Return the rows in which animals change places, and how many exchanges of two that takes."""
    taken: dict[int, dict[int, tuple[float, int]]] = {}
    for one, other in permutations(range(len(moves)), 2):
        for row, distance in moves[one].takes_place_of(moves[other]):
            own = taken.setdefault(row, {})
            own[one] = min((distance, other), own.get(one, (np.inf, one)))
    found = {
        row: _exchanges({one: other for one, (_, other) in places.items()})
        for row, places in taken.items()
    }
    return {row: number for row, number in found.items() if number}


def _exchanges(goes: dict[int, int]) -> int:
    """Return how many exchanges of two places make each go where it goes; only circles count."""
    number, seen = 0, set()
    for one in goes:
        way: list[int] = []
        while one in goes and one not in seen:
            seen.add(one)
            way.append(one)
            one = goes[one]
        if one in way:
            number += len(way) - way.index(one) - 1
    return number


@dataclass(slots=True)
class _Move:
    """Where an animal is in each row, and where it was when it was last seen."""

    now: npt.NDArray[np.float64]
    """Its bodyparts, in pixels; NaN where one is not sure; (n, bodyparts, 2)."""
    last: npt.NDArray[np.intp]
    """The row before in which it was last seen; (n,)."""
    way: npt.NDArray[np.float64]
    """The mean way of its bodyparts from there, in pixels; NaN where that is not known; (n,)."""
    jumps: Mask
    """Whether it went there by a jump; (n,)."""

    @classmethod
    def of(cls, columns: Sequence[_Column | None], frames: npt.NDArray[np.int64]) -> _Move:
        now = np.full((len(frames), len(columns), 2), np.nan)
        for number, column in enumerate(columns):
            if column is not None:
                now[column.sure, number, 0] = column.x[column.sure]
                now[column.sure, number, 1] = column.y[column.sure]
        rows = np.arange(len(frames))
        seen = np.where(np.isfinite(now[..., 0]).any(axis=1), rows, -1)
        last = np.concatenate([[-1], np.maximum.accumulate(seen)[:-1]])[: len(rows)]
        way = _distance(now, now[last])
        way[(last < 0) | (rows - last > REMEMBERED_ROWS)] = np.nan
        jumps = np.isfinite(way)
        jumps[jumps] = _outliers((way / (frames - frames[last]))[jumps], above_only=True)
        return cls(now, last, way, jumps)

    def takes_place_of(self, other: _Move) -> list[tuple[int, float]]:
        """Return the rows where both jump, and this one to nearer where the other was than half
        of its own way, each with how near, in pixels."""
        rows = np.flatnonzero(self.jumps & other.jumps)
        near = _distance(self.now[rows], other.now[other.last[rows]])
        does = near < self.way[rows] / 2
        return list(zip(rows[does].tolist(), near[does].tolist(), strict=True))


def _distance(
    ones: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the mean distance of the bodyparts that both have; NaN where there are none."""
    each = np.hypot(ones[..., 0] - others[..., 0], ones[..., 1] - others[..., 1])
    common = np.isfinite(each)
    distances: npt.NDArray[np.float64] = np.where(common, each, 0).sum(axis=1) / common.sum(axis=1)
    return distances


# -- words -----------------------------------------------------------------------------------------


def _up_to(count: float, of: float, most: float) -> float:
    """Return a share as a part of the one from which on it costs no more; 0 to 1."""
    return min(1.0, count / of / most) if of else 0.0


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _percent(share: float) -> str:
    """Return a share as a person reads it: none of nearly none, all of nearly all."""
    percent = 100 * share
    if 0 < percent < 1:
        return "less than 1 %"
    if 99 < percent < 100:
        return "more than 99 %"
    return f"{percent:.0f} %"
