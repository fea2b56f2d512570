"""Fixtures for all tests: tools that a test needs, and what happens when they are missing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_persons_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have stacks leave their tokens elsewhere than in the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on at this moment."""
    return find_free_port()


def find_free_port() -> int:
    """Return a port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


#: Outside programs that tests ran, by name: said at the end of `make test`.
used: dict[str, str] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which real servers and tools the tests ran against."""
    for name, path in sorted(used.items()):
        terminalreporter.write_line(f"ran against {name}: {path}")


def tool(name: str) -> str:
    """Return the path of an outside program; without it the test skips, and in CI fails."""
    built = Path(__file__).parents[1] / ".servers" / name
    path = str(built) if built.is_file() else shutil.which(name)
    if path is None:
        missing = f"{name} is not on this machine"
        if os.environ.get("POSEDROP_CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    used[name] = path
    return path
