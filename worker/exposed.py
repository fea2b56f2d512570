"""A worker's own GET /metrics, for Prometheus: a port by setting, none by default."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from posedrop import metrics
from posedrop.settings import Settings

log = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    #: Seconds that a connection may say nothing.
    timeout = 10

    def log_message(self, *_: object) -> None:
        """Say nothing of each scrape."""


def serve(settings: Settings) -> Callable[[], None]:
    """Serve this process' metrics where the settings say; return a function that ends that.

    Whoever asks needs the metrics token. Without one, only this machine can ask.
    """
    port, token = settings.metrics_port, settings.metrics_token
    if port is None:
        return lambda: None
    host = "127.0.0.1" if token is None else "0.0.0.0"  # noqa: S104
    app = _app(token.get_secret_value() if token is not None else None)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
    except OSError as error:
        # A worker without metrics still works; a second process of the same one comes here.
        log.warning("no metrics of this worker: port %d can't be had: %s", port, error)
        return lambda: None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def _app(token: str | None) -> Answer:
    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        status, body = _answer(environ, token)
        start(status, [("Content-Type", metrics.CONTENT_TYPE), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _answer(environ: dict[str, Any], token: str | None) -> tuple[str, bytes]:
    given = str(environ.get("HTTP_AUTHORIZATION", ""))
    if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return "401 Unauthorized", b"send Authorization: Bearer <metrics token>\n"
    if environ["REQUEST_METHOD"] != "GET" or environ["PATH_INFO"] != "/metrics":
        return "404 Not Found", b"there is GET /metrics\n"
    return "200 OK", metrics.render()
