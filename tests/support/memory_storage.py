"""The buckets in memory: S3's promises, a clock that stands until it is moved, and gates.

A thread can be cut before or after any of its calls to the store, as kill -9 does, or frozen there
and woken up later, as SIGSTOP does.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from posedrop.buckets.storage import (
    MAX_READ_BYTES,
    Listing,
    ObjectInfo,
    Storage,
    UnfinishedUpload,
)
from posedrop.errors import ObjectChangedError, RecordError, StorageError

VIDEOS, RESULTS, MODELS = "videos", "results", "models"


class Crash(BaseException):
    """The process ends here and now; nothing catches it."""


class Clock:
    """A time that passes only when told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return it."""
        return self.time

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)


class Gate:
    """Where one thread of execution is cut or frozen: at its ``at``-th call to the store."""

    def __init__(
        self, at: int, *, freeze: bool = False, after: bool = False, raises: type | None = None
    ) -> None:
        self.left = at
        self.freeze = freeze
        self.after = after
        self.raises = raises or Crash
        self.frozen = threading.Event()
        self.woken = threading.Event()

    def passed(self) -> None:
        """Count a call; crash, or wait to be woken up, if it is the one."""
        self.left -= 1
        if self.left == 0:
            if not self.freeze:
                raise self.raises("the store is away")
            self.frozen.set()
            self.woken.wait()


@dataclass(frozen=True)
class Stored:
    """An object of the store."""

    data: bytes
    info: ObjectInfo


class MemoryStorage(Storage):
    """The buckets in memory, held by tests/integration/test_stores.py to what real stores do."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.buckets: dict[str, dict[str, Stored]] = {VIDEOS: {}, RESULTS: {}, MODELS: {}}
        self.events: list[dict[str, Any]] = []
        #: Objects that were looked at or read, in this order; and those that were fetched.
        self.asked: list[tuple[str, str]] = []
        self.downloads: list[tuple[str, str]] = []
        #: Objects that nobody can delete or write over: a lock, a policy.
        self.locked: set[tuple[str, str]] = set()
        #: Objects that can't be read: a policy, a damaged disk below the store.
        self.unreadable: set[tuple[str, str]] = set()
        #: Objects of which the store tells nothing at this moment.
        self.away: set[tuple[str, str]] = set()
        #: Uploads in parts that are not over: their buckets, keys, ids, and when each was begun.
        self.in_parts: list[tuple[str, UnfinishedUpload]] = []
        self._gates = threading.local()
        self._count = 0

    @contextlib.contextmanager
    def gate(self, gate: Gate | None) -> Iterator[None]:
        """Have this thread cut or frozen within the block."""
        self._gates.gate = gate
        try:
            yield
        finally:
            self._gates.gate = None

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        gate: Gate | None = getattr(self._gates, "gate", None)
        if gate is not None and not gate.after:
            gate.passed()
        yield
        if gate is not None and gate.after:
            gate.passed()

    # -- reading

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        with self._call():
            self.asked.append((bucket, key))
            if (bucket, key) in self.away:
                raise StorageError(f"can't look at {bucket}/{key}")
            found = self.buckets[bucket].get(key)
            if found is None:
                return None
            # HEAD tells whole seconds, a listing milliseconds.
            whole = found.info.last_modified.replace(microsecond=0)
            return replace(found.info, last_modified=whole)

    def read(self, bucket: str, key: str, etag: str | None = None) -> bytes | None:
        with self._call():
            self.asked.append((bucket, key))
            if (bucket, key) in self.unreadable | self.away:
                raise StorageError(f"can't read {bucket}/{key}: AccessDenied")
            found = self.buckets[bucket].get(key)
            if found is not None and etag not in {None, found.info.etag}:
                raise ObjectChangedError(f"{bucket}/{key} was replaced")
            if found is not None and found.info.size > MAX_READ_BYTES:
                raise RecordError(f"{bucket}/{key} has {found.info.size:,} bytes: no record has")
            return found.data if found else None

    def download(
        self, bucket: str, key: str, path: Path, etag: str | None = None
    ) -> dict[str, str]:
        with self._call():
            if (bucket, key) in self.unreadable | self.away:
                raise StorageError(f"can't download {bucket}/{key}: AccessDenied")
            found = self.buckets[bucket].get(key)
            if found is None or (etag is not None and found.info.etag != etag):
                raise ObjectChangedError(f"{bucket}/{key} was replaced")
            self.downloads.append((bucket, key))
            path.write_bytes(found.data)
            return {
                "sha256": hashlib.sha256(found.data).hexdigest(),
                "sha1": hashlib.sha1(found.data, usedforsecurity=False).hexdigest(),
            }

    def objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        with self._call():
            found = [info for info in self._below(bucket, prefix) if info.key > after]
        for info in found:
            yield replace(info, metadata={})

    def listing(self, bucket: str, prefix: str) -> Listing:
        with self._call():
            return Listing(self._below(bucket, prefix), self.clock())

    def _below(self, bucket: str, prefix: str) -> list[ObjectInfo]:
        objects = self.buckets[bucket]
        return [objects[key].info for key in sorted(k for k in objects if k.startswith(prefix))]

    def presign_get(self, bucket: str, key: str, **_: str) -> str:
        assert key in self.buckets[bucket], key
        return f"{bucket}/{key}"

    # -- writing

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        with self._call():
            if key in self.buckets[bucket]:
                return False
            self.put(bucket, key, data)
            return True

    def replace(self, bucket: str, key: str, data: bytes, etag: str) -> bool:
        with self._call():
            there = self.buckets[bucket].get(key)
            if there is None or there.info.etag != etag:
                return False
            self.put(bucket, key, data)
            return True

    def write(
        self,
        bucket: str,
        key: str,
        data: bytes,
        content_type: str = "application/json",  # noqa: ARG002
    ) -> None:
        with self._call():
            self.put(bucket, key, data)

    def upload(
        self,
        bucket: str,
        key: str,
        source: Path | IO[bytes],
        content_type: str,  # noqa: ARG002
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        with self._call():
            self.put(bucket, key, data, metadata)

    def upload_new(
        self,
        bucket: str,
        key: str,
        path: Path,
        content_type: str,  # noqa: ARG002
        sha256: str,  # noqa: ARG002
    ) -> bool:
        return self.create(bucket, key, path.read_bytes())

    def copy(self, bucket: str, source: ObjectInfo, key: str, content_type: str) -> bool:  # noqa: ARG002
        with self._call():
            found = self.buckets[bucket].get(source.key)
            if found is None or found.info.etag != source.etag:
                return False
            self.put(bucket, key, found.data)
            return True

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        for key in keys:
            with self._call():
                if (bucket, key) in self.locked:
                    raise StorageError(f"can't delete {bucket}/{key}: AccessDenied")
                self.remove(bucket, key)

    def unfinished_uploads(self, bucket: str) -> Iterator[UnfinishedUpload]:
        with self._call():
            yield from [upload for where, upload in self.in_parts if where == bucket]

    def abort_upload(self, bucket: str, upload: UnfinishedUpload) -> None:
        with self._call():
            if (bucket, upload) in self.in_parts:
                self.in_parts.remove((bucket, upload))

    def create_bucket(self, bucket: str) -> None:
        with self._call():
            self.buckets.setdefault(bucket, {})

    # -- as people's S3 tools do it

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        parts: int | None = None,
    ) -> None:
        """Write an object, or copy it onto itself, and note the event."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        etag += f"-{parts}" if parts is not None else ""
        info = ObjectInfo(key, etag, len(data), self.clock(), dict(metadata or {}))
        self.buckets[bucket][key] = Stored(data, info)
        self._note("s3:ObjectCreated:Put", bucket, key, {"eTag": etag, "size": len(data)})

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object, and note the event."""
        if self.buckets[bucket].pop(key, None) is not None:
            self._note("s3:ObjectRemoved:Delete", bucket, key, {})

    def forge(self, bucket: str, key: str) -> None:
        """Note an event of an object that nobody has put."""
        self._note("s3:ObjectCreated:Put", bucket, key, {"eTag": "e", "size": 1})

    def _note(self, name: str, bucket: str, key: str, more: dict[str, Any]) -> None:
        self._count += 1
        told = {"key": quote(key), "sequencer": f"{self._count:016X}", **more}
        s3 = {"bucket": {"name": bucket}, "object": told}
        self.events.append({"eventSource": "minio:s3", "eventName": name, "s3": s3})
