"""Stopping a run that waits or goes on: what a worker sees, or a result in its place."""

from __future__ import annotations

import logging
from typing import Literal

from handlers.context import Context
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt, NeedsNewer
from posedrop.buckets.records.inference import Inference, with_files_of
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunError
from posedrop.errors import RecordError, StorageError
from posedrop.index.rows import AnalysisRow

log = logging.getLogger(__name__)


def stop(context: Context, row: AnalysisRow) -> Literal["cancelling", "cancelled"] | None:
    """Stop a run that waits or goes on; None: it is over, and nothing is done."""
    bucket = context.settings.results_bucket
    if context.storage.head(bucket, layout.Run(row.run).result) is not None:
        return None
    if context.storage.head(bucket, layout.Run(row.run).request) is None:
        # An S3 tool has removed it, as no event has told yet: a worker that is at it stops by that.
        return "cancelled"
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
    # Where no worker has had it, there is nothing of it: a batch may have thousands of these.
    inference = _inference(context, row.run) if last is not None else None
    result = Result.of(
        request,
        "cancelled",
        finished_at=context.clock(),
        artefacts=with_files_of(inference, last.artefacts if last else []),
        error=RunError(code="cancelled", message="cancelled before its turn"),
    )
    if context.storage.create(bucket, layout.Run(row.run).result, result.to_json()):
        context.index.analysis_finished(result, row.run)
        if last is not None:
            _clear_checkpoints(context, row.run)


def _inference(context: Context, run: str) -> Inference | None:
    """Return what was made of a run, None too if that is for a newer one: the run ends."""
    bucket, key = context.settings.results_bucket, layout.Run(run).inference
    try:
        return context.storage.read_whole_record(bucket, key, Inference)
    except RecordError as error:
        context.storage.report(error)
        return None


def _clear_checkpoints(context: Context, run: str) -> None:
    """Delete what a run had computed of its poses when it was handed back; what stays does no harm.

    Whoever takes a message of the run, if there is one yet, tries it again.
    """
    storage, bucket = context.storage, context.settings.results_bucket
    try:
        storage.delete(
            bucket, [part.key for part in storage.objects(bucket, layout.Run(run).parts)]
        )
    except StorageError as error:
        log.warning("checkpoints of a run that is cancelled stay: %s", error)
