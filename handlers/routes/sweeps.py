"""Routes that compare the buckets with the index now, one caller at a time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread
from fastapi import FastAPI

from handlers import changes
from handlers.door.error_response import BUSY
from handlers.upkeep import reconcile
from handlers.upkeep.repairs import Repairs
from posedrop.errors import PosedropError


class UnderWayError(PosedropError):
    """A sweep of the buckets that another caller has asked for already goes on."""

    code = "busy"


def add_routes(app: FastAPI, reconciler: reconcile.Reconciler) -> None:
    """Add the routes of sweeps."""
    sweeping = anyio.CapacityLimiter(1)

    async def alone(sweep: Callable[[], Repairs]) -> dict[str, int]:
        """Run a sweep, unless another caller has asked for one and still waits for it."""
        me = object()
        try:
            sweeping.acquire_on_behalf_of_nowait(me)
        except anyio.WouldBlock as error:
            raise UnderWayError(
                "the buckets are being compared already; ask again later"
            ) from error
        try:
            own = anyio.CapacityLimiter(1)
            return (await anyio.to_thread.run_sync(sweep, limiter=own)).as_counts()
        finally:
            sweeping.release_on_behalf_of(me)

    @app.post(
        "/reconcile",
        summary="Compare buckets, index and queue now, and repair",
        responses=BUSY,
    )
    async def post_reconcile() -> dict[str, int]:
        counts = await alone(reconciler.round)
        changes.note("reconciled", counts=counts)
        return counts

    @app.post(
        "/reindex",
        summary="Make the index anew from the buckets",
        responses=BUSY,
    )
    async def post_reindex() -> dict[str, int]:
        counts = await alone(reconciler.reindex)
        changes.note("reindexed", counts=counts)
        return counts
