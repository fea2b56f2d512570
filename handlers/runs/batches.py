"""Batches: one request for many films, kept as a record, and how far it is.

A batch's id is made of what is asked, and of which time it is asked: the same request is the same
batch as long as that is not over, and a new one afterwards. With a key of the caller's own it is
the same one for ever. The record is created once; handlers/runs/batch_steps.py does what it says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from handlers import changes
from handlers.context import Context
from handlers.runs import cost, validation
from handlers.runs.start import MAX_RETRIES
from handlers.runs.validation import ValidRequest, canonical
from posedrop.api.batches import (
    Batch,
    BatchesPage,
    BatchStarted,
    CancelRequest,
    DryRun,
    DryRunFilm,
    RetryRequest,
)
from posedrop.api.runs import AnalyseRequest
from posedrop.buckets import layout
from posedrop.buckets.records.batches import BatchKind, BatchOver, BatchRequest, BatchWhy
from posedrop.buckets.records.models import ModelRef
from posedrop.errors import BadRequestError, NotFoundError, StorageError
from posedrop.index.batches import FilmBelow
from posedrop.index.rows import BatchRow

#: How many films a dry run looks at, so many in a step; and how many it names.
MOST_LOOKED_AT, _STEP, _SAMPLE = 200_000, 500, 20
#: How often the same request can be a new batch.
_MOST_TIMES = 10_000
#: States of runs that are not over, in the order in which a run passes through them.
UNFINISHED = ("waiting", "queued", "running")
#: In the order of a line, with the words for it.
_SAID = {
    "succeeded": "done",
    "partial": "partial",
    "failed": "failed",
    "cancelled": "cancelled",
    "refused": "refused",
    "gone": "removed",
    "running": "running",
    "queued": "queued",
    "waiting": "waiting for the film",
}
_MOST_WHYS = 10
_NUMBERS = re.compile(r"\d+")
_IDS = re.compile(r"\b[a-z2-7]{16}\b")


class _Asked(NamedTuple):
    """What a batch is made of, but for when it is asked."""

    kind: BatchKind
    prefix: str | None = None
    file_ids: tuple[str, ...] = ()
    of_batch: str | None = None
    analysis: str | None = None
    args: Mapping[str, Any] = {}
    model: ModelRef | None = None
    force: bool = False
    retry: bool = True
    cancelled: bool = False
    notify: tuple[str, ...] = ()


# -- asked for -------------------------------------------------------------------------------------


def analyse(
    context: Context, wanted: AnalyseRequest, notify: tuple[str, ...]
) -> BatchStarted | DryRun:
    """Carry out POST /analyse for many videos.

    Raises:
        BadRequestError: it can't be done as asked.
    """
    if sum(each is not None for each in (wanted.file_id, wanted.prefix, wanted.file_ids)) != 1:
        raise BadRequestError("say one of file_id, file_ids and prefix", field="file_id")
    request = validation.validate(context, wanted.analysis, wanted.args)
    if wanted.dry_run:
        return _dry_run(context, wanted, request)
    model = request.model
    asked = _Asked(
        "analyse",
        prefix=wanted.prefix,
        file_ids=tuple(dict.fromkeys(wanted.file_ids or ())),
        analysis=request.analysis.name,
        args=request.args,
        model=ModelRef(name=model.name, digest=model.digest) if model else None,
        force=wanted.force,
        retry=wanted.retry,
        notify=notify,
    )
    return _begin(context, asked, wanted.idempotency_key)


def cancel(context: Context, wanted: CancelRequest) -> BatchStarted | DryRun:
    """Carry out POST /cancel: stop what is not over; nothing is deleted.

    Raises:
        BadRequestError: it says neither a prefix nor a batch, or both.
        NotFoundError: there is no such batch.
    """
    _check_which(context, wanted.prefix, wanted.batch_id)
    if wanted.dry_run:
        n = _count(context, wanted.prefix, wanted.batch_id, UNFINISHED)
        if wanted.prefix is not None:
            n += context.index.pending_count(wanted.prefix)
        return DryRun(films=n, stop=n)
    asked = _Asked("cancel", prefix=wanted.prefix, of_batch=wanted.batch_id)
    return _begin(context, asked, None)


def is_cancelled(context: Context, since: datetime, key: str, batch_id: str | None) -> bool:
    """Tell whether what was asked for, for a film or in a batch, was stopped by a batch since."""
    return any(
        row.request.of_batch == batch_id
        if row.request.of_batch is not None
        else key.startswith(row.request.prefix or "")
        for row in context.index.batches_that_cancel(since)
    )


def retry(context: Context, wanted: RetryRequest, notify: tuple[str, ...]) -> BatchStarted | DryRun:
    """Carry out POST /retry: make anew what failed.

    Raises:
        BadRequestError: it says neither a prefix nor a batch, or both.
        NotFoundError: there is no such batch.
    """
    _check_which(context, wanted.prefix, wanted.batch_id)
    if wanted.dry_run:
        states = ("failed", "cancelled") if wanted.cancelled else ("failed",)
        n = _count(context, wanted.prefix, wanted.batch_id, states)
        return DryRun(films=n, again=n)
    asked = _Asked(
        "retry",
        prefix=wanted.prefix,
        of_batch=wanted.batch_id,
        cancelled=wanted.cancelled,
        notify=notify,
    )
    return _begin(context, asked, None)


def _check_which(context: Context, prefix: str | None, batch_id: str | None) -> None:
    if (prefix is None) == (batch_id is None):
        raise BadRequestError("say one of prefix and batch_id", field="prefix")
    if batch_id is not None:
        _row(context, batch_id)


def _count(
    context: Context, prefix: str | None, batch_id: str | None, states: tuple[str, ...]
) -> int:
    if batch_id is not None:
        counts = context.index.batch_counts(batch_id)
        return sum(counts.get(state, 0) for state in states)
    return sum(context.index.runs_count(state, prefix or "") for state in states)


def _begin(context: Context, asked: _Asked, key: str | None) -> BatchStarted:
    """Create a batch's record, unless the same one is there."""
    bucket = context.settings.results_bucket
    what = canonical({**asked._asdict(), "model": asked.model and asked.model.digest})
    times = [f"key:{key}"] if key is not None else map(str, range(_MOST_TIMES))
    for each in times:
        batch_id = layout.make_id("batch", what, each)
        row = context.index.batch(batch_id)
        if row is None:
            now = context.clock()
            # Once its record has gone by its age, an id may come again; forced runs must not.
            token = layout.make_id("forced", batch_id, now.isoformat()) if asked.force else None
            record = BatchRequest(
                batch_id=batch_id,
                **asked._asdict() | {"file_ids": list(asked.file_ids)},
                token=token,
                films_until=_store_time(context),
                created_at=now,
            )
            if context.storage.create(bucket, layout.batch(batch_id), record.to_json()):
                _added(context, record)
                changes.note(f"batch to {asked.kind} asked for", batch_id=batch_id)
                return BatchStarted(batch_id=batch_id, existed=False)
            # The bucket knows it, the index did not.
            found = context.storage.read_record(bucket, layout.batch(batch_id), BatchRequest)
            _added(context, found or record)
            row = context.index.batch(batch_id)
            over = layout.batch(batch_id, layout.BATCH_OVER)
            ended = context.storage.read_record(bucket, over, BatchOver)
            if ended is not None:
                context.index.batch_over(batch_id, ended)
                row = context.index.batch(batch_id)
        # What stops or repeats runs reaches those that were there: once it has met them all, the
        # same is another one, though it may take days until all of these are over.
        goes_on = row is not None and row.over is None
        is_met = row is not None and row.walked and asked.kind != "analyse"
        if key is not None or (goes_on and not is_met):
            return BatchStarted(batch_id=batch_id, existed=True)
    raise BadRequestError("this was asked too often: say an idempotency_key", code="too_often")


