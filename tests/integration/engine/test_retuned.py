"""Made of another run's predictions, tables are those of a run of their own, to the byte."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from posedrop.buckets.layout import PREDICTIONS
from posedrop.errors import AnalysisError
from tests.support.animals import BATCH, make_project, two_animal_film
from tests.support.samples import Sample
from worker.engine import inference
from worker.poses import predictions, tables

FULL: dict[str, Any] = {"precision": "fp32", "batch_size": BATCH, "stop": 8}


def job(film: Path, out: Path, model: Path, **args: Any) -> Job:
    out.mkdir()
    whole = deeplabcut_2d.normalise({"model": "mouse", **FULL, **args})
    return Job(film, out, whole, model, "d" * 64, lambda *_: None, "cpu", sha256="f" * 64)


def tuned(first: Path, fresh: Job, out: Path) -> dict[str, Any]:
    """Make tables of the predictions in ``first``, as another run with the arguments of a job."""
    out.mkdir()
    shutil.copy(first / PREDICTIONS, out)
    return tables.finish(replace(fresh, video=Path(), out=out, model=None, is_own=False))


def assert_same(out: Path, fresh: Path) -> None:
    """Compare all files; in HDF5 there is the time when a table was made, so those by content."""
    names = {path.name for path in fresh.iterdir()} - {"meta.pickle", PREDICTIONS}
    assert names <= {path.name for path in out.iterdir()}
    for name in names:
        if name.endswith(".h5"):
            pd.testing.assert_frame_equal(
                pd.DataFrame(pd.read_hdf(out / name)), pd.DataFrame(pd.read_hdf(fresh / name)),
                check_exact=True,
            )  # fmt: skip
        else:
            assert (out / name).read_bytes() == (fresh / name).read_bytes()
    ours, theirs = predictions.read(out / PREDICTIONS), predictions.read(fresh / PREDICTIONS)
    for array, other in zip(ours.values.values(), theirs.values.values(), strict=True):
        assert array.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def first(short: Sample, folder: Path) -> Job:
    """A run that is over."""
    first = job(short.film, folder / "first", short.model, pcutoff=0.5)
    inference.run(first)
    return first


def test_one_animal(
    first: Job, short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other filters and cutoffs, each beside a run of its own with the network; and the numbers
    that result.json has of them."""
    for number, args in enumerate(
        ({"filter": "none", "pcutoff": 0.9}, {"filter_window": 3, "pcutoff": None}),
    ):
        fresh = job(short.film, tmp_path / f"fresh{number}", short.model, **args)
        inference.run(fresh)
        expected = tables.finish(fresh)
        with monkeypatch.context() as patched:
            patched.setattr(inference, "run", None)
            answer = tuned(first.out, fresh, tmp_path / f"tuned{number}")
        assert_same(tmp_path / f"tuned{number}", fresh.out)
        assert set(answer["timings"]) == {"track", "write", "filter"}
        for name in ("quality", "rows", "missing", "frames_decoded"):
            assert answer[name] == expected[name]
        for name in ("filter", "pcutoff", "scorer", "model", "crop"):
            assert answer["details"][name] == expected["details"][name]


def test_several_animals(tmp_path: Path) -> None:
    """Another tracker, fewer animals, shorter tracklets."""
    film = two_animal_film(tmp_path / "two.mp4", range(12))
    model = make_project(tmp_path / "model")
    first = job(film, tmp_path / "first", model, stop=12)
    inference.run(first)
    for number, args in enumerate(
        ({"track_method": "box"}, {"animals": 1, "filter": "none", "min_tracklet": 4})
    ):
        fresh = job(film, tmp_path / f"fresh{number}", model, stop=12, **args)
        inference.run(fresh)
        expected = tables.finish(fresh)
        answer = tuned(first.out, fresh, tmp_path / f"tuned{number}")
        assert_same(tmp_path / f"tuned{number}", fresh.out)
        for name in ("individuals", "track_method", "tracks", "pcutoff"):
            assert answer["details"][name] == expected["details"][name]


def test_fewer_bits_are_refused_below_their_cutoff(
    first: Job, short: Sample, tmp_path: Path
) -> None:
    """What the network said of its arithmetic counts; of a run's own predictions nothing does."""
    whole = predictions.read(first.out / PREDICTIONS)
    details = whole.about["answer"]["details"]
    assert details["precision"]["pcutoff"] == min(details["pcutoff"], whole.about["pcutoff"])
    details["precision"] = {"used": "bf16", "pcutoff": 0.4}
    before = tmp_path / "before"
    before.mkdir()
    predictions.write(before / PREDICTIONS, replace(whole, about={**whole.about, "pcutoff": 0.5}))
    for pcutoff, is_good in ((0.3, False), (0.4, True), (0.9, True), (None, True)):
        wanted = job(short.film, tmp_path / f"job{pcutoff}", short.model, pcutoff=pcutoff)
        own = replace(wanted, out=before, sha256="")
        tables.finish(own)
        if is_good:
            tuned(before, replace(wanted, sha256=""), tmp_path / f"out{pcutoff}")
            continue
        with pytest.raises(AnalysisError) as caught:
            tuned(before, replace(wanted, sha256=""), tmp_path / f"out{pcutoff}")
        assert caught.value.code == "not_covered"
