"""The gpu queue: whose run is sent next to the workers that have a network.

In the broker are two messages a gpu worker: the run at work, and the one that is made ready. All
others wait in the index, so that a thousand films of one lab hold up no film of another. When a run
has its predictions, the next one is chosen: the groups (first folders of the videos' keys) go
round, and of a group the oldest run goes first. What the index says is looked up in the bucket
before a message is sent; so a run that somebody is at, or that is over, is sent to nobody. One
whose predictions are there, its own or another run's, goes to the cpu workers at once. One of which
the store does not give a record is set aside for a while: the others have their turns.

The event of those predictions goes past all that waits to be followed: once recorded, it wakes a
thread of its own (``Chooser``), which looks whether they are there and sends the next run. If that
is lost with the process, the follower comes to the same event.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from handlers.apart import apart
from handlers.context import Context
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt
from posedrop.buckets.records.requests import Request
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import PosedropError, RecordError

log = logging.getLogger(__name__)

#: Messages in the broker a gpu worker: one at work, one made ready meanwhile. With one alone the
#: accelerator would idle between two films, with more the choice would be made too early.
A_WORKER = 2
#: What a run has once its network is done.
FOUND = frozenset({layout.PREDICTIONS, layout.INFERENCE})
#: So many objects wait to be looked for by the chooser; of further ones the follower hears.
_MAYBE_OVER = 1000
#: So many runs are looked at in a row, then others have their turn at the thread.
_AT_ONCE = 200
#: Between two looks at runs that have had the network for long.
_LOOK = timedelta(seconds=5)
#: A group that has waited for a smaller share of a turn asks nobody to stop.
_WAITED = 1 / 30
#: Stages of a run before its network computes.
_MADE_READY = frozenset({"claimed", "fetch the model", "fetch", "load", "wait", "decode"})
#: One that was asked has so long to come to its next checkpoint, then another is asked.
_PATIENCE = timedelta(minutes=10)


class Chooser:
    """The thread that sends the next run as soon as an event says that one needs no network."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chooser", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the choice at hand."""
        self._stop.set()
        self._context.choosing.woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        woken = self._context.choosing.woken
        while woken.wait() and not self._stop.is_set():
            woken.clear()
            send_next(self._context)


class Seen(NamedTuple):
    """A run as the bucket knows it now."""

    names: dict[str, ObjectInfo]
    """Its objects, by their names below its folder."""
    alive: bool
    """Whether a worker is at it, heard of within a lease."""
    computes: bool
    """Whether that worker has its network at it: it is neither fetched nor made ready."""
    number: int
    """Of its last attempt, 0: there was none."""
    handed_back: bool
    """Whether that attempt was ended lately for another to go on."""
    left_lately: bool
    """Whether a worker that is too old has left it to newer ones, within a lease."""


def look(context: Context, run: str) -> Seen:
    """Return what the bucket knows of a run.

    Raises:
        StorageError: the store is away.
    """
    bucket = context.settings.results_bucket
    lease = context.settings.lease_seconds
    keys = layout.Run(run)
    listing = context.storage.listing(bucket, keys.folder)
    names = {keys.name(found.key): found for found in listing.objects}

    def is_recent(name: str) -> bool:
        return (listing.now - names[name].last_modified).total_seconds() < lease

    left_lately = layout.NEEDS_NEWER in names and is_recent(layout.NEEDS_NEWER)
    number = max((n for name in names if (n := layout.attempt_number(name))), default=0)
    if number == 0 or not is_recent(keys.name(keys.attempt(number))):
        return Seen(names, False, False, number, False, left_lately)
    try:
        attempt = context.storage.read_whole_record(bucket, keys.attempt(number), Attempt)
    except RecordError as error:  # a newer worker is at it
        context.storage.report(error)
        return Seen(names, True, True, number, False, left_lately)
    if attempt is None:
        return Seen(names, False, False, number, False, left_lately)
    alive = attempt.outcome is None
    computes = alive and attempt.progress.stage not in _MADE_READY
    handed_back = attempt.outcome == "handed_back"
    return Seen(names, alive, computes, number, handed_back, left_lately)


def may_be_over(context: Context, key: str) -> None:
    """Wake the chooser if ``key``, of which an event tells, says that a run needs no network more.

    Nothing is believed here, and nothing slow is done: an event is taken within milliseconds.
    """
    choosing = context.choosing
    if len(choosing.maybe_over) < _MAYBE_OVER and _over_by(context, key) is not None:
        choosing.maybe_over.add(key)
        choosing.woken.set()


def _over_by(context: Context, key: str) -> str | None:
    """Return the id of the run in the gpu queue that needs no network once ``key`` is there."""
    match layout.parse_result_key(key):
        case layout.RunObject(run=run, analysis_id=analysis_id, name=name):
            ends = name == layout.RESULT or name in FOUND
            return analysis_id if ends and context.index.gpu_needed(analysis_id, run) else None
        case _:
            return None


def send_next(context: Context) -> None:
    """Send as many runs as the gpu workers have room for; without an error, others come again.

    The follower, the reconciler and whoever asks for a run call this whenever something may have
    changed. One of them does it for all.
    """
    choosing = context.choosing
    choosing.wanted.set()
    while choosing.wanted.is_set() and choosing.one_at_a_time.acquire(blocking=False):
        try:
            choosing.wanted.clear()
            _send_next(context, context.clock())
        except PosedropError as error:
            log.warning("the next runs are sent later: %s", error)
            return
        except Exception:
            log.exception("the next runs are sent later")
            return
        finally:
            choosing.one_at_a_time.release()


def _send_next(context: Context, now: datetime) -> None:
    index = context.index
    _free_places(context)
    index.gpu_unparked(now)
    _let_others_go_first(context, now)
    for _ in range(_AT_ONCE):
        row = index.gpu_next()
        if row is None:
            return
        if index.gpu_taken() >= A_WORKER * _gpu_workers(context, now):
            return
        _send(context, row.analysis_id, row.run, now)


def _free_places(context: Context) -> None:
    """Free the places of runs whose predictions, or result, an event told of and are there."""
    while context.choosing.maybe_over:
        key = context.choosing.maybe_over.pop()
        if context.storage.head(context.settings.results_bucket, key) is None:
            continue  # the event was forged, or the object is removed since
        if (analysis_id := _over_by(context, key)) is not None:
            context.index.gpu_over(analysis_id)


def _gpu_workers(context: Context, now: datetime) -> int:
    return context.choosing.workers.gpu(context.storage, context.settings, now)


def _send(context: Context, analysis_id: str, run: str, now: datetime) -> None:
    """Send a run whose turn it is, unless the bucket knows better.

    The message first, then the index: if this process dies in between, the run is sent twice, and
    who takes the second message finds it claimed.
    """
    with apart(context, f"{run} is sent later") as trial:
        _send_what_is_due(context, analysis_id, run, now)
    if trial.failed:  # else it would be the next one for good, and nobody's run be sent
        park(context, analysis_id, now)


def _send_what_is_due(context: Context, analysis_id: str, run: str, now: datetime) -> None:
    seen = look(context, run)
    is_found = not FOUND.isdisjoint(seen.names)
    if layout.RESULT in seen.names or layout.REQUEST not in seen.names or (is_found and seen.alive):
        context.index.gpu_over(analysis_id)
    elif layout.INFERENCE in seen.names:
        context.enqueue_render(analysis_id, run)
        context.index.gpu_over(analysis_id)
    elif seen.alive:
        context.index.gpu_sent(analysis_id, now)
    elif seen.left_lately:
        park(context, analysis_id, now)
    elif not needs_network(context, run, seen.names):
        context.enqueue_finish(analysis_id, run)
        context.index.gpu_over(analysis_id)
    else:
        context.enqueue_infer(analysis_id, run)


def needs_network(context: Context, run: str, names: Collection[str]) -> bool:
    """Tell whether a run that nobody is at, and that has no poses yet, waits for a network.

    Args:
        context: the handlers' tools.
        run: its folder.
        names: of its objects.
    """
    if layout.NEEDS_NETWORK in names:
        return True
    if layout.PREDICTIONS in names:
        return False
    bucket, key = context.settings.results_bucket, layout.Run(run).request
    try:
        request = context.storage.read_whole_record(bucket, key, Request)
    except RecordError:  # of a newer posedrop: a worker leaves it to one that is as new
        return True
    return request is None or request.needs_network


def go_on(context: Context, analysis_id: str, run: str, names: Collection[str]) -> None:
    """Have a run made that has no poses yet: now, of predictions; or by a network, in its turn."""
    if needs_network(context, run, names):
        context.index.gpu_waits(analysis_id, context.clock())
        return
    context.enqueue_finish(analysis_id, run)
    context.index.gpu_over(analysis_id)


def park(context: Context, analysis_id: str, now: datetime) -> None:
    """Set a run aside for the time of a lease: it can't be read, or workers are too old for it."""
    until = now + timedelta(seconds=context.settings.lease_seconds)
    context.index.gpu_parked(analysis_id, until)


