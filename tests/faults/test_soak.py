"""Uploads arrive while everything is killed: the books balance. `make soak` is the long version."""

from __future__ import annotations

from tests.faults.soak import soak
from tests.support.full_size import size
from tests.support.lab import Embedded, Lab

#: In all, and at a time: so that there are enough for each of the faults.
UPLOADS, OUTSTANDING = size((40, 10), (100, 24))


def test_handlers_are_killed_while_uploads_arrive(lab: Lab) -> None:
    """kill -9 at random moments, with the index lost too: nothing is lost, nothing made twice."""
    kinds = ["kill_handlers", "kill_handlers_and_lose_index", "kill_handlers", "nonsense_events"]
    if isinstance(lab, Embedded):
        kinds = ["kill", "kill_and_lose_index", "nonsense_events"]
    ledger = soak(lab, uploads=UPLOADS, kinds=kinds, outstanding=OUTSTANDING)
    assert (ledger.acknowledged, ledger.recovered) == (UPLOADS, len(kinds))
    assert ledger.balanced, ledger
