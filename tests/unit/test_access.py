"""Who may call, asked with headers as they come from the network: raw, of a real uvicorn."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from handlers.door.access import Guard
from posedrop.settings import load

TOKEN = "token-of-the-api"


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200; read the body at /read, and nowhere else."""
    while scope["path"] == "/read" and (await receive()).get("more_body"):
        pass
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body"})


@contextmanager
def guarded(folder: Path, token: str | None) -> Iterator[int]:
    """Run it in a thread; yield its port."""
    guard = Guard(inside, load(folder, {"api_token": token}))
    server = uvicorn.Server(uvicorn.Config(guard, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def with_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with guarded(tmp_path_factory.mktemp("with"), TOKEN) as port:
        yield port


@pytest.fixture(scope="module")
def without_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with guarded(tmp_path_factory.mktemp("without"), None) as port:
        yield port


def send(port: int, *headers: bytes, first: bytes = b"POST / HTTP/1.1") -> bytes:
    """Send a request as it is, and no body; return all that comes until the server is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"\r\n".join((first, *headers, b"", b"")))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer


def status(port: int, *headers: bytes) -> int:
    return int(send(port, *headers).split(b" ", 2)[1])


def basic(text: bytes) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(text)


LOCAL = b"Host: 127.0.0.1"


def test_the_token_opens_as_bearer_and_as_password(with_token: int) -> None:
    assert status(with_token, LOCAL, b"Authorization: Bearer " + TOKEN.encode()) == 200
    assert status(with_token, b"Host: lab.example", basic(b"anybody:" + TOKEN.encode())) == 200


@pytest.mark.parametrize(
    "header",
    [
        b"X: y",
        b"Authorization:",
        b"Authorization: Bearer",
        b"Authorization: Bearer \xe9",
        b"Authorization: Basic",
        b"Authorization: Basic \xe9",
        b"Authorization: Basic !",
        b"Authorization: Basic QQ",
        basic(b"\xff\xfe"),
        basic(TOKEN.encode()),
        basic(b"anybody:" + TOKEN.encode() + b"\0"),
    ],
)
def test_whatever_else_is_sent_is_no_token(with_token: int, header: bytes) -> None:
    """Neither lets in nor breaks the server: 401."""
    assert status(with_token, LOCAL, header) == 401


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ([b"User-Agent: Mozilla/5.0", b"Accept: text/html,*/*;q=0.8"], b"Basic"),
        ([b"User-Agent: Mozilla/5.0", b"Accept: */*"], b"Bearer"),
        ([b"User-Agent: Mozilla/5.0"], b"Bearer"),
        ([b"User-Agent: curl/8.7.1", b"Accept: */*"], b"Basic"),
        ([b"Authorization: Bearer old"], b"Bearer"),
        ([], b"Basic"),
    ],
)
def test_a_browser_asks_a_person_for_the_token_where_a_page_is_opened_alone(
    with_token: int, headers: list[bytes], scheme: bytes
) -> None:
    """Not for each request of a page's script: the page has words of its own for that."""
    answer = send(with_token, *headers, first=b"GET /runs HTTP/1.1").lower()
    assert b" 401 " in answer
    assert b"www-authenticate: " + scheme.lower() in answer


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        (b"127.0.0.1:80", None, 200),
        (b"localhost", b"http://localhost", 200),
        (b"[::1]:80", b"http://[::1]:80", 200),
        (b"rebound.example", None, 403),
        (b"testserver", None, 403),
        (b"LOCALHOST", None, 200),
        (b"a{b.rebound.example", None, 403),
        (b"", None, 403),
        (b"[", None, 403),
        (b"127.0.0.1.example", None, 403),
        (b"127.0.0.1@rebound.example", None, 403),
        (b"127.0.0.1", b"null", 403),
        (b"127.0.0.1", b"http://[", 403),
        (b"127.0.0.1", b"http://127.0.0.1:81", 403),
        (b"127.0.0.1", b"https://site.example", 403),
    ],
)
def test_without_a_token_only_this_machine_and_its_own_page_may_call(
    without_token: int, host: bytes, origin: bytes | None, expected: int
) -> None:
    headers = [b"Host: " + host] + ([b"Origin: " + origin] if origin is not None else [])
    assert status(without_token, *headers) == expected


@pytest.mark.parametrize(
    ("path", "token", "begins", "closes"),
    [
        (b"/", True, b"HTTP/1.1 200", True),
        (b"/", False, b"HTTP/1.1 401", True),
        (b"/read", True, b"HTTP/1.1 100 Continue", False),
    ],
)
def test_a_body_that_nobody_asked_for_ends_its_connection(
    with_token: int, path: bytes, token: bool, begins: bytes, closes: bool
) -> None:
    """A proxy would send the next request, somebody else's, where that body is still expected."""
    bearer = b"Authorization: Bearer " + (TOKEN.encode() if token else b"")
    held_back = (b"Content-Length: 5", b"Expect: 100-Continue")
    request = b"\r\n".join((b"PUT " + path + b" HTTP/1.1", LOCAL, bearer, *held_back, b"", b""))
    with socket.create_connection(("127.0.0.1", with_token), timeout=10) as connection:
        connection.sendall(request)
        answer = connection.recv(1 << 16)
        assert answer.startswith(begins)
        if closes:
            while chunk := connection.recv(1 << 16):
                answer += chunk
            assert b"connection: close" in answer.lower()
            return
        connection.sendall(b"12345GET / HTTP/1.1\r\n" + LOCAL + b"\r\n" + bearer + b"\r\n\r\n")
        while answer.count(b"HTTP/1.1 200") < 2:
            chunk = connection.recv(1 << 16)
            assert chunk, answer
            answer += chunk
