"""Routes of the page: its files, its cookie, and the stream of what happens."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from handlers import changes, stream
from handlers.context import Context
from handlers.door import access
from posedrop.errors import NotFoundError

PAGE = Path(str(files("handlers") / "page"))
#: What the page is made of, with its kind: browsers run no module that is sent as another.
_PAGE_KINDS = {".js": "text/javascript", ".css": "text/css"}
_PAGE_FILES = {
    each.name: _PAGE_KINDS[each.suffix] for each in PAGE.iterdir() if each.suffix in _PAGE_KINDS
}


def add_routes(app: FastAPI, context: Context, live: stream.Stream) -> None:
    """Add the routes of the page."""

    @app.get("/", include_in_schema=False)
    def get_page(request: Request) -> Response:
        return _file(request, "index.html", "text/html")

    @app.get("/run/{analysis_id}", include_in_schema=False)
    def get_run(request: Request, analysis_id: str) -> Response:  # noqa: ARG001  # the page reads it
        return _file(request, "run.html", "text/html")

    @app.get(
        "/session",
        response_class=HTMLResponse,
        summary="The page that trades its link's token for a cookie",
    )
    def get_session(request: Request) -> Response:
        return _file(request, "session.html", "text/html")

    @app.post("/session", status_code=204, summary="Trade the API token for a browser's cookie")
    def post_session(request: Request, response: Response) -> None:
        token = context.settings.api_token
        if token is not None:
            cookie = access.session_cookie(request, token.get_secret_value())
            response.headers["Set-Cookie"] = cookie
            changes.note("cookie given")

    @app.get("/page/{name}", include_in_schema=False)
    def get_page_file(request: Request, name: str) -> Response:
        if name not in _PAGE_FILES:
            raise NotFoundError(f"there is no {name[:40]}")
        return _file(request, name, _PAGE_FILES[name])

    # Not in the schema: what reads that expects answers that end.
    @app.get("/stream", include_in_schema=False)
    async def get_stream(request: Request, last_event_id: str | None = None) -> Response:
        # Browsers send the header alone where they ask again by themselves.
        return stream.EventStream(live, request.headers.get("last-event-id", last_event_id))


def _file(request: Request, name: str, kind: str) -> Response:
    """Return a file of the page, or that the browser has it as it is.

    Browsers ask each time: after an upgrade page and scripts fit each other, and the API. The ETag
    goes by the content, as times and sizes of two releases' files may be the same.
    """
    content = (PAGE / name).read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": etag}
    known = request.headers.get("if-none-match", "").split(",")
    if etag in {each.strip().removeprefix("W/") for each in known}:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)
