"""Videos and models kept on a host's disk by their digest, for its ingests, inferences and renders.

What is handed out is a hard link, so that making room never takes a file from somebody's hands. A
video's content is hashed each time: reading a disk is faster than fetching again, and what lies in
a folder that children write to is not believed.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from posedrop.hashing import sha256_of

log = logging.getLogger(__name__)

#: Seconds for which a model stays, whatever the bound: somebody may just be loading it.
GRACE = 3600.0


class Cache:
    """Two folders, ``videos`` and ``models``, each within a bound of bytes; the oldest go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Use ``folder``, which other processes may use too."""
        self._videos = folder / "videos"
        self.models = folder / "models"
        for each in (self._videos, self.models):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of a small disk a quarter each: the rest is for the jobs.
        self._max_bytes = min(max_bytes, shutil.disk_usage(folder).total // 4)

    def link_video(self, sha256: str, target: Path) -> bool:
        """Link the kept video with this content to ``target``; False: none is, or it is damaged."""
        kept = self._videos / sha256
        try:
            os.link(kept, target)
        except OSError:
            return False
        try:
            found = sha256_of(target)
        except OSError as error:  # of a bad sector below it
            found = str(error)
        if found != sha256:
            log.warning("a kept video had changed on disk (%s): fetched again", found)
            kept.unlink(missing_ok=True)
            target.unlink()
            return False
        with suppress(OSError):
            os.utime(kept)
        return True

    def keep_video(self, sha256: str, source: Path) -> None:
        """Keep a file whose content has this hash; silently not, where the disk can't.

        It was in a child's hands: what stands there now may be a link, or a pipe without an end.
        """
        kept = self._videos / sha256
        with suppress(OSError):
            if source.lstat().st_size > self._max_bytes:
                return
            os.link(source, kept, follow_symlinks=False)
            if not kept.is_file() or kept.is_symlink():
                kept.unlink()
        _trim(self._videos, self._max_bytes, 0.0)

    def videos(self) -> list[str]:
        """Return the contents that are kept, by their hashes."""
        return [path.name for path in self._videos.iterdir()]

    def forget_video(self, sha256: str) -> None:
        """Drop a kept video, such as one that was refused or deleted."""
        with suppress(OSError):
            (self._videos / sha256).unlink()

    def give_way(self) -> int:
        """Drop all that no job needs, as the disk is full; return the bytes that this freed.

        A video that a job holds too would free nothing, and be fetched again by the next. A model
        goes when it was not used for :data:`GRACE`.
        """
        freed = _trim(self.models, 0, GRACE)
        for path in self._videos.iterdir():
            with suppress(OSError):
                there = path.stat()
                if there.st_nlink == 1:
                    path.unlink()
                    freed += there.st_size
        return freed

    def trim_models(self) -> None:
        """Remove the models that were used longest ago, if there are too many."""
        _trim(self.models, self._max_bytes, GRACE)


def _trim(folder: Path, max_bytes: int, grace: float) -> int:
    """Remove a folder's entries that were used longest ago; return the bytes that this freed."""
    entries = []
    for path in folder.iterdir():
        with suppress(OSError):
            entries.append((path.stat().st_mtime, _size(path), path))
    before = total = sum(size for _, size, _ in entries)
    for used, size, path in sorted(entries):
        if total <= max_bytes:
            break
        if time.time() - used < grace:
            continue
        total -= size
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return before - total


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
