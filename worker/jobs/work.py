"""A message taken and an attempt worked on, as infer, render, ingest and derive all do it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posedrop.buckets.records.attempts import STORE_AWAY
from posedrop.buckets.records.runs import RunError
from posedrop.errors import (
    AnalysisError,
    BadRequestError,
    CancelledRunError,
    ChildDiedError,
    ObjectChangedError,
    PosedropError,
    RecordError,
    RefusedVideoError,
    StorageError,
)
from posedrop.transport.queue import QueueError
from worker import room
from worker.context import Context
from worker.jobs.claim import Held
from worker.memory import is_out_of_memory

log = logging.getLogger(__name__)
#: How often it is tried to hand an attempt back, within a lease, while the store is away.
_TRIES = 15
#: What no further attempt can mend.
FINAL_ERRORS = (AnalysisError, BadRequestError, RefusedVideoError, ObjectChangedError)


def is_left(context: Context, actor: str, **message: Any) -> bool:
    """Leave a message to another worker, if this process ends; tell whether it does."""
    if context.closing:
        context.send(actor, **message)
        # Two threads take messages: what the one hands back is not for the other of a process that
        # ends. It is kept from taking it again, until somebody else has.
        time.sleep(1.0)
    return context.closing


def work_on(
    context: Context,
    held: Held,
    key: str,
    work: Callable[[], None],
    *,
    run: str | None = None,
    check_fault: Callable[[Exception], None],
    tell: Callable[[Exception], RunError],
) -> Exception | None:
    """Work on an attempt while its heartbeat goes on; return what cut it short.

    Args:
        context: this worker's.
        held: the attempt.
        key: of the video.
        work: does it.
        run: its folder; None: an ingest.
        check_fault: raises what is the matter, if the attempt was not to blame for an error.
        tell: returns an error as a record tells it.

    Raises:
        Exception: the store, the broker or the disk is away. The attempt does not count, and
            Dramatiq tries the message again.
    """
    try:
        told = context.record.at(held, key, run)
        with told, held.beating(context.settings.heartbeat_seconds):
            work()
    except Exception as error:
        try:
            check_fault(error)
        except Exception as fault:
            _hand_back(context, held, tell(fault))
            raise
        return error
    return None


def _hand_back(context: Context, held: Held, error: RunError) -> None:
    """Record that an attempt did not count, for a lease's time if the store is away.

    After that others take this worker for dead, and the attempt counts. A store that was away
    altogether says nothing of this run, and counts for nothing.
    """
    for _ in range(_TRIES):
        try:
            held.end("handed_back", error)
        except StorageError as away:
            log.warning("attempt %s can't be handed back now: %s", held.number, away)
            error = error.model_copy(update={"code": STORE_AWAY})
            if context.is_closed_within(context.settings.lease_seconds / _TRIES):
                return
        else:
            return


def check_machine(error: Exception, folder: Path) -> None:
    """Raise what is the matter, if the store or the broker is away, or the disk full.

    Args:
        error: what cut an attempt short.
        folder: on the disk that was written to.
    """
    check_processes(error)
    if isinstance(error, (CancelledRunError, ChildDiedError, *FINAL_ERRORS)):
        return
    if isinstance(error, RecordError) and error.code != "newer_record":
        return  # A damaged one stays so: that counts. A newer one is for a newer worker.
    if isinstance(error, StorageError | QueueError):
        raise error
    room.check_room(folder)


def check_processes(error: Exception) -> None:
    """Raise what is the matter, if this machine is too busy, or has no process or memory left.

    Raises:
        ChildDiedError: code ``not_started``.
    """
    if isinstance(error, ChildDiedError) and error.code == "not_started":
        raise error
    # What a child says of its own memory is a PosedropError, and says nothing of ours.
    if not isinstance(error, PosedropError) and is_out_of_memory(error):
        raise ChildDiedError(
            f"this worker has no thread or memory left ({error}): may its machine, or its "
            "container, have more processes (pids) and memory?",
            code="not_started",
        ) from error


def in_words(error: Exception) -> PosedropError:
    """Return an error that nobody foresaw as one with words."""
    if isinstance(error, PosedropError):
        return error
    words = f"posedrop itself failed: {error!r}"[:1000]
    return AnalysisError(words.encode(errors="replace").decode(), code="internal")
