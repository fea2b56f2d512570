"""What all tests share: ports, and the list of real servers they ran against."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser
from xdist.scheduler import LoadFileScheduling

from tests.support import needs
from tests.support.browser import chromium
from tests.support.tools import find_free_port, used


@pytest.fixture(scope="session", autouse=True)
def no_persons_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have stacks leave their tokens elsewhere than in the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    """Have what asks without a limit of its own wait longer than httpx's five seconds for answers.

    A machine with much to do is slow, and nothing is wrong with what it runs.
    """
    httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on at this moment."""
    return find_free_port()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; ``tests.support.browser.opened`` opens a page in it.

    For one module: while it is there, its event loop runs, and ``asyncio.run`` in a test fails.
    """
    with chromium() as browser:
        yield browser


#: Folders whose tests share what is costly to make; elsewhere those of a file do.
TOGETHER = ("tests/integration/engine/",)


class ByFile(LoadFileScheduling):
    """Where several processes run tests (``-n``), those of a file run in one of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Have tests handed out in the order that they stand in."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs: pyproject.toml says what the markers mean."""
    for item in items:
        needs.mark(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have what a test printed and logged be text that a process can send to another.

    Names of files that are no text are among it.
    """
    report = yield
    report.sections = [(name, escaped(text)) for name, text in report.sections]
    return report


def escaped(text: str) -> str:
    """Return a text without halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Learn from a process that ran tests against which servers and tools it ran them."""
    used.update(getattr(node, "workeroutput", {}).get("used", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell it to the process that reports, where that is another."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["used"] = used


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which real servers and tools the tests ran against."""
    for name, path in sorted(used.items()):
        terminalreporter.write_line(f"ran against {name}: {path}")
