"""Bucket notifications: read and recorded within milliseconds, to be followed later.

The answer to POST /events must not wait for the store or the broker: MinIO sends with few senders
that all targets share, and a slow endpoint stops every event of every bucket.
"""

from __future__ import annotations

from handlers import changes, gpu_queue
from handlers.context import Context
from handlers.runs import record_kinds
from posedrop.buckets import layout
from posedrop.transport import events
from posedrop.transport.events import ObjectCreated, ObjectRemoved


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
    """Tell whether something follows from an event: from most objects that posedrop writes, none.

    Heartbeats above all are left out.
    """
    if event.bucket == context.settings.videos_bucket:
        size = event.size if isinstance(event, ObjectCreated) else None
        return not layout.is_folder_mark(event.key, size)
    if event.bucket != context.settings.results_bucket:
        return False
    kind = record_kinds.kind_of(layout.parse_result_key(event.key))
    return kind is not None and kind.has_events