def _let_others_go_first(context: Context, now: datetime) -> None:
    """Where a group has no network, ask runs that were sent long ago to stop for it.

    Whoever was asked knows how long it has had the network, and stops behind a checkpoint. Then it
    waits for its group's turn again.
    """
    index, choosing = context.index, context.choosing
    turn = timedelta(seconds=context.settings.turn_seconds)
    long_ago = now - turn
    asked = index.gpu_under_way("asked", now)
    if not asked and not index.gpu_under_way("sent", long_ago):
        return
    if choosing.looked_at is not None and timedelta() <= now - choosing.looked_at < min(
        _LOOK, turn
    ):
        return
    choosing.looked_at = now
    under_way = [*asked, *index.gpu_under_way("sent", now)]
    seen: dict[str, Seen] = {}
    for row in under_way:
        with apart(context, f"{row.run} is asked for nothing"):
            seen[row.analysis_id] = look(context, row.run)
    under_way = [row for row in under_way if row.analysis_id in seen]
    for row in asked:
        if row.analysis_id in seen and seen[row.analysis_id].handed_back:
            index.gpu_waits(row.analysis_id, now)
    computing = [row for row in under_way if seen[row.analysis_id].computes]
    # Who was sent just now has the network in a moment, or what is before it ends.
    before = now - turn * _WAITED
    groups = {row.grp for row in under_way if row.since <= before}
    waiting = groups.union(index.gpu_groups_waiting(before)) - {row.grp for row in computing}
    stopping = [row for row in computing if row.state == "asked" and row.since > now - _PATIENCE]
    candidates = [row for row in computing if row.since <= long_ago]
    for row in candidates[: max(0, len(waiting) - len(stopping))]:
        key = layout.Run(row.run).hand_back(seen[row.analysis_id].number)
        context.storage.create(context.settings.results_bucket, key, b"")
        index.gpu_asked(row.analysis_id, now)
