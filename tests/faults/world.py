"""posedrop in one thread, on a store in memory: every step can be doubled, dropped, cut or frozen.

The handlers and the worker are the real ones. The store is a dictionary with S3's promises
(create-once, If-Match) and a clock that stands until it is moved. A job can be cut before or after
any of its calls to the store, as kill -9 does, or frozen there and woken up later, as SIGSTOP does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from dramatiq import Message

from handlers import context as handlers_context
from handlers import upload
from handlers.context import Context
from handlers.events import letters, notify
from handlers.runs import copies, plan, results, rules, waiting
from handlers.upkeep import reconcile, retention
from posedrop import analyses
from posedrop.buckets.storage import Listing, ObjectInfo, Storage, UnfinishedUpload
from posedrop.errors import AnalysisError, ObjectChangedError, RefusedVideoError, StorageError
from posedrop.index.index import Index
from posedrop.settings import Settings, load
from posedrop.transport import queue
from worker.cache import Cache
from worker.jobs.infer import infer
from worker.jobs.ingest import ingest
from worker.jobs.render import render
from worker.own_record import OwnRecord

VIDEOS, RESULTS = "videos", "results"


class Crash(BaseException):
    """The process ends here and now; nothing catches it."""


class Clock:
    """A time that passes only when told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return it."""
        return self.time

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)


class Gate:
    """Where one thread of execution is cut or frozen: at its ``at``-th call to the store."""

    def __init__(
        self, at: int, *, freeze: bool = False, after: bool = False, raises: type | None = None
    ) -> None:
        self.left = at
        self.freeze = freeze
        self.after = after
        self.raises = raises or Crash
        self.frozen = threading.Event()
        self.woken = threading.Event()

    def passed(self) -> None:
        """Count a call; crash, or wait to be woken up, if it is the one."""
        self.left -= 1
        if self.left == 0:
            if not self.freeze:
                raise self.raises("the store is away")
            self.frozen.set()
            self.woken.wait()


@dataclass(frozen=True)
class Stored:
    """An object of the store."""

    data: bytes
    info: ObjectInfo


class MemoryStorage(Storage):
    """The buckets in memory."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.buckets: dict[str, dict[str, Stored]] = {VIDEOS: {}, RESULTS: {}, "models": {}}
        self.events: list[dict[str, Any]] = []
        self.downloads: list[tuple[str, str]] = []
        #: Objects that nobody can delete or write over: a lock, a policy.
        self.locked: set[tuple[str, str]] = set()
        #: Objects that can't be read: a policy, a damaged disk below the store.
        self.unreadable: set[tuple[str, str]] = set()
        #: Uploads in parts that are not over: their buckets, keys, ids, and when each was begun.
        self.in_parts: list[tuple[str, UnfinishedUpload]] = []
        self._gates = threading.local()
        self._count = 0

    @contextlib.contextmanager
    def gate(self, gate: Gate | None) -> Iterator[None]:
        """Have this thread cut or frozen within the block."""
        self._gates.gate = gate
        try:
            yield
        finally:
            self._gates.gate = None

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        gate: Gate | None = getattr(self._gates, "gate", None)
        if gate is not None and not gate.after:
            gate.passed()
        yield
        if gate is not None and gate.after:
            gate.passed()

    # -- reading

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        with self._call():
            found = self.buckets[bucket].get(key)
            if found is None:
                return None
            # HEAD tells whole seconds, a listing milliseconds.
            whole = found.info.last_modified.replace(microsecond=0)
            return replace(found.info, last_modified=whole)

    def read(self, bucket: str, key: str, etag: str | None = None) -> bytes | None:
        with self._call():
            if (bucket, key) in self.unreadable:
                raise StorageError(f"can't read {bucket}/{key}: AccessDenied")
            found = self.buckets[bucket].get(key)
            if found is not None and etag not in {None, found.info.etag}:
                raise ObjectChangedError(f"{bucket}/{key} was replaced")
            return found.data if found else None

    def download(
        self, bucket: str, key: str, path: Path, etag: str | None = None
    ) -> dict[str, str]:
        with self._call():
            found = self.buckets[bucket].get(key)
            if found is None or (etag is not None and found.info.etag != etag):
                raise ObjectChangedError(f"{bucket}/{key} was replaced")
            self.downloads.append((bucket, key))
            path.write_bytes(found.data)
            return {
                "sha256": hashlib.sha256(found.data).hexdigest(),
                "sha1": hashlib.sha1(found.data, usedforsecurity=False).hexdigest(),
            }

    def objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call():
            found = self._below(bucket, prefix)
        for info in found:
            yield replace(info, metadata={})

    def listing(self, bucket: str, prefix: str) -> Listing:
        with self._call():
            return Listing(self._below(bucket, prefix), self.clock())

    def folders(self, bucket: str, prefix: str = "") -> list[str]:  # noqa: ARG002
        return []

    def _below(self, bucket: str, prefix: str) -> list[ObjectInfo]:
        objects = self.buckets[bucket]
        return [objects[key].info for key in sorted(k for k in objects if k.startswith(prefix))]

    def presign_get(self, bucket: str, key: str, **_: str) -> str:
        assert key in self.buckets[bucket], key
        return f"{bucket}/{key}"

    # -- writing

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        with self._call():
            if key in self.buckets[bucket]:
                return False
            self.put(bucket, key, data)
            return True

    def write(
        self,
        bucket: str,
        key: str,
        data: bytes,
        content_type: str = "application/json",  # noqa: ARG002
    ) -> None:
        with self._call():
            self.put(bucket, key, data)

    def upload(
        self,
        bucket: str,
        key: str,
        source: Path | IO[bytes],
        content_type: str,  # noqa: ARG002
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        with self._call():
            self.put(bucket, key, data, metadata)

    def upload_new(
        self,
        bucket: str,
        key: str,
        path: Path,
        content_type: str,  # noqa: ARG002
        sha256: str,  # noqa: ARG002
    ) -> bool:
        return self.create(bucket, key, path.read_bytes())

    def copy(self, bucket: str, source: ObjectInfo, key: str, content_type: str) -> bool:  # noqa: ARG002
        with self._call():
            found = self.buckets[bucket].get(source.key)
            if found is None or found.info.etag != source.etag:
                return False
            self.put(bucket, key, found.data)
            return True

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        for key in keys:
            with self._call():
                if (bucket, key) in self.locked:
                    raise StorageError(f"can't delete {bucket}/{key}: AccessDenied")
                self.remove(bucket, key)

    def unfinished_uploads(self, bucket: str) -> Iterator[UnfinishedUpload]:
        with self._call():
            yield from [upload for where, upload in self.in_parts if where == bucket]

    def abort_upload(self, bucket: str, upload: UnfinishedUpload) -> None:
        with self._call():
            self.in_parts.remove((bucket, upload))

    # -- as people's S3 tools do it

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        parts: int | None = None,
    ) -> None:
        """Write an object, or copy it onto itself, and note the event."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        etag += f"-{parts}" if parts is not None else ""
        info = ObjectInfo(key, etag, len(data), self.clock(), dict(metadata or {}))
        self.buckets[bucket][key] = Stored(data, info)
        self._note("s3:ObjectCreated:Put", bucket, key, {"eTag": etag, "size": len(data)})

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object, and note the event."""
        if self.buckets[bucket].pop(key, None) is not None:
            self._note("s3:ObjectRemoved:Delete", bucket, key, {})

    def _note(self, name: str, bucket: str, key: str, more: dict[str, Any]) -> None:
        self._count += 1
        told = {"key": quote(key), "sequencer": f"{self._count:016X}", **more}
        s3 = {"bucket": {"name": bucket}, "object": told}
        self.events.append({"eventSource": "minio:s3", "eventName": name, "s3": s3})


