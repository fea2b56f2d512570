"""Routes of rules: a folder's posedrop.json read and kept, and those that are wrong."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Header, Query

from handlers import changes, upload
from handlers.routes.callers import Callers, Limit
from handlers.runs import kept_rules
from posedrop.api.errors import ErrorAnswer
from posedrop.api.rules import FolderRule, FolderRuleRequest, WrongRule
from posedrop.errors import BadRequestError

Folder = Annotated[str, Query(description="with its slash, like cohort3/day1/; empty: the bucket")]
_GUARD = (
    "say which posedrop.json is meant: If-None-Match: * (there is none yet), or If-Match: with its "
    "ETag as GET /rule tells it"
)


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add the routes of rules."""
    context, asking = callers.context, callers.asking

    @app.get("/rules", summary="The rules (posedrop.json) that are wrong: videos wait for them")
    def get_rules(limit: Limit = 50) -> dict[str, list[WrongRule]]:
        return {"items": upload.wrong_rules(context, limit)}

    @app.get("/rule", summary="What a folder's posedrop.json says, and which videos wait for one")
    @asking
    def get_rule(folder: Folder = "") -> FolderRule:
        return kept_rules.describe(context, folder)

    @app.put(
        "/rule",
        summary="Keep an analysis for a folder: write it into its posedrop.json",
        responses={412: {"model": ErrorAnswer, "description": "Another one stands there by now"}},
    )
    @asking
    def put_rule(
        wanted: Annotated[FolderRuleRequest, Body()],
        folder: Folder = "",
        if_match: Annotated[str | None, Header(max_length=200)] = None,
        if_none_match: Annotated[str | None, Header(max_length=200)] = None,
    ) -> FolderRule:
        if (if_match is None) == (if_none_match is None) or if_none_match not in {None, "*"}:
            raise BadRequestError(_GUARD, field="If-Match")
        etag = if_match.strip().strip('"') if if_match is not None else None
        kept = kept_rules.keep(context, folder, wanted, etag)
        changes.note("rule kept", key=kept.rule)
        return kept
