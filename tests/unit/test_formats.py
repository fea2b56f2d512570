"""Poses in other tools' formats, read back by these tools' own libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from posedrop.buckets.records.derived import EXPORTS
from posedrop.errors import AnalysisError
from worker.child.tasks import function

ROWS, LOST, STRIDE, FPS = 60, 20, 3, 25.0
PARTS = ["snout", "left/ear", "left:ear", "scorer", "Körper"]
SKELETON = [["snout", "left/ear"], ["left:ear", "Körper"]]
ANIMALS = [[], ["m1", "m2"], ["m/1", "m:1", "single"]]


class Made:
    """A table with a lost frame and a variable rate, and its exports."""

    def __init__(self, folder: Path, animals: list[str]) -> None:
        self.folder, self.animals = folder, animals or ["id_0"]
        rng = np.random.default_rng(len(animals))
        columns = [
            ("DLC_resnet50", *([animal] if animals else []), part, coord)
            for animal in self.animals
            for part in (["Körper"] if animal == "single" else PARTS)
            for coord in ("x", "y", "likelihood")
        ]
        names = ["scorer", *(["individuals"] if animals else []), "bodyparts", "coords"]
        values = rng.random((ROWS, len(columns))) * np.tile([1280, 960, 1], len(columns) // 3)
        values[LOST] = np.nan
        if len(animals) == 2:  # a frame with one animal, as DeepLabCut marks it
            values[5, len(columns) // 2 :] = -1
        self.frames = np.arange(ROWS) * STRIDE
        index = pd.MultiIndex.from_tuples(columns, names=names)
        pd.DataFrame(values, columns=index, index=self.frames).to_csv(folder / "poses.csv")
        values[:, 2::3][values[:, 2::3] < 0] = np.nan
        self.poses = {}
        for place in range(0, len(columns), 3):
            found = values[:, place : place + 3].copy()
            found[np.isnan(found[:, 2])] = np.nan
            animal = columns[place][1] if animals else "id_0"
            self.poses[animal, columns[place][-2]] = found
        self.seconds = np.round(np.cumsum(rng.random(ROWS) / FPS), 9)
        lines = (f"{f},{s:.9f}\n" for f, s in zip(self.frames, self.seconds, strict=True))
        (folder / "timestamps.csv").write_text("frame,seconds\n" + "".join(lines))

    def export(self, what: str, **changes: Any) -> Path:
        """Write a format; return its file."""
        function("export")(self.task(what, **changes), lambda *_: None)
        return self.folder / EXPORTS[what]

    def task(self, what: str, **changes: Any) -> dict[str, Any]:
        """Return what a child is told."""
        return {
            "format": what,
            "poses": str(self.folder / "poses.csv"),
            "timestamps": str(self.folder / "timestamps.csv"),
            "out": str(self.folder / EXPORTS[what]),
            "analysis_id": "k5x2wq7mfzgs3tfe",
            "created_at": "2026-01-02T03:04:05+00:00",
            "video": "tag 1/mäuse.mp4",
            "description": "Poses of a test",
            "software": "deeplabcut 3.0.2",
            "software_version": "3.0.2",
            "fps": FPS,
            "frames": ROWS * STRIDE,
            "width": 1280,
            "height": 960,
            "skeleton": SKELETON,
            **changes,
        }

    def check(self, animal: str, part: str, xy: Any, likelihood: Any) -> None:
        """Hold what a library read to the table."""
        wanted = self.poses[animal, part]
        np.testing.assert_allclose(xy, wanted[:, :2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(likelihood, wanted[:, 2], rtol=0, atol=1e-6)
        assert np.isnan(np.asarray(xy)[LOST]).all()


@pytest.fixture(params=ANIMALS, ids=["alone", "two", "odd"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A table of one animal, of two, and of some with odd names and other bodyparts."""
    return Made(tmp_path, request.param)


def test_nwb_is_read_by_pynwb_and_movement_and_nothing_in_it_is_critical(made: Made) -> None:
    """Poses, likelihoods, times, skeleton and animals come back; nwbinspector finds no fault."""
    import nwbinspector
    import pynwb
    from movement.io import load_poses

    path = made.export("nwb")
    with pynwb.NWBHDF5IO(path, mode="r") as io:
        behavior = io.read().processing["behavior"]
        found = {}
        for name, estimation in behavior.data_interfaces.items():
            if name == "Skeletons":
                continue
            nodes = list(estimation.skeleton.nodes[:])
            assert nodes == PARTS
            edges = [[nodes[a], nodes[b]] for a, b in estimation.skeleton.edges[:]]
            assert edges == SKELETON
            for series in estimation.pose_estimation_series.values():
                part, _, animal = series.description.partition(" of ")
                made.check(animal, part, series.data[:], series.confidence[:])
                np.testing.assert_allclose(series.timestamps[:], made.seconds, rtol=0, atol=1e-6)
                found[animal, part] = name
        assert found.keys() == made.poses.keys()
    for animal in made.animals:
        if animal == "single":
            continue
        name = found[animal, "snout"]
        ds = load_poses.from_nwb_file(path, pose_estimation_key=name)
        snout = ds.sel(keypoints="snout").squeeze()
        made.check(animal, "snout", snout.position.values, snout.confidence.values)
    critical = nwbinspector.Importance.CRITICAL
    assert not list(nwbinspector.inspect_nwbfile(nwbfile_path=path, importance_threshold=critical))


