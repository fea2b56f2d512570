"""Records of notices and batches, removed some months after what they tell of.

A record that is gone makes nobody be told twice: of what ended so long ago nobody is told at all
(``teller.TOLD_WITHIN``). How old a record is, both clocks have to say, at the moment of its
removal: the store's or this machine's may have run ahead when it was seen. Of a batch its request
goes first, so that none that is over begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from handlers.apart import apart
from handlers.context import Context
from handlers.telling import teller
from handlers.upkeep.repairs import Repairs
from posedrop.buckets import layout
from posedrop.buckets.storage import ObjectInfo

#: A day longer than ends are told of, whatever this machine's clock says.
KEPT = teller.TOLD_WITHIN + timedelta(days=1)
#: So many are removed in one sweep.
_AT_ONCE = 10_000


class OldRecords:
    """What a sweep has seen of such records, by the store's clock."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._notices: list[tuple[datetime, str]] = []
        self._batches: list[tuple[datetime, str]] = []

    def look(self, found: ObjectInfo, key: layout.ResultObject | None) -> None:
        """Note an object of the results bucket, by what its key is, if it is an old record."""
        if self._now - found.last_modified <= KEPT:
            return
        if layout.is_of_notice(found.key) and len(self._notices) < _AT_ONCE:
            self._notices.append((found.last_modified, found.key))
        match key:
            case layout.BatchObject(batch_id=batch_id, name=layout.BATCH_OVER):
                self._batches.append((found.last_modified, batch_id))

    def remove(self, context: Context, repairs: Repairs) -> Iterator[None]:
        """Remove what was noted, a record at a step.

        Raises:
            StorageError: the store is away.
        """
        bucket = context.settings.results_bucket
        now = teller.time_by_both(context)
        if now is None:
            return
        context.index.tellings_forgotten(now - teller.TOLD_WITHIN)
        notices = [key for since, key in self._notices if now - since > KEPT]
        over = [batch_id for since, batch_id in self._batches if now - since > KEPT]
        for key in notices:
            yield
            with apart(context, f"{key} is not removed") as trial:
                context.storage.delete(bucket, [key])
                repairs.old_records += 1
            repairs.undeletable += trial.failed
        for batch_id in over[:_AT_ONCE]:
            yield
            with apart(context, f"the records of the batch {batch_id} are not removed") as trial:
                _remove_batch(context, batch_id)
                repairs.old_records += 1
            repairs.undeletable += trial.failed


def _remove_batch(context: Context, batch_id: str) -> None:
    bucket = context.settings.results_bucket
    request, over = layout.batch(batch_id), layout.batch(batch_id, layout.BATCH_OVER)
    found = context.storage.objects(bucket, request.removesuffix(layout.BATCH_REQUEST))
    films = [each.key for each in found if each.key not in {request, over}]
    context.index.batch_forgotten(batch_id)
    context.storage.delete(bucket, [request, *films, over])
