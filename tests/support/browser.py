"""Headless Chromium, driven by playwright: the page as a person has it.

The browser is Debian's; playwright's own download is not used. What a page says on its console
as an error, and what it throws, fails the test that had it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    PlaywrightContextManager,
    sync_playwright,
)

from tests.support.tools import tool

#: Nothing else than the page itself may use the network.
_QUIET = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Chromium:
    """Gives a browser that lives: one that has ended fails one test, not all that follow."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._playwright: PlaywrightContextManager | None = None
        self._browser: Browser | None = None

    def alive(self) -> Browser:
        """Return the browser; without one on this machine the test skips, and in CI fails."""
        if self._browser is not None:
            try:
                self._browser.new_context().close()
            except Error:
                self.close()
        if self._browser is None:
            executable = tool("chromium")
            self._playwright = sync_playwright()
            launch = self._playwright.start().chromium.launch
            self._browser = launch(executable_path=executable, args=_QUIET)
        return self._browser

    def close(self) -> None:
        """End it, and what drives it."""
        browser, self._browser = self._browser, None
        playwright, self._playwright = self._playwright, None
        if browser is not None:
            with suppress(Error):
                browser.close()
        if playwright is not None:
            playwright.__exit__()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser, until the block ends."""
    one = Chromium()
    try:
        yield one.alive()
    finally:
        one.close()


@contextmanager
def opened(
    browser: Browser, link: str, *, width: int = 1200, height: int = 900, dark: bool = False
) -> Iterator[Page]:
    """Yield the page behind the link of ``posedrop up``, opened in a browser of its own cookies.

    Args:
        browser: of ``chromium()``.
        link: with the token behind its ``#``, as ``Lab.link`` has it.
        width: pixels.
        height: pixels.
        dark: whether the person has asked for dark colours.
    """
    viewport = {"width": width, "height": height}
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # An answer from 400 on is an error on the console, and may be what the test is about.
        if message.type == "error" and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    try:
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(link)
        if "/session" in link:
            page.wait_for_url(lambda url: "/session" not in url)
        yield page
    finally:
        context.close()
    assert not wrong, wrong
