"""The index tells what it was told of files, runs, questions and events."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from posedrop.errors import ConfigurationError
from posedrop.index import events as events_module
from posedrop.index import rows, schema
from posedrop.index.index import AnalysisRow, Index
from posedrop.transport.events import ObjectRemoved
from tests.support.index_rows import (
    BUCKET,
    ERROR,
    NOW,
    at,
    created,
    pending_request,
    receive,
    request_of,
    result_of,
    run_of,
    video_record,
)
from tests.support.samples import PROBE

# --- files


def test_a_file_that_is_expected_twice_is_expected_as_it_was_asked_for_last(index: Index) -> None:
    """An upload in parts goes on by what is known of it."""
    key = "c3/big.mp4"
    index.expect_file("a" * 16, BUCKET, key, at(-60), size=7, metadata={})
    index.expect_file("a" * 16, BUCKET, key, at(0), size=7, metadata={"analysis": "x"})
    row = index.file("a" * 16)
    assert row is not None
    assert (row.metadata, row.size, row.created_at) == ({"analysis": "x"}, 7, at(-60))
    index.expect_file("a" * 16, BUCKET, key, at(9))
    again = index.file("a" * 16)
    assert again is not None
    assert (again.metadata, again.size) == (row.metadata, 7)


def test_way_of_a_file(index: Index) -> None:
    """A file is expected, received and ready, and keeps what each step told."""
    video = video_record()
    file_id = video.video.file_id
    index.expect_file(file_id, BUCKET, video.video.key, at(-60), size=7, metadata={"analysis": "x"})
    expected = index.file(file_id)
    assert expected is not None
    assert (expected.state, expected.size, expected.filename) == ("expected", 7, "mouse_0.mp4")

    receive(index, video)
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
    index.file_ingested(video_record(refused=True))
    row = index.file(video_record().video.file_id)
    assert row is not None
    assert (row.state, row.refusal_reason, row.refusal_message) == (
        "refused",
        "not_a_video",
        "This is a letter.",
    )


def test_late_expectation_and_late_arrival_change_nothing(index: Index) -> None:
    """What was ready stays ready when its earlier steps are told again."""
    video = video_record()
    index.file_ingested(video)
    before = index.file(video.video.file_id)
    index.expect_file(video.video.file_id, BUCKET, video.video.key, at(999))
    receive(index, video)
    # A listing tells the time of an object in milliseconds, HEAD in seconds.
    receive(index, video, last_modified=video.last_modified + timedelta(milliseconds=700))
    assert before == index.file(video.video.file_id)


def test_replaced_object_is_received_anew(index: Index) -> None:
    """Other bytes under the key make it a new file, which has not been enqueued; old news don't."""
    old, new = video_record(version=0), video_record(version=1)
    index.file_ingested(old)
    index.file_enqueued(old.video.file_id, NOW)
    receive(index, new)
    row = index.file(new.video.file_id)
    assert row is not None
    assert (row.state, row.etag, row.probe, row.enqueued_at) == ("received", "etag-0-1", None, None)
    receive(index, old)
    index.file_ingested(old)
    assert row == index.file(new.video.file_id)


def test_of_two_objects_in_one_second_the_one_told_last_is_taken(index: Index) -> None:
    """Times of one second don't tell which of two versions is newer, so the last word counts."""
    first, second = video_record(version=0), video_record(version=1)
    for video in (second, first, second):
        receive(index, video, last_modified=NOW)
    row = index.file(first.video.file_id)
    assert row is not None
    assert row.etag == second.video.etag


def test_enqueued_is_kept_over_ingest(index: Index) -> None:
    """When a file was enqueued last is known until its object is replaced.

    The last time counts, though it is before an earlier one: the clock was set back.
    """
    video = video_record()
    receive(index, video)
    index.file_enqueued(video.video.file_id, at(2))
    index.file_enqueued(video.video.file_id, at(1))
    index.file_ingested(video)
    row = index.file(video.video.file_id)
    assert row is not None
    assert row.enqueued_at == at(1)


def test_a_file_is_planned_once_for_its_bytes(index: Index) -> None:
    """From its ingest on it is to be planned; what replaces it is to be planned anew."""
    first, second = video_record(), video_record(version=1)
    receive(index, first)
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


def test_files_with_content(index: Index) -> None:
    """Files with the same content are found, the one that arrived first before the others."""
    for number in (3, 1, 2):
        index.file_ingested(video_record(number).model_copy(update={"sha256": "c" * 64}))
    found = [row.file_id for row in index.files_with_content("c" * 64)]
    assert found == [video_record(number).video.file_id for number in (1, 2, 3)]
    assert index.files_with_content("e" * 64) == []


# --- analyses


def test_way_of_a_run(index: Index) -> None:
    """A run is queued, running and over, and keeps what each step told."""
    request = request_of()
    assert index.analysis_requested(request, run_of()) is True
    assert index.analysis_requested(request, run_of()) is False
    index.analysis_enqueued(request.analysis_id, at(51))
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

    result = result_of()
    index.analysis_finished(result, run_of())
    over = index.analysis(request.analysis_id)
    assert over is not None
    assert (over.state, over.rows, over.artefacts) == ("succeeded", 300, tuple(result.artefacts))
    assert (over.asked_by, over.enqueued_at) == ("api", at(51))
    assert (over.created_at, over.finished_at) == (request.created_at, result.finished_at)


