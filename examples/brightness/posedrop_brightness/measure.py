"""The heavy half of ``brightness``: runs in a worker's child process, and may import anything."""

from __future__ import annotations

import csv
import time
from typing import Any

import av

from posedrop.analyses import Job
from posedrop_brightness import BrightnessArgs


def run(job: Job) -> dict[str, Any]:
    """Write ``brightness.csv``: a row for each frame measured, its number, time (s) and mean grey.

    What lies in ``job.out`` when this returns is published; what it returns goes into result.json.
    """
    every = BrightnessArgs.model_validate(job.args).every
    began = time.monotonic()
    decoded = rows = 0
    with av.open(str(job.video)) as film, (job.out / "brightness.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["frame", "seconds", "brightness"])
        expected = film.streams.video[0].frames
        for frame in film.decode(video=0):
            if decoded % every == 0:
                grey = frame.to_ndarray(format="gray")  # height x width, 0 to 255
                table.writerow([decoded, frame.time, round(float(grey.mean()), 2)])
                rows += 1
            decoded += 1
            job.report("measure", decoded, expected or None)
    return {
        "frames_expected": expected or decoded,
        "frames_decoded": decoded,
        "rows": rows,
        "missing": [],
        "timings": {"measure": round(time.monotonic() - began, 3)},
        "versions": {"av": av.__version__},
        "details": {"every": every},
    }
