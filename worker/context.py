"""What a worker process has: its settings, the store, the broker, its children and its scratch."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from dramatiq import Broker

from posedrop.buckets.storage import Storage
from posedrop.errors import ConfigurationError
from posedrop.folders import FolderLock, own_folder
from posedrop.settings import Settings
from posedrop.transport import queue
from worker import limits, room
from worker.cache import Cache
from worker.child import handover, tasks
from worker.child.child import Child
from worker.child.pool import ChildPool
from worker.own_record import Clock, OwnRecord

_OWNED = "worker-"
_LOCK = ".lock"
#: A folder that has had no lock for so long is one whose removal was cut short.
_JUST_MADE_SECONDS = 86400.0


def now() -> datetime:
    """Return the time, as records have it."""
    return datetime.now(UTC)


class Context:
    """The tools of the actors of one worker process.

    Each queue has children of its own: a video that kills the decoder of an ingest leaves the warm
    model of the other alone. Of the network's two, one makes the next video ready, where there is
    an accelerator. One more makes tables meanwhile, and one of the cpu queue's: a filter that takes
    hours keeps no network waiting.
    """

    def __init__(self, settings: Settings, broker: Broker, clock: Clock = now) -> None:
        self.settings = settings
        self.storage = Storage(settings)
        self.broker = broker
        self.clock = clock
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._closing = threading.Event()
        self._scratch, self._lock = _own_scratch(settings.scratch_dir)
        self.record = OwnRecord(self.storage, settings, self.name, clock)
        self.cache = Cache(settings.scratch_dir / "cache", settings.cache_bytes)
        bounds = limits.of(settings.child_memory_bytes, settings.child_file_bytes, self._scratch)
        hidden = (settings.data_dir, settings.scratch_dir)
        self.cpu = Child(
            queue.CPU,
            self._scratch,
            warm=tasks.WARM[queue.CPU],
            limits=bounds,
            hidden=hidden,
            cards=settings.encode != "cpu",
        )
        self.gpu = ChildPool(
            queue.GPU,
            self._scratch,
            warm=tasks.WARM[queue.GPU],
            device=settings.device,
            limits=limits.of_network(settings.network_memory_bytes, bounds),
            hidden=hidden,
            reads=settings.child_reads,
            cards=True,
        )
        self.tables_child = Child(
            "tables",
            self._scratch,
            warm=tasks.WARM["tables"],
            limits=bounds,
            hidden=hidden,
            reads=settings.child_reads,
        )
        # Where there is the other, it is started with the first poses that are drawn.
        self.cpu_tables = Child(
            "cpu-tables",
            self._scratch,
            warm=tasks.WARM["tables"],
            limits=bounds,
            hidden=hidden,
            reads=settings.child_reads,
        )

    @property
    def closing(self) -> bool:
        """Whether this process is being stopped: jobs are handed back, not finished."""
        return self._closing.is_set()

    def is_closed_within(self, seconds: float) -> bool:
        """Wait for the end of this process; return whether it came within these seconds."""
        return self._closing.wait(seconds)

    @contextmanager
    def scratch_dir(self) -> Iterator[Path]:
        """Give an empty folder for one job, on a disk that takes something, gone afterwards.

        Raises:
            StorageError: code ``scratch_unwritable``: it takes nothing, though the cache gave way.
        """
        folder = room.fetch_with_room(self.cache, lambda: room.folder_in(self._scratch))
        try:
            yield folder
        finally:
            handover.remove(folder)

    def start_children(self, queues: frozenset[str] = frozenset({queue.CPU, queue.GPU})) -> None:
        """Start the children of these queues now, so that their imports are done before work."""
        self.record.start(queues)
        if queue.CPU in queues:
            self.cpu.start()
            if queue.GPU not in queues:
                self.cpu_tables.start()
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
        self.cpu_tables.close()
        handover.remove(self._scratch)
        self._lock.release()


def _own_scratch(scratch: Path) -> tuple[Path, FolderLock]:
    """Make a folder for this process below ``scratch``; return it, and its lock, which is held."""
    free_scratch(scratch)
    folder = scratch / f"{_OWNED}{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    lock = FolderLock(folder, _LOCK)
    lock.acquire()
    return folder, lock


def free_scratch(scratch: Path) -> None:
    """Remove the folders that killed workers left in a scratch folder; it is made if there is none.

    A folder is somebody's while it is locked. Process ids would not tell: two containers that share
    the folder both count from 1. Nothing here needs room: what is left may fill the disk.

    Raises:
        ConfigurationError: ``scratch`` can't be used, or is somebody else's.
    """
    own_folder(scratch)  # in /tmp anybody may have made one of its name
    for folder in scratch.glob(f"{_OWNED}*"):
        lock = FolderLock(folder, _LOCK)
        with suppress(OSError, ConfigurationError):
            if (folder / _LOCK).exists():
                lock.acquire()
            elif time.time() - folder.stat().st_mtime < _JUST_MADE_SECONDS:
                continue  # it was just made, or somebody is removing it
            handover.remove(folder)
        lock.release()
