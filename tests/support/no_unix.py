"""Run a program of Python's without what Windows's Python lacks: who sends films may have no other.

    python tests/support/no_unix.py PROGRAM ARGUMENTS...

Libraries keep what they ask for, as on Windows they would ask for something else.
"""

from __future__ import annotations

import asyncio  # noqa: F401  # before it is all gone
import builtins
import multiprocessing  # noqa: F401
import os
import runpy
import signal
import subprocess  # noqa: F401
import sys
from pathlib import Path
from typing import Any

MODULES = frozenset(
    {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}
)
NAMES: dict[Any, tuple[str, ...]] = {
    os: (
        "fork", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getuid",
        "killpg", "mkfifo", "posix_fadvise", "pread", "sched_getaffinity", "sendfile", "setsid",
        "statvfs", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
    ),
    signal: ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1"),
}  # fmt: skip
#: This file, to be said before a program.
NO_UNIX = str(Path(__file__).resolve())
OURS = frozenset({"posedrop", "handlers", "worker"})


def main() -> None:
    """Take it all away, and run the program."""
    whole = builtins.__import__

    def found(name: str, scope: Any = None, *rest: Any, **more: Any) -> Any:
        importer = str((scope or {}).get("__name__", "")).partition(".")[0]
        if name.partition(".")[0] in MODULES and importer in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return whole(name, scope, *rest, **more)

    builtins.__import__ = found
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    program, sys.argv = sys.argv[1], sys.argv[1:]
    del sys.path[0]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
