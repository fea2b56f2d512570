"""One bad object holds up no other: each is tried by itself, and what fails is counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from handlers.context import Context
from posedrop.buckets import layout
from posedrop.errors import PosedropError, RecordError, StorageError
from posedrop.index.index import IndexBusyError
from posedrop.transport.queue import QueueError

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """How an attempt on one object ended; ``failed`` is known at its end."""

    failed: bool = False


@contextmanager
def apart(context: Context, what: str) -> Iterator[Trial]:
    """Pass over whatever fails inside, as long as it can only be this one object's fault.

    Args:
        context: the handlers' tools.
        what: is not done if it fails, for the log: ``day1/a.mp4 is not deleted``.

    Raises:
        PosedropError: the index, the broker or the store is away, and so for every other object.
    """
    trial = Trial()
    try:
        yield trial
    except (IndexBusyError, QueueError):
        raise
    except RecordError as error:
        context.storage.report(error)
        trial.failed = True
    except Exception as error:
        if isinstance(error, StorageError):
            # A store that answers this has refused that object alone: a lock, a policy, a bad disk.
            context.storage.listing(context.settings.results_bucket, layout.CLOCK)
        known = isinstance(error, PosedropError)
        log.warning("%s: %s", what, error, exc_info=None if known else error)
        trial.failed = True
