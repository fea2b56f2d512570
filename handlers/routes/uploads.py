"""Routes of uploads: in one piece, by form, in parts; a file, told and removed."""

from __future__ import annotations

import io
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as Parameter
from fastapi.responses import RedirectResponse

from handlers import changes, upload, upload_parts
from handlers.door.error_response import NO_LENGTH, NOT_FOUND
from handlers.door.form import Forms, FormUpload
from handlers.routes.callers import Callers
from posedrop.api.files import File
from posedrop.api.uploads import (
    AbortRequest,
    CheckAnswer,
    CheckRequest,
    CompleteRequest,
    Folders,
    PartsRequest,
    PartsTicket,
    SignAnswer,
    SignRequest,
    Ticket,
    Uploaded,
    UploadRequest,
)
from posedrop.buckets import targets

#: What a form may have besides its file, bytes.
_FORM_BYTES = 2**20


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add what is below /upload and /uploads."""
    context, asking = callers.context, callers.asking
    forms = Forms()

    @app.post(
        "/upload",
        status_code=201,
        response_model=Ticket | dict[str, str],
        summary="Ask for a presigned PUT (JSON), or send the file itself (form)",
        openapi_extra={
            "requestBody": {
                "content": {
                    "application/json": {"schema": UploadRequest.model_json_schema()},
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
        body = UploadRequest.model_validate_json(await request.body())
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
    def get_upload(file_id: str) -> File:
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

    @app.post("/uploads/check", summary="What would become of files, before they are uploaded")
    @asking
    def post_check(wanted: CheckRequest) -> CheckAnswer:
        return upload_parts.check(context, wanted)

    @app.get("/uploads/folders", summary="The folders just below one, to choose from")
    @asking
    def get_folders(under: Annotated[str, Query(max_length=1024)] = "") -> Folders:
        folder = targets.check_folder(under)
        below = context.storage.folders(
            context.settings.videos_bucket, f"{folder}/" if folder else ""
        )
        # Uploads without a folder have one each, which is nobody's choice.
        return Folders(items=[each for each in below if each != "uploads"])

    @app.post("/uploads/parts", summary="Begin an upload in parts, or go on with one")
    @asking
    def post_parts(wanted: PartsRequest) -> PartsTicket:
        return upload_parts.begin(context, wanted)

    @app.post("/uploads/parts/sign", responses=NOT_FOUND, summary="Presigned PUTs of some parts")
    @asking
    def post_sign(wanted: SignRequest) -> SignAnswer:
        return upload_parts.sign(context, wanted)

    @app.post("/uploads/parts/complete", responses=NOT_FOUND, summary="Make the parts an object")
    @asking
    def post_complete(wanted: CompleteRequest) -> Uploaded:
        return upload_parts.complete(context, wanted)

    @app.post("/uploads/parts/abort", status_code=204, summary="Give an upload in parts up")
    @asking
    def post_abort(wanted: AbortRequest) -> None:
        upload_parts.give_up(context, wanted.key, wanted.upload_id)


async def _receive_form(callers: Callers, request: Request, content_type: str) -> dict[str, str]:
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
        key = upload.upload_key(file_id, filename)
        bucket = context.settings.videos_bucket
        kind = upload.guess_type(key)
        callers.patient_context.storage.upload_stream(bucket, key, stream, most, kind, metadata)
        # Its event may come after our answer; who asks at once is to find it.
        context.index.expect_file(file_id, bucket, key, context.clock(), metadata=metadata)

    form = FormUpload(content_type, sink, context.settings.max_video_bytes, _FORM_BYTES)
    await form.receive(request.stream())
    changes.note("uploaded", file_id=file_id)
    return {"file_id": file_id}
