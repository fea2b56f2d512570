"""Handlers before a real MinIO, for uploads that are interrupted; and trees of hostile names."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dramatiq.brokers.stub import StubBroker

from handlers.app import create_app
from tests.support.bootstrapped import POSEDROP, Store
from tests.support.full_size import size
from tests.support.serving import serving

PART = 5 * 2**20
#: Bytes of the film that is interrupted, and how many files its tree has: in CI, and at full size.
FILM_BYTES, FILES = size((64 * 2**20 + 17, 30), (512 * 2**20, 200))


class Watched:
    """An ASGI app before another: counts the parts that are signed, and holds each for a while."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.signed: list[int] = []
        self.seconds = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on what comes."""
        if scope["type"] != "http" or not scope["path"].endswith("/sign"):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await asyncio.sleep(self.seconds)
        self.signed += [part["number"] for part in json.loads(body)["parts"]]
        whole = {"type": "http.request", "body": body, "more_body": False}

        async def again() -> Any:
            return whole

        await self._app(scope, again, send)


class UploadLab:
    """A MinIO, and the API before it."""

    def __init__(self, store: Store, url: str, watched: Watched, folder: Path) -> None:
        self.store = store
        self.url = url
        self.watched = watched
        self._folder = folder

    def command(self, *words: str) -> list[str]:
        """Return a command of this lab's; ``environment`` goes with it."""
        return [sys.executable, POSEDROP, *words]

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of the command line; its memory is the lab's own."""
        kept = {name: value for name, value in os.environ.items() if "POSEDROP" not in name}
        home = {"HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder / "config")}
        here = {"POSEDROP_URL": self.url, "POSEDROP_DATA_DIR": str(self._folder / "cli")}
        return kept | home | here

    def parts_of(self, key: str) -> int:
        """Return how many parts of a key the store has that is on its way."""
        root = self.store.s3("ROOT")
        found = root.list_multipart_uploads(Bucket="videos", Prefix=key).get("Uploads", [])
        if not found:
            return 0
        parts = root.list_parts(Bucket="videos", Key=key, UploadId=found[0]["UploadId"])
        return len(parts.get("Parts", []))

    def keys(self, prefix: str) -> set[str]:
        """Return the keys below a prefix of the videos bucket."""
        pages = self.store.s3("ROOT").get_paginator("list_objects_v2")
        found = pages.paginate(Bucket="videos", Prefix=prefix)
        return {each["Key"] for page in found for each in page.get("Contents", [])}

    def sha256(self, key: str) -> str:
        """Return the hash of an object."""
        body = self.store.s3("ROOT").get_object(Bucket="videos", Key=key)["Body"]
        digest = hashlib.sha256()
        for chunk in body.iter_chunks(2**20):
            digest.update(chunk)
        return digest.hexdigest()

    def unfinished(self, *keys: str) -> int:
        """Return how many uploads in parts of these keys are not over."""
        root = self.store.s3("ROOT")
        return sum(
            len(root.list_multipart_uploads(Bucket="videos", Prefix=key).get("Uploads", []))
            for key in keys
        )


@contextmanager
def upload_lab(store: Store, folder: Path) -> Iterator[UploadLab]:
    """Serve the API before a MinIO; its presigned URLs last five seconds."""
    broker = StubBroker()
    for queue in ("cpu", "gpu"):
        broker.declare_queue(queue)
    data = folder / "data"
    data.mkdir(parents=True)
    settings = store.settings(data_dir=data, multipart_bytes=PART, presign_seconds=5)
    watched = Watched(create_app(settings, broker, local=True))
    with serving(watched) as url:  # type: ignore[arg-type]
        yield UploadLab(store, url, watched, folder)


def make_film(path: Path, size: int, seed: int = 1) -> str:
    """Write bytes that no two parts share; return their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, chosen = hashlib.sha256(), random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, 2**20):
            chunk = chosen.randbytes(min(2**20, size - start))
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def make_tree(root: Path, count: int) -> dict[str, str]:
    """Write films of hostile names in three levels; return each name's SHA-256."""
    names = [
        "-rf.mp4", "a+b%20c%.mp4", "Maus zwölf 🐭.mov", "日本語.mkv", "e\u0301.avi", "é.avi",
        "#?&=.mp4",
        "trailing .mp4", "quote'\".mp4", "semi;colon,.mp4", "x" * 196 + ".mp4", "ü" * 98 + ".mp4",
        "<b>bold<b>.mp4", "{}[]^~|.mp4", "100%.webm", "a..b.mp4", "CON.mp4",
    ]  # fmt: skip
    folders = ["", "Tag 1/", "Tag 1/-kamera+%2F/", "Tag 2/αβγ/"]
    made: dict[str, str] = {}
    for number in range(count):
        name = names[number] if number < len(names) else f"film {number}.mp4"
        path = f"{folders[number % len(folders)]}{name}"
        made[path] = make_film(root / path, 1000 + number, seed=number)
    (root / "Tag 1" / "posedrop.json").write_text('{"analysis": "dummy"}')
    (root / "Tag 1" / "notes.txt").write_text("no film")
    return made
