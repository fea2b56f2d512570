"""Bodies of requests, read within bounds: of bytes, of nesting, and of how many at a time."""

from __future__ import annotations

from contextlib import suppress

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handlers.door.error_response import error_response
from posedrop import bounded

#: What a request in JSON may have, bytes.
MAX_BYTES = 2**20
#: How deep its values may be nested: arguments are flat, and what writes them again recurses.
MAX_DEPTH = bounded.MAX_DEPTH
#: Bodies above so many bytes are held in memory by so many requests at a time; others wait.
_LARGE, _LARGE_AT_A_TIME = 2**16, 16
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})


class Reader:
    """Reads bodies into memory, few large ones at a time."""

    def __init__(self) -> None:
        self._large = anyio.CapacityLimiter(_LARGE_AT_A_TIME)

    async def read(self, receive: Receive, most: int) -> tuple[bytes, bool] | None:
        """Read a request's body.

        Args:
            receive: of the request.
            most: how many bytes of it are kept.

        Returns:
            Its beginning, and whether that is all of it; None if the sender went away.
        """
        parts: list[bytes] = []
        size = 0
        me: object | None = None
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                if size < most:
                    parts.append(part)
                size += len(part)
                if not message.get("more_body", False):
                    return b"".join(parts)[:most], size <= most
                if me is None and size > _LARGE:
                    me = object()
                    await self._large.acquire_on_behalf_of(me)
        finally:
            if me is not None:
                self._large.release_on_behalf_of(me)


class Bodies:
    """The middleware that refuses what is too large or too deep, before anything is made of it.

    Forms (``POST /upload``) have bounds of their own, and of a ``PUT /upload`` nothing here reads
    the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._reader = Reader()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose body is within bounds; answer 413 or 422 to others."""
        if scope["type"] != "http" or scope["method"] in _BODILESS or _is_streamed(scope):
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > MAX_BYTES:
            await _too_large(scope, receive, send)
            return
        read = await self._reader.read(receive, MAX_BYTES)
        if read is None:
            return
        body, is_whole = read
        if not is_whole:
            await _too_large(scope, receive, send)
            return
        if _is_too_deep(body):
            too_deep = error_response(
                422, "bad_request", f"the body is nested more than {MAX_DEPTH} deep"
            )
            await too_deep(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)


def _is_too_deep(body: bytes) -> bool:
    with suppress(ValueError):
        try:
            bounded.loads(body, MAX_DEPTH)
        except bounded.TooDeepError:
            return True
    return False


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    answer = error_response(413, "body_too_large", f"the body has more than {MAX_BYTES:,} bytes")
    # What is left of it is nobody's next request.
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


def _is_streamed(scope: Scope) -> bool:
    if scope["method"] == "PUT":
        return bool(scope["path"].startswith("/upload"))
    is_form = _header(scope, b"content-type").startswith(b"multipart/form-data")
    return bool(scope["method"] == "POST" and scope["path"] == "/upload" and is_form)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
