"""A lab with posedrop, as its people see it: an address, two buckets, some tools.

Three stacks stand behind the same face: everything in one ``posedrop up``, and processes of their
own around a real MinIO with Redis or RabbitMQ as the broker, as production runs them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import boto3
import httpx
from botocore.config import Config

from tests.support import compose
from tests.support.brokers import BrokerServer
from tests.support.minio_server import (
    EVENTS_TOKEN,
    ROOT_ACCESS_KEY,
    ROOT_SECRET_KEY,
    MinioServer,
)
from tests.support.tools import find_free_port

T = TypeVar("T")
#: Of the processes that have one by a setting.
API_TOKEN = "token-of-the-api"
BIN = Path(sys.executable).parent
POSEDROP = str(BIN / "posedrop")
#: Short, so that tests of takeovers are short too.
_PACE = {
    "POSEDROP_HEARTBEAT_SECONDS": "0.5",
    "POSEDROP_LEASE_SECONDS": "4",
    "POSEDROP_RECONCILE_SECONDS": "2",
}


def clean_environment() -> dict[str, str]:
    """Return this process' environment without what would steer posedrop or an S3 tool."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("POSEDROP_", "AWS_"))}


#: A lab's proxy, which nothing here may be asked by: nobody is there.
PROXY = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), "http://127.0.0.1:9"
)


