"""DeepLabCut in posedrop gives what DeepLabCut gives."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deeplabcut.utils.auxfun_videos import VideoReader
from hypothesis import given
from hypothesis import strategies as st

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import Crop, DeepLabCut2D, deeplabcut_2d
from posedrop.errors import AnalysisError
from tests.support.analysed import (
    BATCH,
    CROP,
    TOLERANCE,
    Ours,
    Stock,
    analysed,
    copied,
    edit,
    furthest,
    read,
)
from tests.support.samples import Sample
from worker.child.child import Child
from worker.engine import inference
from worker.poses import tables


@pytest.mark.timeout(900)
def test_poses_are_those_of_analyze_videos(stock: Stock, long: Sample, tmp_path: Path) -> None:
    """In the child as it is used: same scorer, columns, index, types, file format, and numbers."""
    job = tmp_path / "job"
    out = job / "out"
    out.mkdir(parents=True)
    shutil.copy(long.film, job / "video")
    shutil.copytree(long.model, job / "model")
    stages: list[str] = []
    payload = {
        "analysis": "deeplabcut_2d",
        "video": str(job / "video"),
        "out": str(out),
        "args": deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32"}),
        "model": str(job / "model"),
        "model_digest": "d" * 64,
        "device": "cpu",
    }
    child = Child("inference", tmp_path, warm=["worker.engine.inference"])

    def call(task: str, payload: dict[str, Any]) -> dict[str, Any]:
        return child.call(
            task,
            payload,
            on_progress=lambda progress: stages.append(progress.stage),
            should_stop=lambda: False,
            wall_seconds=600,
            folder=job,
            log=job / "run.log",
        )

    try:
        call("run_analysis", payload)
        answer = call("finish_analysis", payload)
    finally:
        child.close()
    ours = read(out, answer)
    deviation = furthest(ours.poses, stock.poses)
    print(f"largest difference to analyze_videos: {deviation} px in {len(ours.poses)} frames")
    assert ours.poses.columns.equals(stock.poses.columns)
    assert ours.poses.index.equals(stock.poses.index)
    assert ours.poses.dtypes.equals(stock.poses.dtypes)
    assert deviation <= TOLERANCE
    assert (answer["frames_expected"], answer["frames_decoded"], answer["rows"]) == (60, 60, 60)
    assert answer["missing"] == []
    assert answer["details"]["scorer"] == stock.scorer
    assert answer["details"]["bodyparts"] == long.bodyparts
    assert list(dict.fromkeys(stages)) == ["load", "infer", "write", "filter"]


def test_csv_is_that_of_analyze_videos(
    stock: Stock, long: Sample, run: Callable[..., Ours]
) -> None:
    """poses.csv reads as DeepLabCut's own csv does."""
    ours = run(long.film, long.model, stop=BATCH)
    shape: dict[str, Any] = {"header": [0, 1, 2], "index_col": 0}
    expected = pd.read_csv(stock.out / f"{long.film.stem}{stock.scorer}.csv", **shape)[:BATCH]
    actual = pd.read_csv(ours.out / "poses.csv", **shape)
    assert actual.columns.equals(expected.columns)
    assert furthest(actual, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({"filter": "median"}, {"filtertype": "median"}),
        ({"filter": "median", "filter_window": 9}, {"filtertype": "median", "windowlength": 9}),
        (
            {"filter": "arima", "arima_ar_degree": 1, "arima_p_bound": 0.2},
            {"filtertype": "arima", "ARdegree": 1, "p_bound": 0.2},
        ),
    ],
)
def test_filter_is_that_of_filterpredictions(
    stock: Stock, tmp_path: Path, args: dict[str, Any], options: dict[str, Any]
) -> None:
    """On the same poses both give the same numbers, bit by bit."""
    import deeplabcut

    name = f"{stock.film.stem}{stock.scorer}"
    for suffix in (".h5", "_meta.pickle"):
        shutil.copy(stock.out / f"{name}{suffix}", tmp_path)
    deeplabcut.filterpredictions(
        str(stock.config), [str(stock.film)], destfolder=str(tmp_path), **options
    )
    expected = pd.read_hdf(tmp_path / f"{name}_filtered.h5")
    assert isinstance(expected, pd.DataFrame)
    whole = DeepLabCut2D.model_validate({"model": "mouse", **args})
    pd.testing.assert_frame_equal(tables.filtered(stock.poses, whole), expected, rtol=0, atol=0)


