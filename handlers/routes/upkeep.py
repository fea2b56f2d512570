"""Routes of upkeep: refused videos, what is due to go, notices, dead letters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Query

from handlers.events import follow, letters
from handlers.routes.callers import Callers, Limit
from handlers.upkeep import reingest, retention
from posedrop.api.files import ReingestedPage, ReingestRequest
from posedrop.api.health import Notice
from posedrop.api.letters import DeadLettersPage, Replayed, ReplayRequest
from posedrop.api.retention import Expired, ExpireRequest, Expiry

RowId = Annotated[int, Query(ge=0, lt=2**63)]


def add_routes(app: FastAPI, callers: Callers, follower: follow.Follower) -> None:
    """Add the routes of upkeep."""
    context, changing = callers.patient_context, callers.changing

    @app.post("/reingest", summary="Look at refused videos anew")
    @changing
    def post_reingest(
        wanted: Annotated[ReingestRequest, Body()],
    ) -> ReingestedPage:
        return reingest.reingest(context, wanted)

    @app.get("/expire", summary="What is due to be removed by itself, and why")
    @changing
    def get_expire() -> Expiry:
        return retention.describe(context)

    @app.post("/expire", summary="Remove what is due, also where that is more than a share of all")
    @changing
    def post_expire(wanted: Annotated[ExpireRequest, Body()]) -> Expired:
        return retention.expire(context, wanted)

    @app.get("/notices", summary="What a person is to see to: a removal that was held back")
    def get_notices() -> dict[str, list[Notice]]:
        found = list(context.notices.items())
        return {"items": [Notice(about=about, message=words) for about, words in found]}

    @app.get("/dead-letters", summary="Events that could not be followed, the newest first")
    def get_dead_letters(cursor: RowId | None = None, limit: Limit = 50) -> DeadLettersPage:
        return letters.page(context, cursor, limit)

    @app.post("/dead-letters/replay", summary="Have dead letters followed again")
    def post_replay(
        wanted: Annotated[ReplayRequest, Body()],
    ) -> Replayed:
        answer = letters.replay(context, wanted)
        follower.wake()
        return answer
