"""Checkpoints, the parent's half: the child's parts, kept in the run's folder while it lasts."""

from __future__ import annotations

import logging
import os
import re
from itertools import islice
from pathlib import Path

from posedrop.buckets.layout import Run
from posedrop.buckets.storage import Storage
from posedrop.errors import ObjectChangedError, StorageError
from worker.jobs import artefacts

log = logging.getLogger(__name__)

#: Bytes of one part beyond which something is wrong; a minute's poses have some kilobytes.
MAX_PART_BYTES = 256 << 20
#: Parts of a run, one a minute of work, and their bytes: a child gone mad fills no bucket.
MAX_PARTS, MAX_BYTES = 20_000, 16 << 30
_NAME = re.compile(r"[0-9]{1,9}\.npz")


class Checkpoints:
    """The parts of one run, here and in the bucket.

    A part is created, never overwritten. If an attempt that was taken for dead still writes, its
    parts and its successor's don't fit together, and a third attempt goes on from where they do.
    """

    def __init__(self, storage: Storage, bucket: str, run: Run, folder: Path) -> None:
        """Keep ``<run>/parts/`` in ``folder``, which is made."""
        self._storage = storage
        self._bucket = bucket
        self._prefix = run.parts
        self._sent: set[str] = set()
        self._bytes = 0
        self.folder = folder
        folder.mkdir()

    def fetch(self) -> int:
        """Fetch the parts that an earlier attempt left; return how many.

        One that goes meanwhile is left out. The child goes on behind the last number, from where
        those that are left follow one another.
        """
        for part in islice(self._storage.objects(self._bucket, self._prefix), MAX_PARTS):
            name = part.key.removeprefix(self._prefix)
            if part.size <= MAX_PART_BYTES and _NAME.fullmatch(name):
                try:
                    self._storage.download(self._bucket, part.key, self.folder / name, part.etag)
                except ObjectChangedError as error:
                    log.warning("a checkpoint went meanwhile: %s", error)
                    continue
                self._sent.add(name)
                self._bytes += part.size
        return len(self._sent)

    def send(self) -> int:
        """Upload the parts that are new; an attempt goes on without, if that fails.

        Returns:
            How many were uploaded, or passed over.
        """
        before = len(self._sent)
        try:
            with artefacts.entered(self.folder) as folder:
                with os.scandir(folder) as entries:
                    there = {entry.name for entry in islice(entries, 2 * MAX_PARTS)}
                for name in sorted(there - self._sent):
                    if _NAME.fullmatch(name) and not self._send(name, folder):
                        break
        except artefacts.NotTakenError as error:
            log.warning("checkpoints: %s", error)
        return len(self._sent) - before

    def _send(self, name: str, folder: int) -> bool:
        """Upload one part if it is a file of a fitting size; return whether the next may follow."""
        if len(self._sent) >= MAX_PARTS or self._bytes >= MAX_BYTES:
            return False
        try:
            with artefacts.opened(name, MAX_PART_BYTES, folder=folder) as file:
                part = file.read(MAX_PART_BYTES)
            self._storage.create(self._bucket, self._prefix + name, part)
        except (artefacts.NotTakenError, OSError) as error:
            log.warning("checkpoint %s: %s", name, error)
        except StorageError as error:
            log.warning("a checkpoint has to wait: %s", error)
            return False
        else:
            self._bytes += len(part)
        self._sent.add(name)
        return True


def clear(storage: Storage, bucket: str, run: Run) -> None:
    """Delete the parts of a run that has ended; parts that are left over do no harm."""
    try:
        storage.delete(bucket, [part.key for part in storage.objects(bucket, run.parts)])
    except StorageError as error:
        log.warning("checkpoints of a run that is over stay: %s", error)
