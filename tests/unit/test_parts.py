"""An upload in parts whose parts the store drops while they are on their way."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed, for patience; its pauses take no time, and are counted."""
    now = [1000.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])

    def wait(_: threading.Event, seconds: float | None = None) -> bool:
        now[0] += seconds or 0.0
        return False

    event = type("Event", (threading.Event,), {"wait": wait})
    monkeypatch.setattr(parts, "threading", SimpleNamespace(Event=event))
    return now


REFUSED = StorageError("it is so")
AWAY = StorageError("nothing answers", code="unreachable")


def waits_for(patience: parts.Patience, error: StorageError, clock: list[float]) -> float:
    """Return for how many seconds the same error is put up with."""
    began = clock[0]
    for attempt in range(2000):
        try:
            patience.pause(attempt, error)
        except StorageError:
            return clock[0] - began
    raise AssertionError("it has no end")


@pytest.mark.parametrize(
    ("error", "there", "known", "least", "most"),
    [
        (REFUSED, True, True, 20, 40),
        (REFUSED, False, True, 300, 320),
        (AWAY, True, True, 300, 320),
        (AWAY, False, False, 0, 1),
    ],
    ids=["refused alone", "store away", "unreachable", "wrong address"],
)
def test_patience_is_as_long_as_there_is_hope(
    clock: list[float], error: StorageError, there: bool, known: bool, least: float, most: float
) -> None:
    """Counted from the first failure in a row: before that a part may have gone up for minutes."""
    patience = parts.Patience(300, lambda: there, lambda: known)
    clock[0] += 500
    if known:
        patience.pause(0, error)
        patience.succeeded()
        clock[0] += 500
    assert least <= waits_for(patience, error, clock) <= most


@pytest.mark.usefixtures("clock")
def test_to_sign_a_part_again_and_again_is_no_success(tmp_path: Path) -> None:
    """The store can't be reached from here, though the API can."""
    path = tmp_path / "a.mp4"
    path.write_bytes(FILM)
    wanted = PartsRequest(path=path.name, size=len(FILM), to="day1")

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no way there", request=request)

    line = Transfers(httpx.Timeout(5.0), httpx.MockTransport(broken))
    with pytest.raises(StorageError, match="can't be reached"):
        parts.send(Api(0), line, path, wanted, lambda _: None, parts.Patience(300))
