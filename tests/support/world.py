"""posedrop in one thread, on a store in memory: every step can be doubled, dropped, cut or frozen.

The handlers and the worker are the real ones; the store is the one of ``memory_storage``, at whose
calls a job can be cut or frozen.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from dramatiq import Message

from handlers.context import Context
from handlers.events import follow, notify
from handlers.metrics import Metrics
from handlers.upkeep import reconcile
from posedrop import analyses
from posedrop.buckets.records.comparison import ComparedRun, Comparison, Distances
from posedrop.errors import AnalysisError, ChildDiedError, RefusedVideoError, StorageError
from posedrop.index.index import Index
from posedrop.settings import Settings, load
from posedrop.transport import queue
from tests.support.memory_storage import Clock, Crash, Gate, MemoryStorage
from worker.cache import Cache
from worker.jobs.derive import derive
from worker.jobs.infer import finish, infer
from worker.jobs.ingest import ingest
from worker.jobs.render import render
from worker.own_record import OwnRecord


class Child:
    """The child process: what is no video is refused, what is poison fails each time.

    The same video never makes the same bytes.
    """

    walls = None
    pid = 1
    #: What a probe says of how browsers play a film.
    browser: str | None = None

    def start(self) -> None:
        """It is there."""

    def be_ready(self) -> None:
        """It is."""

    def call(self, task: str, payload: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Answer as the real child would."""
        if task == "probe":
            film = Path(payload["video"]).read_bytes()
            if film.startswith(b"poison"):
                raise AnalysisError("the decoder fails", code="internal")
            if film.startswith(b"bad"):
                raise RefusedVideoError("no video", code="not_a_video")
            return {"probe": PROBE | {"browser": self.browser}}
        if task == "pick_frames":
            Path(payload["pixels"]).write_bytes(b"pixels")
            return {"frames": [0, 1], "candidates": 2, "versions": {"deeplabcut": "3"}}
        nonce = os.urandom(8).hex()
        if task == "pack_frames":
            for name in ("labeled-data.zip", "frames.pkg.slp", "coco.zip"):
                (Path(payload["out"]) / name).write_text(f"packed {nonce}")
            return {"versions": {"sleap-io": "0.9"}}
        if task == "export":
            if b"poison" in Path(payload["poses"]).read_bytes():
                raise ChildDiedError("the child process was killed")
            Path(payload["out"]).write_text(f"exported {nonce}")
            return {"versions": {"pynwb": "4"}}
        if task == "compare":
            Path(payload["out"]).write_bytes(_compared(payload).to_json())
            return {"versions": {"numpy": "2"}}
        if task == "copy_film":
            Path(payload["out"]).write_text(f"copied {nonce}")
            return {"frames": 2}
        (Path(payload["out"]).parent / "run.log").write_text(f"log {nonce}")
        if task == "render":
            (Path(payload["out"]) / "pose.mp4").write_text(f"drawn {nonce}")
            return {"timings": {}}
        (Path(payload["out"]) / _left(task, payload["analysis"])).write_text(f"poses {nonce}")
        counts = {"frames_expected": 2, "frames_decoded": 2, "rows": 2}
        return {**counts, "missing": [], "timings": {}, "versions": {}, "details": DETAILS}


def _compared(payload: dict[str, Any]) -> Comparison:
    """Return a comparison that has found nothing."""
    a, b = (
        ComparedRun(
            analysis_id=payload[each]["analysis_id"],
            pcutoff=payload[each]["pcutoff"],
            frames=2,
            individuals=["id_0"],
            only=[],
        )
        for each in "ab"
    )
    total = Distances(positions=0, only_a=0, only_b=0, both_sure=0, disagree=0)
    return Comparison(
        a=a, b=b, frames=2, matched="one", total=total, keypoints=[], worst=[], worst_sure=[]
    )


#: Files have their long names.
DETAILS = {"scorer": "DLC_fake"}


def _left(task: str, analysis: str) -> str:
    """Return the name of what a task of an analysis leaves."""
    if task == "finish_analysis":
        return "poses.h5"
    return "predictions.npz" if analyses.get(analysis).finish is not None else "poses.csv"


PROBE = {
    "codec": "h264",
    "pixel_format": "yuv420p",
    "width": 64,
    "height": 64,
    "fps": 30.0,
    "frames": 2,
    "frames_counted": True,
    "duration": 0.1,
    "rotation": 0,
    "variable_frame_rate": False,
}


