"""A worker's record: there while it lives, bounded, gone at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.workers import WorkerRecord
from posedrop.errors import StorageError
from posedrop.settings import Settings, load
from tests.support.memory_storage import RESULTS, Clock, MemoryStorage
from worker.jobs.claim import Claim, take
from worker.own_record import MAX_SPEEDS, OwnRecord

RUN = "day1/a.mp4/dummy-abcdefghijklmnop"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A heart that beats fast."""
    return load(tmp_path, {"heartbeat_seconds": 0.01, "lease_seconds": 0.06, "device": "cuda"})


@pytest.fixture
def storage() -> MemoryStorage:
    """The buckets."""
    return MemoryStorage(Clock())


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def told(storage: MemoryStorage) -> list[WorkerRecord]:
    """What the bucket has of workers."""
    objects = dict(storage.buckets[RESULTS])
    return [
        WorkerRecord.model_validate_json(stored.data)
        for key, stored in objects.items()
        if key.startswith(layout.WORKERS)
    ]


def test_it_says_what_the_worker_is_at_and_goes_with_it(
    storage: MemoryStorage, settings: Settings
) -> None:
    """Its queues, its device, its job with how far it is, its speeds, its log; then nothing."""
    own = OwnRecord(storage, settings, "host-1", storage.clock)
    own.start({"gpu"})
    until(lambda: told(storage), "the first record")
    (record,) = told(storage)
    assert (record.name, record.queues, record.device, record.jobs) == (
        "host-1", ["gpu"], "cuda", [],
    )  # fmt: skip
    assert {"posedrop", "python", "torch", "analysis dummy"} <= record.versions.keys()
    held = take(
        storage,
        RESULTS,
        layout.Run(RUN),
        "infer",
        worker="host-1",
        lease_seconds=60,
        max_attempts=3,
        now=storage.clock(),
    )
    assert isinstance(held, Claim)
    model = ModelRef(name="mouse", digest="0" * 64)
    with own.at(held, "day1/a.mp4", RUN):
        held.progress(Progress(stage="infer", done=7, total=9, frames_per_second=3.5))
        own.runs_on("cuda:0")
        own.measured("deeplabcut_2d", model, (640, 480), "network", 900, 10.0)
        logging.getLogger("worker.jobs.lifecycle").warning("attempt begins\nand has two lines")
        until(lambda: told(storage)[0].jobs and told(storage)[0].speeds, "the job")
        until(lambda: "two lines" in told(storage)[0].log_tail, "the log")
        (record,) = told(storage)
        (job,) = record.jobs
        assert (job.task, job.run, job.key, job.attempt) == ("infer", RUN, "day1/a.mp4", 1)
        assert (job.progress.done, job.progress.frames_per_second) == (7, 3.5)
        assert record.device == "cuda:0"
        assert record.log_tail.count("\n") == 0
    until(lambda: not told(storage)[0].jobs, "the job's end")
    assert own.frames_per_second("deeplabcut_2d", model, (640, 480)) == 90.0
    assert own.frames_per_second("deeplabcut_2d", model, (320, 240)) is None
    own.stop()
    assert told(storage) == []
    own.start({"gpu"})
    time.sleep(0.05)
    assert told(storage) == []


def test_it_is_bounded_whatever_is_logged_and_measured(
    storage: MemoryStorage, settings: Settings
) -> None:
    """Long lines, tracebacks, a thousand sizes of frames, quotes that JSON makes longer."""
    own = OwnRecord(storage, settings, "h" * 1000, storage.clock)
    own.start({"cpu", "gpu"})
    for number in range(1000):
        own.measured("deeplabcut_2d", None, (number, 1), "network", 1000, 10.0)
    for _ in range(150):
        error = ValueError('"\\\x00\udcff' * 200)
        logging.getLogger("worker.child.child").error("\u2028" * 1000, exc_info=error)
    record = own.record()
    assert len(record.to_json()) < 2**16
    assert [speed.width for speed in record.speeds] == list(range(1000 - MAX_SPEEDS, 1000))
    assert WorkerRecord.model_validate_json(record.to_json()) == record
    own.stop()


def test_a_store_that_is_away_hurts_nobody(
    storage: MemoryStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written again when the store is back."""
    own = OwnRecord(storage, settings, "host-1", storage.clock)
    calls: list[str] = []

    def away(*_: object) -> None:
        calls.append("write")
        raise StorageError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", away)
        own.start({"gpu"})
        until(lambda: len(calls) > 2, "some tries")
    until(lambda: told(storage), "the record")
    monkeypatch.setattr(storage, "delete", away)
    own.stop()
    assert len(told(storage)) == 1
