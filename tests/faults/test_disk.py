"""A locked index and full disks: an error that says so, a retry, and no restart."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Embedded, Lab, Servers
from tests.faults import labs


def index_of(lab: Lab) -> Path:
    """Return the file of a lab's index."""
    return lab.data_dir / ("" if isinstance(lab, Embedded) else "handlers") / "index.sqlite"


@contextlib.contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """Another process writes and does not come to an end."""
    other = sqlite3.connect(index_of(lab), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextlib.contextmanager
def full(pids: list[int], at_bytes: int) -> Iterator[None]:
    """No file of these processes grows beyond some bytes: to them, as if the disk were full."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("how", "code"), [("locked", "index_busy"), ("full", "index_unwritable")])
def test_an_index_that_takes_nothing_is_said_and_got_over(lab: Lab, how: str, code: str) -> None:
    """503 with Retry-After and a code; what was uploaded meanwhile is done afterwards."""
    key = f"{how}.mp4"
    pid = lab.pid if isinstance(lab, Embedded) else lab.pid("handlers")  # type: ignore[attr-defined]
    with locked(lab) if how == "locked" else full([pid], 4096):
        labs.put(lab, key, labs.asks())
        answer = lab.http.post("/upload", json={"filename": "a.mp4"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
        assert int(answer.headers["Retry-After"]) > 0
        told = lab.http.post(
            "/events",
            json={"Records": [created(key)]},
            headers={"Authorization": f"Bearer {lab.events_token}"},
        )
        assert (told.status_code, told.json()["error"]["code"]) == (503, code)
        assert int(told.headers["Retry-After"]) > 0
        # Reading goes on.
        assert lab.http.get("/files").status_code == 200
        assert lab.http.get("/healthz").status_code == 200
    assert labs.result(lab, key)["state"] == "succeeded"
    lab.file(key, "ready")
    with contextlib.closing(sqlite3.connect(index_of(lab))) as index:
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def created(key: str) -> dict[str, Any]:
    """Return an event as MinIO sends it."""
    told = {"key": key, "eTag": "0" * 32, "size": 1, "sequencer": "1"}
    return {
        "eventSource": "minio:s3",
        "eventName": "s3:ObjectCreated:Put",
        "s3": {"bucket": {"name": "videos"}, "object": told},
    }


def test_a_full_scratch_disk_holds_jobs_up_and_fails_none(servers: Servers) -> None:
    """Neither ingest nor inference gives a video up for want of space; they go on with space."""
    labs.put(servers, "space.mp4", labs.asks())
    labs.result(servers, "space.mp4")
    workers = [*servers.names("worker-gpu"), *servers.names("worker-cpu")]
    found = subprocess.run(
        ["pgrep", "-g", ",".join(str(servers.pid(name)) for name in workers)],
        capture_output=True,
        text=True,
        check=True,
    )
    with full([int(pid) for pid in found.stdout.split()], 8 << 20):
        labs.put(servers, "scratch.mp4", labs.asks(), labs.film(12 << 20))
        servers.until(
            lambda: "is the disk of POSEDROP_SCRATCH_DIR full?" in servers.worker_logs(),
            "a worker to say so",
        )
    assert labs.result(servers, "scratch.mp4")["state"] == "succeeded"
