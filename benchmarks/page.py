"""Figures of the page: ten thousand runs in a thousand folders, and fifty runs in five tabs.

Prints a table and writes build/page.json. The server is the handlers' own, on a store that moto
plays; what workers would tell is told by this script, oftener than they tell it.

    python -m benchmarks.page --rows 10000 --running 50 --tabs 5 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from playwright.sync_api import Browser, Page

from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.workers import WorkerJob, WorkerRecord
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from tests.support.browser import chromium, opened
from tests.support.index_rows import BUCKET, request_of, result_of, run_of, video_record
from tests.support.page_server import PageServer, page_server
from tests.support.samples import REPOSITORY

#: Seconds between two records of a worker; workers leave ten.
BEAT = 2.0
FOLDERS = 1000
#: Times the page is opened.
OPENINGS = 7
#: How far a wheel scrolls in a frame, pixels, and for how many frames.
WHEEL, FRAMES = 240, 240
#: Scrolls a list by the wheel's steps, and returns how long each frame took, milliseconds.
SCROLL = """([step, frames]) => new Promise((resolve) => {
  const box = document.getElementById("runs-box");
  const took = [];
  let before = performance.now();
  requestAnimationFrame(function frame(now) {
    took.push(now - before);
    before = now;
    box.scrollTop += step;
    if (took.length <= frames) requestAnimationFrame(frame);
    else resolve(took.slice(1));
  });
})"""
FIRST_ROW = "#runs article, #runs-rows tr[data-name]"


def key_of(number: int) -> str:
    """Return the key of a film: ten films a folder, as far as there are folders."""
    return f"cohort{number % FOLDERS // 100}/day{number % FOLDERS}/mouse_{number}.mp4"


def fill(index: Index, rows: int) -> None:
    """Tell an index of runs that are over."""
    with index.together():
        for number in range(rows):
            request, result = request_of(number), result_of(number)
            key = key_of(number)
            video = request.video.model_copy(update={"key": key})
            result = result.model_copy(update={"video": video})
            index.analysis_finished(result, f"{key}/deeplabcut_2d-{request.analysis_id}")


def ms(values: list[float], part: float) -> float:
    """Return a quantile of milliseconds."""
    return round(sorted(values)[min(len(values) - 1, int(part * len(values)))], 1)


def list_of(browser: Browser, server: PageServer, rows: int) -> dict[str, Any]:
    """Measure the first row, the memory and the scrolling of a long list."""
    first, found = [], {}
    for _ in range(OPENINGS):
        with opened(browser, server.link) as page:
            began = time.monotonic()
            page.goto(server.url)
            page.locator(FIRST_ROW).first.wait_for()
            first.append(time.monotonic() - began)
    for look in ("cards", "table"):
        with opened(browser, server.link) as page:
            page.get_by_role("button", name=look, exact=True).click()
            page.locator(FIRST_ROW).first.wait_for()
            began = time.monotonic()
            while page.locator("#runs-count").inner_text() != f"{rows:,}":
                page.locator("#runs-box").evaluate("box => { box.scrollTop = box.scrollHeight; }")
            walked = time.monotonic() - began
            page.locator("#runs-box").evaluate("box => { box.scrollTop = 0; }")
            took = page.evaluate(SCROLL, [WHEEL, FRAMES])
            found[look] = {
                "to the end, s": round(walked, 1),
                "frame p50, ms": ms(took, 0.5),
                "frame p95, ms": ms(took, 0.95),
                "frame worst, ms": ms(took, 1),
                "rows on the page": page.locator(FIRST_ROW).count(),
                "heap, MB": heap_of(page),
            }
    return {
        "first row, s": {
            "median": round(statistics.median(first), 2),
            "worst": round(max(first), 2),
        },
        **found,
    }


def heap_of(page: Page) -> float:
    """Return the megabytes of a page's JavaScript, without what is garbage."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    (heap,) = (each["value"] for each in metrics if each["name"] == "JSHeapUsedSize")
    return round(float(heap) / 1e6, 1)


