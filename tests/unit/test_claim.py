"""Claims: who works on a run, on a store that plays AWS."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from posedrop.buckets.layout import Run
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.runs import RunError, Task
from posedrop.buckets.storage import Storage
from worker.jobs import claim
from worker.jobs.claim import Busy, Claim, Exhausted, Over


def take(
    storage: Storage, bucket: str, task: Task = "infer", lease: float = 60
) -> Claim | Busy | Over | Exhausted:
    """Claim the run called `run`."""
    return claim.take(
        storage,
        bucket,
        Run("run"),
        task,
        worker="me",
        lease_seconds=lease,
        max_attempts=3,
        now=datetime.now(UTC),
    )


def held(found: object) -> Claim:
    """Return what must be a claim."""
    assert isinstance(found, Claim)
    return found


def test_one_of_many_gets_the_claim(storage: Storage, bucket: str) -> None:
    """Of eight workers at the same moment one works, the others go on to something else."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: take(storage, bucket), range(8)))
    assert sorted(type(one).__name__ for one in found) == ["Busy"] * 7 + ["Claim"]


def test_a_silent_attempt_is_taken_over(storage: Storage, bucket: str) -> None:
    """Within the lease a run is busy; after it the next attempt begins, and the first has lost."""
    storage.write(bucket, "run/request.json", b"{}")
    first = held(take(storage, bucket))
    assert isinstance(take(storage, bucket), Busy)
    second = held(take(storage, bucket, lease=-1))
    assert second.number == 2
    first.look()
    second.look()
    assert (first.lost, second.lost) == (True, False)


def test_render_follows_infer_without_waiting(storage: Storage, bucket: str) -> None:
    """An attempt that says it is done needs no lease to run out."""
    held(take(storage, bucket)).end("done")
    second = held(take(storage, bucket, "render"))
    assert (second.number, second.task) == (2, "render")


def test_an_attempt_after_a_lost_one_knows_it(storage: Storage, bucket: str) -> None:
    """It asks no card for help, whose driver may have hung. Handing back is no loss, and each half
    of a run has losses of its own.
    """
    held(take(storage, bucket)).end("handed_back")
    first = held(take(storage, bucket))
    assert first.is_first
    second = held(take(storage, bucket, lease=-1))
    assert not second.is_first
    second.end("done")
    drawing = held(take(storage, bucket, "render"))
    assert drawing.is_first
    drawing.end("failed", RunError(code="child_died", message="timeout"))
    assert not held(take(storage, bucket, "render")).is_first


def test_a_slow_heartbeat_does_not_write_over_the_end(
    storage: Storage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was on its way to the store says no longer that the attempt is alive."""
    storage.write(bucket, "run/request.json", b"{}")
    mine = held(take(storage, bucket))
    writes = storage.write
    beats, goes_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        if threading.current_thread() is not ender:
            beats.set()
            goes_on.wait()
        writes(*args)

    ender = threading.Thread(target=mine.end, args=("done",))
    monkeypatch.setattr(storage, "write", slow)
    with mine.beating(0.01):
        beats.wait()
        ender.start()
        ender.join(0.1)
        goes_on.set()
        ender.join()
    attempt = storage.read_record(bucket, "run/attempts/1.json", Attempt)
    assert attempt is not None
    assert attempt.outcome == "done"


def test_three_failures_are_enough(storage: Storage, bucket: str) -> None:
    """After three attempts that failed or died the run is given up, with what is known."""
    held(take(storage, bucket)).end("failed", RunError(code="child_died", message="SIGSEGV"))
    held(take(storage, bucket))
    held(take(storage, bucket, lease=-1)).end(
        "failed", RunError(code="child_died", message="killed")
    )
    found = take(storage, bucket)
    assert isinstance(found, Exhausted)
    assert found.last.error == RunError(code="child_died", message="killed")


def test_a_long_run_outlives_machines_that_go_down_in_days(storage: Storage, bucket: str) -> None:
    """A worker that died after it had kept a part of its work is none of three; of ten it is."""
    storage.write(bucket, "run/request.json", b"{}")
    for number in range(1, 13):
        attempt = held(take(storage, bucket, lease=-1))
        assert attempt.number == number
        if number not in {3, 7}:
            attempt.keep(2)
        with attempt.beating(0.01):
            until_it_has_told(storage, bucket, attempt)
    assert isinstance(take(storage, bucket), Busy)
    found = take(storage, bucket, lease=-1)
    assert isinstance(found, Exhausted)
    assert (found.counted, found.last.kept) == (12, 2)


def until_it_has_told(storage: Storage, bucket: str, attempt: Claim) -> None:
    """Wait until the record of an attempt is newer than its claim."""
    for _ in range(500):
        told = storage.read_record(bucket, f"run/attempts/{attempt.number}.json", Attempt)
        if told is not None and told.beat:
            return
        time.sleep(0.01)
    raise AssertionError("it has not told")


def test_a_run_that_was_handed_back_is_not_a_failure(storage: Storage, bucket: str) -> None:
    """However often posedrop is stopped, its runs are not given up for it."""
    for number in range(1, 6):
        attempt = held(take(storage, bucket))
        assert attempt.number == number
        attempt.end("handed_back")


def test_a_finished_run_is_over(storage: Storage, bucket: str) -> None:
    """Who comes after result.json does nothing."""
    storage.write(bucket, "run/result.json", b"{}")
    assert isinstance(take(storage, bucket), Over)


def test_the_heartbeat_tells_progress_and_hears_of_a_cancel(storage: Storage, bucket: str) -> None:
    """While a worker works, its attempt's object is rewritten and a cancel reaches it."""
    storage.write(bucket, "run/request.json", b"{}")
    attempt = held(take(storage, bucket))
    storage.write(bucket, "run/cancel", b"")
    with attempt.beating(0.02):
        attempt.stage("infer")
        while not attempt.cancelled:
            pass
    attempt.end("done")
    record = storage.read_record(bucket, "run/attempts/1.json", Attempt)
    assert record is not None
    assert (record.progress.stage, record.outcome) == ("infer", "done")
    assert record.beat > 0


def test_deleting_a_run_stops_its_worker(storage: Storage, bucket: str) -> None:
    """A run whose request is gone is no longer anybody's."""
    attempt = held(take(storage, bucket))
    attempt.look()
    assert attempt.lost


@pytest.mark.parametrize(
    ("code", "every", "lasts", "count", "ends"),
    [
        ("not_started", 30, 0, 20, False),  # ten minutes without memory for a process
        ("not_started", 60, 0, 62, True),
        ("storage", 1000, 940, 11, True),  # a download that is cut at each quarter of an hour
        ("storage", 36_000, 1200, 11, False),
        ("storage", 1000, 0, 11, False),  # what failed at once, another time, had another cause
        ("child_died", 30, 0, 10, True),
    ],
)
def test_what_may_pass_has_an_hour(
    code: str, every: float, lasts: float, count: int, ends: bool
) -> None:
    """What the machine or the store cuts short ends a run by how long, and why."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    unlucky = [
        Attempt(
            number=number,
            task="render",
            worker="w",
            started_at=now + timedelta(seconds=number * every),
            ended_at=now + timedelta(seconds=number * every + lasts),
            progress=Progress(stage="fetch"),
            outcome="handed_back",
            error=RunError(code=code, message="no"),
        )
        for number in range(1, count + 1)
    ]
    assert claim.are_too_many(unlucky) == ends
