"""Requests for an analysis by POST /analyse: carried out, or pending until a video is ingested."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from handlers.context import Context
from handlers.runs import batches, cost, record_kinds, start, stopping, validation
from handlers.runs.poses_of import UnfinishedRunError
from handlers.runs.start import RunHandle
from handlers.runs.validation import ValidRequest, canonical
from posedrop.api.runs import Cost
from posedrop.buckets import layout
from posedrop.buckets.records.planned import Followed, Planned
from posedrop.buckets.records.requests import PendingRequest
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import BadRequestError, NotFoundError, PosedropError
from posedrop.index.rows import AnalysisRow, FileRow, PendingRow

#: The error of a pending request whose video was refused.
_REFUSED = "refused"
#: As a record says that a pending request decided.
BY_REQUEST = Followed(kind="question")
_ALWAYS = datetime.max.replace(tzinfo=UTC)


def ask(
    context: Context,
    file_id: str,
    analysis: str,
    args: Mapping[str, Any],
    *,
    force: bool,
    retry: bool = True,
    notify: tuple[str, ...] = (),
) -> RunHandle:
    """Carry out POST /analyse: start the run, or keep it until the video's ingest is over.

    Args:
        context: the handlers' tools.
        file_id: of the video.
        analysis: by name.
        args: of the analysis.
        force: make a new run, whatever there is.
        retry: make a run anew that failed or was cancelled; False: only one that was over before
            this video was uploaded, as whoever uploads it waits for its first.
        notify: aliases that are told when a run that is created is over.

    Raises:
        NotFoundError: there is no such file.
        BadRequestError: it can't be done as asked, or the video was refused.
        UnfinishedRunError: it takes poses, and there are none yet.
    """
    file = context.index.file(file_id)
    if file is None:
        raise NotFoundError(f"there is no file {file_id}; GET /files lists what there is")
    wanted = validation.validate(context, analysis, args)
    token = secrets.token_hex(8) if force else None
    before = _ALWAYS if retry else file.created_at
    return ask_for(context, file, wanted, token=token, retry_before=before, notify=notify)


def ask_for(
    context: Context,
    file: FileRow,
    wanted: ValidRequest,
    *,
    token: str | None,
    retry_before: datetime | None,
    batch: str | None = None,
    notify: tuple[str, ...] = (),
) -> RunHandle:
    """Start a run of a video, or keep the request until its ingest is over.

    Args:
        context: the handlers' tools.
        file: the video.
        wanted: what to do with it.
        token: makes the run one of its own.
        retry_before: as :func:`start.start_run` has it.
        batch: the batch in which it is asked for.
        notify: aliases that are told when a run that is created is over.

    Raises:
        BadRequestError: the video was refused, or is gone.
    """
    _check_is_there(file)
    prefix = context.video_prefix(file.bucket, file.key)
    if file.state == "ready":
        record = context.video_record(file.bucket, file.key)
        if record is not None and record.probe is not None:
            return start.start_run(
                context,
                record,
                wanted,
                "api",
                token,
                retry_before=retry_before,
                batch=batch,
                notify=notify,
            )
    _check_has_poses(file, wanted)
    pending = PendingRequest(
        # By the ETag, so that the same request about what replaces this is another one.
        pending_id=layout.make_id(
            "pending",
            file.file_id,
            file.etag or "",
            wanted.analysis.name,
            canonical(wanted.args),
            token or "",
        ),
        file_id=file.file_id,
        key=file.key,
        analysis=wanted.analysis.name,
        args=wanted.args,
        created_at=context.clock(),
        force=token,
        batch=batch,
        notify=list(notify),
    )
    key = layout.pending_request(prefix, pending.pending_id)
    created = context.storage.create(context.settings.results_bucket, key, pending.to_json())
    if created:  # it may have been asked before, and taken back
        _reopen(context, pending)
    else:
        context.index.pending_added(pending)
    return RunHandle(pending.pending_id, "waiting", not created)


def preview(
    context: Context,
    file_id: str,
    analysis: str,
    args: Mapping[str, Any],
    *,
    force: bool,
    retry: bool = True,
) -> tuple[RunHandle, Cost | None]:
    """Return what :func:`ask` would answer, and what that would cost; nothing is started.

    The status is ``new`` of a run that would be made. The cost is None where the video is not
    ingested yet.

    Raises:
        NotFoundError: there is no such file.
        BadRequestError: it can't be done as asked, or the video was refused.
    """
    file = context.index.file(file_id)
    if file is None:
        raise NotFoundError(f"there is no file {file_id}; GET /files lists what there is")
    wanted = validation.validate(context, analysis, args)
    _check_is_there(file)
    record = context.video_record(file.bucket, file.key) if file.state == "ready" else None
    if record is None or record.probe is None:
        _check_has_poses(file, wanted)
        return RunHandle("", "waiting", False), None
    token = secrets.token_hex(8) if force else None
    found = start.preview(context, record, wanted, token, _ALWAYS if retry else file.created_at)
    if isinstance(found, AnalysisRow):
        return RunHandle(found.analysis_id, found.state, True), cost.of_run(context, found)
    return RunHandle(found.analysis_id, "new", False), cost.of(context, found)


def _check_has_poses(file: FileRow, wanted: ValidRequest) -> None:
    """Refuse what takes poses for a film without: as a request that decides, it would keep others.

    Raises:
        UnfinishedRunError: there are none yet.
    """
    if wanted.analysis.takes_poses:
        words = f"{file.key} is not ingested yet, and has no poses: ask again when it has"
        raise UnfinishedRunError(words, field="file_id")


def _check_is_there(file: FileRow) -> None:
    """Refuse a request about a video that was refused, or is gone.

    Raises:
        BadRequestError: it says so, and what to do.
    """
    if file.state == "refused":
        raise BadRequestError(
            f"{file.key} was refused ({file.refusal_reason}): {file.refusal_message}",
            code="refused",
            field="file_id",
        )
    if file.state == "film gone":
        raise BadRequestError(
            f"{file.key} is gone from the bucket, only its results are there: upload it again",
            code="film_gone",
            field="file_id",
        )


def start_all(context: Context, video: VideoRecord) -> None:
    """Start the runs of a video's pending requests, each once for ever."""
    bucket = context.settings.results_bucket
    prefix = context.video_prefix(video.video.bucket, video.video.key)
    for pending in context.index.pending_of_file(video.video.file_id):
        if context.storage.head(bucket, layout.pending_request(prefix, pending.pending_id)) is None:
            # Taken back, or cleared away with all that was made of the video.
            context.index.pending_removed(pending.pending_id)
            continue
        key = layout.pending_outcome(prefix, pending.pending_id)
        done = context.storage.read_whole_record(bucket, key, Planned)
        if done is None and _is_cancelled(context, pending):
            # As if it was taken back in time: what no request decides, the film's rule does.
            withdraw(context, pending.pending_id, pending.file_id)
            continue
        if done is None:
            done = _outcome(context, video, pending)
            context.storage.create(bucket, key, done.to_json())
        record_kinds.note_outcome(context, pending.pending_id, done)


