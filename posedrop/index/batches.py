"""The index of batches: what was asked for with many films, and how far each of those is."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, TypeVar

from posedrop.buckets.records.batches import (
    BATCH_FILMS,
    BatchFilm,
    BatchFilms,
    BatchOver,
    BatchRequest,
    BatchWhy,
)
from posedrop.index import schema, telling
from posedrop.index.database import IndexFile
from posedrop.index.listing import (
    LAST_CHARACTER,
    LAST_NUMBER,
    MAX_PAGE,
    Page,
    from_cursor,
    to_cursor,
)
from posedrop.index.rows import AnalysisRow, BatchFilmRow, BatchRow, FileRow, PendingRow
from posedrop.index.schema import OPEN_STATES

#: Films that are in the videos bucket.
_THERE = "state IN ('received', 'ready', 'refused')"
#: How many reasons of failures are told apart, and how many films are named for each.
_WHYS, _KEYS = 200, 5


_Row = TypeVar("_Row", AnalysisRow, PendingRow)


class FilmBelow(NamedTuple):
    """What a dry run looks at of a film."""

    file_id: str
    key: str
    state: str
    sha256: str | None
    frames: int | None
    width: int | None = None
    height: int | None = None


class Batches(IndexFile):
    """The part of the index that knows the batches."""

    def batch_added(self, request: BatchRequest) -> None:
        """Note a batch that was asked for; nothing if it is known."""
        with self._write() as db:
            if self.batch(request.batch_id) is None:
                row = BatchRow(request.batch_id, request, request.created_at)
                schema.put(db, "batch", "batch_id", row)

    def batch_films_added(self, batch_id: str, number: int, found: BatchFilms) -> None:
        """Note the films of one record of a batch, by its number; told again it changes nothing."""
        with self._write() as db:
            known = "SELECT 1 FROM batch_film WHERE batch_id = ? AND place = ?"
            first = number * BATCH_FILMS
            if db.conn.execute(known, (batch_id, first)).fetchone() is None:
                for place, film in enumerate(found.films, first):
                    schema.upsert(db, "batch_film", "batch_id, place", _film(batch_id, place, film))
                # As it is now: what changes from here on the triggers tell.
                db.execute(_STATES_NOW, (batch_id, first, first + BATCH_FILMS))
                db.execute(_RESOLVED_NOW, (batch_id, first, first + BATCH_FILMS))
            db.execute(
                "UPDATE batch SET chunks = ?, after = ?, walked = ?"
                " WHERE batch_id = ? AND chunks < ?",
                (number, found.after, found.after is None, batch_id, number),
            )

    def batch_over(self, batch_id: str, over: BatchOver) -> None:
        """Note how a batch ended."""
        with self._write() as db:
            row = self.batch(batch_id)
            if row is not None and row.over is None and row.request.kind != "cancel":
                asked = row.request.notify
                telling.note_end(db, "batch.over", batch_id, asked, over.finished_at)
            db.execute(
                "UPDATE batch SET over = ?, walked = 1 WHERE batch_id = ?",
                (over.model_dump_json(), batch_id),
            )

    def batch_forgotten(self, batch_id: str) -> None:
        """Forget a batch with what is known of its films; its runs stay."""
        with self._write() as db:
            db.execute("DELETE FROM batch_film WHERE batch_id = ?", (batch_id,))
            db.execute("DELETE FROM batch WHERE batch_id = ?", (batch_id,))

    def batch(self, batch_id: str) -> BatchRow | None:
        """Return a batch by its id."""
        return self._row(BatchRow, "SELECT * FROM batch WHERE batch_id = ?", (batch_id,))

    def has_batch_films(self, batch_id: str, number: int) -> bool:
        """Tell whether the films of a record of a batch are known, by its number."""
        row = self.batch(batch_id)
        return row is not None and row.chunks >= number

    def batches(self, cursor: str | None, limit: int) -> Page[BatchRow]:
        """Return a page of batches, the newest first."""
        limit = max(1, min(limit, MAX_PAGE))
        before = from_cursor(cursor)[-1] if cursor is not None else LAST_NUMBER
        with self._read() as db:
            found = db.conn.execute(
                "SELECT * FROM batch WHERE number < ? ORDER BY number DESC LIMIT ?",
                (int(before), limit + 1),
            ).fetchall()
        rows = [schema.decode(BatchRow, row) for row in found[:limit]]
        return Page(rows, to_cursor(found[limit - 1]["number"]) if len(found) > limit else None)

    def batches_open(self) -> list[BatchRow]:
        """Return the batches that are not over, oldest first."""
        return self._rows(BatchRow, "SELECT * FROM batch WHERE over IS NULL ORDER BY number")

    def batches_that_cancel(self, since: datetime) -> list[BatchRow]:
        """Return the batches that stop runs, those that were asked for since a time."""
        return self._rows(
            BatchRow,
            "SELECT * FROM batch WHERE created_at >= ?"
            " AND json_extract(request, '$.kind') = 'cancel'",
            (schema.to_text(since),),
        )

    def batch_counts(self, batch_id: str) -> dict[str, int]:
        """Return how many films a batch has, by the states of their runs."""
        with self._read() as db:
            found = db.conn.execute(
                "SELECT state, count(*) FROM batch_film WHERE batch_id = ? GROUP BY state",
                (batch_id,),
            ).fetchall()
        return {row[0]: row[1] for row in found}

    def batch_existed(self, batch_id: str) -> int:
        """Return of how many films the run was there before the batch."""
        sql = "SELECT count(*) FROM batch_film WHERE batch_id = ? AND existed"
        return int(self._value(sql, (batch_id,)))

    def is_of_batch(self, run_id: str, batch_id: str) -> bool:
        """Tell whether a run is that of one of a batch's films."""
        sql = "SELECT count(*) FROM batch_film WHERE run_id = ? AND batch_id = ?"
        return int(self._value(sql, (run_id, batch_id))) > 0

    def batch_is_open(self, batch_id: str) -> bool:
        """Tell whether a run of a batch's films is not over."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM batch_film WHERE batch_id = ? AND state IN {OPEN_STATES} LIMIT 1)"  # noqa: S608, E501
        return int(self._value(sql, (batch_id,))) > 0

    def batch_whys(self, batch_id: str) -> list[BatchWhy]:
        """Return why films of a batch failed or were refused; by code and words, unmerged."""
        error = "coalesce(f.error, a.error)"
        with self._read() as db:
            found = db.conn.execute(
                f"SELECT json_extract({error}, '$.code') AS code,"  # noqa: S608
                f" replace(coalesce(json_extract({error}, '$.message'), ''), f.key, '...') AS said,"
                " count(*) AS n, min(f.place) AS first FROM batch_film AS f"
                " LEFT JOIN analysis AS a ON a.analysis_id = f.run_id"
                " WHERE f.batch_id = ? AND f.state IN ('failed', 'refused')"
                " GROUP BY 1, 2 ORDER BY n DESC LIMIT ?",
                (batch_id, _WHYS),
            ).fetchall()
            firsts = {
                row["first"]: db.conn.execute(
                    "SELECT key FROM batch_film WHERE batch_id = ? AND place = ?",
                    (batch_id, row["first"]),
                ).fetchone()[0]
                for row in found
            }
        return [
            BatchWhy(
                code=row["code"] or "error",
                message=row["said"],
                count=row["n"],
                keys=[firsts[row["first"]]],
            )
            for row in found
        ]

    def batch_films(
        self, batch_id: str, after: int, limit: int, states: tuple[str, ...]
    ) -> list[BatchFilmRow]:
        """Return films of a batch in some states, by their places, those behind ``after``."""
        places = ", ".join("?" * len(states))
        return self._rows(
            BatchFilmRow,
            f"SELECT * FROM batch_film WHERE batch_id = ? AND place > ? AND state IN ({places})"  # noqa: S608
            " ORDER BY place LIMIT ?",
            (batch_id, after, *states, limit),
        )

    def batch_films_lost(self, batch_id: str, limit: int) -> list[BatchFilmRow]:
        """Return films of a batch whose run seems to go on, and is not known to the index."""
        return self._rows(
            BatchFilmRow,
            "SELECT f.* FROM batch_film AS f"  # noqa: S608
            " LEFT JOIN analysis AS a ON a.analysis_id = f.run_id"
            " LEFT JOIN pending AS p ON p.pending_id = f.run_id AND p.created_at IS NOT NULL"
            f" WHERE f.batch_id = ? AND f.state IN {OPEN_STATES}"
            " AND a.analysis_id IS NULL AND p.pending_id IS NULL LIMIT ?",
            (batch_id, limit),
        )

    def batch_film_gone(self, batch_id: str, place: int) -> None:
        """Note that the run of a batch's film was removed before it was over."""
        with self._write() as db:
            db.execute(
                "UPDATE batch_film SET state = 'gone' WHERE batch_id = ? AND place = ?"  # noqa: S608
                f" AND state IN {OPEN_STATES}",
                (batch_id, place),
            )

    # -- what batches go through

    def films_below(self, prefix: str, after: str, limit: int) -> list[FilmBelow]:
        """Return films whose keys begin with ``prefix``, by key, those behind ``after``."""
        with self._read() as db:
            found = db.conn.execute(
                "SELECT file_id, key, state, sha256, json_extract(probe, '$.frames') AS frames,"  # noqa: S608
                " json_extract(probe, '$.width') AS width,"
                " json_extract(probe, '$.height') AS height"
                f" FROM uploaded_file WHERE {_BELOW} AND {_THERE}"
                " ORDER BY key LIMIT ?",
                (prefix, f"{prefix}{LAST_CHARACTER}", after, limit),
            ).fetchall()
        return [FilmBelow(*(row[name] for name in FilmBelow._fields)) for row in found]

    def files_below(self, prefix: str, after: str, limit: int) -> list[FileRow]:
        """Return files that are there, as :meth:`films_below` does."""
        return self._rows(
            FileRow,
            f"SELECT * FROM uploaded_file WHERE {_BELOW} AND {_THERE} ORDER BY key LIMIT ?",  # noqa: S608
            (prefix, f"{prefix}{LAST_CHARACTER}", after, limit),
        )

    def states_of(self, analysis_ids: list[str]) -> dict[str, str]:
        """Return the states of those of some runs (at most 900) that are known, by their ids."""
        places = ", ".join("?" * len(analysis_ids))
        with self._read() as db:
            sql = f"SELECT analysis_id, state FROM analysis WHERE analysis_id IN ({places})"  # noqa: S608
            return {row[0]: row[1] for row in db.conn.execute(sql, analysis_ids)}

    def runs_below(
        self, state: str, prefix: str, after: tuple[str, str], limit: int
    ) -> list[AnalysisRow]:
        """Return runs in a state, by the keys of their videos and their ids, behind ``after``."""
        return self._rows(
            AnalysisRow,
            "SELECT * FROM analysis WHERE state = ? AND key >= ? AND key < ?"
            " AND (key, analysis_id) > (?, ?) ORDER BY key, analysis_id LIMIT ?",
            (state, prefix, f"{prefix}{LAST_CHARACTER}", *after, limit),
        )

    def runs_of_batch(
        self, batch_id: str, state: str, after: int, limit: int
    ) -> list[tuple[int, AnalysisRow]]:
        """Return runs in a state of a batch's films, by their places, behind ``after``."""
        return self._of_batch(AnalysisRow, "analysis", "analysis_id", batch_id, state, after, limit)

    def pending_of_batch(
        self, batch_id: str, after: int, limit: int
    ) -> list[tuple[int, PendingRow]]:
        """Return pending requests of a batch's films, by their places, behind ``after``."""
        return self._of_batch(
            PendingRow, "pending", "pending_id", batch_id, "waiting", after, limit
        )

    def _of_batch(
        self,
        kind: type[_Row],
        table: str,
        identity: str,
        batch_id: str,
        state: str,
        after: int,
        limit: int,
    ) -> list[tuple[int, _Row]]:
        with self._read() as db:
            found = db.conn.execute(
                f"SELECT f.place, r.* FROM batch_film AS f CROSS JOIN {table} AS r"  # noqa: S608
                f" ON r.{identity} = f.run_id WHERE f.batch_id = ? AND f.state = ? AND f.place > ?"
                " ORDER BY f.place LIMIT ?",
                (batch_id, state, after, limit),
            ).fetchall()
        return [(row["place"], schema.decode(kind, row)) for row in found]

    def runs_count(self, state: str, prefix: str) -> int:
        """Return how many runs are in a state, of videos whose keys begin with ``prefix``."""
        sql = "SELECT count(*) FROM analysis WHERE state = ? AND key >= ? AND key < ?"
        return int(self._value(sql, (state, prefix, f"{prefix}{LAST_CHARACTER}")))

    def pending_count(self, prefix: str) -> int:
        """Return how many requests are pending, of videos whose keys begin with ``prefix``."""
        sql = (
            "SELECT count(*) FROM pending WHERE created_at IS NOT NULL AND analysis_id IS NULL"
            " AND error IS NULL AND key >= ? AND key < ?"
        )
        return int(self._value(sql, (prefix, f"{prefix}{LAST_CHARACTER}")))

    def pending_below(self, prefix: str, after: tuple[str, str], limit: int) -> list[PendingRow]:
        """Return requests that are pending, by the keys of their videos, behind ``after``."""
        return self._rows(
            PendingRow,
            "SELECT * FROM pending WHERE created_at IS NOT NULL AND analysis_id IS NULL"
            " AND error IS NULL AND key >= ? AND key < ? AND (key, pending_id) > (?, ?)"
            " ORDER BY key, pending_id LIMIT ?",
            (prefix, f"{prefix}{LAST_CHARACTER}", *after, limit),
        )


