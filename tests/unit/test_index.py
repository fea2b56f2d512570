"""The index tells what it was told, in whatever order, from any number of threads."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posedrop import index as index_module
from posedrop import rows, schema
from posedrop.errors import BadRequestError
from posedrop.events import Event, ObjectCreated, ObjectRemoved
from posedrop.index import AnalysisRow, Index, IndexBusyError
from posedrop.records import (
    Artefact,
    Asked,
    Duplicate,
    ModelRef,
    Probe,
    Refusal,
    Request,
    Result,
    RunError,
    VideoRecord,
    VideoRef,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BUCKET = "videos"
PROBE = Probe(
    codec="h264",
    pixel_format="yuv420p",
    width=640,
    height=480,
    fps=29.97,
    frames=300,
    frames_counted=True,
    duration=10.01,
    rotation=0,
    variable_frame_rate=False,
)
ERROR = RunError(code="out_of_memory", message="The GPU is full.", stage="infer")

Telling = Callable[[Index], object]


def _at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def _video(number: int = 0, *, version: int = 0, refused: bool = False) -> VideoRecord:
    return VideoRecord(
        video=VideoRef(
            file_id=f"file{number:012}",
            bucket=BUCKET,
            key=f"day1/mouse_{number}.mp4",
            etag=f"etag-{number}-{version}",
            size=100 + version,
        ),
        last_modified=_at(100 * version + number),
        ingested_at=_at(100 * version + number + 30.5),
        sha256=None if refused else f"{number:032}{version:032}",
        sha1=None if refused else f"{number:040}",
        probe=None if refused else PROBE,
        duplicate_of=None if refused else Duplicate(file_id="first", key="first.mp4"),
        refusal=Refusal(reason="not_a_video", message="This is a letter.") if refused else None,
        metadata={"analysis": "dummy"},
    )


def _request(number: int = 0) -> Request:
    video = _video(number)
    return Request(
        analysis_id=f"run{number:013}",
        analysis="deeplabcut_2d",
        analysis_version="1",
        args={"batch": 8, "model": "mäuse"},
        video=video.video,
        sha256="0" * 64,
        probe=PROBE,
        model=ModelRef(name="mice", digest="d" * 16),
        asked_by="api",
        created_at=_at(50 + number),
    )


def _result(number: int = 0, state: str = "succeeded") -> Result:
    request = _request(number)
    return Result.model_validate(
        {
            **request.model_dump(exclude={"probe", "asked_by", "analysis_version", "force"}),
            "state": state,
            "artefacts": [
                Artefact(
                    name="poses.h5", size=9, sha256="a" * 64, content_type="application/x-hdf5"
                )
            ],
            "frames_decoded": 300,
            "rows": 300,
            "error": ERROR if state == "failed" else None,
            "finished_at": _at(500 + number),
        }
    )


def _asked(number: int = 0) -> Asked:
    return Asked(
        pending_id=f"pending{number:09}",
        file_id=_video().video.file_id,
        key=_video().video.key,
        analysis="dummy",
        args={"seconds": 1},
        created_at=_at(number),
        force="again" if number else None,
    )


def _receive(index: Index, video: VideoRecord, **changes: datetime) -> None:
    index.file_received(
        bucket=video.video.bucket,
        key=video.video.key,
        file_id=video.video.file_id,
        etag=video.video.etag,
        size=video.video.size,
        metadata={"analysis": "dummy"},
        last_modified=changes.get("last_modified", video.last_modified),
    )


def _run(number: int = 0) -> str:
    return f"day1/mouse_{number}.mp4/deeplabcut_2d-run{number:013}"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "index.db", timeout=5)
    yield opened
    opened.close()


def _everything(index: Index) -> object:
    """Return all that can be asked of a small index, to compare two of them."""
    files = index.files(limit=1000).rows
    return (
        files,
        index.analyses(limit=1000).rows,
        [index.pending(_asked(n).pending_id) for n in range(3)],
        index.pending_open(),
        [index.files(query=word).rows for word in ("mouse", "day1", "mp4")],
        [index.analyses(query=word).rows for word in ("mouse", "deeplabcut")],
        index.counts(),
    )


# --- files


def test_way_of_a_file(index: Index) -> None:
    """A file is expected, received and ready, and keeps what each step told."""
    video = _video()
    file_id = video.video.file_id
    index.expect_file(
        file_id, BUCKET, video.video.key, _at(-60), size=7, metadata={"analysis": "x"}
    )
    expected = index.file(file_id)
    assert expected is not None
    assert (expected.state, expected.size, expected.filename) == ("expected", 7, "mouse_0.mp4")

    _receive(index, video)
    received = index.file(file_id)
    assert received is not None
    assert (received.state, received.etag, received.size) == ("received", "etag-0-0", 100)
    assert received.last_modified == video.last_modified == received.created_at

    index.file_ingested(video)
    ready = index.file_by_key(BUCKET, video.video.key)
    assert ready is not None
    assert (ready.state, ready.probe, ready.sha256) == ("ready", PROBE, video.sha256)
    assert (ready.duplicate_of, ready.metadata) == ("first", {"analysis": "dummy"})
    assert ready.updated_at == video.ingested_at

    index.file_removed(file_id)
    assert index.file(file_id) is None
    assert index.files(query="mouse").rows == []


def test_refusal(index: Index) -> None:
    """A refused file has its reason and its message."""
    index.file_ingested(_video(refused=True))
    row = index.file(_video().video.file_id)
    assert row is not None
    assert (row.state, row.refusal_reason, row.refusal_message) == (
        "refused",
        "not_a_video",
        "This is a letter.",
    )


def test_late_expectation_and_late_arrival_change_nothing(index: Index) -> None:
    """What was ready stays ready when its earlier steps are told again."""
    video = _video()
    index.file_ingested(video)
    before = index.file(video.video.file_id)
    index.expect_file(video.video.file_id, BUCKET, video.video.key, _at(999))
    _receive(index, video)
    # A listing tells the time of an object in milliseconds, HEAD in seconds.
    _receive(index, video, last_modified=video.last_modified + timedelta(milliseconds=700))
    assert before == index.file(video.video.file_id)


def test_replaced_object_is_received_anew(index: Index) -> None:
    """Other bytes under the key make it a new file, which has not been enqueued; old news don't."""
    old, new = _video(version=0), _video(version=1)
    index.file_ingested(old)
    index.file_enqueued(old.video.file_id, NOW)
    _receive(index, new)
    row = index.file(new.video.file_id)
    assert row is not None
    assert (row.state, row.etag, row.probe, row.enqueued_at) == ("received", "etag-0-1", None, None)
    _receive(index, old)
    index.file_ingested(old)
    assert row == index.file(new.video.file_id)


