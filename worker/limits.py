"""How much memory, and how large a file, a child may take of this machine."""

from __future__ import annotations

import os
import resource
import shutil
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
    return Limits(
        memory or max(LEAST_MEMORY_BYTES, memory_of_this_machine() // 2),
        file or shutil.disk_usage(scratch).total // 2,
    )


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
