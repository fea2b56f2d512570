"""A models bucket in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from posedrop.buckets.records import Model
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import ObjectChangedError, RecordError

BUCKET = "models"


class FakeStorage:
    """A bucket in a dictionary, with the part of Storage that models use."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.written: list[str] = []

    def objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectInfo]:
        assert bucket == BUCKET
        for key in sorted(self.content):
            if key.startswith(prefix):
                yield ObjectInfo(key, "etag", len(self.content[key]), datetime.now(UTC))

    def read_record(self, bucket: str, key: str, kind: type[Model]) -> Model | None:
        assert bucket == BUCKET
        if key not in self.content:
            return None
        try:
            return kind.model_validate_json(self.content[key])
        except ValueError as error:
            raise RecordError("no such record") from error

    def report(self, error: RecordError) -> None:
        """Log it."""

    def upload(self, bucket: str, key: str, source: Path | IO[bytes], content_type: str) -> None:
        assert (bucket, content_type) == (BUCKET, "application/octet-stream")
        self.content[key] = source.read_bytes() if isinstance(source, Path) else source.read()
        self.written.append(key)

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        assert bucket == BUCKET
        self.content.setdefault(key, data)
        self.written.append(key)
        return self.content[key] == data

    def download(self, bucket: str, key: str, path: Path) -> dict[str, str]:
        assert bucket == BUCKET
        if key not in self.content:
            raise ObjectChangedError(f"{key} is gone")
        path.write_bytes(self.content[key])
        return {"sha256": hashlib.sha256(self.content[key]).hexdigest()}
