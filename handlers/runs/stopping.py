"""Stopping a run that waits or goes on: what a worker sees, or a result in its place."""

from __future__ import annotations

from typing import Literal

from handlers.context import Context
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt, NeedsNewer
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunError
from posedrop.index.rows import AnalysisRow


def stop(context: Context, row: AnalysisRow) -> Literal["cancelling", "cancelled"] | None:
    """Stop a run that waits or goes on; None: it is over, and nothing is done."""
    bucket = context.settings.results_bucket
    if context.storage.head(bucket, layout.Run(row.run).result) is not None:
        return None
    context.storage.write(bucket, layout.Run(row.run).cancel, b"", "application/octet-stream")
    attempt, _ = last_attempt(context, row.run)
    if attempt is not None and attempt.outcome is None:
        return "cancelling"
    _cancel_queued(context, row, attempt)
    return "cancelled"


def last_attempt(context: Context, run: str) -> tuple[Attempt | None, NeedsNewer | None]:
    """Return a run's last attempt, and the note of a worker that was too old for it."""
    bucket, keys = context.settings.results_bucket, layout.Run(run)
    found = context.storage.objects(bucket, f"{keys.attempts}/")
    names = [keys.name(each.key) for each in found]
    numbers = [number for name in names if (number := layout.attempt_number(name)) is not None]
    attempt = needs_newer = None
    if numbers:
        key = keys.attempt(max(numbers))
        attempt = context.storage.read_whole_record(bucket, key, Attempt)
    if layout.NEEDS_NEWER in names:
        needs_newer = context.storage.read_whole_record(bucket, keys.needs_newer, NeedsNewer)
    return attempt, needs_newer


def _cancel_queued(context: Context, row: AnalysisRow, last: Attempt | None) -> None:
    """End a run that no worker has: its result is written here, once, like any other."""
    bucket = context.settings.results_bucket
    request = context.storage.read_record(bucket, layout.Run(row.run).request, Request)
    if request is None:
        return
    result = Result.of(
        request,
        "cancelled",
        finished_at=context.clock(),
        artefacts=last.artefacts if last else [],
        error=RunError(code="cancelled", message="cancelled before its turn"),
    )
    if context.storage.create(bucket, layout.Run(row.run).result, result.to_json()):
        context.index.analysis_finished(result, row.run)
