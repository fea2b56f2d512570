"""A locked index and full disks: an error that says so, a retry, and no restart."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posedrop.errors import RefusedVideoError, StorageError
from tests.support import labs
from tests.support.lab import Embedded, Lab, Servers
from worker import room
from worker.cache import Cache


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB, of memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={24 << 20}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this machine lets nobody but root mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_scratch_disk_smaller_than_the_cache_is_no_end(small_disk: Path, tmp_path: Path) -> None:
    """Ten films larger than it together all end; one that it can never hold is refused in words."""
    lab = labs.embedded(tmp_path / "data", scratch_dir=str(small_disk / "scratch")).start()
    keys = [f"film{number}.mp4" for number in range(10)]
    for key in keys:
        labs.put(lab, key, labs.asks(), labs.film(5 << 20))
    labs.put(lab, "large.mp4", labs.asks(), labs.film(25 << 20))
    assert {labs.result(lab, key)["state"] for key in keys} == {"succeeded"}
    refused = lab.file("large.mp4", "refused")
    assert refused["refusal"]["reason"] == "no_room"
    assert "POSEDROP_SCRATCH_DIR" in refused["refusal"]["message"]
    assert lab.stop() == 0


def test_a_stack_starts_on_a_disk_that_a_killed_worker_has_filled(small_disk: Path) -> None:
    """What it left goes before anything that needs room is started."""
    lab = labs.embedded(small_disk / "data").start()
    lab.kill()
    left = small_disk / "data" / "scratch" / "worker-killed"
    left.mkdir()
    (left / ".lock").touch()
    with contextlib.suppress(OSError), (left / "film").open("wb", buffering=0) as film:
        while film.write(bytes(4096)):
            pass
    assert shutil.disk_usage(small_disk).free == 0
    lab.start()
    assert not left.exists()
    lab.kill()


def test_what_fills_a_disk_alone_is_too_large_for_it(small_disk: Path) -> None:
    """A child is believed where the disk is full; kept videos give way, and other jobs wait."""
    cache = Cache(small_disk / "cache", 1 << 40)
    for name, kept in (("held", 4), ("kept", 2), ("much", 7)):
        source = small_disk / name
        source.write_bytes(bytes(kept << 20))
        cache.keep_video(name, source)
        if name != "held":
            source.unlink()
    assert sorted(path.name for path in (small_disk / "cache/videos").iterdir()) == ["held", "kept"]
    room.check_child(small_disk)  # not full, whatever a child says
    (one, other) = (small_disk / "worker-a/job-1", small_disk / "worker-b/job-2")
    for job, share in ((one, 13), (other, 5)):
        job.mkdir(parents=True)
        (job / "video").write_bytes(bytes(share << 20))

    def fetch() -> int:
        try:
            return (one / "more").write_bytes(bytes(1 << 20))
        except OSError as error:
            raise StorageError("full", code="scratch_unwritable") from error

    assert room.fetch_with_room(cache, fetch) == 1 << 20  # in the room of what was kept
    with pytest.raises(StorageError) as waits:
        room.check_child(small_disk)
    assert waits.value.code == "scratch_unwritable"
    shutil.rmtree(other)
    (one / "more").write_bytes(bytes(5 << 20))
    with pytest.raises(RefusedVideoError, match="POSEDROP_SCRATCH_DIR") as final:
        room.check_child(small_disk)
    assert final.value.code == "no_room"
    assert (small_disk / "cache/videos/held").exists()
