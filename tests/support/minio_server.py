"""A real MinIO for one test module, with the two webhook targets that posedrop wants."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from posedrop.minio.notifications import TARGETS
from tests.support import compose
from tests.support.tools import find_free_port, tool

ROOT_ACCESS_KEY = "root-of-tests"
ROOT_SECRET_KEY = "secret-of-root"
EVENTS_TOKEN = "token-of-events"
_READY_SECONDS = 120.0


def find_minio() -> str:
    """Return MinIO's program: POSEDROP_MINIO, else .servers/minio, else PATH; else skip or fail."""
    named = os.environ.get("POSEDROP_MINIO")
    if named:
        return named
    return tool("minio")


class MinioServer:
    """One server on free ports of the loopback, with its data in a folder of its own."""

    def __init__(
        self, folder: Path, webhook: str, *, targets: Sequence[str] = TARGETS, port: int = 0
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: made if there is none; data, queue and log go below it.
            webhook: where both targets send to.
            targets: which of them are configured.
            port: to listen on; 0 chooses a free one.
        """
        self.folder = folder
        self.port = port or find_free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._webhook = webhook
        self._targets = targets
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MinioServer:
        """Start it and wait until it takes requests."""
        program = find_minio()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "minio.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    compose.command("store")[0],
                    "--quiet",
                    "--address",
                    f"127.0.0.1:{self.port}",
                    str(self.folder / "data"),
                ],
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            assert self._process.poll() is None, self.log()
            if self._ready():
                return self
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"MinIO was not ready within {_READY_SECONDS} s\n{self.log()}")

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/minio/health/ready", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _environment(self) -> dict[str, str]:
        """Return what compose gives the store, with this server's own places and secrets."""
        foreign = ("MINIO_", "POSEDROP_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        composed = compose.environment("store", "MINIO_", "GOMAXPROCS")
        absent = {f"_{name}" for name in TARGETS if name not in self._targets}
        here = {
            "MINIO_ROOT_USER_FILE": self._secret("root_user", ROOT_ACCESS_KEY),
            "MINIO_ROOT_PASSWORD_FILE": self._secret("root_password", ROOT_SECRET_KEY),
            "MINIO_CONFIG_ENV_FILE": self._secret("store.env", self._tokens()),
            "MINIO_API_CORS_ALLOW_ORIGIN": "http://127.0.0.1:*",  # of whatever port the page is
            "MINIO_NOTIFY_WEBHOOK_ENDPOINT_fast": self._webhook,
            "MINIO_NOTIFY_WEBHOOK_ENDPOINT_sure": self._webhook,
            "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_sure": str(self.folder / "queue"),
        }
        assert here.keys() <= composed.keys()
        merged = composed | here
        return (
            kept
            | {"HOME": str(self.folder)}
            | {
                name: value
                for name, value in merged.items()
                if not name.endswith(tuple(absent) or "!")
            }
        )

    def _tokens(self) -> str:
        prefix = "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_"
        return "".join(f'{prefix}{name}="Bearer {EVENTS_TOKEN}"\n' for name in self._targets)

    def _secret(self, name: str, content: str) -> str:
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    def stop(self) -> None:
        """End it; its folder stays, and it can be started again."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """Return what it printed."""
        return (self.folder / "minio.log").read_text(errors="replace")[-4000:]
