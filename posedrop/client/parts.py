"""A film sent in parts, gone on with where an earlier try was interrupted, each part checked.

Nothing is kept on this machine: which parts are there, the store says, and this file's own are
compared with them. So whoever was killed goes on by doing the same again.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from zlib import crc32

from posedrop.api.uploads import (
    CompleteRequest,
    PartsRequest,
    PartsTicket,
    SignAnswer,
    SignRequest,
    Uploaded,
    WantedPart,
)
from posedrop.buckets.parts import composite, composite_etag, part_length, whole
from posedrop.client.transfers import OnBytes, Transfers, store_refused
from posedrop.errors import PosedropError, StorageError

T = TypeVar("T")

#: So many parts are on their way at a time.
AT_ONCE = 4
_CHUNK = 1 << 20
#: So many rounds an upload has: it begins anew where the store has other parts than were sent, or
#: has given it up meanwhile.
_ROUNDS = 3
#: Seconds between two tries: doubled each time, up to the second figure.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
#: A store that is there and takes nothing of a film for so many seconds refuses this film alone.
_DOUBT_SECONDS = 20.0
#: Codes of errors after which the same may be asked again.
_AWAY = frozenset({"unreachable", "storage", "busy", "internal"})
_AGAIN = frozenset({403, 408, 429, 500, 502, 503, 504})
#: MiB of the parts in which S3 tools send: aws, rclone, s3cmd, mc, and as people set them. What
#: came in others can't be compared.
_USUAL_PARTS_MIB = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)
#: What a store says of a part that is not what its checksum says: bytes changed on the way.
_CHANGED_ON_THE_WAY = ("BadDigest", "XAmzContentChecksumMismatch")


class Server(Protocol):
    """The API's calls for an upload in parts."""

    def begin_parts(self, wanted: PartsRequest) -> PartsTicket:
        """Begin, or go on."""

    def sign_parts(self, wanted: SignRequest) -> SignAnswer:
        """Return presigned PUTs."""

    def complete_parts(self, wanted: CompleteRequest) -> Uploaded:
        """Make the parts an object."""


