"""The quality of poses: what is planted in a film is counted, no more and no less."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from posedrop.buckets.records.quality import Quality
from worker.poses import quality
from worker.poses.quality import Poses

#: Rows in each of which one defect is planted, with sound ones around it.
BLOCK = 20
WIDTH, HEIGHT = 1280, 900


@dataclass
class Film:
    """A sound film, and what was planted in it."""

    poses: Poses
    parts: int
    animals: int
    jumps: int = 0
    outside: int = 0
    bones: int = 0
    swaps: int = 0
    odd: int = 0
    absent: int = 0
    black: list[int] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)


def sound(rows: int, parts: int, animals: int, dtype: type, stride: int, seed: int) -> Film:
    """Return a film of animals that sit still, but for less than a pixel."""
    rng = np.random.default_rng(seed)
    shape = (rows, animals, parts)
    values = np.empty((*shape, 3), dtype)
    values[..., 0] = 100 + 200 * np.arange(animals)[:, None] + rng.uniform(-0.3, 0.3, shape)
    values[..., 1] = 400 + 50 * np.arange(parts) + rng.uniform(-0.3, 0.3, shape)
    values[..., 2] = rng.uniform(0.7, 1, shape)
    bright = np.stack([100 + 5 * rng.random(rows), 30 + 5 * rng.random(rows)], axis=1)
    bright[::2] += 1  # none like the one before
    frames = 7 + stride * np.arange(rows)
    names = [f"mouse{n}" if animals > 1 else None for n in range(animals) for _ in range(parts)]
    poses = Poses(
        values=values.reshape((rows, animals * parts, 3)),
        bodyparts=[f"part{n}" for _ in range(animals) for n in range(parts)],
        animals=names,
        frames=frames,
        seconds=frames / 30,
        decoded=np.ones(rows, np.bool_),
        brightness=bright.astype(np.float32),
        pcutoff=0.6,
        size=(WIDTH, HEIGHT),
        skeleton=[("part0", "part1")],
        expected=animals if animals > 1 else None,
    )
    return Film(poses, parts, animals)


def plant(film: Film, kind: str, row: int, length: int, animal: int) -> None:
    """Spoil some rows from ``row`` on."""
    poses, parts = film.poses, film.parts
    own = slice(animal * parts, (animal + 1) * parts)
    some = slice(row, row + length)
    values = poses.values
    bright = poses.brightness
    assert bright is not None
    if kind == "unsure":
        values[some, animal * parts, 2] = 0.3
    elif kind == "nowhere":
        values[some, animal * parts] = np.nan
    elif kind == "lost":
        poses.decoded[some] = False
        values[some], bright[some] = np.nan, np.nan
    elif kind == "absent":
        values[some, own, 2] = 0.1
        film.absent += length if film.animals > 1 else 0
    elif kind == "jump":  # and stays there
        values[row:, own, 1] += 30 if values[row, own, 1].max() < 600 else -30
        film.jumps += parts
    elif kind == "outside":
        values[row, own, 1] -= HEIGHT
        film.outside += parts
        film.jumps += 2 * parts
    elif kind == "bone" and parts > 1:
        values[row, own.start + 1, 1] += 40
        film.bones += 1
        film.jumps += 2
    elif kind == "swap" and film.animals > 1:
        beside = (animal + 1) % film.animals
        other = slice(beside * parts, (beside + 1) * parts)
        both = values[row:, other].copy(), values[row:, own].copy()
        values[row:, own], values[row:, other] = both
        film.swaps += 1
        film.jumps += 2 * parts
    elif kind == "black":
        bright[some] = [[4.5, 2.0]] * length
        film.black.append(length)
    elif kind == "frozen":
        length = max(length, quality.FROZEN_FRAMES)
        values[row : row + length], bright[row : row + length] = values[row - 1], bright[row - 1]
        film.frozen.append(length)
    elif kind == "stutter":  # too short to count
        values[row : row + 4], bright[row : row + 4] = values[row - 1], bright[row - 1]
    elif kind == "late":
        poses.seconds[row:] += length / 30 * np.diff(poses.frames)[0]
        film.odd += 1


#: What may be planted; see ``plant``.
KINDS = (
    *("sound", "unsure", "nowhere", "lost", "absent", "jump", "outside", "bone", "swap"),
    *("black", "frozen", "stutter", "late"),
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=6, max_size=30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.floats(0.001, 1000),
)
def test_what_is_planted_is_counted(
    kinds: list[str], parts: int, animals: int, dtype: type, stride: int, seed: int, slower: float
) -> None:
    """Each defect by its number, whatever else there is; another rate scales seconds alone."""
    # Sound rows are most of any film in which outliers can be told.
    blocks = [*kinds, *["sound"] * len(kinds)]
    film = sound(BLOCK * len(blocks), parts, animals, dtype, stride, seed)
    pick = random.Random(seed)
    for number, kind in enumerate(blocks):
        row = BLOCK * number + pick.randint(2, 5)
        plant(film, kind, row, pick.randint(1, BLOCK - 8), pick.randrange(animals))
    found = quality.assess(film.poses)

    poses = film.poses
    sure = (np.nan_to_num(poses.values[..., 2]) >= 0.6) & poses.decoded[:, None]
    for part in found.bodyparts:
        own = sure[:, [name == part.name for name in poses.bodyparts]]
        below = 1 - own[poses.decoded].mean()
        assert part.below_cutoff == pytest.approx(below, abs=1e-6)
        gap = max(longest(~own[:, column], poses.seconds) for column in range(own.shape[1]))
        assert part.longest_gap_seconds == pytest.approx(gap, abs=2e-6)
    lost = [len(list(rows)) for is_lost, rows in groupby(~poses.decoded) if is_lost]
    assert sum(part.jumps or 0 for part in found.bodyparts) == film.jumps
    assert sum(part.outside or 0 for part in found.bodyparts) == film.outside
    assert sum(bone.outliers for bone in found.bones) == film.bones
    assert (found.suspected_swaps or 0) == film.swaps
    assert found.odd_timestamps == film.odd
    absent = ~sure.reshape((len(sure), animals, parts)).any(axis=2)[poses.decoded]
    assert (found.fewer_animals or 0) == (absent.any(axis=1).sum() if animals > 1 else 0)
    assert found.black is not None
    assert found.frozen is not None
    for stretches, lengths in ((found.missing, lost), (found.black, film.black)):
        assert (stretches.frames, stretches.stretches) == (sum(lengths), len(lengths))
    assert (found.frozen.frames, found.frozen.stretches) == (sum(film.frozen), len(film.frozen))
    if set(kinds) == {"sound"}:
        assert (found.score, found.reasons) == (100, [])

    scaled = quality.assess(replace(poses, seconds=poses.seconds * slower))
    assert counts_of(scaled) == counts_of(found)
    assert scaled.missing.longest_seconds == pytest.approx(
        found.missing.longest_seconds * slower, rel=1e-6, abs=2e-6 * max(1, slower)
    )
    assert scaled.bodyparts[0].longest_gap_seconds == pytest.approx(
        found.bodyparts[0].longest_gap_seconds * slower, rel=1e-6, abs=2e-6 * max(1, slower)
    )


def longest(mask: np.ndarray, seconds: np.ndarray) -> float:
    """Return how long the longest stretch of a mask lasts; row by row."""
    usual = float(np.median(np.diff(seconds)))
    most, begin = 0.0, None
    for row, is_in in enumerate([*mask, False]):
        if is_in and begin is None:
            begin = row
        elif not is_in and begin is not None:
            end = seconds[row] if row < len(mask) else seconds[-1] + usual
            most, begin = max(most, end - seconds[begin]), None
    return most


def counts_of(found: Quality) -> Any:
    """Return all of a record of quality that is no length of time, nor words with one."""
    seconds = {"longest_seconds", "longest_gap_seconds"}

    def without(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: without(value) for name, value in tree.items() if name not in seconds}
        return [without(each) for each in tree] if isinstance(tree, list) else tree

    return without(found.model_dump(mode="json", exclude={"reasons"}))


@given(
    st.integers(0, 4).flatmap(
        lambda rows: st.tuples(
            arrays(np.float32, (rows, 4, 3), elements=st.floats(width=32)),
            arrays(np.bool_, rows),
            arrays(np.float32, (rows, 2), elements=st.floats(width=32)),
            arrays(np.float64, rows, elements=st.floats()),
        )
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_no_numbers_are_too_odd(
    film: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], named: bool
) -> None:
    """NaN, infinities, what overflows, no rows at all, one row: there is always a record."""
    values, decoded, brightness, seconds = film
    animals = ["a", "a", "b", "b"] if named else [None] * 4
    found = quality.assess(
        Poses(
            values=values,
            bodyparts=["x", "y", "x", "y"] if named else list("xyzw"),
            animals=animals,
            frames=np.arange(len(values)),
            seconds=seconds,
            decoded=decoded,
            brightness=brightness,
            size=(640, 480),
            skeleton=[("x", "y"), ("x", "nobody")],
            expected=2 if named else None,
        )
    )
    assert Quality.model_validate_json(found.model_dump_json()) == found
    assert found.score == 0 or decoded.any()


def test_a_film_in_which_nothing_is_found_has_no_points() -> None:
    """All below the cutoff, all lost, all black: 0, and the words say which."""
    for kind, words in (("unsure", "below the cutoff"), ("lost", "read"), ("black", "black")):
        film = sound(60, 1, 1, np.float64, 1, 1)
        plant(film, kind, 0, 60, 0)
        found = quality.assess(film.poses)
        assert found.score == 0
        assert words in found.reasons[0]
    empty = quality.assess(sound(0, 2, 2, np.float64, 1, 1).poses)
    assert (empty.score, empty.reasons) == (0, ["the film has no frames"])


def test_the_worst_comes_first_in_words() -> None:
    """Three reasons at most, those that take the most of the score, with names and numbers."""
    film = sound(400, 2, 1, np.float64, 1, 1)
    for row, kind, length in ((20, "black", 9), (60, "lost", 30), (120, "unsure", 200)):
        plant(film, kind, row, length, 0)
    plant(film, "late", 360, 3, 0)
    assert quality.assess(film.poses).reasons == [
        "27 % of the positions are below the cutoff of 0.6; most of part0: 54 %",
        "part0 is not found for 6.67 s in a row, from frame 127",
        "30 frames of the film can't be read; the longest stretch lasts 1.00 s, from frame 67",
    ]


def test_an_animal_that_is_in_no_frame_is_told_of_as_such() -> None:
    """A model that knows two animals, one in the film: its bodyparts are no worse for that."""
    film = sound(100, 2, 2, np.float64, 1, 1)
    film.poses.values[:, 2:] = np.nan
    found = quality.assess(film.poses)
    assert [part.below_cutoff for part in found.bodyparts] == [0, 0]
    assert (found.fewer_animals, found.suspected_swaps) == (100, 0)
    assert found.reasons == ["fewer than 2 animals are found in 100 % of the frames"]


def test_animals_that_are_not_followed_do_not_jump() -> None:
    """The model zoo numbers them anew in each frame."""
    film = sound(100, 2, 2, np.float64, 1, 1)
    plant(film, "swap", 50, 1, 0)
    found = quality.assess(replace(film.poses, tracked=False, expected=None, size=None))
    assert [(part.jumps, part.outside) for part in found.bodyparts] == [(None, None)] * 2
    assert (found.fewer_animals, found.suspected_swaps, found.score) == (None, None, 100)


def test_an_animal_that_rests_and_runs_does_not_jump() -> None:
    """Most of its steps are none at all; when it runs, each is like the one before or behind."""
    film = sound(400, 2, 1, np.float64, 1, 1)
    for first in (50, 150, 250):
        speed = np.minimum(np.minimum(np.arange(30), np.arange(30)[::-1]) * 4, 18.0)
        film.poses.values[first : first + 30, :, 0] += np.cumsum(speed)[:, None]
        film.poses.values[first + 30 :, :, 0] += speed.sum()
    plant(film, "jump", 265, 1, 0)
    found = quality.assess(film.poses)
    assert [part.jumps for part in found.bodyparts] == [1, 1]


def test_three_that_go_round_have_swapped_twice() -> None:
    """Though no two of them have changed places; also behind some rows out of sight."""
    for gone in (0, 5, quality.REMEMBERED_ROWS + 1):
        film = sound(100, 2, 4, np.float64, 1, 1)
        poses = film.poses
        poses.values[50:, :6] = np.roll(poses.values[50:, :6], 2, axis=1)
        poses.values[50 : 50 + gone, :6] = np.nan
        found = quality.assess(poses)
        assert found.suspected_swaps == (2 if gone < quality.REMEMBERED_ROWS else 0)


def test_one_that_follows_another_has_taken_no_place() -> None:
    """Mice in a row that run together: each is where the one before it was."""
    film = sound(100, 2, 3, np.float64, 1, 1)
    film.poses.values[60:, :, 0] += 200
    assert quality.assess(film.poses).suspected_swaps == 0


def test_a_long_film_is_counted_as_well() -> None:
    """An hour of twenty bodyparts: 100,000 frames."""
    film = sound(100_000, 20, 1, np.float32, 1, 1)
    for row in range(1000, 100_000, 10_000):
        plant(film, "jump", row, 1, 0)
        plant(film, "frozen", row + 100, 50, 0)
    found = quality.assess(film.poses)
    assert found.frozen is not None
    assert found.frozen.stretches == 10
    assert sum(part.jumps or 0 for part in found.bodyparts) == 200
