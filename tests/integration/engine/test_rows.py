"""One row for each frame that was asked for, and all of it made of predictions.npz."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from posedrop.buckets.layout import PREDICTIONS
from posedrop.errors import AnalysisError
from tests.support.analysed import Ours, read
from tests.support.samples import Sample
from worker.engine import inference
from worker.poses import checkpoint, predictions, tables
from worker.poses.predictions import Predictions
from worker.video import containers
from worker.video.draw import render

#: Of twelve; each is a packet of garbage in the film below.
LOST = [3, 4, 7]
KEPT = [0, 1, 2, 5, 6, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def holed(short: Sample, folder: Path) -> Path:
    """A film of twelve pictures, each by itself, of which three are no pictures."""
    path = folder / "holed.mkv"
    with av.open(str(short.film)) as film, av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=30, options={"q": "2"})
        source = film.streams.video[0]
        stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuvj420p"
        for number, frame in enumerate(film.decode(source)):
            plain = frame.reformat(format="yuvj420p")
            plain.pts, plain.time_base = number, Fraction(1, 30)
            for packet in stream.encode(plain):
                if number in LOST:
                    broken = av.Packet(bytes(400))
                    broken.stream, broken.time_base = packet.stream, packet.time_base
                    broken.pts, broken.dts = packet.pts, packet.dts
                    broken.is_keyframe = True
                    packet = broken
                out.mux(packet)
    return path


def times(ours: Ours) -> pd.DataFrame:
    return pd.read_csv(ours.out / "timestamps.csv")


def test_a_lost_frame_has_a_row_of_nan(
    holed: Path, short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """Readers count rows: each frame has one, and its time; filters see the others alone."""
    ours = run(holed, short.model)
    answer = ours.answer
    assert answer["missing"] == [{"first": 3, "last": 4}, {"first": 7, "last": 7}]
    assert (answer["frames_expected"], answer["frames_decoded"], answer["rows"]) == (12, 9, 12)
    assert not answer["cut"]
    smooth = pd.read_hdf(ours.out / "poses_filtered.h5")
    assert isinstance(smooth, pd.DataFrame)
    for table in (ours.poses, smooth):
        assert list(table.index) == list(range(12))
        assert table.loc[LOST].isna().all(axis=None)
        assert table.loc[KEPT].notna().all(axis=None)
    args = tables.DeepLabCut2D.model_validate({"model": "mouse"})
    pd.testing.assert_frame_equal(smooth.loc[KEPT], tables.filtered(ours.poses.loc[KEPT], args))
    assert (ours.out / "timestamps.csv").read_text().splitlines()[:2] == [
        "frame,seconds",
        "0,0.000000000",
    ]
    assert list(times(ours).frame) == list(range(12))
    np.testing.assert_allclose(times(ours).seconds, np.arange(12) / 30, atol=1e-3)
    # What is drawn has gaps where there is nothing.
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    payload = {
        "video": str(holed),
        "poses": str(ours.out / "poses.h5"),
        "out": str(drawn),
        "pcutoff": 0.0,
        "style": {"trail": 5},
        "skeleton": [],
        **{"start": 0, "stop": None, "stride": 1},
    }
    assert render(payload, lambda *_: None)["frames"] == len(KEPT)


def test_rows_of_a_selection(holed: Path, short: Sample, run: Callable[..., Ours]) -> None:
    """start, stop and stride count lost frames; the times are those of the rows."""
    ours = run(holed, short.model, start=1, stop=11, stride=3)
    assert list(ours.poses.index) == [1, 4, 7, 10]
    assert ours.poses.isna().all(axis=1).tolist() == [False, True, True, False]
    assert ours.answer["missing"] == [{"first": 4, "last": 7}]
    np.testing.assert_allclose(times(ours).seconds, np.array([1, 4, 7, 10]) / 30, atol=1e-3)
    with pytest.raises(AnalysisError) as caught:
        run(holed, short.model, start=3, stop=5)
    assert caught.value.code == "no_frames"


def test_other_software_reads_rows_of_nan(
    holed: Path, short: Sample, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """DeepLabCut's own filter and plots, and ``movement``, take a table with lost frames."""
    import deeplabcut
    from movement.io import load_poses

    ours = run(holed, short.model)
    for name in ("poses.h5", "poses.csv"):
        position = load_poses.from_dlc_file(ours.out / name, fps=30).position
        assert position.sizes["time"] == 12
        assert position.isel(time=LOST).isnull().all()
    scorer = ours.answer["details"]["scorer"]
    named = tmp_path / "named"
    named.mkdir()
    shutil.copy(ours.out / "poses.h5", named / f"{holed.stem}{scorer}.h5")
    config, film = str(project / "config.yaml"), [str(holed)]
    deeplabcut.filterpredictions(config, film, destfolder=str(named))
    deeplabcut.plot_trajectories(config, film, destfolder=str(named), filtered=True)
    assert len(list(named.rglob("*.png"))) >= 3


