"""Uploads arrive while everything is killed: the books balance. `make soak` is the long version."""

from __future__ import annotations

from tests.faults.soak import soak
from tests.support.lab import Embedded, Lab


def test_handlers_are_killed_while_a_hundred_uploads_arrive(lab: Lab) -> None:
    """kill -9 at random moments, with the index lost too: nothing is lost, nothing made twice."""
    kinds = ["kill_handlers", "kill_handlers_and_lose_index", "kill_handlers", "nonsense_events"]
    if isinstance(lab, Embedded):
        kinds = ["kill", "kill_and_lose_index", "nonsense_events"]
    ledger = soak(lab, uploads=100, kinds=kinds)
    assert (ledger.acknowledged, ledger.recovered) == (100, len(kinds))
    assert ledger.balanced, ledger
