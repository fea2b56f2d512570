"""POST /events: bucket notifications, taken before everything else that the API is made of.

An upload makes four of these requests, and a store sends the next event when this one is answered.
So they pass no router, no parameters to check and no headers to add: nobody's browser comes here.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

import anyio
import anyio.to_thread
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from handlers.door.bodies import Reader
from handlers.door.error_response import error_response
from handlers.metrics import Metrics
from posedrop.index.index import IndexBusyError

PATH = "/events"
#: A larger body is kept as a dead letter by its beginning: refusing it would have it sent for ever.
MAX_BYTES = 4 * 2**20
#: Threads of their own: those of all other requests may all wait for a store that hangs. SQLite
#: has one writer at a time.
_THREADS = 4


class EventsEndpoint:
    """The outermost middleware: it answers the store, and passes on all others."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: SecretStr | None,
        record: Callable[[bytes], int],
        wake: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """Take bodies from callers with ``token``: ``record`` keeps one, ``wake`` tells of news."""
        self._app = app
        self._token = token.get_secret_value().encode() if token is not None else None
        self._record = record
        self._wake = wake
        self._metrics = metrics
        self._reader = Reader()
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 204 within milliseconds, 401 to strangers, 503 when it could not be recorded."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not self._may(scope):
            stranger = error_response(401, "unauthorized", "a wrong or no events token")
            await stranger(scope, receive, send)
            return
        started = time.perf_counter()
        read = await self._reader.read(receive, MAX_BYTES)
        if read is None:  # the sender went away before its end, and sends it again
            return
        try:
            new = await anyio.to_thread.run_sync(self._record, read[0], limiter=self._threads)
        except IndexBusyError as error:
            await error_response(503, error.code, error.message)(scope, receive, send)
            return
        self._metrics.events.labels("new" if new else "known").inc()
        self._metrics.event_seconds.observe(time.perf_counter() - started)
        if new:
            self._wake()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def _may(self, scope: Scope) -> bool:
        given = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
        return self._token is not None and hmac.compare_digest(
            given.removeprefix(b"Bearer "), self._token
        )
