"""The reconciler: buckets against index, index against queue; what differs is repaired.

Everything that an event, a message or a process lost is found here, at start and every minute. A
round asks the index alone what nobody is at, and looks at the next slice of both buckets: what a
round costs does not grow with the buckets, only how many rounds a whole sweep takes.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime

from handlers.context import Context
from handlers.runs import copies
from handlers.upkeep.abandoned_parts import AbandonedParts
from handlers.upkeep.reingest import OldRefusals
from handlers.upkeep.repairs import Repairs
from handlers.upkeep.send_again import send_again
from handlers.upkeep.sweep import Sweep
from posedrop.errors import PosedropError

log = logging.getLogger(__name__)


#: How many objects and rows a round looks at; benchmarks/scale.py says what a thousand cost.
SLICE = 20_000
#: After a round that failed: a store that has just started may answer 500 for a moment.
_SOON_SECONDS = 5.0


class Reconciler:
    """The thread that reconciles at start and then every ``reconcile_seconds``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._one_at_a_time = threading.Lock()
        self._sweep: Sweep | None = None
        self._succeeded_at = time.monotonic()
        self._stuck: set[str] = set()
        self._old_refusals = OldRefusals(context)
        self._parts = AbandonedParts(context)
        # The embedded broker lives in this process: what was sent before its start is gone.
        embedded = context.settings.broker_url.startswith("stub://")
        self._forgotten_before = context.clock() if embedded else None

    def start(self) -> None:
        """Begin; the first sweep goes on without a pause until all of both buckets was seen."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since a round came through, or since the start."""
        return time.monotonic() - self._succeeded_at

    def stop(self) -> None:
        """End between two rounds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def round(self) -> Repairs:
        """Reconcile all of buckets, index and queue, now."""
        with self._one_at_a_time:
            self._sweep = None
            repairs = reconcile(self._context, self._forgotten(), self._stuck)
            repairs.ingests_sent += self._old_refusals.go_on()
            self._parts.go_on(repairs)
            return self._succeeded(repairs)

    def reindex(self) -> Repairs:
        """Forget the index and make it anew from the buckets."""
        with self._one_at_a_time:
            self._sweep = None
            self._context.index.reset()
            return self._succeeded(reconcile(self._context, self._context.clock()))

    def step(self) -> bool:
        """Reconcile what the index knows, and the next slice; True at the end of a sweep."""
        with self._one_at_a_time:
            repairs = Repairs()
            send_again(self._context, repairs, self._forgotten())
            repairs.ingests_sent += self._old_refusals.go_on()
            if self._sweep is None or self._sweep.is_stuck:
                self._sweep = Sweep(self._context, self._stuck)
            over = self._sweep.go_on(repairs, SLICE)  # if it fails, the next round goes on there
            if over:
                self._sweep = None
            self._parts.go_on(repairs)
            self._succeeded(repairs)
        self._context.to_copy.set()
        if repairs.mended or repairs.held_back or repairs.undeletable or repairs.damaged:
            log.info("reconciled", extra=repairs.as_counts())
        return over

    def _run(self) -> None:
        swept = False
        while not self._stop.is_set():
            pause = min(_SOON_SECONDS, self._context.settings.reconcile_seconds)
            try:
                swept = self.step() or swept
                pause = self._context.settings.reconcile_seconds if swept else 0.0
            except Exception as error:
                self._context.metrics.rounds.labels("failed").inc()
                known = isinstance(error, PosedropError)
                log.warning(
                    "the reconciler tries again later: %s", error, exc_info=None if known else error
                )
            self._stop.wait(pause)

    def _forgotten(self) -> datetime | None:
        """Return before which time all messages are lost; never one that is still to come.

        A clock set back behind this process' start would make all that it sends look lost.
        """
        if self._forgotten_before is not None:
            self._forgotten_before = min(self._forgotten_before, self._context.clock())
        return self._forgotten_before

    def _succeeded(self, repairs: Repairs) -> Repairs:
        self._succeeded_at = time.monotonic()
        counts = repairs.as_counts().items()
        mended = {name: count for name, count in counts if not name.endswith("_seen")}
        self._context.metrics.reconciled(mended, self._context.clock())
        return repairs


def reconcile(
    context: Context, forgotten_before: datetime | None, stuck: set[str] | None = None
) -> Repairs:
    """Compare buckets, index and queue once, and repair what differs; return what was mended.

    Messages that were sent before ``forgotten_before`` are lost for certain.
    """
    repairs = Repairs()
    # First what lets work go on, whatever the buckets hold; at the end what they told of.
    send_again(context, repairs, forgotten_before)
    Sweep(context, stuck).go_on(repairs, None)
    send_again(context, repairs, forgotten_before)
    repairs.results_copied = copies.go_on(context)
    return repairs
