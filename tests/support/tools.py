"""Ports that are free, and outside programs: what happens where one is missing."""

from __future__ import annotations

import os
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest

#: Outside programs that tests ran, by name: said at the end of `make test`.
used: dict[str, str] = {}


#: Below those that Linux gives to whoever connects (from 32768), and beside the embedded store's:
#: the port of a server that was killed is taken by nobody, not even by a client that calls it.
_PORTS = range(10_000, 20_000)


def find_free_port() -> int:
    """Return a port of the loopback that nobody listens on at this moment."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port of the loopback is free")


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
