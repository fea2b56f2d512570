"""What a worker process has: its settings, the store, the broker, its children and its scratch."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dramatiq import Broker

from posedrop.buckets.storage import Storage
from posedrop.folders import own_folder
from posedrop.settings import Settings
from posedrop.transport import queue
from worker import limits, room
from worker.cache import Cache
from worker.child import handover
from worker.child.child import Child
from worker.child.pool import ChildPool
from worker.own_record import OwnRecord

_OWNED = "worker-"
_LOCK = ".lock"


class Context:
    """The tools of the actors of one worker process.

    Each queue has children of its own: a video that kills the decoder of an ingest leaves the warm
    model of the other alone. Of the network's two, one makes the next video ready, where there is
    an accelerator. One more makes tables meanwhile.
    """

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.settings = settings
        self.storage = Storage(settings)
        self.broker = broker
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._scratch = settings.scratch_dir / f"{_OWNED}{uuid.uuid4().hex}"
        self._closing = threading.Event()
        own_folder(settings.scratch_dir)  # in /tmp anybody may have made one of its name
        _sweep(settings.scratch_dir)
        self._scratch.mkdir(mode=0o700)
        self._mine = _own(self._scratch)
        self.record = OwnRecord(self.storage, settings, self.name)
        self.cache = Cache(settings.scratch_dir / "cache", settings.cache_bytes)
        bounds = limits.of(settings.child_memory_bytes, settings.child_file_bytes, self._scratch)
        hidden = (settings.data_dir, settings.scratch_dir)
        self.cpu = Child(
            queue.CPU,
            self._scratch,
            warm=["worker.video.preflight", "worker.video.draw"],
            limits=bounds,
            hidden=hidden,
            cards=settings.encode != "cpu",
        )
        self.gpu = ChildPool(
            queue.GPU,
            self._scratch,
            warm=["worker.engine.inference"],
            device=settings.device,
            limits=limits.of_network(settings.network_memory_bytes, bounds),
            hidden=hidden,
            reads=settings.child_reads,
            cards=True,
        )
        self.tables_child = Child(
            "tables",
            self._scratch,
            warm=["worker.poses.tables"],
            limits=bounds,
            hidden=hidden,
            reads=settings.child_reads,
        )

    @property
    def closing(self) -> bool:
        """Whether this process is being stopped: jobs are handed back, not finished."""
        return self._closing.is_set()

    def is_closed_within(self, seconds: float) -> bool:
        """Wait until this process is being stopped; False: it was not, for so long."""
        return self._closing.wait(seconds)

    @contextmanager
    def scratch_dir(self) -> Iterator[Path]:
        """Give an empty folder for one job, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=room.JOB, dir=self._scratch))
        try:
            yield folder
        finally:
            handover.remove(folder)

    def start_children(self, queues: frozenset[str] = frozenset({queue.CPU, queue.GPU})) -> None:
        """Start the children of these queues now, so that their imports are done before work."""
        self.record.start(queues)
        if queue.CPU in queues:
            self.cpu.start()
        if queue.GPU in queues:
            self.gpu.start()
            self.tables_child.start()

    def send(self, actor: str, *, delay_seconds: float = 0.0, **arguments: str) -> None:
        """Enqueue a message for an actor."""
        queue.send(self.broker, actor, delay_seconds=delay_seconds, **arguments)

    def close(self) -> None:
        """Kill the children; running jobs are handed back."""
        self._closing.set()
        self.record.stop()
        self.cpu.close()
        self.gpu.close()
        self.tables_child.close()
        handover.remove(self._scratch)
        self._mine.close()


def _own(folder: Path) -> IO[bytes]:
    """Lock a folder for as long as this process lives; return what holds the lock."""
    held = (folder / _LOCK).open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def _sweep(scratch: Path) -> None:
    """Remove what killed workers left.

    A folder is somebody's while it is locked. Process ids would not tell: two containers that share
    the folder both count from 1.
    """
    for folder in scratch.glob(f"{_OWNED}*"):
        # Without a lock it was just made, or is half removed: the next start will know.
        with suppress(OSError), (folder / _LOCK).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handover.remove(folder)
