"""Access to the API: by the token, or the cookie that it was traded for; by no other site's page.

The link that `posedrop up` prints has the token behind its ``#``, which no browser sends. The page
at GET /session sends it in a header, once: the answer to POST /session is a cookie, which images,
videos and streams of events need, as they can have no header.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handlers.changes import Caller, calling
from handlers.door.error_response import error_response
from posedrop.settings import Settings

#: How long a browser may use its cookie, seconds; then it needs the link again.
COOKIE_SECONDS = 30 * 86400

#: Whatever watches over a process asks these, and is told ``ok`` or a code.
_HEALTH = frozenset({"/healthz", "/readyz"})
#: All that whoever has the metrics token may ask.
_METRICS = "/metrics"
#: What trades the token for a cookie is the same for everybody, and tells nothing.
_OPEN = frozenset({("GET", "/session"), ("GET", "/page/session.js"), ("GET", "/page/page.css")})
#: A browser asks a person for the token then, as a password. (Chromium reads no list of schemes.)
_ASK = {"WWW-Authenticate": 'Basic realm="posedrop"'}
_ASK_AGAIN = {"WWW-Authenticate": 'Bearer realm="posedrop", error="invalid_token"'}
_ASK_NOBODY = {"WWW-Authenticate": 'Bearer realm="posedrop"'}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")

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

    def __init__(self, app: ASGIApp, settings: Settings, *, local: bool = False) -> None:
        """``local``: this machine alone calls, by a name of its loopback."""
        self._app = app
        self._token = settings.api_token.get_secret_value() if settings.api_token else None
        metrics = settings.metrics_token
        self._metrics_token = metrics.get_secret_value() if metrics else None
        self._local = local or self._token is None
        store = _origin(settings.s3_public_endpoint or settings.s3_endpoint or "https:")
        self._headers = {
            "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(store=store),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may pass, and give every answer its security headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused: Response | None = None
        how: str | None = None
        if scope["path"] not in _HEALTH and not self._may_read_metrics(request):
            how = "loopback" if self._token is None else _how(request, self._token)
            refused = self._error_response(request, how)
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

        client = scope.get("client")
        with calling(Caller(how or "nobody", client[0] if client else None)):
            await (refused or self._app)(scope, receive_asked, send_with_headers)

    def _error_response(self, request: Request, how: str | None) -> Response | None:
        if self._local and not _is_loopback(request):
            # A name that somebody else's DNS points at this machine (rebinding) is not its own.
            return error_response(403, "forbidden", "this server is called by 127.0.0.1")
        if (request.method, request.scope["path"]) in _OPEN:
            return None
        if how is None:
            return error_response(
                401,
                "unauthorized",
                "send Authorization: Bearer <api token>; with a browser, open the link that "
                "`posedrop up` prints",
                headers=_challenge(request),
            )
        unsafe = request.method not in _SAFE
        if (unsafe and not _same_origin(request)) or (
            how == "cookie" and not _is_own_page(request, unsafe)
        ):
            return error_response(403, "forbidden", "a page of another site may not do this")
        return None

    def _may_read_metrics(self, request: Request) -> bool:
        if self._metrics_token is None or request.scope["path"] != _METRICS:
            return False
        known = is_bearer(request, self._metrics_token) or _is_password(
            request, self._metrics_token
        )
        return request.method in _SAFE and known


def _challenge(request: Request) -> dict[str, str]:
    if request.headers.get("authorization", "").lower().startswith("bearer"):
        return _ASK_AGAIN
    # What a page's script asks for is answered to the page, which has words of its own: for each
    # of its requests a browser would ask the person for a password, and the request would wait.
    is_browser = request.headers.get("user-agent", "").startswith("Mozilla/")
    is_part = is_browser and "text/html" not in request.headers.get("accept", "")
    return _ASK_NOBODY if is_part else _ASK


def session_cookie(request: Request, token: str) -> str:
    """Return the Set-Cookie that lets the browser of this request in.

    Its name has the port, as a machine's servers share their cookies. It is made of the token, and
    the token can't be had from it.
    """
    name = _cookie_name(request)
    expires = str(int(time.time()) + COOKIE_SECONDS)
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    return (
        f"{name}={expires}.{_signature(name, expires, token)}; Max-Age={COOKIE_SECONDS}; Path=/; "
        f"HttpOnly; SameSite=Strict{secure}"
    )


def _how(request: Request, token: str) -> str | None:
    """Return by what a caller is known (token, basic, cookie), None for strangers."""
    if is_bearer(request, token):
        return "token"
    if _is_password(request, token):
        return "basic"
    return "cookie" if _has_cookie(request, token) else None


def is_bearer(request: Request, token: str) -> bool:
    """Tell whether a request carries this bearer token."""
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _is_password(request: Request, token: str) -> bool:
    password = _basic_password(request.headers.get("authorization", ""))
    return hmac.compare_digest(password.encode(), token.encode())


def _has_cookie(request: Request, token: str) -> bool:
    name = _cookie_name(request)
    # Another server of this machine may have set one of the same name: any that is ours will do.
    pairs = (pair for line in request.headers.getlist("cookie") for pair in line.split(";"))
    for pair in pairs:
        key, _, value = pair.strip().partition("=")
        expires, _, signature = value.partition(".")
        if key == name and expires.isascii() and expires.isdigit() and len(expires) < 12:
            right = _signature(name, expires, token)
            is_ours = hmac.compare_digest(signature.encode(), right.encode())
            if is_ours and int(expires) > time.time():
                return True
    return False


def _cookie_name(request: Request) -> str:
    host = _HOST.fullmatch(request.headers.get("host", ""))
    usual = "443" if request.scope["scheme"] == "https" else "80"
    return f"posedrop_{(host and host[2]) or usual}"


def _signature(name: str, expires: str, token: str) -> str:
    said = f"posedrop session {name} {expires}"
    return hmac.new(token.encode(), said.encode(), hashlib.sha256).hexdigest()


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


def _is_own_page(request: Request, unsafe: bool) -> bool:
    """Tell whether a browser says that our own page, or a person's typing, makes it use a cookie.

    Strict cookies go along from other ports of this machine too, which are other people's.
    """
    site = request.headers.get("sec-fetch-site")
    if site is None:  # browsers tell it over HTTPS and on loopback alone; ``Origin``, everywhere
        return not unsafe or "origin" in request.headers
    return site == "same-origin" or (site == "none" and not unsafe)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else url
