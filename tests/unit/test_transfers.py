"""Bytes to and from the store, on a line that breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from posedrop.client import transfers
from posedrop.client.transfers import Transfers
from posedrop.errors import StorageError

POSES = b"scorer,x\n1,2\n"


class Torn(httpx.SyncByteStream):
    """A body whose line breaks in the middle."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx.ReadError("the line was cut")


@pytest.mark.parametrize(
    "part",
    [b"", POSES[:2], POSES, b"of another run"[: len(POSES)]],
    ids=["afresh", "goes on", "whole", "a part of something else"],
)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_bytes_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bytes, ranges: bool
) -> None:
    """However often a download breaks, goes on or starts over, its bytes add up to its size."""
    monkeypatch.setattr(transfers.time, "sleep", lambda _: None)
    breaks = iter([4, 3])

    def store(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range", "bytes=0-") if ranges else "bytes=0-"
        rest = POSES[int(asked.removeprefix("bytes=").rstrip("-")) :]
        status = 206 if ranges and "Range" in request.headers else 200
        length = next(breaks, None)
        if length is None:
            return httpx.Response(status, content=rest)
        return httpx.Response(status, stream=Torn(rest[:length]))

    path = tmp_path / "poses.csv"
    path.with_name("poses.csv.part").write_bytes(part)
    counts: list[int] = []
    sha256 = hashlib.sha256(POSES).hexdigest()
    line = Transfers(httpx.Timeout(5.0), httpx.MockTransport(store))
    line.fetch(lambda: "http://store/get?sig=1", path, len(POSES), sha256, counts.append)
    assert path.read_bytes() == POSES
    assert sum(counts) == len(POSES)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("busy", "comes"), [(2, True), (99, False)])
def test_a_store_that_is_busy_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, busy: int, comes: bool
) -> None:
    """One SlowDown ends no download of thousands of files; a store that stays so is told of."""
    monkeypatch.setattr(transfers.time, "sleep", lambda _: None)
    asked: list[str] = []

    def store(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Range"])
        if len(asked) <= busy:
            return httpx.Response(status, text="<Error><Code>SlowDown</Code></Error>")
        return httpx.Response(206, content=POSES[2:])

    path = tmp_path / "poses.csv"
    path.with_name("poses.csv.part").write_bytes(POSES[:2])
    counts: list[int] = []
    line = Transfers(httpx.Timeout(5.0), httpx.MockTransport(store))

    def fetch() -> None:
        sha256 = hashlib.sha256(POSES).hexdigest()
        line.fetch(lambda: "http://store/get?sig=1", path, len(POSES), sha256, counts.append)

    if comes:
        fetch()
        assert path.read_bytes() == POSES
        assert sum(counts) == len(POSES)
    else:
        with pytest.raises(StorageError, match="SlowDown"):
            fetch()
        assert 2 < len(asked) < 10
