"""Results: how far a run is, what it made, and how it is cancelled or deleted."""

from __future__ import annotations

from urllib.parse import quote

from handlers.context import Context
from handlers.runs import copies, damaged, derived, plan, stopping
from handlers.runs import pending as pending_requests
from posedrop.api.runs import ResultFile, RunAnswer
from posedrop.buckets import layout, names
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact
from posedrop.errors import NotFoundError, PosedropError
from posedrop.index.index import AnalysisRow
from posedrop.index.rows import DAMAGED


class GoneError(PosedropError):
    """The results were deleted."""

    code = "gone"


class OverError(PosedropError):
    """A run that was to be cancelled, and has ended before."""

    code = "over"


def read(context: Context, analysis_id: str) -> RunAnswer:
    """Return how far a run is, or what it made.

    Raises:
        NotFoundError: there was never one with this id, as far as the index knows.
        GoneError: it was deleted.
    """
    row = context.index.analysis(analysis_id)
    if row is None:
        check_not_gone(context, analysis_id)
        return _waiting(context, analysis_id)
    # The bucket is the truth: the index may be a moment behind the worker, or an S3 tool.
    bad = None
    for place in _readable(context, row):
        result = damaged.read_result(context, place.run)
        if result is None:
            continue
        answer = _over(context, place, result, context.index.retry_of(analysis_id))
        if answer.error is None or answer.error.code != DAMAGED:
            return answer
        bad = bad or answer
    if bad is not None:
        return bad
    attempt, needs_newer = stopping.last_attempt(context, row.run)
    live = attempt is not None and attempt.outcome is None
    progress = attempt.progress if attempt is not None and live else None
    if needs_newer is not None and not live:
        stage = f"waiting for a worker with {needs_newer.analysis} version {needs_newer.needs}"
        progress = Progress(stage=stage)
    return RunAnswer(
        analysis_id=analysis_id,
        file_id=row.file_id,
        analysis=row.analysis,
        status="running" if attempt is not None else "queued",
        progress=progress,
        files=[_file(analysis_id, each) for each in _found(context, row.run, attempt)],
        position=None if live else context.index.position(analysis_id),
        retry_of=row.retry_of,
    )


def _readable(context: Context, row: AnalysisRow) -> list[AnalysisRow]:
    """Return where a run may be read: its folder, then those of the other names that have it."""
    others = context.index.places(row.analysis_id)[1:]
    return [row, *(place for place in others if place.finished_at is not None)]


def check_not_gone(context: Context, analysis_id: str) -> None:
    """Raise GoneError for a run that was deleted."""
    if context.index.analysis_is_gone(analysis_id):
        raise _gone(analysis_id)


def _gone(analysis_id: str) -> GoneError:
    return GoneError(f"the results of {analysis_id} were deleted; ask again to make them anew")


def _waiting(context: Context, pending_id: str) -> RunAnswer:
    pending = context.index.pending(pending_id)
    if pending is None:
        raise NotFoundError(f"there is no analysis {pending_id}; GET /analyses lists what there is")
    if pending.analysis_id is not None:
        if context.index.analysis(pending.analysis_id) is None:
            raise _gone(pending.analysis_id)
        return read(context, pending.analysis_id)
    return RunAnswer(
        analysis_id=pending_id,
        file_id=pending.file_id,
        analysis=pending.analysis,
        status="failed" if pending.error else "waiting",
        progress=None if pending.error else Progress(stage="waiting for the video"),
        error=pending.error,
    )


def _over(context: Context, row: AnalysisRow, result: Result, retried_by: str | None) -> RunAnswer:
    artefacts = (*result.artefacts, *derived.made(context, row.run))
    files = [_file(row.analysis_id, artefact) for artefact in artefacts]
    drawn = next((file for file in files if file.role == "labelled_video"), None)
    return RunAnswer(
        analysis_id=row.analysis_id,
        file_id=row.file_id,
        analysis=row.analysis,
        status=result.state,
        result=result,
        video_file=drawn.url if drawn is not None else None,
        files=files,
        error=result.error,
        retry_of=row.retry_of,
        retried_by=retried_by,
    )


def _file(analysis_id: str, artefact: Artefact) -> ResultFile:
    return ResultFile(
        name=artefact.name,
        url=download_path(analysis_id, artefact.name),
        size=artefact.size,
        sha256=artefact.sha256,
        content_type=artefact.content_type,
        role=names.role_of(artefact),
    )


def _found(context: Context, run: str, attempt: Attempt | None) -> list[Artefact]:
    """Return the tables of a run that is not over: it is drawn now."""
    if attempt is None or (attempt.task != "render" and attempt.outcome != "done"):
        return []
    bucket, key = context.settings.results_bucket, layout.Run(run).inference
    inference = context.storage.read_whole_record(bucket, key, Inference)
    # Render goes on with the log.
    found = inference.artefacts if inference is not None else []
    return [artefact for artefact in found if artefact.plain_name != layout.RUN_LOG]


def download_path(analysis_id: str, name: str) -> str:
    """Return the path of one file of a run in the API."""
    return f"/download/{analysis_id}/{quote(name)}"