class Patience:
    """For how long all may fail before it is given up, in seconds; threads share it.

    ``has_store`` tells whether a store that takes nothing of this film is there for others, and
    ``is_known`` whether the server has answered at all: a wrong address is not waited for.
    """

    def __init__(
        self,
        seconds: float,
        has_store: Callable[[], bool] = lambda: False,
        is_known: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin with nothing that has failed."""
        self._seconds = seconds
        self._has_store = has_store
        self._is_known = is_known
        self._fails_since: float | None = None
        self._refused_since: float | None = None
        self.given_up = threading.Event()

    def succeeded(self) -> None:
        """Begin to count anew with the next failure."""
        self._fails_since = self._refused_since = None

    def pause(self, attempt: int, error: PosedropError) -> None:
        """Wait before try ``attempt`` + 1.

        Raises:
            PosedropError: ``error``, where all has failed for too long.
        """
        now = time.monotonic()
        since = self._fails_since = self._fails_since or now
        limit = self._seconds if self._is_known() else 0.0
        if now - since > limit or self._is_its_own(error, now):
            raise error
        doublings = min(attempt, 6)  # beyond, the longest pause counts
        if self.given_up.wait(min(_FIRST_PAUSE * 2**doublings, _LONGEST_PAUSE)):
            raise error

    def _is_its_own(self, error: PosedropError, now: float) -> bool:
        """Tell whether the store was there for a while, and has refused this film all the time."""
        if error.code != "storage" or not self._has_store():
            self._refused_since = None
            return False
        since = self._refused_since = self._refused_since or now
        return now - since > _DOUBT_SECONDS


def send(
    server: Server,
    store: Transfers,
    path: Path,
    wanted: PartsRequest,
    on_bytes: OnBytes,
    patience: Patience,
    on_begun: Callable[[PartsTicket], None] = lambda _: None,
) -> PartsTicket:
    """Send a film; return at once if it is there.

    Args:
        server: the API.
        store: takes the parts.
        path: of the film.
        wanted: where it goes, and its size as it was when it was looked at.
        on_bytes: called with the bytes that went, or were found there, since the last call.
        patience: how long the network may be away.
        on_begun: called with each upload that is begun, or gone on with.

    Raises:
        PosedropError: another film is under this name, the file changes while it is sent, or the
            network was away for too long; what was sent stays, and the next try goes on.
    """
    before = _seen(path)
    if before[0] != wanted.size:
        raise _changes(path)
    counted = 0

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        on_bytes(number)

    for _ in range(_ROUNDS):
        ticket = until_there(patience, partial(server.begin_parts, wanted))
        if ticket.state == "exists":
            _compare(path, ticket)
            count(wanted.size - counted)
            return ticket
        on_begun(ticket)
        # Without a folder it is the same film then, if it begins anew.
        wanted = wanted.model_copy(update={"file_id": ticket.file_id})
        try:
            crcs = _Sending(server, store, path, ticket, count, patience).send()
            if _seen(path) != before:
                raise _changes(path)
            asked = CompleteRequest(**_of(ticket), crc32=crcs)
            until_there(patience, partial(server.complete_parts, asked))
        except PosedropError as error:
            if error.code not in {"parts_missing", "parts_differ", "no_upload"}:
                raise
            last = error
            count(-counted)
            # Its threads have ended; those of the next round may wait again.
            patience.given_up.clear()
            continue
        return ticket
    raise last


def _seen(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _changes(path: Path) -> StorageError:
    return StorageError(
        f"{path.name} changes while it is sent: is it still being recorded?", code="changes"
    )


def _of(ticket: PartsTicket) -> dict[str, Any]:
    return {
        "key": ticket.key,
        "upload_id": ticket.upload_id,
        "size": ticket.size,
        "part_bytes": ticket.part_bytes,
    }


def until_there(patience: Patience, ask: Callable[[], T], *, counts: bool = True) -> T:
    """Return an answer of the API, asked for again while it or its store is away.

    ``counts``: whether to have it is what is wanted, and no mere step on the way there.

    Raises:
        PosedropError: it was refused, or nothing answered for too long.
    """
    attempt = 0
    while True:
        try:
            answer = ask()
        except PosedropError as error:
            if error.code not in _AWAY:
                raise
            patience.pause(attempt, error)
            attempt += 1
        else:
            if counts:
                patience.succeeded()
            return answer


def _compare(path: Path, ticket: PartsTicket) -> None:
    """Compare a film with the object of its size that is there, by what its store tells of that.

    Whoever is told that a film is there may delete their own: so it has to be known.

    Raises:
        PosedropError: code ``exists``: it is another one, or nobody can tell.
    """
    told = ticket.crc32 or ticket.etag or ""
    says = told or "nothing, or posedrop there is older than here"
    sizes = _sizes_of_parts(told, ticket)
    if any(_told_of(path, ticket, size) == told for size in sizes):
        return
    other = "another folder or name, or delete that one first"
    # An ETag may be the MD5 of what a store has encrypted, and others' parts of any size.
    if ticket.crc32 and sizes and sizes[0] in {ticket.part_bytes, ticket.size}:
        raise PosedropError(
            f"{ticket.key} is there, as large as {path.name}, with other content; nothing is "
            f"replaced: choose {other}",
            code="exists",
        )
    raise PosedropError(
        f"another object is there as {ticket.key}, as large as {path.name}, and whether it is the "
        f"same film can't be told from what its store says ({says}); nothing is sent "
        f"or replaced: compare them yourself, and if they differ, choose {other}",
        code="exists",
    )


def _sizes_of_parts(told: str, ticket: PartsTicket) -> list[int]:
    """Return of which parts, bytes, an object may be whose checksum or ETag is this."""
    _, dash, number = told.rpartition("-")
    if not dash or number == "1":
        return [ticket.size] if told else []
    sizes = dict.fromkeys([ticket.part_bytes, *(mib << 20 for mib in _USUAL_PARTS_MIB)])
    return [each for each in sizes if each > 0 and str(-(-ticket.size // each)) == number]


def _told_of(path: Path, ticket: PartsTicket, part_bytes: int) -> str:
    """Return what the store, which tells this of the other, would tell of a file in such parts."""
    cut = ticket.model_copy(update={"part_bytes": part_bytes})
    count = -(-ticket.size // part_bytes)
    sums = [_digests(path, cut, number) for number in range(1, count + 1)]
    crcs, md5s = [crc for crc, _ in sums], [md5 for _, md5 in sums]
    if ticket.crc32:
        return composite(crcs) if "-" in ticket.crc32 else whole(crcs[0])
    return composite_etag(md5s) if "-" in (ticket.etag or "") else md5s[0]


def _digests(path: Path, ticket: PartsTicket, number: int) -> tuple[str, str]:
    """Return the CRC32 and the MD5 of a part of a file, hexadecimal."""
    left = part_length(number, ticket.size, ticket.part_bytes)
    crc, md5 = 0, hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        file.seek((number - 1) * ticket.part_bytes)
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise _changes(path)
            crc = crc32(chunk, crc)
            md5.update(chunk)
            left -= len(chunk)
    return f"{crc:08x}", md5.hexdigest()


class _Sending:
    """The parts of one film on their way."""

    def __init__(
        self,
        server: Server,
        store: Transfers,
        path: Path,
        ticket: PartsTicket,
        on_bytes: OnBytes,
        patience: Patience,
    ) -> None:
        self._server = server
        self._store = store
        self._path = path
        self._ticket = ticket
        self._on_bytes = on_bytes
        self._patience = patience
        self._there = {part.number: part for part in ticket.parts}

    def send(self) -> list[str]:
        """Send the parts that the store lacks, or has otherwise; return the CRC32 of all."""
        count = -(-self._ticket.size // self._ticket.part_bytes)
        with ThreadPoolExecutor(AT_ONCE, "part") as threads:
            parts = [threads.submit(self._send, number) for number in range(1, count + 1)]
            try:
                done, _ = wait(parts, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()  # raises what went wrong
                return [each.result() for each in parts]
            except BaseException:
                self._patience.given_up.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(self, number: int) -> str:
        attempt = 0
        while True:
            crc, md5 = _digests(self._path, self._ticket, number)
            if attempt == 0 and self._is_there(number, crc, md5):
                self._on_bytes(part_length(number, self._ticket.size, self._ticket.part_bytes))
                return crc
            error = self._put(number, crc)
            if error is None:
                self._patience.succeeded()
                return crc
            self._patience.pause(attempt, error)
            attempt += 1

    def _is_there(self, number: int, crc: str, md5: str) -> bool:
        part = self._there.get(number)
        # Where the store tells no checksum, its ETag of a part is the MD5, or else nobody knows.
        return part is not None and (part.crc32 == crc or part.etag == md5)

    def _put(self, number: int, crc: str) -> StorageError | None:
        """Put a part, signed now; return why it is to be tried again, None if it is there."""
        part = WantedPart(number=number, crc32=crc)
        asked = SignRequest(**_of(self._ticket), parts=[part])
        sign = partial(self._server.sign_parts, asked)
        signed = until_there(self._patience, sign, counts=False).items[0]
        start = (number - 1) * self._ticket.part_bytes
        length = part_length(number, self._ticket.size, self._ticket.part_bytes)
        answer = self._store.try_put_slice(
            self._path,
            start,
            length,
            signed.url,
            signed.headers,
            self._on_bytes,
            self._patience.given_up,
        )
        if answer is None:
            why = f"the object store can't be reached for {self._path.name}"
            return StorageError(why, code="unreachable")
        if answer.is_success:
            return None
        error = store_refused(self._path.name, answer)
        if answer.status_code in _AGAIN or any(x in answer.text for x in _CHANGED_ON_THE_WAY):
            return error
        if answer.status_code == 404:  # given up meanwhile: it begins anew
            raise StorageError(error.message, code="no_upload")
        raise error
