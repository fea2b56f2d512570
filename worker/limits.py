"""How much memory, and how large a file, a child may take of this machine."""

from __future__ import annotations

import os
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: A child that probes and draws has 0.4 GB mapped before its first film, with 64 cores 0.9.
LEAST_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes; 0: no limit."""

    memory: int = 0
    """Of heap and other private memory, the stacks of threads among it (RLIMIT_DATA)."""
    file: int = 0
    """Of each file that is written (RLIMIT_FSIZE)."""
    resident: int = 0
    """Of memory that it and all it started have at a time, as the parent finds it."""
    disk: int = 0
    """Of all that is in its folder, as the parent finds it."""

    def apply(self) -> None:
        """Set these limits for this process, for good."""
        for what, most in ((resource.RLIMIT_DATA, self.memory), (resource.RLIMIT_FSIZE, self.file)):
            if most:
                hard = resource.getrlimit(what)[1]
                most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(what, (most, most))


def of(memory: int | None, file: int | None, scratch: Path) -> Limits:
    """Return the limits as set, else by this machine: half of its memory, half of a disk.

    Args:
        memory: bytes, None: not set.
        file: bytes, None: not set.
        scratch: an existing folder on the disk that is written to.
    """
    memory = memory or max(LEAST_MEMORY_BYTES, memory_of_this_machine() // 2)
    file = file or shutil.disk_usage(scratch).total // 2
    return Limits(memory=memory, file=file, resident=memory, disk=file)


def of_network(resident: int | None, others: Limits) -> Limits:
    """Return the limits of a child that runs networks: CUDA maps far more than there is."""
    resident = resident or max(LEAST_MEMORY_BYTES, memory_of_this_machine() * 9 // 10)
    return Limits(file=others.file, resident=resident, disk=others.disk)


def memory_of_this_machine(root: Path = Path("/")) -> int:
    """Return the bytes of memory there are for this process: the machine's, or its cgroup's."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                base, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            # A group is held by the limits of those above it; a container sees its own as the root.
            group = Path(path.lstrip("/"))
            for each in (group, *group.parents):
                with suppress(OSError, ValueError):  # "max" is no number, and no limit
                    most = min(most, int((base / each / name).read_text()))
    return most


#: Processes that a child may have started: more are no library's, but a child gone mad.
MOST_PROCESSES = 200
#: Files and folders that it may have made.
MOST_FILES = 200_000


def exceeded(limits: Limits, session: int, folder: Path) -> tuple[str, str] | None:
    """Tell whether a child takes more of this machine than it may, with all that it has started.

    Limits that the kernel sets are those of one process, and count neither memory that several
    share nor files.

    Args:
        limits: what it may.
        session: of processes, which no child can leave (``worker.walls``).
        folder: its own.

    Returns:
        A code (``out_of_memory``, ``file_too_large``, ``too_many_processes``) and words, or None.
    """
    processes = list(_processes_of(session))
    if len(processes) > MOST_PROCESSES:
        return "too_many_processes", f"started more than {MOST_PROCESSES} processes"
    if limits.resident and sum(map(_memory_of, processes)) > limits.resident:
        return "out_of_memory", f"took more than {limits.resident:,} bytes of memory"
    if limits.disk:
        files, taken = _taken(folder, processes)
        if files > MOST_FILES:
            return "file_too_large", f"made more than {MOST_FILES:,} files"
        if taken > limits.disk:
            words = f"wrote more than {limits.disk:,} bytes (POSEDROP_CHILD_FILE_BYTES)"
            return "file_too_large", words
    return None


def _processes_of(session: int) -> Iterator[Path]:
    if not Path("/proc/self").exists():  # not Linux
        return
    for name in os.listdir("/proc"):  # noqa: PTH208 - a tenth of the time, twice a second
        with suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == session:
                yield Path("/proc", name)


def is_over(session: int) -> bool:
    """Tell whether nothing of a session is left but what somebody has yet to take note of."""
    for process in _processes_of(session):
        with suppress(OSError, IndexError):
            # Behind the name, which may be anything.
            if (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                return False
    return True


def _memory_of(process: Path) -> int:
    """Return bytes of memory that are not those of a file: libraries are many, and can go."""
    taken = 0
    with suppress(OSError, ValueError, IndexError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                taken += int(line.split()[1]) << 10
    return taken


def _taken(folder: Path, processes: list[Path]) -> tuple[int, int]:
    """Return how many files there are, and the bytes they take; those that lost their name too."""
    files = taken = 0
    for root, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        if files > MOST_FILES:
            break
        for name in names:
            with suppress(OSError):
                taken += Path(root, name).lstat().st_blocks * 512
    for process in processes:
        with suppress(OSError):
            for fd in (process / "fd").iterdir():
                with suppress(OSError):
                    there = fd.stat()
                    if there.st_nlink == 0 and stat.S_ISREG(there.st_mode):
                        taken += there.st_blocks * 512
    return files, taken
