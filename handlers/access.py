"""Who may call: a token where one is set, and no page of another site in anybody's browser."""

from __future__ import annotations

import base64
import hmac
import re
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handlers.refusal import refusal
from posedrop.settings import Settings

_OPEN = frozenset({"/healthz", "/readyz"})
#: All that whoever has the metrics token may ask.
_METRICS = "/metrics"
#: A browser asks a person for the token then, as a password.
_ASK = {"WWW-Authenticate": 'Basic realm="posedrop", Bearer'}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")

#: The page's own scripts and styles only; videos and pictures come from the store.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' {store}; "
    "img-src 'self' {store} data:; media-src 'self' {store}; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


class Guard:
    """The middleware that lets a request in, or answers 401 or 403.

    Plain ASGI: Starlette's function middleware starts two tasks and a stream for every request,
    which costs more than all that POST /events does.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = settings.api_token.get_secret_value() if settings.api_token else None
        metrics = settings.metrics_token
        self._metrics_token = metrics.get_secret_value() if metrics else None
        store = _origin(settings.s3_public_endpoint or settings.s3_endpoint or "https:")
        self._headers = {
            "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(store=store),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass, and give every answer its headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = None if scope["path"] in _OPEN else self._refusal(Request(scope))
        unasked = Headers(scope=scope).get("expect", "").lower() == "100-continue"

        async def receive_asked() -> Message:
            nonlocal unasked
            unasked = False
            return await receive()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                if unasked:
                    # The client still holds its body back. uvicorn would take what comes next on
                    # this connection for it: through a proxy, the request of somebody else.
                    headers["Connection"] = "close"
            await send(message)

        await (refusal or self._app)(scope, receive_asked, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        token = self._token
        if self._may_read_metrics(request):
            return None
        if token is not None and not _knows(request, token):
            return refusal(
                401, "unauthorized", "send Authorization: Bearer <api token>", headers=_ASK
            )
        if token is None and not _is_loopback(request):
            # Without a token only this machine may call; a name that somebody else's DNS
            # points at this machine (rebinding) is not this machine's.
            return refusal(403, "forbidden", "without an API token, call by 127.0.0.1")
        if request.method not in _SAFE and not _same_origin(request):
            return refusal(403, "forbidden", "a page of another site may not do this")
        return None

    def _may_read_metrics(self, request: Request) -> bool:
        if self._metrics_token is None or request.scope["path"] != _METRICS:
            return False
        return request.method in _SAFE and _knows(request, self._metrics_token)


def is_bearer(request: Request, token: str) -> bool:
    """Tell whether a request carries this bearer token."""
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _knows(request: Request, token: str) -> bool:
    return is_bearer(request, token) or hmac.compare_digest(
        _basic_password(request.headers.get("authorization", "")).encode(), token.encode()
    )


def _basic_password(header: str) -> str:
    """Return the password of HTTP Basic, which is how a browser asks a person for the token."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value).decode().partition(":")[2]
    except ValueError:  # no base64, no ASCII, no UTF-8
        return ""


def _is_loopback(request: Request) -> bool:
    # Not request.url, which takes a Host that it can't read ("a{b.example", and browsers send that)
    # for the address that the server listens on.
    host = _HOST.fullmatch(request.headers.get("host", ""))
    return host is not None and host[1].lower() in _LOOPBACK


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        return False


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else url
