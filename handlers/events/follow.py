"""The follower: a thread that does what recorded events call for.

Events are taken in batches, the oldest first: look, tell the index, act, note what is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from handlers import gpu_queue
from handlers.context import Context
from handlers.runs import copies, plan, record_kinds, waiting
from handlers.runs.follow_ups import (
    CheckRule,
    FollowUp,
    ForgetPlan,
    Ingest,
    MoveRun,
    PlanAnew,
    PlanRuns,
)
from handlers.runs.record_kinds import FilmGone, FilmNow, StoreState
from posedrop.buckets import layout
from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import PosedropError, RecordError
from posedrop.index.index import EventRow, IndexBusyError
from posedrop.transport import queue

log = logging.getLogger(__name__)

#: So many events share two transactions. The first of them waits for what is looked up of the last.
_BATCH = 64
#: Many events, at once: others may let them go first.
_MANY = 16
#: A mount begins a film with an empty object and writes it within moments: only what stays empty
#: for so many seconds is refused.
EMPTY_SECONDS = 5.0


class Follower:
    """The thread that does what recorded events call for, oldest first."""

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
        """Wake the follower: new events are recorded."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the follower began its present batch."""
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
    gpu_queue.send_next(context)
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
    if event.bucket != context.settings.videos_bucket or not isinstance(found, FilmNow):
        return False
    if found.info is None or found.info.size > 0 or event.kind != "created":
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
    """Look up each object of a batch of events once: events are hints, the store knows."""
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
        if layout.is_folder_rule(key):
            return None
        there = context.storage.head(bucket, key)
        if there is not None and layout.is_folder_mark(key, there.size):
            there = None
        return FilmNow(context.file_id(key), there)
    parts = layout.parse_result_key(key)
    kind = record_kinds.kind_of(parts)
    return kind.look(context, parts, key) if kind is not None and kind.look is not None else None


def _tell(context: Context, bucket: str, key: str, kind: str, found: StoreState) -> FollowUp | None:
    """Tell the index of an object as it was found; return what has to follow.

    Nothing is slow, and no store is asked: whoever writes the index waits meanwhile.
    """
    if bucket == context.settings.videos_bucket:
        return _tell_of_film(context, key, kind, found)
    parts = layout.parse_result_key(key)
    record = record_kinds.kind_of(parts)
    if record is None:
        return None
    if kind == "removed":
        return record.is_gone(context, parts) if found is None else None
    if found is None and record.look is not None:
        return None
    return record.is_there(context, parts, found)


def _tell_of_film(context: Context, key: str, kind: str, found: StoreState) -> FollowUp | None:
    if not isinstance(found, FilmNow):  # a rule, which is read when it is its turn
        return CheckRule(key)
    file_id = found.file_id
    _forget_former(context, key, file_id)
    if found.info is not None:
        return _tell_video(context, file_id, found.info) if kind == "created" else None
    if kind == "removed":
        context.index.file_removed(file_id)
        return ForgetPlan(file_id, key)
    return None


def _forget_former(context: Context, key: str, file_id: str) -> None:
    """Take the row away by which an older posedrop expected a film that has another id today."""
    former = layout.former_file_id(key)
    if former in {None, file_id}:
        return
    row = context.index.file(str(former))
    if row is not None and row.key == key:
        context.index.file_removed(row.file_id)


def _tell_video(context: Context, file_id: str, found: ObjectInfo) -> Ingest | PlanAnew | None:
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
        asked = layout.user_metadata(found.metadata)
        is_anew = after.state == "ready" and "analysis" in asked and asked != after.metadata
        is_anew &= after.etag == found.etag and after.last_modified == found.last_modified
        return PlanAnew(file_id, found.key, found) if is_anew else None
    if before is None or before.etag != found.etag or after.enqueued_at is None:
        return Ingest(file_id, found.etag, found.key)
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
            if video is not None and video.has_its_id:
                plan.plan_runs(context, video)
        case PlanAnew(key=key, found=info):
            plan.plan_anew(context, key, info)
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
    if record is not None and record_kinds.has_results(record):
        context.index.film_gone(record)


def film_may_be_gone(context: Context, key: str) -> bool:
    """List the film of a video.json that no file in the index is of; return whether that was so."""
    found = _look_at(context, context.settings.results_bucket, key)
    if not isinstance(found, FilmGone):
        return False
    video = found.record.video
    _act(context, ForgetPlan(video.file_id, video.key))
    return True


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
    """Follow one object, as the follower does a batch of events."""
    then = _tell(context, bucket, key, kind, _look_at(context, bucket, key))
    if then is None:
        return
    _act(context, then)
    if isinstance(then, Ingest):
        context.index.file_enqueued(then.file_id, context.clock())
