"""Several animals and the model zoo, from a pushed model to the tables of a result."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest

from posedrop.analyses.superanimal import SuperAnimalArgs
from tests.support.animals import make_project, two_animal_film, zoo_weights
from tests.support.lab import Embedded, Lab
from tests.support.samples import REPOSITORY

FRAMES = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """``posedrop up``, which knows the network of tests/support/animals.py."""
    lab = Embedded(tmp_path_factory.mktemp("several") / "data")
    plugin = REPOSITORY / "tests/support/animals_plugin"
    path = [str(plugin), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    lab.environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    yield lab.start()
    assert lab.stop() == 0


@pytest.fixture
def file_id(lab: Lab, tmp_path: Path) -> str:
    """Two animals, uploaded by a tool."""
    key = f"{tmp_path.name}.mp4"
    lab.s3().upload_file(str(two_animal_film(tmp_path / "herd.mp4", range(FRAMES))), "videos", key)
    return str(lab.file(key)["file_id"])


def table(lab: Lab, analysis_id: str) -> pd.DataFrame:
    """Return a run's poses.csv, as GET /download has it."""
    answer = lab.http.get(f"/download/{analysis_id}/poses.csv")
    body = httpx.get(answer.headers["location"]).content
    return pd.read_csv(io.BytesIO(body), header=[0, 1, 2, 3], index_col=0)


def test_two_animals_are_followed(lab: Lab, file_id: str, tmp_path: Path) -> None:
    """A pushed project for two animals gives a table, a film and plots with both of them."""
    project = make_project(tmp_path / "project")
    lab.posedrop("models", "push", str(project), "--name", "herd")
    asked = lab.ask(file_id, "deeplabcut_2d", {"model": "herd"}).json()["analysis_id"]
    over = lab.over(asked)
    assert (over["status"], over["result"]["rows"]) == ("succeeded", FRAMES)
    scorer = over["result"]["details"]["scorer"]
    assert {
        f"{tmp_path.name}{scorer}_el.h5",
        f"{tmp_path.name}{scorer}_el_filtered.csv",
        f"{tmp_path.name}{scorer}_el_bp_p20_labeled.mp4",
        f"{tmp_path.name}{scorer}_meta.pickle",
        "trajectory.png",
        "run.log",
    } <= {file["name"] for file in over["files"]}
    poses = table(lab, asked)
    assert set(poses.columns.get_level_values(1)) == {"ada", "bob"}
    assert poses.notna().all().all()


def test_what_can_not_be_followed_is_said(lab: Lab, file_id: str, tmp_path: Path) -> None:
    """A run without tracklets fails in words that say what to do, and keeps what was found.

    Asked for again it is made anew from that, and the two name each other.
    """
    project = make_project(tmp_path / "project")
    lab.posedrop("models", "push", str(project), "--name", "herd")
    args = {"model": "herd", "min_tracklet": 100}
    first = lab.ask(file_id, "deeplabcut_2d", args).json()["analysis_id"]
    lab.over(first)
    answer = lab.ask(file_id, "deeplabcut_2d", args)
    again = answer.json()["analysis_id"]
    assert (answer.status_code, again != first) == (202, True)
    ends = [lab.over(analysis_id) for analysis_id in (first, again)]
    for over in ends:
        error = over["error"]
        assert (over["status"], error["code"], error["stage"]) == (
            "failed",
            "no_tracklets",
            "track",
        )
        assert "Analyse more frames" in error["message"]
        kept = {file["name"]: file["sha256"] for file in over["files"]}
        assert kept.keys() == {"predictions.npz", "timestamps.csv", "run.log"}
    one, other = ends
    assert one["files"][0]["sha256"] == other["files"][0]["sha256"]
    assert (one["retried_by"], other["retry_of"]) == (again, first)


def test_the_model_zoo(lab: Lab, file_id: str, tmp_path: Path) -> None:
    """A SuperAnimal is refused with the files that lack; once they are pushed, it runs."""
    args = {
        "model": "superanimal_bird", "detector_name": "ssdlite", "max_individuals": 2, "stop": 2,
    }  # fmt: skip
    refused = lab.ask(file_id, "superanimal", args)
    wanted = SuperAnimalArgs.model_validate(args)
    assert refused.status_code == 422
    assert "posedrop models push" in refused.json()["error"]["message"]
    weights = zoo_weights(tmp_path / "weights", wanted)
    lab.posedrop("models", "push", str(weights), "--name", "superanimal_bird")
    asked = lab.ask(file_id, "superanimal", args).json()["analysis_id"]
    over = lab.over(asked, seconds=300)
    assert (over["status"], over["result"]["rows"]) == ("succeeded", 2)
    assert {"poses", "labelled_video"} <= {file["role"] for file in over["files"]}
    assert set(table(lab, asked).columns.get_level_values(1)) == {"animal0", "animal1"}
