"""Routes of batches: many films asked for, stopped, made anew; how far they are."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Response

from handlers.door.error_response import NOT_FOUND
from handlers.routes import telling
from handlers.routes.callers import Callers
from handlers.runs import batches
from posedrop.api.batches import (
    Batch,
    BatchesPage,
    BatchStarted,
    CancelRequest,
    DryRun,
    RetryRequest,
)

_DONE_LATER: dict[int | str, dict[str, Any]] = {
    200: {"description": "A dry run: nothing was done"},
    202: {"description": "It will be done, in the background"},
}


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add the routes of batches; POST /analyse stands with the runs."""
    context, asking = callers.context, callers.asking

    @app.post(
        "/cancel",
        summary="Stop all runs below a prefix, or of a batch",
        responses={**_DONE_LATER, **NOT_FOUND},
    )
    @asking
    def post_cancel(
        wanted: Annotated[CancelRequest, Body()], response: Response
    ) -> BatchStarted | DryRun:
        return _later(batches.cancel(context, wanted), response)

    @app.post(
        "/retry",
        summary="Make anew what failed below a prefix, or in a batch",
        responses={**_DONE_LATER, **NOT_FOUND},
    )
    @asking
    def post_retry(
        wanted: Annotated[RetryRequest, Body()], response: Response
    ) -> BatchStarted | DryRun:
        notify = telling.aliases(context, wanted.notify)
        return _later(batches.retry(context, wanted, notify), response)

    @app.get("/batches", summary="The batches, the newest first")
    def get_batches(
        cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> BatchesPage:
        return batches.page(context, cursor, limit)

    @app.get("/batches/{batch_id}", responses=NOT_FOUND, summary="How far a batch is")
    def get_batch(batch_id: str) -> Batch:
        return batches.read(context, batch_id)


def _later(answer: BatchStarted | DryRun, response: Response) -> BatchStarted | DryRun:
    response.status_code = 202 if isinstance(answer, BatchStarted) else 200
    return answer
