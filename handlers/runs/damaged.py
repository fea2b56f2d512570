"""Records of a run that nobody can read: the run ends in words, and can be asked for again.

A request.json that is no request has a run wait for ever: no worker can tell what to do. A
result.json that is no result says that the run is over, and not how. What is damaged is left as it
is, for whoever has a backup of it; a record of a newer posedrop is not damaged.
"""

from __future__ import annotations

from handlers.context import Context
from posedrop.buckets import layout
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.records.videos import VideoRecord, VideoRef
from posedrop.errors import RecordError
from posedrop.index.rows import DAMAGED, AnalysisRow


def read_result(context: Context, run: str) -> Result | None:
    """Return how a run ended, None if it has not; one whose result is damaged has failed.

    Raises:
        RecordError: a newer posedrop has written it, or nothing is known of its run.
    """
    bucket = context.settings.results_bucket
    try:
        return context.storage.read_record(bucket, layout.Run(run).result, Result)
    except RecordError as error:
        if error.code != DAMAGED or (failed := _failed(context, run, error)) is None:
            raise
        context.storage.report(error)
        return failed


def up_to_date(context: Context, row: AnalysisRow) -> AnalysisRow | None:
    """Return the row of a run with what the bucket knows: its event may be on the way."""
    result = read_result(context, row.run)
    if result is not None:
        context.index.analysis_finished(result, row.run)
    return context.index.analysis(row.analysis_id)


def end(context: Context, run: str) -> bool:
    """End a run that has no result, and that nobody is at, if its request.json is damaged.

    Returns:
        Whether it was so.

    Raises:
        RecordError: nothing is known of its film.
    """
    bucket = context.settings.results_bucket
    try:
        context.storage.read_record(bucket, layout.Run(run).request, Request)
    except RecordError as error:
        if error.code != DAMAGED:  # of a newer posedrop, whose workers know what to do
            return False
        failed = _failed(context, run, error)
        if failed is None:
            raise
        context.storage.report(error)
        if context.storage.create(bucket, layout.Run(run).result, failed.to_json()):
            context.index.analysis_finished(failed, run)
        return True
    return False


def _failed(context: Context, run: str, error: RecordError) -> Result | None:
    """Return the result of a run with a damaged record, None if nothing is known of its film."""
    storage, bucket = context.storage, context.settings.results_bucket
    named = layout.parse_result_key(layout.Run(run).result)
    if not isinstance(named, layout.RunObject):
        return None
    row = context.index.place(named.analysis_id, run)
    request = storage.read_whole_record(bucket, layout.Run(run).request, Request)
    record = storage.read_whole_record(bucket, layout.video_record(named.video), VideoRecord)
    known = request or record
    video = known.video if known is not None else None
    if video is None and row is not None:
        file = context.index.file(row.file_id)
        etag, size = (file.etag or "", file.size or 0) if file is not None else ("", 0)
        video = VideoRef(file_id=row.file_id, bucket=row.bucket, key=row.key, etag=etag, size=size)
    listing = storage.listing(bucket, layout.Run(run).folder)
    there = {found.key: found.last_modified for found in listing.objects}
    if video is None or not there:
        return None
    when = max(there.values())
    artefacts = list(row.artefacts) if row is not None else []
    inference = storage.read_whole_record(bucket, layout.Run(run).inference, Inference)
    if not artefacts and inference is not None:
        artefacts = inference.artefacts
    return Result(
        analysis_id=named.analysis_id,
        analysis=named.analysis,
        state="failed",
        video=video,
        sha256=known.sha256 if known is not None else row.sha256 if row is not None else None,
        args=request.args if request is not None else row.args if row is not None else {},
        model=request.model if request is not None else None,
        artefacts=artefacts,
        error=RunError(
            code=DAMAGED,
            message=f"{error.message}: somebody has written over it. `posedrop analyse` makes the "
            f"run anew, `posedrop rm {named.analysis_id}` removes what is left of it",
        ),
        created_at=request.created_at if request is not None else row.created_at if row else when,
        finished_at=when,
    )
