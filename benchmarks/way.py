"""Videos through a running posedrop, and how long they took."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from posedrop.client import pause
from tests.support.lab import Embedded, Lab
from tests.support.samples import free_box


def clips_through(
    lab: Embedded, film: Path, model: Path, count: int
) -> tuple[float, list[dict[str, Any]], list[float]]:
    """PUT clips of different contents at once; then one more by itself, on the warm model.

    Returns:
        Seconds from the first PUT to the last result.json of the clips; the results, the single
        one last; the seconds that each waited for another.
    """
    lab.pace = pause  # as the command line asks: each answer takes some of the processors' time
    lab.posedrop("models", "push", str(model), "--name", "mouse")
    content = film.read_bytes()

    def put(number: int) -> str:
        body = {
            "filename": f"{number}.mp4", "analysis": "deeplabcut_2d", "args": {"model": "mouse"},
        }  # fmt: skip
        asked = lab.http.post("/upload", json=body).json()
        upload = asked["upload"]
        data = content + free_box(number + 8)
        httpx.put(upload["url"], headers=upload["headers"], content=data).raise_for_status()
        return str(asked["file_id"])

    started = time.perf_counter()
    files = [put(number) for number in range(count)]
    answers = [lab.over(lab.run_of(file), seconds=7200) for file in files]
    seconds = time.perf_counter() - started
    answers.append(lab.over(lab.run_of(put(count)), seconds=7200))
    results = [answer["result"] for answer in answers]
    return seconds, results, [result["timings"].get("wait", 0.0) for result in results]


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
        begun = datetime.fromisoformat(record["ingested_at"]).timestamp()
        seconds.append(max(0.0, begun - done))
    return seconds


def idle_share(results: list[dict[str, Any]]) -> float:
    """Return the share of time between the first frame and the last in which no video is at work.

    A video is at work from when its first frame goes into the network until its last one is out.
    """
    details = sorted((result["details"] for result in results), key=_began)
    span = details[-1]["inference_ended_at"] - details[0]["inference_began_at"]
    gaps = sum(
        max(0.0, _began(following) - one["inference_ended_at"])
        for one, following in pairwise(details)
    )
    return float(gaps / span)


def _began(details: dict[str, Any]) -> float:
    return float(details["inference_began_at"])
