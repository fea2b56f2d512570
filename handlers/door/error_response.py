"""An error as the API tells it: ``{"error": {"code", "message", "field"}}`` and its headers."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from posedrop.api import ErrorAnswer

#: Seconds until it is worth asking again.
RETRY_AFTER = "2"


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
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the response of an error; its message may quote half a character of the request."""
    body = {"code": code, "message": _sendable(message)}
    if field is not None:
        body["field"] = _sendable(field)
    return JSONResponse({"error": body}, status, headers=headers or _HEADERS.get(status))


def _sendable(text: str) -> str:
    r"""Return a text that quotes a request, which may have half a character in it (``\ud800``)."""
    return text.encode(errors="backslashreplace").decode()
