"""What stands between posedrop and its store in the fault tests: bad networks."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.tools import find_free_port, tool

_READY_SECONDS = 120.0


class Toxiproxy:
    """Shopify's toxiproxy before one server: slow, resetting, truncating connections."""

    def __init__(self, folder: Path, upstream_port: int) -> None:
        """Start it and wait until it passes connections on."""
        self.port = find_free_port()
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{find_free_port()}", timeout=10)
        with (folder / "toxiproxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    tool("server"),
                    "-seed",
                    "1",
                    "-host",
                    "127.0.0.1",
                    "-port",
                    str(self._api.base_url.port),
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _READY_SECONDS
        while not self._answers():
            assert time.monotonic() < end, "toxiproxy did not start"
            time.sleep(0.05)
        proxy = {
            "name": "store",
            "listen": f"127.0.0.1:{self.port}",
            "upstream": f"127.0.0.1:{upstream_port}",
        }
        self._api.post("/proxies", json=proxy).raise_for_status()

    def _answers(self) -> bool:
        try:
            return self._api.get("/version").is_success
        except httpx.TransportError:
            return False

    @contextlib.contextmanager
    def toxic(self, kind: str, share: float, stream: str, **attributes: int) -> Iterator[None]:
        """Poison this share of all new connections within the block."""
        body: dict[str, Any] = {
            "name": "toxic",
            "type": kind,
            "stream": stream,
            "toxicity": share,
            "attributes": attributes,
        }
        self._api.post("/proxies/store/toxics", json=body).raise_for_status()
        # Connections that are kept open would never meet it.
        for enabled in (False, True):
            self._api.post("/proxies/store", json={"enabled": enabled}).raise_for_status()
        try:
            yield
        finally:
            self._api.delete("/proxies/store/toxics/toxic").raise_for_status()

    def fails(self, of: int = 40) -> int:
        """Return how many of some requests, each on a connection of its own, come to nothing."""
        failed = 0
        for _ in range(of):
            try:
                # Larger than what a truncating toxic lets through.
                url = f"http://127.0.0.1:{self.port}/videos/?list-type=2"
                httpx.post(url, content=bytes(4000), timeout=5)
            except httpx.TransportError:
                failed += 1
        return failed

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


class Flipper:
    """A relay that changes some bytes that a server answers, and counts how often it did."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._old, self._new, self._left = b"", b"", 0
        self.flipped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def flip(self, old: bytes, new: bytes, times: int) -> None:
        """Change the next answers that have ``old`` in them."""
        assert len(old) == len(new)
        with self._lock:
            self._old, self._new, self._left, self.flipped = old, new, times, 0

    def stop(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._upstream))
                except OSError:
                    client.close()
                    continue
                for source, target, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(
                        target=self._pass_on, args=(source, target, answers), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(self._changed(data) if answers else data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _changed(self, data: bytes) -> bytes:
        with self._lock:
            if self._left and self._old in data:
                self._left -= 1
                self.flipped += 1
                return data.replace(self._old, self._new)
        return data
