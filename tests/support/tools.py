"""Ports that are free, and outside programs: what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

#: Outside programs that tests ran, by name: said at the end of `make test`.
used: dict[str, str] = {}


def find_free_port() -> int:
    """Return a port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tool(name: str) -> str:
    """Return the path of an outside program; without it the test skips, and in CI fails."""
    built = Path(__file__).parents[2] / ".servers" / name
    path = str(built) if built.is_file() else shutil.which(name)
    if path is None:
        missing = f"{name} is not on this machine"
        if os.environ.get("POSEDROP_CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    used[name] = path
    return path
