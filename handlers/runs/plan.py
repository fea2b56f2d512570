"""Plan: what is run on an ingested video, by its metadata, its folder's rule or the default.

A video follows one rule, and the bucket says which (``_planned/``). A request that is
pending at the first plan becomes a run of what is ingested first, and the video then needs no rule.
So neither a reindex nor a rule that is changed later starts anything: deleted results come back
when somebody asks again, or puts the film again with other metadata that ask, not when an index is
lost. What followed no rule is open to one that comes into its folders, unless it has a run by then.
Where the rule is wrong the video waits (handlers/runs/waiting.py). What was cut short is planned
again, from its beginning.
"""

from __future__ import annotations

from typing import Any, Literal

from handlers.context import Context
from handlers.runs import copies, derived, pending, record_kinds, rules, start, validation
from handlers.runs.start import Origin
from handlers.runs.validation import canonical
from posedrop.buckets import layout
from posedrop.buckets.records.planned import Followed, Planned
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import BadRequestError, PosedropError
from posedrop.index.rows import FileRow


def plan_runs(context: Context, video: VideoRecord) -> None:
    """Start what waited for this video and what its metadata, folder or the default ask for.

    Doing it again starts nothing twice. The record of an older version, or of a video that the
    index does not know, starts nothing at all.
    """
    ref = video.video
    file = context.index.file(ref.file_id)
    if file is None or file.etag != ref.etag:
        return
    pending.start_all(context, video)
    if video.refusal is not None or video.probe is None or _is_planned(file):
        return
    with context.following:
        _follow(context, video, file)


def plan_anew(context: Context, key: str, found: ObjectInfo) -> None:
    """Plan a video that was put again, byte for byte, with metadata that ask for another run.

    Args:
        context: the handlers' tools.
        key: of the video.
        found: the object as it is now.
    """
    bucket, results = context.settings.videos_bucket, context.settings.results_bucket
    video = context.video_record(bucket, key)
    if video is None or video.probe is None or video.video.etag != found.etag:
        return
    # Cut short anywhere, it is done again: the index, by which that is seen, comes last.
    context.storage.delete(results, [layout.planned(video.video.file_id)])
    metadata = layout.user_metadata(found.metadata)
    update = {"metadata": metadata, "last_modified": found.last_modified}
    video = video.model_copy(update=update)
    record = layout.video_record(context.video_prefix(bucket, key))
    context.storage.write(results, record, video.to_json())
    with context.index.together():
        context.index.file_ingested(video)
        context.index.file_unplanned(video.video.file_id)
    plan_runs(context, video)


def _is_planned(file: FileRow) -> bool:
    return file.planned and file.waits_for is None


def finish_planning(context: Context, file_id: str) -> None:
    """Plan a video whose plan was cut short, so that what is deleted now is not planned again."""
    file = context.index.file(file_id)
    if file is None or file.state != "ready" or _is_planned(file):
        return
    video = context.video_record(file.bucket, file.key)
    if video is not None:
        plan_runs(context, video)


def _follow(context: Context, video: VideoRecord, file: FileRow) -> None:
    """Plan a video by its one rule, or have it wait for that; the bucket, then the index know."""
    ref = video.video
    bucket, key = context.settings.results_bucket, layout.planned(ref.file_id)
    before = context.storage.read_whole_record(bucket, key, Planned)
    if before is not None and (not _is_of(before, video) or _was_rejected(context, video, before)):
        before = None
    is_shared = before is not None and before.shared
    if not is_shared:
        copies.share(context, video, before.analysis_id if before is not None else None)
    seen: dict[str, str | None] = {}
    waits_for: str | None = None
    done = before
    if before is None or before.is_open:
        try:
            done = _follow_one(context, video, before, file.waits_for, seen)
        except _WaitError as wait:
            waits_for = wait.rule
        else:
            waits_for = "" if done.is_open else None
    is_news = before is None or (done is not None and done.rule != before.rule)
    if done is not None and (is_news or not is_shared or done.etag != ref.etag):
        # Last: a plan that was cut short has left no such record, and is made again.
        done = done.model_copy(update={"etag": ref.etag, "shared": True})
        context.storage.write(bucket, key, done.to_json())
    context.index.file_planned(ref.file_id, ref.etag, waits_for, seen)


