"""A lab with posedrop, as its people see it: a process, an address, two buckets, some tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import boto3
import httpx
from botocore.config import Config

from tests.conftest import find_free_port

T = TypeVar("T")
POSEDROP = str(Path(sys.executable).with_name("posedrop"))
FINAL = {"succeeded", "partial", "failed", "cancelled"}


class Lab:
    """One ``posedrop up`` on a data directory of its own."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.port = find_free_port()
        self.s3_port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._settings = {f"POSEDROP_{name.upper()}": value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Lab:
        """Start it and wait until it answers."""
        log = self.data_dir.with_suffix(".log").open("ab")
        self._process = subprocess.Popen(
            [
                POSEDROP,
                "--data-dir",
                str(self.data_dir),
                "up",
                "--port",
                str(self.port),
                "--s3-port",
                str(self.s3_port),
            ],
            stdout=log,
            stderr=log,
            env=self._environment(),
        )
        self.until(self._answers, "the API to answer", 60)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("POSEDROP_", "AWS_"))}
        return (
            kept
            | {"POSEDROP_HEARTBEAT_SECONDS": "0.5", "POSEDROP_LEASE_SECONDS": "4"}
            | self._settings
        )

    @property
    def pid(self) -> int:
        """The process id of ``posedrop up``."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """Return what it printed."""
        return self.data_dir.with_suffix(".log").read_text(errors="replace")[-4000:]

    def posedrop(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this lab."""
        return subprocess.run(
            [POSEDROP, "--data-dir", str(self.data_dir), *args],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
        )

    def aws_environment(self) -> dict[str, str]:
        """Return the variables that ``aws.env`` sets for a person's tools."""
        lines = (self.data_dir / "aws.env").read_text().splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
        return {name: value.strip("'\"") for name, value in pairs}

    def s3(self) -> Any:
        """Return a boto3 client with the key of the lab's people."""
        env = self.aws_environment()
        return boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
            config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
        )

    def until(self, ask: Callable[[], T], what: str, seconds: float = 60) -> T:
        """Ask until the answer is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if answer := ask():
                return answer
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s for {what}\n{self.log()}")

    def get(self, path: str, **params: Any) -> Any:
        """GET a JSON answer."""
        answer = self.http.get(path, params=params)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def file(self, key: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until the file under ``key`` is in one of ``states``; return it."""
        wanted = set(states or ("ready", "refused"))

        def ask() -> dict[str, Any] | None:
            found = [f for f in self.get("/files", limit=1000)["items"] if f["key"] == key]
            return found[0] if found and found[0]["state"] in wanted else None

        return self.until(ask, f"{key!r} to be {wanted}", seconds)

    def ask(self, file_id: str, analysis: str, args: dict[str, Any], **more: Any) -> httpx.Response:
        """POST /analyse."""
        body = {"file_id": file_id, "analysis": analysis, "args": args, **more}
        return self.http.post("/analyse", json=body)

    def over(self, analysis_id: str, seconds: float = 120) -> dict[str, Any]:
        """Wait until a run is over; return GET /results."""

        def ask() -> dict[str, Any] | None:
            answer = self.http.get(f"/results/{analysis_id}")
            assert answer.status_code in {200, 202}, answer.text
            return answer.json() if answer.status_code == 200 else None

        return self.until(ask, f"run {analysis_id} to be over", seconds)

    def run_of(self, file_id: str, seconds: float = 60) -> str:
        """Wait until something is planned for a file; return its analysis_id."""

        def ask() -> str | None:
            runs = self.get(f"/upload/{file_id}")["analyses"]
            return runs[0]["analysis_id"] if runs else None

        return self.until(ask, f"a run of {file_id}", seconds)
