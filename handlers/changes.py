"""One log line for each change: who had what done, to which id, from where."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

log = logging.getLogger(__name__)


class Caller(NamedTuple):
    """The caller of the API: by what it is known (token, cookie), and from which address."""

    who: str
    """``token``, ``basic``, ``cookie``, or ``loopback`` where no token is asked for."""
    address: str | None


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Log the changes of this block as those of one caller."""
    before = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(before)


def note(what: str, *, by: str = "posedrop", address: str | None = None, **ids: object) -> None:
    """Log a change: ``what`` in one or two words, and the ids of what was changed.

    Args:
        what: such as ``deleted``.
        by: who had it done, where no request of ours did: ``retention``; a user of the store, or
            the ``store`` where it does not say who.
        address: from where, if that is known.
        ids: such as ``file_id``, ``analysis_id``, ``key``.
    """
    caller = _caller.get() or Caller(by, address)
    log.info(what, extra={**ids, "who": caller.who, "address": caller.address})
