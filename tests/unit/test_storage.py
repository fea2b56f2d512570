"""The object store, on moto's server: a real HTTP S3 that is AWS's in what it answers."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from posedrop.buckets.storage import Storage
from posedrop.buckets.uploads import MIN_PART_BYTES
from posedrop.errors import StorageError
from posedrop.settings import Settings


def test_what_was_begun_in_parts_is_found_and_given_up(storage: Storage, bucket: str) -> None:
    """With its time; giving up what is over already is no error."""
    for key in ("uploads/a/ä.mp4", "b.mp4"):
        storage.presign_parts(bucket, key, content_type="video/mp4", size=9, metadata={})
    found = list(storage.unfinished_uploads(bucket))
    assert {each.key for each in found} == {"uploads/a/ä.mp4", "b.mp4"}
    for each in found:
        assert each.begun < storage.time(bucket)
        storage.abort_upload(bucket, each)
        storage.abort_upload(bucket, each)
    assert list(storage.unfinished_uploads(bucket)) == []


@pytest.mark.parametrize(
    ("size", "parts"),
    [(0, 0), (1, 0), (MIN_PART_BYTES - 1, 0), (MIN_PART_BYTES, 1), (2 * MIN_PART_BYTES + 7, 3)],
)
def test_a_stream_of_any_length_arrives_whole(
    storage: Storage, bucket: str, tmp_path: Path, size: int, parts: int
) -> None:
    """In parts where it is larger than one, with its metadata; and in steps of any size."""

    class Trickle(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[: 1 << 17])

    data = (bytes(range(255)) * (size // 255 + 1))[:size]
    stream: Any = Trickle(data)
    storage.upload_stream(bucket, "big", stream, 10**9, "video/mp4", {"analysis": "dummy"})
    found = storage.head(bucket, "big")
    assert found is not None
    assert (found.size, dict(found.metadata)) == (size, {"analysis": "dummy"})
    assert found.etag.endswith(f"-{parts}") is bool(parts)
    storage.download(bucket, "big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == data


def test_a_stream_that_breaks_leaves_nothing(storage: Storage, bucket: str) -> None:
    """The client of a form goes away in the third part: no object, and no unfinished upload."""

    class Broken(io.RawIOBase):
        left = 2 * MIN_PART_BYTES + 1

        def readinto(self, buffer: Any) -> int:
            taken = min(len(buffer), self.left)
            self.left -= taken
            if not taken:
                raise OSError("the client went away")
            return taken

    with pytest.raises(OSError, match="went away"):
        storage.upload_stream(bucket, "big", Broken(), 10**9, "video/mp4")
    assert storage.head(bucket, "big") is None
    assert "Uploads" not in storage._client.list_multipart_uploads(Bucket=bucket)


def test_a_presigned_put_stores_what_was_agreed(storage: Storage, bucket: str) -> None:
    """A presigned PUT works with the headers of the answer and carries the metadata."""
    signed = storage.presign_put(
        bucket,
        "uploads/x/film.mp4",
        content_type="video/mp4",
        size=5,
        sha256=hashlib.sha256(b"mouse").hexdigest(),
        metadata={"analysis": "dummy", "args": "{}"},
    )
    answer = httpx.put(signed.url, headers=signed.headers, content=b"mouse")
    assert answer.status_code == 200, answer.text
    found = storage.head(bucket, "uploads/x/film.mp4")
    assert found is not None
    assert dict(found.metadata) == {"analysis": "dummy", "args": "{}"}


@pytest.mark.parametrize("data", [b"x" * (5 * 2**20) + b"tail", b""], ids=["two", "empty"])
def test_presigned_parts_make_one_object(storage: Storage, bucket: str, data: bytes) -> None:
    """Each part is PUT by its own URL, then one POST completes the object, if of nothing."""
    signed = storage.presign_parts(
        bucket, "big", content_type="video/mp4", size=len(data), metadata={}
    )
    etags = [
        httpx.put(url, content=data[n * signed.part_bytes :][: signed.part_bytes]).headers["etag"]
        for n, url in enumerate(signed.parts)
    ]
    parts = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>"
        for n, etag in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
    assert httpx.post(signed.complete, content=body).status_code == 200
    assert storage.read(bucket, "big") == data


def test_a_store_that_is_away_is_a_storage_error(settings: Settings, free_port: int) -> None:
    """No botocore error leaves the storage module."""
    away = Storage(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{free_port}"}))
    with pytest.raises(StorageError, match="can't look at videos/a"):
        away.head("videos", "a")


@contextmanager
def cutting(upstream: str, pattern: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A way to a server on which the first answer ends where ``pattern`` ends; all that it said."""
    said: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = upstream.removeprefix("http://").partition(":")

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.create_connection((host, int(port))) as server:
                asked = client.recv(1 << 16)
                server.sendall(asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
                found = None if said else re.search(pattern, answer)
                said.append(answer[: found.end()] if found else answer)
                client.sendall(said[-1])

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", said
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "pattern",
    [
        rb"HTTP/1.1 20",
        rb"(?i)\r\nx-amz-meta-ana",
        rb"(?i)x-amz-meta-args: \{",
        rb"\{\}\r\n",
        rb"\r\n(?=\r\n)",
    ],
    ids=["status", "name", "value", "between two lines", "before the blank line"],
)
def test_an_answer_with_cut_headers_is_asked_for_again(
    storage: Storage, settings: Settings, bucket: str, pattern: bytes
) -> None:
    """A video never loses the metadata that asks for its analysis to a connection that broke."""
    metadata = {"analysis": "dummy", "args": "{}"}
    storage.upload(bucket, "film", io.BytesIO(b"mouse"), "video/mp4", metadata)
    assert settings.s3_endpoint is not None
    with cutting(settings.s3_endpoint, pattern) as (endpoint, said):
        away = Storage(settings.model_copy(update={"s3_endpoint": endpoint}))
        found = away.head(bucket, "film")
    assert (len(said), found and dict(found.metadata)) == (2, metadata)


def test_a_listing_with_cut_headers_is_asked_for_again(
    storage: Storage, settings: Settings, bucket: str
) -> None:
    """A bucket never looks empty because a connection broke."""
    storage.write(bucket, "film", b"mouse")
    assert settings.s3_endpoint is not None
    with cutting(settings.s3_endpoint, rb"\r\n(?=(?i:content-length))") as (endpoint, said):
        away = Storage(settings.model_copy(update={"s3_endpoint": endpoint}))
        assert [found.key for found in away.objects(bucket)] == ["film"]
    assert len(said) == 2


def test_a_cut_leave_to_go_on_is_an_error(settings: Settings) -> None:
    """A store that dies between the lines of ``100 Continue`` does not hold its caller for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(1 << 16)
                        client.sendall(b"HTTP/1.1 100 Continue\r\n")

        threading.Thread(target=serve, daemon=True).start()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        away = Storage(settings.model_copy(update={"s3_endpoint": endpoint}))
        with pytest.raises(StorageError, match="can't create videos/a"):
            away.create("videos", "a", b"{}")
        listener.shutdown(socket.SHUT_RDWR)
