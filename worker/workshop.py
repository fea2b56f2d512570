"""What a worker process has: its settings, the store, the broker, its children and its scratch."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dramatiq import Broker

from posedrop import queue
from posedrop.settings import Settings
from posedrop.storage import Storage
from worker.child import Child


class Workshop:
    """The tools of the actors of one worker process.

    There is one child a queue: a video that kills the decoder of an ingest leaves the warm model
    of the other alone.
    """

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.settings = settings
        self.storage = Storage(settings)
        self.broker = broker
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._scratch = settings.scratch_dir / str(os.getpid())
        self._closing = threading.Event()
        _sweep(settings.scratch_dir)
        self._scratch.mkdir(parents=True, mode=0o700)
        self.cpu = Child(queue.CPU, self._scratch, warm=["worker.preflight", "worker.render"])
        self.gpu = Child(queue.GPU, self._scratch, warm=["worker.inference"])

    @property
    def closing(self) -> bool:
        """Whether this process is being stopped: jobs are handed back, not finished."""
        return self._closing.is_set()

    @property
    def models(self) -> Path:
        """Where models are kept between jobs, by digest."""
        folder = self.settings.scratch_dir / "models"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    @contextmanager
    def bench(self) -> Iterator[Path]:
        """Give an empty folder for one job, gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def start_children(self, queues: frozenset[str] = frozenset({queue.CPU, queue.GPU})) -> None:
        """Start the children of these queues now, so that their imports are done before work."""
        for child, name in ((self.cpu, queue.CPU), (self.gpu, queue.GPU)):
            if name in queues:
                child.start()

    def send(self, actor: str, **arguments: str) -> None:
        """Enqueue a message for an actor."""
        queue.send(self.broker, actor, **arguments)

    def close(self) -> None:
        """Kill the children; running jobs are handed back."""
        self._closing.set()
        self.cpu.close()
        self.gpu.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _sweep(scratch: Path) -> None:
    """Remove what killed workers left; a folder is named by the process it belongs to."""
    if not scratch.is_dir():
        return
    for folder in scratch.iterdir():
        if folder.name.isdigit() and not _alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
