"""Figures of the event path: from the end of a PUT to its ingest, and a thousand uploads at once.

Prints a table and writes build/events.json. The store's own rate is measured in the same run, with
the same clients, on a bucket that notifies nobody. Clients, store, broker, handlers and workers
share this machine: on one with few cores a part of each ratio is the price of sharing them. So the
processor's time is told too, for each side: what the handlers need for an upload says how many a
second they take where they have a core to themselves.

    python -m benchmarks.events --stack minio-redis --puts 200 --burst 1000
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config

from benchmarks.way import put_to_ingest
from posedrop.settings import ENV_FILE
from tests.support.brokers import Redis
from tests.support.lab import Embedded, Lab, Servers
from tests.support.samples import REPOSITORY, sample

CLIENTS = 16
BYTES = 100
#: Notifies nobody, on any stack.
QUIET_BUCKET = "models"
#: By a word of their command lines: who is who among the processes that a lab starts.
SIDES = {
    "handlers": "handlers.main:app",
    "store": "minio",
    "broker": "redis-server",
    "worker_cpu": "-Q cpu",
    "worker_gpu": "-Q gpu",
    "embedded_store": "weed",
    "embedded": "posedrop --data-dir",
}
_FILES = re.compile(r'^posedrop_index_rows\{state="\w+",table="files"\} ([0-9.e+]+)$', re.MULTILINE)


@contextmanager
def running(stack: str, folder: Path) -> Iterator[Lab]:
    """Run a stack in ``folder``; its reconciler rounds come as seldom as in production."""
    data = folder / "data"
    pace = {"reconcile_seconds": "60"}
    lab: Embedded | Servers = (
        Embedded(data, **pace)
        if stack == "embedded"
        else Servers(data, Redis(folder / "redis"), **pace)
    )
    lab.start()
    try:
        yield lab
    finally:
        lab.stop()


def operator(lab: Lab) -> Any:
    """Return an S3 client that may write to the quiet bucket, as people's keys may not."""
    env_file = lab.data_dir / ENV_FILE
    if not env_file.is_file():
        return lab.s3()
    lines = [line.partition("=") for line in env_file.read_text().splitlines()]
    known = {name: value for name, _, value in lines}
    return boto3.client(
        "s3",
        endpoint_url=known["POSEDROP_S3_ENDPOINT"],
        aws_access_key_id=known["POSEDROP_S3_ACCESS_KEY"],
        aws_secret_access_key=known["POSEDROP_S3_SECRET_KEY"],
        region_name=known["POSEDROP_S3_REGION"],
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )


def burst(client: Callable[[], Any], bucket: str, uploads: int) -> float:
    """PUT many small objects by 16 clients; return the seconds until the last is acknowledged."""
    clients = [client() for _ in range(CLIENTS)]

    def send(worker: int) -> None:
        for number in range(worker, uploads, CLIENTS):
            body = f"{number:0{BYTES}}".encode()
            clients[worker].put_object(Bucket=bucket, Key=f"burst/{number}.mp4", Body=body)

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, range(CLIENTS)))
    return time.perf_counter() - started


def files(lab: Lab) -> int:
    """Return how many files the index has, by the cheapest question there is."""
    return sum(int(float(found)) for found in _FILES.findall(lab.http.get("/metrics").text))


def indexed(lab: Lab) -> list[str]:
    """Return the keys below ``burst/`` that the index knows."""
    keys: list[str] = []
    cursor = None
    while True:
        extra: dict[str, str] = {"cursor": cursor} if cursor else {}
        page = lab.get("/files", prefix="burst/", limit=1000, **extra)
        keys += [file["key"] for file in page["items"]]
        cursor = page["next"]
        if cursor is None:
            return keys


def processor_seconds() -> dict[str, float]:
    """Return the seconds of processor that each side has used, the clients (this process) too."""
    own = psutil.Process()
    used = {"clients": sum(own.cpu_times()[:2])}
    for process in own.children(recursive=True):
        with suppress(psutil.Error):
            command, spent = " ".join(process.cmdline()), sum(process.cpu_times()[:2])
            side = next((name for name, word in SIDES.items() if word in command), "others")
            used[side] = used.get(side, 0.0) + spent
    return used


def measure(stack: str, puts: int, uploads: int) -> dict[str, Any]:
    """Return the figures of one stack."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clip = sample(folder, 12).film
        with running(stack, folder) as lab:
            waits = sorted(put_to_ingest(lab, clip, puts))
            before = files(lab)
            alone = uploads / burst(lambda: operator(lab), QUIET_BUCKET, uploads)
            used = processor_seconds()
            started = time.perf_counter()
            sent = burst(lab.s3, "videos", uploads)
            lab.until(lambda: files(lab) >= before + uploads, "all to be indexed", 600)
            until_indexed = time.perf_counter() - started
            now = processor_seconds()
            keys = indexed(lab)
    milliseconds = {side: 1000 * (now[side] - used.get(side, 0.0)) / uploads for side in now}
    return {
        "stack": stack,
        "put_to_ingest_p50_ms": 1000 * statistics.median(waits),
        "put_to_ingest_p99_ms": 1000 * waits[round(0.99 * (len(waits) - 1))],
        "puts_per_second_without_events": alone,
        "puts_per_second_with_events": uploads / sent,
        "indexed_per_second": uploads / until_indexed,
        "indexed_to_puts_without_events": uploads / until_indexed / alone,
        "indexed_to_puts_with_events": sent / until_indexed,
        "seconds_from_last_put_to_last_indexed": until_indexed - sent,
        "lost": uploads - len(set(keys)),
        "doubled": len(keys) - len(set(keys)),
        **{f"processor_ms_per_upload_{side}": spent for side, spent in milliseconds.items()},
        "handlers_uploads_per_second_of_a_core": 1000 / milliseconds["handlers"]
        if "handlers" in milliseconds
        else None,
    }


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stack", choices=["embedded", "minio-redis"], action="append")
    parser.add_argument("--puts", type=int, default=200)
    parser.add_argument("--burst", type=int, default=1000)
    given = parser.parse_args()
    found = []
    for stack in given.stack or ["minio-redis", "embedded"]:
        load = os.getloadavg()[0]
        try:
            found.append(measure(stack, given.puts, given.burst) | {"load_average_before": load})
        except pytest.skip.Exception as missing:
            print(f"{stack} is not measured: {missing}")
    for name in dict.fromkeys(name for one in found for name in one):
        row = [one.get(name) for one in found]
        shown = [_shown(value) for value in row]
        print(f"{name:40}" + "".join(f"{value:>16}" for value in shown))
    out = REPOSITORY / "build/events.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
