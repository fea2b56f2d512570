"""The viewer for minutes: hundreds of seeks on every kind of film, its speed, and its pictures.

``python -m tests.faults.viewer --seeks 200 --steps 50``; ``--speed`` measures an hour of film with
20 bodyparts; ``--shots DIR`` leaves a picture of each state of the page;
``--silent``: Chromium does not say which frame it shows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page

from tests.support import viewing
from tests.support.browser import chromium, opened
from tests.support.lab import Embedded, Lab
from tests.support.viewing import Seen, Viewer, made, publish, upload, walk
from worker.poses import viewer

#: An hour of 30 frames a second, and how many bodyparts.
LONG, RATE, PARTS = 108_000, 30, 20
#: Runs on a part of a film's frames: the film, and which ones.
PARTIAL = {
    "every 3rd frame": ("b-frames", range(0, 250, 3)),
    "frames 30 to 199": ("no edit list", range(30, 200)),
    "every 7th of 41 to 219": ("variable", range(41, 220, 7)),
    "one frame": ("constant", range(17, 18)),
}
#: Makes a browser one that does not say which frame it shows.
SILENT = "delete HTMLVideoElement.prototype.requestVideoFrameCallback"


@contextmanager
def lab_in(folder: Path) -> Iterator[Lab]:
    """Start a stack, and stop it."""
    lab = Embedded(folder / "data").start()
    try:
        yield lab
    finally:
        lab.stop()


def walk_all(
    lab: Lab, page: Page, films: Path, kinds: list[str], seeks: int, steps: int
) -> list[str]:
    """Walk through a film of each kind; return the kinds in which something did not fit."""
    wrong = []
    for kind in kinds:
        began = time.monotonic()
        film, rows = PARTIAL.get(kind, (kind, None))
        try:
            path, shown = made(film, films)
            key = f"viewer/{kind}{path.suffix}"
            upload(lab, path, key)
            run = publish(lab, key, shown, rows=rows)
            opening = Viewer(page, lab, run, shown, rows=rows)
            walk(opening, seeks, steps)
            how = "a copy" if lab.get(f"/view/{run}")["film"]["is_copy"] else "the film"
            took = time.monotonic() - began
            print(f"{kind}: {seeks} seeks, {2 * steps} steps, no mismatch; {how}, {took:.0f} s")
        except Exception as error:  # the other kinds are walked through all the same
            wrong.append(kind)
            print(f"{kind}: {type(error).__name__}: {str(error)[:600]}")
        sys.stdout.flush()
    return wrong


def measure(lab: Lab, page: Page, films: Path) -> None:
    """Print how soon an hour of film is there, its memory, and how fast a toggle is."""
    path = films / "hour.mp4"
    source = f"color=c=gray:s=160x120:r={RATE}"
    made_by = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", str(LONG)]
    encoded = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run([*made_by, *encoded], check=True)
    upload(lab, path, "viewer/hour.mp4")
    chance = np.random.default_rng(1)
    values = np.cumsum(chance.normal(0, 1, (LONG, PARTS, 3)), axis=0)
    values[..., :2] = 60 + 50 * np.sin(values[..., :2] / 40)
    values[..., 2] = 0.5 + 0.5 * np.sin(values[..., 2] / 40)
    hour = Seen([0] * LONG, [number / RATE for number in range(LONG)])
    view = viewer.View(
        frames=np.arange(LONG),
        seconds=np.array(hour.seconds),
        decoded=np.ones(LONG, np.bool_),
        values=values,
        columns=[("", f"part {number}") for number in range(PARTS)],
        size=(160, 120),
        pcutoff=0.6,
        skeleton=[],
    )
    viewer.write(view, films / "viewer.bin")
    data = (films / "viewer.bin").read_bytes()
    run = publish(lab, "viewer/hour.mp4", hour, view=data)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    for again in ("first", "second"):
        Viewer(page, lab, run, hour)
        paint = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
        )
        there = page.evaluate("performance.now() / 1000")
        print(f"{again} opening: painted after {paint:.2f} s, film and plots after {there:.2f} s")
    time.sleep(2)
    found = devtools.send("Performance.getMetrics")["metrics"]
    heap = next(each["value"] for each in found if each["name"] == "JSHeapUsedSize")
    print(f"heap {heap / 1e6:.0f} MB, and viewer.bin {len(data) / 1e6:.0f} MB")
    took = page.evaluate(
        """async () => {
          const took = [];
          for (let turn = 0; turn < 10; turn += 1) {
            for (const box of [...document.querySelectorAll('#parts input')].slice(0, 3)) {
              await new Promise(requestAnimationFrame);
              const began = performance.now();
              box.click();
              took.push(performance.now() - began);
            }
          }
          return took.sort((a, b) => a - b);
        }"""
    )
    print(f"a toggle: median {took[len(took) // 2]:.0f} ms, slowest {took[-1]:.0f} ms")


def shoot(lab: Lab, browser: Browser, films: Path, out: Path) -> None:
    """Leave a picture of each state of the page."""
    out.mkdir(parents=True, exist_ok=True)
    path, shown = made("b-frames", films)
    key = 'viewer/<img src=x onerror="alert(1)">.mp4'
    file_id = upload(lab, path, key)
    animals = ("mouse one", "<script>alert(1)</script>")
    one = publish(lab, key, shown, animals=animals)
    other = publish(lab, key, shown, animals=animals, offset=25, number=1)
    lost = publish(lab, key, shown, number=2, missing=(100, 101))
    dummy = lab.ask(file_id, "dummy", {"seconds": 0.1}).json()["analysis_id"]
    lab.over(dummy)
    looks = {"wide": (1200, 1500, False), "dark": (1200, 1500, True), "narrow": (360, 1800, False)}
    for name, (width, height, dark) in looks.items():
        with opened(browser, lab.link, width=width, height=height, dark=dark) as page:
            viewing_ = Viewer(page, lab, one, shown, **{"with": other})
            viewing_.go(120)
            page.locator("#trail").fill("20")
            page.locator("#differences button").first.wait_for(timeout=60_000)
            page.screenshot(path=out / f"viewer-{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    with opened(browser, lab.link) as page:
        partial = Viewer(page, lab, lost, shown)
        partial.go(100)
        page.screenshot(path=out / "viewer-lost.png", full_page=True)
        for name, run in (("dummy", dummy), ("nothing", "a" * 16)):
            page.goto(f"{lab.url}/run/{run}")
            page.locator("#message:not(:empty)").wait_for()
            page.screenshot(path=out / f"viewer-{name}.png")


def main() -> int:
    """Walk, measure or shoot; return how many kinds of films did not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeks", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kinds", nargs="*", default=[*viewing.FILMS, *PARTIAL])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--silent", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        films = folder / "films"
        films.mkdir()
        with lab_in(folder) as lab, chromium() as browser:
            if wanted.shots:
                shoot(lab, browser, films, wanted.shots)
                return 0
            with opened(browser, lab.link, width=1200 if wanted.speed else 760) as page:
                if wanted.silent:
                    page.add_init_script(SILENT)
                if wanted.speed:
                    measure(lab, page, films)
                    return 0
                return len(walk_all(lab, page, films, wanted.kinds, wanted.seeks, wanted.steps))


if __name__ == "__main__":
    sys.exit(main())
