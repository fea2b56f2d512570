"""Starting a run: its request.json is created, unless the same run exists, and it is sent in turn.

An analysis_id is made of what decides the result (content, analysis, arguments, model, version),
so the same request on the same content is the same run, under whatever key the video lies: it is
made once, and copied to the other names (see handlers/runs/copies.py).
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Literal, NamedTuple

from handlers import gpu_queue
from handlers.context import Context
from handlers.runs import copies, damaged, earlier, poses_of
from handlers.runs.validation import ValidRequest, analysis_id_of
from posedrop.buckets import layout
from posedrop.buckets.records.derived import ExportFormat
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import RunRef, RunState
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import BadRequestError
from posedrop.index.rows import AnalysisRow
from posedrop.transport.queue import QueueError

log = logging.getLogger(__name__)


#: How often what fails is made anew by asking again for the same; beyond, ask with ``force``.
MAX_RETRIES = 10
#: How a run ends that may be made anew.
_BAD = frozenset({"failed", "cancelled"})
Origin = Literal["api", "metadata", "folder", "default"]


class RunHandle(NamedTuple):
    """A run by its id, or a pending request: how far it is, and whether it was there before."""

    analysis_id: str
    status: RunState | Literal["new"]
    existed: bool


def start_run(
    context: Context,
    video: VideoRecord,
    wanted: ValidRequest,
    origin: Origin,
    force: str | None,
    *,
    retry_before: datetime | None = None,
    exports: tuple[ExportFormat, ...] = (),
    batch: str | None = None,
    notify: tuple[str, ...] = (),
) -> RunHandle:
    """Create the run of an ingested video, unless the same one exists; enqueue it.

    Args:
        context: the handlers' tools.
        video: what ingest found out about it.
        wanted: what to do with it.
        origin: who wants it.
        force: makes it a run of its own.
        retry_before: a run that failed or was cancelled before this time is made anew, and so is
            the run that was made for it; whoever asks at the same time gets the same. After
            ``MAX_RETRIES`` the last failure is the answer.
        exports: formats in which a run that is created is to be had once it is over.
        batch: the batch in which it is asked for.
        notify: aliases that are told when a run that is created is over.

    Raises:
        BadRequestError: the video has no content, or no run with the poses that it takes.
    """
    if video.sha256 is None or video.probe is None:
        raise BadRequestError(f"{video.video.key} has no content to analyse", code="refused")
    wanted = poses_of.resolve(context, video, wanted)
    token, retry_of = force, None
    request: Request | None = None
    with context.creating:
        for retries in range(MAX_RETRIES + 1):
            analysis_id = analysis_id_of(video.sha256, wanted, token)
            token = f"retry:{analysis_id}"
            row = context.index.analysis(analysis_id)
            if retry_before is not None and row is not None and row.finished_at is None:
                row = damaged.up_to_date(context, row)
            is_bad = row is None or row.state in _BAD
            if not (is_bad and _exists(context, analysis_id_of(video.sha256, wanted, token))):
                if row is None:
                    request = _request(context, video, wanted, origin, analysis_id, force, retry_of)
                    request = request.model_copy(
                        update={"exports": list(exports), "batch": batch, "notify": list(notify)}
                    )
                    row = _created(context, video, request)
                    if row is None:
                        break
                if retries == MAX_RETRIES or not _is_retried(row, retry_before):
                    copies.join(context, video.video, row)
                    return RunHandle(analysis_id, row.state, True)
            if row is not None:
                retry_of = RunRef(analysis_id=analysis_id, run=row.run)
    # It stands in the bucket and in the index: whatever becomes of this, it is sent in its turn.
    if request is None or request.needs_network:
        gpu_queue.send_next(context)
    else:
        _send_at_once(context, request, video)
    log.info("planned", extra={"analysis_id": analysis_id, "file_id": video.video.file_id})
    return RunHandle(analysis_id, "queued", False)


def _send_at_once(context: Context, request: Request, video: VideoRecord) -> None:
    """Send a run that waits for no network; later, if the broker is away."""
    run = run_of(context, video, request.analysis, request.analysis_id)
    try:
        context.enqueue_finish(request.analysis_id, run)
    except QueueError as error:
        log.warning("%s", error)  # the reconciler sends it


def preview(
    context: Context,
    video: VideoRecord,
    wanted: ValidRequest,
    force: str | None,
    retry_before: datetime | None,
) -> AnalysisRow | Request:
    """Return the run that :func:`start_run` would answer with, or the request that it would make.

    Nothing is started.
    """
    if video.sha256 is None or video.probe is None:
        raise BadRequestError(f"{video.video.key} has no content to analyse", code="refused")
    wanted = poses_of.resolve(context, video, wanted)
    token, retry_of = force, None
    for retries in range(MAX_RETRIES + 1):
        analysis_id = analysis_id_of(video.sha256, wanted, token)
        token = f"retry:{analysis_id}"
        row = context.index.analysis(analysis_id)
        is_bad = row is None or row.state in _BAD
        if not (is_bad and _exists(context, analysis_id_of(video.sha256, wanted, token))):
            if row is None:
                return _request(context, video, wanted, "api", analysis_id, force, retry_of)
            if retries == MAX_RETRIES or not _is_retried(row, retry_before):
                return row
        if row is not None:
            retry_of = RunRef(analysis_id=row.analysis_id, run=row.run)
    return _request(context, video, wanted, "api", analysis_id, force, retry_of)


def _exists(context: Context, analysis_id: str) -> bool:
    return context.index.analysis(analysis_id) is not None


def _is_retried(row: AnalysisRow, before: datetime | None) -> bool:
    if row.state not in _BAD or row.finished_at is None:
        return False
    return before is not None and row.finished_at < before


def _request(
    context: Context,
    video: VideoRecord,
    wanted: ValidRequest,
    origin: Origin,
    analysis_id: str,
    force: str | None,
    retry_of: RunRef | None,
) -> Request:
    assert video.sha256 is not None and video.probe is not None  # noqa: S101, PT018
    model = wanted.model
    request = Request(
        analysis_id=analysis_id,
        analysis=wanted.analysis.name,
        analysis_version=wanted.analysis.version,
        args=wanted.args,
        video=video.video,
        sha256=video.sha256,
        probe=video.probe,
        model=ModelRef(name=model.name, digest=model.digest) if model else None,
        asked_by=origin,
        created_at=context.clock(),
        force=force,
        retry_of=retry_of,
        poses_of=wanted.poses_of,
        needs_network=wanted.poses_of is None,
    )
    return earlier.noted(context, request, model)


def _created(context: Context, video: VideoRecord, request: Request) -> AnalysisRow | None:
    """Create a run that the index does not know; return its row if the bucket knows it."""
    elsewhere = _run_of_the_first(context, video, request.analysis, request.analysis_id)
    if elsewhere is not None:
        return known(context, elsewhere, request)
    run = run_of(context, video, request.analysis, request.analysis_id)
    bucket, key = context.settings.results_bucket, layout.Run(run).request
    if not copies.clear_unless_requested(context, run):
        # Before its own: what is cut short here is started again, as long as that is not there.
        copies.share_new(context, request, run)
    if not context.storage.create(bucket, key, request.to_json()):
        # The bucket knows the run, the index did not: what stands there is what was asked.
        return known(context, run, request)
    context.index.analysis_requested(request, run)
    return None


def run_of(context: Context, video: VideoRecord, analysis: str, analysis_id: str) -> str:
    """Return the folder that a video has, or would have, for a run."""
    prefix = context.video_prefix(video.video.bucket, video.video.key)
    return layout.run_prefix(prefix, analysis, analysis_id)


def _run_of_the_first(
    context: Context, video: VideoRecord, analysis: str, analysis_id: str
) -> str | None:
    """Return the run that a duplicate's first has; an index that was lost may not know it yet."""
    first = video.duplicate_of
    if first is None:
        return None
    prefix = context.video_prefix(video.video.bucket, first.key)
    run = layout.run_prefix(prefix, analysis, analysis_id)
    there = context.storage.head(context.settings.results_bucket, layout.Run(run).request)
    return run if there is not None else None


def known(context: Context, run: str, fallback: Request) -> AnalysisRow | None:
    """Index a run that the bucket has already; the reconciler sends it if nobody is at it."""
    bucket = context.settings.results_bucket
    request = context.storage.read_record(bucket, layout.Run(run).request, Request) or fallback
    context.index.analysis_requested(request, run)
    result = damaged.read_result(context, run)
    if result is not None:
        context.index.analysis_finished(result, run)
    return context.index.analysis(request.analysis_id)
