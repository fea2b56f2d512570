"""The follower: batches of events against events one at a time, bad events, and crashes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.context import Context
from handlers.events import follow, notify
from posedrop.buckets import layout
from posedrop.buckets.records.record import Record
from posedrop.buckets.records.requests import PendingRequest, Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.videos import Refusal, VideoRecord, VideoRef
from posedrop.buckets.records.workers import WorkerRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.index.index import Index
from posedrop.settings import load
from posedrop.transport import queue
from posedrop.transport.events import Event, ObjectCreated, ObjectRemoved
from tests.support.memory_storage import RESULTS, VIDEOS, MemoryStorage, Stored
from tests.support.samples import PROBE

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
#: Two names under one file_id: the row is the one's or the other's.
SAME_FILE = [f"uploads/aaaaaaaaaaaaaaaa/{name}.mp4" for name in ("one", "two")]
PLAIN = [f"day1/mouse_{number}.mp4" for number in range(4)]
DIGEST = "0" * 64


def _put(storage: MemoryStorage, key: str, **metadata: str) -> None:
    """Lay a film down."""
    storage.put(VIDEOS, key, b"film " + key.encode(), metadata)


def _put_record(storage: MemoryStorage, key: str, record: Record) -> None:
    """Lay a record down in the results bucket."""
    storage.put(RESULTS, key, record.to_json())


def _ref(key: str) -> VideoRef:
    file_id = layout.file_id_of(VIDEOS, key)
    etag = hashlib.md5(b"film " + key.encode(), usedforsecurity=False).hexdigest()
    return VideoRef(file_id=file_id, bucket=VIDEOS, key=key, etag=etag, size=20)


def _ingested(key: str, **more: Any) -> VideoRecord:
    return VideoRecord(
        video=_ref(key),
        last_modified=NOW,
        ingested_at=NOW,
        sha256=layout.make_id(key) * 4,
        probe=PROBE,
        **more,
    )


def _request(key: str, analysis_id: str) -> Request:
    return Request(
        analysis_id=analysis_id,
        analysis="dummy",
        analysis_version="1",
        args={},
        video=_ref(key),
        sha256=DIGEST,
        probe=PROBE,
        asked_by="api",
        created_at=NOW,
    )


def _result(key: str, analysis_id: str) -> Result:
    return Result(
        analysis_id=analysis_id,
        analysis="dummy",
        state="succeeded",
        video=_ref(key),
        sha256=DIGEST,
        args={},
        created_at=NOW,
        finished_at=NOW,
    )


def _stocked() -> MemoryStorage:
    """Return a store with videos in all states: new, ready, refused, asked about, run, removed."""
    storage = MemoryStorage()
    storage.clock.time = NOW
    for key in PLAIN:
        _put(storage, key, analysis="dummy", args='{"seconds": 1}')
    for key in SAME_FILE:
        _put(storage, key)
    storage.put(VIDEOS, "day1/posedrop.json", b"{}")
    ready, refused, asked, _ = PLAIN
    metadata = {"analysis": "dummy", "args": '{"seconds": 1}'}
    _put_record(storage, layout.video_record(ready), _ingested(ready, metadata=metadata))
    refusal = Refusal(reason="empty", message="the file is empty")
    _put_record(
        storage,
        layout.video_record(refused),
        _ingested(refused).model_copy(update={"refusal": refusal, "probe": None, "sha256": None}),
    )
    _put_record(storage, layout.video_record(asked), _ingested(asked))
    question = PendingRequest(
        pending_id="q" * 16,
        file_id=_ref(asked).file_id,
        key=asked,
        analysis="dummy",
        args={"seconds": 2},
        created_at=NOW,
    )
    _put_record(storage, layout.pending_request(asked, "q" * 16), question)
    for letter, names in {"r": ("request",), "s": ("request", "result"), "t": ("result",)}.items():
        run = layout.Run(layout.run_prefix(ready, "dummy", letter * 16))
        if "request" in names:
            _put_record(storage, run.request, _request(ready, letter * 16))
        if "result" in names:
            _put_record(storage, run.result, _result(ready, letter * 16))
        storage.put(RESULTS, run.attempt(1), b"{}")
    return storage


def _news() -> list[Event]:
    """Return that each object was written and removed, as were some that are no longer there."""
    gone = [(VIDEOS, "day1/gone.mp4"), (RESULTS, f"{PLAIN[0]}/dummy-{'t' * 16}/{layout.REQUEST}")]
    news: list[Event] = []
    stored = [(bucket, key) for bucket, held in _stocked().buckets.items() for key in held]
    for bucket, key in [*sorted(stored), *gone]:
        news.append(ObjectCreated(bucket, key, "etag", None, "1", NOW))
        news.append(ObjectRemoved(bucket, key, "2", NOW))
    return news


def _context(folder: Path, storage: MemoryStorage) -> Context:
    given = {"s3_endpoint": "http://127.0.0.1:1", "default_analysis": "dummy"}
    index = Index(folder / "index.sqlite")
    for number in range(20):  # which have room for all
        worker = WorkerRecord(
            worker_id=str(number), name="", started_at=NOW, queues=["gpu"], device=""
        )
        _put_record(storage, layout.worker(str(number)), worker)
    return Context(load(folder, given), storage, index, queue.connect("stub://"))


def _messages(context: Context) -> set[tuple[str, str]]:
    """Return what waits in the queues, each message once: a second one changes nothing."""
    assert isinstance(context.broker, StubBroker)
    bodies = [
        json.loads(body) for queued in context.broker.queues.values() for body in queued.queue
    ]
    return {(body["actor_name"], json.dumps(body["kwargs"], sort_keys=True)) for body in bodies}


def _index(context: Context) -> list[dict[str, Any]]:
    """Return what the index knows, without the moments at which this test happened to run."""
    rows: list[Any] = [*context.index.files(limit=1000).rows]
    rows += context.index.analyses(limit=1000).rows
    rows += [context.index.pending("q" * 16)]
    known = [asdict(row) for row in rows if row is not None]
    for row in known:
        row["enqueued_at"] = row.get("enqueued_at") is not None
        row["created_at"] = min(row["created_at"], NOW)
    known.sort(key=lambda row: json.dumps(row, default=str, sort_keys=True))
    return [*known, context.index.counts()]


def _follow_all(context: Context) -> None:
    while follow.follow(context):
        pass


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    made = _context(tmp_path, _stocked())
    yield made
    made.index.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(len(_news()))),
    again=st.lists(st.integers(0, len(_news()) - 1), max_size=20),
    data=st.data(),
)
def test_a_batch_does_what_its_events_do_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    again: list[int],
    data: st.DataObject,
) -> None:
    """Whatever is late, doubled or shuffled, a batch leaves the same index and sends the same."""
    news = [_news()[number] for number in order]
    for number in again:
        event = _news()[number]
        place = data.draw(st.integers(0, len(news)))
        twin = {**asdict(event), "sequencer": f"again {place} {len(news)}"}
        news.insert(place, type(event)(**twin))
    outcomes = []
    for batches in ([[event] for event in news], [news]):
        context = _context(tmp_path_factory.mktemp("follow"), _stocked())
        for batch in batches:
            context.index.record_events(batch, NOW)
            _follow_all(context)
        outcomes.append((_index(context), _messages(context)))
        context.index.close()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("body", "letters"),
    [
        (["junk"] * 20_000, 101),
        ([{"Event": "s3:TestEvent"}] * 20_000, 0),
        ([[]] * 200_000, 1),
        ([0] * 200_000, 102),
        ([{"Records": [{}] * 50}] * 500, 101),
        ("[" * 988 + "]" * 988, 1),
        ([{"Message": "[" * 988 + "]" * 988}], 1),
    ],
)
def test_junk_by_the_thousand_is_kept_in_few_letters(
    context: Context, body: Any, letters: int
) -> None:
    """A notification of junk is bounded work; the event at its beginning is recorded all the same.

    20,000 parts that were no events were as many transactions; 988 levels ended the caller.
    """
    s3 = {"bucket": {"name": VIDEOS}, "object": {"key": "a.mp4", "size": 1, "eTag": "e"}}
    event = json.dumps({"eventName": "ObjectCreated:Put", "s3": s3})
    text = body if isinstance(body, str) else json.dumps(body)[1:-1]
    recorded = notify.record(context, f"[{event}, {text}]".encode())
    assert recorded == (0 if isinstance(body, str) else 1)
    assert len(context.index.dead_letters(1000)) == letters


def test_an_event_of_ten_thousand_objects_is_taken(context: Context) -> None:
    """As large as an event may be, nothing of it is left out."""
    s3 = {"bucket": {"name": VIDEOS}}
    records = [
        {"eventName": "ObjectCreated:Put", "s3": {**s3, "object": {"key": f"{n}.mp4", "size": 1}}}
        for n in range(10_000)
    ]
    assert notify.record(context, json.dumps({"Records": records}).encode()) == 10_000
    assert context.index.dead_letters() == []


def test_the_store_is_asked_once_about_a_key(context: Context) -> None:
    """Many events of one object are one question, and one message."""
    assert isinstance(context.storage, MemoryStorage)
    twins = [ObjectCreated(VIDEOS, PLAIN[3], "e", 1, str(number), NOW) for number in range(20)]
    context.index.record_events(twins, NOW)
    _follow_all(context)
    assert [(VIDEOS, PLAIN[3])] == context.storage.asked
    assert isinstance(context.broker, StubBroker)
    assert context.broker.queues["cpu"].qsize() == 1
    assert context.index.counts()["events"]["unhandled"] == 0


def test_a_bad_event_holds_up_no_other(context: Context) -> None:
    """What can't be read, and what can't be stored, waits alone; the others are done at once."""
    storage = context.storage
    assert isinstance(storage, MemoryStorage)
    unreadable, unstorable, *good = PLAIN
    storage.away.add((VIDEOS, unreadable))
    huge = Stored(b"", ObjectInfo(unstorable, "e", 2**70, NOW))
    storage.buckets[VIDEOS][unstorable] = huge
    created = [ObjectCreated(VIDEOS, key, "e", 1, "1", NOW) for key in PLAIN]
    context.index.record_events(created, NOW)
    _follow_all(context)
    assert {row.key for row in context.index.files().rows} == set(good)
    assert {key for _, key in _messages(context)} == {
        json.dumps({"bucket": VIDEOS, "etag": _ref(key).etag, "key": key}) for key in good
    }
    waiting = context.index.unhandled_events(10)
    assert [(row.key, row.tries) for row in waiting] == [(unreadable, 1), (unstorable, 1)]


def test_events_wait_for_a_broker_that_is_away(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are indexed without their messages, which are sent once the broker is back."""

    def refuse(*_: object, **__: object) -> None:
        raise queue.QueueError("the broker is away")

    context.index.record_events([ObjectCreated(VIDEOS, PLAIN[3], "e", 1, "1", NOW)], NOW)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "send", refuse)
        _follow_all(context)
    (row,) = context.index.files().rows
    (event,) = context.index.unhandled_events(10)
    assert (row.state, row.enqueued_at, event.tries, _messages(context)) == (
        "received",
        None,
        1,
        set(),
    )
    context.index.record_events([ObjectCreated(VIDEOS, PLAIN[3], "e", 1, "2", NOW)], NOW)
    _follow_all(context)
    assert len(_messages(context)) == 1


