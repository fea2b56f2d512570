"""Files that a child leaves, taken without believing any of them.

A child that a film has taken over may leave anything where a file should be: a link to what only
its parent may read, a pipe that never ends, a terabyte of zeros, a name that means something to
posedrop. So its parent takes regular files alone, of names that it knows beforehand, up to a size,
moves them to where that child does not write, and follows nothing.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import IO

from posedrop.analyses import UNFINISHED, Analysis
from posedrop.buckets import layout

#: Bytes of a log; of a longer one its end is kept.
MAX_LOG_BYTES = 8 << 20
#: Files of one job, and how many entries of its folder are looked at.
MAX_FILES, MAX_ENTRIES = 64, 1000
_TOLD = 20
#: Bytes that any file may have, and how many more for each frame of its film, beside twice the
#: bytes of its pixels.
_BYTES, _BYTES_A_FRAME = 64 << 20, 1 << 20
#: A file larger than _BYTES of which less than this share is data consists of holes.
_HOLES = 1e-3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
#: Formats that are made of pickles, which whoever opens them executes.
_EXECUTED = (".h5", ".hdf", ".hdf5", ".pickle", ".pkl", ".joblib")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotTakenError(Exception):
    """What stands there is nothing that a parent takes; the message says why."""


def largest(frames: int, width: int, height: int) -> int:
    """Return how many bytes a file may have that was made of a film; sides are in pixels."""
    return _BYTES + frames * (_BYTES_A_FRAME + 2 * width * height)


def names_of(analysis: Analysis, *, opens_film: bool) -> tuple[str, ...]:
    """Return patterns of the names of the files that a child may leave of an analysis.

    Args:
        analysis: which.
        opens_film: whether it was the child that has the film; if another one follows
            (``finish``), all that the first one may leave is ``predictions.npz``.
    """
    if opens_film and analysis.finish is not None:
        return (layout.PREDICTIONS,)
    refused = _EXECUTED if opens_film else ()
    return tuple(
        name
        for name in analysis.artefacts
        if name.lower() not in layout.OWN_NAMES and not name.lower().endswith(refused)
    )


def is_allowed(name: str, patterns: Collection[str]) -> bool:
    """Tell whether a file of this name is taken.

    A name that has a meaning to posedrop, or a format that is executed where it is opened, has to
    be one of ``patterns`` itself.
    """
    if _NAME.fullmatch(name) is None:
        return False
    if name.lower() in layout.OWN_NAMES or name.lower().endswith(_EXECUTED):
        return name in patterns
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def take(
    out: Path, into: Path, patterns: Collection[str], most: int, *, besides: Collection[str] = ()
) -> list[str]:
    """Move the files that a child has left into a folder to which no child writes.

    Args:
        out: the child's folder; nothing else is looked at, nor is a folder in it.
        into: an existing folder, on the same disk; a file of the same name is replaced.
        patterns: of the names that are taken.
        most: bytes of a file.
        besides: names of files that the child was given there.

    Returns:
        Words about what was left there, the first few: ``'x.csv': it is a link``.
    """
    left: list[str] = []
    try:
        with entered(out) as folder:
            with os.scandir(folder) as entries:
                found = {entry.name for entry in islice(entries, MAX_ENTRIES)}
            names, taken = sorted(found - {*besides}), 0
            for name in names:
                if name.endswith(UNFINISHED):
                    continue
                try:
                    _move(name, folder, into, patterns, most if taken < MAX_FILES else -1)
                    taken += 1
                except (NotTakenError, OSError) as error:
                    left.append(f"{ascii(name)[:100]}: {error}")
    except NotTakenError as error:
        left.append(f"the folder of its files: {error}")
    return left[:_TOLD]


@contextmanager
def entered(folder: Path) -> Iterator[int]:
    """Open a folder that a child was given, as a descriptor.

    Raises:
        NotTakenError: there is something else in its place.
    """
    try:
        descriptor = os.open(folder, _FLAGS | os.O_DIRECTORY)
    except OSError as error:
        raise NotTakenError(f"it can't be opened ({error.strerror})") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _move(name: str, folder: int, into: Path, patterns: Collection[str], most: int) -> None:
    if not is_allowed(name, patterns):
        raise NotTakenError("no file of that name is taken")
    if most < 0:
        raise NotTakenError(f"there are more than {MAX_FILES}")
    target = into / name
    _check(os.stat(name, dir_fd=folder, follow_symlinks=False), most, links=1)
    os.rename(name, target, src_dir_fd=folder)
    # Once more, where nobody can put another file in its place.
    try:
        _check(target.lstat(), most, links=1)
        target.chmod(0o600)
        with opened(target, most):
            pass
    except BaseException:
        _remove(target)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _check(there: os.stat_result, most: int, links: int | None) -> None:
    if not stat.S_ISREG(there.st_mode):
        raise NotTakenError("it is no file")
    if links is not None and there.st_nlink > links:
        raise NotTakenError("it is the file of another name as well (a hard link)")
    if there.st_size > most:
        raise NotTakenError(f"it has {there.st_size:,} bytes, more than {most:,}")


def _check_holes(descriptor: int, size: int) -> None:
    """Refuse a large file with next to nothing in it, which takes no room but hours to read."""
    end = data = 0
    for _ in range(MAX_ENTRIES):
        if size <= _BYTES or data >= size * _HOLES:
            break
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # there is no more
            raise NotTakenError(f"it consists of holes, {size:,} bytes of them") from None
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        data += end - start
    os.lseek(descriptor, 0, os.SEEK_SET)


@contextmanager
def opened(
    path: Path | str, most: int | None = None, links: int | None = 1, folder: int | None = None
) -> Iterator[IO[bytes]]:
    """Open a file in a child's folder for reading; pipes are refused, not waited for.

    Args:
        path: its folder is believed to be one, it is not believed to be a file.
        most: bytes that it may have; None: any.
        links: names that it may have; None: any, as a film has others in the cache.
        folder: a descriptor, for a relative path.

    Raises:
        NotTakenError: it is no regular file, too large, or has more names.
        OSError: it is gone, or can't be read.
    """
    try:
        descriptor = os.open(path, _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise NotTakenError("it is no file") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        there = os.fstat(descriptor)
        _check(there, there.st_size if most is None else most, links)
        _check_holes(descriptor, there.st_size)
        yield file


def copy(path: Path, target: Path, most: int) -> None:
    """Copy a file that a child has left: what the child still writes does not reach the copy.

    Raises:
        NotTakenError: it is nothing that is taken, or grew meanwhile.
        OSError: it is gone, or the disk is full.
    """
    with opened(path, most) as file, target.open("xb") as copied:
        while chunk := file.read(1 << 20):
            if copied.tell() + len(chunk) > most:
                raise NotTakenError("it grows without end")
            copied.write(chunk)


def end_of(path: Path, most: int) -> bytes:
    """Return the last bytes of a file in a child's folder; none, if there is no such file."""
    try:
        with opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read(most)
    except (NotTakenError, OSError):
        return b""
