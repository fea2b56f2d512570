"""Frames worth correcting: planted ones are found, and their pixels are those of our decoder."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import sleap_io

from posedrop import analyses
from posedrop.errors import AnalysisError
from worker.poses import frames, outliers
from worker.video import decode

WIDTH, HEIGHT, FRAMES = 96, 64, 160
JUMPS = (10, 30, 50, 70, 90, 110, 130)
PARTS = ("snout", "tail")


class Film:
    """A film, and a table of poses that stand still but where something is planted."""

    def __init__(self, folder: Path, length: int, numbers: Sequence[int] | None = None) -> None:
        self.folder, self.length = folder, length
        self.numbers = list(range(length)) if numbers is None else list(numbers)
        self.video, self.poses = folder / "film.mp4", folder / "poses.csv"
        with av.open(str(self.video), "w") as out:
            stream = out.add_stream("libx264", rate=30, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(length):
                image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
                left = number % (WIDTH - 20)
                image[16:40, left : left + 16] = (200, 30 + number % 200, 90)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())

    def write(
        self,
        *,
        jumps: Collection[int] = (),
        unsure: Collection[int] = (),
        lost: Collection[int] = (),
        animals: Sequence[str] = (),
    ) -> None:
        """Write the table; what is planted is of the first column's bodypart, by frame."""
        own = [(*animal, part) for animal in ([a] for a in animals) for part in PARTS]
        columns = [("DLC_s", *c, x) for c in own or [(p,) for p in PARTS] for x in COORDS]
        levels = ["scorer", *(["individuals"] if animals else []), "bodyparts", "coords"]
        index = pd.MultiIndex.from_tuples(columns, names=levels)
        table = pd.DataFrame(50.0, index=self.numbers, columns=index)
        table.iloc[:, 2::3] = 0.95
        table.loc[[*jumps], table.columns[0]] = 90.0
        table.loc[[*unsure], table.columns[2]] = 0.001
        table.loc[[*lost]] = np.nan
        table.to_csv(self.poses)

    def pick(self, **args: Any) -> dict[str, Any]:
        """Pick frames as the child that has the film does."""
        return outliers.pick(
            {
                "video": str(self.video),
                "poses": str(self.poses),
                "pixels": str(self.folder / "pixels.npy"),
                "args": analyses.get("outliers").normalise(args),
                "width": WIDTH,
                "height": HEIGHT,
            },
            lambda *_: None,
        )

    def pack(self, picked: dict[str, Any], key: str = "day1/mouse.mp4") -> Path:
        """Pack them as the child without a film does; return the folder."""
        out = self.folder / "out"
        out.mkdir()
        task = {
            "poses": str(self.poses),
            "pixels": str(self.folder / "pixels.npy"),
            "frames": picked["frames"],
            "out": str(out),
            "video": key,
            "film_frames": self.length,
            "fps": 30.0,
            "iteration": 2,
            "skeleton": [["snout", "tail"]],
        }
        frames.pack(task, lambda *_: None)
        return out


COORDS = ("x", "y", "likelihood")


@pytest.fixture
def film(tmp_path: Path) -> Film:
    """A film of some seconds."""
    return Film(tmp_path, FRAMES)


