"""Bucket notifications: recorded within milliseconds, followed by a thread of their own.

The answer to POST /events must not wait for the store or the broker: MinIO sends with few senders
that all targets share, and a slow endpoint stops every event of every bucket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from handlers import changes, gpu_queue
from handlers.context import Context
from handlers.runs import copies, damaged, plan, waiting
from posedrop.buckets import layout
from posedrop.buckets.records import PendingRequest, Planned, Request, Result, VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import PosedropError, RecordError
from posedrop.index.index import AnalysisRow, EventRow, IndexBusyError
from posedrop.transport import events, queue
from posedrop.transport.events import ObjectCreated, ObjectRemoved

log = logging.getLogger(__name__)

#: So many events share two transactions. The first of them waits for what is looked up of the last.
_BATCH = 64
#: Many events, at once: others may let them go first.
_MANY = 16
#: A mount begins a film with an empty object and writes it within moments: only what stays empty
#: for so many seconds is refused.
EMPTY_SECONDS = 5.0
#: That a worker is too old for a run.
_LEFT = layout.needs_newer("").removeprefix("/")
_NOTED = frozenset({layout.REQUEST, layout.RESULT, layout.VIDEO_RECORD, _LEFT}) | gpu_queue.FOUND


def record(context: Context, body: bytes) -> int:
    """Keep what a notification says; return how many events were new.

    Raises:
        IndexBusyError: it could not be recorded; the sender has to send it again.
    """
    parsed = events.parse_bytes(body)
    wanted = [event for event in parsed.events if matters(context, event)]
    if not parsed.unknown:
        new = context.index.record_events(wanted, context.clock()) if wanted else 0
    else:
        with context.index.together():
            for reason, part in parsed.unknown:
                context.index.dead_letter(reason, part, context.clock())
            new = context.index.record_events(wanted, context.clock())
    if new:  # the second of two targets tells nothing new
        for event in wanted:
            _log(context, event)
            if event.bucket == context.settings.results_bucket and isinstance(event, ObjectCreated):
                gpu_queue.may_be_over(context, event.key)
    return new


def _log(context: Context, event: ObjectCreated | ObjectRemoved) -> None:
    """Log what somebody has put or removed; what posedrop itself writes is in other lines."""
    if event.bucket == context.settings.videos_bucket:
        what = "rule" if layout.is_folder_rule(event.key) else "video"
        done = "put" if isinstance(event, ObjectCreated) else "removed"
        by = event.by
        changes.note(f"{what} {done}", by=by.who or "store", address=by.address, key=event.key)


def matters(context: Context, event: ObjectCreated | ObjectRemoved) -> bool:
    """Leave out what posedrop writes itself and needs no telling, heartbeats above all."""
    if event.bucket == context.settings.videos_bucket:
        return not event.key.endswith("/")
    if event.bucket != context.settings.results_bucket:
        return False
    match layout.parse_result_key(event.key):
        case layout.VideoObject(name=name):
            return name == layout.VIDEO_RECORD
        case layout.PendingRequestObject():
            return True
        case layout.RunObject(name=name):
            return name in _NOTED or name == "attempts/1.json"
        case _:
            return False


class Follower:
    """The thread that does what the recorded events call for, oldest first."""

    def __init__(self, context: Context, set_busy: Callable[[bool], None] = lambda _: None) -> None:
        self._context = context
        self._set_busy = set_busy
        self._wake = threading.Event()
        self._turned_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin with what was recorded and not followed before."""
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """There are new events."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since it began with the batch that it is at."""
        return time.monotonic() - self._turned_at

    def stop(self) -> None:
        """End after the event at hand."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            # The timeout is for events that failed and wait for another try.
            self._wake.wait(timeout=5.0)
            self._wake.clear()
            try:
                self._turned_at = time.monotonic()
                while not self._stop.is_set() and (events := follow(self._context)):
                    self._turned_at = time.monotonic()
                    self._set_busy(events >= _MANY)
            except Exception:
                log.exception("the follower goes on after an error")
            finally:
                self._set_busy(False)


class Ingest(NamedTuple):
    """Follow-up: have a video ingested."""

    file_id: str
    etag: str
    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one message."""
        return self.key, self.etag


class PlanRuns(NamedTuple):
    """Follow-up: plan the runs of a video, which is named by its folder in the results bucket."""

    prefix: str
    video: VideoRecord | None

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one planning."""
        return self.prefix, ""


class ForgetPlan(NamedTuple):
    """Follow-up of a video that is gone: if the same comes again, its rules are followed again."""

    file_id: str
    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one removal."""
        return self.file_id, "gone"