def test_of_two_objects_in_one_second_the_one_told_last_is_taken(index: Index) -> None:
    """Times of one second don't tell which of two versions is newer, so the last word counts."""
    first, second = _video(version=0), _video(version=1)
    for video in (second, first, second):
        _receive(index, video, last_modified=NOW)
    row = index.file(first.video.file_id)
    assert row is not None
    assert row.etag == second.video.etag


def test_enqueued_is_kept_over_ingest(index: Index) -> None:
    """When a file was enqueued is known until its object is replaced."""
    video = _video()
    _receive(index, video)
    index.file_enqueued(video.video.file_id, _at(2))
    index.file_enqueued(video.video.file_id, _at(1))
    index.file_ingested(video)
    row = index.file(video.video.file_id)
    assert row is not None
    assert row.enqueued_at == _at(2)


def test_a_file_is_planned_once_for_its_bytes(index: Index) -> None:
    """From its ingest on it is to be planned; what replaces it is to be planned anew."""
    first, second = _video(), _video(version=1)
    _receive(index, first)
    assert index.files_unplanned() == []
    index.file_ingested(first)
    assert [row.etag for row in index.files_unplanned()] == [first.video.etag]
    index.file_planned(first.video.file_id, "of other bytes")
    assert len(index.files_unplanned()) == 1
    index.file_planned(first.video.file_id, first.video.etag)
    index.file_ingested(first)
    assert index.files_unplanned() == []
    index.file_ingested(second)
    assert [row.etag for row in index.files_unplanned()] == [second.video.etag]


