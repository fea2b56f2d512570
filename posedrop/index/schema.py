"""The tables of the index: how they are laid out, and how a row is written and read back.

Every listed table has an integer key ``number`` that grows with ``created_at``. So "newest first"
is the order in which SQLite keeps the rows, a page is a range of one index, and a full-text search
gives its newest hits without sorting them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast, get_args

from sqlite_utils import Database, Migrations

from posedrop.buckets.records.batches import BatchOver, BatchRequest
from posedrop.buckets.records.runs import Artefact, RunError, RunState
from posedrop.buckets.records.videos import FileState, Probe
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.index.rows import AnalysisRow, BatchRow, FileRow, Row
from posedrop.index.search import spelled

_UNWRITABLE = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")
#: Upserts that name no column (3.35), and full text of three characters (3.34).
_LEAST_SQLITE = (3, 35)
_HASH_BITS = 21
_MAX_MILLISECONDS = (1 << (63 - _HASH_BITS)) - 1
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


_Row = TypeVar("_Row")


class IndexBusyError(PosedropError):
    """The index did not take it: locked (index_busy), or the disk did not (index_unwritable)."""

    code = "index_busy"


def number_of(created_at: datetime, identity: str) -> int:
    """Return a key that sorts by time; within a millisecond, by a hash of ``identity``."""
    digest = hashlib.sha256(identity.encode(errors="replace")).digest()
    tail = int.from_bytes(digest[:4], "big") >> (32 - _HASH_BITS)
    # A store's clock may be anything, and SQLite's numbers end in the year 2109.
    milliseconds = min(max(0, int(created_at.timestamp() * 1000)), _MAX_MILLISECONDS)
    return (milliseconds << _HASH_BITS) | tail


def to_text(moment: datetime) -> str:
    """Return a time as UTC text that sorts as the times do."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT).rjust(27, "0")


def from_text(text: str) -> datetime:
    """Return the time that ``to_text`` wrote."""
    return datetime.fromisoformat(text)


def _record_to_text(record: Probe | RunError | BatchRequest | BatchOver) -> str:
    return record.model_dump_json()


def _artefacts_to_text(artefacts: tuple[Artefact, ...]) -> str:
    return json.dumps([a.model_dump(mode="json") for a in artefacts])


def _artefacts_from_text(text: str) -> tuple[Artefact, ...]:
    return tuple(Artefact.model_validate(a) for a in json.loads(text))


_Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]
_TIME: _Codec = (to_text, from_text)
_JSON: _Codec = (json.dumps, json.loads)
_CODECS: dict[str, _Codec] = {
    "args": _JSON,
    "artefacts": (_artefacts_to_text, _artefacts_from_text),
    "checked_at": _TIME,
    "created_at": _TIME,
    "due_at": _TIME,
    "enqueued_at": _TIME,
    "error": (_record_to_text, RunError.model_validate_json),
    "finished_at": _TIME,
    "handled_at": _TIME,
    "last_modified": _TIME,
    "metadata": _JSON,
    "notify": (json.dumps, lambda text: tuple(json.loads(text))),
    "over": (_record_to_text, BatchOver.model_validate_json),
    "planned": (int, bool),
    "probe": (_record_to_text, Probe.model_validate_json),
    "quality_reasons": (json.dumps, lambda text: tuple(json.loads(text))),
    "received_at": _TIME,
    "request": (_record_to_text, BatchRequest.model_validate_json),
    "since": _TIME,
    "updated_at": _TIME,
    "versions": _JSON,
    "walked": (int, bool),
    "existed": (int, bool),
}


def encode(row: Row) -> dict[str, Any]:
    """Return a row as the values of its columns."""
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {
        name: _CODECS[name][0](value) if value is not None and name in _CODECS else value
        for name, value in values.items()
    }


def decode(kind: type[_Row], values: Mapping[str, Any]) -> _Row:
    """Return the row of class ``kind`` that ``encode`` took apart."""
    return kind(
        **{
            f.name: _CODECS[f.name][1](values[f.name])
            if values[f.name] is not None and f.name in _CODECS
            else values[f.name]
            for f in fields(cast(Any, kind))
        }
    )


_migrations = Migrations("posedrop")


def migrate(db: Database, *, before: str | None = None) -> None:
    """Bring the tables up to date; inside of the caller's transaction, so that one does it.

    With ``before``, only up to the step of that name, as an older posedrop has left them.
    """
    _migrations.apply(db, stop_before=before)


