"""Who stands in the way: callers by the dozen, before a store that hangs; forms of gigabytes;
connections that say nothing; bodies that are dear to read. Whoever means well is answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import pytest

from posedrop.descriptors import raise_limit
from tests.support.handlers_process import Handlers, handlers, hanging_store, swallowing_store

MIB = 2**20


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handlers]:
    """Handlers whose store takes connections and never answers."""
    with hanging_store() as store, handlers(tmp_path_factory.mktemp("hanging"), store) as found:
        yield found


@pytest.fixture(scope="module")
def swallowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handlers]:
    """Handlers whose store takes everything, slowly."""
    with swallowing_store(0.1) as store, handlers(tmp_path_factory.mktemp("sink"), store) as found:
        yield found


def event(key: str) -> bytes:
    described = {"key": key, "size": 1, "eTag": "0" * 32, "sequencer": key}
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "videos"}, "object": described},
    }
    return json.dumps({"Records": [record]}).encode()


def test_a_store_that_hangs_holds_up_no_events(hanging: Handlers) -> None:
    """While 60 callers wait for the store: events, health and what the index knows are answered.

    Those who wait are told 503 before they give up themselves, and a second reconcile 409 at once.
    """
    with ThreadPoolExecutor(62) as callers:
        waiting: list[Future[httpx.Response]] = [
            callers.submit(hanging.ask, "GET", "/models", timeout=120) for _ in range(60)
        ]
        callers.submit(hanging.ask, "POST", "/reconcile", timeout=4)
        time.sleep(1)
        assert hanging.post_event(event("a.mp4")).status_code == 204
        for path in ("/healthz", "/metrics", "/files", "/analyses", "/rules"):
            assert hanging.ask("GET", path).status_code == 200, path
        second = hanging.ask("POST", "/reconcile")
        assert (second.status_code, second.json()["error"]["code"]) == (409, "busy")
        answers = [each.result() for each in waiting]
    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["Retry-After"] for answer in answers)


def form_of(size: int, boundary: str = "B") -> Iterator[bytes]:
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '.encode()
    yield b'filename="a.mp4"\r\n\r\n'
    for _ in range(size // MIB):
        yield bytes(MIB)
    yield f"\r\n--{boundary}--\r\n".encode()


def test_forms_take_little_memory_and_so_many_at_a_time(swallowing: Handlers) -> None:
    """Two films by form cost some tens of MB each, however large; too many forms are told 503."""
    before, most, stop = swallowing.rss(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.02):
            most = max(most, swallowing.rss())

    def post(size: int) -> httpx.Response:
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        body = form_of(size)
        return swallowing.ask("POST", "/upload", content=body, headers=headers, timeout=120)

    with ThreadPoolExecutor(40) as callers:
        callers.submit(watch)
        large = [callers.submit(post, 200 * MIB) for _ in range(2)]
        assert [each.result().status_code for each in large] == [201, 201]
        print(f"two forms took {(most - before) / MIB:.0f} MiB")
        stop.set()
        assert most - before < 100 * MIB
        small = [callers.submit(post, MIB) for _ in range(30)]
        answers = [each.result() for each in small]
    assert {answer.status_code for answer in answers} == {201, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.headers["Retry-After"] for answer in refused)
    assert post(MIB).status_code == 201


def test_connections_that_say_nothing_leave_room(swallowing: Handlers) -> None:
    """1,500 silent ones, and as many that drip a head: the next caller is answered all the same."""
    with ExitStack() as stack:
        for number in range(min(3000, raise_limit() - 500)):
            connection = socket.socket()
            stack.enter_context(connection)
            connection.settimeout(5)
            connection.connect(("127.0.0.1", swallowing.port))
            if number % 2:
                with suppress(OSError):
                    connection.sendall(b"GET / HT")
        for _ in range(3):
            # By a connection of its own: those that are open have their place already.
            with httpx.Client(base_url=swallowing.client.base_url) as fresh:
                newcomer = replace(swallowing, client=fresh)
                assert newcomer.ask("GET", "/files").status_code == 200
                assert newcomer.post_event(event("b.mp4")).status_code == 204