def _is_of(planned: Planned, video: VideoRecord) -> bool:
    """Tell whether a record is about what a video is now.

    A mount that copies it onto itself can give it another ETag: that is no other film, unless its
    metadata asks for something.
    """
    same = planned.sha256 is not None and planned.sha256 == video.sha256
    return planned.etag == video.video.etag or (same and "analysis" not in video.metadata)


def _was_rejected(context: Context, video: VideoRecord, before: Planned) -> bool:
    """Tell whether an older posedrop left a failed run because the video's rule was wrong.

    Today such a video waits, and it runs when the rule is mended.
    """
    if before.rule is not None or before.analysis_id is None:
        return False
    run = start.run_of(context, video, "rejected", before.analysis_id)
    bucket = context.settings.results_bucket
    request = context.storage.read_whole_record(bucket, layout.Run(run).request, Request)
    return request is not None and _is_rejected_rule(request)


def _is_rejected_rule(request: Request) -> bool:
    # A version of no analysis: nothing was to be run. What metadata ask for wrongly is final.
    return not request.analysis_version and request.asked_by in {"folder", "default"}


class _WaitError(Exception):
    """The video can't be planned now: its rule is wrong."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def _follow_one(
    context: Context,
    video: VideoRecord,
    before: Planned | None,
    waits_for: str | None,
    seen: dict[str, str | None],
) -> Planned:
    """Start the one run that a video's rule asks for, if there is one and it does.

    Args:
        before: what was planned when no rule was there, None if this is the first time.
        waits_for: the rule that the video has waited for.
        seen: gets the rules that were looked at.

    Raises:
        _WaitError: the rule is wrong.
    """
    if before is None and "analysis" in video.metadata:
        return pending.planned_record(
            context, video, Followed(kind="metadata"), _start_or_reject(context, video)
        )
    made = _made_already(context, video, whenever=before is not None)
    if made is not None:
        return made
    rule = rules.nearest(context, video.video.key, seen)
    if rule is not None:
        if not rule.existing and _was_there(video, rule, before, waits_for):
            return before or pending.planned_record(context, video, Followed(kind="none"), None)
        followed = Followed(kind="folder", key=rule.key, etag=rule.etag)
        return pending.planned_record(
            context, video, followed, _start(context, video, rule, "folder")
        )
    rule = rules.default(context) if before is None else None
    if rule is not None:
        seen[rule.key] = rule.etag
        started = _start(context, video, rule, "default")
        return pending.planned_record(context, video, Followed(kind="default"), started)
    return before or pending.planned_record(context, video, Followed(kind="none"), None)


def _was_there(
    video: VideoRecord, rule: rules.Rule, before: Planned | None, waits_for: str | None
) -> bool:
    """Tell whether a video was there before a rule; who waited for it, has come after it."""
    if before is not None:
        return True
    is_older = rule.last_modified is not None and video.last_modified < rule.last_modified
    return is_older and waits_for != rule.key


def _start(context: Context, video: VideoRecord, rule: rules.Rule, origin: Origin) -> str | None:
    """Start what a rule asks for; return the run's id.

    Raises:
        _WaitError: it can't be done as the rule says.
    """
    try:
        wanted = validation.validate_rule(context, rule)
    except BadRequestError as error:
        rules.tell(context, rule.key, rule.etag, error)
        raise _WaitError(rule.key) from error
    if wanted is None:
        return None
    notify = rule.notify if origin == "folder" else tuple(context.settings.notify)
    handle = start.start_run(
        context, video, wanted, origin, None, exports=rule.exports, notify=notify
    )
    row = context.index.analysis(handle.analysis_id)
    if handle.existed and row is not None and row.finished_at is not None:
        derived.ask(context, layout.Run(row.run), rule.exports)
    return handle.analysis_id


#: By what a run was asked for that is there though the video's plan was not noted.
_KINDS: dict[Origin, Literal["metadata", "question", "folder", "default"]] = {
    "api": "question",
    "metadata": "metadata",
    "folder": "folder",
    "default": "default",
}


def _made_already(context: Context, video: VideoRecord, *, whenever: bool) -> Planned | None:
    """Return what decided about these bytes before, as the bucket knows it.


    That is a pending request, or a run that was asked for since the video was written: by somebody,
    or by a plan that was cut short. With ``whenever``, an older run of the same content counts too.
    """
    bucket = context.settings.results_bucket
    prefix = context.video_prefix(video.video.bucket, video.video.key)
    requested: set[str] = set()
    outcomes: dict[str, str] = {}
    requests: list[str] = []
    for kind, parts, key in record_kinds.of_video(context, prefix):
        if kind is record_kinds.PENDING_REQUEST:
            requested.add(parts.pending_id)
        elif kind is record_kinds.PENDING_OUTCOME:
            outcomes[parts.pending_id] = key
        elif kind is record_kinds.REQUEST:
            requests.append(key)
    if requested - outcomes.keys():
        return pending.planned_record(context, video, pending.BY_REQUEST, None)
    for pending_id in sorted(requested):
        outcome = context.storage.read_whole_record(bucket, outcomes[pending_id], Planned)
        if outcome is not None and _is_of(outcome, video):
            return pending.planned_record(context, video, pending.BY_REQUEST, outcome.analysis_id)
    for key in requests:
        request = context.storage.read_whole_record(bucket, key, Request)
        if request is None or request.sha256 != video.sha256 or _is_rejected_rule(request):
            continue
        if request.shared:  # that was asked for under another name
            continue
        if whenever or request.created_at >= video.last_modified:
            return pending.planned_record(
                context, video, Followed(kind=_KINDS[request.asked_by]), request.analysis_id
            )
    return None


def _start_or_reject(context: Context, video: VideoRecord) -> str:
    """Start what a video's own metadata asks for, or say beside it what is wrong with that."""
    analysis, args = video.metadata["analysis"], video.metadata.get("args")
    try:
        wanted = validation.validate(context, analysis, validation.parse_args(args))
        notify = tuple(context.settings.notify)
        return start.start_run(context, video, wanted, "metadata", None, notify=notify).analysis_id
    except BadRequestError as error:
        return _reject(context, video, analysis, {"asked": args}, "metadata", error)


