"""The index of pending requests: analyses asked for before their video was ingested."""

from __future__ import annotations

from typing import Any

from posedrop.buckets.records.requests import PendingRequest
from posedrop.buckets.records.runs import RunError
from posedrop.index import rows, schema
from posedrop.index.database import IndexFile
from posedrop.index.rows import (
    PendingRow,
)

UNRESOLVED = "created_at IS NOT NULL AND analysis_id IS NULL AND error IS NULL"


class Pending(IndexFile):
    """The part of the index that knows the pending requests."""

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
            f"SELECT * FROM pending WHERE file_id = ? AND {UNRESOLVED}"  # noqa: S608
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
            f"SELECT * FROM pending WHERE {UNRESOLVED} ORDER BY created_at, pending_id",  # noqa: S608
        )

    def _put_pending(self, values: dict[str, Any]) -> None:
        with self._write() as db:
            schema.upsert(db, "pending", "pending_id", values)
