"""Receivers of notices on loopback: a web server, a mail relay, and names that lead to them."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.samples import REPOSITORY

#: An address of the internet, which leads to loopback in a process with pretended names.
PUBLIC = "93.184.216.34"


@dataclass
class Receiver:
    """A web server, what it got, and what it answers next: a status, 0 to hang, or a redirect."""

    port: int
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int | str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def receiver(answers: Sequence[int | str] = ()) -> Iterator[Receiver]:
    """Serve within the block; where ``answers`` are used up, each notice is taken."""
    over = threading.Event()
    made = Receiver(0, answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # it was cut off on its way
            made.got.append((dict(self.headers), body))
            answer = made.answers.pop(0) if made.answers else 204
            if answer == 0:
                over.wait(20)
                return
            self.send_response(answer if isinstance(answer, int) else 307)
            if not isinstance(answer, int):
                self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A bad network resets connections."""

    server = Server(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def mail_relay() -> Iterator[tuple[int, list[str]]]:
    """Give the port of a mail server that takes every letter, and the letters."""
    letters: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 relay\r\n")
            for line in self.rfile:
                word = line[:4].upper().strip()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    letters.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
                if word == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], letters
    finally:
        server.shutdown()
        server.server_close()


#: Of a process that begins with it: names resolve as a file says, each time to the next address,
#: and connections to ``PUBLIC`` reach loopback. Python's audit hooks see what they would see.
_PRETENDED = f"""
import ctypes, json, os, socket, struct, sys
names = json.loads(open(os.path.join(os.path.dirname(__file__), "names.json")).read())
known, connect = socket.getaddrinfo, socket.socket.connect
def getaddrinfo(host, port, *args, **more):
    if host in names:
        found = names[host]
        host = found.pop(0) if len(found) > 1 else found[0]
    return known(host, port, *args, **more)
def reach(self, address):
    if address[0] != {PUBLIC!r}:
        return connect(self, address)
    sys.audit("socket.connect", self, address)
    port, loopback = struct.pack("!H", address[1]), b"\\x7f\\0\\0\\x01"
    there = struct.pack("=H2s4s8x", socket.AF_INET, port, loopback)
    timeout = self.gettimeout()
    self.setblocking(True)
    if ctypes.CDLL(None).connect(self.fileno(), there, len(there)):
        raise ConnectionRefusedError
    self.settimeout(timeout)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, reach
"""


def pretend_names(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the environment of a process for which names have these addresses, one after other."""
    (folder / "sitecustomize.py").write_text(_PRETENDED)
    (folder / "names.json").write_text(json.dumps(names))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}


def send(
    urls: Sequence[str], environment: Mapping[str, str] | None = None, *, allow: bool = False
) -> tuple[list[str | None], str]:
    """Send a notice to each URL by one process of the handlers'; what it answers, and printed."""
    notice = {"id": "msg_1", "timestamp": 1, "title": "t", "body": "b", "allow_private": allow}
    lines = [json.dumps({**notice, "url": url}) for url in urls]
    done = subprocess.run(
        [sys.executable, "-sP", "-m", "handlers.telling.sender"],
        input="\n".join(lines) + "\n",
        env={"PYTHONPATH": str(REPOSITORY), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line)["error"] for line in done.stdout.splitlines()], done.stderr
