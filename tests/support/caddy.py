"""A real Caddy with infra/Caddyfile, between clients and whatever stands behind it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import compose
from tests.support.tools import find_free_port, tool

API, S3 = "api.test", "s3.test"
_READY_SECONDS = 120.0


class Caddy:
    """One server on free ports of the loopback, with certificates of its own."""

    def __init__(self, home: Path, api_port: int, s3_port: int, **more: str) -> None:
        """Nothing is started yet; the ports are those of the upstreams."""
        self._home = home
        self.port = find_free_port()
        self._health = find_free_port()
        self.log = home / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "API_HOST": API,
            "S3_HOST": S3,
            "TLS": "internal",
            "API_UPSTREAM": f"127.0.0.1:{api_port}",
            "S3_UPSTREAM": f"127.0.0.1:{s3_port}",
            "HTTP_PORT": str(find_free_port()),
            "HTTPS_PORT": str(self.port),
            "HEALTH_PORT": str(self._health),
            **more,
        }

    @property
    def root(self) -> Path:
        """The certificate that clients have to trust."""
        return self._home / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    def start(self) -> Caddy:
        """Start it; return when its health check passes and both sites have their certificates."""
        file = compose.INFRA / "Caddyfile"
        command = [tool("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"Caddy did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def _ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._health, timeout=5)
            connection.request("GET", "/")
            if connection.getresponse().status != 200:
                return False
            for host in (API, S3):
                self.ask("GET", host, "/")
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def ask(
        self,
        method: str,
        host: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a request just as it is given; return the status and the JSON of a 200."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPConnection(host, self.port)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with context.wrap_socket(raw, server_hostname=host) as connection.sock:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            length = {"Content-Length": str(len(body))} if body is not None else {}
            given = {"Host": f"{host}:{self.port}", **length, **(headers or {})}
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            seen = json.loads(content) if response.status == 200 and content else {}
            return response.status, seen