def _reject(
    context: Context,
    video: VideoRecord,
    analysis: str,
    args: dict[str, Any],
    origin: Origin,
    error: PosedropError,
) -> str:
    """Leave a failed result beside the video: nobody stands at the API to read a 422."""
    assert video.sha256 is not None and video.probe is not None  # noqa: S101, PT018
    # By the error's code, not its words: those list the models of the day.
    why = (error.code, error.field or "")
    analysis_id = layout.make_id("rejected", video.sha256, analysis, canonical(args), *why)
    prefix = context.video_prefix(video.video.bucket, video.video.key)
    run = layout.run_prefix(prefix, "rejected", analysis_id)
    request = Request(
        analysis_id=analysis_id,
        analysis=analysis[:200],
        analysis_version="",
        args=args,
        video=video.video,
        sha256=video.sha256,
        probe=video.probe,
        asked_by=origin,
        created_at=context.clock(),
    )
    result = Result.of(
        request, "failed", finished_at=context.clock(), error=pending.error_of(error)
    )
    bucket = context.settings.results_bucket
    # The result first: whoever finds the request finds it answered, so no worker is sent for it.
    context.storage.create(bucket, layout.Run(run).result, result.to_json())
    context.storage.create(bucket, layout.Run(run).request, request.to_json())
    start.known(context, run, request)
    return analysis_id
