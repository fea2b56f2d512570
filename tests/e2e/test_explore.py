"""The index by Datasette, while the server writes it: read, and nothing else."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.lab import POSEDROP, Lab, clean_environment
from tests.support.tools import find_free_port

HOSTILE = """explore/<img src=x onerror=alert(1)>"'; DROP TABLE analysis;--.mp4"""

pytestmark = pytest.mark.parametrize("lab", ["embedded"], indirect=True)


@pytest.fixture
def explorer(lab: Lab) -> Iterator[httpx.Client]:
    """`posedrop explore` on the lab's index, asked with its token."""
    port = str(find_free_port())
    process = subprocess.Popen(
        [POSEDROP, "--data-dir", str(lab.data_dir), "explore", "--port", port],
        env=clean_environment() | lab.home | lab.settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    headers = {"Authorization": f"Bearer {lab.api_token}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        while True:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline, "it does not answer"
            try:
                client.get("/-/versions.json")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield client
    process.terminate()
    process.wait(20)


def test_what_is_written_is_seen_and_nothing_can_be(
    lab: Lab, clip: Path, explorer: httpx.Client
) -> None:
    """A film and its run appear as they are indexed, by columns of what was asked; names are text;
    no SQL writes; without the token, or with another, nothing is told."""
    one = {"_shape": "array", "key": HOSTILE}
    assert explorer.get("/index/films.json", params=one).json() == []
    asked = {"analysis": "dummy", "args": '{"seconds": 0.25}'}
    lab.s3().upload_file(str(clip), "videos", HOSTILE, {"Metadata": asked})
    lab.over(lab.run_of(lab.file(HOSTILE)["file_id"]))
    (film,) = explorer.get("/index/films.json", params=one).json()
    assert (film["state"], film["film_frames"], film["runs"]) == ("ready", 12, 1)
    ran = lab.until(lambda: explorer.get("/index/runs.json", params=one).json(), "the run")
    assert ran[0]["state"] == "succeeded"
    listed = explorer.get("/index/runs", params={"key": HOSTILE})
    assert listed.status_code == 200
    assert "<img src=x" not in listed.text
    assert "&lt;img src=x" in listed.text
    for sql in (
        "DELETE FROM analysis",
        "select 1; DROP TABLE analysis",
        "WITH t AS (SELECT 1) DELETE FROM analysis",
        "ATTACH 'x.sqlite' AS x",
        "PRAGMA query_only = 0",
        "VACUUM INTO '/tmp/x.sqlite'",
    ):
        answer = explorer.get("/index.json", params={"sql": sql})
        assert answer.status_code == 400, answer.text
    assert explorer.post("/index/runs", data={"sql": "DELETE FROM analysis"}).status_code == 405
    assert len(explorer.get("/index/runs.json", params=one).json()) == 1
    for wrong in ("", "Bearer x", "Basic eDp5", "Basic \xff", f"Digest {lab.api_token}"):
        headers = httpx.Headers({b"authorization": wrong.encode("latin-1")})
        for path in ("/", "/index/runs.json", "/index.json?sql=select+1", "/-/metadata.json"):
            assert explorer.get(path, headers=headers).status_code == 401, (wrong, path)
    assert httpx.get(f"{explorer.base_url}/index", auth=("me", lab.api_token)).status_code == 200


def test_each_argument_and_version_of_the_runs_is_a_column(
    explorer: httpx.Client,
) -> None:
    """Of what there was when it was started; sorted and counted by any of them."""
    columns = explorer.get("/index/runs.json", params={"_size": 1}).json()["columns"]
    found = {re.sub("_.*", "", column) for column in columns}
    assert {"quality", "arg_seconds", "version_analysis", "reason_1"} <= {*columns}
    assert {"arg", "version"} <= found
    by = {"_facet": "arg_seconds", "_sort_desc": "version_analysis"}
    answer = explorer.get("/index/runs.json", params=by).json()
    assert {each["value"] for each in answer["facet_results"]["arg_seconds"]["results"]}


def test_it_says_in_words_what_it_lacks(lab: Lab, tmp_path: Path) -> None:
    """No index, an index of another make, an address for others without a token."""

    def said(folder: Path, *words: str) -> str:
        done = subprocess.run(
            [POSEDROP, "--data-dir", str(folder), "explore", *words],
            env=clean_environment() | lab.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        return done.stderr

    assert "there is no index at" in said(tmp_path)
    assert "others would read the index" in said(tmp_path, "--host", "192.0.2.1")
    (tmp_path / "index.sqlite").write_bytes(b"no SQLite at all")
    assert "can't be read as an index" in said(tmp_path)
