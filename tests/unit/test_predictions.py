"""predictions.npz, and the tables that are made of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from posedrop.analyses.superanimal import superanimal
from posedrop.buckets.layout import PREDICTIONS
from posedrop.buckets.records.quality import Quality
from posedrop.errors import AnalysisError
from worker.poses import predictions, tables
from worker.poses.predictions import Predictions

ABOUT: dict[str, Any] = {
    "video_sha256": "a" * 64,
    "model_digest": "d" * 64,
    "scorer": "DLC_Netz_Mäuse",
    "bodyparts": ["Nase", "尾"],
    "individuals": [],
    "crop": None,
    "herd": None,
    "answer": {"timings": {}, "details": {}, "rows": 4},
}


def made(values: np.ndarray, decoded: np.ndarray) -> Predictions:
    frames = np.arange(len(decoded))
    found = predictions.with_missing_rows({"bodyparts": values}, decoded)
    return Predictions(frames, frames / 30, decoded, found, ABOUT)


def finish(folder: Path, **args: Any) -> dict[str, Any]:
    whole = deeplabcut_2d.normalise({"model": "mouse", **args})
    job = Job(folder / "none", folder, whole, None, "d" * 64, lambda *_: None, sha256="a" * 64)
    return tables.finish(job)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
    st.sampled_from(["none", "median", "arima"]),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_frames_may_be_lost(
    tmp_path_factory: pytest.TempPathFactory, shown: list[bool], how: str, dtype: type
) -> None:
    """The first, the last, all but one: a row for each, NaN for these alone, by any filter."""
    folder = tmp_path_factory.mktemp("any")
    decoded = np.array(shown)
    if how == "arima" and decoded.sum() < 12:
        how = "median"  # it is fitted to what there is
    values = np.random.default_rng(len(shown)).uniform(1, 99, (decoded.sum(), 1, 2, 3))
    predictions.write(folder / PREDICTIONS, made(values.astype(dtype), decoded))
    assert finish(folder, filter=how)["rows"] == len(shown)
    names = ["poses", "poses_filtered"][: 1 if how == "none" else 2]
    for name in names:
        table = pd.read_hdf(folder / f"{name}.h5")
        assert isinstance(table, pd.DataFrame)
        assert table.isna().all(axis=1).tolist() == (~decoded).tolist()
        assert table.notna().all(axis=1).tolist() == shown
        assert set(table.dtypes) == {np.dtype(dtype if how != "arima" else table.dtypes.iloc[0])}
    plain = pd.read_hdf(folder / "poses.h5").to_numpy()  # type: ignore[union-attr]
    assert plain[decoded].tobytes() == values.astype(dtype).tobytes()
    assert len((folder / "timestamps.csv").read_text().splitlines()) == len(shown) + 1


def test_doubles_that_are_floats_take_the_room_of_floats(tmp_path: Path) -> None:
    """No bit is lost, nor the type: an hour of 20 bodyparts is 28 MB."""
    path = tmp_path / PREDICTIONS
    generator = np.random.default_rng(1)
    for values in (
        generator.random((50, 1, 2, 3)).astype(np.float32),
        generator.random((50, 1, 2, 3)),
    ):
        for dtype in (values.dtype, np.float64):
            predictions.write(path, made(values.astype(dtype), np.ones(50, bool)))
            found = predictions.read(path).values["bodyparts"]
            assert found.dtype == dtype
            assert found.tobytes() == values.astype(dtype).tobytes()
            with np.load(path) as file:
                assert file["bodyparts"].dtype == values.dtype


def _changed(path: Path, **changes: Any) -> bytes:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files} | changes
    out = io.BytesIO()
    np.savez(out, **{name: value for name, value in arrays.items() if value is not None})
    return out.getvalue()


DAMAGED: list[Callable[[Path], bytes]] = [
    lambda _: b"",
    lambda _: b"PK\x03\x04 and no more",
    lambda path: path.read_bytes()[:-40],
    lambda path: path.read_bytes().replace(b"NUMPY", b"NUMPI"),
    lambda path: _changed(path, format=np.array(2)),
    lambda path: _changed(path, format=np.array("one")),
    lambda path: _changed(path, frames=None),
    lambda path: _changed(path, bodyparts=None),
    lambda path: _changed(path, seconds=np.zeros(3)),
    lambda path: _changed(path, bodyparts=np.array([print, None], dtype=object)),
    lambda path: _changed(path, about=np.array("[]")),
    lambda path: _changed(path, about=np.array("{")),
    lambda path: _changed(path, about=np.array(json.dumps({**ABOUT, "dtypes": []}))),
    lambda path: _changed(path, about=np.array(json.dumps({"dtypes": {}}))),
    lambda path: _changed(
        path,
        about=np.array(
            json.dumps({**ABOUT, "video_sha256": "b" * 64, "dtypes": {"bodyparts": "f4"}})
        ),
    ),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_can_not_be_read_is_told_as_that(
    tmp_path: Path, damage: Callable[[Path], bytes]
) -> None:
    """Whatever stands there: an error by which the network is asked once more."""
    path = tmp_path / PREDICTIONS
    predictions.write(path, made(np.ones((4, 1, 2, 3), np.float32), np.ones(4, bool)))
    path.write_bytes(damage(path))
    with pytest.raises(AnalysisError) as caught:
        finish(tmp_path)
    assert caught.value.code == "damaged_predictions"


def test_an_array_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    """A later posedrop may add some under the same number."""
    path = tmp_path / PREDICTIONS
    predictions.write(path, made(np.ones((4, 1, 2, 3), np.float32), np.ones(4, bool)))
    path.write_bytes(_changed(path, brightness=np.arange(4)))
    assert finish(tmp_path)["rows"] == 4


@pytest.mark.parametrize("animals", [1, 2])
def test_of_a_superanimal_only_a_single_animal_is_smoothed(tmp_path: Path, animals: int) -> None:
    """Several are not followed; -1, where none was found, is no place and moves no other."""
    values = np.full((24, animals, 2, 3), 50.0)
    values[..., 0] += np.random.default_rng(0).uniform(-1, 1, values.shape[:-1])
    values[..., 2] = 0.9
    none = [9, 10, 11, 13]
    values[none, -1] = -1
    names = [f"animal{number}" for number in range(animals)]
    found = made(values, np.ones(24, np.bool_))
    found = replace(found, about={**ABOUT, "individuals": names})
    predictions.write(tmp_path / PREDICTIONS, found)
    asked = superanimal.normalise({"model": "superanimal_bird", "max_individuals": animals})
    # As an older posedrop has written it down, too.
    for args in (asked, asked | {"filter": "median"}):
        job = Job(tmp_path / "none", tmp_path, args, None, None, lambda *_: None)
        details = tables.finish_superanimal(job)["details"]
        assert details["filter"] == ("none" if animals > 1 else "median")
        assert (tmp_path / "poses_filtered.h5").is_file() == (animals == 1)
    if animals == 1:
        smooth = pd.read_hdf(tmp_path / "poses_filtered.h5")
        assert isinstance(smooth, pd.DataFrame)
        assert smooth.index.tolist() == list(range(24))
        x = smooth.to_numpy().reshape((24, 2, 3))[..., 0]
        assert (x[none] == -1).all()
        # Its ends apart, beyond which DeepLabCut's median takes zeros.
        assert (np.delete(x, [0, 1, *none, 22, 23], axis=0) > 48).all()


def test_the_tables_come_with_their_quality(tmp_path: Path) -> None:
    """By the cutoff of the run, else the model's; bones by its skeleton; the film's size."""
    values = np.full((60, 1, 2, 3), 50.0, np.float32)
    values[..., 2] = 0.7
    values[10, 0, 1, 0] = 90  # one bone of 40 pixels
    decoded = np.ones(60, np.bool_)
    details = {"pcutoff": 0.65, "skeleton": [["Nase", "尾"], ["Nase"], 7]}
    answer = {"timings": {}, "details": details, "rows": 60}
    found = replace(made(values, decoded), about={**ABOUT, "answer": answer})
    predictions.write(tmp_path / PREDICTIONS, found)
    whole = deeplabcut_2d.normalise({"model": "mouse", "filter": "none"})
    job = Job(tmp_path / "none", tmp_path, whole, None, None, lambda *_: None, frame_size=(90, 60))
    quality = Quality.model_validate(tables.finish(job)["quality"])
    assert quality.pcutoff == 0.65
    assert [bone.outliers for bone in quality.bones] == [1]
    assert [(part.name, part.jumps, part.outside) for part in quality.bodyparts] == [
        ("Nase", 0, 0),
        ("尾", 2, 1),
    ]
    assert quality.black is None, "an older posedrop has kept no brightness"
    whole["pcutoff"] = 0.8
    assert Quality.model_validate(tables.finish(job)["quality"]).score == 0