class CheckRule(NamedTuple):
    """Follow-up: look at a rule that has come, was replaced or is gone."""

    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one look."""
        return self.key, "rule"


class MoveRun(NamedTuple):
    """Follow-up: have a run made under another name of its content from now on.

    Its folder ``before`` is gone, or its film was.
    """

    row: AnalysisRow
    before: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one message."""
        return self.row.run, "moved"


@dataclass(frozen=True)
class FilmGone:
    """A video.json whose film is not there any more."""

    record: VideoRecord


StoreState = (
    ObjectInfo | VideoRecord | FilmGone | PendingRequest | Planned | Request | Result | None
)
FollowUp = Ingest | PlanRuns | ForgetPlan | CheckRule | MoveRun


def follow(context: Context) -> int:
    """Act on a batch of recorded events, and on some of what waits for a rule that one told of.

    Returns:
        How many events and videos that were, 0 if there is nothing to do. No bad one holds up
        another.
    """
    batch = context.index.unhandled_events(_BATCH, context.clock())
    if batch:
        _handle(context, batch)
    planned = waiting.go_on(context)
    gpu_queue.send_next(context, context.clock())
    return len(batch) + planned


def _handle(context: Context, batch: list[EventRow]) -> None:
    """Act on events together; if that fails, on each by itself, to find the one that is bad.

    Raises:
        IndexBusyError: that is no event's fault, and all of them are still there.
    """
    try:
        _handle_together(context, batch)
    except IndexBusyError:
        raise
    except Exception as error:
        if len(batch) == 1:
            _failed(context, batch[0], error)
            return
        log.exception("%d events are tried again one by one", len(batch))
        for event in batch:
            _handle(context, [event])


def _handle_together(context: Context, batch: list[EventRow]) -> None:
    """Look, then tell the index, then act, then note what is done.

    Each step begins when the one before it is on disk. A process that dies in between leaves the
    events unhandled: they are followed again, a message may be sent twice, and none is forgotten.
    """
    found = _look(context, batch)
    failed: list[tuple[EventRow, Exception]] = []
    calls: dict[tuple[str, str], tuple[FollowUp, list[EventRow]]] = {}
    done: list[EventRow] = []
    later: list[EventRow] = []
    with context.index.together():
        for event in batch:
            seen = found[event.bucket, event.key]
            if isinstance(seen, Exception):
                failed.append((event, seen))
            elif _may_grow(context, event, seen):
                later.append(event)
            elif then := _tell(context, event.bucket, event.key, event.kind, seen):
                calls.setdefault(then.name, (then, []))[1].append(event)
            else:
                done.append(event)
    acted: list[FollowUp] = []
    for then, callers in calls.values():
        try:
            _act(context, then)
        except Exception as error:
            failed += [(event, error) for event in callers]
        else:
            acted.append(then)
            done += callers
    with context.index.together():
        for then in acted:
            if isinstance(then, Ingest):
                context.index.file_enqueued(then.file_id, context.clock())
        context.index.events_handled((event.id for event in done), context.clock())
        for event, reason in failed:
            _failed(context, event, reason)
        for event in later:
            due = event.received_at + timedelta(seconds=EMPTY_SECONDS)
            context.index.event_postponed(event.id, due)


def _may_grow(context: Context, event: EventRow, found: StoreState) -> bool:
    """Tell whether an event is of an object that is empty and was written just now."""
    if event.bucket != context.settings.videos_bucket or not isinstance(found, ObjectInfo):
        return False
    if found.size > 0 or event.kind != "created" or layout.is_folder_rule(event.key):
        return False
    return context.clock() < event.received_at + timedelta(seconds=EMPTY_SECONDS)


def _failed(context: Context, event: EventRow, error: Exception) -> None:
    known = isinstance(error, PosedropError)
    log.warning("event %s %s: %s", event.kind, event.key, error, exc_info=None if known else error)
    reason = error.message if isinstance(error, PosedropError) else repr(error)
    if isinstance(error, RecordError):
        context.index.event_given_up(event.id, reason, context.clock())
    else:
        context.index.event_failed(event.id, reason, context.clock())


