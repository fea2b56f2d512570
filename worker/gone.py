"""A worker's copies of films that are gone: they are dropped from its disk, soon after."""

from __future__ import annotations

import logging

from posedrop.buckets import layout
from posedrop.buckets.records import Duplicate
from posedrop.errors import StorageError
from worker.context import Workshop

log = logging.getLogger(__name__)

#: How long after its start a worker looks, and how often then, in seconds.
FIRST = 60.0
EVERY = 3600.0


def keep_forgetting(shop: Workshop) -> None:
    """Look every hour, until this worker is closed."""
    pause = FIRST
    while not shop.is_closed_within(pause):
        pause = EVERY
        try:
            forget_gone(shop)
        except StorageError as error:
            log.warning("films that are gone are looked for later: %s", error)


def forget_gone(shop: Workshop) -> int:
    """Drop the kept videos whose content no film in the bucket has; return how many.

    The first film of a content is asked about alone. Where another one of the same content is left,
    the video is fetched again when it is next used, no more.

    Raises:
        StorageError: the store can't be asked.
    """
    dropped = 0
    for sha256 in shop.cache.videos():
        key = layout.content(sha256)
        first = shop.storage.read_whole_record(shop.settings.results_bucket, key, Duplicate)
        if first is None or shop.storage.head(shop.settings.videos_bucket, first.key) is None:
            shop.cache.forget_video(sha256)
            dropped += 1
    return dropped