def test_netcdf_is_movements_dataset(made: Made) -> None:
    """xarray opens it; movement takes it: its velocity is the table's own."""
    import xarray as xr
    from movement.kinematics import compute_velocity

    ds = xr.load_dataset(made.export("nc"))
    assert list(ds.individuals.values) == made.animals
    np.testing.assert_allclose(ds.time.values, made.seconds, rtol=0, atol=1e-6)
    assert (ds.frame.values == made.frames).all()
    for (animal, part), wanted in made.poses.items():
        one = ds.sel(individuals=animal, keypoints=part)
        made.check(animal, part, one.position.values, one.confidence.values)
        speed = np.gradient(wanted[:, 0], made.seconds)
        np.testing.assert_allclose(compute_velocity(one.position).sel(space="x").values, speed)


def test_slp_and_coco_are_read_by_sleap_io(made: Made) -> None:
    """Instances, scores, tracks and skeleton come back; a lost frame has no instance."""
    import sleap_io
    from sleap_io.io import coco

    labels = sleap_io.load_slp(str(made.export("slp")), open_videos=False)
    assert labels.skeleton.node_names == PARTS
    assert [[*pair] for pair in labels.skeleton.edge_names] == SKELETON
    assert labels.video.filename == "tag 1/mäuse.mp4"
    assert [track.name for track in labels.tracks] == made.animals
    values = {name: np.full((ROWS, 3), np.nan) for name in made.poses}
    for frame in labels:
        for instance in frame.instances:
            for part, point in zip(PARTS, instance.points, strict=True):
                if not np.isnan(point["xy"]).any():
                    row = frame.frame_idx // STRIDE
                    values[instance.track.name, part][row] = *point["xy"], point["score"]
    for (animal, part), one in values.items():
        made.check(animal, part, one[:, :2], one[:, 2])
    path = made.export("coco")
    data = coco.parse_coco_json(path)
    again = coco.create_skeleton_from_category(data["categories"][0])
    assert again.node_names == PARTS
    assert [[*pair] for pair in again.edge_names] == SKELETON
    frames = {image["id"]: image["frame"] for image in data["images"]}
    found = {name: np.full((ROWS, 3), np.nan) for name in made.poses}
    for entry in data["annotations"]:
        row = frames[entry["image_id"]] // STRIDE
        points = np.reshape(entry["keypoints"], (-1, 3))
        for part, (x, y, seen), score in zip(PARTS, points, entry["keypoint_scores"], strict=True):
            if seen:
                found[entry["attributes"]["name"], part][row] = x, y, score
    for (animal, part), one in found.items():
        made.check(animal, part, one[:, :2], one[:, 2])


def test_parquet_is_a_row_for_each_frame_animal_and_bodypart(made: Made) -> None:
    """pandas reads what the table has, and nothing that it has not."""
    found = pd.read_parquet(made.export("parquet"))
    assert len(found) == ROWS * len(made.poses)
    for (animal, part), rows in found.groupby(["individual", "bodypart"], observed=True):
        made.check(animal, part, rows[["x", "y"]].to_numpy(), rows["likelihood"].to_numpy())
        assert (rows["frame"].to_numpy() == made.frames).all()
        assert (rows["seconds"].to_numpy() == made.seconds).all()


@pytest.mark.parametrize("what", EXPORTS)
def test_a_film_without_a_found_pose_is_exported_too(tmp_path: Path, what: str) -> None:
    """A table of one lost frame, without times or a skeleton, and one of none."""
    made = Made(tmp_path, [])
    lines = (tmp_path / "poses.csv").read_text().splitlines()
    for rows in (["7" + "," * (lines[0].count(","))], []):
        (tmp_path / "poses.csv").write_text("\n".join([*lines[:3], *rows]) + "\n")
        assert made.export(what, timestamps=None, skeleton=[]).stat().st_size > 0


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"scorer,a\nbodyparts,b\ncoords,x\n0,1,2,3\n", b"a\n" * 9, b'"']
)
def test_what_is_no_table_ends_in_words(tmp_path: Path, damage: bytes) -> None:
    """Whatever stands in its place, the export fails with a code and says of which file."""
    made = Made(tmp_path, [])
    (tmp_path / "poses.csv").write_bytes(damage)
    with pytest.raises(AnalysisError, match=r"poses\.csv") as failed:
        made.export("parquet")
    assert failed.value.code == "damaged_poses"


@pytest.mark.child
def test_tables_go_through_the_walls_of_a_child(tmp_path: Path) -> None:
    """All formats are written by a real child, which may write to its own folder alone."""
    from worker.child.child import Child

    folder = tmp_path / "derive"
    (folder / "out").mkdir(parents=True)
    made = Made(folder, ["m1", "m2"])
    child = Child("tables", tmp_path)
    try:
        for what, name in EXPORTS.items():
            child.call(
                "export",
                made.task(what, out=str(folder / "out" / name)),
                on_progress=lambda _: None,
                should_stop=lambda: False,
                wall_seconds=300,
                log=folder / "run.log",
                folder=folder,
            )
    finally:
        child.close()
    assert {path.name for path in (folder / "out").iterdir()} == {*EXPORTS.values()}


@pytest.mark.parametrize("what", ["slp", "coco"])
def test_more_poses_than_memory_holds_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Before anything is made of them; the message names the formats that take any number."""
    monkeypatch.setattr("worker.poses.formats.MOST_INSTANCES", ROWS)
    with pytest.raises(AnalysisError, match="take nwb, nc or parquet") as refused:
        Made(tmp_path, ["m1", "m2"]).export(what)
    assert refused.value.code == "too_many_poses"
