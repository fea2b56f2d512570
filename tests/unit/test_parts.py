"""An upload in parts whose parts the store drops while they are on their way."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from zlib import crc32

import httpx
import pytest

from posedrop.api.uploads import (
    CompleteRequest,
    PartsRequest,
    PartsTicket,
    SignAnswer,
    SignedPart,
    SignRequest,
    Uploaded,
)
from posedrop.client import parts
from posedrop.client.transfers import Transfers
from posedrop.errors import StorageError

PART = 5 * 2**20
FILM = b"a" * PART + b"b" * PART + b"c"


class Api:
    """An API and its store, which forgets the first few uploads when their second part comes."""

    def __init__(self, forgets: int) -> None:
        self.forgets = forgets
        self.begun = 0
        self.file_ids: list[str | None] = []
        self.busy = 1
        self.stored: dict[str, bytes] = {}
        self.completed: list[CompleteRequest] = []

    def begin_parts(self, wanted: PartsRequest) -> PartsTicket:
        self.begun += 1
        self.file_ids.append(wanted.file_id)
        return PartsTicket(
            file_id="f",
            bucket="videos",
            key=wanted.path,
            size=wanted.size,
            state="new",
            upload_id=str(self.begun),
            part_bytes=PART,
        )

    def sign_parts(self, wanted: SignRequest) -> SignAnswer:
        items = [
            SignedPart(
                number=part.number,
                url=f"http://store/{wanted.upload_id}/{part.number}",
                headers={},
            )
            for part in wanted.parts
        ]
        return SignAnswer(items=items)

    def complete_parts(self, wanted: CompleteRequest) -> Uploaded:
        self.completed.append(wanted)
        return Uploaded(file_id="f", key=wanted.key, size=wanted.size)

    def store(self, request: httpx.Request) -> httpx.Response:
        data = request.read()
        upload_id, number = request.url.path.strip("/").split("/")
        if int(upload_id) <= self.forgets and number == "2":
            return httpx.Response(404, text="<Error><Code>NoSuchUpload</Code></Error>")
        # Later rounds wait before another try, too.
        if int(upload_id) > 1 and number == "3" and self.busy:
            self.busy -= 1
            return httpx.Response(503)
        self.stored[request.url.path] = data
        return httpx.Response(200)


def send(api: Api, path: Path, counts: list[int]) -> PartsTicket:
    path.write_bytes(FILM)
    store = Transfers(httpx.Timeout(5.0), httpx.MockTransport(api.store))
    wanted = PartsRequest(path=path.name, size=len(FILM), to="day1")
    return parts.send(api, store, path, wanted, counts.append, parts.Patience(30))


def test_an_upload_that_the_store_has_given_up_begins_anew(tmp_path: Path) -> None:
    """All of its parts go again, and its bytes count once."""
    api, counts = Api(forgets=1), list[int]()
    assert send(api, tmp_path / "x.mp4", counts).upload_id == "2"
    assert [api.stored[f"/2/{number}"] for number in (1, 2, 3)] == [
        FILM[:PART],
        FILM[PART : 2 * PART],
        FILM[2 * PART :],
    ]
    assert api.file_ids == [None, "f"]  # the same film, where it has no folder
    (completed,) = api.completed
    assert completed.crc32[2] == f"{crc32(b'c'):08x}"
    assert sum(counts) == len(FILM)


def test_one_that_the_store_always_gives_up_ends(tmp_path: Path) -> None:
    """After a few rounds, with what the store said."""
    api = Api(forgets=99)
    with pytest.raises(StorageError, match="NoSuchUpload"):
        send(api, tmp_path / "x.mp4", [])
    assert 1 < api.begun < 5
    assert not api.completed


def test_parts_on_their_way_end_when_the_upload_is_given_up(tmp_path: Path) -> None:
    """Whoever ends the command, or has one part refused, waits for no others to go up."""
    path, sent = tmp_path / "x.mp4", dict[str, int]()
    path.write_bytes(FILM)
    all_go, patience = threading.Barrier(3), parts.Patience(30)

    class Store(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            number = request.url.path[-1]
            all_go.wait(30)
            if number == "3":
                return httpx.Response(400)
            assert patience.given_up.wait(30)
            assert isinstance(request.stream, httpx.SyncByteStream)
            for chunk in request.stream:
                sent[number] = sent.get(number, 0) + len(chunk)
            return httpx.Response(200)

    wanted = PartsRequest(path=path.name, size=len(FILM), to="day1")
    line = Transfers(httpx.Timeout(5.0), Store())
    with pytest.raises(StorageError, match="400"):
        parts.send(Api(0), line, path, wanted, lambda _: None, patience)
    assert sent == {}


@pytest.mark.parametrize("there", [True, False])
def test_a_film_that_the_store_alone_refuses_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """One of a store that is away is."""
    patience = parts.Patience(300, lambda: there)
    patience.pause(0, StorageError("it is so"))
    later = parts.time.monotonic() + 60
    monkeypatch.setattr(parts.time, "monotonic", lambda: later)
    with pytest.raises(StorageError) if there else nullcontext():
        patience.pause(0, StorageError("it is so"))
