"""What all tests share: ports, and the list of real servers they ran against."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect
from xdist.scheduler import LoadFileScheduling

from tests.support import needs
from tests.support.browser import Chromium
from tests.support.tools import find_free_port, used


@pytest.fixture(scope="session", autouse=True)
def no_persons_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have stacks leave their tokens elsewhere than in the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    """Have what asks without a limit of its own wait longer than five seconds for answers.

    So long do httpx and playwright. A machine with much to do is slow, and nothing is wrong with
    what it runs.
    """
    httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0
    expect.set_options(timeout=60_000)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on at this moment."""
    return find_free_port()


@pytest.fixture(scope="module")
def module_chromium() -> Iterator[Chromium]:
    """What starts a browser, and ends it behind the tests of a file.

    For one module: while it is there, its event loop runs, and ``asyncio.run`` in a test fails.
    """
    chromium = Chromium()
    yield chromium
    chromium.close()


@pytest.fixture
def browser(module_chromium: Chromium) -> Browser:
    """Headless Chromium; ``tests.support.browser.opened`` opens a page in it."""
    return module_chromium.alive()


#: Folders whose tests share what is costly to make; elsewhere those of a file do.
TOGETHER = ("tests/integration/engine/",)


#: Stacks that are started for a folder's tests, by the parameter or the fixture that names them.
STACKS = ("embedded", "servers", "minio-redis", "minio-rabbitmq")
#: Where processes leave which of them each test is on.
FOUND = pytest.StashKey[Path]()


class ByFile(LoadFileScheduling):
    """Where several processes run tests (``-n``), those of a file or a stack run in one of them."""

    def _split_scope(self, nodeid: str) -> str:
        stack = self._stacks.get(nodeid)
        if stack:
            return f"{folder_of(nodeid)} on {stack}"
        file = super()._split_scope(nodeid)
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    @cached_property
    def _stacks(self) -> dict[str, str]:
        """Return the stacks of tests, as the processes that will run them found."""
        return dict(json.loads(self.config.stash[FOUND].read_text(encoding="utf-8")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that will run tests where to leave which stack each of them is on."""
    if FOUND not in node.config.stash:
        folder = Path(tempfile.mkdtemp(prefix="posedrop-tests-"))
        node.config.stash[FOUND] = folder / "stacks.json"
        node.config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    node.workerinput["stacks"] = str(node.config.stash[FOUND])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Have tests handed out in the order that they stand in."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def folder_of(nodeid: str) -> str:
    """Return the folder that a test's file is in."""
    return nodeid.partition("::")[0].rpartition("/")[0]


def stack_of(item: pytest.Item) -> str:
    """Return which of its folder's stacks a test runs on; "": on none, or on one of its own."""
    if folder_of(item.nodeid) not in {"tests/e2e", "tests/faults"}:
        return ""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    named = params.get("lab", params.get("stack"))
    if named in STACKS:
        return str(named)
    fixtures = getattr(item, "fixturenames", ())
    return next((stack for stack in ("servers", "embedded") if stack in fixtures), "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by what it needs; have those of a folder's stack stand behind all others.

    A stack takes most of a minute to start, and what runs beside it while it has nothing to do
    waits for it. pyproject.toml says what the markers mean.
    """
    for item in items:
        needs.mark(item)
    stacks = {item: stack_of(item) for item in items}
    folders = list(dict.fromkeys(folder_of(item.nodeid) for item in items))
    items.sort(key=lambda item: (folders.index(folder_of(item.nodeid)), stacks[item]))
    told = getattr(config, "workerinput", {}).get("stacks")
    if told is not None:
        own = Path(f"{told}.{os.getpid()}")
        named = {item.nodeid: stack for item, stack in stacks.items()}
        own.write_text(json.dumps(named), encoding="utf-8")
        own.replace(told)  # each process finds the same


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
