"""Connections that hold out: to the API on a real uvicorn, and to the relay before the store."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from handlers.door import connections
from posedrop.embedded import relay as relay_module
from posedrop.embedded.relay import Relay
from tests.support.serving import serving

_LARGE = 64 * 2**20


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The API's server with short patience and room for 20, before what reads bodies slowly."""
    for name, seconds in (("HEAD", 0.6), ("QUIET", 0.6), ("REST", 0.6), ("_LOOK", 0.1)):
        monkeypatch.setattr(connections, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(connections, "most_connections", lambda: 20)
    app = FastAPI()

    @app.post("/slow")
    async def slow(request: Request) -> dict[str, int]:
        got = 0
        async for chunk in request.stream():
            got += len(chunk)
        return {"got": got}

    @app.post("/early")
    async def early() -> dict[str, str]:
        return {"answer": "before the body"}

    @app.get("/works")
    def works() -> str:
        time.sleep(1.5)  # longer than any patience
        return "done"

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(_LARGE))

    with serving(app) as url:
        yield int(url.rpartition(":")[2])


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.settimeout(0.05)
    return connection


def is_cut(connection: socket.socket) -> bool:
    """Tell whether the other side has ended a connection; what it says is read and dropped."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


POST = b"POST /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n"
#: What somebody says at once, and then again and again.
HOLD_OUT = {
    "silent": (b"", b""),
    "half a head": (b"GET / HTTP/1.1\r\nHost: 1", b""),
    "a head by the byte": (b"GET / HTTP/1.1\r\nX: ", b"x"),
    "a head by the line": (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
    "blank lines": (b"", b"\r\n"),
    "a head without an end": (b"GET / HTTP/1.1\r\nX: ", b"x" * 20_000),
    "headers without an end": (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 5000),
    "a path without an end": (b"GET /", b"x" * 20_000),
    "no body": (POST + b"Content-Length: 5\r\n\r\n", b""),
    "a body by the byte": (POST + b"Content-Length: 99999\r\n\r\n", b"x"),
    "half a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nabc", b""),
    "chunks of one byte": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a chunk's length without an end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;",
        b"x" * 20_000,
    ),
    "trailers without an end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n" * 4000,
    ),
    "a second head by the byte": (
        b"GET /no HTTP/1.1\r\nHost: 1\r\n\r\nGET / HTTP/1.1\r\nX: ",
        b"x",
    ),
    "a body that was answered": (
        b"POST /early HTTP/1.1\r\nHost: 1\r\nContent-Length: 99999\r\n\r\n",
        b"x",
    ),
    "an answer that nobody reads": (b"GET /large HTTP/1.1\r\nHost: 1\r\n\r\n", None),
}


@pytest.mark.parametrize("how", HOLD_OUT)
def test_who_holds_out_is_cut_off(port: int, how: str) -> None:
    """Silent, or by drips, or without an end: it is over after the patience for it."""
    begin, again = HOLD_OUT[how]
    with connect(port) as connection:
        connection.sendall(begin)
        deadline = time.monotonic() + 15
        if again is None:
            time.sleep(2)
            again = b""
        while not is_cut(connection):
            assert time.monotonic() < deadline, "still there"
            with suppress(OSError):
                connection.sendall(again)


def test_who_waits_or_goes_on_is_not_cut_off(port: int) -> None:
    """An answer that takes long, a body that keeps coming, a large answer that is read."""
    url = f"http://127.0.0.1:{port}"

    def body() -> Iterator[bytes]:
        for _ in range(15):
            yield bytes(20_000)
            time.sleep(0.1)

    assert httpx.post(f"{url}/slow", content=body()).json() == {"got": 300_000}
    assert httpx.get(f"{url}/works").json() == "done"
    with httpx.stream("GET", f"{url}/large") as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes()) == _LARGE


def test_who_comes_finds_room(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 connections that hold out, the oldest make room; those who wait for answers stay."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(connections, "QUIET_SECONDS", 60.0)
    with ExitStack() as stack:
        asked = stack.enter_context(connect(port))
        asked.sendall(b"GET /works HTTP/1.1\r\nHost: 1\r\n\r\n")
        held = []
        for number in range(60):
            connection = stack.enter_context(connect(port))
            held.append(connection)
            connection.sendall([b"", b"GET", POST + b"Content-Length: 9\r\n\r\n"][number % 3])
            assert number % 10 or httpx.get(f"http://127.0.0.1:{port}/no").status_code == 404
        assert sum(not is_cut(each) for each in held) <= 20
        asked.settimeout(20)
        assert asked.recv(100).startswith(b"HTTP/1.1 200")


# -- the relay ----


@pytest.fixture
def store() -> Iterator[int]:
    """A server that answers each head with as much as was sent, and says so after a second."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                while connection.recv(1 << 16):
                    time.sleep(0.3)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    taken = listener.accept()[0]
                    threading.Thread(target=serve, args=(taken,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relayed(store: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A relay with short patience and room for 20."""
    monkeypatch.setattr(relay_module, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(relay_module, "QUIET_SECONDS", 1.5)
    monkeypatch.setattr(relay_module, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(relay_module, "MOST", 20)
    relay = Relay("127.0.0.1", 0)
    relay.start(store)
    yield relay.port
    relay.stop()


@pytest.mark.parametrize(
    ("begin", "again"),
    [(b"", b""), (b"GET / HTTP/1.1\r\nX: ", b"x"), (b"GET / HTTP/1.1\r\nHost: 1\r\n\r\n", b"")],
)
def test_the_relay_cuts_off_who_holds_out(relayed: int, begin: bytes, again: bytes) -> None:
    """Who says nothing, or a head by the byte, or nothing more after an answer."""
    with connect(relayed) as connection:
        connection.sendall(begin)
        deadline = time.monotonic() + 15
        while not is_cut(connection):
            assert time.monotonic() < deadline, "still there"
            with suppress(OSError):
                connection.sendall(again)


def test_who_comes_to_the_relay_finds_room(relayed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 that drip within its patience those who say least make room; a request is answered."""
    monkeypatch.setattr(relay_module, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(relay_module, "QUIET_SECONDS", 60.0)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(relayed)) for _ in range(60)]
        stop = threading.Event()
        drip = threading.Thread(target=_drip, args=(held, stop))
        drip.start()
        for _ in range(3):
            answer = httpx.get(f"http://127.0.0.1:{relayed}/", headers={"X": "y" * 500})
            assert answer.text == "ok"
        stop.set()
        drip.join()
        assert sum(not is_cut(each) for each in held) <= 20


def _drip(held: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        for each in held:
            with suppress(OSError):
                each.sendall(b"x")
