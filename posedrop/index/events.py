"""The index of events: those that wait to be followed, and the dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlite_utils import Database

from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.rows import (
    DeadLetterRow,
    EventRow,
)
from posedrop.index.search import storable
from posedrop.transport.events import Event, ObjectCreated

#: An event that failed this often (over some ten minutes) goes to the dead letters.
MAX_TRIES = 12
LONGEST_PAUSE = 120.0
MAX_DEAD_LETTERS = 10_000
MAX_LETTER = 64_000


class Events(IndexFile):
    """The part of the index that keeps what the stores told, until it is followed."""

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
