"""Figures of size: the index at a million rows against ten thousand, the reconciler, a big bucket.

Prints a table and writes build/scale.json. Each size is filled and measured in processes of their
own, so that memory is the handlers' and not the filling's.

    python -m benchmarks.scale --rows 10000 1000000 --objects 100000
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from handlers.context import Context
from handlers.upkeep.reconcile import SLICE
from handlers.upkeep.repairs import Repairs
from handlers.upkeep.sweep import Sweep
from posedrop.buckets import layout
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact
from posedrop.buckets.records.videos import VideoRecord, VideoRef
from posedrop.buckets.storage import ObjectInfo, Storage
from posedrop.embedded.weed import Weed
from posedrop.embedded.weed_config import Identity
from posedrop.index import schema
from posedrop.index.index import AnalysisRow, FileRow, Index
from posedrop.index.listing import LAST_NUMBER, to_cursor
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.samples import PROBE, REPOSITORY
from tests.support.world import World

QUERIES = 300
REINDEXED = 2000
CLIENTS = 16
MODELS = ("mouse", "rat", "fly", "worm", "fish", "ant", "bee")
ASKED = ("api", "folder", "metadata", "default")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
#: What a video usually has in the results bucket.
NAMES = ("attempts/1.json", "poses.h5", "request.json", "result.json", "run.log")


def key_of(number: int) -> str:
    """Return the key of a video: a hundred a day, of ten mice."""
    return f"lab{number % 7}/day{number // 100}/mouse_{number % 10}-trial{number}.mp4"


def etag_of(number: int) -> str:
    """Return its ETag."""
    return f"{number:032x}"


def run_of(number: int) -> tuple[str, str]:
    """Return the id and the folder of its run."""
    analysis_id = layout.make_id("run", str(number))
    return analysis_id, f"{key_of(number)}/dummy-{analysis_id}"


# -- a filled index --------------------------------------------------------------------------------


def fill(path: Path, rows: int) -> None:
    """Write an index of so many files, each with a finished run.

    What SQLite keeps beside the rows is made at the end, in a fraction of the time.
    """
    Index(path).close()
    db = schema.connect(str(path), 30)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
        db.execute(f"PRAGMA {pragma}")
    kept = db.conn.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger')"
        " AND tbl_name IN ('uploaded_file', 'analysis') AND sql IS NOT NULL"
    ).fetchall()
    db.execute("BEGIN")
    for each in kept:
        db.execute(f"DROP {each['type']} {each['name']}")
    for table, values_of in (("uploaded_file", _file), ("analysis", _analysis)):
        names = list(values_of(0))
        statement = (
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
        )
        db.conn.executemany(statement, (list(values_of(n).values()) for n in range(rows)))
        db.execute("INSERT INTO unspelled VALUES (?, ?)", (table, LAST_NUMBER))
        db.execute(f"INSERT INTO tally SELECT '{table}', state, count(*) FROM {table} GROUP BY 2")  # noqa: S608
    while not schema.go_on_spelling(db, 100_000):
        pass
    for each in kept:
        db.execute(each["sql"])
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode = WAL")
    db.close()


def _same(number: int) -> dict[str, Any]:
    """Return what the rows of a file and of its run share."""
    key = key_of(number)
    moment = BEGIN + timedelta(seconds=number)
    file_id = layout.file_id_of(VIDEOS, key)
    return {"file_id": file_id, "bucket": VIDEOS, "key": key, "created_at": moment}


@functools.cache
def _file_template() -> dict[str, Any]:
    same = _same(0)
    row = FileRow(
        **same,
        filename="",
        state="ready",
        updated_at=BEGIN,
        size=2_000_000,
        probe=PROBE,
        metadata={},
        last_modified=BEGIN,
        enqueued_at=BEGIN,
        planned=True,
    )
    return schema.encode(row)


def _file(number: int) -> dict[str, Any]:
    same = _same(number)
    moment = schema.to_text(same["created_at"])
    return {
        "number": schema.number_of(same["created_at"], same["file_id"]),
        **_file_template(),
        **same,
        "filename": same["key"].rsplit("/", 1)[-1],
        "etag": etag_of(number),
        "sha256": f"{number:064x}",
        **dict.fromkeys(("created_at", "updated_at", "last_modified", "enqueued_at"), moment),
    }


@functools.cache
def _analysis_template() -> dict[str, Any]:
    artefact = Artefact(name="poses.h5", size=1, sha256="0" * 64, content_type="x")
    row = AnalysisRow(
        **_same(0),
        analysis_id="",
        analysis="dummy",
        args={"seconds": 0},
        run="",
        state="succeeded",
        finished_at=BEGIN,
        artefacts=(artefact,),
        enqueued_at=BEGIN,
    )
    values = {**schema.encode(row), "badness": -1, "newness": 0}
    return {f'"{name}"': value for name, value in values.items()}


def _analysis(number: int) -> dict[str, Any]:
    same = _same(number)
    moment = schema.to_text(same["created_at"])
    analysis_id, run = run_of(number)
    own = {**same, "analysis_id": analysis_id, "run": run}
    own |= dict.fromkeys(("created_at", "finished_at", "enqueued_at"), moment)
    # A third has none, and the others are spread, with many of one score.
    own |= {"model": MODELS[number % 7], "asked_by": ASKED[number % 4]}
    score = number * 7919 % 1000 / 10 if number % 3 else None
    own |= {"quality": score, "badness": -1 if score is None else 100 - score}
    number_ = schema.number_of(same["created_at"], analysis_id)
    own["newness"] = number_
    return {
        "number": number_,
        **_analysis_template(),
        **{f'"{name}"': value for name, value in own.items()},
    }


class Listed(Storage):
    """A store that lists so many videos, or their results, and is asked for nothing else."""

    def __init__(self, rows: int, bucket: str) -> None:
        self._rows, self._bucket = rows, bucket

    def objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectInfo]:  # noqa: ARG002
        """Yield what belongs to each row of the index."""
        for number in range(self._rows if bucket == self._bucket else 0):
            moment = BEGIN + timedelta(seconds=number)
            if bucket == VIDEOS:
                yield ObjectInfo(key_of(number), etag_of(number), 2_000_000, moment)
                continue
            _, run = run_of(number)
            for name in NAMES:
                yield ObjectInfo(f"{run}/{name}", "0" * 32, 1, moment)
            yield ObjectInfo(f"{key_of(number)}/video.json", "0" * 32, 1, moment)


# -- measuring it ----------------------------------------------------------------------------------


def memory_mib() -> float:
    """Return this process' resident memory, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def timed(ask: Callable[[int], object], rows: int) -> dict[str, float]:
    """Return p50 and p99 of a query about random rows, in milliseconds; p99 of its CPU time too.

    The latter is what is left of it on a machine that does other things, too.
    """
    pick = random.Random(1)
    times, busy = [], []
    for _ in range(QUERIES):
        number = pick.randrange(rows)
        began, worked = time.perf_counter(), time.thread_time()
        ask(number)
        busy.append((time.thread_time() - worked) * 1000)
        times.append((time.perf_counter() - began) * 1000)
    p99, cpu = (statistics.quantiles(each, n=100)[-1] for each in (times, busy))
    return {"p50": statistics.median(times), "p99": p99, "cpu_p99": cpu}


