"""Transfers of files by presigned URL, to and from the object store: whole, in parts, resumed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from posedrop.errors import StorageError
from posedrop.hashing import sha256_of

OnBytes = Callable[[int], None]

_CHUNK = 1 << 20
_TRIES = 5
#: Bytes that file systems give a name.
_MAX_NAME_BYTES = 255
_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class Transfers:
    """The object store, as presigned URLs open it; threads may share it.

    ``on_bytes`` is called with the number of bytes that went since the last call; negative when
    some have to go again.
    """

    def __init__(self, timeout: httpx.Timeout, transport: httpx.BaseTransport) -> None:
        """Nothing is sent yet.

        Args:
            timeout: of a request.
            transport: how requests travel.
        """
        self._store = httpx.Client(timeout=timeout, transport=transport)

    def close(self) -> None:
        """End the connections."""
        self._store.close()

    # -- up ----------------------------------------------------------------------------------------

    def put(self, path: Path, size: int, upload: Mapping[str, Any], on_bytes: OnBytes) -> None:
        """Put a file of ``size`` bytes as ``upload`` says: its ``url``, with its ``headers``.

        Raises:
            StorageError: the store refused, with its reason, or the line broke at every try.
        """
        body = _FileSlice(path, 0, size, on_bytes)
        headers = {**upload["headers"], "Content-Length": str(size)}
        for attempt in range(1, _TRIES + 1):
            answer = self._try_put(upload["url"], body, headers)
            # The key is ours alone: an object there (412) is of a try whose answer was lost.
            there = answer is not None and answer.status_code == 412 and attempt > 1
            if answer is not None and (answer.is_success or there):
                return
            body.take_back()
            if answer is not None and answer.status_code not in _RETRY_STATUSES:
                raise store_refused(path.name, answer)
            _pause(attempt)
        if answer is None:
            why = f"the object store can't be reached for {path.name}; try again later"
            raise StorageError(why, code="unreachable")
        raise StorageError(f"{path.name} did not go up in {_TRIES} tries; try again later")

    def try_put_slice(
        self,
        path: Path,
        start: int,
        length: int,
        url: str,
        headers: Mapping[str, str],
        on_bytes: OnBytes,
        given_up: threading.Event,
    ) -> httpx.Response | None:
        """Put bytes of a file once; return the store's answer, None if the line broke.

        Raises:
            StorageError: it was given up meanwhile.
        """
        body = _FileSlice(path, start, length, on_bytes, given_up)
        answer = self._try_put(url, body, {**headers, "Content-Length": str(length)})
        if answer is None or not answer.is_success:
            body.take_back()
        return answer

    def _try_put(
        self, url: str, body: _FileSlice, headers: Mapping[str, str]
    ) -> httpx.Response | None:
        try:
            return self._store.put(url, content=iter(body), headers=headers)
        except httpx.TransportError:
            return None

    # -- down --------------------------------------------------------------------------------------

    def fetch(
        self, locate: Callable[[], str], path: Path, size: int, sha256: str, on_bytes: OnBytes
    ) -> None:
        """Fetch a file, unless it is there and whole; an interrupted one goes on where it was.

        Args:
            locate: returns the presigned URL, anew for each try.
            path: the file has this name only once its hash is the right one.
            size: in bytes.
            sha256: in hexadecimal.
            on_bytes: as the class says.

        Raises:
            StorageError: it can't be had whole.
        """
        if is_whole(path, size, sha256):
            on_bytes(size)
            return
        partial = path.with_name(f"{path.name}.part")
        if len(partial.name.encode()) > _MAX_NAME_BYTES:
            partial = path.with_name(f"{sha256}.part")
        for attempt in range(1, _TRIES + 1):
            try:
                busy = self._continue(locate, path, partial, size, on_bytes)
            except httpx.TransportError:
                _pause(attempt)
                continue
            if busy is not None:
                if attempt == _TRIES:
                    raise busy
                _pause(attempt)
                continue
            if sha256_of(partial) == sha256:
                partial.replace(path)
                return
            # The beginning was another file's (results deleted and made anew): start over.
            on_bytes(-partial.stat().st_size)
            partial.unlink()
        raise StorageError(f"{path.name} did not come whole in {_TRIES} tries; try again later")

    def _continue(
        self, locate: Callable[[], str], path: Path, partial: Path, size: int, on_bytes: OnBytes
    ) -> StorageError | None:
        """Fetch what is lacking; return what a store said that is busy and may be asked again."""
        have = partial.stat().st_size if partial.is_file() else 0
        if have >= size > 0:
            on_bytes(have)
            return None
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        counted = 0
        try:
            with self._store.stream("GET", locate(), headers=headers) as answer:
                if not answer.is_success:
                    answer.read()
                    refused = store_refused(path.name, answer)
                    if answer.status_code in _RETRY_STATUSES:
                        return refused
                    raise refused
                # A store that does not know ranges sends all of it.
                mode = "ab" if answer.status_code == 206 else "wb"
                counted = have if mode == "ab" else 0
                on_bytes(counted)
                with partial.open(mode) as target:
                    for chunk in answer.iter_bytes(_CHUNK):
                        target.write(chunk)
                        counted += len(chunk)
                        on_bytes(len(chunk))
        except httpx.TransportError:
            on_bytes(-counted)  # what arrived counts when it goes on
            raise
        return None


class _FileSlice:
    """A part of a file as a request's body; it counts what was sent."""

    def __init__(
        self,
        path: Path,
        start: int,
        length: int,
        on_bytes: OnBytes,
        given_up: threading.Event | None = None,
    ) -> None:
        self.path = path
        self._start = start
        self.length = length
        self._on_bytes = on_bytes
        self._given_up = given_up
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._start)
            while self._sent < self.length:
                if self._given_up is not None and self._given_up.is_set():
                    raise StorageError(f"{self.path} was given up while it was sent")
                chunk = file.read(min(_CHUNK, self.length - self._sent))
                if not chunk:
                    raise StorageError(f"{self.path} became shorter while it was sent")
                yield chunk
                self._sent += len(chunk)
                self._on_bytes(len(chunk))

    def take_back(self) -> None:
        """Begin the part anew, and count its bytes back."""
        self._on_bytes(-self._sent)
        self._sent = 0


def is_whole(path: Path, size: int, sha256: str) -> bool:
    """Tell whether a file of this size and content is there."""
    return path.is_file() and path.stat().st_size == size and sha256_of(path) == sha256


def _pause(attempt: int) -> None:
    if attempt < _TRIES:
        time.sleep(min(0.25 * 2**attempt, 8.0))


def store_refused(name: str, answer: httpx.Response) -> StorageError:
    """Return the error that says why the store refused a file, as it said itself."""
    text = answer.text
    reason = f"status {answer.status_code}"
    for tag in ("Code", "Message"):
        if f"<{tag}>" in text:
            reason += f", {text.partition(f'<{tag}>')[2].partition(f'</{tag}>')[0]}"
    return StorageError(f"the object store refused {name}: {reason}")
