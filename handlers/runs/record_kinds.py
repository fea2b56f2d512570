"""The kinds of objects in the results bucket: how each is read, and what follows from it.

One table for the follower, which hears of an object by its event, for the reconciler, which finds
it in a listing, and for the plan, which looks for what decided about a video before. A new kind of
record is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from handlers import gpu_queue
from handlers.context import Context
from handlers.runs import damaged
from handlers.runs.follow_ups import FollowUp, ForgetPlan, Ingest, MoveRun, PlanRuns
from posedrop.buckets import layout
from posedrop.buckets.records.batches import BatchFilms, BatchOver, BatchRequest
from posedrop.buckets.records.planned import Planned
from posedrop.buckets.records.requests import PendingRequest, Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import RecordError


@dataclass(frozen=True)
class FilmNow:
    """A film of the videos bucket as it is now, None if it is gone, and its file_id.

    The store may have to be asked for that, which nobody does in a transaction.
    """

    file_id: str
    info: ObjectInfo | None


@dataclass(frozen=True)
class FilmGone:
    """A video.json whose film is not there any more."""

    record: VideoRecord


@dataclass(frozen=True)
class RunOver:
    """How a run ended, and its request, if that can be read and the index lacks it."""

    result: Result
    request: Request | None


StoreState = (
    ObjectInfo
    | VideoRecord
    | FilmNow
    | FilmGone
    | PendingRequest
    | Planned
    | Request
    | RunOver
    | BatchRequest
    | BatchFilms
    | BatchOver
    | None
)


def _nothing(*_: Any) -> None:
    return None


def _is_never_news(*_: Any) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class RecordKind:
    """A kind of object in the results bucket. Its functions get the object's key in parts."""

    is_there: Callable[[Context, Any, Any], FollowUp | None]
    """Tell the index of the object, with what ``look`` returned; return what has to follow.

    The index is written meanwhile, and others wait: whatever the store knows, ``look`` has asked.
    """
    look: Callable[[Context, Any, str], StoreState] | None = None
    """Return what is under the key now, None if that is nothing; no function: the key says all."""
    is_gone: Callable[[Context, Any], FollowUp | None] = _nothing
    """Tell the index that there is no such object any more; return what has to follow."""
    is_news: Callable[[Context, Any], bool] = _is_never_news
    """Whether the index, when the reconciler sees the object, does not know of it."""
    behind: RecordKind | None = None
    """What the object stands behind in a listing: without that, it is what a deletion has left."""
    has_events: bool = True
    """Whether its events are followed; False: the handlers write it themselves."""


# -- a video's record ------------------------------------------------------------------------------


def _video_now(context: Context, _: layout.VideoObject, key: str) -> StoreState:
    record = context.storage.read_record(context.settings.results_bucket, key, VideoRecord)
    return None if record is None or not record.has_its_id else _unless_old(context, record)


def _unless_old(context: Context, record: VideoRecord) -> VideoRecord | FilmNow | FilmGone | None:
    """Return a record unless it is of a video that is gone or replaced: it is not ready then.

    Where the index knows a newer one already, a worker that woke up late has written over that:
    then return the film, to be looked at again.
    """
    video = record.video
    row = context.index.file(video.file_id)
    if row is not None and row.etag == video.etag and row.state != "film gone":
        return record
    there = context.storage.head(video.bucket, video.key)
    if there is not None and there.etag == video.etag:
        return record
    if there is None and row is None and has_results(record):
        return FilmGone(record)
    if there is None or row is None or row.key != video.key:
        return None
    if row.etag != there.etag or row.state not in {"ready", "refused"}:
        return None
    return FilmNow(context.file_id(there.key), there)


def has_results(record: VideoRecord) -> bool:
    """Tell whether a film was one: what was refused leaves nothing that anybody would keep."""
    return record.refusal is None and record.probe is not None


def _video_is_there(
    context: Context, key: layout.VideoObject, found: VideoRecord | FilmNow | FilmGone
) -> FollowUp | None:
    if isinstance(found, FilmNow):
        film = found.info
        return Ingest(found.file_id, film.etag, film.key) if film is not None else None
    if isinstance(found, FilmGone):
        video = found.record.video
        return ForgetPlan(video.file_id, video.key)
    context.index.file_ingested(found)
    return PlanRuns(key.video, found)


def _video_is_news(context: Context, key: layout.VideoObject) -> bool:
    row = context.index.file(context.file_id_of_prefix(key.video))
    return row is not None and row.state == "received"


# -- pending requests ------------------------------------------------------------------------------


def _pending_now(context: Context, _: layout.PendingRequestObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, PendingRequest)