def test_crop_gives_coordinates_of_the_whole_frame(
    short: Sample, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """The network sees the crop alone, as with DeepLabCut, whose coordinates are relative to it."""
    sides = [CROP["x1"], CROP["x2"], CROP["y1"], CROP["y2"]]
    expected = analysed(short.film, project / "config.yaml", tmp_path / "stock", cropping=sides)
    shifted = expected.poses.copy()
    for name, offset in (("x", CROP["x1"]), ("y", CROP["y1"])):
        shifted.loc[:, shifted.columns.get_level_values("coords") == name] += offset
    ours = run(short.film, short.model, crop=CROP)
    assert furthest(ours.poses, shifted) <= TOLERANCE
    assert ours.answer["details"]["crop"] == CROP


def test_crop_of_the_project(short: Sample, run: Callable[..., Ours], tmp_path: Path) -> None:
    """A project that says ``cropping: true`` is cropped so, as with analyze_videos."""
    model = copied(short.model, tmp_path / "model")
    edit(model / "config.yaml", cropping=True, **CROP)
    ours = run(short.film, model, stop=2)
    assert ours.answer["details"]["crop"] == CROP


def test_selection_of_frames(short: Sample, run: Callable[..., Ours]) -> None:
    """start, stop and stride select; the index is the frame's number in the video."""
    whole = run(short.film, short.model)
    part = run(short.film, short.model, start=2, stop=11, stride=3)
    assert list(part.poses.index) == [2, 5, 8]
    # Another composition of batches: equal up to the arithmetic of a convolution.
    assert furthest(part.poses, whole.poses.loc[[2, 5, 8]]) <= TOLERANCE
    assert (part.answer["frames_expected"], part.answer["rows"]) == (3, 3)


def test_filter_none_writes_no_filtered_tables(short: Sample, run: Callable[..., Ours]) -> None:
    """``filter: none`` leaves the plain tables alone in the folder."""
    ours = run(short.film, short.model, stop=2, filter="none")
    names = {path.name for path in ours.out.iterdir()}
    assert names == {
        "poses.csv",
        "poses.h5",
        "meta.pickle",
        "predictions.npz",
        "timestamps.csv",
    }


def test_nothing_selected(short: Sample, run: Callable[..., Ours]) -> None:
    """A start beyond the end is an error of its own, not an empty table."""
    with pytest.raises(AnalysisError) as caught:
        run(short.film, short.model, start=1000)
    assert (caught.value.code, caught.value.field) == ("no_frames", "args.start")


def test_crop_beyond_the_frame(short: Sample, run: Callable[..., Ours]) -> None:
    """A crop that is larger than the frame is refused, where DeepLabCut would clip it silently."""
    with pytest.raises(AnalysisError) as caught:
        run(short.film, short.model, crop={"x1": 0, "x2": 5000, "y1": 0, "y2": 100})
    assert (caught.value.code, caught.value.field) == ("bad_crop", "args.crop")


def test_crop_of_the_project_beyond_the_frame(
    short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """It is for all of a project's films: of a smaller one it is cut down, as with DeepLabCut."""
    model = copied(short.model, tmp_path / "model")
    edit(model / "config.yaml", cropping=True, **{**CROP, "x2": 5000})
    ours = run(short.film, model, stop=1)
    width = VideoReader(str(short.film)).width
    assert ours.answer["details"]["crop"] == {**CROP, "x2": width}


@given(st.data())
def test_crop_is_cut_as_deeplabcut_cuts_it(data: st.DataObject) -> None:
    """Of 1080 rows, one that begins at row 39 begins at row 38 there."""
    sides = [data.draw(st.one_of(st.just(1080), st.integers(2, 4000))) for _ in range(2)]
    ends = []
    for side in sides:
        first = data.draw(st.integers(0, side - 2))
        ends.append((first, data.draw(st.integers(first + 2, side + 99))))
    (x1, x2), (y1, y2) = ends
    stock = object.__new__(VideoReader)
    stock._width, stock._height = sides
    with warnings.catch_warnings(action="ignore"):
        stock.set_bbox(x1, x2, y1, y2)
    ours = inference.fitted(Crop(x1=x1, x2=x2, y1=y1, y2=y2), *sides, clips=True)
    assert (ours.x1, ours.x2, ours.y1, ours.y2) == stock.get_bbox()
    assert inference.fitted(Crop(x1=0, x2=9, y1=39, y2=99), 1920, 1080, clips=False).y1 == 38


def test_crop_is_known_when_no_frame_is_left(
    short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that goes on behind the last frame counts from where the first one cut."""
    (parts := tmp_path / "parts").mkdir()
    small = {"x1": 120, "x2": 184, "y1": 80, "y2": 144}
    args = deeplabcut_2d.normalise({"model": "m", "precision": "fp32", "crop": small, "stop": 2})
    cut = Crop(x1=119, x2=184, y1=80, y2=144)
    monkeypatch.setattr(inference, "fitted", lambda *_, **__: cut)
    for _ in range(2):
        job = Job(
            short.film, tmp_path, args, short.model, "d" * 64, lambda *_: None, "cpu",
            parts=parts, part_seconds=0.0,
        )  # fmt: skip
        assert inference.run(job)["details"]["crop"] == cut.model_dump()
    assert list(parts.iterdir())
