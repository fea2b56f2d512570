"""Checkpoints, the parent's half: the child's parts, kept in the run's folder while it lasts."""

from __future__ import annotations

import logging
from pathlib import Path

from posedrop.errors import StorageError
from posedrop.storage import Storage

log = logging.getLogger(__name__)

#: Bytes of one part beyond which something is wrong; a minute's poses have some kilobytes.
MAX_PART_BYTES = 256 << 20


class Checkpoints:
    """The parts of one run, here and in the bucket.

    A part is created, never overwritten. If an attempt that was taken for dead still writes, its
    parts and its successor's don't fit together, and a third attempt goes on from where they do.
    """

    def __init__(self, storage: Storage, bucket: str, run: str, folder: Path) -> None:
        """Keep ``<run>/parts/`` in ``folder``, which is made."""
        self._storage = storage
        self._bucket = bucket
        self._prefix = f"{run}/parts/"
        self._sent: set[str] = set()
        self.folder = folder
        folder.mkdir()

    def fetch(self) -> int:
        """Download what an earlier attempt left; return how many parts."""
        for part in self._storage.objects(self._bucket, self._prefix):
            name = part.key.removeprefix(self._prefix)
            if part.size <= MAX_PART_BYTES and name.removesuffix(".npz").isdecimal():
                self._storage.download(self._bucket, part.key, self.folder / name, part.etag)
                self._sent.add(name)
        return len(self._sent)

    def send(self) -> int:
        """Upload the parts that are new; an attempt goes on without, if that fails.

        Returns:
            How many were uploaded.
        """
        sent = 0
        for path in sorted(self.folder.glob("*.npz")):
            # The child wrote it, and who has taken a child over would have us send other files.
            odd = path.is_symlink() or path.stat().st_size > MAX_PART_BYTES
            if odd or path.name in self._sent:
                continue
            try:
                self._storage.create(self._bucket, self._prefix + path.name, path.read_bytes())
            except StorageError as error:
                log.warning("a checkpoint has to wait: %s", error)
                break
            self._sent.add(path.name)
            sent += 1
        return sent


def clear(storage: Storage, bucket: str, run: str) -> None:
    """Delete the parts of a run that needs them no more; what is left over harms nobody."""
    try:
        storage.delete(bucket, [part.key for part in storage.objects(bucket, f"{run}/parts/")])
    except StorageError as error:
        log.warning("checkpoints of a run that is over stay: %s", error)