class Lab(ABC):
    """A running posedrop, whatever it is made of."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.settings = {f"POSEDROP_{name.upper()}": value for name, value in settings.items()}
        #: Further variables of the processes, e.g. PYTHONPATH for a plug-in.
        self.environment: dict[str, str] = {}
        #: Seconds until the next question, by those that something was waited for.
        self.pace: Callable[[float], float] = lambda waited: min(0.05 + waited / 20, 0.2)
        #: Settings of its own clocks; none: those of a user.
        self.haste = dict(_PACE)
        #: A home of its own: not the tokens of whoever runs this.
        self.home = {"XDG_CONFIG_HOME": str(data_dir.with_name("config"))}

    @abstractmethod
    def stop(self) -> int:
        """Stop all of it in order; return 0 if everything ended well."""

    @abstractmethod
    def aws_environment(self) -> dict[str, str]:
        """Return the variables with which a person's S3 tools reach the buckets."""

    @property
    @abstractmethod
    def events_token(self) -> str:
        """The bearer token of POST /events."""

    @property
    @abstractmethod
    def api_token(self) -> str:
        """The token of all other calls."""

    @property
    def header(self) -> str:
        """What curl sends to be let in."""
        return f"Authorization: Bearer {self.api_token}"

    @property
    def link(self) -> str:
        """The link that lets a browser in."""
        return f"{self.url}/session#token={self.api_token}"

    @abstractmethod
    def log(self) -> str:
        """Return the end of what its processes printed."""

    def metrics(self) -> str:
        """Return the metrics of all its processes."""
        return self.http.get("/metrics").text

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def posedrop(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this lab."""
        return subprocess.run(
            [POSEDROP, "--data-dir", str(self.data_dir), *args],
            env=clean_environment() | PROXY | self.home | self.settings,
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
        )

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

    def until(self, ask: Callable[[], T], what: str, seconds: float = 120) -> T:
        """Ask until the answer is true, and return it."""
        started = time.monotonic()
        while (waited := time.monotonic() - started) < seconds:
            if answer := ask():
                return answer
            time.sleep(self.pace(waited))
        raise AssertionError(f"waited {seconds} s for {what}\n{self.log()}")

    def get(self, path: str, **params: Any) -> Any:
        """GET a JSON answer."""
        answer = self.http.get(path, params=params)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def file(self, key: str, *states: str, seconds: float = 120) -> dict[str, Any]:
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

    def over(self, analysis_id: str, seconds: float = 240) -> dict[str, Any]:
        """Wait until a run is over; return GET /results."""

        def ask() -> dict[str, Any] | None:
            answer = self.http.get(f"/results/{analysis_id}")
            assert answer.status_code in {200, 202}, answer.text
            return answer.json() if answer.status_code == 200 else None

        return self.until(ask, f"run {analysis_id} to be over", seconds)

    def run_of(self, file_id: str, seconds: float = 120) -> str:
        """Wait until something is planned for a file; return its analysis_id."""

        def ask() -> str | None:
            runs = self.get(f"/upload/{file_id}")["analyses"]
            return runs[0]["analysis_id"] if runs else None

        return self.until(ask, f"a run of {file_id}", seconds)


def _variables(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    pairs = (line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("'\"") for name, value in pairs}


class Embedded(Lab):
    """One ``posedrop up`` on a data directory of its own."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self.s3_port = find_free_port()
        self._log = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Embedded:
        """Start it and wait until it answers."""
        options = ["--port", str(self.port), "--s3-port", str(self.s3_port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [POSEDROP, "--data-dir", str(self.data_dir), "up", *options],
                stdout=log,
                stderr=log,
                env=clean_environment()
                | PROXY
                | self.home
                | self.haste
                | self.environment
                | self.settings,
            )
        self.until(self._up, "the API to answer", 240)
        self.http.headers["Authorization"] = f"Bearer {self.api_token}"
        return self

    @property
    def pid(self) -> int:
        """The one process that is everything but the store."""
        assert self._process is not None
        return self._process.pid

    def _up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        return self._answers()

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
        """Return the end of what it printed."""
        return self._log.read_text(errors="replace")[-4000:]

    def aws_environment(self) -> dict[str, str]:
        """Return what ``aws.env`` sets."""
        return _variables(self.data_dir / "aws.env")

    @property
    def events_token(self) -> str:
        """The token that the stack made at its first start."""
        return _variables(self.data_dir / "posedrop.env")["POSEDROP_EVENTS_TOKEN"]

    @property
    def api_token(self) -> str:
        """The token that the stack made at its first start."""
        return _variables(self.data_dir / "posedrop.env")["POSEDROP_API_TOKEN"]


class Servers(Lab):
    """MinIO, a broker, and posedrop's handlers and workers as processes of their own."""

    def __init__(self, data_dir: Path, broker: BrokerServer, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        data_dir.mkdir(parents=True)
        self.store = MinioServer(data_dir / "minio", f"{self.url}/events")
        #: Where posedrop finds the store, if not at the store's own address: a proxy's.
        self.s3_endpoint = self.store.endpoint
        self.broker = broker
        #: Whether it is set up as docs/deploy.md says for several GPUs.
        self.several_gpus = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._metrics: list[str] = []
        self._started = 0
        self.settings["POSEDROP_API_TOKEN"] = API_TOKEN
        self.http.headers["Authorization"] = f"Bearer {API_TOKEN}"

    def start(self) -> Servers:
        """Start the servers, have ``posedrop bootstrap`` prepare the store, start posedrop."""
        self.store.start()
        self.broker.start()
        root = {
            "POSEDROP_ROOT_ACCESS_KEY": ROOT_ACCESS_KEY,
            "POSEDROP_ROOT_SECRET_KEY": ROOT_SECRET_KEY,
        }
        self.settings |= {
            "POSEDROP_URL": self.url,
            "POSEDROP_S3_ENDPOINT": self.store.endpoint,
            # As the operator's shell has it: models are pushed with the root key.
            "POSEDROP_S3_ACCESS_KEY": ROOT_ACCESS_KEY,
            "POSEDROP_S3_SECRET_KEY": ROOT_SECRET_KEY,
        }
        keys_file = self.data_dir / "keys.env"
        self.settings |= root
        self.posedrop("bootstrap", "--write-env", str(keys_file))
        self._keys = _variables(keys_file)
        self.start_handlers()
        self.start_worker("worker-cpu")
        self.start_worker("worker-gpu")
        return self

    def _as(self, role: str) -> dict[str, str]:
        """Return the environment of a process with the key of ``role``."""
        return (
            clean_environment()
            | PROXY
            | self.haste
            | self.environment
            | {name: v for name, v in self.settings.items() if "ROOT" not in name}
            | {
                "POSEDROP_DATA_DIR": str(self.data_dir / role),
                "POSEDROP_SCRATCH_DIR": str(self.data_dir / "scratch"),
                "POSEDROP_BROKER_URL": self.broker.url,
                "POSEDROP_S3_ENDPOINT": self.s3_endpoint,
                "POSEDROP_S3_PUBLIC_ENDPOINT": self.store.endpoint,
                "POSEDROP_S3_ACCESS_KEY": self._keys[f"POSEDROP_{role.upper()}_ACCESS_KEY"],
                "POSEDROP_S3_SECRET_KEY": self._keys[f"POSEDROP_{role.upper()}_SECRET_KEY"],
            }
        )

    def start_handlers(self) -> None:
        """Start the API and wait until it answers."""
        (self.data_dir / "handlers").mkdir(exist_ok=True)
        presign = {n: v for n, v in self._keys.items() if n.startswith("POSEDROP_PRESIGN_")}
        program, *options = compose.command("handlers")
        here = {"0.0.0.0": "127.0.0.1", "8080": str(self.port)}  # noqa: S104
        self._run(
            "handlers",
            [str(BIN / program), *(here.get(option, option) for option in options)],
            self._as("handlers") | presign | {"POSEDROP_EVENTS_TOKEN": EVENTS_TOKEN},
        )
        self.until(self._answers, "the API to answer", 240)

    def start_worker(self, service: str) -> str:
        """Start one worker by the command and the Dramatiq settings that compose has for it.

        Returns:
            Its name, for :meth:`kill` and :meth:`signal`.
        """
        program, *options = compose.command(service)
        self._started += 1
        name = f"{service}-{self._started}"
        own = compose.environment(service, "dramatiq_")
        own["POSEDROP_METRICS_PORT"] = str(find_free_port())
        self._metrics.append(f"http://127.0.0.1:{own['POSEDROP_METRICS_PORT']}/metrics")
        if self.several_gpus:
            own["dramatiq_queue_prefetch"] = "1"
        self._run(name, [str(BIN / program), *options], self._as("worker") | own)
        return name

    def metrics(self) -> str:
        """Return the metrics of all its processes, the workers' own among them."""
        return super().metrics() + "".join(httpx.get(url).text for url in self._metrics)

    def names(self, service: str) -> list[str]:
        """Return the names of what runs of a service: handlers, worker-cpu, worker-gpu."""
        return [name for name in self._processes if name.startswith(service)]

    def kill(self, name: str) -> None:
        """Kill a process, and what it forked, as a power cut would; it is no longer one of ours."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and what it forked."""
        os.killpg(self._processes[name].pid, number)

    def end(self, name: str, seconds: float) -> int:
        """Ask a process to stop, as ``docker compose stop`` does; return its exit status."""
        process = self._processes.pop(name)
        process.terminate()
        return process.wait(timeout=seconds)

    def gone(self, name: str) -> bool:
        """Tell whether a process has ended by itself; then it is no longer one of ours."""
        if self._processes[name].poll() is None:
            return False
        del self._processes[name]
        return True

    def pid(self, name: str) -> int:
        """Return a process' id."""
        return self._processes[name].pid

    def _run(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        with (self.data_dir / f"{name}.log").open("ab") as log:
            # A session of its own: dramatiq forks, and a kill is meant for all of it.
            self._processes[name] = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> int:
        """Stop the workers, then the API, then the servers."""
        statuses = []
        for process in reversed(self._processes.values()):
            process.terminate()
            statuses.append(process.wait(timeout=60))
        self.broker.stop()
        self.store.stop()
        # uvicorn and dramatiq end by the signal or with 0 when they are told to.
        return 0 if set(statuses) <= {0, -signal.SIGTERM} else max(statuses)

    def log(self) -> str:
        """Return the end of what each process printed."""
        logs = sorted(self.data_dir.glob("*.log"))
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in logs)

    def worker_logs(self) -> str:
        """Return all that the workers printed."""
        logs = sorted(self.data_dir.glob("worker-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def aws_environment(self) -> dict[str, str]:
        """Return the root key: which keys a lab's people get is the lab's own affair."""
        return {
            "AWS_ENDPOINT_URL": self.store.endpoint,
            "AWS_ACCESS_KEY_ID": ROOT_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ROOT_SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def events_token(self) -> str:
        """The token that both webhook targets send."""
        return EVENTS_TOKEN

    @property
    def api_token(self) -> str:
        """The token that the handlers have by their environment."""
        return API_TOKEN
