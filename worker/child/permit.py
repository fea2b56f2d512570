"""The accelerator permit: one child at a time may use the accelerator, the others wait for it."""

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


class AcceleratorPermit:
    """The right to use the accelerator, which one thread of this process has at a time.

    It is a byte in a pipe: whoever waits for it can poll for it and for a child's words at once,
    and goes on at the moment when it is given back.
    """

    def __init__(self) -> None:
        """Make a permit that nobody has."""
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        weakref.finalize(self, _close, self._reads, self._writes)
        self.release()

    def fileno(self) -> int:
        """Return a descriptor that is readable while the permit is free."""
        return self._reads

    def acquire(self) -> bool:
        """Take the permit if it is free; return whether it was."""
        with suppress(BlockingIOError):
            return bool(os.read(self._reads, 1))
        return False

    def release(self) -> None:
        """Give the permit back."""
        os.write(self._writes, b"\0")

    @contextmanager
    def held(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Wait for the permit, and have it within the block.

        Raises:
            CancelledRunError: ``should_stop`` said so.
        """
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        while not self.acquire():
            if should_stop():
                raise CancelledRunError("cancelled: the run was asked to stop")
            poll.poll(POLL_SECONDS * 1000)
        try:
            yield
        finally:
            self.release()


class PermitRequest:
    """One call's request for the permit: its child asks, and it is closed in any case."""

    def __init__(self, permit: AcceleratorPermit | None) -> None:
        """Prepare a request for ``permit``; None: every request is granted at once."""
        self._permit = permit
        self._since: float | None = None
        self._has = False
        self.seconds = 0.0
        """Waited so far, until the last permit came."""

    @property
    def waits_for(self) -> AcceleratorPermit | None:
        """The permit that is waited for at the moment."""
        return self._permit if self.waits else None

    @property
    def waits(self) -> bool:
        """Whether the permit was asked for and did not come yet."""
        return self._since is not None

    def ask(self) -> bool:
        """Ask for the permit; False if it was asked for before."""
        if self.waits or self._has:
            return False
        self._since = time.monotonic()
        return True

    def grant(self) -> bool:
        """Acquire the permit that was asked for, if it is free."""
        if self._since is None or not (self._permit is None or self._permit.acquire()):
            return False
        self.seconds += time.monotonic() - self._since
        self._since, self._has = None, True
        return True

    def close(self) -> None:
        """Release the permit, or wait for it no longer."""
        self._since = None
        if self._has and self._permit is not None:
            self._permit.release()
        self._has = False


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
