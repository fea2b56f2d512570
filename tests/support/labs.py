"""Labs for the fault tests: the two stacks, films of a kilobyte, and what became of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from dramatiq import Broker

from posedrop.transport import queue
from tests.support import compose
from tests.support.brokers import BrokerServer, Redis
from tests.support.full_size import FULL_SIZE
from tests.support.lab import Embedded, Lab, Servers
from tests.support.samples import REPOSITORY, free_box

L = TypeVar("L", bound=Lab)
PLUGIN = Path(__file__).parent / "faulty_plugin"
#: Nothing here computes poses: each child would import torch for seconds, and never use it.
COLD = Path(__file__).parent / "cold_children"


def embedded(data_dir: Path, **settings: str) -> Embedded:
    """Return ``posedrop up`` with the faulty analysis, not started."""
    return _with_plugin(Embedded(data_dir, **settings))


def servers(data_dir: Path, broker: BrokerServer | None = None, **settings: str) -> Servers:
    """Return MinIO, a broker (Redis), handlers and workers with ``faulty``, not started."""
    broker = broker or Redis(data_dir.with_name("redis"))
    lab = _with_plugin(Servers(data_dir, broker, **settings))
    lab.several_gpus = True
    return lab


def cold(lab: L, *folders: Path) -> L:
    """Have no child of a lab import torch before it is needed; ``make soak`` has them do so.

    Args:
        lab: one in which hardly anything is inferred.
        folders: of plug-ins that it is to have.
    """
    path = ["" if FULL_SIZE else str(COLD), *map(str, folders), str(REPOSITORY)]
    path.append(os.environ.get("PYTHONPATH", ""))
    lab.environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return lab


def _with_plugin(lab: L) -> L:
    return cold(lab, PLUGIN)


@cache
def _film() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(2):
            pixels = np.full((64, 64, 3), 80 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def film(size: int = 64) -> bytes:
    """Return two frames that no other call returns, with ``size`` bytes more than they need."""
    return _film() + free_box(size, os.urandom(min(size, 64) - 8))


def asks(how: str = "work", **args: Any) -> dict[str, str]:
    """Return the metadata of an upload that wants ``faulty``."""
    return {"analysis": "faulty", "args": json.dumps({"how": how, **args})}


def put(lab: Lab, key: str, metadata: Mapping[str, str] | None = None, body: bytes = b"") -> None:
    """PUT an object into the videos bucket: a film, unless ``body`` says what."""
    lab.s3().put_object(
        Bucket="videos", Key=key, Body=body or film(), Metadata=dict(metadata or {})
    )


def records(lab: Lab, prefix: str, name: str) -> dict[str, dict[str, Any]]:
    """Return every record called ``name`` below a prefix of the results bucket, by its key."""
    s3 = lab.s3()
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return {
        key: json.loads(s3.get_object(Bucket="results", Key=key)["Body"].read())
        for key in keys
        if key.endswith(f"/{name}")
    }


def result(lab: Lab, key: str, seconds: float = 120) -> dict[str, Any]:
    """Wait for the one result of a video, by the bucket alone, and return it."""
    found = lab.until(lambda: records(lab, f"{key}/", "result.json"), f"a result of {key}", seconds)
    assert len(found) == 1, list(found)
    return next(iter(found.values()))


def objects(lab: Lab, prefix: str) -> dict[str, str]:
    """Return the ETags of the objects below a prefix of the results bucket."""
    pages = lab.s3().get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=prefix)
    return {found["Key"]: found["ETag"] for page in pages for found in page.get("Contents", [])}


def check_artefacts(lab: Lab, key: str) -> None:
    """Assert that every file that a video's result names is what it says."""
    s3 = lab.s3()
    for name, over in records(lab, f"{key}/", "result.json").items():
        for artefact in over["artefacts"]:
            place = f"{name.rsplit('/', 1)[0]}/{artefact['place'] or artefact['name']}"
            body = s3.get_object(Bucket="results", Key=place)["Body"].read()
            assert hashlib.sha256(body).hexdigest() == artefact["sha256"], place


def broker_of(lab: Servers) -> Broker:
    """Return a connection to the lab's broker, to send to its actors."""
    return queue.connect(lab.broker.url)


def send(broker: Broker, actor: str, **arguments: str) -> None:
    """Deliver a message."""
    queue.send(broker, actor, **arguments)


def is_of(pid: int, worker: str) -> bool:
    """Tell whether the process that calls itself ``worker`` is ``pid`` or was forked by it."""
    own = int(worker.rsplit("-", 1)[1])
    return os.getpgid(own) == pid


def grace(service: str) -> float:
    """Return the seconds that compose gives a service to end after SIGTERM."""
    number, unit = re.fullmatch(r"(\d+)([ms])", compose.grace(service)).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def stage(lab: Lab, key: str) -> str | None:
    """Return what the first attempt at a video's run says that it is doing."""
    attempts = records(lab, f"{key}/", "1.json").values()
    return next((attempt["progress"]["stage"] for attempt in attempts), None)
