"""Uploads: who may put which object, and what became of it."""

from __future__ import annotations

import base64
import mimetypes
import secrets
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from handlers import plan
from handlers.context import Context, now
from posedrop import layout
from posedrop.errors import BadRequestError, NotFoundError
from posedrop.index import FileRow
from posedrop.storage import Presigned, PresignedParts


class UploadRequest(BaseModel):
    """What POST /upload is asked."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "filename": "mouse3-day1.mp4",
                    "size": 2216380,
                    "analysis": "deeplabcut_2d",
                    "args": {"model": "openfield"},
                }
            ]
        },
    )

    filename: str = Field(min_length=1, max_length=1000)
    size: int | None = Field(default=None, ge=0, description="bytes; no other length is taken then")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="no other content is taken then"
    )
    content_type: str | None = Field(default=None, pattern=r"^[\w.+-]+/[\w.+-]+$", max_length=100)
    analysis: str | None = Field(default=None, description="run this as soon as the video is there")
    args: dict[str, Any] = Field(default_factory=dict)
    multipart: bool = Field(default=False, description="in parts; needs size; for files over 5 GB")


class UploadAnswer(BaseModel):
    """Where and how to put the video."""

    file_id: str
    bucket: str
    key: str
    upload: dict[str, Any]
    expires_at: datetime


class FileAnswer(BaseModel):
    """A file, as the index knows it."""

    file_id: str
    bucket: str
    key: str
    filename: str
    state: str
    size: int | None
    etag: str | None
    sha256: str | None
    sha1: str | None
    probe: dict[str, Any] | None
    duplicate_of: str | None
    refusal: dict[str, str | None] | None
    created_at: datetime
    analyses: list[dict[str, str]] = Field(default_factory=list)


def new_file_id() -> str:
    """Return a fresh file_id that nobody can guess."""
    return base64.b32encode(secrets.token_bytes(10)).decode().lower()


def presign(context: Context, wanted: UploadRequest) -> UploadAnswer:
    """Choose a key and let the caller put one object there.

    Raises:
        BadRequestError: the analysis or its arguments are wrong: better now than after the upload.
    """
    if wanted.size is not None and wanted.size > context.settings.max_video_bytes:
        raise BadRequestError(
            f"{wanted.size:,} bytes are more than the {context.settings.max_video_bytes:,} "
            "this server takes",
            code="too_large",
            field="size",
        )
    metadata = _metadata(context, wanted.analysis, wanted.args)
    file_id = new_file_id()
    key = layout.upload_key(file_id, wanted.filename)
    bucket = context.settings.videos_bucket
    content_type = wanted.content_type or guess_type(key)
    signed: Presigned | PresignedParts
    if wanted.multipart:
        if wanted.size is None:
            raise BadRequestError("a multipart upload needs its size", field="size")
        signed = context.storage.presign_parts(
            bucket, key, content_type=content_type, size=wanted.size, metadata=metadata
        )
    else:
        signed = context.storage.presign_put(
            bucket,
            key,
            content_type=content_type,
            size=wanted.size,
            sha256=wanted.sha256,
            metadata=metadata,
        )
    context.index.expect_file(file_id, bucket, key, now(), size=wanted.size, metadata=metadata)
    return UploadAnswer(
        file_id=file_id,
        bucket=bucket,
        key=key,
        upload={name: getattr(signed, name) for name in signed.__dataclass_fields__},
        expires_at=now() + timedelta(seconds=context.settings.presign_seconds),
    )


def redirect(context: Context, filename: str) -> str:
    """Return the URL that takes ``curl -LT film.mp4``."""
    file_id = new_file_id()
    bucket = context.settings.videos_bucket
    key = layout.upload_key(file_id, filename)
    context.index.expect_file(file_id, bucket, key, now())
    return context.storage.presign_plain_put(bucket, key).url


def guess_type(key: str) -> str:
    """Return a content type by a key's ending."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def check_metadata(context: Context, analysis: str | None, args: str | None) -> dict[str, str]:
    """Return what a form asks for as object metadata, checked."""
    return _metadata(context, analysis, plan.parse_args(args))


def _metadata(context: Context, analysis: str | None, args: dict[str, Any]) -> dict[str, str]:
    if analysis is None:
        if args:
            raise BadRequestError("args without an analysis", field="analysis")
        return {}
    plan.order(context, analysis, args)
    # Metadata travels in headers: ASCII only, and at most 2 KB on AWS.
    metadata = {"analysis": analysis, "args": plan.canonical(args)}
    if sum(len(value) for value in metadata.values()) > 1900:
        raise BadRequestError("args are too long to travel with an upload; use POST /analyse")
    return metadata


def describe(context: Context, file_id: str) -> FileAnswer:
    """Return what is known of a file.

    Raises:
        NotFoundError: there is none.
    """
    row = context.index.file(file_id)
    if row is None:
        raise NotFoundError(f"there is no file {file_id}; GET /files lists what there is")
    answer = file_answer(row)
    # The runs of a duplicate are those of its content, made under whatever name came first.
    runs = context.index.analyses_of_content(row.sha256) if row.sha256 else []
    answer.analyses = [
        {"analysis_id": run.analysis_id, "analysis": run.analysis, "status": run.state}
        for run in runs
    ]
    return answer


def file_answer(row: FileRow) -> FileAnswer:
    """Return a row of the index as the API shows it."""
    refusal = None
    if row.refusal_reason is not None:
        refusal = {"reason": row.refusal_reason, "message": row.refusal_message}
    return FileAnswer(
        file_id=row.file_id,
        bucket=row.bucket,
        key=row.key,
        filename=row.filename,
        state=row.state,
        size=row.size,
        etag=row.etag,
        sha256=row.sha256,
        sha1=row.sha1,
        probe=row.probe.model_dump() if row.probe else None,
        duplicate_of=row.duplicate_of,
        refusal=refusal,
        created_at=row.created_at,
    )


def delete(context: Context, file_id: str) -> None:
    """Remove a file and all its results; nothing is left behind.

    Raises:
        NotFoundError: there is none.
    """
    row = context.index.file(file_id)
    if row is None:
        raise NotFoundError(f"there is no file {file_id}")
    results = context.settings.results_bucket
    prefix = layout.video_prefix(row.bucket, row.key)
    below = [found.key for found in context.storage.objects(results, f"{prefix}/")]
    # Requests go first: a worker that is at it sees that its run is gone, and stops.
    below.sort(key=lambda key: not key.endswith(f"/{layout.REQUEST}"))
    context.storage.delete(context.settings.videos_bucket, [row.key])
    context.storage.delete(results, below)
    if row.sha256 is not None and row.duplicate_of is None:
        context.storage.delete(results, [layout.content(row.sha256)])
    for run in context.index.analyses_of_file(file_id):
        context.index.analysis_removed(run.analysis_id)
    context.index.file_removed(file_id)