def check_sqlite() -> None:
    """Refuse an SQLite that is too old for the index.

    Raises:
        ConfigurationError: Python's SQLite is older than :data:`_LEAST_SQLITE`.
    """
    if sqlite3.sqlite_version_info < _LEAST_SQLITE:
        least = ".".join(map(str, _LEAST_SQLITE))
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}, and the index needs {least} or "
            "newer: use a Python that comes with a newer one, such as that of uv, conda or "
            "python.org"
        )


def is_current(db: Database) -> bool:
    """Tell whether there is nothing to migrate, without writing."""
    return not _migrations.pending(db)


def is_newer(db: Database) -> bool:
    """Tell whether a newer posedrop has had the index: this one would fail at each write."""
    # By their numbers: of what older ones did, 0002 and 0005 are not here any more.
    ours = max(step.name for step in _migrations.pending(Database(memory=True)))
    return any(step.name > ours for step in _migrations.applied(db))


def _checked(states: Any) -> str:
    return f"CHECK (state IN ({', '.join(repr(s) for s in get_args(states))}))"


@_migrations(name="0001_tables")
def _tables(db: Database) -> None:
    for statement in (
        f"""CREATE TABLE uploaded_file (
            number INTEGER PRIMARY KEY, file_id TEXT NOT NULL UNIQUE,
            bucket TEXT NOT NULL, key TEXT NOT NULL, filename TEXT NOT NULL,
            state TEXT NOT NULL {_checked(FileState)},
            etag TEXT, size INTEGER, sha256 TEXT, sha1 TEXT, duplicate_of TEXT,
            refusal_reason TEXT, refusal_message TEXT, probe TEXT, metadata TEXT,
            last_modified TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            enqueued_at TEXT)""",
        "CREATE INDEX file_by_key ON uploaded_file (key, bucket, state)",
        "CREATE INDEX file_by_state ON uploaded_file (state, number)",
        "CREATE INDEX file_by_content ON uploaded_file (sha256, number) WHERE sha256 IS NOT NULL",
        f"""CREATE TABLE analysis (
            number INTEGER PRIMARY KEY, analysis_id TEXT NOT NULL UNIQUE,
            file_id TEXT NOT NULL, bucket TEXT NOT NULL, key TEXT NOT NULL,
            analysis TEXT NOT NULL, args TEXT NOT NULL, model TEXT, model_digest TEXT,
            run TEXT NOT NULL, state TEXT NOT NULL {_checked(RunState)},
            error TEXT, asked_by TEXT, created_at TEXT NOT NULL, finished_at TEXT,
            artefacts TEXT NOT NULL, frames_decoded INTEGER, "rows" INTEGER, enqueued_at TEXT)""",
        "CREATE INDEX analysis_by_state ON analysis (state, number)",
        "CREATE INDEX analysis_by_file ON analysis (file_id, number)",
        "CREATE INDEX analysis_by_analysis ON analysis (analysis, number)",
        # Which runs a worker has taken: it may be told before the run itself is.
        "CREATE TABLE taken (analysis_id TEXT PRIMARY KEY) WITHOUT ROWID",
        # Which runs were removed: asked for, they are gone, which is not the same as never known.
        "CREATE TABLE gone (analysis_id TEXT PRIMARY KEY) WITHOUT ROWID",
        # A resolution or a failure may be told before the request, hence NULL is allowed.
        """CREATE TABLE pending (
            pending_id TEXT PRIMARY KEY, file_id TEXT, key TEXT, analysis TEXT, args TEXT,
            force TEXT, created_at TEXT, analysis_id TEXT, error TEXT)""",
        "CREATE INDEX pending_by_file ON pending (file_id, created_at)",
        """CREATE TABLE event (
            id INTEGER PRIMARY KEY, bucket TEXT NOT NULL, key TEXT NOT NULL, etag TEXT NOT NULL,
            sequencer TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER, received_at TEXT NOT NULL,
            handled_at TEXT, tries INTEGER NOT NULL DEFAULT 0, due_at TEXT NOT NULL,
            UNIQUE (bucket, key, etag, sequencer, kind))""",
        "CREATE INDEX event_unhandled ON event (id) WHERE handled_at IS NULL",
        "CREATE INDEX event_handled ON event (handled_at) WHERE handled_at IS NOT NULL",
        """CREATE TABLE dead_letter (
            id INTEGER PRIMARY KEY AUTOINCREMENT, received_at TEXT NOT NULL,
            reason TEXT NOT NULL, body TEXT NOT NULL)""",
    ):
        db.execute(statement)