def _look(context: Context, batch: list[EventRow]) -> dict[tuple[str, str], StoreState | Exception]:
    """Ask the store once for each object that the events are about: they are hints, it knows."""
    places = list(dict.fromkeys((event.bucket, event.key) for event in batch))

    def look(place: tuple[str, str]) -> StoreState | Exception:
        try:
            return _look_at(context, *place)
        except Exception as error:
            return error

    if len(places) == 1:
        return {places[0]: look(places[0])}
    return dict(zip(places, context.lookers.map(look, places), strict=True))


def _look_at(context: Context, bucket: str, key: str) -> StoreState:
    """Return what is under a key now, None if there is nothing, or nothing to be indexed."""
    if bucket == context.settings.videos_bucket:
        return None if layout.is_folder_rule(key) else context.storage.head(bucket, key)
    match layout.parse_result_key(key):
        case layout.VideoObject(name=layout.VIDEO_RECORD):
            record = context.storage.read_record(bucket, key, VideoRecord)
            return record if record is None else _unless_old(context, record)
        case layout.PendingRequestObject():
            return context.storage.read_record(bucket, key, PendingRequest)
        case layout.PendingOutcomeObject():
            return context.storage.read_record(bucket, key, Planned)
        case layout.RunObject(name=layout.REQUEST):
            return context.storage.read_record(bucket, key, Request)
        case layout.RunObject(run=run, name=layout.RESULT):
            # One without a request is what a deletion has left, or a worker that woke up after it.
            is_run = context.storage.head(bucket, f"{run}/{layout.REQUEST}") is not None
            return damaged.read_result(context, run) if is_run else None
        case layout.RunObject(name=name) if name in gpu_queue.FOUND or name == _LEFT:
            return context.storage.head(bucket, key)
        case _:
            return None


def _unless_old(
    context: Context, record: VideoRecord
) -> VideoRecord | ObjectInfo | FilmGone | None:
    """Return a record unless it is of a video that is gone or replaced: it is not ready then.

    Where the index knows a newer one already, a worker that woke up late has written over that:
    then return the object, to be looked at again.
    """
    video = record.video
    row = context.index.file(video.file_id)
    if row is not None and row.etag == video.etag and row.state != "film gone":
        return record
    there = context.storage.head(video.bucket, video.key)
    if there is not None and there.etag == video.etag:
        return record
    if there is None and row is None and _has_results(record):
        return FilmGone(record)
    if there is None or row is None or row.key != video.key:
        return None
    return there if row.etag == there.etag and row.state in {"ready", "refused"} else None


def _tell(context: Context, bucket: str, key: str, kind: str, found: StoreState) -> FollowUp | None:
    """Tell the index what was found; return what has to follow. Nothing here is slow."""
    if bucket == context.settings.videos_bucket:
        if layout.is_folder_rule(key):
            return CheckRule(key)
        file_id = layout.file_id_of(bucket, key)
        if isinstance(found, ObjectInfo):
            return _tell_video(context, file_id, found) if kind == "created" else None
        if kind == "removed":
            context.index.file_removed(file_id)
            return ForgetPlan(file_id, key)
        return None
    if kind == "removed":
        return _tell_gone(context, key) if found is None else None
    return _tell_record(context, key, found)


def _tell_video(context: Context, file_id: str, found: ObjectInfo) -> Ingest | None:
    row = context.index.file(file_id)
    if row is not None and row.state == "film gone":  # it is back: its rules are followed again
        context.index.file_removed(file_id)
    before, after = context.index.file_received(
        bucket=context.settings.videos_bucket,
        key=found.key,
        file_id=file_id,
        etag=found.etag,
        size=found.size,
        metadata=layout.user_metadata(found.metadata),
        last_modified=found.last_modified,
    )
    if after.state != "received":
        return None
    if before is None or before.etag != found.etag or after.enqueued_at is None:
        return Ingest(file_id, found.etag, found.key)
    return None