def test_the_follower_says_when_many_events_wait(context: Context) -> None:
    """Others may let them go first, from the first large batch until all are followed."""
    news = [ObjectCreated(VIDEOS, PLAIN[3], "e", 1, str(number), NOW) for number in range(100)]
    context.index.record_events(news, NOW)
    told: list[bool] = []
    calm = threading.Event()

    def set_busy(many: bool) -> None:
        told.append(many)
        if not many:
            calm.set()

    follower = follow.Follower(context, set_busy)
    follower.start()
    assert calm.wait(30)
    follower.stop()
    assert told[:3] == [True, True, False]


@pytest.mark.parametrize("step", ["file_enqueued", "events_handled"])
def test_a_process_that_dies_in_a_batch_forgets_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed after it sent, before it noted that: the events are followed again, to the end."""

    class KilledError(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def die(*_: object) -> None:
        raise KilledError

    context.index.record_events(_news(), NOW)
    with monkeypatch.context() as patch:
        patch.setattr(Index, step, die)
        with pytest.raises(KilledError):
            _follow_all(context)
    assert context.index.counts()["events"]["unhandled"] == len(_news())
    _follow_all(context)
    assert context.index.counts()["events"]["unhandled"] == 0
    received = context.index.files(state="received").rows
    assert received
    assert all(row.enqueued_at for row in received)
