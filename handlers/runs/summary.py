"""Runs beside their results: the attempts at each, and how those of a folder went."""

from __future__ import annotations

from collections import Counter

from handlers.context import Context
from handlers.runs.results import check_not_gone, resolved
from posedrop.api.runs import Attempts, Reason, RunAttempt, Summary
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt
from posedrop.errors import NotFoundError, RecordError

#: Attempts that are told of, the last ones; runs and films of a folder that are counted; reasons.
_ATTEMPTS, _COUNTED, _REASONS = 20, 100_000, 5


def attempts(context: Context, analysis_id: str) -> Attempts:
    """Return the last attempts at a run, each with the end of its log.

    Raises:
        NotFoundError: there is no such run.
        GoneError: it was deleted.
    """
    row = context.index.analysis(resolved(context, analysis_id))
    if row is None:
        check_not_gone(context, analysis_id)
        if context.index.pending(analysis_id) is None:
            raise NotFoundError(f"there is no analysis {analysis_id}")
        return Attempts(items=[])
    bucket, run = context.settings.results_bucket, layout.Run(row.run)
    found = context.storage.objects(bucket, f"{run.attempts}/")
    numbers = {layout.attempt_number(run.name(each.key)) for each in found}
    items = []
    for number in sorted(each for each in numbers if each is not None)[-_ATTEMPTS:]:
        try:
            attempt = context.storage.read_whole_record(bucket, run.attempt(number), Attempt)
        except RecordError as error:
            context.storage.report(error)
            continue
        if attempt is not None:
            items.append(RunAttempt.model_validate(attempt))
    return Attempts(items=items)


def summary(context: Context, prefix: str) -> Summary:
    """Return how many runs and films of a folder are in each state, and why some failed."""
    runs, failed = context.index.counts_below(prefix, _COUNTED)
    files, refused = context.index.file_counts_below(prefix, _COUNTED)
    words = [row.error.message if row.error is not None else "" for row in failed]
    words += [row.refusal.message if row.refusal is not None else "" for row in refused]
    reasons = Counter(words).most_common(_REASONS)
    return Summary(
        runs=runs,
        files=files,
        reasons=[Reason(message=message, count=count) for message, count in reasons],
        all=max(sum(runs.values()), sum(files.values())) < _COUNTED,
    )