def test_failed_run_has_its_error(index: Index) -> None:
    """A failure is kept as it stands in result.json."""
    index.analysis_finished(result_of(state="failed"), run_of())
    row = index.analysis(request_of().analysis_id)
    assert row is not None
    assert (row.state, row.error) == ("failed", ERROR)


def test_finished_run_never_goes_back(index: Index) -> None:
    """A late or doubled event about an earlier step changes nothing."""
    index.analysis_finished(result_of(), run_of())
    index.analysis_requested(request_of(), run_of())
    index.analysis_running(request_of().analysis_id)
    row = index.analysis(request_of().analysis_id)
    assert row is not None
    assert (row.state, row.asked_by) == ("succeeded", "api")


def test_removed_run_is_gone_until_it_is_asked_for_again(index: Index) -> None:
    """A removed run is told apart from one that never was, and starts anew as queued."""
    identity = request_of().analysis_id
    assert index.analysis_is_gone(identity) is False
    index.analysis_requested(request_of(), run_of())
    index.analysis_running(identity)
    index.analysis_removed(identity)
    assert (index.analysis(identity), index.analysis_is_gone(identity)) == (None, True)
    index.reset()
    assert index.analysis_is_gone(identity) is True
    index.analysis_requested(request_of(), run_of())
    row = index.analysis(identity)
    assert row is not None
    assert (row.state, index.analysis_is_gone(identity)) == ("queued", False)


def test_lists_of_runs(index: Index) -> None:
    """Runs are filtered by state, file, analysis and words, newest first."""
    for number in range(5):
        index.analysis_requested(request_of(number), run_of(number))
    index.analysis_finished(result_of(3), run_of(3))
    file_id = video_record(3).video.file_id
    third = [request_of(3).analysis_id]

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
    expected = [request_of(number).analysis_id for number in (4, 3, 2, 1, 0)]
    assert expected == ids(page.rows) + ids(rest.rows)


def test_position(index: Index) -> None:
    """The position counts the runs asked for earlier that are not over."""
    for number in range(4):
        index.analysis_requested(request_of(number), run_of(number))
    index.analysis_running(request_of(1).analysis_id)
    index.analysis_finished(result_of(0), run_of(0))
    positions = [index.position(request_of(number).analysis_id) for number in range(4)]
    assert positions == [0, 0, 1, 2]
    assert index.position("unknown") == 0


def test_counts(index: Index) -> None:
    """Everything is counted by its state."""
    index.file_ingested(video_record(1))
    receive(index, video_record(2))
    index.analysis_requested(request_of(1), run_of(1))
    index.pending_added(pending_request())
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
    index.file_removed(video_record(2).video.file_id)
    index.analysis_running(request_of(1).analysis_id)
    index.analysis_finished(result_of(1), run_of(1))
    counts = index.counts()
    assert (counts["files"], counts["analyses"]) == ({"ready": 1}, {"succeeded": 1})
    index.reset()
    counts = index.counts()
    assert (counts["files"], counts["analyses"]) == ({}, {})


def test_an_index_of_a_newer_posedrop_is_refused_in_words(tmp_path: Path) -> None:
    """It is left as it is, and who went back to this release is told what to remove."""
    path = tmp_path / "newer.db"
    Index(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('posedrop', '9999_of_tomorrow', '2030-01-01')"
        )
    with pytest.raises(ConfigurationError, match=rf"newer posedrop .*{path.name}: remove it"):
        Index(path)


