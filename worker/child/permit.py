"""Whose turn at the accelerator it is: one child's at a time, whatever the others are at."""

from __future__ import annotations

import os
import select
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from posedrop.errors import CancelledRunError

#: Seconds between two looks at ``should_stop``.
POLL_SECONDS = 0.25


class Turn:
    """A token that one thread of this process has at a time.

    It is a byte in a pipe: whoever waits for it can poll for it and for a child's words at once,
    and goes on at the moment when it is given back.
    """

    def __init__(self) -> None:
        """Make it; nobody has it."""
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        weakref.finalize(self, _close, self._reads, self._writes)
        self.give_back()

    def fileno(self) -> int:
        """Return what is readable while nobody has it."""
        return self._reads

    def take(self) -> bool:
        """Take it, if nobody has it."""
        with suppress(BlockingIOError):
            return bool(os.read(self._reads, 1))
        return False

    def give_back(self) -> None:
        """Let the next one have it."""
        os.write(self._writes, b"\0")

    @contextmanager
    def held(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Wait for it, and have it within the block.

        Raises:
            CancelledRunError: ``should_stop`` said so.
        """
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        while not self.take():
            if should_stop():
                raise CancelledRunError("cancelled: the run was asked to stop")
            poll.poll(POLL_SECONDS * 1000)
        try:
            yield
        finally:
            self.give_back()


class Place:
    """One call's place in the queue for a turn: asked for by its child, and left in any case."""

    def __init__(self, turn: Turn | None) -> None:
        """Queue for ``turn``; None: there is nobody to wait for."""
        self._turn = turn
        self._since: float | None = None
        self._has = False
        self.seconds = 0.0
        """Waited so far, until the last turn began."""

    @property
    def waits_for(self) -> Turn | None:
        """The turn that is waited for at the moment."""
        return self._turn if self.waits else None

    @property
    def waits(self) -> bool:
        """Whether a turn was asked for and did not come yet."""
        return self._since is not None

    def ask(self) -> bool:
        """Ask for a turn; False if it was asked for before."""
        if self.waits or self._has:
            return False
        self._since = time.monotonic()
        return True

    def come(self) -> bool:
        """Take the turn that was asked for, if it is free."""
        if self._since is None or not (self._turn is None or self._turn.take()):
            return False
        self.seconds += time.monotonic() - self._since
        self._since, self._has = None, True
        return True

    def leave(self) -> None:
        """Give the turn back, or wait for it no longer."""
        self._since = None
        if self._has and self._turn is not None:
            self._turn.give_back()
        self._has = False


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