def _tell_record(context: Context, key: str, found: StoreState) -> FollowUp | None:
    match layout.parse_result_key(key), found:
        case layout.VideoObject(), ObjectInfo():
            file_id = layout.file_id_of(context.settings.videos_bucket, found.key)
            return Ingest(file_id, found.etag, found.key)
        case layout.VideoObject(), FilmGone():
            video = found.record.video
            return ForgetPlan(video.file_id, video.key)
        case layout.VideoObject(video=prefix), VideoRecord():
            context.index.file_ingested(found)
            return PlanRuns(prefix, found)
        case layout.PendingRequestObject(video=prefix), PendingRequest():
            context.index.pending_added(found)
            # It may have been asked in the very moment in which the ingest ended.
            return PlanRuns(prefix, None)
        case layout.PendingOutcomeObject(pending_id=pending_id), Planned():
            plan.note_outcome(context, pending_id, found)
        case layout.RunObject(run=run, video=prefix), Request():
            if not context.index.analysis_requested(found, run):
                context.to_copy.set()
            row = context.index.file(found.video.file_id)
            if row is not None and row.waits_for is not None:
                # It has a run now, and is open to no rule any more.
                return PlanRuns(prefix, None)
        case layout.RunObject(run=run), Result():
            context.index.analysis_finished(found, run)
            context.to_copy.set()
            now_at = context.index.analysis(found.analysis_id)
            if now_at is not None and now_at.run != run and now_at.finished_at is None:
                return MoveRun(now_at, run)
        case layout.RunObject(run=run, analysis_id=analysis_id, name="attempts/1.json"), _:
            known = context.index.analysis(analysis_id)
            if known is None or known.run == run:
                context.index.analysis_running(analysis_id)
        case layout.RunObject(run=run, analysis_id=analysis_id, name=name), ObjectInfo():
            known = context.index.analysis(analysis_id)
            if known is None or known.run != run:
                return None
            if name in gpu_queue.FOUND:
                context.index.gpu_over(analysis_id)
            else:
                gpu_queue.park(context, analysis_id, context.clock())
        case _:
            pass
    return None


def _tell_gone(context: Context, key: str) -> MoveRun | None:
    match layout.parse_result_key(key):
        case layout.RunObject(run=run, analysis_id=analysis_id, name=layout.REQUEST):
            row = context.index.place_removed(analysis_id, run)
            return MoveRun(row, run) if row is not None and row.finished_at is None else None
        case _:
            return None


def _act(context: Context, then: FollowUp) -> None:
    """Send an ingest, plan a video's runs, forget that they were planned, look at a rule."""
    match then:
        case Ingest(etag=etag, key=key):
            bucket = context.settings.videos_bucket
            queue.send(context.broker, "ingest", bucket=bucket, key=key, etag=etag)
        case PlanRuns(prefix=prefix, video=video):
            results = context.settings.results_bucket
            if video is None:
                record = layout.video_record(prefix)
                video = context.storage.read_record(results, record, VideoRecord)
            if video is not None:
                plan.plan_runs(context, video)
        case CheckRule(key=key):
            waiting.rule_changed(context, key)
        case MoveRun(row=row, before=before):
            copies.moved(context, row, before)
        case ForgetPlan(file_id=file_id, key=key):
            copies.film_gone(context, file_id)
            records = [layout.planned(file_id), *context.ingest_attempts(file_id)]
            context.storage.delete(context.settings.results_bucket, records)
            _keep_results(context, key)


def _keep_results(context: Context, key: str) -> None:
    """List a film that somebody has removed, as long as what was made of it is there."""
    prefix = context.video_prefix(context.settings.videos_bucket, key)
    record = context.storage.read_whole_record(
        context.settings.results_bucket, layout.video_record(prefix), VideoRecord
    )
    if record is not None and _has_results(record):
        context.index.film_gone(record)


def film_may_be_gone(context: Context, key: str) -> bool:
    """List the film of a video.json that no file in the index is of; return whether that was so."""
    found = _look_at(context, context.settings.results_bucket, key)
    if not isinstance(found, FilmGone):
        return False
    video = found.record.video
    _act(context, ForgetPlan(video.file_id, video.key))
    return True


def _has_results(record: VideoRecord) -> bool:
    """Tell whether a film was one: what was refused leaves nothing that anybody would keep."""
    return record.refusal is None and record.probe is not None


def video_arrived(context: Context, key: str) -> None:
    """Index an object of the videos bucket as it is now, and have it ingested."""
    _now(context, context.settings.videos_bucket, key, "created")


def video_removed(context: Context, key: str) -> None:
    """Take a video out of the index that is really gone."""
    _now(context, context.settings.videos_bucket, key, "removed")


def result_arrived(context: Context, key: str) -> None:
    """Index a record of the results bucket; plan when it is a video's."""
    _now(context, context.settings.results_bucket, key, "created")


def _now(context: Context, bucket: str, key: str, kind: str) -> None:
    """Do for one object what the follower does for a batch."""
    then = _tell(context, bucket, key, kind, _look_at(context, bucket, key))
    if then is None:
        return
    _act(context, then)
    if isinstance(then, Ingest):
        context.index.file_enqueued(then.file_id, context.clock())
