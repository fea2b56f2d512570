"""The handlers as a process of their own, before stores that hang, or swallow what is sent."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.samples import REPOSITORY
from tests.support.tools import find_free_port

EVENTS_TOKEN, API_TOKEN = "events-token", "api-token"
_START_SECONDS = 120.0


@dataclass
class Handlers:
    """A handlers process that runs as the image runs it."""

    port: int
    pid: int
    client: httpx.Client

    def rss(self) -> int:
        """Return the memory that it has, bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def ask(
        self, method: str, path: str, *, timeout: float = 5.0, **request: Any
    ) -> httpx.Response:
        """Ask the API with its token."""
        headers = {"Authorization": f"Bearer {API_TOKEN}", **request.pop("headers", {})}
        return self.client.request(method, path, headers=headers, timeout=timeout, **request)

    def post_event(self, body: bytes, timeout: float = 5.0) -> httpx.Response:
        """Send a notification as a store does."""
        headers = {"Authorization": f"Bearer {EVENTS_TOKEN}"}
        return self.client.post("/events", content=body, headers=headers, timeout=timeout)


@contextmanager
def handlers(folder: Path, s3_endpoint: str) -> Iterator[Handlers]:
    """Run the handlers, as infra/Dockerfile.handlers says but on loopback, until the block ends."""
    port = find_free_port()
    image = (REPOSITORY / "infra/Dockerfile.handlers").read_text()
    said = re.findall(r'"([^"]*)"', image.partition("\nCMD ")[2])
    # As few descriptors as many systems begin with.
    few = ["sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh"]
    command = [*few, sys.executable, "-m", *said]
    command[command.index("--host") + 1] = "127.0.0.1"
    command[command.index("--port") + 1] = str(port)
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "POSEDROP_DATA_DIR": str(folder),
        "POSEDROP_S3_ENDPOINT": s3_endpoint,
        "POSEDROP_S3_ACCESS_KEY": "test",
        "POSEDROP_S3_SECRET_KEY": "test-secret",
        "POSEDROP_EVENTS_TOKEN": EVENTS_TOKEN,
        "POSEDROP_API_TOKEN": API_TOKEN,
    }
    with (folder / "handlers.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log)
    limits = httpx.Limits(max_connections=None)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=limits)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(httpx.TransportError):
                if client.get("/healthz", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "handlers.log").read_text())
            time.sleep(0.1)
        yield Handlers(port, process.pid, client)
    finally:
        client.close()
        process.kill()
        process.wait()


@contextmanager
def hanging_store() -> Iterator[str]:
    """Take connections and never answer; the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        taken: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in taken:
                connection.close()


class _Sink(BaseHTTPRequestHandler):
    """As much of S3 as an upload needs: parts are counted and forgotten; nothing is there."""

    protocol_version = "HTTP/1.1"
    part_seconds = 0.3

    def do_PUT(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        time.sleep(self.part_seconds)
        self._answer(200, b"", etag='"0123456789abcdef0123456789abcdef"')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = "InitiateMultipartUploadResult" if self.path.endswith("?uploads") else "Complete"
        self._answer(200, f"<{name}><UploadId>u</UploadId><ETag>e</ETag></{name}>".encode())

    def do_GET(self) -> None:
        self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def do_DELETE(self) -> None:
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def swallowing_store(part_seconds: float) -> Iterator[str]:
    """Take whatever is put and keep nothing, each part in so many seconds; the address."""
    handler = type("Sink", (_Sink,), {"part_seconds": part_seconds})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
