"""An error as the API tells it: ``{"error": {"code", "message", "field"}}`` and its headers."""

from __future__ import annotations

from fastapi.responses import JSONResponse

#: Seconds until it is worth asking again.
RETRY_AFTER = "2"
_HEADERS = {503: {"Retry-After": RETRY_AFTER}}


def refusal(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the answer; it may quote half a character of the request."""
    body = {"code": code, "message": _sendable(message)}
    if field is not None:
        body["field"] = _sendable(field)
    return JSONResponse({"error": body}, status, headers=headers or _HEADERS.get(status))


def _sendable(text: str) -> str:
    r"""Return a text that quotes a request, which may have half a character in it (``\ud800``)."""
    return text.encode(errors="backslashreplace").decode()
