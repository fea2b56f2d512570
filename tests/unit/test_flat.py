"""``posedrop download DIR --flat``: which files of a folder's runs, and what each is called."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import pytest

from posedrop.buckets import layout
from tests.unit.test_cli import Api, api, call, file_json, run_json  # noqa: F401 - a fixture

Runs = list[dict[str, Any]]


def serve(api: Api, videos: dict[str, Runs]) -> None:  # noqa: F811
    """Have the API answer with videos by their keys, the runs of each newest first."""
    files = {layout.file_id_of("videos", key): (key, runs) for key, runs in videos.items()}
    listed = [file_json(file_id=id_, key=key) for id_, (key, _) in files.items()]

    def list_files(request: httpx.Request) -> httpx.Response:
        below = request.url.params.get("prefix", "")
        items = [each for each in listed if each["key"].startswith(below)]
        return httpx.Response(200, json={"items": items, "next": None})

    api.answers["GET /files"] = list_files
    for id_, (key, runs) in files.items():
        names = [
            {"analysis_id": run["analysis_id"], "analysis": "x", "status": run["status"]}
            for run in runs
        ]
        api.answers[f"GET /upload/{id_}"] = file_json(file_id=id_, key=key, analyses=names)
        for run in runs:
            api.answers[f"GET /results/{run['analysis_id']}"] = run


def run(number: int, status: str = "succeeded", **files: str | None) -> dict[str, Any]:
    """Return a run with files, by name, each with its role; its scorer is DLC_net."""
    told = [
        {
            "name": name.replace("__", "."),
            "role": role,
            "url": "/x",
            "size": 1,
            "sha256": hashlib.sha256(b"x").hexdigest(),
            "content_type": "x",
        }
        for name, role in files.items()
    ]
    result = {"state": status, "details": {"scorer": "DLC_net_200"}, "args": {}}
    id_ = layout.make_id("run", str(number))
    return run_json(status, analysis_id=id_, files=told, result=result)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are fetched, in order; each gets its content."""
    names: list[str] = []

    def fetch(_: Any, file: Any, path: Path, *_more: Any) -> Path:
        assert file.size == 1
        path.write_bytes(b"x")
        names.append(path.name)
        return path

    monkeypatch.setattr("posedrop.client.client.Client.fetch", fetch)
    return names


def test_each_videos_newest_poses_come_by_deeplabcuts_names(
    tmp_path: Path,
    api: Api,  # noqa: F811
    fetched: list[str],
) -> None:
    """Of results without roles too, as an older posedrop left them; not of runs that failed, of
    frames to be corrected, nor what DeepLabCut does not leave."""
    videos = {
        "day1/a+b.mp4": [
            run(1, "failed", poses__h5="poses"),
            run(2, labeled_data__zip="labeled_data"),
            run(3, poses__h5=None, poses_filtered__csv=None, run__log=None, result__json=None),
            run(4, poses__csv=None),
        ],
        "day1/deep/" + "é" * 121 + ".mov": [run(5, "partial", poses__csv="poses")],
        "day1/none.avi": [run(6, "failed")],
        "day1/new.avi": [],
        "day10/c.mp4": [run(7, poses__h5="poses")],
    }
    serve(api, videos)
    done = call(tmp_path, "download", "day1", "--flat", str(tmp_path / "out"), "--json")
    told = json.loads(done.stdout)
    long = layout.file_id_of("videos", list(videos)[1])
    wanted = ["a+bDLC_net_200.h5", "a+bDLC_net_200_filtered.csv", f"{long}_poses.csv"]
    assert (done.exit_code, sorted(fetched)) == (0, sorted(wanted))
    assert (told["without"], told["clashes"]) == (["day1/new.avi", "day1/none.avi"], [])
    call(tmp_path, "download", "day1/", "--flat", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(wanted)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_some_disks_take_for_one_are_a_clash(
    tmp_path: Path,
    api: Api,  # noqa: F811
    fetched: list[str],
    form: Any,
) -> None:
    """By their case, or by how an accent is put; neither is fetched, and both are named."""
    keys = ["a/Café.mp4", f"b/{unicodedata.normalize(form, 'CAFÉ.mp4')}", "c/other.mp4"]
    serve(api, {key: [run(n, poses__h5="poses")] for n, key in enumerate(keys)})
    done = call(tmp_path, "download", "", "--flat", str(tmp_path / "out"))
    assert (done.exit_code, fetched) == (1, ["otherDLC_net_200.h5"])
    assert all(key in done.stderr for key in keys[:2])


def test_what_is_there_is_not_overwritten(
    tmp_path: Path,
    api: Api,  # noqa: F811
    fetched: list[str],
) -> None:
    """Another file of the name, a folder, a link that leads nowhere; a file where the directory
    should be is said in a line."""
    keys = [f"{name}.mp4" for name in "abcd"]
    serve(api, {key: [run(n, poses__h5="poses")] for n, key in enumerate(keys)})
    out = tmp_path / "out"
    out.mkdir()
    (out / "aDLC_net_200.h5").write_bytes(b"y")
    (out / "bDLC_net_200.h5").mkdir()
    (out / "cDLC_net_200.h5").symlink_to(tmp_path / "nowhere")
    done = call(tmp_path, "download", "", "--flat", str(out))
    assert (done.exit_code, fetched) == (1, ["dDLC_net_200.h5"])
    assert done.stderr.count("is another file") == 3
    assert (out / "aDLC_net_200.h5").read_bytes() == b"y"
    (tmp_path / "file").touch()
    done = call(tmp_path, "download", "", "--flat", str(tmp_path / "file"))
    assert (done.exit_code, "Traceback" in done.stderr) == (2, False)
    assert str(tmp_path / "file") in done.stderr
