"""A job's folder, handed to a child for one call, and taken back.

A child's walls (``child.walls``) name one folder, for as long as it lives; jobs come and go. So a
job's folder is moved there while the child is at it, and a link stands in its place: paths stay
what they are. What the job is given, its film and its model, goes where the child can only read.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posedrop.errors import ChildDiedError
from worker.child.walls import GIVEN, OWN

#: What of a job's folder is only read.
READ_ONLY = ("video", "model")
#: How deep a folder is removed in one go: its path must not be longer than the kernel takes.
_DEEP = 10


def prepare(place: Path) -> None:
    """Make a child's folder, empty: files of an earlier child go."""
    remove(place)
    if place.exists():  # whatever it did to it, the next child has none of it
        place.rename(place.with_name(f"{place.name}-{uuid.uuid4().hex}"))
    for name in (OWN, GIVEN):
        (place / name).mkdir(mode=0o700, parents=True)


@contextmanager
def lent(folder: Path, place: Path) -> Iterator[None]:
    """Hand a job's folder over to the child that has ``place``, for the block.

    Raises:
        ChildDiedError: it was gone when it was to be taken back; an empty one is in its place.
    """
    there = place / OWN / folder.name
    try:
        for name in READ_ONLY:
            if os.path.lexists(folder / name):
                (folder / name).rename(place / GIVEN / name)
                (folder / name).symlink_to(place / GIVEN / name)
        folder.rename(there)
        folder.symlink_to(there)
        yield
    finally:
        _take_back(folder, there, place / GIVEN)


def _take_back(folder: Path, there: Path, given: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    whole = folder.is_dir() or (there.is_dir() and not there.is_symlink())
    if not folder.is_dir():
        if whole:
            there.chmod(0o700)
            there.rename(folder)
        else:
            folder.mkdir(mode=0o700)
    for name in READ_ONLY:
        if os.path.lexists(given / name):
            remove(folder / name)
            (given / name).rename(folder / name)
    if not whole:
        raise ChildDiedError("the child process took its job's folder away")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder however deep, as far as possible."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
        return
    _flatten(path)
    shutil.rmtree(path, ignore_errors=True)


def _flatten(folder: Path) -> None:
    """Have no folder within it more than :data:`_DEEP` levels down, and none that is shut.

    ``shutil.rmtree`` goes down by recursion, with an open file for each level, and a path can be
    longer than the kernel takes: a child could make folders that nothing removes.
    """
    waiting = [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        with suppress(OSError):
            here.chmod(0o700)
            with os.scandir(here) as entries:
                folders = [
                    Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)
                ]
            for each in folders:
                if depth < _DEEP:
                    waiting.append((each, depth + 1))
                else:
                    each.chmod(0o700)
                    waiting.append((each.rename(folder / uuid.uuid4().hex), 1))
