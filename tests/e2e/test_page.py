"""The page, in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.support import axe
from tests.support.browser import opened
from tests.support.lab import Lab


def test_the_page_shows_files_and_runs_as_text(lab: Lab, browser: Browser, clip: Path) -> None:
    """Names appear as they are, never as markup; runs have links, refusals and rules a reason."""
    key = "page/<b id=hostile>bold.mp4"
    metadata = {"analysis": "dummy", "args": '{"seconds": 0.19}'}
    lab.s3().upload_file(str(clip), "videos", key, ExtraArgs={"Metadata": metadata})
    lab.s3().put_object(Bucket="videos", Key="page/notes.mp4", Body=b"no film")
    folder = f"page/<b>{'unbroken' * 25}"
    lab.s3().put_object(Bucket="videos", Key=f"{folder}/posedrop.json", Body=b"{,}")
    analysis_id = lab.run_of(lab.file(key)["file_id"])
    lab.over(analysis_id)
    lab.until(lambda: lab.get("/rules")["items"], "the wrong rule to be told")
    lab.file("page/notes.mp4")
    with opened(browser, lab.link) as page:
        expect(page.locator("#files")).to_contain_text("<b id=hostile>bold.mp4")
        expect(page.locator("#hostile")).to_have_count(0)
        expect(page.locator(f'a[href="/download/{analysis_id}/result.json"]')).to_be_visible()
        expect(page.get_by_role("button", name="analyse", exact=True).first).to_be_visible()
        expect(page.locator("#rules")).to_contain_text(
            f"{folder}/posedrop.json is wrong, the videos below it wait: it is not JSON"
        )
        expect(page.locator("#files")).to_contain_text("not a video")
        axe.check(page, "long names")
