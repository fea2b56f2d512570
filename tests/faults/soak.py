"""The soak: uploads go on while everything is killed in turn; then the books are balanced.

    python -m tests.faults.soak --seconds 300 --seed 1 --stack minio

The last line is the ledger, in JSON. It exits with 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import httpx
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support import labs
from tests.support.lab import Embedded, Lab, Servers

#: Uploads not over yet, at most: a queue that only grows says nothing of recovery.
OUTSTANDING = 24
#: All uploads' keys begin with it.
FOLDER = "day"
#: Seconds within which everything acknowledged before a fault has to be over.
PATIENCE = 300.0
FINAL = ("succeeded", "refused", "failed", "cancelled")


@dataclass
class Ledger:
    """What became of every upload that was acknowledged."""

    acknowledged: int = 0
    succeeded: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    unindexed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    recovered: int = 0
    recover_s_max: float = 0.0
    seed: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every promise was kept."""
        ended = sum(getattr(self, state) for state in FINAL)
        wrong = self.lost + self.doubled + self.torn + self.unindexed
        return ended == self.acknowledged and wrong == 0


class Uploads(threading.Thread):
    """Puts one upload after the other, and knows which were acknowledged."""

    def __init__(self, lab: Lab, seed: int, most: int | None, outstanding: int) -> None:
        super().__init__(name="uploads", daemon=True)
        self._lab = lab
        self._random = random.Random(seed)
        self._most = most
        self._outstanding = outstanding
        self._told_to_stop = threading.Event()
        self._environment = lab.aws_environment()
        self._over: set[str] = set()
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        """Upload until told to stop, or until there are enough."""
        s3 = client(self._environment)
        number = 0
        while not self._told_to_stop.is_set() and len(self.acknowledged) != self._most:
            if self._waiting(s3) >= self._outstanding:
                time.sleep(0.2)
                continue
            number += 1
            self._put(s3, f"{FOLDER}{number % 7}/{number}.mp4")

    def _waiting(self, s3: Any) -> int:
        """Return how many are not over yet; the store is asked only where it seems too many."""
        waiting = self.acknowledged.keys() - self._over
        if len(waiting) >= self._outstanding:
            self._over |= over(s3, waiting, tolerant=True)
        return len(waiting - self._over)

    def _put(self, s3: Any, key: str) -> None:
        chance = self._random.random()
        metadata, body, kind = (
            labs.asks(seconds=self._random.choice([0, 0, 0.2])),
            b"",
            "works",
        )
        if chance < 0.1:
            body, kind = b"no video at all", "refused"
        elif chance < 0.2:
            metadata, kind = labs.asks("raise"), "failed"
        elif chance < 0.25:
            metadata, kind = labs.asks("segfault"), "failed"
        try:
            s3.put_object(Bucket="videos", Key=key, Body=body or labs.film(), Metadata=metadata)
        except (ClientError, BotoCoreError):
            time.sleep(0.5)  # not acknowledged: nothing was promised
        else:
            self.acknowledged[key] = kind

    def stop(self) -> None:
        """End after the upload at hand."""
        self._told_to_stop.set()
        self.join()


