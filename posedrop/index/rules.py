"""The index of rules: each posedrop.json that was seen, and how far it was followed."""

from __future__ import annotations

from datetime import datetime

from posedrop.buckets.records.runs import RunError
from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.rows import (
    RuleRow,
)
from posedrop.index.search import storable


class Rules(IndexFile):
    """The part of the index that knows the rules of folders."""

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