def test_an_older_index_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its rows are counted, what it had ingested counts as planned, and all names are found.

    They are made searchable some at a time, the newest first, while new ones come and old ones go.
    """
    path = tmp_path / "old.db"
    db = schema.connect(str(path), 30)
    schema.migrate(db, before="0003_planned")
    # As posedrop had it: an index of the beginnings of words.
    db.executescript("""
        CREATE VIRTUAL TABLE uploaded_file_fts USING fts5(key, content='uploaded_file',
            content_rowid='number', tokenize='unicode61 remove_diacritics 2', prefix='1 2 3');
        CREATE TRIGGER uploaded_file_ai AFTER INSERT ON uploaded_file BEGIN
            INSERT INTO uploaded_file_fts (rowid, key) VALUES (new.number, new.key); END;
        INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
            VALUES ('posedrop', '0002_search', '2026-01-01');
    """)
    old = [replace(rows.ingested_file(video_record(n)), planned=True) for n in range(2500)]
    db.execute("BEGIN")
    for number, row in enumerate(old):
        values = schema.encode(row)
        del values["planned"], values["waits_for"]
        schema.upsert(db, "uploaded_file", "file_id", {"number": number, **values})
    db.execute("COMMIT")
    db.close()
    index = Index(path)
    index.file_removed(old[1].file_id)
    index.file_ingested(video_record(9999))
    assert index.file(old[7].file_id) == old[7]
    assert index.counts()["files"] == {"ready": 2500}
    assert [row.file_id for row in index.files_unplanned()] == [video_record(9999).video.file_id]
    deadline = time.monotonic() + 60
    while not index.files(query="ouse_0").rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [row.key for row in index.files(query="ouse_0").rows] == [old[0].key]
    assert index.files(query="ouse_1.").rows == []
    assert len(index.files(query="ouse_9999").rows) == 1
    assert len(index.files(query="ous", limit=1000).rows) == 1000
    index.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "spelling"]


def test_films_of_one_content_are_planned_again_after_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older posedrop left results beside one of them alone; others stay planned.

    Its table knew of no films that are gone, and takes them now; counts and search go on.
    """
    path = tmp_path / "old.db"
    db = schema.connect(str(path), 30)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FileState", Literal["expected", "received", "ready", "refused"])
        schema.migrate(db, before="0009_places")
    for number in range(3):
        row = replace(rows.ingested_file(video_record(number)), planned=True)
        row = row if number == 0 else replace(row, sha256="c" * 64)
        schema.put(db, "uploaded_file", "file_id", row)
    db.close()
    index = Index(path)
    found = [row.file_id for row in index.files_unplanned()]
    assert found == [video_record(number).video.file_id for number in (1, 2)]
    index.film_gone(video_record(0))
    assert index.counts()["files"] == {"ready": 3}
    index.file_removed(video_record(0).video.file_id)
    index.film_gone(video_record(0))
    assert index.counts()["files"] == {"ready": 2, "film gone": 1}
    assert [row.key for row in index.files(query="mouse_0").rows] == [video_record(0).video.key]
    assert [row.state for row in index.files(state="film gone").rows] == ["film gone"]
    index.close()


# --- pending


def test_pending(index: Index) -> None:
    """A question waits for its file until it is resolved or has failed."""
    for number in (2, 1, 0):
        index.pending_added(pending_request(number))
    file_id = video_record().video.file_id
    assert [row.pending_id for row in index.pending_of_file(file_id)] == [
        pending_request(number).pending_id for number in (0, 1, 2)
    ]
    index.pending_resolved(pending_request(0).pending_id, "run")
    index.pending_failed(pending_request(1).pending_id, ERROR)
    assert [row.pending_id for row in index.pending_of_file(file_id)] == [
        pending_request(2).pending_id
    ]
    assert index.pending_open() == index.pending_of_file(file_id)
    resolved, failed = (index.pending(pending_request(number).pending_id) for number in (0, 1))
    assert resolved is not None
    assert failed is not None
    assert (resolved.analysis_id, resolved.force) == ("run", None)
    assert (failed.error, failed.force, failed.args) == (ERROR, "again", {"seconds": 1})
    index.pending_removed(pending_request(2).pending_id)
    assert index.pending(pending_request(2).pending_id) is None


# --- events


def test_event_is_known_when_it_comes_again(index: Index) -> None:
    """Only new events are counted and kept, also after they were handled."""
    removed = ObjectRemoved(BUCKET, "k", "1", NOW)
    assert index.record_events([created(1), created(1), removed], NOW) == 2
    assert index.record_events([], NOW) == 0
    rows = index.unhandled_events(10)
    assert [(row.kind, row.etag, row.size) for row in rows] == [
        ("created", "etag", None),
        ("removed", "", None),
    ]
    index.events_handled([rows[0].id], NOW)
    assert index.record_events([created(1), created(2)], at(1)) == 1
    assert [row.kind for row in index.unhandled_events(10)] == ["removed", "created"]
    assert len(index.unhandled_events(1)) == 1


def test_failed_event_rests_and_dies(index: Index) -> None:
    """A failing event is held back longer each time, holds up no other, and ends as a letter."""
    index.record_events([created(1), created(2)], NOW)
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
    index.record_events([created(1), created(2)], NOW)
    first, _ = index.unhandled_events(10)
    index.events_handled([first.id], NOW)
    assert index.forget_events(NOW) == 0
    assert index.forget_events(at(1)) == 1
    assert len(index.unhandled_events(10)) == 1


def test_dead_letters(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything can be kept as a dead letter, the newest first, and only so many."""
    monkeypatch.setattr(events_module, "MAX_DEAD_LETTERS", 3)
    for body in ("x" * 100_000, {"a": "é\ud800"}, b"bytes", None):
        index.dead_letter("odd\ud800", body, NOW)
    letters = index.dead_letters(10)
    assert [letter.body for letter in letters] == ["null", "\"b'bytes'\"", '{"a": "é?"}']
    assert index.dead_letters(1) == letters[:1]


# --- the file


def test_an_sqlite_that_is_too_old_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python comes with too old an SQLite, nothing starts, and the version is named."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    with pytest.raises(ConfigurationError, match=r"has SQLite 3\.34\.1, .* needs 3\.35 or newer"):
        Index(tmp_path / "index.db")
    assert not list(tmp_path.iterdir())
