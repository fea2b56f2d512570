"""The index: what the buckets hold, in SQLite, so that it can be listed, searched and counted.

It is a projection. It may be deleted and is filled again from the buckets, so nothing is known here
alone. Everything told to it may be told twice, late and in any order: rows only ever move on (an
older version of a video never follows a newer one, a finished run never runs again). What the index
can't know by itself, that an object is gone, it has to be told by ``file_removed`` and
``analysis_removed``.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from posedrop.buckets.records import (
    FileState,
    PendingRequest,
    Request,
    Result,
    RunError,
    RunState,
    VideoRecord,
)
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.index import rows, schema
from posedrop.index.listing import (
    LAST_CHARACTER,
    LAST_NUMBER,
    MAX_PAGE,
    Order,
    Page,
    Row,
    Where,
    to_cursor,
)
from posedrop.index.rows import (
    AnalysisRow,
    DeadLetterRow,
    EventRow,
    FileRow,
    GpuRow,
    PendingRow,
    RuleRow,
)
from posedrop.index.schema import IndexBusyError
from posedrop.index.search import storable
from posedrop.transport.events import Event, ObjectCreated

__all__ = [
    "AnalysisRow",
    "DeadLetterRow",
    "EventRow",
    "FileRow",
    "GpuRow",
    "Index",
    "IndexBusyError",
    "Page",
    "PendingRow",
    "RuleRow",
]

#: An event that failed this often (over some ten minutes) goes to the dead letters.
MAX_TRIES = 12
LONGEST_PAUSE = 120.0
MAX_DEAD_LETTERS = 10_000
MAX_LETTER = 64_000
_FEW = 50_000
#: In how many names that hold a query's trigrams a search looks for all of it, for one page.
MAX_LOOKED_AT = 100_000
#: How many rows of an older posedrop become searchable at a time, while nobody else can write.
_SPELLED_AT_ONCE = 1000
#: What waits, by the name that metrics have for it; each is the first row of an index.
_OLDEST = {
    "event": "SELECT received_at FROM event WHERE handled_at IS NULL ORDER BY id LIMIT 1",
    "file": "SELECT created_at FROM uploaded_file WHERE state = 'received' ORDER BY number LIMIT 1",
    "run": "SELECT created_at FROM analysis WHERE state = 'queued' ORDER BY number LIMIT 1",
}
_UNRESOLVED = "created_at IS NOT NULL AND analysis_id IS NULL AND error IS NULL"

_GROUP = "CASE instr(key, '/') WHEN 0 THEN '' ELSE substr(key, 1, instr(key, '/') - 1) END"
_GPU_ROW = "SELECT q.analysis_id, a.run, q.grp, q.state, q.since FROM"
_GPU_ROWS = f"{_GPU_ROW} gpu_queue AS q JOIN analysis AS a USING (analysis_id)"
#: The first run of each group that waits, in the order of their turns. Groups are looked at one by
#: one, whatever SQLite thinks: they are few, and each finds its first run in an index.
_HEADS = (
    f"{_GPU_ROW} gpu_group AS g CROSS JOIN gpu_queue AS q"  # noqa: S608
    " ON q.grp = g.grp AND q.state = 'waits'"
    " AND q.number = (SELECT min(number) FROM gpu_queue WHERE state = 'waits' AND grp = g.grp)"
    " JOIN analysis AS a USING (analysis_id)"
    " ORDER BY g.turn"
)
_OF_OTHERS = (
    "SELECT sum(min((SELECT count(*) FROM (SELECT 1 FROM gpu_queue AS q"
    " WHERE q.grp = g.grp AND q.state = 'waits' LIMIT ?)),"
    " ? + (g.turn < (SELECT turn FROM gpu_group WHERE grp = ?))))"
    " FROM gpu_group AS g WHERE g.grp <> ?"
)
_DRAWN_BEFORE = (
    "SELECT count(*) FROM analysis AS f, analysis AS mine"
    " WHERE mine.analysis_id = ? AND mine.state IN ('waiting', 'queued', 'running')"
    " AND f.state IN ('waiting', 'queued', 'running') AND f.number < mine.number"
    " AND f.analysis_id NOT IN (SELECT analysis_id FROM gpu_queue)"
)

log = logging.getLogger(__name__)

_Listed = TypeVar("_Listed", FileRow, AnalysisRow)


class Index:
    """The index in one SQLite file; safe to use from any number of threads and processes."""

    def __init__(self, path: Path, *, timeout: float = 30) -> None:
        schema.check_sqlite()
        self._path = path
        self._timeout = timeout
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        #: Called with what is news to the index: how a run ended, what ingest found out.
        self.on_result: Callable[[Result], None] = lambda _: None
        self.on_video: Callable[[VideoRecord], None] = lambda _: None
        self._closed = threading.Event()
        self._speller = threading.Thread(target=self._go_on_spelling, name="spelling", daemon=True)
        with schema.translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db.enable_wal()
            if schema.is_newer(self._db):
                self.close()
                raise ConfigurationError(
                    f"a newer posedrop has had the index {path}: remove it, with the files beside "
                    "it that begin with its name; it comes back from the buckets"
                )
            if not schema.is_current(self._db):
                with self._write():
                    schema.migrate(self._db)
            if not schema.is_spelled(self._db):
                self._speller.start()

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed.set()
        if self._speller.is_alive():
            self._speller.join()
        with self._lock:
            for connection in list(self._open):
                connection.db.close()
            self._open.clear()
        self._local = threading.local()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all that this thread tells the index inside of it one transaction: all, or nothing.

        Others who write wait for its end, so nothing slow (a store, a broker) belongs inside.
        """
        with self._write():
            yield

    # --- events

    def record_events(self, events: Iterable[Event], now: datetime) -> int:
        """Keep the events that are new, all or none of them; return how many were.

        A process that is killed loses none of them any more. A machine without power may lose the
        last (synchronous = NORMAL): what they tell of is in the buckets, for the reconciler.
        """
        moment = schema.to_text(now)
        new = [(*_identity(event), moment, moment) for event in events]
        with self._write() as db:
            return db.conn.executemany(
                "INSERT OR IGNORE INTO event (bucket, key, etag, sequencer, kind, size,"
                " received_at, due_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                new,
            ).rowcount

    def unhandled_events(self, limit: int, now: datetime | None = None) -> list[EventRow]:
        """Return events to handle, oldest first; with ``now``, without those that failed lately."""
        due = "9999" if now is None else schema.to_text(now)
        return self._rows(
            EventRow,
            "SELECT * FROM event WHERE handled_at IS NULL AND due_at <= ? ORDER BY id LIMIT ?",
            (due, limit),
        )

    def events_handled(self, event_ids: Iterable[int], now: datetime) -> None:
        """Note that events need nothing more; they are kept, to know them when they come again."""
        moment = schema.to_text(now)
        with self._write() as db:
            db.conn.executemany(
                "UPDATE event SET handled_at = ? WHERE id = ?",
                [(moment, event_id) for event_id in event_ids],
            )

    def event_failed(self, event_id: int, reason: str, now: datetime) -> bool:
        """Let an event rest, twice as long each time; True if it went to the dead letters."""
        with self._write() as db:
            row = db.conn.execute("SELECT * FROM event WHERE id = ?", (event_id,)).fetchone()
            if row is None:
                return False
            tries = row["tries"] + 1
            if tries >= MAX_TRIES:
                _insert_letter(db, reason, dict(row), now)
                db.execute("DELETE FROM event WHERE id = ?", (event_id,))
                return True
            due = now + timedelta(seconds=min(2.0 ** (tries - 1), LONGEST_PAUSE))
            db.execute(
                "UPDATE event SET tries = ?, due_at = ? WHERE id = ?",
                (tries, schema.to_text(due), event_id),
            )
            return False

    def event_given_up(self, event_id: int, reason: str, now: datetime) -> None:
        """Put an event to the dead letters that no other try can mend; when it comes again, once.

        Told again under the same identity, it is known.
        """
        with self._write() as db:
            row = db.conn.execute("SELECT * FROM event WHERE id = ?", (event_id,)).fetchone()
            if row is not None:
                _insert_letter(db, reason, dict(row), now)
                self.events_handled([event_id], now)

    def event_postponed(self, event_id: int, due: datetime) -> None:
        """Let an event rest until a time; that is no failure."""
        with self._write() as db:
            db.execute("UPDATE event SET due_at = ? WHERE id = ?", (schema.to_text(due), event_id))

    def forget_events(self, before: datetime) -> int:
        """Drop events handled before a time, to keep the table small; return how many."""
        with self._write() as db:
            return db.execute(
                "DELETE FROM event WHERE handled_at < ?", (schema.to_text(before),)
            ).rowcount

    def dead_letter(self, reason: str, body: object, now: datetime) -> None:
        """Keep what could not be read or handled, for a person; the oldest make room."""
        with self._write() as db:
            _insert_letter(db, reason, body, now)

    def dead_letters(self, limit: int = 100, before: int | None = None) -> list[DeadLetterRow]:
        """Return the dead letters, newest first; those older than the one with an id ``before``."""
        return self._rows(
            DeadLetterRow,
            "SELECT * FROM dead_letter WHERE id < ? ORDER BY id DESC LIMIT ?",
            (2**63 - 1 if before is None else before, limit),
        )

    def dead_letter_replayed(self, letter_id: int, events: Iterable[Event], now: datetime) -> bool:
        """Have what a dead letter told followed as if it had come now; False: it is gone already.

        That an event was known, or given up, counts no more.
        """
        moment = schema.to_text(now)
        with self._write() as db:
            sql = "DELETE FROM dead_letter WHERE id = ?"
            if db.conn.execute(sql, (letter_id,)).rowcount == 0:
                return False
            db.conn.executemany(
                "INSERT INTO event (bucket, key, etag, sequencer, kind, size, received_at, due_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (bucket, key, etag, sequencer, kind) DO UPDATE SET"
                " handled_at = NULL, tries = 0, received_at = excluded.received_at,"
                " due_at = excluded.due_at",
                [(*_identity(event), moment, moment) for event in events],
            )
            return True

    # --- files

    def expect_file(
        self,
        file_id: str,
        bucket: str,
        key: str,
        now: datetime,
        *,
        size: int | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Note that somebody may upload a file; changes nothing once it has arrived."""
        expected = rows.new_file(file_id, bucket, key, "expected", now)
        self._merge_file(replace(expected, size=size, metadata=metadata))

    def file_received(
        self,
        bucket: str,
        key: str,
        file_id: str,
        etag: str,
        size: int,
        metadata: dict[str, str],
        last_modified: datetime,
    ) -> tuple[FileRow | None, FileRow]:
        """Note that an object is there, as the store describes it; return the row before and after.

        An object with another ETag than the one known replaces it unless it is older: then it is
        old news. To go back to an older object on purpose, call ``file_removed`` first.
        """
        moment = rows.whole_seconds(last_modified)
        received = rows.new_file(file_id, bucket, key, "received", moment)
        return self._merge_file(
            replace(received, etag=etag, size=size, metadata=metadata, last_modified=moment)
        )

    def file_ingested(self, record: VideoRecord) -> None:
        """Note what ingest found out about a video; for an older version of it, nothing."""
        old, new = self._merge_file(rows.ingested_file(record))
        if old is None or (old.etag, old.updated_at) != (new.etag, new.updated_at):
            self.on_video(record)

    def file_removed(self, file_id: str) -> None:
        """Forget a file."""
        with self._write() as db:
            db.execute("DELETE FROM uploaded_file WHERE file_id = ?", (file_id,))

    def film_gone(self, record: VideoRecord) -> None:
        """Note that the film of a video.json is not there, unless another has its file_id."""
        with self._write() as db:
            if self.file(record.video.file_id) is None:
                gone = replace(rows.ingested_file(record), state="film gone", planned=True)
                schema.put(db, "uploaded_file", "file_id", gone)

    def file_looked_at_anew(self, file_id: str, etag: str) -> bool:
        """Take back the refusal of a file with this ETag; False: it is not refused."""
        with self._write() as db:
            changed = db.execute(
                "UPDATE uploaded_file SET state = 'received', refusal_reason = NULL,"
                " refusal_message = NULL WHERE file_id = ? AND etag = ? AND state = 'refused'",
                (file_id, etag),
            ).rowcount
            return bool(changed > 0)

    def file_planned(
        self,
        file_id: str,
        etag: str,
        waits_for: str | None = None,
        seen: Mapping[str, str | None] | None = None,
    ) -> None:
        """Note that these bytes of a file were planned by its rule, or which rule it waits for.

        Args:
            waits_for: as :class:`FileRow` has it.
            seen: the ETags of the rules that were looked at, None where there was none. Of a file
                that waits, this is not taken for its last plan if other ones are known by now: what
                they let be planned has passed this file by.
        """
        seen = seen or {}
        with self._write() as db:
            news = False
            if waits_for is not None and seen:
                places = ", ".join("?" * len(seen))
                known = db.conn.execute(
                    f"SELECT key, etag FROM rule WHERE key IN ({places})",  # noqa: S608
                    [storable(key) for key in seen],
                ).fetchall()
                news = any(row["etag"] not in {None, seen.get(row["key"])} for row in known)
            db.execute(
                "UPDATE uploaded_file SET planned = ?, waits_for = ?"
                " WHERE file_id = ? AND etag = ?",
                (not news, storable(waits_for), file_id, etag),
            )

    def file_unplanned(self, file_id: str) -> None:
        """Note that a file is to be planned again, as that has failed."""
        with self._write() as db:
            db.execute("UPDATE uploaded_file SET planned = 0 WHERE file_id = ?", (file_id,))

    def files_waiting(
        self, prefix: str, after: str, limit: int, rule: str | None = None
    ) -> list[FileRow]:
        """Return files that wait for a rule, or for this one ``rule``; by key, behind ``after``."""
        only = "AND waits_for = ?" if rule is not None else ""
        return self._rows(
            FileRow,
            "SELECT * FROM uploaded_file WHERE waits_for IS NOT NULL"  # noqa: S608
            f" AND key >= ? AND key < ? AND key > ? {only} ORDER BY key LIMIT ?",
            (prefix, f"{prefix}{LAST_CHARACTER}", after, *([rule] if rule else []), limit),
        )

    def files_unplanned(self, limit: int = 1000) -> list[FileRow]:
        """Return files that were ingested and not planned, oldest first."""
        return self._rows(
            FileRow,
            "SELECT * FROM uploaded_file WHERE state = 'ready' AND NOT planned"
            " ORDER BY number LIMIT ?",
            (limit,),
        )

    def file_enqueued(self, file_id: str, now: datetime) -> None:
        """Note when a file was last handed to the queue."""
        self._enqueued("uploaded_file", "file_id", file_id, now)

    def file(self, file_id: str) -> FileRow | None:
        """Return a file by its id."""
        return self._row(FileRow, "SELECT * FROM uploaded_file WHERE file_id = ?", (file_id,))

    def file_by_key(self, bucket: str, key: str) -> FileRow | None:
        """Return a file by the name of its object."""
        return self._row(
            FileRow,
            "SELECT * FROM uploaded_file WHERE key = ? AND bucket = ? ORDER BY number LIMIT 1",
            (key, bucket),
        )

    def files_with_content(self, sha256: str) -> list[FileRow]:
        """Return the files that have this content, the one that had it first before all."""
        return self._rows(
            FileRow, "SELECT * FROM uploaded_file WHERE sha256 = ? ORDER BY number", (sha256,)
        )

    def files(
        self,
        *,
        state: FileState | None = None,
        prefix: str | None = None,
        query: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[FileRow]:
        """Return files, newest first, whose key begins with ``prefix`` and has all words."""
        where = Where(cursor)
        where.equal("state", state)
        if not prefix:
            return self._page(FileRow, "uploaded_file", where, query, limit)
        where.begins(prefix)
        # A rare prefix is picked from the index of keys and sorted; a common one is met soon
        # enough in order of age. SQLite can't know which is which.
        how = "NOT INDEXED" if state is None else "INDEXED BY file_by_state"
        if self._few_begin_with(prefix):
            how = "INDEXED BY file_by_key"
        return self._page(FileRow, "uploaded_file", where, query, limit, how)

    def _few_begin_with(self, prefix: str) -> bool:
        found = self._value(
            "SELECT count(*) FROM (SELECT 1 FROM uploaded_file WHERE key >= ? AND key < ? LIMIT ?)",
            (prefix, f"{prefix}{LAST_CHARACTER}", _FEW),
        )
        return int(found) < _FEW

    def _merge_file(self, new: FileRow) -> tuple[FileRow | None, FileRow]:
        with self._write() as db:
            old = schema.fetch(
                db, FileRow, "SELECT * FROM uploaded_file WHERE file_id = ?", new.file_id
            )
            merged = rows.newer_file(old, new) if old is not None else new
            if merged != old:
                schema.put(db, "uploaded_file", "file_id", merged)
            return old, merged

    # --- analyses

    def analysis_requested(self, request: Request, run: str) -> bool:
        """Note a run that was asked for; False if it was known already."""
        with self._write() as db:
            taken = db.conn.execute(
                "SELECT 1 FROM taken WHERE analysis_id = ?", (request.analysis_id,)
            ).fetchone()
            state: RunState = "queued" if taken is None else "running"
            return _merge_analysis(db, rows.requested_analysis(request, run, state))

    def analysis_running(self, analysis_id: str) -> None:
        """Note that a worker has taken a run; nothing once the run is over."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO taken VALUES (?)", (analysis_id,))
            db.execute(
                "UPDATE analysis SET state = 'running'"
                " WHERE analysis_id = ? AND state IN ('waiting', 'queued')",
                (analysis_id,),
            )

    def analysis_finished(self, result: Result, run: str) -> None:
        """Note how a run ended, whether or not it was known before."""
        with self._write() as db:
            sql = "SELECT 1 FROM analysis WHERE analysis_id = ? AND finished_at IS NOT NULL"
            known = db.conn.execute(sql, (result.analysis_id,)).fetchone() is not None
            _merge_analysis(db, rows.finished_analysis(result, run))
        if not known:
            self.on_result(result)

    def analysis_removed(self, analysis_id: str) -> None:
        """Forget a run with all its folders, but for the fact that there was one."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO gone VALUES (?)", (analysis_id,))
            for table in ("analysis", "place", "taken"):
                db.execute(f"DELETE FROM {table} WHERE analysis_id = ?", (analysis_id,))  # noqa: S608

    def place_removed(self, analysis_id: str, run: str) -> AnalysisRow | None:
        """Forget one folder of a run; with its last one, the run.

        Returns:
            The row of the folder where the run is read from now on, if that is another one.
        """
        with self._write() as db:
            db.execute("DELETE FROM place WHERE run = ?", (storable(run),))
            row = self.analysis(analysis_id)
            if row is None or row.run != run:
                return None
            left = self.places(analysis_id)[1:]
            if not left:
                self.analysis_removed(analysis_id)
                return None
            db.execute("DELETE FROM taken WHERE analysis_id = ?", (analysis_id,))
            db.execute("DELETE FROM place WHERE run = ?", (storable(left[0].run),))
            schema.put(db, "analysis", "analysis_id", left[0])
            return left[0]

    def places(self, analysis_id: str) -> list[AnalysisRow]:
        """Return all folders of a run, one a name of its content, where it is read first."""
        row = self.analysis(analysis_id)
        if row is None:
            return []
        others = self._rows(
            AnalysisRow, "SELECT * FROM place WHERE analysis_id = ?", (analysis_id,)
        )
        return [row, *sorted(others, key=rows.place_order)]

    def place(self, analysis_id: str, run: str) -> AnalysisRow | None:
        """Return the row of one folder of a run."""
        row = self.analysis(analysis_id)
        if row is not None and row.run == run:
            return row
        return self._row(AnalysisRow, "SELECT * FROM place WHERE run = ?", (run,))

    def places_of_file(self, file_id: str) -> list[AnalysisRow]:
        """Return the folders of all runs beside a file, whether or not they are read there."""
        others = self._rows(AnalysisRow, "SELECT * FROM place WHERE file_id = ?", (file_id,))
        return self.analyses_of_file(file_id) + others

    def places_after(self, run: str, limit: int) -> list[AnalysisRow]:
        """Return folders where runs are not read, by their names, those behind ``run``."""
        return self._rows(
            AnalysisRow, "SELECT * FROM place WHERE run > ? ORDER BY run LIMIT ?", (run, limit)
        )

    def places_to_fill(self, after: str, limit: int) -> list[AnalysisRow]:
        """Return folders without a result of runs that are over in another, by their names."""
        return self._rows(
            AnalysisRow,
            "SELECT p.* FROM place AS p JOIN analysis AS a ON a.analysis_id = p.analysis_id"
            " WHERE p.finished_at IS NULL AND a.finished_at IS NOT NULL AND p.run > ?"
            " ORDER BY p.run LIMIT ?",
            (after, limit),
        )

    def analysis_is_gone(self, analysis_id: str) -> bool:
        """Tell whether a run was removed and not asked for again."""
        sql = "SELECT count(*) FROM gone WHERE analysis_id = ?"
        return int(self._value(sql, (analysis_id,))) > 0

    def analysis_enqueued(self, analysis_id: str, now: datetime) -> None:
        """Note when a run was last handed to the queue."""
        self._enqueued("analysis", "analysis_id", analysis_id, now)

    def analysis(self, analysis_id: str) -> AnalysisRow | None:
        """Return a run by its id."""
        return self._row(
            AnalysisRow, "SELECT * FROM analysis WHERE analysis_id = ?", (analysis_id,)
        )

    def retry_of(self, analysis_id: str) -> str | None:
        """Return the id of the run that was made for one that failed or was cancelled."""
        row = self._row(
            AnalysisRow,
            "SELECT * FROM analysis WHERE retry_of = ? ORDER BY number DESC LIMIT 1",
            (analysis_id,),
        )
        return row.analysis_id if row is not None else None

    def analyses(
        self,
        *,
        state: RunState | None = None,
        file_id: str | None = None,
        analysis: str | None = None,
        query: str | None = None,
        order: Order = "newest",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[AnalysisRow]:
        """Return runs in an order; ``query`` is searched in the video's key and the analysis.

        Of a file, those that have a folder beside it, be they read there or beside another name.
        Of what a query finds, in order of quality, the newest :data:`MAX_LOOKED_AT` runs count.
        """
        where = Where(cursor, order)
        if file_id is not None:
            beside = " UNION ".join(
                f"SELECT analysis_id FROM {table} WHERE file_id = ?"  # noqa: S608
                for table in ("analysis", "place")
            )
            where.add(f"f.analysis_id IN ({beside})", file_id, file_id)
        where.equal("state", state)
        where.equal("analysis", analysis)
        # Few runs have one file; SQLite would go through all runs in the order asked for.
        how = "INDEXED BY sqlite_autoindex_analysis_1" if file_id is not None else ""
        return self._page(AnalysisRow, "analysis", where, query, limit, how)

    def analyses_of_file(self, file_id: str) -> list[AnalysisRow]:
        """Return all runs on a file, newest first."""
        return self._rows(
            AnalysisRow,
            "SELECT * FROM analysis WHERE file_id = ? ORDER BY number DESC",
            (file_id,),
        )

    def analyses_of_content(self, sha256: str) -> list[AnalysisRow]:
        """Return all runs on a content, under whatever name it lies, newest first."""
        return self._rows(
            AnalysisRow,
            "SELECT * FROM analysis WHERE sha256 = ? ORDER BY number DESC",
            (sha256,),
        )

    def analyses_under_way(self) -> list[AnalysisRow]:
        """Return the unfinished runs but for those that wait for their group's turn."""
        return self._rows(
            AnalysisRow,
            "SELECT a.* FROM analysis AS a LEFT JOIN gpu_queue AS q USING (analysis_id)"
            " WHERE a.state IN ('queued', 'running')"
            " AND (q.state IS NULL OR q.state IN ('sent', 'asked')) ORDER BY a.number",
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many files, analyses, events, pending requests and dead letters there are."""
        by_state: dict[str, dict[str, int]] = {"files": {}, "analyses": {}}
        named = {"uploaded_file": "files", "analysis": "analyses"}
        with self._read() as db:
            for table, state, count in db.conn.execute("SELECT * FROM tally WHERE n > 0"):
                by_state[named[table]][state] = count
            unhandled = db["event"].count_where("handled_at IS NULL")
            waiting = db["pending"].count_where(_UNRESOLVED)
            letters = db["dead_letter"].count
        others = {"events": {"unhandled": unhandled}, "pending": {"waiting": waiting}}
        return by_state | others | {"dead_letters": {"kept": letters}}

    # --- the gpu queue

    def gpu_next(self) -> GpuRow | None:
        """Return the run whose turn it is: the oldest of the group that has waited the longest.

        A group waits since it was served last, or since it has a run that waits.
        """
        return self._row(GpuRow, f"{_HEADS} LIMIT 1", ())

    def gpu_taken(self) -> int:
        """Return how many runs were sent to the gpu workers, and have no predictions yet."""
        sql = "SELECT count(*) FROM gpu_queue WHERE state IN ('sent', 'asked')"
        return int(self._value(sql, ()))

    def gpu_needed(self, analysis_id: str, run: str) -> bool:
        """Tell whether a run that is read in the folder ``run`` waits for a network, or has one."""
        sql = (
            "SELECT count(*) FROM gpu_queue JOIN analysis AS a USING (analysis_id)"
            " WHERE analysis_id = ? AND a.run = ?"
        )
        return int(self._value(sql, (analysis_id, run))) > 0

    def gpu_under_way(self, state: str, before: datetime) -> list[GpuRow]:
        """Return some runs in a state (sent, asked) since a time or longer, the oldest first."""
        return self._rows(
            GpuRow,
            f"{_GPU_ROWS} WHERE q.state = ? AND q.since <= ? ORDER BY q.since, q.number LIMIT 1000",
            (state, schema.to_text(before)),
        )

    def gpu_groups_waiting(self, before: datetime) -> list[str]:
        """Return some groups of which a run waits to be sent, since a time or longer."""
        with self._read() as db:
            found = db.conn.execute(
                "SELECT grp FROM gpu_group AS g WHERE EXISTS (SELECT 1 FROM gpu_queue AS q"
                " WHERE q.grp = g.grp AND q.state = 'waits' AND q.since <= ?) LIMIT 100",
                (schema.to_text(before),),
            ).fetchall()
        return [row["grp"] for row in found]

    def gpu_sent(self, analysis_id: str, now: datetime) -> None:
        """Note that a run was sent, or that a worker is at it: its group is served."""
        moment = schema.to_text(now)
        with self._write() as db:
            db.execute(
                "UPDATE gpu_group SET turn = (SELECT max(turn) + 1 FROM gpu_group)"
                " WHERE grp = (SELECT grp FROM gpu_queue WHERE analysis_id = ?)",
                (analysis_id,),
            )
            db.execute(
                "UPDATE gpu_queue SET state = 'sent', since = ? WHERE analysis_id = ?",
                (moment, analysis_id),
            )

    def gpu_asked(self, analysis_id: str, now: datetime) -> None:
        """Note that a run that was sent shall let another group go first."""
        with self._write() as db:
            db.execute(
                "UPDATE gpu_queue SET state = 'asked', since = ?"
                " WHERE analysis_id = ? AND state IN ('sent', 'asked')",
                (schema.to_text(now), analysis_id),
            )

    def gpu_waits(self, analysis_id: str, now: datetime) -> None:
        """Have a run wait for its group's turn once more; nothing once it is over."""
        with self._write() as db:
            db.execute(
                f"INSERT INTO gpu_queue SELECT analysis_id, {_GROUP}, number, 'waits', ?"  # noqa: S608
                " FROM analysis WHERE analysis_id = ? AND finished_at IS NULL"
                " ON CONFLICT (analysis_id) DO UPDATE SET state = 'waits',"
                " since = CASE state WHEN 'waits' THEN since ELSE excluded.since END",
                (schema.to_text(now), analysis_id),
            )

    def gpu_parked(self, analysis_id: str, until: datetime) -> None:
        """Have a run that no worker took wait outside of the queue until a time."""
        with self._write() as db:
            db.execute(
                "UPDATE gpu_queue SET state = 'parked', since = ? WHERE analysis_id = ?",
                (schema.to_text(until), analysis_id),
            )

    def gpu_unparked(self, now: datetime) -> None:
        """Have those wait in the queue whose time has come."""
        moment = schema.to_text(now)
        due = "state = 'parked' AND since <= ?"
        if self._value(f"SELECT count(*) FROM gpu_queue WHERE {due}", (moment,)):  # noqa: S608
            with self._write() as db:
                db.execute(f"UPDATE gpu_queue SET state = 'waits' WHERE {due}", (moment,))  # noqa: S608

    def gpu_over(self, analysis_id: str) -> None:
        """Note that a run needs no network any more."""
        with self._write() as db:
            db.execute("DELETE FROM gpu_queue WHERE analysis_id = ?", (analysis_id,))

    def position(self, analysis_id: str) -> int:
        """Return how many runs will have their turn before this one, as things are.

        Of a run that has its predictions: how many others have them, and are older.
        """
        with self._read() as db:
            mine = db.conn.execute(
                "SELECT state, grp, number, since FROM gpu_queue WHERE analysis_id = ?",
                (analysis_id,),
            ).fetchone()
            if mine is None:
                return int(self._value(_DRAWN_BEFORE, (analysis_id,)))
            if mine["state"] in {"sent", "asked"}:
                sent = "state IN ('sent', 'asked') AND (since, number) < (?, ?)"
                sql = f"SELECT count(*) FROM gpu_queue WHERE {sent}"  # noqa: S608
                return int(self._value(sql, (mine["since"], mine["number"])))
            before = int(
                self._value(
                    "SELECT count(*) FROM gpu_queue"
                    " WHERE state = 'waits' AND grp = ? AND number < ?",
                    (mine["grp"], mine["number"]),
                )
            )
            # As many of each other group as of one's own, and one more of those that come first.
            others = self._value(_OF_OTHERS, (before + 1, before, mine["grp"], mine["grp"]))
        return before + int(others or 0) + self.gpu_taken()

    def oldest(self) -> dict[str, datetime | None]:
        """Return since when the oldest waits: an event, a received file, a queued run."""
        found: dict[str, datetime | None] = {}
        with self._read() as db:
            for what, sql in _OLDEST.items():
                row = db.conn.execute(sql).fetchone()
                found[what] = schema.from_text(row[0]) if row is not None else None
        return found

    # --- pending

    def pending_added(self, request: PendingRequest) -> None:
        """Note an analysis that was asked for before its video was ingested."""
        row = schema.encode(rows.pending_row(request))
        del row["analysis_id"], row["error"]
        self._put_pending(row)

    def pending_resolved(self, pending_id: str, analysis_id: str) -> None:
        """Note which run a pending request became."""
        self._put_pending({"pending_id": pending_id, "analysis_id": analysis_id})

    def pending_failed(self, pending_id: str, error: RunError) -> None:
        """Note why a pending request can't become a run."""
        self._put_pending({"pending_id": pending_id, "error": error.model_dump_json()})

    def pending_removed(self, pending_id: str) -> None:
        """Forget a pending request."""
        with self._write() as db:
            db.execute("DELETE FROM pending WHERE pending_id = ?", (pending_id,))

    def pending(self, pending_id: str) -> PendingRow | None:
        """Return a pending request, whether it still waits or not."""
        return self._row(
            PendingRow,
            "SELECT * FROM pending WHERE pending_id = ? AND created_at IS NOT NULL",
            (pending_id,),
        )

    def pending_of_file(self, file_id: str) -> list[PendingRow]:
        """Return the pending requests of a file, oldest first."""
        return self._rows(
            PendingRow,
            f"SELECT * FROM pending WHERE file_id = ? AND {_UNRESOLVED}"  # noqa: S608
            " ORDER BY created_at, pending_id",
            (file_id,),
        )

    def pending_of_analysis(self, analysis_id: str) -> list[PendingRow]:
        """Return the pending requests that became a run."""
        return self._rows(
            PendingRow,
            "SELECT * FROM pending WHERE analysis_id = ? AND created_at IS NOT NULL",
            (analysis_id,),
        )

    def pending_open(self) -> list[PendingRow]:
        """Return all requests that are still pending, oldest first."""
        return self._rows(
            PendingRow,
            f"SELECT * FROM pending WHERE {_UNRESOLVED} ORDER BY created_at, pending_id",  # noqa: S608
        )

    def _put_pending(self, values: dict[str, Any]) -> None:
        with self._write() as db:
            schema.upsert(db, "pending", "pending_id", values)

    # --- rules

    def rule(self, key: str) -> RuleRow | None:
        """Return a rule that was seen."""
        return self._row(RuleRow, "SELECT * FROM rule WHERE key = ?", (key,))

    def rule_told(
        self, key: str, etag: str | None, error: RunError | None, since: datetime, now: datetime
    ) -> None:
        """Note the state of a rule (``etag`` None: it is gone); files below it are planned anew.

        Those that wait, and unless its state is what it was, be it for other reasons.
        """
        text = error.model_dump_json() if error is not None else None
        with self._write() as db:
            old = schema.fetch(db, RuleRow, "SELECT * FROM rule WHERE key = ?", storable(key))
            values = {
                "key": storable(key),
                "etag": etag,
                "error": text,
                "since": schema.to_text(since),
                "checked_at": schema.to_text(now),
            }
            if old is None or (old.etag, old.error is None) != (etag, error is None):
                values |= {"after": "", "turn": old.turn + 1 if old is not None else 0}
            else:
                values |= {"after": old.after, "turn": old.turn}
            schema.upsert(db, "rule", "key", values)

    def rules_wrong(self, limit: int) -> list[RuleRow]:
        """Return rules that can't be followed, those first that were looked at the longest ago."""
        return self._rows(
            RuleRow,
            "SELECT * FROM rule WHERE error IS NOT NULL ORDER BY checked_at LIMIT ?",
            (limit,),
        )

    def rules(self, after: str, limit: int) -> list[RuleRow]:
        """Return the rules that were seen, by key, those behind ``after``."""
        return self._rows(
            RuleRow, "SELECT * FROM rule WHERE key > ? ORDER BY key LIMIT ?", (after, limit)
        )

    def rule_to_follow(self) -> RuleRow | None:
        """Return a rule below which videos may wait that were not planned anew since it came.

        It is the one that was looked at the longest ago: a large folder holds up no small one.
        """
        return self._row(
            RuleRow, "SELECT * FROM rule WHERE after IS NOT NULL ORDER BY checked_at LIMIT 1", ()
        )

    def rule_followed(self, row: RuleRow, after: str | None, now: datetime) -> None:
        """Note how far down the videos below a rule were planned anew; None: all of them.

        Nothing if that was begun again meanwhile. Then a rule that is gone is forgotten.
        """
        with self._write() as db:
            db.execute(
                "UPDATE rule SET after = ?, checked_at = ? WHERE key = ? AND turn = ?",
                (storable(after), schema.to_text(now), storable(row.key), row.turn),
            )
            db.execute("DELETE FROM rule WHERE after IS NULL AND etag IS NULL")

    # --- all of it

    def reset(self) -> None:
        """Empty what the buckets fill again.

        What they don't know stays: events not yet handled, dead letters, which runs were removed.
        """
        with self._write() as db:
            for table in ("uploaded_file", "analysis", "place", "taken", "pending", "rule"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608
            db.execute("DELETE FROM gpu_group")
            db.execute("DELETE FROM event WHERE handled_at IS NOT NULL")

    # --- how it is done

    def _go_on_spelling(self) -> None:
        """Make searchable what an older posedrop left; others write and read in between."""
        took = 0.0
        while not self._closed.wait(took):
            try:
                with self._write() as db:
                    began = time.monotonic()
                    if schema.go_on_spelling(db, _SPELLED_AT_ONCE):
                        return
                    took = time.monotonic() - began
            except (PosedropError, sqlite3.Error) as error:
                took = 5.0
                if not self._closed.is_set():
                    log.warning("names become searchable later: %s", error)

    @property
    def _db(self) -> Database:
        """Return this thread's own connection."""
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _Connection(schema.connect(str(self._path), self._timeout))
            self._local.connection = connection
            with self._lock:
                self._open.add(connection)
        return connection.db

    @contextmanager
    def _read(self) -> Iterator[Database]:
        with schema.translated():
            yield self._db

    @contextmanager
    def _write(self) -> Iterator[Database]:
        """Hold the write lock from the first read on, so that nothing changes in between."""
        with schema.translated():
            db = self._db
            if db.conn.in_transaction:
                # Inside of ``together``, which ends it.
                yield db
                return
            with self._turn():
                db.conn.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.conn.execute("COMMIT")
                except BaseException:
                    db.rollback()
                    raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for this process' other writers: SQLite would sleep and ask again, up to 0.1 s."""
        if not self._writing.acquire(timeout=self._timeout):
            raise IndexBusyError("The index is written by another thread; try again.")
        try:
            yield
        finally:
            self._writing.release()

    def _rows(self, kind: type[Row], sql: str, values: Sequence[object] = ()) -> list[Row]:
        with self._read() as db:
            found = db.conn.execute(sql, [storable(v) for v in values]).fetchall()
        return [schema.decode(kind, row) for row in found]

    def _row(self, kind: type[Row], sql: str, values: Sequence[object]) -> Row | None:
        return next(iter(self._rows(kind, sql, values)), None)

    def _value(self, sql: str, values: Sequence[object]) -> Any:
        with self._read() as db:
            return db.conn.execute(sql, [storable(v) for v in values]).fetchone()[0]

    def _enqueued(self, table: str, identity: str, value: str, now: datetime) -> None:
        moment = schema.to_text(now)
        with self._write() as db:
            db.execute(
                f"UPDATE {table} SET enqueued_at = max(coalesce(enqueued_at, ''), ?)"  # noqa: S608
                f" WHERE {identity} = ?",
                (moment, value),
            )

    def _page(
        self,
        kind: type[_Listed],
        table: str,
        where: Where,
        query: str | None,
        limit: int,
        how: str = "",
    ) -> Page[_Listed]:
        """Return a page of a list; ``how`` tells SQLite which index to take.

        Only the numbers of the rows are picked and sorted, the rows themselves are read after.
        """
        limit = max(1, min(limit, MAX_PAGE))
        if query is not None and query.strip():
            return self._search(kind, table, where, query, limit)
        picked = (
            f"SELECT f.number FROM {table} AS f {how} WHERE {where.sql()}"  # noqa: S608
            f" ORDER BY {where.listed('f', ' DESC')} LIMIT ?"
        )
        with self._read() as db:
            found = _in_order(db, table, where, picked, [*where.values, limit + 1])
        return _page_of(kind, where, found, limit)

    def _search(
        self, kind: type[_Listed], table: str, where: Where, query: str, limit: int
    ) -> Page[_Listed]:
        """Return a page of what a query finds; so many names are looked at, however few have it.

        Full text gives them in order of their number, the newest first.
        """
        match = where.search(query)
        if match is None:
            return Page([], None)
        likely = (
            f"FROM {table}_fts WHERE {table}_fts MATCH ? AND rowid < ? ORDER BY rowid DESC LIMIT"
        )
        picked = (
            f"SELECT f.number FROM (SELECT rowid, name {likely} {MAX_LOOKED_AT}) AS s"  # noqa: S608
            f" CROSS JOIN {table} AS f WHERE f.number = s.rowid AND {where.sql()}"
        )
        is_by_number = len(where.columns) == 1
        if not is_by_number:
            picked += f" ORDER BY {where.listed('f', ' DESC')}"
        asked: tuple[object, ...] = (match, where.before[0] if is_by_number else LAST_NUMBER)
        with self._read() as db:
            values = [*asked, *where.values, limit + 1]
            found = _in_order(db, table, where, f"{picked} LIMIT ?", values)
            page = _page_of(kind, where, found, limit)
            if page.cursor is None and is_by_number:
                sql = f"SELECT rowid {likely} 1 OFFSET {MAX_LOOKED_AT - 1}"
                last = db.conn.execute(sql, asked).fetchone()
                page = Page(page.rows, to_cursor(last[0]) if last is not None else None)
        return page


class _Connection:
    """A connection that is closed with its thread, and does not wait for the garbage collector."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def __del__(self) -> None:
        self.db.close()


def _in_order(
    db: Database, table: str, where: Where, picked: str, values: Sequence[object]
) -> list[Any]:
    return db.conn.execute(
        f"SELECT f.* FROM ({picked}) AS page JOIN {table} AS f ON f.number = page.number"  # noqa: S608
        f" ORDER BY {where.listed('f', ' DESC')}",
        values,
    ).fetchall()


def _page_of(kind: type[_Listed], where: Where, found: Sequence[Any], limit: int) -> Page[_Listed]:
    cursor = where.cursor_behind(found[limit - 1]) if len(found) > limit else None
    return Page([schema.decode(kind, row) for row in found[:limit]], cursor)


def _identity(event: Event) -> tuple[object, ...]:
    if isinstance(event, ObjectCreated):
        return (event.bucket, event.key, event.etag, event.sequencer, "created", event.size)
    return (event.bucket, event.key, "", event.sequencer, "removed", None)


def _insert_letter(db: Database, reason: str, body: object, now: datetime) -> None:
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)
    last = db.execute(
        "INSERT INTO dead_letter (received_at, reason, body) VALUES (?, ?, ?)",
        (schema.to_text(now), storable(reason), storable(text[:MAX_LETTER])),
    ).lastrowid
    db.execute("DELETE FROM dead_letter WHERE id <= ?", ((last or 0) - MAX_DEAD_LETTERS,))


def _merge_analysis(db: Database, new: AnalysisRow) -> bool:
    """Write what is known of a run with ``new`` told as well; True if it was not known at all."""
    sql = "SELECT * FROM analysis WHERE analysis_id = ?"
    read_at = schema.fetch(db, AnalysisRow, sql, new.analysis_id)
    if read_at is None:
        schema.put(db, "analysis", "analysis_id", new)
        db.execute("DELETE FROM gone WHERE analysis_id = ?", (new.analysis_id,))
        return True
    is_there = read_at.run == new.run
    old = read_at
    if not is_there:
        sql = "SELECT * FROM place WHERE run = ?"
        old = schema.fetch(db, AnalysisRow, sql, storable(new.run)) or new
    merged = rows.newer_analysis(old, new)
    if merged != old or not is_there:
        schema.put(db, *(_READ_THERE if is_there else _READ_ELSEWHERE), merged)
    _read_at_the_first(db, merged if is_there else read_at)
    return False


_READ_THERE = "analysis", "analysis_id"
_READ_ELSEWHERE = "place", "run"


def _read_at_the_first(db: Database, read_at: AnalysisRow) -> None:
    """Have a run read where it should be by what is known of all its folders, told in any order."""
    sql = "SELECT * FROM place WHERE analysis_id = ?"
    others = db.conn.execute(sql, (read_at.analysis_id,)).fetchall()
    if not others:
        return
    first = min(
        (read_at, *(schema.decode(AnalysisRow, row) for row in others)), key=rows.place_order
    )
    if first.run != read_at.run:
        db.execute("DELETE FROM place WHERE run = ?", (storable(first.run),))
        schema.put(db, *_READ_ELSEWHERE, read_at)
        schema.put(db, *_READ_THERE, first)