def measure(path: Path, rows: int) -> dict[str, Any]:
    """Measure the index in ``path``."""
    settings = load(path.parent, {"index_path": path})
    index = Index(path)
    queries: dict[str, Callable[[int], object]] = {
        "GET /files": lambda _: index.files(),
        "GET /files?q=trial<n>": lambda n: index.files(query=f"trial{n}"),
        "GET /files?q=mouse": lambda _: index.files(query="mouse"),
        "GET /files?q=mouse_3, one in ten": lambda _: index.files(query="mouse_3"),
        "GET /files?q=ial<n>, inside a word": lambda n: index.files(query=f"ial{n}"),
        "GET /files?q=m 3": lambda _: index.files(query="m 3"),
        "GET /files?q=ferret, no hit": lambda _: index.files(query="ferret"),
        "GET /files?q=lab0 lab1, no hit": lambda _: index.files(query="lab0 lab1"),
        "GET /files?q=mouse_3 mouse_4, no hit": lambda _: index.files(query="mouse_3 mouse_4"),
        "GET /analyses?q=dummy": lambda _: index.analyses(query="dummy"),
        "GET /files?prefix=lab/day": lambda n: index.files(prefix=key_of(n).rsplit("/", 1)[0]),
        "GET /files, deep page": lambda n: index.files(cursor=_cursor(n)),
        "GET /upload/<id>": lambda n: index.file(layout.file_id_of(VIDEOS, key_of(n))),
        "GET /analyses?state=queued": lambda _: index.analyses(state="queued"),
        "GET /analyses?order=quality": lambda _: index.analyses(order="quality"),
        "GET /analyses?order=quality, deep page": lambda n: index.analyses(
            order="quality", cursor=_cursor(n, n % 102 - 1.0)
        ),
        "GET /analyses?order=quality&state=succeeded": lambda n: index.analyses(
            order="quality", state="succeeded", cursor=_cursor(n, n % 102 - 1.0)
        ),
        "GET /analyses?order=quality&state=failed": lambda _: index.analyses(
            order="quality", state="failed"
        ),
        "GET /analyses?order=quality&file_id=<id>": lambda n: index.analyses(
            order="quality", file_id=layout.file_id_of(VIDEOS, key_of(n))
        ),
        "GET /analyses?order=quality&q=day<n>": lambda n: index.analyses(
            order="quality", query=f"day{n // 100} "
        ),
        "GET /analyses?order=quality&q=dummy": lambda _: index.analyses(
            order="quality", query="dummy"
        ),
        "GET /analyses?state=&analysis=, deep page": lambda n: index.analyses(
            state="succeeded", analysis="dummy", cursor=_cursor(n)
        ),
        "GET /analyses?state=&analysis=, no hit": lambda n: index.analyses(
            state="failed", analysis="superanimal", cursor=_cursor(n)
        ),
        "GET /analyses?model=&asked_by=": lambda n: index.analyses(
            model=MODELS[n % 7], asked_by=ASKED[n % 4], cursor=_cursor(n)
        ),
        "GET /analyses?model=<none>, no hit": lambda n: index.analyses(
            model="none", cursor=_cursor(n)
        ),
        "GET /analyses?order=quality&model=&asked_by=": lambda n: index.analyses(
            order="quality", model=MODELS[n % 7], asked_by="api", cursor=_cursor(n, n % 102 - 1.0)
        ),
        "GET /analyses?order=quality&state=&model=, no hit": lambda n: index.analyses(
            order="quality", state="failed", model="none", cursor=_cursor(n, n % 102 - 1.0)
        ),
        "GET /analyses?order=name": lambda n: index.analyses(
            order="name", cursor=to_cursor(key_of(n), 1)
        ),
        "GET /analyses?order=name&state=&model=": lambda n: index.analyses(
            order="name", state="succeeded", model=MODELS[n % 7], cursor=to_cursor(key_of(n), 1)
        ),
        "GET /analyses?order=name&prefix=lab&model=<none>": lambda n: index.analyses(
            order="name", prefix=f"lab{n % 7}/", model="none"
        ),
        "GET /analyses?prefix=lab&model=": lambda n: index.analyses(
            prefix=f"lab{n % 7}/", model=MODELS[n % 3], cursor=_cursor(n)
        ),
        "GET /analyses?prefix=lab/day&state=": lambda n: index.analyses(
            prefix=key_of(n).rsplit("/", 1)[0], state="succeeded"
        ),
        "GET /files?order=name&state=": lambda n: index.files(
            order="name", state="ready", cursor=to_cursor(key_of(n), VIDEOS)
        ),
        "GET /files?order=name&state=refused, no hit": lambda n: index.files(
            order="name", state="refused", cursor=to_cursor(key_of(n), VIDEOS)
        ),
        "GET /results/<id>, its row": lambda n: index.analysis(run_of(n)[0]),
        "GET /metrics, its counts": lambda _: index.counts(),
    }
    found: dict[str, Any] = {name: timed(ask, rows) for name, ask in queries.items()}
    before = memory_mib()
    for name, bucket in (("videos", VIDEOS), ("results", RESULTS)):
        context = Context(settings, Listed(rows, bucket), index, queue.connect("stub://"))
        sweep = Sweep(context)
        seconds = []
        for _ in range(max(1, min(rows, 100_000) // SLICE)):
            repairs = Repairs()
            began = time.perf_counter()
            sweep.go_on(repairs, min(SLICE, rows // 2))
            seen = repairs.videos_seen + repairs.results_seen
            seconds.append((time.perf_counter() - began) / seen * 1000)
            assert repairs.mended == 0, repairs
        found[f"reconciler, 1,000 {name} (s)"] = statistics.median(seconds)
    began = time.perf_counter()
    cursor, pages = None, 0
    while pages < min(20, rows // 1000):
        page = index.files(cursor=cursor, limit=1000)
        cursor, pages = page.cursor, pages + 1
    found["reconciler, 1,000 rows (s)"] = (time.perf_counter() - began) / pages
    found["memory of the handlers' part (MiB)"] = memory_mib()
    found["of it, by the sweep (MiB)"] = memory_mib() - before
    found["index on disk (MiB)"] = path.stat().st_size / 2**20
    return found


def _cursor(number: int, *before: float) -> str:
    return to_cursor(*before, schema.number_of(BEGIN + timedelta(seconds=number), "x"))


def reindex_rate(folder: Path) -> float:
    """Return how many videos with a run a second `posedrop reindex` takes, the store in memory."""
    world = World(folder)
    for number in range(REINDEXED):
        key, (analysis_id, run) = key_of(number), run_of(number)
        world.storage.put(VIDEOS, key, b"film %d" % number)
        info = world.storage.buckets[VIDEOS][key].info
        video = VideoRef(
            file_id=layout.file_id_of(VIDEOS, key),
            bucket=VIDEOS,
            key=key,
            etag=info.etag,
            size=info.size,
        )
        same: dict[str, Any] = {"video": video, "sha256": f"{number:064x}"}
        run_: dict[str, Any] = {
            **same,
            "analysis_id": analysis_id,
            "analysis": "dummy",
            "args": {"seconds": 0.0},
            "created_at": BEGIN,
        }
        record = VideoRecord(**same, last_modified=BEGIN, ingested_at=BEGIN, probe=PROBE)
        request = Request(**run_, analysis_version="1", probe=PROBE, asked_by="default")
        result = Result(**run_, state="succeeded", finished_at=BEGIN)
        for name, each in (
            (f"{key}/video.json", record),
            (f"{run}/request.json", request),
            (f"{run}/result.json", result),
        ):
            world.storage.put(RESULTS, name, each.to_json())
    began = time.perf_counter()
    repairs = world.reconciler.reindex()
    seconds = time.perf_counter() - began
    assert repairs.uploads_found == REINDEXED, repairs
    world.end()
    return REINDEXED / seconds


def listing(folder: Path, objects: int) -> dict[str, float]:
    """Return what it takes to list a real bucket (SeaweedFS), as the reconciler does."""
    keys = Identity("bench", "AKBENCH", "SKBENCH12345", ("Admin", "Read", "Write", "List"))
    weed = Weed(folder / "weed", folder / "logs/weed.log", s3_port=0, identities=[keys])
    weed.start()
    try:
        settings = load(
            folder,
            {
                "s3_endpoint": weed.endpoint,
                "s3_access_key": keys.access_key,
                "s3_secret_key": keys.secret_key,
            },
        )
        storage = Storage(settings)
        storage.create_bucket(VIDEOS)

        def put(worker: int) -> None:
            for number in range(worker, objects, CLIENTS):
                storage.write(VIDEOS, key_of(number), b"a film")

        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(put, range(CLIENTS)))
        put_seconds = time.perf_counter() - began
        began = time.perf_counter()
        count = sum(1 for _ in storage.objects(VIDEOS))
        seconds = time.perf_counter() - began
        assert count == objects, (count, objects)
    finally:
        weed.stop()
    return {
        "PUTs a second, to fill it": objects / put_seconds,
        f"listing {objects:,} objects (s)": seconds,
        "listing, 1,000 objects (s)": seconds / objects * 1000,
    }


# -- as a program ----------------------------------------------------------------------------------


def _in_a_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fill", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.of is not None:
        if given.fill:
            fill(given.of, given.rows[0])
        print(json.dumps({} if given.fill else measure(given.of, given.rows[0])))
        return
    with tempfile.TemporaryDirectory(prefix="posedrop-scale-") as name:
        folder = Path(name)
        sizes = {}
        for rows in given.rows:
            index = ("--of", str(folder / f"{rows}.sqlite"), "--rows", str(rows))
            began = time.perf_counter()
            _in_a_process(*index, "--fill")
            print(f"filled {rows:,} files and runs in {time.perf_counter() - began:.0f} s")
            sizes[rows] = _in_a_process(*index)
            _show({rows: sizes[rows]}, {})
        others = {"reindex, videos with a run a second": reindex_rate(folder / "world")}
        others |= listing(folder, given.objects)
    _show(sizes, others)
    out = REPOSITORY / "build/scale.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"rows": sizes, "others": others}, indent=1))


def _show(sizes: dict[int, dict[str, Any]], others: dict[str, float]) -> None:
    print(f"{'files and runs in the index':42}" + "".join(f"{rows:>36,}" for rows in sizes))
    for name, first in next(iter(sizes.values())).items():
        cells = ""
        for found in sizes.values():
            value = found[name]
            text = (
                f"p50 {value['p50']:.2f}  p99 {value['p99']:.2f}  cpu {value['cpu_p99']:.2f} ms"
                if isinstance(first, dict)
                else f"{value:.4g}"
            )
            cells += f"{text:>36}"
        print(f"{name:42}{cells}")
    for name, value in others.items():
        print(f"{name:42}{value:36.4g}")


if __name__ == "__main__":
    main()
