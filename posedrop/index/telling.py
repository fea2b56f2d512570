"""The index of tellings: ends of runs and batches that somebody is to be told of, and was not yet.

What was told, and how often it was tried, the bucket knows; these are the tellings at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlite_utils import Database

from posedrop.buckets import layout
from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.listing import LAST_CHARACTER
from posedrop.index.rows import TellingRow


def note_end(
    db: Database, event: str, subject: str, aliases: Iterable[str], finished_at: datetime
) -> None:
    """Note who is to be told of an end, inside of the caller's transaction; once for each.

    A telling's id is made of what it is about, and is the same whenever the index is made anew.
    """
    moment = schema.to_text(finished_at)
    for alias in aliases:
        told_id = layout.make_id(event, subject, alias, moment)
        db.execute(
            "INSERT OR IGNORE INTO telling (told_id, alias, event, subject, since, due_at, state)"
            " VALUES (?, ?, ?, ?, ?, ?, 'due')",
            (told_id, alias, event, subject, moment, moment),
        )


class Telling(IndexFile):
    """The part of the index that knows who is to be told of what."""

    def tellings_due(self, alias: str, now: datetime, limit: int) -> list[TellingRow]:
        """Return tellings for an alias whose time has come, the oldest end first."""
        return self._rows(
            TellingRow,
            "SELECT * FROM telling WHERE state = 'due' AND alias = ? AND due_at <= ?"
            " ORDER BY since, told_id LIMIT ?",
            (alias, schema.to_text(now), limit),
        )

    def is_to_be_told(self, alias: str, folder: str) -> bool:
        """Tell whether a run is under way of whose end an alias is told, not by that of a batch.

        Of films below ``folder``; empty: of those in no folder.
        """
        below = "key >= ? AND key < ?" if folder else "instr(key, '/') = 0 AND ? < ?"
        return (
            int(
                self._value(
                    "SELECT count(*) FROM (SELECT 1 FROM analysis"  # noqa: S608
                    " WHERE state IN ('waiting', 'queued', 'running')"
                    f" AND {below} AND NOT EXISTS (SELECT 1"
                    " FROM batch AS b, json_each(b.request, '$.notify') AS named"
                    " WHERE b.batch_id = analysis.batch AND named.value = ?)"
                    " AND EXISTS (SELECT 1 FROM json_each(notify) WHERE value = ?) LIMIT 1)",
                    (folder, f"{folder}{LAST_CHARACTER}", alias, alias),
                )
            )
            > 0
        )

    def telling_aliases(self) -> list[str]:
        """Return the aliases that are to be told of something."""
        with self._read() as db:
            sql = "SELECT DISTINCT alias FROM telling WHERE state = 'due'"
            return [row[0] for row in db.conn.execute(sql)]

    def telling(self, told_id: str) -> TellingRow | None:
        """Return a telling that is not over, or was given up."""
        return self._row(TellingRow, "SELECT * FROM telling WHERE told_id = ?", (told_id,))

    def telling_put_off(
        self, told_ids: Iterable[str], tries: int, due_at: datetime, error: str | None
    ) -> None:
        """Note how often tellings failed, and when they are tried again."""
        with self._write() as db:
            for told_id in told_ids:
                db.execute(
                    "UPDATE telling SET tries = ?, due_at = ?, why = ? WHERE told_id = ?",
                    (tries, schema.to_text(due_at), error, told_id),
                )

    def telling_in_digest(self, told_ids: Iterable[str], digest: str) -> None:
        """Note the notice that tells of several runs at once."""
        with self._write() as db:
            for told_id in told_ids:
                db.execute("UPDATE telling SET digest = ? WHERE told_id = ?", (digest, told_id))

    def telling_over(self, told_ids: Iterable[str]) -> None:
        """Forget tellings that are over: the bucket has their record."""
        with self._write() as db:
            for told_id in told_ids:
                db.execute("DELETE FROM telling WHERE told_id = ?", (told_id,))

    def telling_given_up(self, told_ids: Iterable[str], tries: int, error: str) -> None:
        """Note that nobody tries again to tell; kept, for a person."""
        with self._write() as db:
            for told_id in told_ids:
                db.execute(
                    "UPDATE telling SET state = 'given_up', tries = ?, why = ? WHERE told_id = ?",
                    (tries, error, told_id),
                )

    def tellings_forgotten(self, before: datetime) -> None:
        """Forget the tellings of ends before a time, those that were given up too."""
        old = "since < ?", (schema.to_text(before),)
        if self._value(f"SELECT count(*) FROM telling WHERE {old[0]}", old[1]):  # noqa: S608
            with self._write() as db:
                db.execute(f"DELETE FROM telling WHERE {old[0]}", old[1])  # noqa: S608

    def tellings_given_up(self) -> dict[str, tuple[int, str]]:
        """Return how many tellings were given up, by alias, and why one of them was."""
        with self._read() as db:
            found = db.conn.execute(
                "SELECT alias, count(*), max(why) FROM telling WHERE state = 'given_up'"
                " GROUP BY alias"
            ).fetchall()
        return {row[0]: (row[1], row[2] or "") for row in found}

    def tellings_again(self, alias: str, now: datetime) -> int:
        """Have what was given up for an alias tried again, from the first; return how many."""
        with self._write() as db:
            changed = db.execute(
                "UPDATE telling SET state = 'due', tries = 0, due_at = ?"
                " WHERE state = 'given_up' AND alias = ?",
                (schema.to_text(now), alias),
            ).rowcount
        return int(changed)
