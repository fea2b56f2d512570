"""The workers that live, by the records that they rewrite; those of dead ones are removed."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from posedrop.buckets import layout
from posedrop.buckets.records.workers import Speed, WorkerRecord
from posedrop.buckets.storage import Listing, Storage
from posedrop.errors import RecordError, StorageError
from posedrop.settings import Settings
from posedrop.transport import queue

log = logging.getLogger(__name__)

#: Seconds for which it is taken as known who lives.
KNOWN_SECONDS = 5.0
#: A record that was not written for so many leases is of a worker that was killed.
SWEPT_LEASES = 10
#: Bytes of a record; what is larger no worker wrote.
MAX_BYTES = 1 << 18
MAX_WORKERS = 1000
#: Of so many it is asked how fast they are.
MAX_ASKED = 20


class Workers:
    """The workers that live, as they were last looked up. No decision on a run depends on it."""

    def __init__(self) -> None:
        """Begin with no worker known."""
        self._looked_at: datetime | None = None
        self._queues: dict[str, list[str]] = {}
        self._heard_at: datetime | None = None
        self._speeds: list[Speed] = []

    def gpu(self, storage: Storage, settings: Settings, now: datetime) -> int:
        """Return how many gpu workers live; one, where none says so: it may be an older posedrop's.

        Raises:
            StorageError: the store is away.
        """
        return max(1, self.by_queue(storage, settings, now)[queue.GPU])

    def by_queue(self, storage: Storage, settings: Settings, now: datetime) -> dict[str, int]:
        """Return how many workers live that serve each queue; those of an older posedrop not.

        Raises:
            StorageError: the store is away.
        """
        known = timedelta(seconds=KNOWN_SECONDS)
        if self._looked_at is None or not timedelta() <= now - self._looked_at < known:
            listing = storage.listing(settings.results_bucket, layout.WORKERS)
            alive = _heard_of(listing, settings.lease_seconds)
            # What a worker serves does not change while it lives.
            self._queues = {
                key: self._queues[key] if key in self._queues else _queues(storage, settings, key)
                for key in alive
            }
            self._looked_at = now
        return {
            name: sum(name in served for served in self._queues.values())
            for name in (queue.CPU, queue.GPU)
        }

    def speeds(self, storage: Storage, settings: Settings, now: datetime) -> list[Speed]:
        """Return how fast the workers that live have told that their steps are.

        Raises:
            StorageError: the store is away.
        """
        known = timedelta(seconds=KNOWN_SECONDS)
        if self._heard_at is None or not timedelta() <= now - self._heard_at < known:
            listing = storage.listing(settings.results_bucket, layout.WORKERS)
            alive = _heard_of(listing, settings.lease_seconds)[:MAX_ASKED]
            records = [_record(storage, settings, key) for key in alive]
            self._speeds = [speed for each in records if each is not None for speed in each.speeds]
            self._heard_at = now
        return self._speeds


class Records:
    """The records of the workers that live; each is read again once it was written again."""

    def __init__(self) -> None:
        """Begin with no worker known."""
        self._known: dict[str, tuple[datetime, str, WorkerRecord]] = {}

    def read(self, storage: Storage, settings: Settings) -> list[tuple[WorkerRecord, float]]:
        """Return the records of the workers that were heard of within a lease.

        Returns:
            Each with its age in seconds, by the store's own clock.

        Raises:
            StorageError: the store is away.
        """
        bucket = settings.results_bucket
        listing = storage.listing(bucket, layout.WORKERS)
        alive = set(_heard_of(listing, settings.lease_seconds))
        known: dict[str, tuple[datetime, str, WorkerRecord]] = {}
        for found in listing.objects:
            if found.key not in alive:
                continue
            before = self._known.get(found.key)
            if before is not None and before[:2] == (found.last_modified, found.etag):
                known[found.key] = before
                continue
            try:
                record = storage.read_whole_record(bucket, found.key, WorkerRecord)
            except RecordError as error:  # a newer worker's
                storage.report(error)
                continue
            if record is not None:
                known[found.key] = (found.last_modified, found.etag, record)
        self._known = known
        return [
            (record, max(0.0, (listing.now - written).total_seconds()))
            for written, _, record in known.values()
        ]


def sweep(storage: Storage, settings: Settings) -> None:
    """Remove the records of workers that have been silent for long; later, if the store is away."""
    bucket = settings.results_bucket
    try:
        listing = storage.listing(bucket, layout.WORKERS)
        alive = set(_heard_of(listing, SWEPT_LEASES * settings.lease_seconds))
        silent = [found.key for found in listing.objects if found.key not in alive]
        if silent:
            storage.delete(bucket, silent)
            log.info("%d workers are gone without a word", len(silent))
    except StorageError as error:
        log.warning("records of workers that are gone stay for now: %s", error)


def _heard_of(listing: Listing, seconds: float) -> list[str]:
    """Return the keys of the records that were written lately, by the store's own clock."""
    recent = [
        found.key
        for found in listing.objects
        if (listing.now - found.last_modified).total_seconds() < seconds and found.size <= MAX_BYTES
    ]
    return recent[:MAX_WORKERS]


def _queues(storage: Storage, settings: Settings, key: str) -> list[str]:
    record = _record(storage, settings, key)
    return record.queues if record is not None else []


def _record(storage: Storage, settings: Settings, key: str) -> WorkerRecord | None:
    try:
        return storage.read_whole_record(settings.results_bucket, key, WorkerRecord)
    except RecordError as error:  # a newer worker's
        storage.report(error)
        return None