def test_tables_are_made_of_predictions_alone(
    holed: Path, short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """Made again elsewhere they are the same bytes; of another film they are refused."""
    ours = run(holed, short.model, crop={"x1": 8, "x2": 200, "y1": 4, "y2": 150})
    out = tmp_path / "again"
    out.mkdir()
    shutil.copy(ours.out / PREDICTIONS, out)
    args = deeplabcut_2d.normalise({"model": "mouse"})
    job = Job(tmp_path / "none", out, args, None, "d" * 64, lambda *_: None)
    tables.finish(job)
    for path in ours.out.glob("*.csv"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    pd.testing.assert_frame_equal(read(out, {}).poses, ours.poses, rtol=0, atol=0)
    with np.load(out / PREDICTIONS, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        assert file["format"] == about["format"] == 1
        assert file["bodyparts"].shape == (12, 1, len(short.bodyparts), 3)
        assert file["bodyparts"].dtype == np.float32
        assert np.flatnonzero(~file["decoded"]).tolist() == LOST
        assert np.isnan(file["bodyparts"][LOST]).all()
        assert file["seconds"][6] == pytest.approx(0.2, abs=1e-3)
        assert np.isnan(file["brightness_mean"][LOST]).all()
        lit = np.stack([file["brightness_mean"], file["brightness_std"]], axis=1)
    np.testing.assert_array_equal(lit[KEPT], seen(holed))  # of the whole frame, whatever the crop
    assert about["crop"]["x1"] == 8
    assert about["setup"]["precision"]["used"] == "fp32"
    for damaged in (replace(job, model_digest="e" * 64), job):
        with pytest.raises(AnalysisError) as caught:
            tables.finish(damaged)
        assert caught.value.code == "damaged_predictions"
        (out / PREDICTIONS).write_bytes((out / PREDICTIONS).read_bytes()[:-300])


def seen(film: Path) -> Any:
    """Each frame's mean and deviation of the luma of some rows, without stretching it."""
    with av.open(str(film)) as container:
        rows = [
            frame.to_ndarray()[: frame.height : frame.height // 32]
            for frame in containers.decoded(container, container.streams.video[0])
        ]
    return np.array([(luma.mean(), luma.std()) for luma in rows], np.float32)


def test_parts_of_another_version_are_not_mixed(short: Sample, tmp_path: Path) -> None:
    """A newer engine begins anew beside the older one's parts, and goes on from its own."""
    args = deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32", "batch_size": 1})
    folder = tmp_path / "parts"
    folder.mkdir()

    def run(name: str, version: str, ends: int) -> list[int]:
        out = tmp_path / name
        out.mkdir()
        seen: list[int] = []

        def report(stage: str, done: int, _: int | None) -> None:
            if stage == "infer":
                seen.append(done)
                if done > ends:  # the part was kept before that was told
                    raise KeyboardInterrupt

        job = Job(
            short.film, out, args, short.model, "d" * 64, report, "cpu", parts=folder,
            part_seconds=0.0, version=version,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            inference.run(job)
        return seen

    assert run("old", "2", 5)[0] == 0
    older = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run("new", "3", 4)[0] == 0
    assert run("newer", "3", 99)[0] == 4
    assert {name: (folder / name).read_bytes() for name in older} == older
    lit = predictions.read(tmp_path / "newer" / PREDICTIONS).brightness
    assert lit is not None
    stretched = np.array([[16, 0]]) + lit * 219 / 255
    np.testing.assert_allclose(stretched, seen(short.film), atol=1e-3)
    setup = {**json.loads(json.dumps(_setup(folder / "000001.npz"))), "analysis_version": "2"}
    found, _ = checkpoint.Checkpoint(folder, 0).load(setup)
    assert list(found.indexes) == list(range(5))


def _setup(path: Path) -> Any:
    with np.load(path) as file:
        return json.loads(str(file["meta"]))["setup"]


@pytest.mark.parametrize(("animals", "bodyparts"), [(50, 20), (3, 334)])
def test_a_wide_table_is_read_as_any_other(tmp_path: Path, animals: int, bodyparts: int) -> None:
    """More columns than PyTables' table format has room for, with a lost frame in it."""
    from movement.io import load_poses

    generator = np.random.default_rng(1)
    values = generator.uniform(1, 99, (8, animals, bodyparts, 3)).astype(np.float32)
    decoded = np.arange(9) != 2
    names = [f"a bodypart of number {number}" for number in range(bodyparts)]
    individuals = [f"animal{number}" for number in range(animals)]
    about = {
        "video_sha256": "",
        "model_digest": None,
        "scorer": "DLC_Resnet50_a_projectAug30shuffle1_snapshot_best-200",
        "bodyparts": names,
        "individuals": individuals,
        "crop": None,
        "herd": None,
        "answer": {"timings": {}, "details": {}},
    }
    found = predictions.with_missing_rows({"bodyparts": values}, decoded)
    frames = np.arange(9)
    whole = Predictions(frames, frames / 30, decoded, found, about)
    predictions.write(tmp_path / PREDICTIONS, whole)
    args = {"model": "superanimal_bird", "max_individuals": 50}
    job = Job(tmp_path / "none", tmp_path, args, None, None, lambda *_: None)
    assert tables.finish_superanimal(job)["rows"] == 9
    for options in ({}, {"key": "df_with_missing"}):
        table = pd.read_hdf(tmp_path / "poses.h5", **options)
        assert isinstance(table, pd.DataFrame)
        assert table.shape == (9, 3 * animals * bodyparts)
        assert table.columns.names == ["scorer", "individuals", "bodyparts", "coords"]
        assert table.isna().all(axis=1).tolist() == (~decoded).tolist()
        there = table.to_numpy().reshape((9, animals, bodyparts, 3))[decoded]
        np.testing.assert_array_equal(there, values)
    dataset = load_poses.from_dlc_file(tmp_path / "poses.h5", fps=30)
    assert list(dataset.individuals.values) == individuals
