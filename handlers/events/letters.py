"""Dead letters: events that could not be read or followed; listed, and followed again on demand.

An event is a hint: what a dead letter told of, the reconciler finds in the buckets as well. To have
it followed again saves the wait, and clears the list.
"""

from __future__ import annotations

import json
from datetime import datetime

from pydantic import BaseModel, Field, ValidationError

from handlers import changes
from handlers.context import Context
from handlers.events import notify
from posedrop.api.letters import DeadLetter, DeadLettersPage, Replayed, ReplayRequest
from posedrop.transport import events
from posedrop.transport.events import Event, ObjectCreated, ObjectRemoved

_PAGE = 200


class _Told(BaseModel):
    """An event as a dead letter keeps it that was read, and could not be followed."""

    bucket: str
    key: str
    etag: str
    sequencer: str
    kind: str = Field(pattern="^(created|removed)$")
    size: int | None
    received_at: datetime


def page(context: Context, before: int | None, limit: int) -> DeadLettersPage:
    """Return dead letters that are older than the one with the id ``before``."""
    rows = context.index.dead_letters(limit + 1, before)
    items = [DeadLetter.model_validate(row) for row in rows[:limit]]
    return DeadLettersPage(items=items, next=items[-1].id if len(rows) > limit else None)


def replay(context: Context, wanted: ReplayRequest) -> Replayed:
    """Have dead letters followed again: those that can be read are no dead letters any more."""
    ids = None if wanted.ids is None else set(wanted.ids)
    replayed = kept = 0
    before: int | None = None
    while rows := context.index.dead_letters(_PAGE, before):
        before = rows[-1].id
        for row in rows:
            if ids is not None and row.id not in ids:
                continue
            found = _events_of(row.body)
            if found is None:
                kept += 1
                continue
            matter = [event for event in found if notify.matters(context, event)]
            replayed += context.index.dead_letter_replayed(row.id, matter, context.clock())
    changes.note("dead letters replayed", replayed=replayed, kept=kept)
    return Replayed(replayed=replayed, kept=kept)


def _events_of(body: str) -> list[Event] | None:
    """Return what a dead letter told of; None: it still can't be read."""
    try:
        told = _Told.model_validate(json.loads(body))
    except (ValidationError, ValueError, RecursionError):
        parsed = events.parse_bytes(body.encode(errors="replace"))
        return parsed.events if not parsed.unknown else None
    if told.kind == "removed":
        return [ObjectRemoved(told.bucket, told.key, told.sequencer, None)]
    return [ObjectCreated(told.bucket, told.key, told.etag, told.size, told.sequencer, None)]
