"""What an open page is told: ``GET /stream``, server-sent events, in place of asking every second.

One task of the event loop gathers what has changed, looks it up once for all listeners, in one
thread, and tells it to each. What the workers do takes the store: that is looked up in another
thread, so that a slow store holds up no change. A listener is a queue in memory and a connection,
never a thread.

| event | data |
|---|---|
| `fresh` | what was told since the listener's last event is not known: read the lists anew |
| `runs` | runs that changed, as `GET /analyses` has them, and the ids of those that are gone |
| `files` | files that changed, as `GET /files` has them, and the ids of those that are gone |
| `progress` | of all runs that are worked on: how far, how fast, until when |
| `queue` | which runs wait for a network, in their order, and why |
| `beat` | nothing: the connection lives |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handlers import upload
from handlers.context import Context
from handlers.runs import cost, estimate
from handlers.runs.estimate import AtWork, Speeds, Work
from handlers.workers import Records
from posedrop.api.answer import Answer
from posedrop.api.runs import RunRow
from posedrop.buckets.records import requests
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.runs import FINAL
from posedrop.buckets.records.videos import Probe
from posedrop.buckets.records.workers import WorkerJob, WorkerRecord
from posedrop.errors import BadRequestError, BusyError, PosedropError
from posedrop.index.database import Changes
from posedrop.index.index import AnalysisRow
from posedrop.index.schema import MOST_TOLD
from posedrop.transport import queue

log = logging.getLogger(__name__)

#: Listeners at a time; a further one is refused, and asks again.
MOST_LISTENERS = 200
#: Events that one listener may lag behind, and that are kept for those who come back.
_KEPT = 256
#: Seconds in which changes are gathered, and between two looks at the workers' records.
GATHER_SECONDS, TICK_SECONDS = 0.15, 1.0
#: Seconds of silence after which a beat is sent: proxies cut off what is silent, and pages take it
#: for dead.
BEAT_SECONDS = 15.0
#: Of more changed rows the lists are read anew.
_MOST_ROWS = 200
#: Runs that wait, of which it is told in which order they come.
_MOST_WAITING = 200
_TASKS = frozenset({"infer", "render"})

_Events = list[tuple[str, Any]]


class Stream:
    """Listeners, and what they are told."""

    def __init__(self, context: Context) -> None:
        """Nobody listens yet; from now on the index tells what changes.

        Args:
            context: that for callers, whose waits for the store are short.
        """
        self._context = context
        self._boot = uuid.uuid4().hex[:12]
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._changed: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._looking = anyio.CapacityLimiter(1)
        self._working = anyio.CapacityLimiter(1)
        self._records = Records()
        self._works: dict[str, Work | None] = {}
        self._last: dict[str, str] = {}
        context.index.on_change = self._change

    # -- from its start to its end

    def start(self) -> None:
        """Begin to tell, in the event loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="stream")

    async def stop(self) -> None:
        """End; each listener's answer ends with it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for each in list(self._listeners):
            self._cut(each)

    def _change(self, changes: Changes) -> None:
        """Note what a transaction changed; called by the thread that made it."""
        loop = self._loop
        if loop is None or not self._listeners:
            return
        with self._lock:
            self._changed |= changes
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._wake.set)

    # -- listeners

    def listen(self, last_id: str | None) -> asyncio.Queue[bytes | None]:
        """Return the queue of a new listener; None in it: the answer is to end.

        Args:
            last_id: of the last event that it has seen.

        Raises:
            BusyError: there are too many.
        """
        if len(self._listeners) >= MOST_LISTENERS:
            raise BusyError("too many pages are open: this one reads the lists by itself")
        listener: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2 * _KEPT)
        missed = self._missed(last_id)
        if missed is None:
            listener.put_nowait(self._encoded("fresh", {}))
            for event in ("queue", "progress"):
                if event in self._last:
                    listener.put_nowait(f"event: {event}\ndata: {self._last[event]}\n\n".encode())
        for message in missed or ():
            listener.put_nowait(message)
        self._listeners.add(listener)
        self._wake.set()
        return listener

    def leave(self, listener: asyncio.Queue[bytes | None]) -> None:
        """Forget a listener; after the last one, what was told is forgotten too."""
        self._listeners.discard(listener)
        if not self._listeners:
            self._kept.clear()
            self._last.clear()
            self._number += 1  # what changes from now on, nobody is told

    def _missed(self, last_id: str | None) -> list[bytes] | None:
        boot, _, number = (last_id or "").partition(".")
        if boot != self._boot or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        seen = int(number)
        if seen == self._number:
            return []
        missed = [message for at, message in self._kept if at > seen]
        return missed if len(missed) == self._number - seen else None

    def _encoded(self, event: str, data: Any) -> bytes:
        text = json.dumps(data, separators=(",", ":"))
        return f"id: {self._boot}.{self._number}\nevent: {event}\ndata: {text}\n\n".encode()

    def _tell(self, event: str, data: Any) -> None:
        self._number += 1
        message = self._encoded(event, data)
        self._kept.append((self._number, message))
        for listener in list(self._listeners):
            try:
                listener.put_nowait(message)
            except asyncio.QueueFull:  # it comes again, with the last event that it has seen
                self._cut(listener)

    def _cut(self, listener: asyncio.Queue[bytes | None]) -> None:
        self.leave(listener)
        while not listener.empty():
            listener.get_nowait()
        listener.put_nowait(None)

    # -- what is told

    async def _run(self) -> None:
        worked_at = 0.0
        work: asyncio.Task[None] | None = None
        try:
            while True:
                # Without a listener, nothing is looked at.
                seconds = TICK_SECONDS if self._listeners else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), seconds)
                await asyncio.sleep(GATHER_SECONDS)
                self._wake.clear()
                if not self._listeners:
                    continue
                with self._lock:
                    changed, self._changed = self._changed, set()
                if changed:
                    look = partial(self._look, changed)
                    await self._tell_all(look, [("fresh", {})], self._looking)
                is_time = time.monotonic() - worked_at >= TICK_SECONDS or not self._last
                if is_time and (work is None or work.done()):
                    worked_at = time.monotonic()
                    # Not waited for: it needs the store, and what changes does not.
                    telling = self._tell_all(self._work, [], self._working)
                    work = asyncio.create_task(telling, name="stream of work")
        finally:
            if work is not None:
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work

    async def _tell_all(
        self, look: Callable[[], _Events], otherwise: _Events, limiter: anyio.CapacityLimiter
    ) -> None:
        """Tell what a look finds, in a thread; what else, where that fails."""
        try:
            told = await anyio.to_thread.run_sync(look, limiter=limiter)
        except Exception as error:
            known = isinstance(error, PosedropError)
            log.warning("not all is told to pages: %s", error, exc_info=None if known else error)
            told = otherwise
        if not self._listeners:  # all have left meanwhile: it would be old for the next one
            return
        for event, data in told:
            if event in {"progress", "queue"}:
                text = json.dumps(data, separators=(",", ":"))
                if self._last.get(event) == text:
                    continue
                self._last[event] = text
            self._tell(event, data)

    def _look(self, changed: set[tuple[str, str]]) -> _Events:
        """Look up what changed; in a thread."""
        told: _Events = []
        index = self._context.index
        runs = [name for table, name in changed if table == "analysis"]
        files = [name for table, name in changed if table == "uploaded_file"]
        if len(changed) >= MOST_TOLD or len(runs) + len(files) > _MOST_ROWS:
            told.append(("fresh", {}))
        else:
            rows = {name: index.analysis(name) for name in runs}
            if runs:
                items = [_as_json(RunRow, row) for row in rows.values() if row is not None]
                gone = [name for name, row in rows.items() if row is None]
                told.append(("runs", {"items": items, "gone": gone}))
            found = {name: index.file(name) for name in files}
            if files:
                there = [row for row in found.values() if row is not None]
                answers = upload.file_answers(self._context, there)
                items = [answer.model_dump(mode="json") for answer in answers]
                gone = [name for name, row in found.items() if row is None]
                told.append(("files", {"items": items, "gone": gone}))
        return told

    def _work(self) -> _Events:
        """Return how far the runs are that are worked on, and who waits, with estimates."""
        context = self._context
        now = context.clock()
        workers = self._records.read(context.storage, context.settings)
        speeds = Speeds({worker.worker_id: worker.speeds for worker, _ in workers})
        progress: list[dict[str, Any]] = []
        at_network: set[str] = set()
        free: dict[str, float | None] = {}
        for worker, age in workers:
            written = now - timedelta(seconds=age)
            jobs = self._jobs(worker, written)
            infers = [at for job, at in jobs if job.task == "infer"]
            left, network = estimate.at_one_worker(speeds, infers, worker.worker_id)
            left |= {
                at.name: estimate.render_left(speeds, at)
                for job, at in jobs
                if job.task == "render"
            }
            at_network |= {at.name for at in infers}
            if queue.GPU in worker.queues:
                free[worker.worker_id] = max(0.0, network - age) if network is not None else None
            progress += [_progress(at.name, job, _at(written, left[at.name])) for job, at in jobs]
        index = context.index
        order = index.gpu_order(_MOST_WAITING)
        waits = [each.analysis_id for each in order if each.analysis_id not in at_network]
        rows = {name: index.analysis(name) for name in waits}
        works = {name: self._asked(row) if row is not None else None for name, row in rows.items()}
        ends = estimate.ends(free, speeds, works)
        waiting = {
            "gpu_workers": len(free),
            "runs": [
                {
                    "id": row.analysis_id,
                    "name": row.run.rsplit("/", 2)[-2],
                    "waits": row.analysis_id not in at_network,
                    "ends_at": _at(now, ends.get(row.analysis_id)),
                }
                for row in order
            ],
            "all": len(order) < _MOST_WAITING,
        }
        return [("progress", progress), ("queue", waiting)]

    def _jobs(self, worker: WorkerRecord, written: datetime) -> list[tuple[WorkerJob, AtWork]]:
        """Return the jobs of a worker that are at runs which are not over."""
        found = []
        for job in worker.jobs:
            if job.task not in _TASKS or job.run is None:
                continue
            name = job.run.rsplit("-", 1)[-1]
            row = self._context.index.analysis(name)
            if row is not None and row.state not in FINAL:
                elapsed = (written - job.started_at).total_seconds()
                found.append((job, AtWork(name, self._asked(row), job.progress, elapsed)))
        return found

    def _asked(self, row: AnalysisRow) -> Work | None:
        """Return the work that a run is; None: its film or its analysis is not known here."""
        if row.analysis_id not in self._works:
            file = self._context.index.file(row.file_id)
            if len(self._works) >= 10 * _MOST_WAITING:
                self._works.clear()
            self._works[row.analysis_id] = (
                _work_of(row, file.probe) if file is not None and file.probe is not None else None
            )
        return self._works[row.analysis_id]


def _work_of(row: AnalysisRow, probe: Probe) -> Work | None:
    known = row.model is not None and row.model_digest is not None
    ref = ModelRef(name=row.model, digest=row.model_digest) if known else None  # type: ignore[arg-type]
    try:
        behind = cost.steps_behind(row.analysis, row.args)
    except BadRequestError:
        return None
    width, height = requests.Request.model_construct(args=row.args, probe=probe).frame_size
    frames = cost.frames_asked(row.args, probe.frames)
    return Work((row.analysis, ref), frames, width, height, behind)


def _as_json(kind: type[Answer], row: object) -> dict[str, Any]:
    return kind.model_validate(row).model_dump(mode="json")


def _at(now: datetime, seconds: float | None) -> str | None:
    """Return when that will be, in whole seconds."""
    if seconds is None or seconds > 10 * 365 * 86400:
        return None
    whole = (now + timedelta(seconds=seconds)).replace(microsecond=0)
    return whole.isoformat()


def _progress(name: str, job: WorkerJob, ends_at: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "attempt": job.attempt,
        **job.progress.model_dump(mode="json"),
        "ends_at": ends_at,
    }


class EventStream(Response):
    """The answer to one listener: it ends when the listener goes, or the stream."""

    def __init__(self, stream: Stream, last_id: str | None) -> None:
        """Begin to listen.

        Raises:
            BusyError: there are too many listeners.
        """
        super().__init__()
        self._stream = stream
        self._listener = stream.listen(last_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send what the listener is told, and a beat where that is nothing for long."""
        headers = {
            b"content-type": b"text/event-stream; charset=utf-8",
            b"cache-control": b"no-store",
            b"x-accel-buffering": b"no",  # nginx would gather it
        }
        start = {"type": "http.response.start", "status": 200, "headers": [*headers.items()]}
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send(start)
            # Whoever was cut off asks again in about so many milliseconds.
            await _send(send, b"retry: 2000\n\n")
            while not gone.done():
                message = asyncio.ensure_future(self._listener.get())
                done, _ = await asyncio.wait(
                    {message, gone}, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if message not in done:
                    message.cancel()
                    if not done:
                        await _send(send, b"event: beat\ndata: {}\n\n")
                    continue
                told = message.result()
                if told is None:
                    break
                await _send(send, told)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._stream.leave(self._listener)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