@_migrations(name="0003_planned")
def _planned(db: Database) -> None:
    # What an older posedrop has ingested it has planned.
    for statement in (
        "ALTER TABLE uploaded_file ADD COLUMN planned INTEGER NOT NULL DEFAULT 0",
        "UPDATE uploaded_file SET planned = 1 WHERE state = 'ready'",
        "CREATE INDEX file_unplanned ON uploaded_file (number)"
        " WHERE state = 'ready' AND NOT planned",
    ):
        db.execute(statement)


@_migrations(name="0004_counts")
def _counts(db: Database) -> None:
    """Keep the number of rows by state: to count a million of them takes too long for a probe."""
    db.execute(
        "CREATE TABLE tally (name TEXT, state TEXT, n INTEGER NOT NULL, PRIMARY KEY (name, state))"
        " WITHOUT ROWID"
    )
    for table in ("uploaded_file", "analysis"):
        add, remove = (
            f"INSERT INTO tally VALUES ('{table}', {row}.state, {by})"  # noqa: S608
            f" ON CONFLICT DO UPDATE SET n = n + {by};"
            for row, by in (("new", 1), ("old", -1))
        )
        for statement in (
            f"INSERT INTO tally SELECT '{table}', state, count(*) FROM {table} GROUP BY state",  # noqa: S608
            f"CREATE TRIGGER {table}_counted_ai AFTER INSERT ON {table} BEGIN {add} END",
            f"CREATE TRIGGER {table}_counted_ad AFTER DELETE ON {table} BEGIN {remove} END",
            f"CREATE TRIGGER {table}_counted_au AFTER UPDATE OF state ON {table}"
            f" WHEN old.state <> new.state BEGIN {remove} {add} END",
        ):
            db.execute(statement)
    db.execute(
        "CREATE INDEX pending_open ON pending (created_at, pending_id)"
        " WHERE created_at IS NOT NULL AND analysis_id IS NULL AND error IS NULL"
    )


@_migrations(name="0006_retries")
def _retries(db: Database) -> None:
    for statement in (
        "ALTER TABLE analysis ADD COLUMN retry_of TEXT",
        "CREATE INDEX analysis_by_retried ON analysis (retry_of, number)"
        " WHERE retry_of IS NOT NULL",
    ):
        db.execute(statement)


