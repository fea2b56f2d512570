"""Uploads: presigned, described, deleted; and which rules are wrong."""

from __future__ import annotations

import base64
import mimetypes
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from handlers import changes
from handlers.context import Context
from handlers.runs import copies, derived, plan, validation
from posedrop.api.files import File, RunName
from posedrop.api.rules import WrongRule
from posedrop.api.uploads import Ticket, UploadRequest
from posedrop.buckets import layout
from posedrop.buckets.storage import ObjectInfo, Presigned, PresignedParts
from posedrop.errors import BadRequestError, NotFoundError, RecordError
from posedrop.index.index import FileRow, RuleRow

_META = "x-amz-meta-"
_SHA256 = "x-amz-checksum-sha256"
# Metadata travels in headers: ASCII only, and at most 2 KB on AWS.
_MAX_METADATA = 1900


class LengthRequiredError(BadRequestError):
    """An upload whose length is not known when it begins."""

    code = "length_required"


def new_file_id() -> str:
    """Return a fresh file_id that nobody can guess."""
    return layout.new_file_id(base64.b32encode(secrets.token_bytes(10)).decode().lower())


def upload_key(file_id: str, filename: str) -> str:
    """Return the key of an upload that is in no folder.

    Raises:
        BadRequestError: it is a rule, which would count for nothing there.
    """
    key = layout.upload_key(file_id, filename)
    if layout.is_folder_rule(key):
        raise BadRequestError(
            "a posedrop.json counts for a folder: say for which "
            "(posedrop upload posedrop.json --to FOLDER)",
            field="filename",
        )
    return key


def presign(context: Context, wanted: UploadRequest) -> Ticket:
    """Choose a key and let the caller put one object there.

    Raises:
        BadRequestError: the analysis, its arguments or the name are wrong: better now than after
            the upload.
    """
    if wanted.size is not None:
        check_size(context, wanted.size, "size")
    metadata = metadata_of(context, wanted.analysis, wanted.args)
    file_id = new_file_id()
    key = upload_key(file_id, wanted.filename)
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
    context.index.expect_file(
        file_id, bucket, key, context.clock(), size=wanted.size, metadata=metadata
    )
    changes.note("upload allowed", file_id=file_id, key=key)
    return Ticket(
        file_id=file_id,
        bucket=bucket,
        key=key,
        upload={name: getattr(signed, name) for name in signed.__dataclass_fields__},
        expires_at=context.clock() + timedelta(seconds=context.settings.presign_seconds),
    )


def redirect(context: Context, filename: str, headers: Mapping[str, str]) -> str:
    """Return the URL that takes ``curl -LT film.mp4``, which is to follow with the same headers.

    Whatever the request declares is signed, so that the one that follows can't be another: its
    length, and its type, SHA-256, metadata and ``If-None-Match: *`` if it has them.

    Raises:
        LengthRequiredError: the length is not known; S3 takes no such object.
        BadRequestError: it is too large, a hash or what the metadata asks for is wrong, or there
            is a header that the store would act on, or count as a forgery.
    """
    declared = {name.lower(): value for name, value in headers.items()}
    size = _declared_size(declared)
    check_size(context, size, "content-length")
    metadata = _declared_metadata(context, declared)
    content_type = declared.get("content-type")
    if not (content_type or "").isascii():
        raise BadRequestError("a content type is plain ASCII", field="content-type")
    file_id = new_file_id()
    bucket = context.settings.videos_bucket
    key = upload_key(file_id, filename)
    url = context.storage.presign_plain_put(
        bucket,
        key,
        size=size,
        content_type=content_type,
        sha256=_declared_sha256(declared),
        once=declared.get("if-none-match") == "*",
        metadata=metadata,
    ).url
    asked = layout.user_metadata(metadata)
    context.index.expect_file(file_id, bucket, key, context.clock(), size=size, metadata=asked)
    changes.note("upload allowed", file_id=file_id, key=key)
    return url


def _declared_size(declared: Mapping[str, str]) -> int:
    length = declared.get("content-length", "")
    if "transfer-encoding" in declared or not (length.isascii() and length.isdigit()):
        raise LengthRequiredError(
            "an upload has to say how long it is before it begins, which a pipe can't: save the "
            "video to a file and send that (curl -LT film.mp4), or send a form (curl -F file=@-)",
            field="content-length",
        )
    return int(length)


