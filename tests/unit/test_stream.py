"""What open pages are told, by the API's own server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest

from handlers import stream as stream_module
from handlers.app import create_app
from handlers.context import LOOK_SECONDS
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.workers import Speed, WorkerJob, WorkerRecord
from posedrop.buckets.storage import Listing, Storage
from posedrop.index.index import Index
from posedrop.settings import Settings
from posedrop.transport import queue
from tests.support.index_rows import request_of, result_of, run_of, video_record
from tests.support.samples import PROBE
from tests.support.serving import serving

Event = tuple[str, Any, str]


@contextmanager
def listening(url: str, last_id: str | None = None) -> Iterator[Iterator[Event]]:
    """Yield the events that a listener is told: name, data, id."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.stream("GET", f"{url}/stream", headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Event]:
    said: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            said[name] = value
        elif "event" in said:
            yield said["event"], json.loads(said["data"]), said.get("id", "")
            said = {}


def until(events: Iterator[Event], name: str) -> Event:
    """Return the next event of a name."""
    return next(event for event in events if event[0] == name)


class Live(NamedTuple):
    """The API as pages have it."""

    url: str
    index: Index
    storage: Storage
    settings: Settings


@pytest.fixture
def live(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The API, with the index that it has."""
    # The store is that of other tests, too; a sweep of a bucket that is not there removes no rows.
    settings = settings.model_copy(
        update={"videos_bucket": "streamed-videos", "results_bucket": "streamed-results"}
    )
    storage, index = Storage(settings), Index(settings.index_file)
    storage.create_bucket(settings.results_bucket)
    for found in storage.objects(settings.results_bucket):
        storage.delete(settings.results_bucket, [found.key])
    monkeypatch.setattr("handlers.app._index", lambda _: index)
    with serving(create_app(settings, queue.connect("stub://"))) as url:
        yield Live(url, index, storage, settings)


def test_a_change_is_told_to_all_and_nothing_is_missed_in_between(live: Live) -> None:
    """A listener is told of runs and films as they change, and what it missed when it is back.

    Who was away for longer, or comes to another process, is told to read the lists anew.
    """
    index, url = live.index, live.url
    with listening(url) as first, listening(url) as second:
        assert next(first)[0] == next(second)[0] == "fresh"
        index.file_ingested(video_record(1))
        assert until(first, "files")[1]["items"][0]["key"] == "day1/mouse_1.mp4"
        index.analysis_requested(request_of(1), run_of(1))
        for each in (first, second):
            _, data, last = until(each, "runs")
            assert [(run["key"], run["status"]) for run in data["items"]] == [
                ("day1/mouse_1.mp4", "queued")
            ]
        index.analysis_finished(result_of(1), run_of(1))
        until(first, "runs")
        index.analysis_removed(result_of(1).analysis_id)
        until(first, "runs")
        with listening(url, last) as back:
            assert until(back, "runs")[1]["items"][0]["status"] == "succeeded"
            assert until(back, "runs")[1]["gone"] == [result_of(1).analysis_id]
        for stranger in ("another.1", "x", last.partition(".")[0] + ".999999"):
            with listening(url, stranger) as back:
                assert next(back)[0] == "fresh"
    with listening(url, last) as back:
        assert next(back)[0] == "fresh"


def test_what_a_transaction_takes_back_is_not_told(live: Live) -> None:
    """Changes are told once they are on disk, and only then; of many, that there are many."""
    with listening(live.url) as events:
        next(events)
        with suppress(RuntimeError), live.index.together():
            live.index.file_ingested(video_record(7))
            raise RuntimeError
        live.index.file_ingested(video_record(8))
        assert [item["key"] for item in until(events, "files")[1]["items"]] == ["day1/mouse_8.mp4"]
        with live.index.together():
            for number in range(300):
                live.index.file_ingested(video_record(1000 + number))
        assert next(event for event in events if event[0] in {"files", "fresh"})[0] == "fresh"


def test_progress_of_all_runs_is_told_at_once_by_the_workers_records(live: Live) -> None:
    """How far runs are, until when, and in which order the others come, with their estimates."""
    index = live.index
    for number in range(3):
        index.file_ingested(video_record(number))
        index.analysis_requested(request_of(number), run_of(number))
    ids = [request_of(number).analysis_id for number in range(3)]
    now = datetime.now(UTC)
    job = WorkerJob(
        task="infer",
        key="day1/mouse_0.mp4",
        run=run_of(0),
        attempt=1,
        started_at=now,
        progress=Progress(stage="infer", done=100, total=300, frames_per_second=10),
    )
    speed = Speed(
        analysis="deeplabcut_2d",
        model=request_of(0).model,
        width=PROBE.width,
        height=PROBE.height,
        frames_per_second=PROBE.frames / 50,
        frames=300,
        measured_at=now,
    )
    record = WorkerRecord(
        worker_id="w", name="w", started_at=now, queues=["gpu"], device="cpu", jobs=[job],
        speeds=[speed],
    )  # fmt: skip
    results = live.settings.results_bucket
    live.storage.write(results, layout.worker("w"), record.to_json())
    with listening(live.url) as events:
        # Both as whole seconds.
        _, progress, _ = next(each for each in events if each[0] == "progress" and each[1])
        assert [(each["id"], each["done"], each["total"]) for each in progress] == [
            (ids[0], 100, 300)
        ]
        ends_at = datetime.fromisoformat(progress[0]["ends_at"])
        assert abs((ends_at - now).total_seconds() - 20) < 15
        _, told, _ = next(each for each in events if each[0] == "queue" and each[1]["runs"])
        runs = {run["id"]: run for run in told["runs"]}
        assert (told["gpu_workers"], [run["waits"] for run in told["runs"]].count(True)) == (1, 2)
        ahead = [datetime.fromisoformat(runs[name]["ends_at"]) for name in ids[1:]]
        assert [round((later - ends_at).total_seconds(), -1) for later in ahead] == [50, 100]


def test_a_slow_store_holds_up_no_change(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers do waits for the store's answer, once and for no longer than a person would."""
    answers, asked, listing = threading.Event(), threading.Event(), Storage.listing
    waits: list[float] = []
    late: list[str] = []

    def slow(self: Storage, bucket: str, prefix: str) -> Listing:
        # Those of the event loop: others of the handlers' threads look for workers, too, and a
        # server of a test that failed before may still be there.
        its = (bucket, prefix) == (live.settings.results_bucket, layout.WORKERS)
        if its and threading.current_thread().name.startswith("AnyIO"):
            waits.append(self._client.meta.config.read_timeout)
            asked.set()
            if not answers.wait(20):
                late.append(prefix)
        return listing(self, bucket, prefix)

    monkeypatch.setattr(Storage, "listing", slow)
    with listening(live.url) as events:
        next(events)
        try:
            assert asked.wait(30)
            for number in (21, 22, 23):
                live.index.file_ingested(video_record(number))
                (item,) = until(events, "files")[1]["items"]
                assert item["key"] == f"day1/mouse_{number}.mp4"
                assert (waits, late) == ([LOOK_SECONDS], [])
                time.sleep(stream_module.TICK_SECONDS)
        finally:
            answers.set()
        assert until(events, "queue")


def test_a_listener_is_one_of_few_and_the_server_ends_with_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many is refused in words; whoever leaves makes room; the end of all is no wait."""
    monkeypatch.setattr(stream_module, "MOST_LISTENERS", 2)
    with serving(create_app(settings, queue.connect("stub://"))) as url:
        with listening(url) as first, listening(url) as second:
            next(first), next(second)
            refused = httpx.get(f"{url}/stream")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        left = threading.Event()
        while not left.is_set():
            with httpx.stream("GET", f"{url}/stream") as answer:
                if answer.status_code == 200:
                    left.set()
        with httpx.stream("GET", f"{url}/stream", timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            threads = threading.active_count()
            monkeypatch.setattr(stream_module, "MOST_LISTENERS", 20)
            with ExitStack() as others:
                for _ in range(19):
                    asked = httpx.stream("GET", f"{url}/stream", timeout=30)
                    next(others.enter_context(asked).iter_lines())
                assert threading.active_count() < threads + 10  # those for calls may be new
    # The block above ended although a client listened: serving waits for the server's end.
