"""Real brokers for tests: Redis as production runs it, and RabbitMQ."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.conftest import find_free_port, tool
from tests.integration import compose

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
                self._command(), env=self._environment(), stdout=log, stderr=log
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
            self._process.kill()
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
    """RabbitMQ, a node of its own that no other node can find."""

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
        # As docs/deploy.md says: RabbitMQ takes a consumer that works for half an hour for dead.
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\nconsumer_timeout = 31622400000\n"
        )
        return dict(os.environ) | {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"posedrop{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_EPMD_PORT": str(find_free_port()),
        }
