"""Pictures of the page for the README, of a real posedrop with drawn mice: ``make pictures``."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from posedrop.demo import MODEL, mouse
from tests.support.browser import chromium, opened
from tests.support.lab import Embedded
from tests.support.samples import REPOSITORY

PICTURES = REPOSITORY / "docs/pictures"
#: What a picture may have, bytes: a clone carries them for ever.
_MOST_BYTES = 300_000
_FILMS, _FRAMES = 3, 150


def main() -> None:
    """Start posedrop, analyse some films, and take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Embedded(Path(folder) / "data").start()
        try:
            runs = _analyse(lab, Path(folder))
            with chromium() as browser, opened(browser, lab.link, width=1100, height=860) as page:
                _take(page, lab, runs)
        finally:
            lab.stop()


def _analyse(lab: Embedded, folder: Path) -> list[str]:
    lab.posedrop("models", "push", str(MODEL), "--name", "openfield")
    rule = {"analysis": "deeplabcut_2d", "args": {"model": "openfield", "style": {"trail": 20}}}
    body = json.dumps(rule).encode()
    lab.s3().put_object(Bucket="videos", Key="cohort3/posedrop.json", Body=body)
    runs = []
    for number in range(1, _FILMS + 1):
        film = folder / f"mouse{number}.mp4"
        mouse.film(film, frames=_FRAMES, seed=number)
        key = f"cohort3/day{number}/mouse{number}.mp4"
        lab.s3().upload_file(str(film), "videos", key)
        runs.append(lab.run_of(lab.file(key)["file_id"]))
    for run in runs:
        lab.over(run, seconds=600)
    return runs


def _take(page: Page, lab: Embedded, runs: list[str]) -> None:
    expect(page.get_by_text("mouse1.mp4").first).to_be_visible()
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    _keep(page, "page")
    page.get_by_role("button", name="analyse", exact=True).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("analysis").select_option("deeplabcut_2d")
    dialog.get_by_text("frames", exact=True).click()
    dialog.get_by_label("crop", exact=True).check()
    page.keyboard.press("Tab")
    for _ in range(12):
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("ArrowDown")
    _keep(page, "form")
    page.set_viewport_size({"width": 1100, "height": 1300})
    page.goto(f"{lab.url}/run/{runs[0]}#frame=60")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)  # a picture for people: the film's first frame is drawn by then
    _keep(page, "viewer")


def _keep(page: Page, name: str) -> None:
    """Write what is seen as a JPEG: a palette of 256 colours has none left for the keypoints."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    out = PICTURES / f"{name}.jpg"
    picture.convert("RGB").save(out, quality=85, optimize=True)
    size = out.stat().st_size
    print(f"{out.relative_to(REPOSITORY)} {size:,} bytes")
    if size > _MOST_BYTES:
        sys.exit(f"{out} has more than {_MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
