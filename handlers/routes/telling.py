"""Routes about those who are told that runs are over: the aliases, and whether they are reached."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI

from handlers import changes
from handlers.context import Context
from handlers.door.error_response import NOT_FOUND
from handlers.routes.callers import Callers
from handlers.telling import problems, teller
from posedrop.api.telling import (
    NotifyAgain,
    NotifyAlias,
    NotifyChecked,
    NotifyRequest,
    NotifyTested,
)
from posedrop.errors import BadRequestError, NotFoundError


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add the routes of aliases."""
    context, changing = callers.patient_context, callers.changing

    @app.get("/notify", summary="The aliases that can be told of ends; their URLs are secret")
    def get_notify() -> dict[str, list[NotifyAlias]]:
        given_up = context.index.tellings_given_up()
        items = [
            NotifyAlias(
                alias=alias,
                kind="webhook" if url.get_secret_value().startswith("http") else "message",
                given_up=given_up.get(alias, (0, ""))[0],
            )
            for alias, url in sorted(context.settings.notify_urls.items())
        ]
        return {"items": items}

    @app.get("/notify/check", summary="Aliases that nobody can be told by, and who names them")
    @changing
    def get_check() -> NotifyChecked:
        return problems.check(context)

    @app.post("/notify/test", responses=NOT_FOUND, summary="Send an alias a notice, now")
    @changing
    def post_test(wanted: Annotated[NotifyRequest, Body()]) -> NotifyTested:
        _check(context, wanted.alias)
        error = teller.test(context, wanted.alias)
        changes.note("notice tested", alias=wanted.alias)
        return NotifyTested(taken=error is None, error=error)

    @app.post("/notify/again", responses=NOT_FOUND, summary="Send what was given up once more")
    def post_again(wanted: Annotated[NotifyRequest, Body()]) -> NotifyAgain:
        _check(context, wanted.alias)
        return NotifyAgain(due=context.index.tellings_again(wanted.alias, context.clock()))


def aliases(context: Context, wanted: list[str] | None) -> tuple[str, ...]:
    """Return who is told: whom the caller names, else whom the settings do.

    Raises:
        BadRequestError: the server has no such alias.
    """
    if wanted is None:
        return tuple(context.settings.notify)
    there = context.settings.notify_urls
    for alias in wanted:
        if alias not in there:
            known = ", ".join(sorted(there)) or "none (POSEDROP_NOTIFY_URLS)"
            raise BadRequestError(
                f"the server has no alias {alias[:40]!r} to notify; there are: {known}",
                code="no_such_alias",
                field="notify",
            )
    return tuple(dict.fromkeys(wanted))


def _check(context: Context, alias: str) -> None:
    if alias not in context.settings.notify_urls:
        known = ", ".join(sorted(context.settings.notify_urls)) or "none"
        raise NotFoundError(
            f"the server has no alias {alias[:40]!r}; POSEDROP_NOTIFY_URLS has: {known}"
        )
