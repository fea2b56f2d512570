"""The index of runs: of which video, how they went, in which folders their results are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlite_utils import Database

from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunState
from posedrop.index import rows, schema, telling
from posedrop.index.listing import LAST_CHARACTER, NEWEST_LISTED, RUNS, Order, Page, Where
from posedrop.index.pages import Lists
from posedrop.index.rows import (
    AnalysisRow,
)
from posedrop.index.search import storable


class Analyses(Lists):
    """The part of the index that knows the runs."""

    #: Called with how a run ended, where that is news to the index.
    on_result: Callable[[Result], None]

    def analysis_requested(self, request: Request, run: str) -> bool:
        """Note a run that was asked for; False if it was known already."""
        with self._write() as db:
            taken = db.conn.execute(
                "SELECT 1 FROM taken WHERE analysis_id = ?", (request.analysis_id,)
            ).fetchone()
            state: RunState = "queued" if taken is None else "running"
            is_new = _merge_analysis(db, rows.requested_analysis(request, run, state))
            if is_new and not request.needs_network:
                db.execute("DELETE FROM gpu_queue WHERE analysis_id = ?", (request.analysis_id,))
            if not is_new and request.notify:  # its result may have been told of before
                self._is_to_be_told(db, request.analysis_id)
            return is_new

    def _is_to_be_told(self, db: Database, analysis_id: str) -> None:
        """Note who is to be told that a run is over; the bucket knows who was told."""
        row = self.analysis(analysis_id)
        if row is not None and row.finished_at is not None:
            telling.note_end(db, "run.over", analysis_id, row.notify, row.finished_at)

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
                self._is_to_be_told(db, result.analysis_id)
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

    def models_used(self) -> dict[str, tuple[int, datetime]]:
        """Return how many runs each model has, by its digest, and when it was last asked for."""
        with self._read() as db:
            found = db.conn.execute(
                "SELECT model_digest, count(*), max(created_at) FROM analysis"
                " WHERE model_digest IS NOT NULL GROUP BY model_digest"
            ).fetchall()
        return {digest: (count, schema.from_text(last)) for digest, count, last in found}

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
        model: str | None = None,
        asked_by: str | None = None,
        prefix: str | None = None,
        batch: str | None = None,
        query: str | None = None,
        order: Order = "newest",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[AnalysisRow]:
        """Return runs in an order; ``query`` is searched in the video's key and the analysis.

        ``prefix`` is what the key of the video begins with, where the run is read. Of a file, those
        that have a folder beside it, be they read there or beside another name.
        ``model`` is a model's name, ``batch`` the id of a batch: the runs that it made or found.
        Of what a query finds, in another order than the newest first, the newest
        ``pages.MAX_SORTED`` runs count. A page may be short, or empty, and have a cursor to go on
        with, where many rows were looked at for few.
        """
        filters = {"state": state, "analysis": analysis, "model": model, "asked_by": asked_by}
        given = [name for name, value in filters.items() if value is not None]
        searched = query is not None and bool(query.strip())
        named = file_id is not None or batch is not None
        rare = prefix is not None and not named and self._few_begin_with(prefix)
        # By one of these alone, SQLite has an index of its own.
        plain = order != "name" and given in ([], ["state"], ["analysis"]) and not prefix
        walks = not (searched or rare or plain or named)
        where = Where(cursor, NEWEST_LISTED if walks and order == "newest" else RUNS[order])
        if file_id is not None:
            beside = " UNION ".join(
                f"SELECT analysis_id FROM {table} WHERE file_id = ?"  # noqa: S608
                for table in ("analysis", "place")
            )
            where.add(f"f.analysis_id IN ({beside})", file_id, file_id)
        if batch is not None:
            sql = "SELECT run_id FROM batch_film WHERE batch_id = ? AND run_id IS NOT NULL"
            where.add(f"f.analysis_id IN ({sql})", batch)
        for name in given:
            where.equal(name, filters[name])
        # Few runs are of one file or batch; SQLite would go through all in the order asked for.
        how = "INDEXED BY sqlite_autoindex_analysis_1" if named else ""
        if prefix:
            where.begins(prefix)
            if rare:
                # By the index of the files' keys.
                sql = "SELECT file_id FROM uploaded_file WHERE key >= ? AND key < ?"
                where.add(f"f.file_id IN ({sql})", prefix, f"{prefix}{LAST_CHARACTER}")
                how = "INDEXED BY analysis_by_file"
        if not walks:
            return self._page(AnalysisRow, "analysis", where, query, limit, how)
        within: tuple[str, tuple[object, ...]] = ("TRUE", ())
        if prefix and order == "name":
            within = where.key_range(prefix)
        columns = (*given, "key")
        return self._walk(AnalysisRow, "analysis", where, limit, columns, within)

    def counts_below(self, prefix: str, limit: int) -> tuple[dict[str, int], list[AnalysisRow]]:
        """Return how many runs are in each state, of videos whose keys begin so.

        Args:
            prefix: of the keys.
            limit: so many runs are counted, and no further ones.

        Returns:
            The counts, and some of the runs that failed.
        """
        by = "analysis_by_name_listed"
        return self._counts_below(AnalysisRow, "analysis", by, prefix, limit, "failed")

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