def client(environment: dict[str, str]) -> Any:
    """Return an S3 client that gives up soon: the store is away now and then."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=10,
        ),
    )


def over(s3: Any, asked: Collection[str], *, tolerant: bool = False) -> set[str]:
    """Return which of some videos were refused or have a result, by the bucket alone."""
    found: set[str] = set()
    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=FOLDER)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    except (ClientError, BotoCoreError):
        if not tolerant:
            raise
        return found
    for key in keys:
        if key.endswith("/result.json"):
            found.add(key.rsplit("/", 2)[0])
    found &= set(asked)
    records = {key.removesuffix("/video.json") for key in keys if key.endswith("/video.json")}
    planned = {key.rsplit("/", 2)[0] for key in keys if key.endswith("/request.json")}
    for video in (records - planned) & set(asked):
        try:
            body = s3.get_object(Bucket="results", Key=f"{video}/video.json")["Body"].read()
        except (ClientError, BotoCoreError):
            continue
        if json.loads(body)["refusal"]:
            found.add(video)
    return found


# -- faults ----------------------------------------------------------------------------------------


def faults_of(lab: Lab) -> dict[str, Callable[[], None]]:
    """Return what can be done to a stack, by name; each leaves all of it running again."""
    if isinstance(lab, Embedded):
        return {
            "kill": lambda: _kill_stack(lab),
            "kill_and_lose_index": lambda: _kill_stack(lab, lambda: _lose_index(lab.data_dir)),
            "kill_store": lambda: _kill_weed(lab),
            "stop": lambda: _stop_stack(lab),
            "nonsense_events": lambda: _nonsense(lab),
        }
    assert isinstance(lab, Servers)
    return {
        "kill_handlers": lambda: _kill_handlers(lab),
        "kill_handlers_and_lose_index": lambda: _kill_handlers(
            lab, lambda: _lose_index(lab.data_dir / "handlers")
        ),
        "kill_worker_gpu": lambda: _kill_worker(lab, "worker-gpu"),
        "kill_worker_cpu": lambda: _kill_worker(lab, "worker-cpu"),
        "freeze_worker": lambda: _freeze_worker(lab),
        "kill_store": lambda: _restart_store(lab, lab.store.kill),
        "lose_queue_dir": lambda: _restart_store(lab, lambda: _lose_queue_dir(lab)),
        "kill_broker": lambda: _restart_broker(lab),
        "flush_broker": lambda: _flush_broker(lab),
        "nonsense_events": lambda: _nonsense(lab),
    }


def _kill_stack(lab: Embedded, meanwhile: Callable[[], None] = lambda: None) -> None:
    lab.kill()
    meanwhile()
    lab.start()


def _stop_stack(lab: Embedded) -> None:
    assert lab.stop() == 0
    lab.start()


def _kill_weed(lab: Embedded) -> None:
    pid = int((lab.data_dir / "weed/pid").read_text())
    os.kill(pid, signal.SIGKILL)


def _lose_index(folder: Path) -> None:
    for path in folder.glob("index.sqlite*"):
        path.unlink()


def _kill_handlers(lab: Servers, meanwhile: Callable[[], None] = lambda: None) -> None:
    lab.kill("handlers")
    meanwhile()
    time.sleep(1)  # a while without anybody to take events
    lab.start_handlers()


def _kill_worker(lab: Servers, service: str) -> None:
    lab.kill(lab.names(service)[0])
    lab.start_worker(service)


def _freeze_worker(lab: Servers) -> None:
    name = lab.names("worker-gpu")[0]
    lab.signal(name, signal.SIGSTOP)
    time.sleep(6)  # longer than the lease
    lab.signal(name, signal.SIGCONT)


def _restart_store(lab: Servers, end: Callable[[], None]) -> None:
    end()
    lab.store.start()


def _lose_queue_dir(lab: Servers) -> None:
    lab.store.kill()
    shutil.rmtree(lab.store.folder / "queue", ignore_errors=True)


def _restart_broker(lab: Servers) -> None:
    lab.broker.kill()
    time.sleep(1)
    lab.broker.start()


def _flush_broker(lab: Servers) -> None:
    redis.Redis.from_url(lab.broker.url).flushall()


def _nonsense(lab: Lab) -> None:
    """Send events doubled, out of order, and of things that are not there."""
    record = {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "eventName": "s3:ObjectCreated:Put",
        "s3": {
            "bucket": {"name": "videos"},
            "object": {"key": "day0/7.mp4", "eTag": "0" * 32, "size": 1, "sequencer": "1"},
        },
    }
    removed = {**record, "eventName": "s3:ObjectRemoved:Delete"}
    for body in ({"Records": [record, removed, record]}, {"Records": [{}]}, {"what": "is this"}):
        headers = {"Authorization": f"Bearer {lab.events_token}"}
        for _ in range(2):
            try:
                lab.http.post("/events", json=body, headers=headers)
            except httpx.TransportError:
                return


# -- the soak --------------------------------------------------------------------------------------


def soak(
    lab: Lab,
    *,
    seconds: float | None = None,
    uploads: int | None = None,
    seed: int = 1,
    kinds: list[str] | None = None,
    outstanding: int = OUTSTANDING,
) -> Ledger:
    """Break a running lab until the time is over or the uploads are all there; balance the books.

    Args:
        lab: started, with nothing in it.
        seconds: how long to go on.
        uploads: how many to acknowledge; None: as many as the time allows.
        seed: of the uploads and the faults.
        kinds: which faults, in this order, once each; None: all, at random, again and again.
        outstanding: how many uploads may wait; all of those are over before the next fault.
    """
    ledger = Ledger(seed=seed)
    pick = random.Random(seed)
    faults = faults_of(lab)
    s3 = client(lab.aws_environment())
    uploader = Uploads(lab, seed, uploads, outstanding)
    uploader.start()
    began = time.monotonic()
    counted: Counter[str] = Counter()
    queue = list(kinds or [])
    while True:
        if kinds is not None and not queue:
            break
        if seconds is not None and time.monotonic() - began > seconds:
            break
        kind = queue.pop(0) if queue else pick.choice(list(faults))
        time.sleep(pick.uniform(0.2, 1.5))
        before = set(uploader.acknowledged)
        broken = time.monotonic()
        faults[kind]()
        counted[kind] += 1
        if _wait_for(s3, before, PATIENCE):
            ledger.recovered += 1
            ledger.recover_s_max = max(ledger.recover_s_max, time.monotonic() - broken)
        print(
            f"{time.monotonic() - began:7.1f} s  {kind:<30} {len(before):5} acknowledged, all over"
            f" {time.monotonic() - broken:5.1f} s later",
            flush=True,
        )
    if uploads is not None:
        uploader.join()
    uploader.stop()
    _wait_for(s3, set(uploader.acknowledged), PATIENCE)
    ledger.faults = dict(counted)
    balance(lab, s3, uploader.acknowledged, ledger)
    ledger.recover_s_max = round(ledger.recover_s_max, 1)
    return ledger


def _wait_for(s3: Any, keys: set[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not keys <= over(s3, keys, tolerant=True):
        if time.monotonic() > end:
            return False
        time.sleep(0.3)
    return True


def balance(lab: Lab, s3: Any, acknowledged: dict[str, str], ledger: Ledger) -> None:
    """Count, from the bucket, what became of every upload; and whether the index knows it."""
    lab.until(lambda: lab.http.post("/reconcile").status_code == 200, "a round of the reconciler")
    ended = Counter(_end_of(s3, key, ledger) for key in acknowledged)
    ledger.acknowledged = len(acknowledged)
    for state in (*FINAL, "lost"):
        setattr(ledger, state, ended[state])
    index = _index(lab)
    ledger.unindexed = sum(
        index.get(key) not in {"refused", "succeeded", "failed"} for key in acknowledged
    )


def _end_of(s3: Any, key: str, ledger: Ledger) -> str:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=f"{key}/")
    names = [each["Key"] for page in pages for each in page.get("Contents", [])]
    results = [name for name in names if name.endswith("/result.json")]
    if len(results) > 1:
        ledger.doubled += 1
    if not results:
        if f"{key}/video.json" not in names:
            return "lost"
        record = json.loads(_read(s3, f"{key}/video.json"))
        return "refused" if record["refusal"] else "lost"
    result = json.loads(_read(s3, results[0]))
    run = results[0].removesuffix("/result.json")
    for artefact in result["artefacts"]:
        body = _read(s3, f"{run}/{artefact.get('place') or artefact['name']}")
        ledger.torn += sha256(body).hexdigest() != artefact["sha256"]
    return str(result["state"])


def _read(s3: Any, key: str) -> bytes:
    body: bytes = s3.get_object(Bucket="results", Key=key)["Body"].read()
    return body


def _index(lab: Lab) -> dict[str, str]:
    """Return how each video ended, as the API's lists say."""
    ends: dict[str, str] = {}
    for path, field_name in (("/files", "state"), ("/analyses", "status")):
        cursor = None
        while True:
            page = lab.get(path, limit=1000, **({"cursor": cursor} if cursor else {}))
            ends |= {item["key"]: item[field_name] for item in page["items"]}
            cursor = page["next"]
            if cursor is None:
                break
    return ends


def main() -> int:
    """Run it as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--uploads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stack", choices=["embedded", "minio"], default="embedded")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="posedrop-soak-"))
    stack = labs.embedded if given.stack == "embedded" else labs.servers
    lab = stack(folder / "data").start()
    try:
        ledger = soak(lab, seconds=given.seconds, uploads=given.uploads, seed=given.seed)
        if not ledger.balanced:
            print(lab.log(), f"left for a look: {folder}", sep="\n")
    finally:
        lab.stop()
    if ledger.balanced:
        shutil.rmtree(folder)
    print(json.dumps(asdict(ledger)))
    return 0 if ledger.balanced else 1


if __name__ == "__main__":
    sys.exit(main())