def _pending_is_there(
    context: Context, key: layout.PendingRequestObject, found: PendingRequest
) -> FollowUp:
    context.index.pending_added(found)
    # It may have been asked in the very moment in which the ingest ended.
    return PlanRuns(key.video, None)


def _pending_is_news(context: Context, key: layout.PendingRequestObject) -> bool:
    return context.index.pending(key.pending_id) is None


def _outcome_now(context: Context, _: layout.PendingOutcomeObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, Planned)


def _outcome_is_there(context: Context, key: layout.PendingOutcomeObject, found: Planned) -> None:
    note_outcome(context, key.pending_id, found)


def note_outcome(context: Context, pending_id: str, done: Planned) -> None:
    """Tell the index what became of a pending request."""
    if done.analysis_id is not None:
        context.index.pending_resolved(pending_id, done.analysis_id)
    elif done.error is not None:
        context.index.pending_failed(pending_id, done.error)


def _outcome_is_news(context: Context, key: layout.PendingOutcomeObject) -> bool:
    pending = context.index.pending(key.pending_id)
    return pending is None or pending.is_open


# -- runs ------------------------------------------------------------------------------------------


def _request_now(context: Context, _: layout.RunObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, Request)


def _request_is_there(context: Context, key: layout.RunObject, found: Request) -> FollowUp | None:
    if not context.index.analysis_requested(found, key.run):
        context.to_copy.set()
    row = context.index.file(found.video.file_id)
    # A video that waits for a rule has a run now, and is open to no rule any more.
    waited = row is not None and row.waits_for is not None
    return PlanRuns(key.video, None) if waited else None


def _request_is_gone(context: Context, key: layout.RunObject) -> FollowUp | None:
    row = context.index.place_removed(key.analysis_id, key.run)
    return MoveRun(row, key.run) if row is not None and row.finished_at is None else None


def _request_is_news(context: Context, key: layout.RunObject) -> bool:
    return context.index.place(key.analysis_id, key.run) is None


def _result_now(context: Context, key: layout.RunObject, _: str) -> StoreState:
    # One without a request is what a deletion has left, or a worker that woke up after it.
    bucket, where = context.settings.results_bucket, layout.Run(key.run).request
    is_run = context.storage.head(bucket, where) is not None
    result = damaged.read_result(context, key.run) if is_run else None
    if result is None:
        return None
    request = None
    if context.index.place(key.analysis_id, key.run) is None:
        # The event of its request may be lost: that alone has who asked, and who is to be told.
        with suppress(RecordError):
            request = context.storage.read_record(bucket, where, Request)
    return RunOver(result, request)


def _result_is_there(context: Context, key: layout.RunObject, found: RunOver) -> FollowUp | None:
    place = context.index.place(key.analysis_id, key.run)
    if found.request is not None and place is None:
        context.index.analysis_requested(found.request, key.run)
    context.index.analysis_finished(found.result, key.run)
    context.to_copy.set()
    row = context.index.analysis(found.result.analysis_id)
    is_made_elsewhere = row is not None and row.run != key.run and row.finished_at is None
    return MoveRun(row, key.run) if row is not None and is_made_elsewhere else None


def _result_is_news(context: Context, key: layout.RunObject) -> bool:
    row = context.index.place(key.analysis_id, key.run)
    return row is not None and row.finished_at is None


def _attempt_is_there(context: Context, key: layout.RunObject, _: None) -> None:
    known = context.index.analysis(key.analysis_id)
    if known is None or known.run == key.run:
        context.index.analysis_running(key.analysis_id)


def _attempt_is_news(context: Context, key: layout.RunObject) -> bool:
    row = context.index.place(key.analysis_id, key.run)
    return row is not None and row.state == "queued"


def _object_now(context: Context, _: layout.RunObject, key: str) -> StoreState:
    return context.storage.head(context.settings.results_bucket, key)


def _poses_are_there(context: Context, key: layout.RunObject, _: ObjectInfo) -> None:
    if _is_read_here(context, key):
        context.index.gpu_over(key.analysis_id)


def _note_is_there(context: Context, key: layout.RunObject, _: ObjectInfo) -> None:
    if _is_read_here(context, key):
        gpu_queue.park(context, key.analysis_id, context.clock())


def _network_is_needed(context: Context, key: layout.RunObject, _: ObjectInfo) -> None:
    if _is_read_here(context, key):
        context.index.gpu_waits(key.analysis_id, context.clock())


def _is_read_here(context: Context, key: layout.RunObject) -> bool:
    known = context.index.analysis(key.analysis_id)
    return known is not None and known.run == key.run


# -- batches ---------------------------------------------------------------------------------------


def _batch_now(context: Context, _: layout.BatchObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, BatchRequest)


def _batch_is_there(context: Context, _: layout.BatchObject, found: BatchRequest) -> None:
    context.index.batch_added(found)


