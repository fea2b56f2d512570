"""Folders as labs upload them: the rule last, wrong at first, in an editor's encoding; a mount."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from boto3.s3.transfer import TransferConfig

from posedrop.buckets import layout
from tests.support.lab import Lab
from tests.support.samples import free_box

FILMS = 12


def sync(lab: Lab, folder: Path, prefix: str) -> None:
    """Run `aws s3 sync`, with no option."""
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder)}
    subprocess.run(
        [str(Path(sys.executable).with_name("aws")), "s3", "sync", str(folder), prefix],
        env=environment | lab.aws_environment(),
        check=True,
        capture_output=True,
    )


def below(s3: Any, prefix: str, name: str) -> list[str]:
    """Return the keys below a prefix of the results bucket that end with a name."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return [key for key in keys if key.endswith(name)]


def test_a_rule_that_is_synced_after_its_films_is_followed(
    lab: Lab, clip: Path, tmp_path: Path
) -> None:
    """12 films, then a rule that is wrong, then the same in UTF-16 and mended: 12 runs."""
    s3 = lab.s3()
    day = tmp_path / "day1"
    day.mkdir()
    for number in range(FILMS):
        (day / f"{number:02}.mp4").write_bytes(clip.read_bytes() + free_box(16 + number))
    sync(lab, day, "s3://videos/synced/")

    def ready() -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = lab.get("/files", prefix="synced/", state="ready")["items"]
        return files if len(files) == FILMS else []

    lab.until(ready, "the films to be ready")
    text = '{\r\n  "analysis": "dummy",\r\n  "args": {"seconds": 0.05},\r\n}\r\n'
    s3.put_object(Bucket="videos", Key="synced/posedrop.json", Body=text.encode())
    lab.until(lambda: all(file["waiting"] for file in ready() or [{"waiting": None}]), "12 to wait")
    told = lab.get(f"/upload/{ready()[0]['file_id']}")["waiting"]
    assert told["rule"] == "synced/posedrop.json"
    assert "line 4, column 1" in told["message"]
    assert told["message"] in lab.posedrop("ls", "synced").stdout
    assert below(s3, "synced/", "/result.json") == []
    mended = text.replace("},", "}").encode("utf-16")
    s3.put_object(Bucket="videos", Key="synced/posedrop.json", Body=mended)
    lab.until(lambda: len(below(s3, "synced/", "/result.json")) == FILMS, "12 runs")
    assert len(below(s3, "synced/", "/request.json")) == FILMS
    assert {file["waiting"] for file in ready()} == {None}
    assert below(s3, layout.wrong_rule("synced/posedrop.json"), ".json") == []


def test_a_mounts_film_has_one_run_and_no_refusal(lab: Lab, clip: Path) -> None:
    """s3fs and its like PUT nothing, then the film, then copy that onto itself: within a second.

    A film in parts has another ETag when it was copied.
    """
    s3 = lab.s3()
    s3.put_object(
        Bucket="videos",
        Key="mounted/posedrop.json",
        Body=b'{"analysis": "dummy", "args": {"seconds": 0.05}}',
    )
    parts = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    for key, size in {"mounted/1.mp4": 16, "mounted/2.mp4": 6 * 2**20}.items():
        film = clip.read_bytes() + free_box(size)
        s3.put_object(Bucket="videos", Key=key, Body=b"")
        s3.upload_fileobj(io.BytesIO(film), "videos", key, Config=parts)
        s3.copy_object(
            Bucket="videos",
            Key=key,
            CopySource={"Bucket": "videos", "Key": key},
            MetadataDirective="REPLACE",
            Metadata={"mtime": "1700000000"},
        )
    for key in ("mounted/1.mp4", "mounted/2.mp4"):
        assert lab.file(key, "ready")["refusal"] is None
        lab.until(lambda key=key: below(s3, f"{key}/", "/result.json"), f"a run of {key}")
        assert len(below(s3, f"{key}/", "/request.json")) == 1


def test_a_rule_is_kept_by_the_api(lab: Lab, clip: Path) -> None:
    """PUT /rule writes what would be followed, where the caller has seen what is there."""
    s3 = lab.s3()
    s3.upload_file(str(clip), "videos", "kept/day1/a.mp4")
    file_id = lab.file("kept/day1/a.mp4")["file_id"]
    wanted = {"analysis": "dummy", "args": {"seconds": 0.07}}

    def put(body: dict[str, Any], **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return lab.http.put("/rule", params={"folder": "kept/"}, json=body, headers=names)

    # It is planned a moment after it is ready.
    lab.until(lambda: lab.get("/rule", folder="kept/day1/")["waiting"], "the film to wait")
    assert lab.get("/rule", folder="kept/day1/") | {"films": []} == {
        "rule": "kept/day1/posedrop.json",
        "etag": None,
        "analysis": None,
        "args": {},
        "existing": True,
        "problem": None,
        "waiting": 1,
        "more": False,
        "films": [],
    }
    assert put(wanted).status_code == 422
    assert put(wanted, If_None_Match="*", If_Match='"x"').status_code == 422
    refused = put({"analysis": "dummy", "args": {"seconds": -1, "x": 1}}, If_None_Match="*")
    assert [each["loc"] for each in refused.json()["error"]["errors"]] == [
        ["args", "seconds"],
        ["args", "x"],
    ]
    poseless = put({"analysis": "outliers"}, If_None_Match="*")
    assert (poseless.status_code, poseless.json()["error"]["code"]) == (422, "takes_poses")
    assert put({**wanted, "x": "x" * 2**20}, If_None_Match="*").status_code == 413
    assert put(wanted, If_Match='"0123"').status_code == 412
    assert not below(s3, "kept/", "posedrop.json")
    kept = put(wanted, If_None_Match="*").json()
    assert (kept["waiting"], kept["films"]) == (1, ["kept/day1/a.mp4"])
    # Followed before it is replaced: the next one lets alone what is there.
    assert lab.over(lab.run_of(file_id))["status"] == "succeeded"
    assert put(wanted | {"existing": False}, If_None_Match="*").status_code == 412
    again = put(wanted | {"existing": False}, If_Match=f'"{kept["etag"]}"').json()
    assert (again["waiting"], again["existing"]) == (0, False)
    assert lab.get("/rule", folder="kept")["waiting"] == 0
    for folder in ("../", "a//b/", "a/./b", "x\ny", "é" * 600, "a/" * 33):
        assert lab.http.get("/rule", params={"folder": folder}).status_code == 422
