"""Figures of one large batch: how long it takes, what it takes of memory, who else is answered.

The store is in the process's memory, so the figures are of the handlers alone; nothing is run. One
process asks for all films by their prefix, another asks the API other things meanwhile.

    python -m benchmarks.batches --films 100000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left, insort
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from benchmarks import scale
from handlers import app
from handlers.upkeep.reconcile import Reconciler
from posedrop.buckets.records.videos import VideoRecord, VideoRef
from posedrop.buckets.storage import ObjectInfo
from posedrop.index import schema
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS, Clock, MemoryStorage, Stored
from tests.support.samples import PROBE
from tests.support.serving import serving

TOKEN = "of-the-api"  # noqa: S105
ASKED = {"analysis": "dummy", "args": {"seconds": 0}}
#: What others ask while the batch goes on, by a process of its own.
PROBES = ("/files?limit=100", "/analyses?state=queued", "/batches", "/healthz")


class _Sorted(dict[str, Stored]):
    """A bucket whose keys are in order, for listings of a folder among very many."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def __setitem__(self, key: str, value: Stored) -> None:
        if key not in self:
            insort(self.order, key)
        super().__setitem__(key, value)


class _Clock(Clock):
    """The time of this machine."""

    def __call__(self) -> datetime:
        """Return it."""
        return datetime.now(UTC)


class _Store(MemoryStorage):
    """The store in memory, with nothing noted of what it was asked."""

    def __init__(self) -> None:
        super().__init__(_Clock())
        self.buckets = {bucket: _Sorted() for bucket in self.buckets}
        self.asked = _Nothing()
        self.events = _Nothing()

    def _below(self, bucket: str, prefix: str) -> list[ObjectInfo]:
        found = self.buckets[bucket]
        assert isinstance(found, _Sorted)
        first = bisect_left(found.order, prefix)
        keys = []
        for key in found.order[first:]:
            if not key.startswith(prefix):
                break
            keys.append(key)
        return [found[key].info for key in keys]


class _Nothing(list[Any]):
    def append(self, _: object) -> None:
        """Forget it."""


def _fill(store: MemoryStorage, index: Path, films: int) -> None:
    """Write an index of films without runs, and what ingest wrote of each."""
    scale.fill(index, films)
    db = schema.connect(str(index), 30)
    db.execute("DELETE FROM analysis")
    db.execute("COMMIT") if db.conn.in_transaction else None
    db.close()
    for number in range(films):
        key = scale.key_of(number)
        video = VideoRef(
            file_id=scale.layout.file_id_of(VIDEOS, key),
            bucket=VIDEOS,
            key=key,
            etag=scale.etag_of(number),
            size=2_000_000,
        )
        record = VideoRecord(
            video=video,
            last_modified=scale.BEGIN,
            ingested_at=scale.BEGIN,
            sha256=f"{number:064x}",
            sha1=f"{number:040x}",
            probe=PROBE,
        )
        store.put(RESULTS, f"{key}/video.json", record.to_json())


def _probe(url: str) -> None:
    """Ask the API other things until stdin ends; print how long each took, in milliseconds."""
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    times: dict[str, list[float]] = {path: [] for path in PROBES}
    failed = 0
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        while not over.wait(0.1):
            for path in PROBES:
                began = time.perf_counter()
                failed += client.get(path, timeout=60).status_code != 200
                times[path].append((time.perf_counter() - began) * 1000)
    found = {
        path: {"p50": statistics.median(each), "p99": statistics.quantiles(each, n=100)[-1]}
        for path, each in times.items()
    }
    print(json.dumps({"times": found, "failed": failed, "asked": sum(map(len, times.values()))}))


over = threading.Event()


def _measure(films: int, most_seconds: float) -> dict[str, Any]:
    store = _Store()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.sqlite"
        _fill(store, index, films)
        settings = load(
            Path(folder),
            {"index_path": index, "broker_url": "stub://", "api_token": TOKEN},
        )
        # What the reconciler would do is measured by benchmarks.scale.
        with (
            patch.object(app, "Storage", lambda *_, **__: store),
            patch("handlers.context.Storage", lambda *_, **__: store),
            patch.object(Reconciler, "start"),
            patch.object(Reconciler, "stop"),
            serving(app.create_app(settings, queue.connect("stub://"))) as url,
        ):
            return _ask(url, films, most_seconds, store)


def _ask(url: str, films: int, most_seconds: float, store: MemoryStorage) -> dict[str, Any]:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=600)
    wanted = {**ASKED, "prefix": ""}
    began = time.perf_counter()
    dry = client.post("/analyse", json={**wanted, "dry_run": True}).json()
    dry_seconds = time.perf_counter() - began
    assert dry["films"] == films, dry
    prober = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.batches", "--probe", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    before, bytes_before = scale.memory_mib(), _size(store)
    began = time.perf_counter()
    answer = client.post("/analyse", json=wanted)
    answered_ms = (time.perf_counter() - began) * 1000
    batch_id = answer.json()["batch_id"]
    while (batch := client.get(f"/batches/{batch_id}").json())["status"] == "starting":
        if time.perf_counter() - began > most_seconds:
            break
        time.sleep(0.5)
    seconds = time.perf_counter() - began
    assert batch["films"] == films or batch["status"] == "starting", batch
    probed, _ = prober.communicate()
    return {
        "films": films,
        "dry_run_s": dry_seconds,
        "answer_ms": answered_ms,
        "seconds": seconds,
        "begun": batch["films"],
        "films_per_s": batch["films"] / seconds,
        "memory_mib": scale.memory_mib() - before,
        "of_it_store_mib": (_size(store) - bytes_before) / 2**20,
        "objects": len(store.buckets[RESULTS]),
        **json.loads(probed),
    }


def _size(store: MemoryStorage) -> int:
    """Return about how many bytes the store's objects take, with Python's own 900 each."""
    return sum(len(each.data) + 900 for each in store.buckets[RESULTS].values())


def main() -> None:
    """Measure, print, and write build/batches.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.probe:
        _probe(chosen.probe)
        return
    found = _measure(chosen.films, chosen.seconds)
    print(json.dumps(found, indent=2))
    Path("build").mkdir(exist_ok=True)
    Path("build/batches.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
