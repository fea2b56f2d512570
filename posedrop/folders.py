"""Folders and files of one process and one person: locked, and closed to everybody else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from posedrop.errors import ConfigurationError


def user_id() -> int:
    """Return this user's number; on Windows 0, which is there the owner of every file."""
    # Elsewhere it is there; who sends films from a Windows PC needs no owners.
    return os.getuid() if hasattr(os, "getuid") else 0


class FolderLock:
    """A folder that belongs to one process at a time; the kernel gives it back when that ends."""

    def __init__(self, folder: Path, name: str = "lock") -> None:
        self._folder = folder
        # Whichever thread has taken it, another one may give it back.
        self._lock = FileLock(folder / name, timeout=0, mode=0o600, thread_local=False)
        #: Beside the lock, which is emptied by all who try to take it.
        self._holder = folder / f"{name}.pid"

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            ConfigurationError: another process has it; the message names its pid.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            pid = self._holder.read_text().strip() if self._holder.is_file() else "unknown"
            raise ConfigurationError(
                f"{self._folder} is in use by process {pid}; stop that one first, "
                "or choose another data directory"
            ) from error
        # Who has it only helps to say so: a full disk takes no note, and must not keep anybody from
        # removing what fills it.
        with suppress(OSError):
            self._holder.unlink(missing_ok=True)  # or it would name whoever had it before
            write_private(self._holder, f"{os.getpid()}\n")

    def release(self) -> None:
        """Give the folder back."""
        self._lock.release()


def make_private(folder: Path, own: bool, *files: str) -> None:
    """Make a folder, and have this process write nothing that others can read, wherever it writes.

    Args:
        folder: made if there is none. One that is there keeps its mode, as a lab may share it on
            purpose, unless it is posedrop's own.
        own: whether it has a name that posedrop chose.
        files: patterns of files in it that an older posedrop left open; they are closed.
    """
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = [path for each in files for path in folder.glob(each) if not path.is_symlink()]
    for path in [*paths, *([folder] if own else [])]:
        status = path.stat()
        if status.st_uid == user_id() and status.st_mode & 0o077:
            path.chmod(status.st_mode & 0o700)


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    # Paths in it have the bytes that they have on the disk, whatever the locale makes of them.
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.fsencode(content))
    partial.replace(path)


def check_own_file(path: Path) -> None:
    """Refuse a file of keys that somebody else has put there, who then knows them.

    Raises:
        ConfigurationError: it is neither this user's nor root's.
        FileNotFoundError: there is none.
    """
    owner = path.lstat().st_uid
    if user_id() != 0 and owner not in {0, user_id()}:
        raise ConfigurationError(
            f"{path} belongs to another user (uid {owner}), who may have put it there: use a data "
            "directory of your own, with --data-dir"
        )


def own_folder(path: Path) -> None:
    """Make a folder for this user alone, or make sure that it is one.

    Raises:
        ConfigurationError: it is a link, no folder, or somebody else's, who could read and replace
            what is put there; or it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"{path} can't be used as a folder: {error.strerror or error}"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{path} is a link: name the folder itself")
    if status.st_uid != user_id():
        raise ConfigurationError(
            f"{path} belongs to another user (uid {status.st_uid}), who could read and replace "
            "what is put there: name a folder of your own"
        )
    if status.st_mode & 0o022:
        path.chmod(status.st_mode & 0o755)
