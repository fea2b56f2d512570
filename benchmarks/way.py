"""Figures of the whole way on the embedded stack, against stock DeepLabCut in the same run.

Prints a table and writes build/way.json. The film is DeepLabCut's open-field mouse where it lies
beside the clone, else the demo's.

    python -m benchmarks.way --frames 300 --puts 50
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pandas as pd

from tests.e2e.lab import Embedded, Lab
from tests.samples import REPOSITORY, Sample, free_box, sample

STOCK = """
import sys, time
import deeplabcut
started = time.perf_counter()
deeplabcut.analyze_videos(sys.argv[1], [sys.argv[2]], destfolder=sys.argv[3], save_as_csv=False,
                          batch_size=8)
print("SECONDS", time.perf_counter() - started)
"""


class Figure(NamedTuple):
    """One row of the table."""

    figure: str
    unit: str
    stock: float | None
    posedrop: float

    @property
    def ratio(self) -> float | None:
        """How posedrop's value stands to stock's."""
        return None if self.stock is None else self.posedrop / self.stock


def put_to_result(lab: Lab, mouse: Sample) -> tuple[float, dict[str, Any]]:
    """Return the seconds from the end of the PUT to result.json, and the answer with the result."""
    args = {"model": "mouse", "filter": "none"}
    body = {"filename": "mouse.mp4", "analysis": "deeplabcut_2d", "args": args}
    asked = lab.http.post("/upload", json=body).json()
    upload = asked["upload"]
    content = mouse.film.read_bytes()
    httpx.put(upload["url"], headers=upload["headers"], content=content).raise_for_status()
    started = time.perf_counter()
    answer = lab.over(lab.run_of(asked["file_id"]), seconds=3600)
    assert answer["status"] == "succeeded", answer["error"]
    return time.perf_counter() - started, answer


def put_to_ingest(lab: Lab, film: Path, puts: int) -> list[float]:
    """Return the seconds from the end of each PUT to the start of its ingest, by the log's time.

    Each PUT waits for the one before to be ready: it is the way's latency, not its rate.
    """
    s3 = lab.s3()
    seconds = []
    for number in range(puts):
        key = f"bench/{number}.mp4"
        s3.put_object(Bucket="videos", Key=key, Body=film.read_bytes() + free_box(number + 8))
        done = time.time()
        lab.file(key)
        record = json.loads(s3.get_object(Bucket="results", Key=f"{key}/video.json")["Body"].read())
        begun = pd.Timestamp(record["ingested_at"]).timestamp()
        seconds.append(max(0.0, begun - done))
    return seconds


def stock(mouse: Sample, folder: Path) -> tuple[float, pd.DataFrame]:
    """Run ``deeplabcut.analyze_videos`` in a fresh process; return its seconds and its poses."""
    project = folder / "project"
    shutil.copytree(mouse.model, project)
    for path in [project, *project.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    out = folder / "stock"
    out.mkdir()
    command = [sys.executable, "-c", STOCK, str(project / "config.yaml"), str(mouse.film), str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds = float(printed.rsplit("SECONDS", 1)[1])
    poses = pd.read_hdf(next(out.glob("*.h5")))
    assert isinstance(poses, pd.DataFrame)
    return seconds, poses


def difference(lab: Lab, answer: dict[str, Any], expected: pd.DataFrame, folder: Path) -> float:
    """Return the largest difference of any coordinate, in pixels."""
    lab.posedrop("download", answer["analysis_id"], "--to", str(folder / "results"))
    poses = pd.read_hdf(next((folder / "results").rglob("poses.h5")))
    assert isinstance(poses, pd.DataFrame)
    assert list(poses.columns) == list(expected.columns)
    return float(np.abs(poses.to_numpy() - expected.to_numpy()).max())


def measure(frames: int, puts: int) -> list[Figure]:
    """Return all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mouse = sample(folder, frames)
        clip = sample(folder, 12).film
        lab = Embedded(folder / "data").start()
        try:
            lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
            waits = put_to_ingest(lab, clip, puts)
            seconds, answer = put_to_result(lab, mouse)
            stock_seconds, expected = stock(mouse, folder)
            pixels = difference(lab, answer, expected, folder)
        finally:
            lab.stop()
    inference = answer["result"]["timings"]["inference"]
    return [
        Figure("put_to_ingest_median", "s", None, statistics.median(waits)),
        Figure("put_to_ingest_max", "s", None, max(waits)),
        Figure("put_to_result", "s", stock_seconds, seconds),
        Figure("inference", "frames/s", frames / stock_seconds, frames / inference),
        Figure("largest_difference", "pixels", None, pixels),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--puts", type=int, default=50)
    given = parser.parse_args()
    figures = measure(given.frames, given.puts)
    print(f"{'figure':24}{'unit':>10}{'stock':>12}{'posedrop':>12}{'ratio':>8}")
    for row in figures:
        known = "" if row.stock is None else f"{row.stock:.3f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.figure:24}{row.unit:>10}{known:>12}{row.posedrop:>12.4f}{ratio:>8}")
    out = REPOSITORY / "build/way.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps([{**row._asdict(), "ratio": row.ratio} for row in figures], indent=1))


if __name__ == "__main__":
    main()
