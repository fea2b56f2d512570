"""Two tables of poses compared: what was planted is found, whatever else differs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posedrop.buckets.records.comparison import Comparison
from posedrop.errors import AnalysisError
from worker.child.messages import ComparePoses
from worker.child.tasks import function
from worker.poses import compare, table

PARTS = ["nose", "left/ear", "Körper", "tail,1"]
SIDE = 10_000.0


def write(
    path: Path,
    values: Any,
    *,
    parts: list[str] = PARTS,
    animals: tuple[str, ...] = (),
    frames: Any = None,
) -> Path:
    """Write a table (n, animals, bodyparts, 3) as DeepLabCut does, and return its path."""
    names = [animals or ("",), parts, ["x", "y", "likelihood"]]
    columns = [("DLC_net", *(each if animals else each[1:])) for each in itertools.product(*names)]
    levels = ["scorer", *(["individuals"] if animals else []), "bodyparts", "coords"]
    index = pd.MultiIndex.from_tuples(columns, names=levels)
    rows = values.reshape(len(values), len(columns))
    pd.DataFrame(rows, columns=index, index=frames).to_csv(path)
    return path


def task(a: Path, b: Path, **more: Any) -> dict[str, Any]:
    """Return what a child is told."""
    runs = [
        {"analysis_id": name, "poses": str(path), "pcutoff": 0.5}
        for name, path in zip("ab", (a, b), strict=True)
    ]
    out = str(a.with_name("compared.json"))
    return {"a": runs[0], "b": runs[1], "by_name": False, "fps": 25.0, "out": out, **more}


def compared(a: Path, b: Path, **more: Any) -> Comparison:
    """Return the comparison of two tables, as a child writes it."""
    told = task(a, b, **more)
    function("compare")(told, lambda *_: None)
    return Comparison.model_validate_json(Path(told["out"]).read_bytes())


def in_parts(a: Path, b: Path, *cells: int) -> Comparison:
    """Return the comparison of two tables of which so many cells are read at a time."""
    parts = [table.read_parts(path, most) for path, most in zip((a, b), cells, strict=True)]
    rows = [compare._Rows(each) for each in parts]
    with a.with_name("scratch").open("w+b") as scratch:
        told = ComparePoses.model_validate(task(a, b))
        comparer = compare.Comparer(rows[0].head, rows[1].head, told, table.lines(a), scratch)
        for found in compare.aligned(*rows):
            comparer.add(*found)
        frames = np.concatenate(rows[0].frames)
        return comparer.comparison((rows[0].read, rows[1].read), frames, frames / 25.0)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_was_planted_is_found_exactly(tmp_path: Path, data: st.DataObject) -> None:
    """Of each bodypart a tenth of the positions was moved: those frames, by so much, no other.

    Whatever the order of bodyparts, the stride, the animals' order in each frame, lost positions,
    and however few rows are in memory at a time.
    """
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = data.draw(st.integers(1, 30)) * 10
    animals = data.draw(st.sampled_from([(), ("m1",), ("m1", "m2"), ("m1", "m2", "m3")]))
    stride = data.draw(st.integers(1, 4))
    shift = data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 6.25, 40.0]))
    several = max(1, len(animals))
    a = rng.integers(0, SIDE, (rows, several, len(PARTS), 3)).astype(float)
    a[..., 2] = rng.integers(0, 2, a.shape[:-1])
    # Far enough from each other that no animal is taken for another one.
    a[..., 0] += np.arange(several)[None, :, None] * 100 * SIDE
    b = a.copy()
    moved = np.zeros(a.shape[:-1], bool)
    for place in np.ndindex(several, len(PARTS)):
        moved[(rng.permutation(rows)[: rows // 10], *place)] = True
    b[moved, 1] += shift
    lost = np.nonzero(rng.random(a.shape[:-1]) < 0.05)
    b[lost] = np.nan
    gone = np.zeros_like(moved)
    gone[lost] = True
    if len(animals) > 1:
        order = rng.permuted(np.tile(np.arange(several), (rows, 1)), axis=1)
        b = np.take_along_axis(b, order[:, :, None, None], axis=1)
    frames = np.arange(rows)
    shuffled = data.draw(st.permutations(range(len(PARTS))))
    first = write(tmp_path / "a.csv", a, animals=animals, frames=frames)
    second = write(
        tmp_path / "b.csv",
        b[::stride][:, :, shuffled],
        parts=[PARTS[place] for place in shuffled],
        animals=animals,
        frames=frames[::stride],
    )
    found = compared(first, second)
    assert found == in_parts(first, second, *data.draw(st.tuples(*[st.integers(1, 3000)] * 2)))
    assert found.matched == ("distance" if len(animals) > 1 else "one")
    assert (found.a.frames, found.b.frames, found.frames) == (rows, *[len(frames[::stride])] * 2)
    far = (moved & ~gone)[::stride]
    there = (~gone)[::stride]
    sure = there & (a[::stride, ..., 2] >= 0.5)
    for each, place in zip(found.keypoints, np.ndindex(several, len(PARTS)), strict=True):
        positions, of_far = int(there[:, *place].sum()), int(far[:, *place].sum())
        assert each.bodypart == PARTS[place[1]]
        assert (each.positions, each.only_a) == (positions, len(there) - positions)
        assert (each.only_b, each.both_sure) == (0, int(sure[:, *place].sum()))
        disagree = int((sure & far)[:, *place].sum()) if shift > 5 else 0
        assert each.disagree == disagree
        if not positions:
            assert each.median is each.within_1 is None
            continue
        exact = np.where(far[:, *place], shift, 0.0)[there[:, *place]]
        percentiles = np.percentile(exact, (50, 95, 99))
        assert np.allclose((each.median, each.p95, each.p99), percentiles, atol=1e-3)
        assert each.most == pytest.approx(shift if of_far else 0.0, abs=1e-3)
        for share, near in ((each.within_1, 1), (each.within_2, 2), (each.within_5, 5)):
            assert share == pytest.approx((exact <= near).mean(), abs=1e-6)
    assert found.total.positions == sum(each.positions for each in found.keypoints)
    in_frames = frames[::stride][far.any(axis=(1, 2))] if shift else frames[:0]
    assert {each.frame for each in found.worst} <= {*in_frames.tolist()}
    assert len(found.worst) == min(50, len(in_frames))
    assert all(each.distance == pytest.approx(shift, abs=1e-3) for each in found.worst)
    assert all(each.seconds == pytest.approx(each.frame / 25) for each in found.worst)


def test_a_run_is_as_far_from_itself_as_nothing(tmp_path: Path) -> None:
    """Each distance is 0, none disagrees, and no frame is a worst one."""
    values = np.random.default_rng(1).random((30, 2, len(PARTS), 3)) * 99
    path = write(tmp_path / "a.csv", values, animals=("m1", "m2"))
    found = compared(path, path)
    assert found.total.most == 0
    assert (found.total.within_1, found.total.disagree, found.total.only_b) == (1, 0, 0)
    assert found.worst == found.worst_sure == []


def test_what_only_one_run_has_is_listed(tmp_path: Path) -> None:
    """Bodyparts of one run alone, and animals that the other has not, count as its own."""
    values = np.random.default_rng(2).random((10, 3, 2, 3)) * 100
    a = write(tmp_path / "a.csv", values[:, :1], parts=["nose", "tail"])
    b = write(tmp_path / "b.csv", values, parts=["tail", "ear"], animals=("x", "y", "z"))
    found = compared(a, b)
    assert (found.a.only, found.b.only) == (["nose"], ["ear"])
    assert [each.bodypart for each in found.keypoints] == ["tail"]
    assert (found.total.positions, found.total.only_a, found.total.only_b) == (10, 0, 20)
    found = compared(b, a)
    assert (found.total.positions, found.total.only_a, found.total.only_b) == (10, 20, 0)


def test_animals_known_by_identity_are_matched_by_name(tmp_path: Path) -> None:
    """Two runs that took each animal for the other differ, though the animals stand the same."""
    values = np.zeros((10, 2, 1, 3))
    values[:, 1, :, 0] = 30
    values[..., 2] = 1
    a = write(tmp_path / "a.csv", values, parts=["nose"], animals=("m1", "m2"))
    b = write(tmp_path / "b.csv", values[:, ::-1], parts=["nose"], animals=("m1", "m2"))
    by_name, by_place = compared(a, b, by_name=True), compared(a, b)
    assert (by_name.matched, by_name.total.median, by_name.total.disagree) == ("names", 30, 20)
    assert (by_place.matched, by_place.total.median) == ("distance", 0)


def test_animals_are_matched_so_that_all_together_are_nearest() -> None:
    """For any number of animals on either side, and any that are not seen: as by trying all."""
    rng = np.random.default_rng(3)
    for animals in itertools.product(range(1, 5), range(1, 5)):
        a, b = (rng.random((40, count, 3, 2)) * 100 for count in animals)
        a[rng.random(a.shape[:2]) < 0.1] = np.nan
        b[rng.random(b.shape[:3]) < 0.2] = np.nan
        order = compare.nearest(a, b)
        for frame in range(len(a)):
            apart = np.linalg.norm(a[frame, :, None] - b[frame, None], axis=-1)
            seen = np.isfinite(apart).any(axis=-1)
            cost = np.full(animals, compare.FARTHEST)
            cost[seen] = np.nanmean(apart[seen], axis=-1)
            matched = [(i, j) for i, j in enumerate(order[frame]) if j >= 0]
            assert len({j for _, j in matched}) == len(matched) == min(animals)
            found = sum(cost[i, j] for i, j in matched)
            wide = cost if animals[0] <= animals[1] else cost.T
            ways = itertools.permutations(range(wide.shape[1]), wide.shape[0])
            least = min(sum(wide[i, j] for i, j in enumerate(way)) for way in ways)
            assert found == pytest.approx(least)


def test_names_of_any_kind_and_numbers_of_any_size_end_in_json(tmp_path: Path) -> None:
    """Bodyparts with control characters, positions beyond all bounds, no frame in common."""
    values = np.full((3, 1, 2, 3), 1e300)
    a = write(tmp_path / "a.csv", values, parts=["a\x1b[31m", "b" * 400])
    b = write(tmp_path / "b.csv", values * [-1, -1, 1], parts=["a\x1b[31m", "b" * 400])
    found = compared(a, b)
    assert found.total.most == compare.FARTHEST
    assert [each.bodypart for each in found.keypoints] == ["a?[31m", "b" * 300]
    json.loads(found.to_json())
    later = write(tmp_path / "b.csv", values, parts=["x", "b"], frames=[7, 8, 9])
    nothing = compared(a, later)
    assert (nothing.frames, nothing.total.positions, nothing.total.median) == (0, 0, None)
    empty = write(tmp_path / "b.csv", values[:0], parts=["x", "b"])
    assert compared(a, empty).b.frames == 0
    assert compared(empty, a).a.frames == 0


@pytest.mark.parametrize("frames", [[0, 2, 1], [0, 0, 1], [-1, 0, 1]])
def test_a_table_whose_frames_do_not_ascend_is_refused(tmp_path: Path, frames: list[int]) -> None:
    """No order of its rows is guessed: it is damaged."""
    values = np.zeros((3, 1, len(PARTS), 3))
    good = write(tmp_path / "a.csv", values)
    bad = write(tmp_path / "b.csv", values, frames=frames)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(AnalysisError, match="do not ascend") as refused:
            compared(*pair)
        assert refused.value.code == "damaged_poses"
