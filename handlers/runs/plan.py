"""Plan: what happens to a video. POST /analyse, its own metadata, its folder's rule, the default.

An analysis_id is made of what decides the result (content, analysis, arguments, model, version),
so the same request on the same content is the same run, under whatever key the video lies: it is
made once, and copied to the other names (see handlers/runs/copies.py).

A video follows one rule, and the bucket says which (``_planned/``). A request that is
pending at the first plan becomes a run of what is ingested first, and the video then needs no rule.
So neither a reindex nor a rule that is changed later starts anything: deleted results come back
when somebody asks again or uploads again, not when an index is lost. What followed no rule is open
to one that comes into its folders, unless it has a run by then. Where the rule is wrong
the video waits (handlers/runs/waiting.py). What was cut short is planned again, from its beginning.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from handlers import gpu_queue
from handlers.context import Context
from handlers.runs import copies, damaged, derived, rules
from posedrop import analyses, bounded
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.buckets.records import (
    ExportFormat,
    Followed,
    Model,
    ModelRef,
    PendingRequest,
    Planned,
    Request,
    Result,
    RunError,
    RunRef,
    RunState,
    VideoRecord,
)
from posedrop.errors import BadRequestError, NotFoundError, PosedropError, StorageError
from posedrop.index.rows import AnalysisRow, FileRow, PendingRow
from posedrop.models import catalog

log = logging.getLogger(__name__)

#: How often what fails is made anew by asking again for the same; beyond, ask with ``force``.
MAX_RETRIES = 10
#: How a run ends that may be made anew.
_BAD = frozenset({"failed", "cancelled"})
#: The error of a pending request whose video was refused.
_REFUSED = "refused"
#: As a record says that a pending request decided.
_PENDING = Followed(kind="question")
_ALWAYS = datetime.max.replace(tzinfo=UTC)

Origin = Literal["api", "metadata", "folder", "default"]


class RunHandle(NamedTuple):
    """A run by its id, or a pending request: how far it is, and whether it was there before."""

    analysis_id: str
    status: RunState
    existed: bool


class ValidRequest(NamedTuple):
    """A valid request for an analysis: everything but the video."""

    analysis: analyses.Analysis
    args: dict[str, Any]
    model: Model | None


def canonical(value: Mapping[str, Any]) -> str:
    """Return JSON that is the same for the same arguments."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def analysis_id_of(sha256: str, request: ValidRequest, force: str | None) -> str:
    """Return the id of a run: the same content and the same request give the same one."""
    # The model counts by its digest: the same weights under another name are the same request.
    args = {name: value for name, value in request.args.items() if name != "model"}
    return layout.make_id(
        sha256,
        request.analysis.name,
        canonical(args),
        request.model.digest if request.model else "",
        request.analysis.version,
        force or "",
    )


def validate(context: Context, analysis: str, args: Mapping[str, Any]) -> ValidRequest:
    """Return the request as it can be carried out.

    Raises:
        BadRequestError: no such analysis, argument or model; ``field`` names it.
    """
    found = analyses.get(analysis)
    if found.needs_model and args.get("model") is None:
        raise _no_model(context, found)
    complete = found.normalise(args)
    model = None
    if found.needs_model:
        model = catalog.resolve(context.storage, context.settings.models_bucket, complete["model"])
        if found.check is not None:
            found.check(found.args.model_validate(complete), model)
    return ValidRequest(found, complete, model)


def _no_model(context: Context, analysis: analyses.Analysis) -> BadRequestError:
    """Return what to do for an analysis that was asked for without its model."""
    there = catalog.list_models(context.storage, context.settings.models_bucket)
    names = list(dict.fromkeys(model.name for model in there if _takes(analysis, model)))
    which = analysis.args.model_fields["model"].description
    return BadRequestError(
        f"{analysis.name} needs args.model ({which}); say --arg model=NAME, in JSON "
        + '"args": {"model": "NAME"}. '
        + (
            f"There are: {', '.join(names)}"
            if names
            else "None is there yet; `posedrop models push` puts one there, its --help says how"
        ),
        code="bad_args",
        field="args.model",
    )