def test_first_with_content(index: Index) -> None:
    """Of several files with the same content the one that arrived first is found."""
    for number in (3, 1, 2):
        index.file_ingested(_video(number).model_copy(update={"sha256": "c" * 64}))
    found = index.first_with_content("c" * 64)
    assert found is not None
    assert found.file_id == _video(1).video.file_id
    assert index.first_with_content("e" * 64) is None


# --- lists


def test_pages_show_each_row_once_newest_first(index: Index) -> None:
    """All pages together are the list, also while new files arrive between two of them."""
    for number in range(25):
        index.file_ingested(_video(number))
    seen: list[str] = []
    cursor = None
    for arriving in itertools.count(100):
        page = index.files(cursor=cursor, limit=4)
        seen += [row.file_id for row in page.rows]
        index.file_ingested(_video(arriving))
        cursor = page.cursor
        if cursor is None:
            break
    expected = [_video(number).video.file_id for number in reversed(range(25))]
    assert expected == seen


def test_many_files_of_one_moment_are_all_listed(index: Index) -> None:
    """Files that arrived in the same millisecond don't take each other's place."""
    for number in range(400):
        _receive(index, _video(number), last_modified=NOW)
    assert len(index.files(limit=1000).rows) == 400
    pages = [index.files(limit=150)]
    while pages[-1].cursor is not None:
        pages.append(index.files(limit=150, cursor=pages[-1].cursor))
    assert len({row.file_id for page in pages for row in page.rows}) == 400


def test_page_that_is_just_full_has_no_next(index: Index) -> None:
    """A cursor is given only where there is more."""
    for number in range(3):
        index.file_ingested(_video(number))
    assert index.files(limit=3).cursor is None
    assert index.files(limit=2).cursor is not None
    assert len(index.files(limit=0).rows) == 1
    assert len(index.files(limit=10**9).rows) == 3