@dataclass
class WorkerContext:
    """What a worker process has, as worker.context.Context does."""

    settings: Settings
    storage: MemoryStorage
    broker: Any
    name: str
    cache: Cache
    cpu: Child = field(default_factory=Child)
    gpu: Child = field(default_factory=Child)
    tables_child: Child = field(default_factory=Child)
    cpu_tables: Child = field(default_factory=Child)
    closing: bool = False

    def __post_init__(self) -> None:
        """It has a record, which nobody writes by itself: a heartbeat is a step like any other."""
        self.clock = self.storage.clock
        self.record = OwnRecord(self.storage, self.settings, self.name, self.clock)

    @contextlib.contextmanager
    def scratch_dir(self) -> Iterator[Path]:
        """Give an empty folder for one job."""
        folder = Path(tempfile.mkdtemp(dir=self.settings.scratch_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def is_closed_within(self, seconds: float) -> bool:  # noqa: ARG002
        """Tell whether the process ends; nobody waits, as the only time here is the clock's."""
        return self.closing

    def send(self, actor: str, *, delay_seconds: float = 0.0, **arguments: str) -> None:  # noqa: ARG002
        """Enqueue a message for an actor; at once, as the only time here is the clock's."""
        queue.send(self.broker, actor, **arguments)


@dataclass
class Frozen:
    """A worker that was stopped in the middle of a job."""

    gate: Gate
    thread: threading.Thread

    def wake(self) -> None:
        """Let it go on, and wait for its end."""
        self.gate.woken.set()
        self.thread.join()


@cache
def new_index() -> bytes:
    """Return the file of an index without a row; its migrations take longer than many a test."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.sqlite"
        Index(file).close()
        return file.read_bytes()


class World:
    """A store, handlers, a queue, workers, and a clock."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.storage = MemoryStorage(self.clock)
        self.folder = folder
        self.settings = load(
            folder,
            {
                "broker_url": "stub://",
                "scratch_dir": folder / "scratch",
                "default_analysis": "dummy",
                "default_args": {"seconds": 0},
                # Nothing beats by itself here: a heartbeat is a step like any other.
                "heartbeat_seconds": 1e6,
                "lease_seconds": 60,
                **settings,
            },
        )
        self.settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        self.broker = queue.connect("stub://")
        #: The child of every worker, whatever it does: probing, inference, tables, drawing.
        self.child = Child()
        #: Without room in it each video is fetched.
        self.cache_bytes = 0
        self._worker = 0
        self._ahead = timedelta()
        self.open()

    def set_handlers_ahead(self, ahead: timedelta) -> None:
        """Have the handlers' clock wrong; the store's goes on as it was."""
        self._ahead = ahead

    def _handlers_clock(self) -> datetime:
        return self.clock() + self._ahead

    def open(self) -> None:
        """Start the handlers, on whatever index there is."""
        file = self.folder / "index.sqlite"
        if not file.exists():
            file.write_bytes(new_index())
        self.context = Context(
            self.settings,
            self.storage,
            Index(file),
            self.broker,
            clock=self._handlers_clock,
            metrics=Metrics(self._handlers_clock()),
        )
        self.reconciler = reconcile.Reconciler(self.context)

    def close(self) -> None:
        """End the handlers."""
        self.context.index.close()

    def end(self) -> None:
        """End everything."""
        self.close()

    def lose_index(self) -> None:
        """Delete the index while the handlers are down."""
        self.close()
        for path in self.folder.glob("index.sqlite*"):
            path.unlink()
        self.open()

    # -- messages

    def messages(self) -> list[Message[Any]]:
        """Take all messages out of the queue, in an order that is the same in every run."""
        found = []
        for name in (queue.CPU, queue.GPU):
            waiting = self.broker.queues[name]
            while not waiting.empty():
                found.append(Message.decode(waiting.get()))
        return sorted(found, key=lambda each: (each.actor_name, sorted(each.kwargs.items())))

    def put_back(self, messages: Iterable[Message[Any]]) -> None:
        """Put messages into the queue again."""
        for message in messages:
            self.broker.enqueue(message)

    def work(self, message: Message[Any], gate: Gate | None = None) -> None:
        """Have a worker of its own do what a message says."""
        self._worker += 1
        name = f"worker-{self._worker}"
        cache = Cache(self.settings.scratch_dir / "cache", self.cache_bytes)
        children = (self.child,) * 4
        context: Any = WorkerContext(
            self.settings, self.storage, self.broker, name, cache, *children
        )
        does: dict[str, Callable[..., None]] = {
            "ingest": ingest,
            "infer": infer,
            "finish": finish,
            "render": render,
            "derive": derive,
        }
        # What Dramatiq would try again, the reconciler has to find here.
        with self.storage.gate(gate), contextlib.suppress(Crash, StorageError):
            does[message.actor_name](context, **message.kwargs)

    def freeze(self, message: Message[Any], at: int) -> Frozen | None:
        """Have a worker stop in the middle; None if its job was over before."""
        gate = Gate(at, freeze=True)
        thread = threading.Thread(target=self.work, args=(message, gate), daemon=True)
        thread.start()
        while thread.is_alive() and not gate.frozen.is_set():
            thread.join(0.001)
        return Frozen(gate, thread) if gate.frozen.is_set() else None

    # -- events

    def tell(self, events: Iterable[dict[str, Any]], gate: Gate | None = None) -> None:
        """POST events to the handlers, and let them follow."""
        body = json.dumps({"Records": list(events)}).encode()
        with self.storage.gate(gate), contextlib.suppress(Crash):
            notify.record(self.context, body)
            while follow.follow(self.context):
                pass

    def settle(self) -> None:
        """Let time pass until nothing is left to do; no event is told any more.

        Raises:
            AssertionError: there is no end to it.
        """
        quiet = 0
        for _ in range(100):
            self.clock.pass_(self.settings.lease_seconds + 1)
            repairs = self.reconciler.round()
            messages = self.messages()
            for message in messages:
                self.work(message)
            quiet = quiet + 1 if not messages and not repairs.mended else 0
            if quiet == 2:
                return
        raise AssertionError(f"it never settles: {repairs}, {messages}")
