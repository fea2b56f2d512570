"""Bucket notifications: recorded within milliseconds, followed by a thread of their own.

The answer to POST /events must not wait for the store or the broker: MinIO sends with few senders
that all targets share, and a slow endpoint stops every event of every bucket.
"""

from __future__ import annotations

import logging
import threading

from handlers import plan
from handlers.context import Context, now
from posedrop import events, layout
from posedrop.errors import PosedropError
from posedrop.events import ObjectCreated, ObjectRemoved
from posedrop.index import EventRow
from posedrop.records import Asked, Request, Result, VideoRecord

log = logging.getLogger(__name__)

_BATCH = 200
_NOTED = frozenset({layout.REQUEST, layout.RESULT, layout.VIDEO_RECORD})


def record(context: Context, body: bytes) -> int:
    """Keep what a notification says; return how many events were new.

    Raises:
        IndexBusyError: it could not be recorded; the sender has to send it again.
    """
    parsed = events.parse_bytes(body)
    for reason, part in parsed.unknown:
        context.index.dead_letter(reason, part, now())
    wanted = [event for event in parsed.events if _matters(context, event)]
    return context.index.record_events(wanted, now()) if wanted else 0


def _matters(context: Context, event: ObjectCreated | ObjectRemoved) -> bool:
    """Leave out what posedrop writes itself and needs no telling, heartbeats above all."""
    if event.bucket == context.settings.videos_bucket:
        return not event.key.endswith("/")
    if event.bucket != context.settings.results_bucket:
        return False
    match layout.parse_result_key(event.key):
        case layout.VideoObject(name=name):
            return name == layout.VIDEO_RECORD
        case layout.AskedObject():
            return True
        case layout.RunObject(name=name):
            return name in _NOTED or name == "attempts/1.json"
        case _:
            return False


class Follower:
    """The thread that does what the recorded events call for, oldest first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin with what was recorded and not followed before."""
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """There are new events."""
        self._wake.set()

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
                while not self._stop.is_set() and follow(self._context):
                    pass
            except Exception:
                log.exception("the follower goes on after an error")


def follow(context: Context) -> int:
    """Act on recorded events; return how many are done. One bad event never holds up the next."""
    done = 0
    for row in context.index.unhandled_events(_BATCH, now()):
        try:
            act(context, row)
        except PosedropError as error:
            log.warning("event %s %s: %s", row.kind, row.key, error)
            context.index.event_failed(row.id, error.message, now())
        except Exception as error:
            log.exception("event %s %s", row.kind, row.key)
            context.index.event_failed(row.id, repr(error), now())
        else:
            context.index.event_handled(row.id, now())
            done += 1
    return done


def act(context: Context, event: EventRow) -> None:
    """Bring the index up to one event, and enqueue what follows from it."""
    if event.bucket == context.settings.videos_bucket:
        if event.kind == "removed":
            video_removed(context, event.key)
        else:
            video_arrived(context, event.key)
    elif event.kind == "removed":
        result_removed(context, event.key)
    else:
        result_arrived(context, event.key)


def video_arrived(context: Context, key: str) -> None:
    """Index an object of the videos bucket as it is now, and have it ingested."""
    if key.rsplit("/", 1)[-1] == layout.FOLDER_RULES:
        return
    bucket = context.settings.videos_bucket
    found = context.storage.head(bucket, key)
    if found is None:
        return
    file_id = layout.file_id_of(bucket, key)
    before = context.index.file(file_id)
    context.index.file_received(
        bucket=bucket,
        key=key,
        file_id=file_id,
        etag=found.etag,
        size=found.size,
        metadata=layout.user_metadata(found.metadata),
        last_modified=found.last_modified,
    )
    after = context.index.file(file_id)
    if after is None or after.state != "received":
        return
    if before is None or before.etag != found.etag or after.enqueued_at is None:
        context.enqueue_ingest(file_id, bucket, key, found.etag)


def video_removed(context: Context, key: str) -> None:
    """Take a video out of the index that is really gone."""
    bucket = context.settings.videos_bucket
    if context.storage.head(bucket, key) is None:
        context.index.file_removed(layout.file_id_of(bucket, key))


def result_arrived(context: Context, key: str) -> None:
    """Index a record of the results bucket; plan when it is a video's."""
    bucket = context.settings.results_bucket
    match layout.parse_result_key(key):
        case layout.VideoObject(name=layout.VIDEO_RECORD):
            video = context.storage.read_record(bucket, key, VideoRecord)
            if video is not None:
                context.index.file_ingested(video)
                plan.plan_ingested(context, video)
        case layout.AskedObject(video=prefix):
            asked = context.storage.read_record(bucket, key, Asked)
            if asked is not None:
                context.index.pending_asked(asked)
            # It may have been asked in the very moment in which the ingest ended.
            video = context.storage.read_record(bucket, layout.video_record(prefix), VideoRecord)
            if video is not None:
                plan.plan_ingested(context, video)
        case layout.RunObject(run=run, name=layout.REQUEST):
            request = context.storage.read_record(bucket, key, Request)
            if request is not None:
                context.index.analysis_planned(request, run)
        case layout.RunObject(run=run, name=layout.RESULT):
            result = context.storage.read_record(bucket, key, Result)
            if result is not None:
                context.index.analysis_finished(result, run)
        case layout.RunObject(analysis_id=analysis_id, name="attempts/1.json"):
            context.index.analysis_running(analysis_id)
        case _:
            pass


def result_removed(context: Context, key: str) -> None:
    """Take a run out of the index whose records are really gone."""
    match layout.parse_result_key(key):
        case layout.RunObject(run=run, analysis_id=analysis_id, name=layout.REQUEST):
            row = context.index.analysis(analysis_id)
            bucket = context.settings.results_bucket
            if row is not None and row.run == run and context.storage.head(bucket, key) is None:
                context.index.analysis_removed(analysis_id)
        case _:
            pass