def _takes(analysis: analyses.Analysis, model: Model) -> bool:
    try:
        complete = analysis.normalise({"model": model.name})
        if analysis.check is not None:
            analysis.check(analysis.args.model_validate(complete), model)
    except BadRequestError as error:
        return error.code == "weights_missing"  # of the networks that it would take by default
    return True


def ask(
    context: Context,
    file_id: str,
    analysis: str,
    args: Mapping[str, Any],
    *,
    force: bool,
    retry: bool = True,
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

    Raises:
        NotFoundError: there is no such file.
        BadRequestError: it can't be done as asked, or the video was refused.
    """
    file = context.index.file(file_id)
    if file is None:
        raise NotFoundError(f"there is no file {file_id}; GET /files lists what there is")
    wanted = validate(context, analysis, args)
    token = secrets.token_hex(8) if force else None
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
    prefix = context.video_prefix(file.bucket, file.key)
    if file.state == "ready":
        record = context.video_record(file.bucket, file.key)
        if record is not None and record.probe is not None:
            before = _ALWAYS if retry else file.created_at
            return start(context, record, wanted, "api", token, retry_before=before)
    pending = PendingRequest(
        # By the ETag, so that the same request about what replaces this is another one.
        pending_id=layout.make_id(
            "pending", file_id, file.etag or "", analysis, canonical(wanted.args), token or ""
        ),
        file_id=file_id,
        key=file.key,
        analysis=analysis,
        args=wanted.args,
        created_at=context.clock(),
        force=token,
    )
    key = layout.pending_request(prefix, pending.pending_id)
    created = context.storage.create(context.settings.results_bucket, key, pending.to_json())
    if created:  # it may have been asked before, and taken back
        _reopen(context, pending)
    else:
        context.index.pending_added(pending)
    return RunHandle(pending.pending_id, "waiting", not created)


def start(
    context: Context,
    video: VideoRecord,
    wanted: ValidRequest,
    origin: Origin,
    force: str | None,
    *,
    retry_before: datetime | None = None,
    exports: tuple[ExportFormat, ...] = (),
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
    """
    if video.sha256 is None or video.probe is None:
        raise BadRequestError(f"{video.video.key} has no content to analyse", code="refused")
    token, retry_of = force, None
    with context.creating:
        for retries in range(MAX_RETRIES + 1):
            analysis_id = analysis_id_of(video.sha256, wanted, token)
            token = f"retry:{analysis_id}"
            row = context.index.analysis(analysis_id)
            if retry_before is not None and row is not None and row.finished_at is None:
                row = up_to_date(context, row)
            is_bad = row is None or row.state in _BAD
            if not (is_bad and _exists(context, analysis_id_of(video.sha256, wanted, token))):
                if row is None:
                    request = _request(context, video, wanted, origin, analysis_id, force, retry_of)
                    request = request.model_copy(update={"exports": list(exports)})
                    row = _created(context, video, request)
                    if row is None:
                        break
                if retries == MAX_RETRIES or not _is_retried(row, retry_before):
                    copies.join(context, video.video, row)
                    return RunHandle(analysis_id, row.state, True)
            if row is not None:
                retry_of = RunRef(analysis_id=analysis_id, run=row.run)
    # It stands in the bucket and in the index: whatever becomes of this, it is sent in its turn.
    gpu_queue.send_next(context, context.clock())
    log.info("planned", extra={"analysis_id": analysis_id, "file_id": video.video.file_id})
    return RunHandle(analysis_id, "queued", False)


def _exists(context: Context, analysis_id: str) -> bool:
    return context.index.analysis(analysis_id) is not None


def _is_retried(row: AnalysisRow, before: datetime | None) -> bool:
    if row.state not in _BAD or row.finished_at is None:
        return False
    return before is not None and row.finished_at < before


def up_to_date(context: Context, row: AnalysisRow) -> AnalysisRow | None:
    """Return the row of a run with what the bucket knows: its event may be on the way."""
    result = damaged.read_result(context, row.run)
    if result is not None:
        context.index.analysis_finished(result, row.run)
    return context.index.analysis(row.analysis_id)


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
    return Request(
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
    )


def _created(context: Context, video: VideoRecord, request: Request) -> AnalysisRow | None:
    """Create a run that the index does not know; return its row if the bucket knows it."""
    elsewhere = _run_of_the_first(context, video, request.analysis, request.analysis_id)
    if elsewhere is not None:
        return _known(context, elsewhere, request)
    run = _run_of(context, video, request.analysis, request.analysis_id)
    bucket, key = context.settings.results_bucket, f"{run}/{layout.REQUEST}"
    if context.storage.head(bucket, key) is None:
        # Before its own: what is cut short here is started again, as long as that is not there.
        copies.share_new(context, request, run)
    if not context.storage.create(bucket, key, request.to_json()):
        # The bucket knows the run, the index did not: what stands there is what was asked.
        return _known(context, run, request)
    context.index.analysis_requested(request, run)
    return None


def _run_of(context: Context, video: VideoRecord, analysis: str, analysis_id: str) -> str:
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
    there = context.storage.head(context.settings.results_bucket, f"{run}/{layout.REQUEST}")
    return run if there is not None else None


def _known(context: Context, run: str, fallback: Request) -> AnalysisRow | None:
    """Index a run that the bucket has already; the reconciler sends it if nobody is at it."""
    bucket = context.settings.results_bucket
    request = context.storage.read_record(bucket, f"{run}/{layout.REQUEST}", Request) or fallback
    context.index.analysis_requested(request, run)
    result = damaged.read_result(context, run)
    if result is not None:
        context.index.analysis_finished(result, run)
    return context.index.analysis(request.analysis_id)


def validate_rule(context: Context, rule: rules.Rule) -> ValidRequest | None:
    """Return what a rule asks for, None if that is nothing.

    Raises:
        BadRequestError: it can't be followed.
    """
    if rule.problem is not None:
        raise rule.problem
    if rule.analysis is None:
        return None
    try:
        return validate(context, rule.analysis, rule.args or {})
    except (BadRequestError, StorageError):
        raise
    except Exception as error:
        # An analysis is anybody's plug-in: what it can't take must hold up nothing else.
        raise BadRequestError(f"{rule.analysis} can't take these args: {error!r}") from error


def plan_runs(context: Context, video: VideoRecord) -> None:
    """Start what waited for this video and what its metadata, folder or the default ask for.

    Doing it again starts nothing twice. The record of an older version, or of a video that the
    index does not know, starts nothing at all.
    """
    ref = video.video
    file = context.index.file(ref.file_id)
    if file is None or file.etag != ref.etag:
        return
    _start_pending(context, video)
    if video.refusal is not None or video.probe is None or _is_planned(file):
        return
    with context.following:
        _follow(context, video, file)


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


def _planned_record(
    context: Context,
    video: VideoRecord,
    rule: Followed,
    analysis_id: str | None,
    error: RunError | None = None,
) -> Planned:
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
    run = _run_of(context, video, "rejected", before.analysis_id)
    bucket = context.settings.results_bucket
    request = context.storage.read_whole_record(bucket, f"{run}/{layout.REQUEST}", Request)
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
        return _planned_record(
            context, video, Followed(kind="metadata"), _start_or_reject(context, video)
        )
    made = _made_already(context, video, whenever=before is not None)
    if made is not None:
        return made
    rule = rules.nearest(context, video.video.key, seen)
    if rule is not None:
        if not rule.existing and _was_there(video, rule, before, waits_for):
            return before or _planned_record(context, video, Followed(kind="none"), None)
        followed = Followed(kind="folder", key=rule.key, etag=rule.etag)
        return _planned_record(context, video, followed, _start(context, video, rule, "folder"))
    rule = rules.default(context) if before is None else None
    if rule is not None:
        seen[rule.key] = rule.etag
        started = _start(context, video, rule, "default")
        return _planned_record(context, video, Followed(kind="default"), started)
    return before or _planned_record(context, video, Followed(kind="none"), None)


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
        wanted = validate_rule(context, rule)
    except BadRequestError as error:
        rules.tell(context, rule.key, rule.etag, error)
        raise _WaitError(rule.key) from error
    if wanted is None:
        return None
    handle = start(context, video, wanted, origin, None, exports=rule.exports)
    row = context.index.analysis(handle.analysis_id)
    if handle.existed and row is not None and row.finished_at is not None:
        derived.ask(context, Run(row.run), rule.exports)
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
    pending: set[str] = set()
    outcomes: dict[str, str] = {}
    requests: list[str] = []
    for found in context.storage.objects(bucket, f"{prefix}/"):
        match layout.parse_result_key(found.key):
            case layout.PendingRequestObject(video=mine, pending_id=pending_id) if mine == prefix:
                pending.add(pending_id)
            case layout.PendingOutcomeObject(video=mine, pending_id=pending_id) if mine == prefix:
                outcomes[pending_id] = found.key
            case layout.RunObject(video=mine, name=layout.REQUEST) if mine == prefix:
                requests.append(found.key)
    if pending - outcomes.keys():
        return _planned_record(context, video, _PENDING, None)
    for pending_id in sorted(pending):
        outcome = context.storage.read_whole_record(bucket, outcomes[pending_id], Planned)
        if outcome is not None and _is_of(outcome, video):
            return _planned_record(context, video, _PENDING, outcome.analysis_id)
    for key in requests:
        request = context.storage.read_whole_record(bucket, key, Request)
        if request is None or request.sha256 != video.sha256 or _is_rejected_rule(request):
            continue
        if request.shared:  # that was asked for under another name
            continue
        if whenever or request.created_at >= video.last_modified:
            return _planned_record(
                context, video, Followed(kind=_KINDS[request.asked_by]), request.analysis_id
            )
    return None


def _start_pending(context: Context, video: VideoRecord) -> None:
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
        if done is None:
            done = _outcome(context, video, pending)
            context.storage.create(bucket, key, done.to_json())
        note_outcome(context, pending.pending_id, done)


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


def note_outcome(context: Context, pending_id: str, done: Planned) -> None:
    """Tell the index what became of a pending request."""
    if done.analysis_id is not None:
        context.index.pending_resolved(pending_id, done.analysis_id)
    elif done.error is not None:
        context.index.pending_failed(pending_id, done.error)


def _outcome(context: Context, video: VideoRecord, pending: PendingRow) -> Planned:
    if video.refusal is not None or video.probe is None:
        reason = video.refusal.message if video.refusal else "it has no frames"
        refused = RunError(code=_REFUSED, message=reason, stage="ingest")
        return _planned_record(context, video, _PENDING, None, refused)
    try:
        wanted = validate(context, pending.analysis, pending.args)
        started = start(
            context, video, wanted, "api", pending.force, retry_before=pending.created_at
        )
    except BadRequestError as error:
        return _planned_record(context, video, _PENDING, None, _error(error))
    return _planned_record(context, video, _PENDING, started.analysis_id)


def _start_or_reject(context: Context, video: VideoRecord) -> str:
    """Start what a video's own metadata asks for, or say beside it what is wrong with that."""
    analysis, args = video.metadata["analysis"], video.metadata.get("args")
    try:
        wanted = validate(context, analysis, parse_args(args))
        return start(context, video, wanted, "metadata", None).analysis_id
    except BadRequestError as error:
        return _reject(context, video, analysis, {"asked": args}, "metadata", error)


def parse_args(args: str | None) -> dict[str, Any]:
    """Return arguments that travelled as a JSON text.

    Raises:
        BadRequestError: the text is no JSON object.
    """
    try:
        value = bounded.loads(args or "{}")
    except ValueError as error:
        raise BadRequestError(
            f"args is not JSON ({error}): {(args or '')[:80]}", code="bad_args", field="args"
        ) from error
    if not isinstance(value, dict):
        raise BadRequestError(
            'args is not a JSON object like {"seconds": 5}', code="bad_args", field="args"
        )
    return value


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
    result = Result.of(request, "failed", finished_at=context.clock(), error=_error(error))
    bucket = context.settings.results_bucket
    # The result first: whoever finds the request finds it answered, so no worker is sent for it.
    context.storage.create(bucket, f"{run}/{layout.RESULT}", result.to_json())
    context.storage.create(bucket, f"{run}/{layout.REQUEST}", request.to_json())
    _known(context, run, request)
    return analysis_id


def _error(error: PosedropError) -> RunError:
    return RunError(code=error.code, message=error.message, stage="plan", field=error.field)
