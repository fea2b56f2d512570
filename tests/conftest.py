"""What all tests share: ports, and the list of real servers they ran against."""

from __future__ import annotations

import os

import pytest

from tests.support import needs
from tests.support.tools import find_free_port, used


@pytest.fixture(scope="session", autouse=True)
def no_persons_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have stacks leave their tokens elsewhere than in the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on at this moment."""
    return find_free_port()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs: pyproject.toml says what the markers mean."""
    for item in items:
        needs.mark(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which real servers and tools the tests ran against."""
    for name, path in sorted(used.items()):
        terminalreporter.write_line(f"ran against {name}: {path}")