_BELOW = "key >= ? AND key < ? AND key > ?"
_PLACES = "batch_id = ? AND place >= ? AND place < ? AND run_id IS NOT NULL"
#: A pending request that became a run since the record was written.
_RESOLVED_NOW = (
    "UPDATE batch_film SET run_id = p.analysis_id,"  # noqa: S608
    " state = coalesce((SELECT state FROM analysis AS a WHERE a.analysis_id = p.analysis_id),"
    " 'queued') FROM pending AS p WHERE p.pending_id = batch_film.run_id"
    f" AND p.analysis_id IS NOT NULL AND {_PLACES}"
)
_STATES_NOW = (
    "UPDATE batch_film SET state = coalesce("  # noqa: S608
    "(SELECT state FROM analysis AS a WHERE a.analysis_id = batch_film.run_id),"
    " (SELECT CASE WHEN json_extract(p.error, '$.code') = 'refused' THEN 'refused'"
    " WHEN json_extract(p.error, '$.code') = 'cancelled' THEN 'cancelled'"
    " WHEN p.error IS NOT NULL THEN 'failed' ELSE 'waiting' END FROM pending AS p"
    " WHERE p.pending_id = batch_film.run_id AND p.created_at IS NOT NULL), state),"
    " error = (SELECT p.error FROM pending AS p WHERE p.pending_id = batch_film.run_id)"
    f" WHERE {_PLACES}"
)
#: Errors of films that no run could be begun with, by what they mean for the film.
_STATE_BY_ERROR = {"refused": "refused", "cancelled": "cancelled", "not_found": "gone"}


def _film(batch_id: str, place: int, film: BatchFilm) -> dict[str, object]:
    state = "queued"
    if film.error is not None:
        state = _STATE_BY_ERROR.get(film.error.code, "failed")
    return {
        "batch_id": batch_id,
        "place": place,
        "file_id": film.file_id,
        "key": film.key,
        "run_id": film.run_id,
        "existed": film.existed,
        "state": state,
        "error": film.error.model_dump_json() if film.error is not None else None,
    }