def _added(context: Context, record: BatchRequest) -> None:
    context.index.batch_added(record)
    context.to_batch.set()


def _store_time(context: Context) -> datetime:
    """Return until when films are a batch's: what is put while it is asked for is not left out."""
    try:
        now = context.storage.time(context.settings.results_bucket)
    except StorageError as error:
        if error.code != "no_date":
            raise
        now = context.clock()
    return now + timedelta(seconds=1)


# -- a dry run -------------------------------------------------------------------------------------


def _dry_run(context: Context, wanted: AnalyseRequest, request: ValidRequest) -> DryRun:
    """Return what a batch would do, as far as the index knows: nothing is asked of the store."""
    films = (
        _named(context, wanted.file_ids)
        if wanted.file_ids is not None
        else _below(context, wanted.prefix)
        if wanted.prefix is not None
        else _named(context, [wanted.file_id or ""])
    )
    counts = dict.fromkeys(("run", "again", "exists", "not_ready", "refused", "unknown"), 0)
    runs: set[str] = set()
    sample: list[DryRunFilm] = []
    seen = frames = 0
    sizes: dict[tuple[int, int], int] = {}
    while step := list(islice(films, _STEP)):
        if seen >= MOST_LOOKED_AT:
            break
        ids = {f.key: _id_of(f, request) for f in step if f.state == "ready" and f.sha256}
        states = context.index.states_of(list(ids.values())) if ids else {}
        for film in step:
            analysis_id = ids.get(film.key)
            what = _outcome(context, film, wanted, request, analysis_id, states)
            counts[what] += 1
            if what in {"run", "again"} and analysis_id is not None and analysis_id not in runs:
                runs.add(analysis_id)
                mine = cost.frames_asked(request.args, film.frames or 0)
                size = film.width or 0, film.height or 0
                sizes[size] = sizes.get(size, 0) + mine
                frames += mine
            if len(sample) < _SAMPLE:
                found = {"file_id": film.file_id, "key": film.key, "outcome": what}
                sample.append(DryRunFilm.model_validate(found))
        seen += len(step)
        time.sleep(0)  # others have their turn at the interpreter
    return DryRun(
        films=seen,
        **counts,
        runs=len(runs),
        frames=frames,
        seconds=cost.of_many(context, request, sizes),
        sample=sample,
        more=bool(step),
    )


