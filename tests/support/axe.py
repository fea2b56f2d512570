"""axe-core, run on a page: what it finds that keeps somebody from using it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from playwright.sync_api import Page

#: Of the impacts that axe-core knows, those that count.
_COUNT = {"serious", "critical"}


@cache
def _script() -> str:
    # The package is there for this file alone: its own functions load it by a script tag, which
    # the page's Content-Security-Policy forbids.
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page) -> list[str]:
    """Return what is seriously wrong on a page as it is now: the rule, the element, in words."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(_script())
    answer = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {node['failureSummary'][:300]}"
        for rule in answer["violations"]
        if rule["impact"] in _COUNT
        for node in rule["nodes"]
    ]


def check(page: Page, state: str) -> None:
    """Assert that a state of the page is for everybody, in light and dark, and fits its width.

    Args:
        page: as it is to be looked at.
        state: of the page, in words, for who reads the failure.
    """
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = violations(page)
        assert not found, f"{state}, {scheme}: {found}"
    size = page.viewport_size
    assert size is not None
    for width in (360, size["width"]):
        page.set_viewport_size({"width": width, "height": size["height"]})
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= width, f"{state}: {wide} pixels wide at {width}"
