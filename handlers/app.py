"""The API's routes and wiring. What a call does stands in the module that its route names.

Each function ``_..._routes`` is a list, as long as it has routes.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
from dramatiq import Broker
from fastapi import Body, FastAPI, Query, Request, Response
from fastapi import Path as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
)
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from handlers import changes, gpu_queue, upload
from handlers.context import LOOK_SECONDS, Context
from handlers.door import access
from handlers.door.bodies import Bodies
from handlers.door.error_response import (
    ANYWHERE,
    BUSY,
    GONE,
    NO_LENGTH,
    NOT_FOUND,
    RETRY_AFTER,
    error_response,
)
from handlers.door.form import Forms, FormUpload
from handlers.door.threads import Threads
from handlers.events import follow, letters, notify, sqs, webhook
from handlers.health import Health
from handlers.runs import copies, pending, results
from handlers.upkeep import reconcile, reingest, retention
from handlers.upkeep.repairs import Repairs
from posedrop import __version__, analyses, api, metrics
from posedrop.buckets import layout
from posedrop.buckets.records import FINAL, FileState, RunState
from posedrop.buckets.storage import Storage
from posedrop.errors import (
    BadRequestError,
    BusyError,
    NotFoundError,
    PosedropError,
    RecordError,
    StorageError,
)
from posedrop.index.index import Index, IndexBusyError
from posedrop.index.listing import Order
from posedrop.models import catalog
from posedrop.settings import Settings
from posedrop.transport.queue import QueueError

PAGE = Path(str(files("handlers") / "page"))
#: What a form may have besides its file, bytes.
_FORM_BYTES = 2**20
#: How many requests wait for the object store at a time: for what is there, and for a change.
_ASKING, _CHANGING = 40, 8


class UnderWayError(PosedropError):
    """A sweep of the buckets that another caller has asked for already goes on."""

    code = "busy"


def create_app(
    settings: Settings,
    broker: Broker,
    *,
    set_busy: Callable[[bool], None] = lambda _: None,
    local: bool = False,
) -> FastAPI:
    """Return the API; its follower and reconciler run from its start to its end.

    Args:
        settings: where everything is.
        broker: takes the messages.
        set_busy: told whether many events wait to be followed, each time that may have changed.
        local: whether it is called by names of this machine's loopback alone.
    """
    context = Context(settings, Storage(settings), _index(settings), broker)
    follower = follow.Follower(context, set_busy)
    reconciler = reconcile.Reconciler(context)
    copier = copies.Copier(context)
    chooser = gpu_queue.Chooser(context)
    health = Health(context, follower, reconciler)
    metrics.DISKS.watch("index", settings.index_file.parent)
    queue_url = settings.sqs_queue_url
    poller = sqs.Poller(context, follower, queue_url) if queue_url else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        reconciler.start()
        copier.start()
        chooser.start()
        if poller is not None:
            poller.start()
        yield
        if poller is not None:
            poller.stop()
        await run_in_threadpool(reconciler.stop)
        await run_in_threadpool(follower.stop)
        await run_in_threadpool(copier.stop)
        await run_in_threadpool(chooser.stop)
        health.close()
        context.index.close()

    app = FastAPI(
        title="posedrop",
        version=__version__,
        description="Drop a video into a bucket; get its pose data and a labelled video back.",
        lifespan=lifespan,
        responses=ANYWHERE,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Bodies)
    app.add_middleware(access.Guard, settings=settings, local=local)
    app.add_middleware(
        webhook.EventsEndpoint,
        token=settings.events_token,
        record=partial(notify.record, context),
        wake=follower.wake,
        metrics=context.metrics,
    )
    _errors(app)
    callers = _Callers(context)
    _upload_routes(app, callers)
    _result_routes(app, callers)
    _list_routes(app, callers)
    _sweep_routes(app, reconciler)
    _upkeep_routes(app, callers, follower)
    _watching_routes(app, context, health)
    _page_routes(app, context)
    return app


class _Callers:
    """Threads and contexts of the calls that wait for the object store, apart from all others."""

    def __init__(self, context: Context) -> None:
        self.context = context.for_callers()
        self.asking = Threads(_ASKING, LOOK_SECONDS)
        """Threads for what is looked up, with ``context``, whose waits for the store are short."""
        self.patient_context = context
        self.changing = Threads(_CHANGING, LOOK_SECONDS)
        """Threads for what is removed or copied, with ``patient_context``: that takes as long as
        there are objects, and ought not to be left half done."""


def _index(settings: Settings) -> Index:
    return Index(settings.index_file, timeout=settings.index_timeout_seconds)


def _upload_routes(app: FastAPI, callers: _Callers) -> None:
    context, asking = callers.context, callers.asking
    forms = Forms()

    @app.post(
        "/upload",
        status_code=201,
        response_model=api.Ticket | dict[str, str],
        summary="Ask for a presigned PUT (JSON), or send the file itself (form)",
        openapi_extra={
            "requestBody": {
                "content": {
                    "application/json": {"schema": api.UploadRequest.model_json_schema()},
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["file"],
                            "properties": {
                                "analysis": {"type": "string"},
                                "args": {"type": "string", "description": "JSON"},
                                "file": {"type": "string", "format": "binary"},
                            },
                        }
                    },
                }
            }
        },
    )
    async def post_upload(request: Request) -> Any:
        content_type = request.headers.get("content-type", "")
        if content_type.startswith("multipart/form-data"):
            with forms.one():
                return await _receive_form(callers, request, content_type)
        body = api.UploadRequest.model_validate_json(await request.body())
        return await asking.run(partial(upload.presign, context, body))

    @app.put(
        # Named as for GET: an OpenAPI document has each path once.
        "/upload/{file_id}",
        status_code=307,
        response_class=RedirectResponse,
        responses=NO_LENGTH,
        summary="Redirects to a presigned PUT: curl -LT day1.mp4 http://host/upload/",
    )
    @asking
    def put_upload(
        filename: Annotated[str, Parameter(alias="file_id", description="here: of the film")],
        request: Request,
    ) -> RedirectResponse:
        # Nothing reads the body: who says Expect: 100-continue sends it to the store alone.
        url = upload.redirect(context, filename, request.headers)
        return RedirectResponse(url, status_code=307)

    @app.get(
        "/upload/{file_id}",
        responses=NOT_FOUND,
        summary="What is known of a file, and of what was refused why",
    )
    def get_upload(file_id: str) -> api.File:
        return upload.describe(context, file_id)

    @app.delete(
        "/upload/{file_id}",
        status_code=204,
        responses=NOT_FOUND,
        summary="Remove a file and all its results",
    )
    @callers.changing
    def delete_upload(file_id: str) -> None:
        upload.delete(callers.patient_context, file_id)
        changes.note("deleted", file_id=file_id)


async def _receive_form(callers: _Callers, request: Request, content_type: str) -> dict[str, str]:
    context = callers.context
    length = request.headers.get("content-length", "")
    most = context.settings.max_video_bytes
    if length.isascii() and length.isdigit():
        # Before it is sent, if the client asks; a film is nearly all of a form.
        upload.check_size(context, int(length) - _FORM_BYTES, "file")
        most = min(most, int(length))
    file_id = upload.new_file_id()

    def sink(filename: str, fields: dict[str, str], stream: io.RawIOBase) -> None:
        metadata = upload.check_metadata(context, fields.get("analysis"), fields.get("args"))
        key = layout.upload_key(file_id, filename)
        bucket = context.settings.videos_bucket
        kind = upload.guess_type(key)
        callers.patient_context.storage.upload_stream(bucket, key, stream, most, kind, metadata)
        # Its event may come after our answer; who asks at once is to find it.
        context.index.expect_file(file_id, bucket, key, context.clock(), metadata=metadata)

    form = FormUpload(content_type, sink, context.settings.max_video_bytes, _FORM_BYTES)
    await form.receive(request.stream())
    changes.note("uploaded", file_id=file_id)
    return {"file_id": file_id}


def _result_routes(app: FastAPI, callers: _Callers) -> None:
    context, asking = callers.context, callers.asking

    @app.post(
        "/analyse",
        summary="Ask for an analysis",
        responses={
            200: {"description": "It exists already"},
            202: {"description": "It will be", "model": api.Started},
            **NOT_FOUND,
        },
    )
    @asking
    def post_analyse(
        wanted: Annotated[api.AnalyseRequest, Body()], response: Response
    ) -> api.Started:
        handle = pending.ask(
            context,
            wanted.file_id,
            wanted.analysis,
            wanted.args,
            force=wanted.force,
            retry=wanted.retry,
        )
        if not handle.existed:
            changes.note("asked for", analysis_id=handle.analysis_id, file_id=wanted.file_id)
        over = handle.existed and handle.status in FINAL
        response.status_code = 200 if over else 202
        return api.Started(
            analysis_id=handle.analysis_id, file_id=wanted.file_id, status=handle.status
        )

    @app.get(
        "/results/{analysis_id}",
        summary="How far a run is (202), or what it made (200)",
        responses={
            202: {"description": "Not over yet", "model": api.RunAnswer},
            **NOT_FOUND,
            **GONE,
        },
    )
    @asking
    def get_results(analysis_id: str, response: Response) -> api.RunAnswer:
        answer = results.read(context, analysis_id)
        if not answer.over:
            response.status_code = 202
            response.headers["Retry-After"] = RETRY_AFTER
        return answer

    @app.delete(
        "/analyse/{analysis_id}",
        status_code=202,
        responses={204: {"description": "Its results are deleted"}, **NOT_FOUND, **GONE},
        summary="Cancel a run, or delete its results",
    )
    @callers.changing
    def delete_analyse(analysis_id: str, response: Response) -> dict[str, str] | None:
        status = results.cancel_or_delete(callers.patient_context, analysis_id)
        changes.note(status, analysis_id=analysis_id)
        if status == "deleted":
            response.status_code = 204
            return None
        return {"status": status}

    @app.get(
        "/download/{analysis_id}/{name}",
        status_code=307,
        response_class=RedirectResponse,
        responses={**NOT_FOUND, **GONE},
        summary="Redirects to a presigned GET of one file; ranges work",
    )
    @asking
    def get_download(analysis_id: str, name: str) -> RedirectResponse:
        return RedirectResponse(results.download_url(context, analysis_id, name), status_code=307)

    @app.get(
        "/thumbnail/{file_id}",
        status_code=307,
        response_class=RedirectResponse,
        responses=NOT_FOUND,
        summary="Redirects to a video's thumbnail",
    )
    @asking
    def get_thumbnail(file_id: str) -> RedirectResponse:
        return RedirectResponse(results.thumbnail_url(context, file_id), status_code=307)


Limit = Annotated[int, Query(ge=1, le=1000)]
RowId = Annotated[int, Query(ge=0, lt=2**63)]


def _list_routes(app: FastAPI, callers: _Callers) -> None:
    context, asking = callers.context, callers.asking

    @app.get("/files", summary="List, filter and search the files, newest first")
    def get_files(
        q: str | None = None,
        state: FileState | None = None,
        prefix: str | None = None,
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> api.FilesPage:
        page = context.index.files(state=state, prefix=prefix, query=q, cursor=cursor, limit=limit)
        items = upload.file_answers(context, page.rows)
        return api.FilesPage(items=items, next=page.cursor)

    @app.get("/analyses", summary="List, filter and search the runs")
    def get_analyses(
        q: str | None = None,
        state: RunState | None = None,
        file_id: str | None = None,
        analysis: str | None = None,
        prefix: str | None = None,
        order: Order = "newest",
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> api.RunsPage:
        page = context.index.analyses(
            state=state,
            file_id=file_id,
            analysis=analysis,
            prefix=prefix,
            query=q,
            order=order,
            cursor=cursor,
            limit=limit,
        )
        items = [api.RunRow.model_validate(row) for row in page.rows]
        return api.RunsPage(items=items, next=page.cursor)

    @app.get("/rules", summary="The rules (posedrop.json) that are wrong: videos wait for them")
    def get_rules(limit: Limit = 50) -> dict[str, list[api.WrongRule]]:
        return {"items": upload.wrong_rules(context, limit)}

    @app.get("/analysis-types", summary="What can be asked, with the JSON Schema of its args")
    def get_analysis_types() -> dict[str, Any]:
        items = [
            {
                "name": analysis.name,
                "summary": analysis.summary,
                "version": analysis.version,
                "needs_model": analysis.needs_model,
                "args": analysis.args.model_json_schema(),
            }
            for analysis in analyses.installed().values()
        ]
        return {"items": items}

    @app.get("/models", summary="The models of the models bucket")
    @asking
    def get_models() -> dict[str, Any]:
        found = catalog.list_models(context.storage, context.settings.models_bucket)
        return {"items": [model.model_dump(by_alias=True, exclude={"files"}) for model in found]}


def _sweep_routes(app: FastAPI, reconciler: reconcile.Reconciler) -> None:
    sweeping = anyio.CapacityLimiter(1)

    async def alone(sweep: Callable[[], Repairs]) -> dict[str, int]:
        """Run a sweep, unless another caller has asked for one and still waits for it."""
        me = object()
        try:
            sweeping.acquire_on_behalf_of_nowait(me)
        except anyio.WouldBlock as error:
            raise UnderWayError(
                "the buckets are being compared already; ask again later"
            ) from error
        try:
            own = anyio.CapacityLimiter(1)
            return (await anyio.to_thread.run_sync(sweep, limiter=own)).as_counts()
        finally:
            sweeping.release_on_behalf_of(me)

    @app.post(
        "/reconcile",
        summary="Compare buckets, index and queue now, and repair",
        responses=BUSY,
    )
    async def post_reconcile() -> dict[str, int]:
        counts = await alone(reconciler.round)
        changes.note("reconciled", counts=counts)
        return counts

    @app.post(
        "/reindex",
        summary="Make the index anew from the buckets",
        responses=BUSY,
    )
    async def post_reindex() -> dict[str, int]:
        counts = await alone(reconciler.reindex)
        changes.note("reindexed", counts=counts)
        return counts


def _upkeep_routes(app: FastAPI, callers: _Callers, follower: follow.Follower) -> None:
    context, changing = callers.patient_context, callers.changing

    @app.post("/reingest", summary="Look at refused videos anew")
    @changing
    def post_reingest(
        wanted: Annotated[api.ReingestRequest, Body()],
    ) -> api.ReingestedPage:
        return reingest.reingest(context, wanted)

    @app.get("/expire", summary="What is due to be removed by itself, and why")
    @changing
    def get_expire() -> api.Expiry:
        return retention.describe(context)

    @app.post("/expire", summary="Remove what is due, also where that is more than a share of all")
    @changing
    def post_expire(wanted: Annotated[api.ExpireRequest, Body()]) -> api.Expired:
        return retention.expire(context, wanted)

    @app.get("/notices", summary="What a person is to see to: a removal that was held back")
    def get_notices() -> dict[str, list[api.Notice]]:
        found = list(context.notices.items())
        return {"items": [api.Notice(about=about, message=words) for about, words in found]}

    @app.get("/dead-letters", summary="Events that could not be followed, the newest first")
    def get_dead_letters(cursor: RowId | None = None, limit: Limit = 50) -> api.DeadLettersPage:
        return letters.page(context, cursor, limit)

    @app.post("/dead-letters/replay", summary="Have dead letters followed again")
    def post_replay(
        wanted: Annotated[api.ReplayRequest, Body()],
    ) -> api.Replayed:
        answer = letters.replay(context, wanted)
        follower.wake()
        return answer


def _watching_routes(app: FastAPI, context: Context, health: Health) -> None:
    @app.get("/healthz", summary="Liveness: this process turns")
    async def get_healthz() -> dict[str, str]:
        # In no thread: that this process turns is all that it says.
        return {"status": "ok", "version": __version__}

    @app.get(
        "/readyz",
        responses={503: {"model": api.Ready, "description": "Some part does not"}},
        summary="Readiness: each part does its work (200), or not (503)",
    )
    async def get_readyz(response: Response) -> api.Ready:
        loop = asyncio.get_running_loop()
        problems = await loop.run_in_executor(health.threads, health.problems)
        wrong = any(problems.values())
        if wrong:
            response.status_code = 503
            response.headers["Retry-After"] = RETRY_AFTER
        return api.Ready(
            status="not ready" if wrong else "ready",
            parts={part: problem or "ok" for part, problem in problems.items()},
        )

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus")
    async def get_metrics() -> Response:
        def render() -> bytes:
            return context.metrics.render(context.index, context.clock(), *health.metrics())

        text = await asyncio.get_running_loop().run_in_executor(health.threads, render)
        return Response(text, media_type=metrics.CONTENT_TYPE)


def _page_routes(app: FastAPI, context: Context) -> None:
    @app.get("/", include_in_schema=False)
    def get_page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get(
        "/session",
        response_class=HTMLResponse,
        summary="The page that trades its link's token for a cookie",
    )
    def get_session() -> FileResponse:
        return FileResponse(PAGE / "session.html")

    @app.post("/session", status_code=204, summary="Trade the API token for a browser's cookie")
    def post_session(request: Request, response: Response) -> None:
        token = context.settings.api_token
        if token is not None:
            cookie = access.session_cookie(request, token.get_secret_value())
            response.headers["Set-Cookie"] = cookie
            changes.note("cookie given")

    @app.get("/page/{name}", include_in_schema=False)
    def get_page_file(name: str) -> FileResponse:
        if name not in {"page.js", "page.css", "session.js"}:
            raise NotFoundError(f"there is no {name[:40]}")
        return FileResponse(PAGE / name)


def _errors(app: FastAPI) -> None:
    statuses: dict[type[PosedropError], int] = {
        NotFoundError: 404,
        results.GoneError: 410,
        upload.LengthRequiredError: 411,
        UnderWayError: 409,
        BusyError: 503,
        BadRequestError: 422,
        IndexBusyError: 503,
        RecordError: 500,  # asking again changes nothing
        StorageError: 503,
        QueueError: 503,
    }

    @app.exception_handler(PosedropError)
    async def posedrop_error(_: Request, error: PosedropError) -> JSONResponse:
        status = next((s for kind, s in statuses.items() if isinstance(error, kind)), 500)
        return error_response(status, error.code, error.message, field=error.field)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # not even text
            return error_response(422, "bad_request", f"the body can't be read: {error.detail}")
        if error.status_code == 405:
            allow = ", ".join(sorted(_methods(app, request)))
            message = f"{request.method} is not for this path; these are: {allow}"
            return error_response(405, "method_not_allowed", message, headers={"Allow": allow})
        code = "not_found" if error.status_code == 404 else "bad_request"
        message = "there is no such path: GET /openapi.json has them all"
        return error_response(error.status_code, code, message)

    @app.exception_handler(Exception)
    async def own_error(_: Request, __: Exception) -> JSONResponse:
        return error_response(500, "internal", "posedrop itself failed; its log says how")

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def validation_error(
        request: Request, error: RequestValidationError | ValidationError
    ) -> JSONResponse:
        first = error.errors()[0]
        # Where a body is no JSON, FastAPI says at which character in place of the field.
        parts = [] if first["type"] == "json_invalid" else first["loc"]
        field = ".".join(str(part) for part in parts if part != "body")
        if field:
            return error_response(422, "bad_request", f"{field}: {first['msg']}", field=field)
        message = f"the body has to be a JSON object: {first['msg']}"
        if "json" not in request.headers.get("content-type", ""):
            message += "; send it with -H 'Content-Type: application/json'"
        return error_response(422, "bad_request", message)


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Return the HTTP methods of a request's path, by all routes that match it."""
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found
