"""An error as the API tells it: ``{"error": {"code", "message", "field"}}`` and its headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

from posedrop.api.errors import ErrorAnswer
from posedrop.errors import WrongPart

#: Seconds until it is worth asking again.
RETRY_AFTER = "2"
#: Of ``errors``: how many are told, and the lengths of one's path, its names and its words.
_MOST_ERRORS, _MOST_DEPTH, _MOST_NAME, _MOST_MESSAGE = 50, 32, 200, 1000

#: What any call may be answered, for the OpenAPI document; see also :data:`NOT_FOUND`.
ANYWHERE: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        401: "A wrong or no token",
        403: "A page of another site, or a name that is not this machine's",
        405: "No such method here",
        413: "The body is too large",
        422: "What was asked can't be done as asked",
        500: "posedrop itself failed, or a record of the buckets can't be read",
        503: "The store, the broker or the index is away: try again",
    }.items()
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "There is none"}
}
BUSY: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "Somebody is at it"}
}
NO_LENGTH: dict[int | str, dict[str, Any]] = {
    411: {"model": ErrorAnswer, "description": "It does not say how long it is"}
}
GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": ErrorAnswer, "description": "It was deleted"}
}

_HEADERS = {503: {"Retry-After": RETRY_AFTER}}


def error_response(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    errors: Sequence[WrongPart] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the response of an error; its message may quote half a character of the request."""
    body: dict[str, Any] = {"code": code, "message": _sendable(message)}
    if field is not None:
        body["field"] = _sendable(field)
    if errors:
        body["errors"] = [_part(each) for each in errors[:_MOST_ERRORS]]
    return JSONResponse({"error": body}, status, headers=headers or _HEADERS.get(status))


def _part(wrong: WrongPart) -> dict[str, Any]:
    loc = [_sendable(each)[:_MOST_NAME] if isinstance(each, str) else each for each in wrong.loc]
    return {"loc": loc[:_MOST_DEPTH], "message": _sendable(wrong.message)[:_MOST_MESSAGE]}


def _sendable(text: str) -> str:
    r"""Return a text that quotes a request, which may have half a character in it (``\ud800``)."""
    return text.encode(errors="backslashreplace").decode()
