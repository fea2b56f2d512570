"""Which error of posedrop is which answer of the API."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from handlers import upload, upload_parts
from handlers.door.error_response import error_response
from handlers.routes.sweeps import UnderWayError
from handlers.runs import kept_rules, results
from handlers.runs.poses_of import UnfinishedRunError
from posedrop.errors import (
    BadRequestError,
    BusyError,
    NotFoundError,
    PosedropError,
    RecordError,
    StorageError,
    WrongPart,
)
from posedrop.index.index import IndexBusyError
from posedrop.transport.queue import QueueError


def add_handlers(app: FastAPI) -> None:
    """Have each error answered: posedrop's own, those of a body, and a path that is none."""
    statuses: dict[type[PosedropError], int] = {
        **upload_parts.STATUSES,
        NotFoundError: 404,
        results.GoneError: 410,
        results.OverError: 409,
        upload.LengthRequiredError: 411,
        UnderWayError: 409,
        UnfinishedRunError: 409,
        kept_rules.ChangedRuleError: 412,
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
        return error_response(
            status, error.code, error.message, field=error.field, errors=error.errors
        )

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
            message = f"{field}: {first['msg']}"
            wrong = [
                WrongPart(tuple(part for part in each["loc"] if part != "body"), each["msg"])
                for each in error.errors()
            ]
            return error_response(422, "bad_request", message, field=field, errors=wrong)
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
