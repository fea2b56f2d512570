"""The page's lists, in Chromium, on a real stack: what happens is seen without a reload."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import opened
from tests.support.lab import Lab

HOSTILE = "lists/<img src=x onerror=alert(1)>&amp;'\"`/مرحبا \u202e4pm.<b>mp4"


def put(lab: Lab, clip: Path, key: str, **args: float) -> None:
    """PUT a film that no other run has, to be idled at for some seconds."""
    metadata = {"analysis": "dummy", "args": json.dumps(args)}
    lab.s3().upload_file(str(clip), "videos", key, ExtraArgs={"Metadata": metadata})


def card(page: Page, name: str) -> Locator:
    """Return the card of a film's run."""
    return page.locator("article.card", has=page.get_by_role("heading", name=name, exact=True))


def test_a_run_is_followed_to_its_end(lab: Lab, browser: Browser, clip: Path) -> None:
    """A film that arrives, its run's progress and end are shown; lists are read at first only."""
    with opened(browser, lab.link) as page:
        page.locator("#folder").fill("lists/")
        put(lab, clip, "lists/slow one.mp4", seconds=6.25)
        run = card(page, "slow one.mp4")
        expect(run).to_contain_text("idle", timeout=60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        expect(run).to_contain_text("done about", timeout=60_000)
        run.get_by_role("button", name="attempts").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Attempt 1, infer")
        page.keyboard.press("Escape")
        expect(run).to_contain_text("succeeded", timeout=60_000)
        expect(page.locator("#summary")).to_contain_text("1 done", timeout=60_000)
        expect(page.locator("#files")).to_contain_text("slow one.mp4")
        # Each change came by the stream: no list was read for it, but for the stream's beginning,
        # which may come when the run is at work already.
        assert len([url for url in asked if "/analyses?" in url]) <= 1, asked
        assert not [url for url in asked if "/results/" in url], asked


def test_names_are_text_and_filters_are_kept(lab: Lab, browser: Browser, clip: Path) -> None:
    """Whatever a film is called is shown as that; what is chosen is there after a reload."""
    put(lab, clip, HOSTILE, seconds=0.31)
    analysis_id = lab.run_of(lab.file(HOSTILE)["file_id"])
    lab.over(analysis_id)
    name = HOSTILE.rsplit("/", 1)[-1]
    with opened(browser, lab.link) as page:
        page.locator("#folder").fill(HOSTILE.rsplit("/", 1)[0] + "/")
        expect(page.locator("#runs h3")).to_have_text([name])
        expect(page.locator("#files tr div").first).to_have_text(name)
        page.get_by_role("button", name="table").click()
        expect(page.locator("#runs-rows a")).to_have_text([name])
        page.locator("#asked").select_option("metadata")
        page.locator("#order").select_option("name")
        expect(page.locator("#runs-rows a")).to_have_text([name])
        page.reload()
        expect(page.locator("#runs-rows a")).to_have_text([name])
        assert page.locator("#asked").input_value() == "metadata"
        page.locator("#asked").select_option("folder")
        expect(page.get_by_text("No run is like that.")).to_be_visible()
        page.get_by_role("button", name="show all").click()
        expect(page.locator("#runs-rows a").first).to_be_visible()
        assert page.locator("main img[src=x]").count() == 0


def test_what_failed_says_why_and_is_tried_again(lab: Lab, browser: Browser, clip: Path) -> None:
    """A cancelled run has its words; a click has it made anew, seen as it goes."""
    put(lab, clip, "again/one.mp4", seconds=86000)
    analysis_id = lab.run_of(lab.file("again/one.mp4")["file_id"])
    with opened(browser, lab.link) as page:
        page.locator("#folder").fill("again/")
        run = card(page, "one.mp4")
        run.get_by_role("button", name="cancel").first.click()
        expect(run.first).to_contain_text("cancelled", timeout=60_000)
        run.get_by_role("button", name="retry one.mp4").click()
        expect(page.locator("#runs article")).to_have_count(2, timeout=30_000)
        expect(page.locator("#summary")).to_contain_text("1 cancelled", timeout=60_000)
    for found in lab.get("/analyses", prefix="again/")["items"]:
        if found["status"] not in {"cancelled"}:
            lab.http.delete(f"/analyse/{found['analysis_id']}")
    lab.over(analysis_id)
