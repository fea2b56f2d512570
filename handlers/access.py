"""Who may call: a token where one is set, and no page of another site in anybody's browser."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from posedrop.settings import Settings

_OPEN = frozenset({"/healthz", "/events"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Next = Callable[[Request], Awaitable[Response]]

#: The page's own scripts and styles only; videos and pictures come from the store.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' {store}; "
    "img-src 'self' {store} data:; media-src 'self' {store}; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


def guard(settings: Settings) -> Callable[[Request, Next], Awaitable[Response]]:
    """Return the middleware that lets a request in, or answers 401 or 403."""
    token = settings.api_token.get_secret_value() if settings.api_token else None
    store = _origin(settings.s3_public_endpoint or settings.s3_endpoint or "https:")
    policy = CONTENT_SECURITY_POLICY.format(store=store)

    async def middleware(request: Request, call_next: Next) -> Response:
        if request.url.path not in _OPEN:
            if token is not None and not _knows(request, token):
                return _refuse(401, "unauthorized", "send Authorization: Bearer <api token>")
            if token is None and request.url.hostname not in _LOOPBACK | {"testserver"}:
                # Without a token only this machine may call; a name that somebody else's DNS
                # points at this machine (rebinding) is not this machine's.
                return _refuse(403, "forbidden", "without an API token, call by 127.0.0.1")
            if request.method not in _SAFE and not _same_origin(request):
                return _refuse(403, "forbidden", "a page of another site may not do this")
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return middleware


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
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else url


def _refuse(status: int, code: str, message: str) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="posedrop", Bearer'} if status == 401 else None
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)
