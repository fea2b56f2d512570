"""Pictures of the page in each of its states, for people to look at: light, dark and 360 px wide.

    python -m tests.page_states DIR

A real posedrop makes them, with the analysis ``dummy``. A new state of the page is a function in
``STATES``; they are taken in this order, each on what the ones before it have left.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import chromium, opened
from tests.support.lab import Embedded
from tests.support.samples import free_box, sample

State = Callable[[Embedded, Page, bytes], None]
_SIZES = {"wide": (1200, 1100, False), "dark": (1200, 1100, True), "narrow": (360, 900, False)}


def _put(lab: Embedded, key: str, film: bytes, seconds: float) -> None:
    metadata = {"analysis": "dummy", "args": json.dumps({"seconds": seconds})}
    body = film + free_box(64, os.urandom(56)) if film else b"a letter"
    lab.s3().put_object(Bucket="videos", Key=key, Body=body, Metadata=metadata)


def empty(_: Embedded, page: Page, __: bytes) -> None:
    """Nothing is there yet."""
    expect(page.locator("#no-runs")).to_be_visible()


def over(lab: Embedded, page: Page, film: bytes) -> None:
    """Runs that are over, one of them cancelled; a film that was refused; a rule that is wrong."""
    if not lab.get("/files")["items"]:
        for number in range(4):
            _put(lab, f"cohort3/day1/mouse{number}.mp4", film, 0.3 + number / 100)
        _put(lab, "cohort3/day1/<b>notes.mp4", b"", 1)
        lab.s3().put_object(Bucket="videos", Key="cohort4/posedrop.json", Body=b"{,}")
        for number in range(4):
            lab.over(lab.run_of(lab.file(f"cohort3/day1/mouse{number}.mp4")["file_id"]))
        _put(lab, "cohort3/day2/long.mp4", film, 9000)
        run = lab.run_of(lab.file("cohort3/day2/long.mp4")["file_id"])
        lab.http.delete(f"/analyse/{run}")
        lab.over(run)
    expect(page.locator("#runs article")).to_have_count(5)
    expect(page.locator("#files")).to_contain_text("<b>notes.mp4")


def under_way(lab: Embedded, page: Page, film: bytes) -> None:
    """A run that is worked on, others that wait for it."""
    if not lab.get("/analyses", prefix="cohort5/")["items"]:
        for number in range(6):
            _put(lab, f"cohort5/run{number}.mp4", film, 600 + number)
    page.locator("#folder").fill("cohort5/")
    expect(page.locator("#runs")).to_contain_text("idle", timeout=60_000)
    expect(page.locator("#runs")).to_contain_text("before it", timeout=60_000)


def table(lab: Embedded, page: Page, film: bytes) -> None:
    """The same as a table."""
    under_way(lab, page, film)
    page.locator("#folder").fill("")
    page.get_by_role("button", name="table").click()
    expect(page.locator("#runs-rows")).to_contain_text("before it", timeout=60_000)


def attempts(lab: Embedded, page: Page, film: bytes) -> None:
    """The attempts at a run, in a dialog."""
    under_way(lab, page, film)
    page.locator("#runs article", has_text="idle").first.get_by_role(
        "button", name="attempts"
    ).click()
    expect(page.get_by_role("dialog")).to_contain_text("Attempt 1")


def no_hit(_: Embedded, page: Page, __: bytes) -> None:
    """Nothing is like what was asked for."""
    page.locator("#query").fill("ferret")
    expect(page.locator("#no-runs-such")).to_be_visible()


STATES: list[State] = [empty, over, under_way, table, attempts, no_hit]


def main(folder: Path) -> None:
    """Take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        film = sample(Path(name), 12).film.read_bytes()
        lab = Embedded(Path(name) / "data").start()
        try:
            with chromium() as browser:
                for state in STATES:
                    for size, (width, height, dark) in _SIZES.items():
                        with opened(
                            browser, lab.link, width=width, height=height, dark=dark
                        ) as page:
                            state(lab, page, film)
                            page.screenshot(path=folder / f"{state.__name__}-{size}.png")
        finally:
            lab.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
