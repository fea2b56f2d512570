"""What a notice says: JSON for programs, some lines for people. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from handlers.runs import batches
from posedrop.buckets.records.batches import BatchOver
from posedrop.index.rows import AnalysisRow, BatchRow

#: How many runs are named in a digest, and how long it may be.
_NAMED, _MOST_BODY = 30, 4000
#: Letters that chats take for mentions, links or markup: a film's name is text everywhere.
_AS_TEXT = str.maketrans({"<": "\u2039", ">": "\u203a", "@": "\uff20", "&": "+", "`": "'"})


def of_run(row: AnalysisRow) -> str:
    """Return the JSON that says that a run is over: event ``run.over``."""
    error = row.error
    return _event(
        "run.over",
        row.finished_at,
        analysis_id=row.analysis_id,
        file_id=row.file_id,
        key=row.key,
        analysis=row.analysis,
        status=row.state,
        batch_id=row.batch,
        quality=row.quality,
        error=None if error is None else {"code": error.code, "message": error.message[:1000]},
    )


def of_batch(row: BatchRow, over: BatchOver) -> str:
    """Return the JSON that says that a batch is over: event ``batch.over``."""
    return _event(
        "batch.over",
        over.finished_at,
        batch_id=row.batch_id,
        kind=row.request.kind,
        prefix=row.request.prefix,
        analysis=row.request.analysis,
        films=over.films,
        counts=over.counts,
        why=[why.model_dump() for why in over.why],
        line=batches.line(over),
    )


def test_event(words: str) -> str:
    """Return the JSON of a test: event ``test``."""
    return _event("test", None, message=words)


def _event(name: str, moment: datetime | None, **data: Any) -> str:
    when = moment.isoformat() if moment is not None else None
    return json.dumps({"type": name, "timestamp": when, "data": data})


def batch_in_words(row: BatchRow, over: BatchOver) -> tuple[str, str]:
    """Return the title and the text that tell people that a batch is over."""
    what = f"{row.request.prefix}" if row.request.prefix else f"batch {row.batch_id}"
    lines = [batches.line(over)]
    for why in over.why:
        lines.append(f"{why.count} {why.code}: {why.message} (such as {', '.join(why.keys)})")
    lines.append(f"posedrop batches {row.batch_id}")
    return as_text(f"posedrop: {what}: over"), _bounded(lines)


def runs_in_words(folder: str, rows: Sequence[AnalysisRow]) -> tuple[str, str]:
    """Return the title and the text that tell people that some runs are over."""
    counts = Counter[str](row.state for row in rows)
    line = batches.line(BatchOver(films=len(rows), counts=dict(counts), finished_at=_last(rows)))
    bad = [row for row in rows if row.state != "succeeded"]
    good = [row for row in rows if row.state == "succeeded"]
    lines = [line]
    for row in [*bad, *good][:_NAMED]:
        why = f": {row.error.message}" if row.error is not None else ""
        lines.append(f"{row.key} {row.state}{why[:200]} ({row.analysis_id})")
    if len(rows) > _NAMED:
        lines.append(f"... and {len(rows) - _NAMED} more")
    where = folder.rstrip("/") or "your films"
    return as_text(f"posedrop: {where}: {line}")[:200], _bounded(lines)


def _last(rows: Sequence[AnalysisRow]) -> datetime:
    return max(row.finished_at or row.created_at for row in rows)


def _bounded(lines: Sequence[str]) -> str:
    return "\n".join(map(as_text, lines))[:_MOST_BODY]


def as_text(text: str) -> str:
    """Return one line in which nothing is markup, a mention or a control character."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line.translate(_AS_TEXT)