@pytest.mark.parametrize("cursor", ["", "x", "!!", "LTE", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"])
def test_broken_cursor_is_a_bad_request(index: Index, cursor: str) -> None:
    """A cursor that was never given out is refused by its name."""
    with pytest.raises(BadRequestError) as caught:
        index.files(cursor=cursor)
    assert caught.value.field == "cursor"


def test_filters(index: Index) -> None:
    """Files are filtered by state, prefix and words, all at once."""
    index.file_ingested(_video(1))
    index.file_ingested(_video(2, refused=True))
    _receive(index, _video(3))
    other = VideoRef(file_id="other", bucket=BUCKET, key="day1é/x.mp4", etag="e", size=1)
    _receive(index, _video(4).model_copy(update={"video": other}))
    assert [row.state for row in index.files(state="refused").rows] == ["refused"]
    assert [row.key for row in index.files(prefix="day1é").rows] == ["day1é/x.mp4"]
    assert [row.key for row in index.files(prefix="day1é", query="mouse").rows] == []
    assert [row.key for row in index.files(prefix="day1/", query="mouse 3").rows] == [
        "day1/mouse_3.mp4"
    ]
    assert index.files(prefix="day1/", query="mouse", state="expected").rows == []
    assert len(index.files(prefix="").rows) == 4


def test_common_prefix_lists_the_same_as_a_rare_one(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which index SQLite reads is a matter of speed only."""
    for number in range(20):
        index.file_ingested(_video(number))
    rare = index.files(prefix="day1/mouse_1", limit=5)
    monkeypatch.setattr(index_module, "_FEW", 1)
    assert rare == index.files(prefix="day1/mouse_1", limit=5)


@pytest.mark.parametrize(
    "query",
    ["mouse", "MOUSE", "mou", "mouse_3", "mouse_3-day1", "3-day1.mp4", "day1 mouse", "cafe"],
)
def test_search_finds_names(index: Index, query: str) -> None:
    """Words and beginnings of words of a name find it, in any case and with or without accents."""
    video = VideoRef(file_id="f", bucket=BUCKET, key="Café/mouse_3-day1.mp4", etag="e", size=1)
    _receive(index, _video().model_copy(update={"video": video}))
    assert [row.file_id for row in index.files(query=query).rows] == ["f"]


@pytest.mark.parametrize(
    "query",
    [
        '"',
        '""',
        "mouse OR rat",
        "NOT mouse",
        "key:mouse",
        "mouse*rat",
        "^rat (",
        "NEAR(a b)",
        "'; DROP TABLE uploaded_file; --",
        "\0mouse\0rat",
        "\ud800",
        "%_",
        "-",
        "日" * 5000,
        "a " * 5000,
    ],
)
def test_hostile_queries_find_nothing_and_break_nothing(index: Index, query: str) -> None:
    """None of what a person types is taken for SQL or for FTS5's language."""
    index.file_ingested(_video())
    assert index.files(query=query).rows == []
    assert index.analyses(query=query).rows == []
    assert len(index.files(query="mouse").rows) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(), prefix=st.text())
def test_any_query_and_prefix(index: Index, query: str, prefix: str) -> None:
    """Whatever is asked for, there is an answer; a key is found by itself and by its beginning."""
    index.files(query=query, prefix=prefix)
    index.analyses(query=query, file_id=prefix)
    assert index.file_by_key(query, prefix) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_key_is_found_by_prefix(index: Index, key: str) -> None:
    """Any key can be stored, and is listed under each of its beginnings, searched or not."""
    key += " mouse"
    video = VideoRef(file_id="f", bucket=BUCKET, key=key, etag="e", size=1)
    index.file_removed("f")
    _receive(index, _video().model_copy(update={"video": video}))
    for length in range(len(key) + 1):
        assert [row.key for row in index.files(prefix=key[:length]).rows] == [key]
        assert [row.key for row in index.files(prefix=key[:length], query="Mou").rows] == [key]


# --- analyses


def test_way_of_a_run(index: Index) -> None:
    """A run is queued, running and over, and keeps what each step told."""
    request = _request()
    assert index.analysis_planned(request, _run()) is True
    assert index.analysis_planned(request, _run()) is False
    index.analysis_enqueued(request.analysis_id, _at(51))
    queued = index.analysis(request.analysis_id)
    assert queued is not None
    assert (queued.state, queued.args, queued.model, queued.asked_by) == (
        "queued",
        request.args,
        "mice",
        "api",
    )
    index.analysis_running(request.analysis_id)
    assert [row.state for row in index.analyses().rows] == ["running"]

    result = _result()
    index.analysis_finished(result, _run())
    over = index.analysis(request.analysis_id)
    assert over is not None
    assert (over.state, over.rows, over.artefacts) == ("succeeded", 300, tuple(result.artefacts))
    assert (over.asked_by, over.enqueued_at) == ("api", _at(51))
    assert (over.created_at, over.finished_at) == (request.created_at, result.finished_at)


def test_failed_run_has_its_error(index: Index) -> None:
    """A failure is kept as it stands in result.json."""
    index.analysis_finished(_result(state="failed"), _run())
    row = index.analysis(_request().analysis_id)
    assert row is not None
    assert (row.state, row.error) == ("failed", ERROR)


def test_finished_run_never_goes_back(index: Index) -> None:
    """A late or doubled event about an earlier step changes nothing."""
    index.analysis_finished(_result(), _run())
    index.analysis_planned(_request(), _run())
    index.analysis_running(_request().analysis_id)
    row = index.analysis(_request().analysis_id)
    assert row is not None
    assert (row.state, row.asked_by) == ("succeeded", "api")


def test_removed_run_is_gone_until_it_is_asked_for_again(index: Index) -> None:
    """A removed run is told apart from one that never was, and starts anew as queued."""
    identity = _request().analysis_id
    assert index.analysis_is_gone(identity) is False
    index.analysis_planned(_request(), _run())
    index.analysis_running(identity)
    index.analysis_removed(identity)
    assert (index.analysis(identity), index.analysis_is_gone(identity)) == (None, True)
    index.reset()
    assert index.analysis_is_gone(identity) is True
    index.analysis_planned(_request(), _run())
    row = index.analysis(identity)
    assert row is not None
    assert (row.state, index.analysis_is_gone(identity)) == ("queued", False)


def test_lists_of_runs(index: Index) -> None:
    """Runs are filtered by state, file, analysis and words, newest first."""
    for number in range(5):
        index.analysis_planned(_request(number), _run(number))
    index.analysis_finished(_result(3), _run(3))
    file_id = _video(3).video.file_id
    third = [_request(3).analysis_id]

    def ids(rows: list[AnalysisRow]) -> list[str]:
        return [row.analysis_id for row in rows]

    assert third == ids(index.analyses(state="succeeded").rows)
    assert third == ids(index.analyses(file_id=file_id).rows)
    assert third == ids(index.analyses_of_file(file_id))
    assert third == ids(index.analyses(query="deeplab mouse_3").rows)
    assert third == ids(index.analyses(query="deeplab mouse_3", state="succeeded").rows)
    assert index.analyses(analysis="dummy").rows == []
    page = index.analyses(analysis="deeplabcut_2d", limit=3)
    rest = index.analyses(analysis="deeplabcut_2d", cursor=page.cursor)
    expected = [_request(number).analysis_id for number in (4, 3, 2, 1, 0)]
    assert expected == ids(page.rows) + ids(rest.rows)


def test_position(index: Index) -> None:
    """The position counts the runs asked for earlier that are not over."""
    for number in range(4):
        index.analysis_planned(_request(number), _run(number))
    index.analysis_running(_request(1).analysis_id)
    index.analysis_finished(_result(0), _run(0))
    positions = [index.position(_request(number).analysis_id) for number in range(4)]
    assert positions == [0, 0, 1, 2]
    assert index.position("unknown") == 0


def test_counts(index: Index) -> None:
    """Everything is counted by its state."""
    index.file_ingested(_video(1))
    _receive(index, _video(2))
    index.analysis_planned(_request(1), _run(1))
    index.pending_asked(_asked())
    index.record_events([ObjectRemoved(BUCKET, "k", "1", NOW)], NOW)
    index.dead_letter("odd", {}, NOW)
    expected = {
        "files": {"ready": 1, "received": 1},
        "analyses": {"queued": 1},
        "events": {"unhandled": 1},
        "pending": {"waiting": 1},
        "dead_letters": {"kept": 1},
    }
    assert expected == index.counts()
    index.file_removed(_video(2).video.file_id)
    index.analysis_running(_request(1).analysis_id)
    index.analysis_finished(_result(1), _run(1))
    counts = index.counts()
    assert (counts["files"], counts["analyses"]) == ({"ready": 1}, {"succeeded": 1})
    index.reset()
    counts = index.counts()
    assert (counts["files"], counts["analyses"]) == ({}, {})


def test_an_older_index_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its rows are counted and found, and what it had ingested counts as planned."""
    path = tmp_path / "old.db"
    db = schema.connect(str(path), 30)
    schema.migrate(db, before="0003_planned")
    row = replace(rows.ingested_file(_video(1)), planned=True)
    values = schema.encode(row)
    del values["planned"]
    schema.upsert(db, "uploaded_file", "file_id", {"number": 1, **values})
    db.close()
    index = Index(path)
    assert index.file(row.file_id) == row
    assert (index.files_unplanned(), index.counts()["files"]) == ([], {"ready": 1})
    assert index.files(query="mouse").rows == [row]
    index.close()


# --- pending


def test_pending(index: Index) -> None:
    """A question waits for its file until it is resolved or has failed."""
    for number in (2, 1, 0):
        index.pending_asked(_asked(number))
    file_id = _video().video.file_id
    assert [row.pending_id for row in index.pending_of_file(file_id)] == [
        _asked(number).pending_id for number in (0, 1, 2)
    ]
    index.pending_resolved(_asked(0).pending_id, "run")
    index.pending_failed(_asked(1).pending_id, ERROR)
    assert [row.pending_id for row in index.pending_of_file(file_id)] == [_asked(2).pending_id]
    assert index.pending_open() == index.pending_of_file(file_id)
    resolved, failed = (index.pending(_asked(number).pending_id) for number in (0, 1))
    assert resolved is not None
    assert failed is not None
    assert (resolved.analysis_id, resolved.force) == ("run", None)
    assert (failed.error, failed.force, failed.args) == (ERROR, "again", {"seconds": 1})
    index.pending_removed(_asked(2).pending_id)
    assert index.pending(_asked(2).pending_id) is None


# --- events


def _created(number: int = 0, key: str = "k") -> Event:
    return ObjectCreated(BUCKET, key, "etag", None, f"{number:016}", NOW)


def test_event_is_known_when_it_comes_again(index: Index) -> None:
    """Only new events are counted and kept, also after they were handled."""
    removed = ObjectRemoved(BUCKET, "k", "1", NOW)
    assert index.record_events([_created(1), _created(1), removed], NOW) == 2
    assert index.record_events([], NOW) == 0
    rows = index.unhandled_events(10)
    assert [(row.kind, row.etag, row.size) for row in rows] == [
        ("created", "etag", None),
        ("removed", "", None),
    ]
    index.events_handled([rows[0].id], NOW)
    assert index.record_events([_created(1), _created(2)], _at(1)) == 1
    assert [row.kind for row in index.unhandled_events(10)] == ["removed", "created"]
    assert len(index.unhandled_events(1)) == 1


def test_failed_event_rests_and_dies(index: Index) -> None:
    """A failing event is held back longer each time, holds up no other, and ends as a letter."""
    index.record_events([_created(1), _created(2)], NOW)
    bad, good = index.unhandled_events(10, NOW)
    moment = NOW
    pauses = []
    while not index.event_failed(bad.id, "the store is away", moment):
        assert [row.id for row in index.unhandled_events(10, moment)] == [good.id]
        due = next(
            second
            for second in range(1, 1000)
            if len(index.unhandled_events(10, moment + timedelta(seconds=second))) == 2
        )
        pauses.append(due)
        moment += timedelta(seconds=due)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120]
    assert [row.id for row in index.unhandled_events(10)] == [good.id]
    (letter,) = index.dead_letters(10)
    assert (letter.reason, letter.received_at) == ("the store is away", moment)
    assert '"key": "k"' in letter.body
    assert index.event_failed(bad.id, "gone", moment) is False


def test_handled_events_are_forgotten_after_a_while(index: Index) -> None:
    """The table of events does not grow for ever; what is not handled is never forgotten."""
    index.record_events([_created(1), _created(2)], NOW)
    first, _ = index.unhandled_events(10)
    index.events_handled([first.id], NOW)
    assert index.forget_events(NOW) == 0
    assert index.forget_events(_at(1)) == 1
    assert len(index.unhandled_events(10)) == 1


def test_dead_letters(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything can be kept as a dead letter, the newest first, and only so many."""
    monkeypatch.setattr(index_module, "MAX_DEAD_LETTERS", 3)
    for body in ("x" * 100_000, {"a": "é\ud800"}, b"bytes", None):
        index.dead_letter("odd\ud800", body, NOW)
    letters = index.dead_letters(10)
    assert [letter.body for letter in letters] == ["null", "\"b'bytes'\"", '{"a": "é?"}']
    assert index.dead_letters(1) == letters[:1]


# --- order


def _tellings() -> list[Telling]:
    """Return all records of three videos with their runs, each told once."""
    tellings: list[Telling] = []
    for number in range(3):
        old, new = _video(number, version=0), _video(number, version=1, refused=number == 2)
        identity = _request(number).analysis_id
        pending = _asked(number).pending_id
        name = (old.video.file_id, BUCKET, old.video.key, _at(-9))
        tellings += [
            methodcaller("expect_file", *name),
            partial(_receive, video=old),
            methodcaller("file_ingested", old),
            partial(_receive, video=new),
            methodcaller("analysis_planned", _request(number), _run(number)),
            methodcaller("analysis_running", identity),
            methodcaller("pending_asked", _asked(number)),
        ]
        if number:
            tellings += [
                methodcaller("file_ingested", new),
                methodcaller("analysis_finished", _result(number, "failed"), _run(number)),
                methodcaller("pending_resolved", pending, identity),
            ]
        else:
            tellings.append(methodcaller("pending_failed", pending, ERROR))
    return tellings


@pytest.fixture(scope="module")
def told_in_order(tmp_path_factory: pytest.TempPathFactory) -> object:
    index = Index(tmp_path_factory.mktemp("order") / "index.db")
    for tell in _tellings():
        tell(index)
    everything = _everything(index)
    index.close()
    return everything


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(range(len(_tellings()))),
    again=st.lists(st.integers(0, len(_tellings()) - 1), max_size=12),
    seed=st.randoms(use_true_random=False),
)
def test_any_order_and_any_doubling_give_the_same_rows(
    index: Index, told_in_order: object, order: list[int], again: list[int], seed: random.Random
) -> None:
    """Events late, doubled and out of order change nothing but time."""
    index.reset()
    doubled = list(order)
    for number in again:
        doubled.insert(seed.randint(0, len(doubled)), number)
    tellings = _tellings()
    for number in doubled:
        tellings[number](index)
    assert told_in_order == _everything(index)


def test_rebuilt_index_has_the_same_rows(index: Index, tmp_path: Path) -> None:
    """Emptied, or deleted and made anew, the index comes back as it was."""
    for tell in _tellings():
        tell(index)
    index.record_events([_created(1)], NOW)
    index.dead_letter("odd", {}, NOW)
    before = _everything(index)
    index.reset()
    assert index.files().rows == []
    assert index.analyses(query="deeplabcut").rows == []
    for tell in reversed(_tellings()):
        tell(index)
    assert before == _everything(index)

    fresh = Index(tmp_path / "deep" / "er" / "fresh.db")
    for tell in _tellings():
        tell(fresh)
    assert index.files().rows == fresh.files().rows
    assert index.analyses().rows == fresh.analyses().rows
    fresh.close()


# --- threads, processes, disks


def test_eight_threads_write_and_read_at_once(index: Index) -> None:
    """Threads that tell the same things at once end with the rows of one that tells them alone."""
    tellings = _tellings()
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        order = list(range(len(tellings)))
        random.Random(seed).shuffle(order)
        barrier.wait()
        for number in order:
            tellings[number](index)
            index.record_events([_created(number), _created(seed * 100 + number)], NOW)
            index.files(query="mouse")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    states = {row.key: row.state for row in index.files().rows}
    assert states == {
        "day1/mouse_0.mp4": "received",
        "day1/mouse_1.mp4": "ready",
        "day1/mouse_2.mp4": "refused",
    }
    assert [row.state for row in index.analyses().rows] == ["failed", "failed", "running"]
    assert index.counts()["events"]["unhandled"] == 8 * len(tellings)


def test_planned_once_by_many_threads(index: Index) -> None:
    """Of many threads that plan the same run exactly one is told that it was the first."""
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda _: index.analysis_planned(_request(), _run()), range(64)))
    assert sum(first) == 1


