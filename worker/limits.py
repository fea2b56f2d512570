"""How much memory, and how large a file, a child may take of this machine."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: A child that probes and draws has 0.4 GB mapped before its first film, with 64 cores 0.9.
LEAST_MEMORY_BYTES = 1 << 30
_GROUP = "posedrop-"


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
    for base, group, name in _groups(root):
        # A group is held by the limits of those above it; a container sees its own as the root.
        for each in (group, *group.parents):
            with suppress(OSError, ValueError):  # "max" is no number, and no limit
                most = min(most, int((base / each / name).read_text()))
    return most


def _groups(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield this process' control groups of memory: the mount, the group, its limit's name."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = Path(path.lstrip("/"))
            if controllers == "":
                yield root / "sys/fs/cgroup", group, "memory.max"
            elif "memory" in controllers.split(","):
                yield root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes"


def new_group(memory: int) -> str:
    """Make a control group with so many bytes of memory, below this process' own.

    Returns:
        Its folder; empty where this user may make none, as most may not.
    """
    for base, own, name in _groups(Path("/")):
        group = base / own / f"{_GROUP}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        for each in (base / own).glob(f"{_GROUP}*-*"):  # of workers that were killed
            if not Path("/proc", each.name.split("-")[1]).exists():
                end_group(str(each))
        try:
            group.mkdir()
            (group / name).write_text(str(memory))
        except OSError:
            end_group(str(group))
            continue
        with suppress(OSError):
            (group / "memory.swap.max").write_text("0")
        return str(group)
    return ""


def end_group(group: str) -> None:
    """Remove a control group, if nobody is in it any more."""
    if group:
        with suppress(OSError):
            Path(group).rmdir()


def ran_out(group: str) -> bool:
    """Tell whether the kernel ended somebody in a control group for want of memory."""
    for name in ("memory.events", "memory.oom_control") if group else ():
        with suppress(OSError, ValueError):
            for line in Path(group, name).read_text().splitlines():
                if line.startswith("oom_kill ") and int(line.split()[1]):
                    return True
    return False


#: Processes that a child may have started: more are no library's, but a child gone mad.
MOST_PROCESSES = 200
#: Files and folders that it may have made, and how deep in each other.
MOST_FILES = 200_000
DEEPEST = 64


def exceeded(limits: Limits, session: int, folder: Path, log: Path) -> tuple[str, str] | None:
    """Tell whether a child takes more of this machine than it may, with all that it has started.

    Limits that the kernel sets are those of one process, and count neither memory that several
    share nor files.

    Args:
        limits: what it may.
        session: of processes, which no child can leave (``worker.child.walls``).
        folder: its own.
        log: what it writes to while it is idle.

    Returns:
        A code (``out_of_memory``, ``file_too_large``, ``too_many_processes``) and words, or None.
    """
    processes = list(_processes_of(session))
    if len(processes) > MOST_PROCESSES:
        return "too_many_processes", f"started more than {MOST_PROCESSES} processes"
    nameless, gone = _deleted(processes) if limits.resident or limits.disk else (0, 0)
    if limits.resident and sum(map(_memory_of, processes)) + nameless > limits.resident:
        return "out_of_memory", f"took more than {limits.resident:,} bytes of memory"
    # All begin with what the leader has; who wants less is not to outlive the store or the broker.
    leaders = _badness(Path("/proc", str(session)))
    its = [badness for process in processes if (badness := _badness(process)) is not None]
    if leaders is not None and min(its, default=leaders) < leaders:
        return "out_of_memory", "wanted others to be ended before it, where memory is short"
    if limits.disk:
        files, deepest, taken = _taken(folder)
        taken += gone
        with suppress(OSError):
            taken += log.stat(follow_symlinks=False).st_blocks * 512
        if files > MOST_FILES or deepest > DEEPEST:
            words = f"made more than {MOST_FILES:,} files, or folders more than {DEEPEST} deep"
            return "file_too_large", words
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


def end_session(session: int) -> None:
    """Kill the processes that are left of a session, whose keeper may have been killed."""
    for process in _processes_of(session):
        with suppress(OSError):
            os.kill(int(process.name), signal.SIGKILL)


def _badness(process: Path) -> int | None:
    """Return how soon the kernel ends a process for want of memory: from -1000 to 1000, at once.

    Returns:
        None: it has ended.
    """
    with suppress(OSError, ValueError):
        return int((process / "oom_score_adj").read_text())
    return None


def _deleted(processes: list[Path]) -> tuple[int, int]:
    """Return the bytes that processes have open without a name: of memory (memfd), and of files."""
    nameless: dict[tuple[int, int], int] = {}
    files = 0
    for process in processes:
        with suppress(OSError):
            for fd in (process / "fd").iterdir():
                with suppress(OSError):
                    there = fd.stat()
                    if there.st_nlink or not stat.S_ISREG(there.st_mode):
                        continue
                    if str(fd.readlink()).startswith("/memfd:"):
                        nameless[there.st_dev, there.st_ino] = there.st_blocks * 512
                    else:
                        files += there.st_blocks * 512
    return sum(nameless.values()), files


def _memory_of(process: Path) -> int:
    """Return a process' bytes of memory without those of files, which the kernel can drop."""
    taken = 0
    with suppress(OSError, ValueError, IndexError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                taken += int(line.split()[1]) << 10
    return taken


def _taken(folder: Path) -> tuple[int, int, int]:
    """Return the number of files in a folder, their depth, and bytes."""
    files = deepest = taken = 0
    for entry, depth in contents(folder):
        files, deepest = files + 1, max(deepest, depth)
        with suppress(OSError):
            taken += entry.stat(follow_symlinks=False).st_blocks * 512
        if files > MOST_FILES or deepest > DEEPEST:
            break
    return files, deepest, taken


def contents(folder: Path) -> Iterator[tuple[os.DirEntry[str], int]]:
    """Yield the entries below a folder with their depth, without recursion, which could exhaust."""
    waiting = [(str(folder), 1)]
    while waiting:
        here, depth = waiting.pop()
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                yield entry, depth
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
