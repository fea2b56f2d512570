"""Forms as they come from the network: cut off, too large, malformed, many at once."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import anyio
import anyio.to_thread
import httpx
import pytest

from handlers.app import create_app
from handlers.door.form import FormUpload
from posedrop.buckets.storage import Storage
from posedrop.settings import Settings
from posedrop.transport import queue
from tests.support.serving import serving

MOST = 300_000
FORM = "multipart/form-data; boundary=B"
END = b"--B--\r\n"


def part(disposition: bytes, data: bytes = b"film") -> bytes:
    return b"--B\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + data + b"\r\n"


FILE = b'name="file"; filename="a.mp4"'


@pytest.fixture
def storage(settings: Settings, bucket: str) -> Storage:
    storage = Storage(settings)
    storage.create_bucket(bucket)
    return storage


@pytest.fixture
def api(settings: Settings, storage: Storage, bucket: str) -> Iterator[httpx.Client]:
    """The handlers, taking small films only."""
    del storage
    small = {"max_video_bytes": MOST, "videos_bucket": bucket}
    app = create_app(settings.model_copy(update=small), queue.connect("stub://"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def post(api: httpx.Client, *body: bytes, form: str = FORM) -> httpx.Response:
    """Send a form in chunks, so that nobody knows how long it is."""
    return api.post("/upload", content=iter(body), headers={"Content-Type": form})


def test_a_form_puts_one_file(api: httpx.Client, storage: Storage, bucket: str) -> None:
    body = part(FILE, bytes(MOST)) + END
    answer = post(api, *(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert answer.status_code == 201, answer.text
    (stored,) = storage.objects(bucket)
    assert (stored.key, stored.size) == (f"uploads/{answer.json()['file_id']}/a.mp4", MOST)


@pytest.mark.parametrize(
    ("form", "body", "says"),
    [
        (FORM, part(FILE), "ends within its file"),
        (FORM, part(FILE, bytes(MOST + 1)) + END, "larger than"),
        (FORM, part(FILE) + part(FILE) + END, "one file"),
        (FORM, part(FILE) + part(b'name="analysis"') + END, "before the file"),
        (FORM, part(b'name="file"; filename*1*=; filename*=a') + END, "Content-Disposition"),
        (FORM, b"".join(part(b'name="f%d"' % n) for n in range(40)) + part(FILE) + END, "fields"),
        (FORM, part(b'name="f"', bytes(70_000)) + part(FILE) + END, "too long"),
        (FORM, b"", "no file"),
        (FORM, b"\0" * 100, "can't be read"),
        (f"{FORM}{'x' * 300}", part(FILE) + END, "can't be read"),
        ("multipart/form-data", part(FILE) + END, "a form with a file"),
    ],
)
def test_a_form_that_is_wrong_is_told_so_and_leaves_nothing(
    api: httpx.Client, storage: Storage, bucket: str, form: str, body: bytes, says: str
) -> None:
    """422, whatever is wrong with it; no half a file in the bucket."""
    answer = post(api, body, form=form)
    assert answer.status_code == 422, answer.text
    assert says in answer.json()["error"]["message"]
    kept = [found.size for found in storage.objects(bucket)]
    # A second part is seen when the first is in the bucket already: whole, and nothing to hide.
    assert kept in ([], [len(b"film")]), kept


@pytest.mark.parametrize(
    ("length", "expect", "body"),
    [
        # Before anything is sent,
        (MOST + 2**21, b"Expect: 100-continue\r\n", b""),
        # and once the field before the file is there.
        (MOST, b"", part(b'name="analysis"', b"nonsense") + part(FILE, bytes(1000))[:-2]),
    ],
)
def test_a_refusal_does_not_wait_for_the_film(
    api: httpx.Client, length: int, expect: bytes, body: bytes
) -> None:
    """Too large, or a misspelt analysis: said before the rest of the file is sent."""
    head = (
        b"POST /upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: " + FORM.encode() + b"\r\n"
        b"Content-Length: " + str(length).encode() + b"\r\n" + expect + b"\r\n"
    )
    port = api.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head + body)
        # Whether the sink has given up is seen with the next chunk of the film.
        while body and not _readable(connection):
            connection.sendall(b"more")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 422")


def _readable(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(30)


def test_forms_that_wait_for_a_slow_store_hold_nobody_else_up() -> None:
    """More of them than there are shared threads, and each goes on when the store does."""
    let_go = threading.Event()
    taken: list[int] = []

    def sink(filename: str, fields: dict[str, str], stream: io.RawIOBase) -> None:
        del filename, fields
        let_go.wait(60)
        taken.append(len(stream.readall() or b""))

    async def body() -> AsyncIterator[bytes]:
        yield part(FILE)[:-2]
        for _ in range(40):
            yield bytes(2000)  # in all more than a pipe holds
        yield b"\r\n" + END

    async def everything() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                form = FormUpload(FORM, sink, MOST)
                group.start_soon(partial(form.receive, body()))
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(threading.get_ident)
            let_go.set()

    anyio.run(everything)
    assert taken == [80_004] * 50


def test_a_client_that_goes_away_blocks_no_other() -> None:
    """The end of a broken upload is waited for elsewhere than where all requests are served."""
    let_go = threading.Event()
    was_let_go: list[bool] = []

    def sink(filename: str, fields: dict[str, str], stream: io.RawIOBase) -> None:
        del filename, fields
        was_let_go.append(let_go.wait(20))
        stream.readall()

    async def body() -> AsyncIterator[bytes]:
        yield part(FILE)[:-2]
        for _ in range(15):
            yield bytes(100)
        raise ConnectionError("gone")

    async def everything() -> None:
        broken: list[BaseException] = []

        async def receive() -> None:
            try:
                await FormUpload(FORM, sink, MOST).receive(body())
            except ConnectionError as error:
                broken.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            # Reached only if the loop still turns.
            let_go.set()
        assert [str(error) for error in broken] == ["gone"]
        assert was_let_go == [True]

    anyio.run(everything)
