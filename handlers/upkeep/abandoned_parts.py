"""Uploads in parts that nobody goes on with are given up after a week."""

from __future__ import annotations

from datetime import timedelta

from handlers.apart import apart
from handlers.context import Context
from handlers.upkeep.repairs import Repairs

#: How long an upload in parts is left alone, and how often is looked for older ones.
_PARTS_LEFT = timedelta(days=7)
_PARTS_EVERY = timedelta(hours=1)


class AbandonedParts:
    """Uploads in parts that nobody went on with: what they hold costs space, and no list shows it.

    Some stores remove them by themselves, others keep them for ever.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next = context.clock()

    def go_on(self, repairs: Repairs) -> None:
        """Give up, once an hour, the uploads in parts that were begun long ago."""
        if self._context.clock() < self._next:
            return
        self._next = self._context.clock() + _PARTS_EVERY
        settings = self._context.settings
        for bucket in (settings.videos_bucket, settings.results_bucket):
            # A key from before this was done has no leave to list them: no reason to count that.
            with apart(self._context, f"old uploads in parts stay in {bucket}"):
                self._go_through(bucket, repairs)

    def _go_through(self, bucket: str, repairs: Repairs) -> None:
        storage = self._context.storage
        before = storage.time(self._context.settings.results_bucket) - _PARTS_LEFT
        for upload in list(storage.unfinished_uploads(bucket)):
            if upload.begun >= before:
                continue
            with apart(self._context, f"an upload of {upload.key} is not given up") as trial:
                storage.abort_upload(bucket, upload)
                repairs.given_up += 1
            repairs.undeletable += trial.failed