def test_reader_does_not_wait_for_a_writer(index: Index, tmp_path: Path) -> None:
    """While somebody writes, readers see what was there before, at once."""
    index.file_ingested(_video(1))
    writer = sqlite3.connect(tmp_path / "index.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM uploaded_file")
    impatient = Index(tmp_path / "index.db", timeout=0.01)
    assert len(impatient.files(query="mouse").rows) == 1
    with pytest.raises(IndexBusyError) as caught:
        impatient.file_ingested(_video(2))
    assert caught.value.code == "index_busy"
    writer.execute("ROLLBACK")
    writer.close()
    impatient.file_ingested(_video(2))
    assert len(index.files().rows) == 2
    impatient.close()


def test_writer_waits_for_its_turn(index: Index, tmp_path: Path) -> None:
    """A lock that is let go within the timeout is waited for."""
    writer = sqlite3.connect(tmp_path / "index.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, writer.execute, ["ROLLBACK"])
    timer.start()
    index.file_ingested(_video())
    timer.join()
    writer.close()
    assert len(index.files().rows) == 1


def test_failed_write_leaves_nothing_behind(index: Index) -> None:
    """What was begun and not finished is undone, and the next write works."""
    torn = ObjectCreated(BUCKET, "k2", "e", 2**70, "s", NOW)
    with pytest.raises(OverflowError):
        index.record_events([_created(1), torn], NOW)
    assert index.unhandled_events(10) == []
    assert index.record_events([_created(1)], NOW) == 1


def _open_and_tell(path: Path, number: int) -> int:
    index = Index(path)
    index.file_ingested(_video(number))
    count = len(index.files().rows)
    index.close()
    return count


def test_many_processes_open_a_new_index_at_once(tmp_path: Path) -> None:
    """Whoever comes first lays out the tables, the others wait and find them."""
    path = tmp_path / "index.db"
    with multiprocessing.get_context("fork").Pool(8) as pool:
        counts = pool.starmap(_open_and_tell, [(path, number) for number in range(8)])
    assert max(counts) == 8


def test_reopened_index_has_what_it_had(index: Index, tmp_path: Path) -> None:
    """A closed index opens again, without another migration, and has its rows."""
    index.file_ingested(_video())
    index.close()
    again = Index(tmp_path / "index.db")
    assert [row.key for row in again.files(query="mouse").rows] == ["day1/mouse_0.mp4"]
    again.close()


def test_threads_that_end_leave_no_connection(index: Index) -> None:
    """A thread's connection ends with it, so that many short threads don't use up the files."""
    index.files()
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        thread = threading.Thread(target=index.files)
        thread.start()
        thread.join()
    assert len(list(descriptors.iterdir())) <= before + 2


def test_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    """A file that is no database is told as such, with the way out."""
    path = tmp_path / "index.db"
    path.write_bytes(b"this is not a database, " * 100)
    with pytest.raises(IndexBusyError, match="delete it") as caught:
        Index(path)
    assert caught.value.code == "index_damaged"


def test_index_that_can_not_be_written(tmp_path: Path) -> None:
    """A path that is no file, and a full disk, are told as unwritable."""
    with pytest.raises(IndexBusyError) as caught:
        Index(tmp_path)
    assert caught.value.code == "index_unwritable"


def _fill(index: Index) -> None:
    for number in range(1, 1000):
        index.file_ingested(_video(number))


def test_full_disk(index: Index) -> None:
    """A disk that is full is told as such; what was there can be read, and goes on later."""
    index.file_ingested(_video(0))
    connection = index._db.conn
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IndexBusyError) as caught:
        _fill(index)
    assert caught.value.code == "index_unwritable"
    assert index.file(_video(0).video.file_id) is not None
    connection.execute("PRAGMA max_page_count = 1000000")
    index.file_ingested(_video(1000))
    assert index.file(_video(1000).video.file_id) is not None
