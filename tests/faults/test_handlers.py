"""Handlers killed at random while uploads arrive: none is lost, none is doubled."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.faults import soak
from tests.support import labs
from tests.support.full_size import size
from tests.support.lab import Embedded, Lab

CLIENTS = 8
KILLS = size(3, 6)


class Crowd:
    """Some clients that put so many objects, each again until it is acknowledged."""

    def __init__(self, lab: Lab, uploads: int, pick: random.Random) -> None:
        #: Most are no videos: refusing one takes the same way through the handlers as analysing it.
        works = set(pick.sample(range(uploads), uploads // 10))
        self._kinds = ["succeeded" if number in works else "refused" for number in range(uploads)]
        self._environment = lab.aws_environment()
        self._lock = threading.Lock()
        self.acknowledged: dict[str, str] = {}

    def put_all(self) -> None:
        """Put them, side by side."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self._put_some, range(CLIENTS)))

    def _put_some(self, first: int) -> None:
        s3 = soak.client(self._environment)
        for number in range(first, len(self._kinds), CLIENTS):
            key, kind = f"crowd/{number}.mp4", self._kinds[number]
            body = labs.film() if kind == "succeeded" else b"no video, but number %d" % number
            while not self._put(s3, key, body):
                time.sleep(0.2)
            with self._lock:
                self.acknowledged[key] = kind

    def _put(self, s3: Any, key: str, body: bytes) -> bool:
        try:
            s3.put_object(Bucket="videos", Key=key, Body=body, Metadata=labs.asks())
        except (ClientError, BotoCoreError):
            return False
        return True


def kill_handlers(lab: Lab) -> None:
    """kill -9 and a new start; in the embedded stack all but the store is that one process."""
    if isinstance(lab, Embedded):
        lab.kill()
        lab.start()
    else:
        soak.faults_of(lab)["kill_handlers"]()


def _are_over(lab: Lab, acknowledged: dict[str, str]) -> bool:
    """Tell whether each has the record that it should end with; gently, for the lab is busy."""
    time.sleep(1)
    there = labs.objects(lab, "crowd/").keys()
    results = {key.rsplit("/", 2)[0] for key in there if key.endswith("/result.json")}
    return all(
        key in results if kind == "succeeded" else f"{key}/video.json" in there
        for key, kind in acknowledged.items()
    )


@pytest.mark.parametrize(
    ("stack", "uploads"), [("servers", size(120, 400)), ("embedded", size(60, 150))]
)
def test_handlers_killed_while_a_crowd_uploads(
    request: pytest.FixtureRequest, stack: str, uploads: int
) -> None:
    """Every acknowledged upload ends as it must, once, and the index knows it."""
    lab: Lab = request.getfixturevalue(stack)
    pick = random.Random(1)
    crowd = Crowd(lab, uploads, pick)
    uploading = threading.Thread(target=crowd.put_all, daemon=True)
    uploading.start()
    for count in sorted(pick.sample(range(uploads), KILLS)):
        lab.until(lambda count=count: len(crowd.acknowledged) >= count, f"{count} uploads", 180)
        kill_handlers(lab)
    uploading.join()
    assert len(crowd.acknowledged) == uploads
    lab.until(lambda: _are_over(lab, crowd.acknowledged), "all to be over", 300)
    ledger = soak.Ledger()
    soak.balance(lab, soak.client(lab.aws_environment()), crowd.acknowledged, ledger)
    assert ledger.balanced, ledger
    assert (ledger.succeeded, ledger.refused) == (uploads // 10, uploads - uploads // 10)