@pytest.mark.parametrize("animals", [(), ("ada", "bob")], ids=["one animal", "several"])
def test_all_planted_jumps_are_chosen_with_our_decoders_pixels(
    film: Film, animals: Sequence[str]
) -> None:
    """In three formats: DeepLabCut's machine labels, SLEAP's package, COCO; the poses are equal."""
    film.write(jumps=JUMPS, animals=animals)
    picked = film.pick(by="jump", n=20)
    assert {*JUMPS} <= {*picked["frames"]}
    assert picked["candidates"] == 2 * len(JUMPS), "there, and back"
    assert "fewer than the 20" in picked["words"][0]
    out = film.pack(picked)
    seen = dict(decode.frames(film.video))
    package = sleap_io.load_slp(str(out / "frames.pkg.slp"))
    assert [frame.frame_idx for frame in package] == picked["frames"]
    assert package.video.source_video.filename == "mouse.mp4"
    for frame in package:
        assert (frame.image == seen[frame.frame_idx]).all()
        assert len(frame.predicted_instances) == max(1, len(animals))
    with zipfile.ZipFile(out / "labeled-data.zip") as archive:
        archive.extractall(film.folder)
    below = film.folder / "labeled-data" / "mouse"
    labels = pd.read_hdf(below / "machinelabels-iter2.h5")
    assert isinstance(labels, pd.DataFrame)
    for (_, folder, name), row in zip(labels.index, labels.to_numpy(), strict=True):
        number = int(name[3:-4])
        image = cv2.cvtColor(cv2.imread(str(below / name)), cv2.COLOR_BGR2RGB)
        assert folder == "mouse"
        assert (image == seen[number]).all()
        assert row[0] == (90.0 if number in JUMPS else 50.0)
    with zipfile.ZipFile(out / "coco.zip") as archive:
        names, found = {*archive.namelist()}, json.loads(archive.read("annotations.json"))
    assert names == {"annotations.json", *(image["file_name"] for image in found["images"])}
    assert [image["frame"] for image in found["images"]] == picked["frames"]


@pytest.mark.parametrize("spread", ["kmeans", "uniform"])
def test_of_more_candidates_as_many_as_asked_for_are_chosen_the_same_each_time(
    film: Film, spread: str
) -> None:
    """Those that look different, or any: exactly n, and never others than the candidates."""
    unsure = range(20, 80)
    film.write(unsure=unsure, lost=[5])
    picked = film.pick(n=9, spread=spread)
    assert len(picked["frames"]) == 9
    assert {*picked["frames"]} <= {*unsure}
    assert film.pick(n=9, spread=spread) == picked


def test_a_fit_finds_what_is_planted_and_never_a_lost_frame(film: Film) -> None:
    """By an ARIMA model: DeepLabCut would put frames without a position first."""
    film.write(jumps=JUMPS, lost=[20, 21, 22])
    picked = film.pick(by="fitting", n=7, arima_ar_degree=1, arima_ma_degree=0)
    assert not {20, 21, 22} & {*picked["frames"]}
    assert {*JUMPS} & {*picked["frames"]}


def test_frames_are_called_by_their_numbers_in_the_film(tmp_path: Path) -> None:
    """A run of every third frame, from the fourth on: numbers are the film's, also of a list."""
    film = Film(tmp_path, 60, range(4, 60, 3))
    film.write(jumps=[10, 31])
    assert film.pick(by="jump")["frames"] == [10, 13, 31, 34]
    picked = film.pick(by="list", frames=[31, 4, 5, 4])
    assert picked["frames"] == [4, 31]
    assert "no poses of frame 5" in picked["words"][0]
    labelled = film.pack(picked, "../..\\..mp4")
    with zipfile.ZipFile(labelled / "labeled-data.zip") as archive:
        assert all(name.startswith("labeled-data/") for name in archive.namelist())
        assert not any(".." in name.split("/") for name in archive.namelist())


def test_what_leaves_nothing_to_choose_is_said(film: Film, tmp_path: Path) -> None:
    """Nothing planted, nothing sure, no such bodypart; a film of one frame; a table of none."""
    film.write()
    for args, words in (
        ({"by": "uncertain"}, "raise p_bound"),
        ({"by": "jump"}, "lower epsilon"),
        ({"by": "jump", "bodyparts": ["nose"]}, "no bodypart 'nose'; it has: snout, tail"),
        ({"by": "fitting", "p_bound": 1}, "too few for a fit"),
    ):
        with pytest.raises(AnalysisError, match=words):
            film.pick(**args)
    (tmp_path / "one").mkdir()
    one = Film(tmp_path / "one", 1)
    one.write(unsure=[0])
    assert one.pick(n=1)["frames"] == [0]
    assert one.pick(by="list", frames=[0])["frames"] == [0]
    assert [each.name for each in one.pack(one.pick()).iterdir()]
    with pytest.raises(AnalysisError, match="lower epsilon"):
        one.pick(by="jump")
    one.numbers = []
    one.write()
    with pytest.raises(AnalysisError, match="raise p_bound"):
        one.pick()
