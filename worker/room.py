"""A scratch disk that is small or full: what gives way, what waits, and what can never fit.

A disk that others fill is nobody's fault: the job is tried again. One that a single job would fill
by itself is too small for it, and no retry makes it larger.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from posedrop.buckets.records.models import Model
from posedrop.errors import ModelError, RefusedVideoError, StorageError
from worker import limits
from worker.cache import Cache

T = TypeVar("T")

#: What a job's folder is called, below a worker's own.
JOB = "job-"
#: The share of a disk that a film may take: its job writes more beside it.
_OF_A_FILM = 0.9
#: The share of a disk by which a single job shows that it is too large for it.
_OF_A_JOB = 0.5
#: The share of a disk whose use makes a child's word believable that it was full.
_NEARLY_FULL = 0.1
#: What to do about a disk that is too small; an ingest refuses by it, a run fails.
_ADVICE = (
    "set POSEDROP_SCRATCH_DIR to a folder on a larger disk, then `posedrop reingest` the film if "
    "it was refused, or ask for the analysis again; or cut the film into parts"
)
#: Bytes that a disk must take to pass for one that is not full.
_ROOM = 1 << 18


def check_fits(size: int, scratch: Path) -> None:
    """Refuse a film of so many bytes that the disk could not hold if it were empty.

    Raises:
        RefusedVideoError: code ``no_room``; final.
    """
    disk = shutil.disk_usage(scratch)
    if size > _OF_A_FILM * disk.total:
        raise RefusedVideoError(
            f"the film has {size:,} bytes, and the disk of {scratch} has {disk.total:,} in all "
            f"({disk.free:,} free): {_ADVICE}",
            code="no_room",
        )


def check_model_fits(model: Model, scratch: Path) -> None:
    """Fail a run whose model the disk could not hold if it were empty.

    Raises:
        ModelError: code ``no_room``; final.
    """
    disk = shutil.disk_usage(scratch)
    size = sum(file.size for file in model.files)
    if size > disk.total:
        raise ModelError(
            f"the model {model.name} has {size:,} bytes, and the disk of {scratch} has "
            f"{disk.total:,} in all: set POSEDROP_SCRATCH_DIR to a folder on a larger disk, then "
            "ask for the analysis again",
            code="no_room",
        )


def fetch_with_room(cache: Cache, fetch: Callable[[], T]) -> T:
    """Call ``fetch``; where the disk is full, once more after the cache gave way.

    Raises:
        StorageError: code ``scratch_unwritable``: it is still full.
    """
    try:
        return fetch()
    except StorageError as error:
        if error.code != "scratch_unwritable" or not cache.give_way():
            raise
        return fetch()


def check_room(folder: Path) -> None:
    """Try whether a disk takes anything at all.

    Raises:
        StorageError: it is full, or can't be written for another reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"can't write to {folder} ({error}): is the disk of POSEDROP_SCRATCH_DIR full?",
        code="scratch_unwritable",
    )


def folder_in(scratch: Path) -> Path:
    """Make a folder for a job, where the disk takes something.

    Raises:
        StorageError: code ``scratch_unwritable``: it takes nothing.
    """
    check_room(scratch)
    try:
        return Path(tempfile.mkdtemp(prefix=JOB, dir=scratch))
    except OSError as error:
        raise _unwritable(scratch, error) from error


def check_child(scratch: Path) -> None:
    """Find out whether the disk is full, as a child says, and have the cache give way.

    Raises:
        StorageError: code ``scratch_unwritable``: it may be otherwise the next time.
        RefusedVideoError: code ``no_room``: one job alone filled it; final.
    """
    try:
        check_room(scratch)
        full = None
    except StorageError as error:
        full = error
    before = shutil.disk_usage(scratch)
    if full is None and before.free > _NEARLY_FULL * before.total:
        return  # children are not believed
    freed = Cache(scratch / "cache", 0).give_way()
    jobs = list(scratch.glob(f"*/{JOB}*"))
    took = sum(map(size_of, jobs))
    if freed or len(jobs) != 1 or took <= _OF_A_JOB * before.total:
        raise full or StorageError(
            f"{before.free:,} of {before.total:,} bytes are free in {scratch}: is the disk of "
            "POSEDROP_SCRATCH_DIR full?",
            code="scratch_unwritable",
        )
    raise RefusedVideoError(
        f"the film and what was made of it took {took:,} bytes, and the disk of {scratch} has "
        f"{before.total:,} in all: {_ADVICE}",
        code="no_room",
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; what goes meanwhile is nothing."""
    total = 0
    with suppress(OSError):
        total = path.stat().st_size if path.is_file() else 0
    for each, _ in limits.contents(path):
        with suppress(OSError):
            total += each.stat().st_size if each.is_file() else 0
    return total