def withdraw(context: Context, pending_id: str, file_id: str) -> None:
    """Take back a request whose video was not ingested yet."""
    file = context.index.file(file_id)
    if file is not None:
        prefix = context.video_prefix(file.bucket, file.key)
        context.storage.delete(context.settings.results_bucket, keys_of(prefix, pending_id))
    error = RunError(code="cancelled", message="withdrawn before its video was ingested")
    context.index.pending_failed(pending_id, error)


def keys_of(prefix: str, pending_id: str) -> list[str]:
    """Return the keys of a pending request, in the order in which they may go."""
    # The outcome goes last: without it the request would be taken for a new one.
    return [layout.pending_request(prefix, pending_id), layout.pending_outcome(prefix, pending_id)]


def _outcome(context: Context, video: VideoRecord, pending: PendingRow) -> Planned:
    if video.refusal is not None or video.probe is None:
        reason = video.refusal.message if video.refusal else "it has no frames"
        refused = RunError(code=_REFUSED, message=reason, stage="ingest")
        return planned_record(context, video, BY_REQUEST, None, refused)
    try:
        wanted = validation.validate(context, pending.analysis, pending.args)
        started = start.start_run(
            context,
            video,
            wanted,
            "api",
            pending.force,
            retry_before=pending.created_at,
            batch=pending.batch,
            notify=pending.notify,
        )
    except BadRequestError as error:
        return planned_record(context, video, BY_REQUEST, None, error_of(error))
    if not started.existed and _is_cancelled(context, pending):
        # Since it was looked at above: the run is younger than what stops those there were.
        row = context.index.analysis(started.analysis_id)
        if row is not None:
            stopping.stop(context, row)
    return planned_record(context, video, BY_REQUEST, started.analysis_id)


def _is_cancelled(context: Context, pending: PendingRow) -> bool:
    return batches.is_cancelled(context, pending.created_at, pending.key, pending.batch)


def reopen_refused(context: Context, prefix: str, etag: str) -> None:
    """Make pending again the requests about a video that ended with its refusal alone.

    Args:
        context: the handlers' tools.
        prefix: the video's folder of the results bucket.
        etag: of the bytes that were refused.
    """
    bucket = context.settings.results_bucket
    for found in list(context.storage.objects(bucket, f"{prefix}/asked/")):
        match layout.parse_result_key(found.key):
            case layout.PendingOutcomeObject(video=mine, pending_id=pending_id) if mine == prefix:
                done = context.storage.read_whole_record(bucket, found.key, Planned)
                key = layout.pending_request(prefix, pending_id)
                pending = context.storage.read_whole_record(bucket, key, PendingRequest)
                if pending is not None and done is not None and _says_refused(done, etag):
                    # The index first: what is cut short here ends as it did before.
                    _reopen(context, pending)
                    context.storage.delete(bucket, [found.key])


def _says_refused(done: Planned, etag: str) -> bool:
    return done.etag == etag and done.error is not None and done.error.code == _REFUSED


def _reopen(context: Context, pending: PendingRequest) -> None:
    with context.index.together():
        context.index.pending_removed(pending.pending_id)
        context.index.pending_added(pending)


def planned_record(
    context: Context,
    video: VideoRecord,
    rule: Followed,
    analysis_id: str | None,
    error: RunError | None = None,
) -> Planned:
    """Return the record of what a video was planned for, or of what became of a pending request."""
    ref = video.video
    return Planned(
        file_id=ref.file_id,
        key=ref.key,
        etag=ref.etag,
        sha256=video.sha256,
        rule=rule,
        analysis_id=analysis_id,
        error=error,
        planned_at=context.clock(),
    )


def error_of(error: PosedropError) -> RunError:
    """Return an error as records have it, of a run that was not even started."""
    return RunError(code=error.code, message=error.message, stage="plan", field=error.field)