def _batch_is_news(context: Context, key: layout.BatchObject) -> bool:
    return context.index.batch(key.batch_id) is None


def _films_now(context: Context, _: layout.BatchObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, BatchFilms)


def _films_are_there(context: Context, key: layout.BatchObject, found: BatchFilms) -> None:
    number = layout.batch_films_number(key.name)
    if number is not None:
        context.index.batch_films_added(key.batch_id, number, found)


def _films_are_news(context: Context, key: layout.BatchObject) -> bool:
    number = layout.batch_films_number(key.name)
    return number is not None and not context.index.has_batch_films(key.batch_id, number)


def _over_now(context: Context, _: layout.BatchObject, key: str) -> StoreState:
    return context.storage.read_record(context.settings.results_bucket, key, BatchOver)


def _over_is_there(context: Context, key: layout.BatchObject, found: BatchOver) -> None:
    context.index.batch_over(key.batch_id, found)


def _over_is_news(context: Context, key: layout.BatchObject) -> bool:
    row = context.index.batch(key.batch_id)
    return row is not None and row.over is None


# -- the table -------------------------------------------------------------------------------------

VIDEO = RecordKind(_video_is_there, _video_now, is_news=_video_is_news)
PENDING_REQUEST = RecordKind(_pending_is_there, _pending_now, is_news=_pending_is_news)
PENDING_OUTCOME = RecordKind(
    _outcome_is_there,
    _outcome_now,
    is_news=_outcome_is_news,
    behind=PENDING_REQUEST,
    has_events=False,
)
REQUEST = RecordKind(
    _request_is_there, _request_now, is_gone=_request_is_gone, is_news=_request_is_news
)
RESULT = RecordKind(_result_is_there, _result_now, is_news=_result_is_news, behind=REQUEST)
FIRST_ATTEMPT = RecordKind(_attempt_is_there, is_news=_attempt_is_news)
POSES = RecordKind(_poses_are_there, _object_now)
NEEDS_NEWER = RecordKind(_note_is_there, _object_now)
BATCH = RecordKind(_batch_is_there, _batch_now, is_news=_batch_is_news, has_events=False)
BATCH_FILMS = RecordKind(
    _films_are_there, _films_now, is_news=_films_are_news, behind=BATCH, has_events=False
)
BATCH_OVER = RecordKind(
    _over_is_there, _over_now, is_news=_over_is_news, behind=BATCH, has_events=False
)
NEEDS_NETWORK = RecordKind(_network_is_needed, _object_now)

_OF_BATCH = {layout.BATCH_REQUEST: BATCH, layout.BATCH_OVER: BATCH_OVER}
_OF_VIDEO = {layout.VIDEO_RECORD: VIDEO}
_OF_RUN = {
    layout.REQUEST: REQUEST,
    layout.RESULT: RESULT,
    layout.Run("").name(layout.Run("").attempt(1)): FIRST_ATTEMPT,
    **dict.fromkeys(gpu_queue.FOUND, POSES),
    layout.NEEDS_NEWER: NEEDS_NEWER,
    layout.NEEDS_NETWORK: NEEDS_NETWORK,
}


def kind_of(key: layout.ResultObject | None) -> RecordKind | None:
    """Return the kind of an object by its key in parts, None for what nothing follows from."""
    match key:
        case layout.VideoObject(name=name):
            return _OF_VIDEO.get(name)
        case layout.PendingRequestObject():
            return PENDING_REQUEST
        case layout.PendingOutcomeObject():
            return PENDING_OUTCOME
        case layout.RunObject(name=name):
            return _OF_RUN.get(name)
        case layout.BatchObject(name=name):
            return _OF_BATCH.get(name, BATCH_FILMS)
        case _:
            return None


def owner_of(key: layout.ResultObject) -> str:
    """Return what an object's kind has one of: a run's folder, a pending request's id, a video."""
    match key:
        case layout.RunObject(run=run):
            return run
        case layout.PendingRequestObject(pending_id=pending_id):
            return pending_id
        case layout.PendingOutcomeObject(pending_id=pending_id):
            return pending_id
        case layout.VideoObject(video=video):
            return video
        case layout.RuleObject(rule_id=rule_id):
            return rule_id
        case layout.BatchObject(batch_id=batch_id):
            return batch_id


def of_video(context: Context, prefix: str) -> Iterator[tuple[RecordKind, Any, str]]:
    """Yield the records below a video's folder: kind, key in parts, key.

    Those of no other video, whose folder may lie in this one's.
    """
    for found in context.storage.objects(context.settings.results_bucket, f"{prefix}/"):
        key = layout.parse_result_key(found.key)
        kind = kind_of(key)
        if kind is not None and getattr(key, "video", None) == prefix:
            yield kind, key, found.key
