"""Videos replaced and deleted while their jobs wait or run, results deleted by S3 tools.

What a test does to a run that works or waits, it does before that goes on, however slow the machine
is: such runs last until the test opens its gate.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_claims import storage_of
from tests.support import labs
from tests.support.lab import Lab

#: More than any test waits for anything.
LONG = 300


@pytest.fixture
def folder() -> str:
    """A folder of each try's own: a stack outlives a test, and keeps what was put into it."""
    return f"objects-{os.urandom(4).hex()}"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that lets the runs go on that wait for it; whatever the test does, they do at last."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def waits_for(gate: Path) -> dict[str, str]:
    """Return the metadata of an upload whose run goes on until ``gate`` is there."""
    return labs.asks(seconds=LONG, until=str(gate))


def occupy(lab: Lab, folder: str, gate: Path) -> str:
    """Have all that take work for a gpu busy until ``gate`` is there; return a film being run.

    That is two workers, or a worker with the next video ready.
    """
    workers = 2
    for number in range(workers):
        labs.put(lab, f"{folder}/busy{number}.mp4", waits_for(gate))
    lab.until(
        lambda: len(labs.records(lab, f"{folder}/busy", "1.json")) == workers, "all to be busy"
    )
    keys = [f"{folder}/busy{number}.mp4" for number in range(workers)]
    return lab.until(
        lambda: next((key for key in keys if labs.stage(lab, key) == "infer"), ""),
        "one of them to be run",
    )


def planned(lab: Lab, key: str, count: int) -> None:
    """Wait until so many runs of a key were asked for."""
    lab.until(
        lambda: len(labs.records(lab, f"{key}/", "request.json")) == count,
        f"{count} runs of {key} to be planned",
    )


def results(lab: Lab, key: str, count: int) -> dict[str, str]:
    """Wait for so many results of a key; return how each content's ended."""
    found = lab.until(
        lambda: len(all_ := labs.records(lab, f"{key}/", "result.json")) == count and all_,
        f"{count} results of {key}",
    )
    return {over["sha256"]: over["state"] for over in found.values()}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_video_replaced_while_it_waits_is_not_taken_for_the_new_one(
    lab: Lab, folder: str, gate: Path
) -> None:
    """The old run fails and says why, the new one is made, and the index has the new one."""
    occupy(lab, folder, gate)
    key = f"{folder}/a.mp4"
    old, new = labs.film(), labs.film()
    labs.put(lab, key, labs.asks(), old)
    planned(lab, key, 1)
    labs.put(lab, key, labs.asks(), new)
    planned(lab, key, 2)
    gate.touch()
    ends = results(lab, key, 2)
    assert ends == {sha256(old): "failed", sha256(new): "succeeded"}
    codes = {
        (over["error"] or {}).get("code")
        for over in labs.records(lab, f"{key}/", "result.json").values()
    }
    assert codes == {None, "object_changed"}
    lab.until(lambda: lab.file(key)["sha256"] == sha256(new), "the index to follow")


def test_a_video_replaced_while_it_runs_ends_as_what_it_was(
    lab: Lab, folder: str, gate: Path
) -> None:
    """Each result is of the bytes that it names."""
    key = f"{folder}/a.mp4"
    old, new = labs.film(), labs.film()
    labs.put(lab, key, waits_for(gate), old)
    lab.until(lambda: labs.stage(lab, key) == "infer", "the run to have the video")
    labs.put(lab, key, labs.asks(), new)
    planned(lab, key, 2)
    gate.touch()
    ends = results(lab, key, 2)
    assert ends == {sha256(old): "succeeded", sha256(new): "succeeded"}
    lab.until(lambda: lab.file(key)["sha256"] == sha256(new), "the index to follow")


def test_a_video_deleted_while_it_waits_or_runs(lab: Lab, folder: str, gate: Path) -> None:
    """The film is listed as gone; the run that has the bytes ends well, one that waits fails."""
    running, waiting = occupy(lab, folder, gate), f"{folder}/a.mp4"
    labs.put(lab, waiting, labs.asks())
    planned(lab, waiting, 1)
    gone = {running, waiting}
    for key in gone:
        lab.s3().delete_object(Bucket="videos", Key=key)
    lab.until(
        lambda: gone <= {f["key"] for f in lab.get("/files", state="film gone")["items"]},
        "the films to be listed as gone",
    )
    gate.touch()
    assert labs.result(lab, waiting)["error"]["code"] == "object_changed"
    assert labs.result(lab, running)["state"] == "succeeded"


def test_results_deleted_by_an_s3_tool_are_gone_from_the_index(
    lab: Lab, folder: str, tmp_path: Path
) -> None:
    """410 afterwards; asked for anew, they are made anew."""
    key = f"{folder}/unmade.mp4"
    labs.put(lab, key, labs.asks())
    labs.result(lab, key)
    file_id = lab.file(key)["file_id"]
    analysis_id = lab.run_of(file_id)
    storage = storage_of(lab, tmp_path)
    run = f"{key}/faulty-{analysis_id}"
    storage.delete("results", [found.key for found in storage.objects("results", f"{run}/")])
    lab.until(lambda: lab.http.get(f"/results/{analysis_id}").status_code == 410, "the row to go")
    again = lab.ask(file_id, "faulty", {"how": "work"}).json()["analysis_id"]
    assert again == analysis_id
    assert lab.over(again)["status"] == "succeeded"