def _id_of(film: FilmBelow, request: ValidRequest) -> str:
    return validation.analysis_id_of(film.sha256 or "", request, None)


def _outcome(
    context: Context,
    film: FilmBelow,
    wanted: AnalyseRequest,
    request: ValidRequest,
    analysis_id: str | None,
    states: Mapping[str, str],
) -> str:
    if film.state == "unknown":
        return "unknown"
    if film.state not in {"received", "ready"}:
        return "refused"
    if analysis_id is None:
        return "not_ready"
    state = states.get(analysis_id)
    if wanted.force or state is None:
        return "run"
    for _ in range(MAX_RETRIES):
        if state not in {"failed", "cancelled"} or not wanted.retry:
            break
        analysis_id = validation.analysis_id_of(film.sha256 or "", request, f"retry:{analysis_id}")
        row = context.index.analysis(analysis_id)
        if row is None:
            return "again"
        state = row.state
    return "exists"


def _below(context: Context, prefix: str) -> Iterator[FilmBelow]:
    after = ""
    while page := context.index.films_below(prefix, after, _STEP):
        yield from page
        after = page[-1].key


def _named(context: Context, file_ids: list[str]) -> Iterator[FilmBelow]:
    for file_id in dict.fromkeys(file_ids):
        row = context.index.file(file_id)
        if row is None:
            yield FilmBelow(file_id, "", "unknown", None, None)
            continue
        probe = row.probe
        told = (probe.frames, probe.width, probe.height) if probe is not None else (None,) * 3
        state = "received" if row.state == "expected" else row.state
        yield FilmBelow(row.file_id, row.key, state, row.sha256, *told)


# -- how far it is ---------------------------------------------------------------------------------


def read(context: Context, batch_id: str) -> Batch:
    """Return a batch as the index knows it.

    Raises:
        NotFoundError: there is none with this id.
    """
    return answer(context, _row(context, batch_id))


def page(context: Context, cursor: str | None, limit: int) -> BatchesPage:
    """Return a page of batches, the newest first."""
    found = context.index.batches(cursor, limit)
    return BatchesPage(items=[answer(context, row) for row in found.rows], next=found.cursor)


def answer(context: Context, row: BatchRow) -> Batch:
    """Return what the API says of a batch."""
    over = row.over or how_far(context, row.batch_id)
    request = row.request
    status = "over" if row.over is not None else "running" if row.walked else "starting"
    return Batch.model_validate(
        {
            **request.model_dump(include={"batch_id", "kind", "prefix", "of_batch", "analysis"}),
            "args": request.args,
            "created_at": row.created_at,
            "status": status,
            "finished_at": row.over.finished_at if row.over is not None else None,
            **over.model_dump(include={"films", "counts", "existed", "why"}),
            "line": line(over, is_complete=row.walked),
        }
    )


def how_far(context: Context, batch_id: str) -> BatchOver:
    """Return how a batch would have ended if it ended now."""
    counts = context.index.batch_counts(batch_id)
    failed = {"failed", "refused"} & counts.keys()
    return BatchOver(
        films=sum(counts.values()),
        counts=counts,
        existed=context.index.batch_existed(batch_id),
        why=_merged(context.index.batch_whys(batch_id)) if failed else [],
        finished_at=context.clock(),
    )


def _merged(whys: list[BatchWhy]) -> list[BatchWhy]:
    """Return the reasons, those as one that differ by numbers and ids alone."""
    merged: dict[tuple[str, str], BatchWhy] = {}
    for why in whys:
        words = _NUMBERS.sub("0", _IDS.sub("0", why.message))
        same = merged.get((why.code, words))
        if same is not None:
            keys = [*same.keys, *why.keys][:5]
            why = same.model_copy(update={"count": same.count + why.count, "keys": keys})
        merged[why.code, words] = why
    return sorted(merged.values(), key=lambda why: -why.count)[:_MOST_WHYS]


def line(over: BatchOver, *, is_complete: bool = True) -> str:
    """Return how a batch goes in one line: "83 done, 3 partial, 1 failed: why"."""
    said = [
        f"{over.counts[state]:,} {words}"
        for state, words in _SAID.items()
        if over.counts.get(state)
    ]
    text = ", ".join(said) or "no films"
    if not is_complete:
        text += ", and further films to come"
    if over.why:
        first, others = over.why[0], len(over.why) - 1
        times = f" ({first.count:,} films)" if first.count > 1 else ""
        more = f"; and {others} further reasons" if others > 1 else "; and one further reason"
        words = " ".join(first.message.split())[:200]
        text += f": {words}{times}{more if others else ''}"
    return text


def _row(context: Context, batch_id: str) -> BatchRow:
    row = context.index.batch(batch_id)
    if row is None:
        raise NotFoundError(f"there is no batch {batch_id[:40]}; GET /batches lists them")
    return row