@_migrations(name="0007_rules")
def _rules(db: Database) -> None:
    # What an older posedrop has planned, no rule that comes later reaches; but what it rejected,
    # because the rule was wrong, waits from now on.
    for statement in (
        "ALTER TABLE uploaded_file ADD COLUMN waits_for TEXT",
        "UPDATE uploaded_file SET planned = 0 WHERE file_id IN"
        " (SELECT file_id FROM analysis WHERE instr(run, '/rejected-') AND asked_by <> 'metadata')",
        "CREATE INDEX file_waiting ON uploaded_file (key) WHERE waits_for IS NOT NULL",
        """CREATE TABLE rule (
            key TEXT PRIMARY KEY, etag TEXT, error TEXT, since TEXT NOT NULL,
            checked_at TEXT NOT NULL, after TEXT, turn INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX rule_wrong ON rule (checked_at) WHERE error IS NOT NULL",
        "CREATE INDEX rule_to_follow ON rule (checked_at) WHERE after IS NOT NULL",
    ):
        db.execute(statement)


@_migrations(name="0008_any_part_of_a_name")
def _any_part_of_a_name(db: Database) -> None:
    """Find names by what is inside of their words, not by their beginnings as 0002 and 0005 did.

    Their index goes at once, it can't be searched the same way; ``go_on_spelling`` has the rows.
    """
    db.execute("CREATE TABLE unspelled (name TEXT PRIMARY KEY, before INTEGER NOT NULL)")
    for table, columns in (("uploaded_file", ("key",)), ("analysis", ("key", "analysis"))):
        for trigger in ("ai", "ad", "au"):
            db.execute(f"DROP TRIGGER IF EXISTS {table}_{trigger}")
        changed = " OR ".join(f"old.{name} <> new.{name}" for name in ("number", *columns))
        remove = f"DELETE FROM {table}_fts WHERE rowid = old.number;"  # noqa: S608
        add = f"INSERT INTO {table}_fts (rowid, name) VALUES ({_as_searched(table, 'new')});"  # noqa: S608
        for statement in (
            f"DROP TABLE IF EXISTS {table}_fts",
            # All that is kept of three characters is which rows have them: the spelled name is
            # there too, to be compared.
            f"CREATE VIRTUAL TABLE {table}_fts USING fts5(name, detail=none, columnsize=0,"
            " tokenize='trigram case_sensitive 1')",
            f"CREATE TRIGGER {table}_ai AFTER INSERT ON {table} BEGIN {add} END",
            f"CREATE TRIGGER {table}_ad AFTER DELETE ON {table} BEGIN {remove} END",
            f"CREATE TRIGGER {table}_au AFTER UPDATE ON {table} WHEN {changed}"
            f" BEGIN {remove} {add} END",
            f"INSERT INTO unspelled SELECT '{table}', number + 1 FROM {table}"  # noqa: S608
            " ORDER BY number DESC LIMIT 1",
        ):
            db.execute(statement)


@_migrations(name="0009_places")
def _places(db: Database) -> None:
    """Keep the further folders of a run: each name of a content has its own results.

    Videos with one content are planned again: an older posedrop left results beside one alone.
    """
    for statement in (
        "ALTER TABLE analysis ADD COLUMN sha256 TEXT",
        "UPDATE analysis SET sha256 = (SELECT f.sha256 FROM uploaded_file AS f"
        " WHERE f.file_id = analysis.file_id)",
        "CREATE INDEX analysis_by_content ON analysis (sha256, number) WHERE sha256 IS NOT NULL",
        # As the table analysis, but for whom a row is: there is one for each folder.
        """CREATE TABLE place (
            number INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, analysis_id TEXT NOT NULL,
            file_id TEXT NOT NULL, bucket TEXT NOT NULL, key TEXT NOT NULL,
            analysis TEXT NOT NULL, args TEXT NOT NULL, model TEXT, model_digest TEXT,
            state TEXT NOT NULL, error TEXT, asked_by TEXT, created_at TEXT NOT NULL,
            finished_at TEXT, artefacts TEXT NOT NULL, frames_decoded INTEGER, "rows" INTEGER,
            enqueued_at TEXT, retry_of TEXT, sha256 TEXT)""",
        "CREATE INDEX place_by_analysis ON place (analysis_id)",
        "CREATE INDEX place_by_file ON place (file_id)",
        "CREATE INDEX place_unfinished ON place (number) WHERE finished_at IS NULL",
        "UPDATE uploaded_file SET planned = 0 WHERE state = 'ready' AND sha256 IN"
        " (SELECT sha256 FROM uploaded_file WHERE state = 'ready' AND sha256 IS NOT NULL"
        " GROUP BY sha256 HAVING count(*) > 1)",
    ):
        db.execute(statement)


@_migrations(name="0010_film_gone")
def _film_gone(db: Database) -> None:
    """Let a file be in a state that its table, as an older posedrop made it, does not allow.

    SQLite can't change a CHECK: the table is made anew, with all that belongs to it.
    """
    made = "SELECT type, sql FROM sqlite_master WHERE tbl_name = 'uploaded_file' AND sql NOT NULL"
    found = [tuple(row) for row in db.conn.execute(made)]
    (table,) = (sql for kind, sql in found if kind == "table")
    if _checked(FileState) in table:
        return
    before, _, after = table.partition("CHECK (state IN (")
    _, _, after = after.partition("))")
    columns = before.split("(", 1)[1]
    for statement in (
        f"CREATE TABLE uploaded_file_anew ({columns}{_checked(FileState)}{after}",
        "INSERT INTO uploaded_file_anew SELECT * FROM uploaded_file",
        "DROP TABLE uploaded_file",
        "ALTER TABLE uploaded_file_anew RENAME TO uploaded_file",
        *(sql for kind, sql in found if kind != "table"),
    ):
        db.execute(statement)


@_migrations(name="0011_gpu_queue")
def _gpu_queue(db: Database) -> None:
    """Keep what waits for a network, by the groups that go round; triggers hold it to the runs.

    A group comes last (has the highest turn) when it is served, and when it begins to wait. That
    is counted, not timed: a clock may be wrong. What an older posedrop has sent is in the broker.
    """
    unfinished = "state IN ('waiting', 'queued', 'running')"
    # As layout.group_of.
    slash = "instr({0}key, '/')"
    group = f"CASE {slash} WHEN 0 THEN '' ELSE substr({{0}}key, 1, {slash} - 1) END"
    comes_last = (
        "INSERT INTO gpu_group SELECT new.grp, 0"
        " WHERE NOT EXISTS (SELECT 1 FROM gpu_group WHERE grp = new.grp);"
        " UPDATE gpu_group SET turn = (SELECT max(turn) + 1 FROM gpu_group) WHERE grp = new.grp"
    )
    unless_it_waits = (
        " AND NOT EXISTS (SELECT 1 FROM gpu_queue AS q WHERE q.grp = new.grp"
        " AND q.state = 'waits' AND q.analysis_id <> new.analysis_id)"
    )
    for statement in (
        """CREATE TABLE gpu_queue (
            analysis_id TEXT PRIMARY KEY, grp TEXT NOT NULL, number INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('waits', 'sent', 'asked', 'parked')),
            since TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX gpu_by_group ON gpu_queue (grp, state, number)",
        "CREATE INDEX gpu_by_state ON gpu_queue (state, since)",
        "CREATE TABLE gpu_group (grp TEXT PRIMARY KEY, turn INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE INDEX gpu_group_by_turn ON gpu_group (turn)",
        # Whoever comes again comes last.
        "CREATE TRIGGER gpu_group_ad AFTER DELETE ON gpu_queue BEGIN DELETE FROM gpu_group"
        " WHERE grp = old.grp AND NOT EXISTS"
        " (SELECT 1 FROM gpu_queue AS q WHERE q.grp = old.grp); END",
        "CREATE TRIGGER gpu_group_ai AFTER INSERT ON gpu_queue"
        f" BEGIN {comes_last}{unless_it_waits}; END",
        "CREATE TRIGGER gpu_group_au AFTER UPDATE OF state, grp ON gpu_queue"
        " WHEN old.grp <> new.grp OR (new.state = 'waits' AND old.state = 'parked')"
        f" BEGIN {comes_last}{unless_it_waits}; END",
        # One that stopped for another group, or was lost, was served.
        "CREATE TRIGGER gpu_group_back AFTER UPDATE OF state ON gpu_queue"
        " WHEN new.state = 'waits' AND old.state IN ('sent', 'asked')"
        f" BEGIN {comes_last}; END",
        "CREATE TRIGGER gpu_queue_ai AFTER INSERT ON analysis"  # noqa: S608
        f" WHEN new.{unfinished} BEGIN"
        # Not OR IGNORE: in a trigger, SQLite does as the statement says that has fired it.
        " INSERT INTO gpu_queue SELECT new.analysis_id,"
        f" {group.format('new.')}, new.number, 'waits', new.created_at WHERE NOT EXISTS"
        " (SELECT 1 FROM gpu_queue WHERE analysis_id = new.analysis_id); END",
        "CREATE TRIGGER gpu_queue_au AFTER UPDATE OF state ON analysis"  # noqa: S608
        f" WHEN NOT new.{unfinished} BEGIN"
        " DELETE FROM gpu_queue WHERE analysis_id = new.analysis_id; END",
        # A run may pass to another name of its content.
        "CREATE TRIGGER gpu_queue_ak AFTER UPDATE OF number, key ON analysis"  # noqa: S608
        " WHEN new.number <> old.number OR new.key <> old.key BEGIN"
        " UPDATE gpu_queue SET number = new.number,"
        f" grp = {group.format('new.')} WHERE analysis_id = new.analysis_id; END",
        """CREATE TRIGGER gpu_queue_ad AFTER DELETE ON analysis BEGIN
            DELETE FROM gpu_queue WHERE analysis_id = old.analysis_id; END""",
        f"""INSERT INTO gpu_queue SELECT analysis_id, {group.format("")}, number,
            CASE WHEN enqueued_at IS NULL THEN 'waits' ELSE 'sent' END,
            coalesce(enqueued_at, created_at) FROM analysis WHERE {unfinished}""",  # noqa: S608
    ):
        db.execute(statement)


