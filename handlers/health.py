"""GET /readyz: whether uploads are taken in now; if not, which part is to blame.

A thread each asks the store, the broker and the disk, and keeps its connections. One that hangs
makes nobody wait for longer than two seconds, and what was found is good for five.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import GaugeMetricFamily, Metric

from handlers.context import Context
from handlers.events.follow import Follower
from handlers.upkeep.reconcile import Reconciler
from handlers.workers import Workers
from posedrop.buckets.storage import Storage
from posedrop.errors import PosedropError
from posedrop.transport import queue

log = logging.getLogger(__name__)

#: How long a caller waits for the parts, and how long what they said is good; seconds.
WAIT_SECONDS = 2.0
FRESH_SECONDS = 5.0
#: A batch of events takes milliseconds, unless the store is slow with every one of them.
FOLLOWER_SECONDS = 120.0
#: A round of the reconciler looks at 20,000 objects, and may have to read each; the first of all
#: sweeps takes many rounds, without a pause.
RECONCILER_SECONDS = 900.0
_PROBE_BYTES = 4096


class Probe:
    """A thread that asks one part (store, broker, disk) whether it works, and keeps the answer."""

    def __init__(self, name: str, ask: Callable[[], None]) -> None:
        """Start no thread yet; ``ask`` raises what is wrong with the part."""
        self.name = name
        self._ask = ask
        self._changed = threading.Condition()
        self._asked_at = 0.0
        self._answered_at = 0.0
        self._problem = ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"probe {name}", daemon=True)

    def begin(self) -> None:
        """Ask the part, unless it is being asked, or has answered just now."""
        with self._changed:
            if not self._thread.is_alive() and not self._closed:
                self._thread.start()
            if self._is_open or _since(self._answered_at) < FRESH_SECONDS:
                return
            self._asked_at = time.monotonic()
            self._changed.notify_all()

    def problem(self, until: float) -> str:
        """Return the code of what is wrong, empty if nothing is; at ``until`` at the latest.

        Nobody waits for an answer that is late already.

        Args:
            until: of ``time.monotonic``.
        """
        with self._changed:
            late = min(until, self._asked_at + WAIT_SECONDS)
            left = max(0.0, late - time.monotonic())
            answered = self._changed.wait_for(lambda: not self._is_open, left)
            return self._problem if answered else "no_answer"

    def close(self) -> None:
        """Ask no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _is_open(self) -> bool:
        return self._asked_at > self._answered_at

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_open or self._closed)
                if self._closed:
                    return
            problem = self._problem_now()
            with self._changed:
                self._problem = problem
                self._answered_at = time.monotonic()
                self._changed.notify_all()

    def _problem_now(self) -> str:
        try:
            self._ask()
        except Exception as error:
            code = error.code if isinstance(error, PosedropError) else "internal"
            if code != self._problem:
                log.warning("not ready, %s: %s", self.name, error)
            return code
        if self._problem:
            log.info("ready again: %s", self.name)
        return ""


class Health:
    """Whether the handlers can do their work; what /readyz and /metrics say of it."""

    def __init__(self, context: Context, follower: Follower, reconciler: Reconciler) -> None:
        self._context = context
        self._follower = follower
        self._reconciler = reconciler
        self._waiting: dict[str, int] = {}
        self._alive: dict[str, int] = {}
        self._workers = Workers()
        self._store = Storage(context.settings, read_seconds=WAIT_SECONDS, attempts=1)
        self._probes = (
            Probe("store", self._ask_store),
            Probe("broker", self._ask_broker),
            Probe("disk", self._ask_disk),
        )
        #: Not the threads of other requests, which a store that hangs may have all of.
        self.threads = ThreadPoolExecutor(2, "health")

    def close(self) -> None:
        """Ask no more."""
        for probe in self._probes:
            probe.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def problems(self) -> dict[str, str]:
        """Return the code of what is wrong, by part; empty for each that is as it should be."""
        until = time.monotonic() + WAIT_SECONDS
        for probe in self._probes:
            probe.begin()
        rounds = 5 * self._context.settings.reconcile_seconds
        return {
            "follower": _of_thread(self._follower, FOLLOWER_SECONDS),
            "reconciler": _of_thread(self._reconciler, RECONCILER_SECONDS + rounds),
            **{probe.name: probe.problem(until) for probe in self._probes},
        }

    def metrics(self) -> list[Metric]:
        """Return metrics of parts that are ready, messages that wait, and workers that live."""
        problems = self.problems()
        ready = GaugeMetricFamily("posedrop_ready", "Parts that do their work", labels=["part"])
        for part, problem in problems.items():
            ready.add_metric([part], float(not problem))
        waiting = GaugeMetricFamily(
            "posedrop_messages_waiting",
            "Messages in the broker that no worker has fetched",
            labels=["queue"],
        )
        if not problems["broker"]:
            for name, count in self._waiting.items():
                waiting.add_metric([name], count)
        workers = GaugeMetricFamily(
            "posedrop_workers", "Workers that were heard of lately", labels=["queue"]
        )
        if not problems["store"]:
            for name, count in self._alive.items():
                workers.add_metric([name], count)
        return [ready, waiting, workers]

    def _ask_store(self) -> None:
        settings = self._context.settings
        for bucket in (settings.videos_bucket, settings.results_bucket):
            self._store.ping(bucket)
        self._alive = self._workers.by_queue(self._store, settings, self._context.clock())

    def _ask_broker(self) -> None:
        names = (queue.CPU, queue.GPU)
        self._waiting = {name: queue.ready(self._context.broker, name) for name in names}

    def _ask_disk(self) -> None:
        """Write a little beside the index, and take the index's own turn to write."""
        folder = self._context.settings.index_file.parent
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
        except OSError as error:
            message = f"can't write to {folder} ({error})"
            raise PosedropError(message, code="index_unwritable") from error
        with self._context.index.together():
            pass


def _of_thread(thread: Follower | Reconciler, seconds: float) -> str:
    if not thread.is_alive:
        return "ended"
    return "silent" if thread.silent_seconds > seconds else ""


def _since(moment: float) -> float:
    return time.monotonic() - moment
