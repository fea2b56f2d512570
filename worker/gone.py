"""A worker's copies of films that are gone: they are dropped from its disk, soon after."""

from __future__ import annotations

import logging

from posedrop.buckets import layout
from posedrop.buckets.records.videos import Duplicate
from posedrop.errors import StorageError
from worker.context import Context

log = logging.getLogger(__name__)

#: How long after its start a worker looks, and how often then, in seconds.
FIRST = 60.0
EVERY = 3600.0


def keep_forgetting(context: Context) -> None:
    """Look every hour, until this worker is closed."""
    pause = FIRST
    while not context.is_closed_within(pause):
        pause = EVERY
        try:
            forget_gone(context)
        except StorageError as error:
            log.warning("films that are gone are looked for later: %s", error)


def forget_gone(context: Context) -> int:
    """Drop the kept videos whose content no film in the bucket has; return how many.

    The first film of a content is asked about alone. Where another one of the same content is left,
    the video is fetched again when it is next used, no more.

    Raises:
        StorageError: the store can't be asked.
    """
    dropped = 0
    for sha256 in context.cache.videos():
        key = layout.content(sha256)
        first = context.storage.read_whole_record(context.settings.results_bucket, key, Duplicate)
        if first is None or context.storage.head(context.settings.videos_bucket, first.key) is None:
            context.cache.forget_video(sha256)
            dropped += 1
    return dropped