@_migrations(name="0012_quality")
def _quality(db: Database) -> None:
    """Keep the scores of runs, and their order: by ``badness``, falling, those without one last.

    ``newness`` is the row's number: of two columns compared at once, SQLite looks up no such key.
    """
    for statement in (
        "ALTER TABLE analysis ADD COLUMN quality REAL",
        "ALTER TABLE analysis ADD COLUMN quality_reasons TEXT",
        "ALTER TABLE place ADD COLUMN quality REAL",
        "ALTER TABLE place ADD COLUMN quality_reasons TEXT",
        "ALTER TABLE analysis ADD COLUMN badness REAL"
        " GENERATED ALWAYS AS (coalesce(100 - quality, -1)) VIRTUAL",
        "ALTER TABLE analysis ADD COLUMN newness INTEGER GENERATED ALWAYS AS (number) VIRTUAL",
        "CREATE INDEX analysis_by_quality ON analysis (badness, newness)",
        "CREATE INDEX analysis_by_state_and_quality ON analysis (state, badness, newness)",
        "CREATE INDEX analysis_by_analysis_and_quality ON analysis (analysis, badness, newness)",
    ):
        db.execute(statement)


@_migrations(name="0014_versions")
def _versions(db: Database) -> None:
    """Keep the versions that a run was computed with, for who explores the index."""
    for table in ("analysis", "place"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN versions TEXT")


@_migrations(name="0016_listed")
def _listed(db: Database) -> None:
    """Keep, of each order of the runs, all that a list of them is filtered by.

    By these a page is found without a look at the rows themselves, whatever is asked at once. Where
    a column is a generated one, SQLite does look at the rows: ``put`` writes ``badness`` and
    ``newness`` from now on.
    """
    filters = "state, analysis, model, asked_by"
    for statement in (
        "DROP INDEX analysis_by_quality",
        "DROP INDEX analysis_by_state_and_quality",
        "DROP INDEX analysis_by_analysis_and_quality",
        "ALTER TABLE analysis DROP COLUMN badness",
        "ALTER TABLE analysis DROP COLUMN newness",
        "ALTER TABLE analysis ADD COLUMN badness REAL NOT NULL DEFAULT -1",
        "ALTER TABLE analysis ADD COLUMN newness INTEGER NOT NULL DEFAULT 0",
        "UPDATE analysis SET badness = coalesce(100 - quality, -1), newness = number",
        f"CREATE INDEX analysis_listed ON analysis (newness, {filters}, key)",
        f"CREATE INDEX analysis_by_quality_listed ON analysis (badness, newness, {filters}, key)",
        f"CREATE INDEX analysis_by_name_listed ON analysis (key, newness, {filters})",
        "CREATE INDEX analysis_by_state_and_quality ON analysis (state, badness, newness)",
        "CREATE INDEX analysis_by_analysis_and_quality ON analysis (analysis, badness, newness)",
    ):
        db.execute(statement)


#: States of a batch's film that may change by themselves.
OPEN_STATES = "('waiting', 'queued', 'running')"


@_migrations(name="0017_batches")
def _batches(db: Database) -> None:
    """Keep batches with their films, whose states triggers hold to the runs; and who is told.

    In the gpu queue the runs of batches below a first folder are a group of their own, so that
    what is asked for singly comes between them.
    """
    slash = "instr({0}key, '/')"
    group = (
        f"CASE {slash} WHEN 0 THEN '' ELSE substr({{0}}key, 1, {slash} - 1) END"
        " || CASE WHEN {0}batch IS NULL THEN '' ELSE '/batch' END"
    ).format("new.")
    state_of_run = "coalesce((SELECT state FROM analysis WHERE analysis_id = new.{0}), 'queued')"
    set_state = "UPDATE batch_film SET state"
    is_open = f"state IN {OPEN_STATES}"
    not_ready = "json_extract(new.error, '$.code') = 'refused'"
    pending_changed = (
        f"{set_state} = 'waiting' WHERE run_id = new.pending_id AND new.created_at IS NOT NULL"
        " AND new.analysis_id IS NULL AND new.error IS NULL;"
        f" {set_state} = {state_of_run.format('analysis_id')}, run_id = new.analysis_id"
        " WHERE run_id = new.pending_id AND new.analysis_id IS NOT NULL;"
        f" {set_state} = CASE WHEN {not_ready} THEN 'refused'"
        " WHEN json_extract(new.error, '$.code') = 'cancelled' THEN 'cancelled'"
        " ELSE 'failed' END, error = new.error"
        " WHERE run_id = new.pending_id AND new.error IS NOT NULL;"
    )
    for statement in (
        "ALTER TABLE analysis ADD COLUMN batch TEXT",
        "ALTER TABLE analysis ADD COLUMN notify TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE place ADD COLUMN batch TEXT",
        "ALTER TABLE place ADD COLUMN notify TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE pending ADD COLUMN batch TEXT",
        "ALTER TABLE pending ADD COLUMN notify TEXT NOT NULL DEFAULT '[]'",
        "CREATE INDEX analysis_by_state_and_key ON analysis (state, key, analysis_id)",
        """CREATE TABLE batch (
            number INTEGER PRIMARY KEY, batch_id TEXT NOT NULL UNIQUE, request TEXT NOT NULL,
            created_at TEXT NOT NULL, chunks INTEGER NOT NULL DEFAULT 0, after TEXT,
            walked INTEGER NOT NULL DEFAULT 0, over TEXT)""",
        "CREATE INDEX batch_open ON batch (number) WHERE over IS NULL",
        """CREATE TABLE batch_film (
            batch_id TEXT NOT NULL, place INTEGER NOT NULL, file_id TEXT NOT NULL,
            key TEXT NOT NULL, run_id TEXT, existed INTEGER NOT NULL, state TEXT NOT NULL,
            error TEXT, PRIMARY KEY (batch_id, place)) WITHOUT ROWID""",
        "CREATE INDEX batch_film_by_run ON batch_film (run_id) WHERE run_id IS NOT NULL",
        "CREATE INDEX batch_film_by_state ON batch_film (batch_id, state, place)",
        """CREATE TABLE telling (
            told_id TEXT PRIMARY KEY, alias TEXT NOT NULL, event TEXT NOT NULL,
            subject TEXT NOT NULL, since TEXT NOT NULL, due_at TEXT NOT NULL,
            tries INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL, digest TEXT, why TEXT
            ) WITHOUT ROWID""",
        "CREATE INDEX telling_due ON telling (state, alias, due_at)",
        f"CREATE TRIGGER batch_film_analysis_ai AFTER INSERT ON analysis BEGIN {set_state} ="
        " new.state WHERE run_id = new.analysis_id; END",
        "CREATE TRIGGER batch_film_analysis_au AFTER UPDATE OF state ON analysis"
        f" WHEN old.state <> new.state BEGIN {set_state} = new.state"
        " WHERE run_id = new.analysis_id; END",
        f"CREATE TRIGGER batch_film_analysis_ad AFTER DELETE ON analysis BEGIN {set_state} ="
        f" 'gone' WHERE run_id = old.analysis_id AND {is_open}; END",
        f"CREATE TRIGGER batch_film_pending_ai AFTER INSERT ON pending BEGIN {pending_changed} END",
        f"CREATE TRIGGER batch_film_pending_au AFTER UPDATE ON pending BEGIN {pending_changed} END",
        f"CREATE TRIGGER batch_film_pending_ad AFTER DELETE ON pending BEGIN {set_state} ="
        f" 'gone' WHERE run_id = old.pending_id AND {is_open}; END",
        "DROP TRIGGER gpu_queue_ai",
        "DROP TRIGGER gpu_queue_ak",
        "CREATE TRIGGER gpu_queue_ai AFTER INSERT ON analysis"  # noqa: S608
        f" WHEN new.{is_open} BEGIN"
        f" INSERT INTO gpu_queue SELECT new.analysis_id, {group}, new.number, 'waits',"
        " new.created_at WHERE NOT EXISTS"
        " (SELECT 1 FROM gpu_queue WHERE analysis_id = new.analysis_id); END",
        "CREATE TRIGGER gpu_queue_ak AFTER UPDATE OF number, key, batch ON analysis"  # noqa: S608
        " WHEN new.number <> old.number OR new.key <> old.key OR new.batch IS NOT old.batch BEGIN"
        " UPDATE gpu_queue SET number = new.number,"
        f" grp = {group} WHERE analysis_id = new.analysis_id; END",
    ):
        db.execute(statement)


@_migrations(name="0018_models")
def _models(db: Database) -> None:
    """Count the runs of each model without a look at each row: these have all that is counted."""
    db.execute("CREATE INDEX analysis_by_model ON analysis (model_digest, created_at)")


def _as_searched(table: str, row: str) -> str:
    """Return, as SQL, a row's number and what of it is searched."""
    text = f"{row}.key" if table == "uploaded_file" else f"{row}.key || ' ' || {row}.analysis"
    return f"{row}.number, spelled({text})"


def is_spelled(db: Database) -> bool:
    """Tell whether all names can be searched; they can't yet where an older posedrop left many."""
    return db.conn.execute("SELECT 1 FROM unspelled").fetchone() is None


def go_on_spelling(db: Database, rows: int) -> bool:
    """Make so many more rows searchable, the newest first; True once all are.

    Inside of the caller's transaction.
    """
    left = db.conn.execute("SELECT name, before FROM unspelled LIMIT 1").fetchone()
    if left is None:
        return True
    table, before = left
    first = db.conn.execute(
        f"SELECT min(number) FROM (SELECT number FROM {table} WHERE number < ?"  # noqa: S608
        " ORDER BY number DESC LIMIT ?)",
        (before, rows),
    ).fetchone()[0]
    if first is None:
        db.execute("DELETE FROM unspelled WHERE name = ?", (table,))
        return False
    db.execute(
        f"INSERT OR REPLACE INTO {table}_fts (rowid, name)"  # noqa: S608
        f" SELECT {_as_searched(table, table)} FROM {table} WHERE number >= ? AND number < ?",
        (first, before),
    )
    db.execute("UPDATE unspelled SET before = ? WHERE name = ?", (first, table))
    return False


def connect(path: str, timeout: float) -> Database:
    """Return a connection that waits ``timeout`` seconds for a lock, and begins nothing itself.

    What was written last may be lost with the machine's power, never the file: the buckets know it.
    """
    connection = sqlite3.connect(
        path, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    connection.create_function("spelled", 1, spelled, deterministic=True)
    connection.execute("PRAGMA synchronous = NORMAL")
    return Database(connection, execute_plugins=False)


def enable_wal(db: Database, timeout: float) -> None:
    """Have a database write ahead; wait up to ``timeout`` seconds for others that open it, too.

    SQLite itself does not wait: who changes the journal's mode while another does is told at once
    that the database is locked.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            db.enable_wal()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


#: Tables whose changes are told, by the column that names a row.
_TOLD = {"analysis": "analysis_id", "uploaded_file": "file_id", "gpu_queue": "analysis_id"}


#: Rows of one transaction that are told.
MOST_TOLD = 1000


def tell_changes(db: Database, changes: set[tuple[str, str]]) -> None:
    """Put each row that this connection changes into a set, as (table, id), whoever's SQL it is."""

    # No method of what has the connection: it would be kept by it, and it by that.
    def told(table: str, identity: str) -> None:
        if len(changes) < MOST_TOLD:
            changes.add((table, identity))

    db.conn.create_function("told", 2, told)
    for table, identity in _TOLD.items():
        for what, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
            db.execute(
                f"CREATE TEMP TRIGGER told_{table}_{what.lower()} AFTER {what} ON main.{table}"
                f" BEGIN SELECT told('{table}', {row}.{identity}); END"
            )


def fetch(db: Database, kind: type[_Row], sql: str, identity: str) -> _Row | None:
    """Return the row that a query for one identity finds."""
    found = db.conn.execute(sql, (identity,)).fetchone()
    return decode(kind, found) if found is not None else None


def put(db: Database, table: str, name: str, row: FileRow | AnalysisRow | BatchRow) -> None:
    """Write a listed row under its identity; inside of the caller's transaction."""
    values = encode(row)
    number = number_of(row.created_at, values[name])
    taken = f"SELECT 1 FROM {table} WHERE number = ? AND {name} <> ?"  # noqa: S608
    while db.conn.execute(taken, (number, values[name])).fetchone() is not None:
        number += 1
    if table == "analysis" and isinstance(row, AnalysisRow):
        # By the one, runs of the lowest score come first, and those without one last; the other is
        # the number: of that, beside another column, SQLite looks up no key.
        values["badness"] = -1 if row.quality is None else 100 - row.quality
        values["newness"] = number
    upsert(db, table, name, {"number": number, **values})


def upsert(db: Database, table: str, name: str, values: dict[str, Any]) -> None:
    """Insert or update a row; sqlite-utils' own upsert asks for the schema anew each time."""
    names = ", ".join(f'"{column}"' for column in values)
    places = ", ".join("?" * len(values))
    updates = ", ".join(f'"{column}" = excluded."{column}"' for column in values)
    db.execute(
        f"INSERT INTO {table} ({names}) VALUES ({places})"  # noqa: S608
        f" ON CONFLICT ({name}) DO UPDATE SET {updates}",
        list(values.values()),
    )


@contextmanager
def translated() -> Iterator[None]:
    """Say what SQLite means, and that the index may be deleted if it is damaged."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _failure(error) from error


def _is_busy(error: Exception) -> bool:
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _failure(error: sqlite3.Error | OSError) -> Exception:
    name = getattr(error, "sqlite_errorname", "") or ""
    if _is_busy(error):
        return IndexBusyError("The index is locked by another process; try again.")
    if name.startswith(_UNWRITABLE) or isinstance(error, OSError):
        return IndexBusyError(
            f"The index can't be read or written ({error}): is the disk full or read-only?",
            code="index_unwritable",
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return IndexBusyError(
            f"The index is damaged ({error}): delete it, it is filled again from the buckets.",
            code="index_damaged",
        )
    return error