class Child:
    """The child process: what is no video is refused, what is poison fails each time.

    The same video never makes the same bytes.
    """

    walls = None

    def start(self) -> None:
        """It is there."""

    def call(self, task: str, payload: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Answer as the real child would."""
        if task == "worker.video.preflight:probe":
            film = Path(payload["video"]).read_bytes()
            if film.startswith(b"poison"):
                raise AnalysisError("the decoder fails", code="internal")
            if film.startswith(b"bad"):
                raise RefusedVideoError("no video", code="not_a_video")
            return {"probe": PROBE}
        nonce = os.urandom(8).hex()
        (Path(payload["out"]).parent / "run.log").write_text(f"log {nonce}")
        if task == "worker.video.draw:render":
            (Path(payload["out"]) / "pose.mp4").write_text(f"drawn {nonce}")
            return {"timings": {}}
        (Path(payload["out"]) / _left(task, payload["analysis"])).write_text(f"poses {nonce}")
        counts = {"frames_expected": 2, "frames_decoded": 2, "rows": 2}
        return {**counts, "missing": [], "timings": {}, "versions": {}, "details": {}}


def _left(task: str, analysis: str) -> str:
    """Return the name of what a task of an analysis leaves."""
    if task == "worker.child.tasks:finish_analysis":
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
        self._modules = (
            handlers_context,
            letters,
            copies,
            notify,
            plan,
            reconcile,
            results,
            retention,
            rules,
            upload,
            waiting,
        )
        self._real_now = handlers_context.now
        for module in self._modules:
            if hasattr(module, "now"):
                module.now = self.clock  # type: ignore[attr-defined]
        self.open()

    def set_handlers_ahead(self, ahead: timedelta) -> None:
        """Have the handlers' clock wrong; the store's goes on as it was."""
        for module in self._modules:
            if hasattr(module, "now"):
                module.now = lambda: self.clock() + ahead  # type: ignore[attr-defined]

    def open(self) -> None:
        """Start the handlers, on whatever index there is."""
        self.context = Context(
            self.settings, self.storage, Index(self.folder / "index.sqlite"), self.broker
        )
        self.reconciler = reconcile.Reconciler(self.context)

    def close(self) -> None:
        """End the handlers."""
        self.context.index.close()

    def end(self) -> None:
        """End everything, and give the modules their own time back."""
        self.close()
        for module in self._modules:
            if hasattr(module, "now"):
                module.now = self._real_now  # type: ignore[attr-defined]

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
        children = self.child, self.child, self.child
        context: Any = WorkerContext(
            self.settings, self.storage, self.broker, name, cache, *children
        )
        does: dict[str, Callable[..., None]] = {
            "ingest": ingest,
            "infer": infer,
            "render": render,
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
            while notify.follow(self.context):
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
