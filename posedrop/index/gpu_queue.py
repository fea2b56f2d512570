"""The index of the gpu queue: runs that wait for a network, by groups that take turns."""

from __future__ import annotations

from datetime import datetime
from itertools import zip_longest

from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.rows import (
    GpuRow,
)

#: The runs of batches are a group beside the others of their first folder.
_GROUP = (
    "CASE instr(key, '/') WHEN 0 THEN '' ELSE substr(key, 1, instr(key, '/') - 1) END"
    " || CASE WHEN batch IS NULL THEN '' ELSE '/batch' END"
)
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


class GpuQueue(IndexFile):
    """The part of the index that knows which runs need a network, and whose turn it is."""

    def gpu_next(self) -> GpuRow | None:
        """Return the run whose turn it is: the oldest of the group that has waited the longest.

        A group waits since it was served last, or since it has a run that waits.
        """
        return self._row(GpuRow, f"{_HEADS} LIMIT 1", ())

    def gpu_order(self, limit: int) -> list[GpuRow]:
        """Return the runs that were sent, as they were, then some that wait, as they will be."""
        sent = self._rows(
            GpuRow,
            f"{_GPU_ROWS} WHERE q.state IN ('sent', 'asked') ORDER BY q.since, q.number LIMIT ?",
            (limit,),
        )
        with self._read() as db:
            groups = db.conn.execute(
                "SELECT grp FROM gpu_group ORDER BY turn LIMIT ?", (limit,)
            ).fetchall()
        each = -(-limit // len(groups)) if groups else 0
        waiting = [
            self._rows(
                GpuRow,
                f"{_GPU_ROWS} WHERE q.grp = ? AND q.state = 'waits' ORDER BY q.number LIMIT ?",
                (row["grp"], limit if len(groups) < 4 else 4 * each),
            )
            for row in groups
        ]
        # The groups go round.
        rounds = zip_longest(*waiting)
        return (sent + [row for turn in rounds for row in turn if row is not None])[:limit]

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
        """Have the parked runs wait in the queue whose time has come."""
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