def _declared_sha256(declared: Mapping[str, str]) -> str | None:
    given = declared.get(_SHA256)
    if given is None:
        return None
    try:
        digest = base64.b64decode(given, validate=True)
    except ValueError:
        digest = b""
    # The store compares what was signed letter by letter; base64 has several ways to write a hash.
    if len(digest) != 32 or base64.b64encode(digest).decode() != given:
        raise BadRequestError(
            f"{_SHA256} is not base64 of a SHA-256 (openssl sha256 -binary film.mp4 | base64)",
            field=_SHA256,
        )
    return digest.hex()


def _declared_metadata(context: Context, declared: Mapping[str, str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in declared.items():
        if name.startswith(_META):
            if not value.isascii():
                raise BadRequestError(f"{name} is not plain ASCII", field=name)
            metadata[name.removeprefix(_META)] = value
        elif name.startswith(("x-amz-", "x-minio-")) and name != _SHA256:
            raise BadRequestError(f"an upload can't have the header {name} here", field=name)
    if sum(len(name) + len(value) for name, value in metadata.items()) > _MAX_METADATA:
        raise BadRequestError("metadata may have 1,900 characters; use POST /analyse")
    check_metadata(context, metadata.get("analysis"), metadata.get("args"))
    return metadata


def check_size(context: Context, size: int, field: str) -> None:
    """Refuse a video by its size in bytes; ``field`` names the part of the request that told it.

    Raises:
        BadRequestError: it is over the limit.
    """
    most = context.settings.max_video_bytes
    if size > most:
        raise BadRequestError(
            f"{size:,} bytes are more than the {most:,} this server takes",
            code="too_many_bytes",
            field=field,
        )


def guess_type(key: str) -> str:
    """Return a content type by a key's ending."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def check_metadata(context: Context, analysis: str | None, args: str | None) -> dict[str, str]:
    """Return what a form asks for as object metadata, checked."""
    return metadata_of(context, analysis, validation.parse_args(args))


def metadata_of(context: Context, analysis: str | None, args: dict[str, Any]) -> dict[str, str]:
    """Return the metadata by which a video asks for an analysis.

    Raises:
        BadRequestError: the analysis or its arguments are wrong, or too long to travel so.
    """
    if analysis is None:
        if args:
            raise BadRequestError("args without an analysis", field="analysis")
        return {}
    validation.validate(context, analysis, args)
    metadata = {"analysis": analysis, "args": validation.canonical(args)}
    if sum(len(value) for value in metadata.values()) > _MAX_METADATA:
        raise BadRequestError("args are too long to travel with an upload; use POST /analyse")
    return metadata


def describe(context: Context, file_id: str) -> File:
    """Return a file as the API shows it, with the runs of its content.

    Raises:
        NotFoundError: there is none.
    """
    row = context.index.file(file_id)
    if row is None:
        raise NotFoundError(f"there is no file {file_id}; GET /files lists what there is")
    # The runs of a duplicate are those of its content, made under whatever name came first.
    runs = context.index.analyses_of_content(row.sha256) if row.sha256 else []
    names = [RunName.model_validate(run) for run in runs]
    return file_answers(context, [row])[0].model_copy(update={"analyses": names})


def file_answers(context: Context, rows: Sequence[FileRow]) -> list[File]:
    """Return rows of the index as the API shows them."""
    rules = {row.waits_for: None for row in rows if row.waits_for}
    wrong = {key: wrong_rule(context.index.rule(key)) for key in rules}
    return [
        File.model_validate(row).model_copy(
            update={"waiting": wrong.get(row.waits_for) if row.waits_for else None}
        )
        for row in rows
    ]


def wrong_rule(row: RuleRow | None) -> WrongRule | None:
    """Return a rule that is wrong as the API shows it, None if it is right."""
    if row is None or row.error is None:
        return None
    error = row.error
    return WrongRule(rule=row.key, code=error.code, message=error.message, since=row.since)


def wrong_rules(context: Context, limit: int) -> list[WrongRule]:
    """Return the rules that are wrong, by key."""
    rows = sorted(context.index.rules_wrong(limit), key=lambda row: row.key)
    return [answer for row in rows if (answer := wrong_rule(row)) is not None]


def delete(context: Context, file_id: str) -> None:
    """Remove a file and all its results; nothing is left behind under its name.

    Other names of its content have their own results, and keep them.

    Raises:
        NotFoundError: there is none.
        StorageError: what another name has to keep can't be copied to it now; nothing is removed.
    """
    _delete_if(context, file_id, lambda _: True)


def delete_if_unchanged(context: Context, file_id: str, seen: ObjectInfo | None) -> bool:
    """Remove a file as :func:`delete` does, unless another film has come to its key meanwhile.

    What its other names have to keep is copied first, which may take minutes.

    Args:
        context: the handlers' tools.
        file_id: of the file.
        seen: its object as the store told of it when it was due; None: it was gone.

    Returns:
        Whether it was removed.

    Raises:
        NotFoundError: there is none.
        StorageError: what another name has to keep can't be copied to it now; nothing is removed.
    """
    # A copy of the same content has the same ETag, and somebody wants it from now on.
    was = None if seen is None else (seen.etag, seen.last_modified)

    def is_due(row: FileRow) -> bool:
        there = context.storage.head(context.settings.videos_bucket, row.key)
        return there is None or (there.etag, there.last_modified) == was

    return _delete_if(context, file_id, is_due)


def _delete_if(context: Context, file_id: str, is_due: Callable[[FileRow], bool]) -> bool:
    row = context.index.file(file_id)
    if row is None:
        raise NotFoundError(f"there is no file {file_id}")
    if row.sha256 is not None:
        # What is asked for under other names has its folders there, before this one is taken.
        for other in context.index.files_with_content(row.sha256):
            _finish_planning(context, other)
    with context.copying:
        return _delete(context, row, is_due)


def _finish_planning(context: Context, file: FileRow) -> None:
    try:
        plan.finish_planning(context, file.file_id)
    except RecordError as error:
        context.storage.report(error)


def _delete(context: Context, row: FileRow, is_due: Callable[[FileRow], bool]) -> bool:
    results = context.settings.results_bucket
    below = _made_of(context, row)
    runs = [key.removesuffix(f"/{layout.REQUEST}") for key in below if _is_request(key)]
    copies.hand_over(context, row, runs)
    # Requests go first: a worker that is at it sees that its run is gone, and stops. Then results:
    # what is left of a deletion that was cut short must not read as a whole one.
    first = (f"/{layout.REQUEST}", f"/{layout.RESULT}")
    below.sort(key=lambda key: [not key.endswith(name) for name in first])
    # Right before the first of it goes: what was made of another film has the same keys.
    if not is_due(row):
        return False
    if row.state == "refused":
        # Before its film: nobody would look for what is left of it.
        _delete_made(context, row, below)
        if not is_due(row):
            return False
    context.storage.delete(context.settings.videos_bucket, [row.key])
    # Before the results: else they would be missed, and not made, when the video comes again.
    planned = layout.planned(row.file_id)
    context.storage.delete(results, [planned, *context.ingest_attempts(row.file_id)])
    if row.state != "refused":
        _delete_made(context, row, below)
    for place in context.index.places_of_file(row.file_id):
        copies.moved(context, context.index.place_removed(place.analysis_id, place.run))
        if context.index.analysis(place.analysis_id) is None:
            derived.forget_comparisons(context, place.sha256, place.analysis_id)
    for pending in context.index.pending_of_file(row.file_id):
        context.index.pending_removed(pending.pending_id)
    context.index.file_removed(row.file_id)
    return True


def _delete_made(context: Context, row: FileRow, below: list[str]) -> None:
    if row.sha256 is not None:
        # While its video.json is there: with that goes what is known of its content.
        copies.first_goes(context, row.sha256, row.file_id)
    context.storage.delete(context.settings.results_bucket, below)


def _made_of(context: Context, row: FileRow) -> list[str]:
    """Return the keys of all that was made of a film, and of no other whose key begins with its."""
    prefix = context.video_prefix(row.bucket, row.key)
    found = context.storage.objects(context.settings.results_bucket, f"{prefix}/")
    return [each.key for each in found if _video_of(each.key) == prefix]


def _video_of(key: str) -> str | None:
    parsed = layout.parse_result_key(key)
    return getattr(parsed, "video", None)


def _is_request(key: str) -> bool:
    parsed = layout.parse_result_key(key)
    return isinstance(parsed, layout.RunObject) and parsed.name == layout.REQUEST