@contextmanager
def working(storage: Storage, bucket: str, runs: list[int]) -> Iterator[None]:
    """Write within the block what workers write, one for each run, as often as they do."""
    stop = threading.Event()

    def write() -> None:
        beat = 0
        began = datetime.now(UTC)
        while not stop.is_set():
            at = time.monotonic()
            for number in runs:
                progress = Progress(
                    stage="infer", done=10 * beat, total=100_000, frames_per_second=5
                )
                job = WorkerJob(
                    task="infer",
                    key=request_of(number).video.key,
                    run=run_of(number),
                    attempt=1,
                    started_at=began,
                    progress=progress,
                )
                record = WorkerRecord(
                    worker_id=f"w{number}",
                    name=f"gpu:{number}",
                    started_at=began,
                    beat=beat,
                    queues=["gpu"],
                    device="cpu",
                    jobs=[job],
                )
                storage.write(bucket, layout.worker(record.worker_id), record.to_json())
            beat += 1
            stop.wait(max(0.0, BEAT - (time.monotonic() - at)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def tabs_of(
    browser: Browser,
    server: PageServer,
    index: Index,
    numbers: range,
    tabs: int,
    seconds: float,
    *,
    apart: bool,
) -> dict[str, Any]:
    """Count what tabs ask for while runs go on, and one of them ends every two seconds.

    Args:
        browser: of ``chromium()``.
        server: which runs.
        index: the server's.
        numbers: of the runs that go on at first; each that ends is followed by another.
        tabs: how many.
        seconds: for how long.
        apart: each tab is of a browser of its own, and shares nothing.
    """
    storage = Storage(server.settings)
    going = list(numbers)
    bucket = server.settings.results_bucket
    _, picture = cv2.imencode(".jpg", np.full((240, 320, 3), 128, np.uint8))
    for number in range(numbers.start, numbers.stop + int(seconds)):
        index.file_ingested(video_record(number))
        prefix = storage.video_prefix(bucket, BUCKET, request_of(number).video.key)
        storage.write(bucket, layout.thumbnail(prefix), picture.tobytes(), "image/jpeg")
    for number in going:
        index.analysis_requested(request_of(number), run_of(number))
        index.analysis_running(request_of(number).analysis_id)
    shown: list[float] = []
    with ExitStack() as closing:
        closing.enter_context(working(storage, bucket, going))
        pages = [closing.enter_context(opened(browser, server.link))]
        for _ in range(tabs - 1):
            if apart:
                pages.append(closing.enter_context(opened(browser, server.link)))
            else:
                pages.append(pages[0].context.new_page())
                pages[-1].goto(server.url)
        for page in pages:
            page.get_by_text("frames").first.wait_for()
        time.sleep(10)  # what they read as they open is over
        server.asked.clear()
        began = time.monotonic()
        following = numbers.stop
        while time.monotonic() - began < seconds:
            number = going.pop()  # the newest, which is seen without scrolling
            # As the handlers do where a result.json appears.
            index.analysis_finished(result_of(number), run_of(number))
            at = time.monotonic()
            row = f"#runs [data-name={request_of(number).analysis_id}]"
            pages[-1].locator(row).get_by_text("succeeded").first.wait_for()
            shown.append(time.monotonic() - at)
            index.analysis_requested(request_of(following), run_of(following))
            index.analysis_running(request_of(following).analysis_id)
            going.append(following)
            following += 1
            time.sleep(2)
        took = time.monotonic() - began
        asked = dict(server.asked)
    return {
        "seconds": round(took),
        "requests": asked,
        "a second a tab": round(sum(asked.values()) / took / tabs, 3),
        "runs that ended": len(shown),
        "an end is shown after, s": {
            "median": round(statistics.median(shown), 2),
            "worst": round(max(shown), 2),
        },
    }


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--running", type=int, default=50)
    parser.add_argument("--tabs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    wanted = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the store's line for each request
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name in ("long", "together", "apart"):
            below = Path(folder, name)
            below.mkdir()
            with page_server(below) as server, server.running() as index:
                if name == "long":
                    fill(index, wanted.rows)
                    found[f"{wanted.rows:,} runs in {FOLDERS:,} folders"] = list_of(
                        browser, server, wanted.rows
                    )
                else:
                    numbers = range(wanted.running)
                    tabs = tabs_of(
                        browser,
                        server,
                        index,
                        numbers,
                        wanted.tabs,
                        wanted.seconds,
                        apart=name == "apart",
                    )
                    kind = "browsers" if name == "apart" else "tabs"
                    found[f"{wanted.running} runs, {wanted.tabs} {kind}"] = tabs
    print(json.dumps(found, indent=2))
    written = REPOSITORY / "build" / "page.json"
    written.parent.mkdir(exist_ok=True)
    written.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