def row_to_read(context: Context, analysis_id: str) -> AnalysisRow:
    """Return a run by the folder where its files are to be read.

    Raises:
        NotFoundError: there was never one with this id.
        GoneError: it was deleted.
    """
    row = context.index.analysis(resolved(context, analysis_id))
    if row is None:
        check_not_gone(context, analysis_id)
        raise NotFoundError(f"there is no analysis {analysis_id}")
    if row.finished_at is None:
        # GET /results, which reads the bucket, may have told of it already.
        row = damaged.up_to_date(context, row) or row
    row, *others = _readable(context, row)
    request = layout.Run(row.run).request
    if others and context.storage.head(context.settings.results_bucket, request) is None:
        return others[0]  # an S3 tool has removed its folder, and no event has told of it yet
    return row


def make_again(context: Context, analysis_id: str, name: str) -> bool:
    """Have a file made that could not be made of a run; tell whether that is to be done now.

    Raises:
        NotFoundError: no such file is made of the run.
        GoneError: it was deleted.
    """
    row = row_to_read(context, analysis_id)
    if not derived.can_be_made(row, name):
        raise NotFoundError(f"no {name[:80]!r} is made of {analysis_id} when it is asked for")
    return derived.ask_again(context, layout.Run(row.run), derived.WHAT[name])


def download_url(context: Context, analysis_id: str, name: str) -> str:
    """Return a presigned URL of one file of a run, ``result.json`` among them.

    A name of :data:`handlers.runs.derived.WHAT` is made when it is first asked for.

    Args:
        context: the handlers' tools.
        analysis_id: the run.
        name: of the file: its own, or its plain one, such as ``poses.h5``.

    Raises:
        NotFoundError: the run has no such file.
        GoneError: it was deleted.
        BeingMadeError: it is made now, as it was asked for.
        BadRequestError: it can't be made; the message says why.
    """
    row = row_to_read(context, analysis_id)
    place, filename, content_type = name, name, "application/json"
    if name not in {layout.RESULT, layout.REQUEST}:
        artefacts = row.artefacts
        if row.finished_at is None:
            artefacts = tuple(_found(context, row.run, stopping.last_attempt(context, row.run)[0]))
        artefact = names.find(artefacts, name)
        if artefact is None and derived.can_be_made(row, name):
            artefact = derived.find(context, row, name)
        if artefact is None:
            known = sorted({each.name for each in artefacts} | {layout.RESULT, layout.REQUEST})
            raise NotFoundError(
                f"{analysis_id} has no file {name[:80]!r}; there are: {', '.join(known)}"
            )
        place, filename = artefact.object_name, artefact.name
        content_type = artefact.content_type
    return context.storage.presign_get(
        context.settings.results_bucket,
        layout.Run(row.run).key(place),
        content_type=content_type,
        filename=filename,
    )


def thumbnail_url(context: Context, file_id: str) -> str:
    """Return a presigned URL of a video's thumbnail.

    Raises:
        NotFoundError: there is no such file.
    """
    row = context.index.file(file_id)
    if row is None or row.state not in {"ready", "film gone"}:
        raise NotFoundError(f"{file_id} has no thumbnail")
    prefix = context.video_prefix(row.bucket, row.key)
    return context.storage.presign_get(
        context.settings.results_bucket,
        layout.thumbnail(prefix),
        content_type="image/jpeg",
        filename=layout.THUMBNAIL,
    )


def resolved(context: Context, analysis_id: str) -> str:
    """Return the id of a run by its own, or by that of the request that waited for its video."""
    pending = context.index.pending(analysis_id)
    return pending.analysis_id if pending and pending.analysis_id else analysis_id


def cancel_or_delete(context: Context, analysis_id: str, *, only_cancel: bool = False) -> str:
    """Stop a run that goes on, delete the results of one that is over.

    Args:
        context: the handlers' tools.
        analysis_id: the run.
        only_cancel: delete no results: who asks has seen a run that goes on, and it may have ended
            since.

    Returns:
        ``"cancelling"``, ``"cancelled"`` or ``"deleted"``.

    Raises:
        NotFoundError: there is no such run.
        OverError: it is over, and was only to be cancelled.
    """
    analysis_id = resolved(context, analysis_id)
    row = context.index.analysis(analysis_id)
    if row is None:
        check_not_gone(context, analysis_id)
        pending = context.index.pending(analysis_id)
        if pending is None:
            raise NotFoundError(f"there is no analysis {analysis_id}")
        if only_cancel and pending.error is not None:
            raise _over_already(analysis_id)
        pending_requests.withdraw(context, analysis_id, pending.file_id)
        return "deleted"
    stopped = stopping.stop(context, row)
    if stopped is None:
        if only_cancel:
            raise _over_already(analysis_id)
        _delete(context, row)
        return "deleted"
    return stopped


def _over_already(analysis_id: str) -> OverError:
    return OverError(f"{analysis_id} is over already: nothing was cancelled, its results are kept")


def _delete(context: Context, row: AnalysisRow) -> None:
    """Delete a run under every name of its content; where it is read, last."""
    for place in copies.places(context, row.sha256, row.run):
        plan.finish_planning(context, place.file_id)
    keys: list[str] = []
    for pending in context.index.pending_of_analysis(row.analysis_id):
        prefix = context.video_prefix(row.bucket, pending.key)
        keys += pending_requests.keys_of(prefix, pending.pending_id)
    context.storage.delete(context.settings.results_bucket, keys)
    with context.copying:
        places = context.index.places(row.analysis_id)
        copies.forget(context, row.analysis_id, [place.run for place in reversed(places)])
    context.index.analysis_removed(row.analysis_id)
    derived.forget_comparisons(context, row.sha256, row.analysis_id)
