"""Real brokers for tests: Redis as production runs it, and RabbitMQ."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.support import compose
from tests.support.tools import find_free_port, tool

_READY_SECONDS = 60.0


class BrokerServer(ABC):
    """One broker on a free port of the loopback, with its data in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """As POSEDROP_BROKER_URL has it."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdout=log,
                stderr=log,
                # RabbitMQ is a shell with children: a kill is meant for all of it.
                start_new_session=True,
            )
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            assert self._process.poll() is None, self.log()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the broker was not ready within {_READY_SECONDS} s\n{self.log()}")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """Return the end of what it printed."""
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]


class Redis(BrokerServer):
    """Redis with an append-only file that never evicts, as infra/docker-compose.yml runs it."""

    @property
    def url(self) -> str:
        """As POSEDROP_BROKER_URL has it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        # Valkey and Redis take the same options; the file before them holds compose's password.
        _, _, *composed = compose.command("broker")
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [tool("redis-server"), *here, "--save", "", *composed]


class RabbitMQ(BrokerServer):
    """RabbitMQ, a node of its own that no other node can find.

    It takes a consumer for dead that is at one message for ``consumer_timeout`` milliseconds; as
    docs/deploy.md says, that has to be longer than any job.
    """

    def __init__(self, folder: Path, *, consumer_timeout: int = 31_622_400_000) -> None:
        super().__init__(folder)
        self._consumer_timeout = consumer_timeout
        self._ports = {"dist": str(find_free_port()), "epmd": str(find_free_port())}

    @property
    def url(self) -> str:
        """As POSEDROP_BROKER_URL has it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        # Debian's /usr/sbin wrapper changes to the user rabbitmq, who can't write here.
        tool("rabbitmq-server")
        real = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return [str(real) if real.is_file() else tool("rabbitmq-server")]

    def _environment(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"consumer_timeout = {self._consumer_timeout}\n"
        )
        # How often it looks; there is no name for this in rabbitmq.conf.
        (self.folder / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].")
        return dict(os.environ) | {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"posedrop{self.port}@localhost",
            "RABBITMQ_DIST_PORT": self._ports["dist"],
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "ERL_CRASH_DUMP": str(self.folder / "crash.dump"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_EPMD_PORT": self._ports["epmd"],
        }

    def stop(self) -> None:
        """End it, and the name server that Erlang leaves running."""
        super().stop()
        epmd = shutil.which("epmd")
        if epmd is not None:
            command = [epmd, "-port", self._ports["epmd"], "-kill"]
            subprocess.run(command, capture_output=True, check=False)
