"""A message of infer or render, from its claim to its end.

Whatever happens, a run ends: with what it was asked for, or with an error that says why not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.buckets.records.attempts import NeedsNewer
from posedrop.buckets.records.inference import Inference, with_files_of
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import Artefact, RunError, Task
from posedrop.errors import (
    CancelledRunError,
    ChildDiedError,
    PosedropError,
    RecordError,
    StorageError,
)
from worker.context import Context
from worker.jobs import checkpoints, claim, publish
from worker.jobs.attempt import Folders, RunAttempt, stage_of
from worker.jobs.claim import Claim
from worker.jobs.work import FINAL_ERRORS, check_machine, in_words, is_left, work_on

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[RunAttempt], None]


def perform(
    context: Context, prefix: str, task: Task, work: Work, *, actor: str | None = None
) -> None:
    """Claim the next attempt at a half of a run, do it, and record how it ended.

    Args:
        context: this worker's.
        prefix: the run's folder, as its message has it.
        task: which half.
        work: does it; what it raises is recorded.
        actor: which message has called for it; None: that of the half's name.

    Raises:
        Exception: the store, the broker or the disk is away; the message is to come again.
    """
    if is_left(context, actor or task, run=prefix):
        return
    bucket, run = context.settings.results_bucket, Run(prefix)
    try:
        request = context.storage.read_record(bucket, run.request, Request)
    except RecordError as error:  # no worker like this one can do it, now or later
        context.storage.report(error)
        return
    if request is None:
        log.info("deleted before its turn", extra={"run": prefix})
        # Or while an attempt was cut short, which may have left something.
        publish.clear_if_deleted(context.storage, bucket, run, None)
        return
    if _is_too_new(context, run, request):
        return
    # What would make any attempt fail, such as a full disk, makes none.
    with context.scratch_dir() as scratch:
        folders = Folders(scratch)
        held = claim.take(
            context.storage,
            bucket,
            run,
            task,
            worker=context.name,
            lease_seconds=context.settings.lease_seconds,
            max_attempts=context.settings.max_attempts,
            now=context.clock(),
        )
        try:
            if isinstance(held, claim.Exhausted):
                _give_up(context, run, request, held)
            elif isinstance(held, Claim):
                _make(RunAttempt(context, run, request, held, folders, actor or task), work)
            else:  # another has it, or it is over: nothing was written
                if isinstance(held, claim.Over):  # by the handlers, or the store was away then
                    checkpoints.clear(context.storage, bucket, run)
                return
        except Exception:
            _clear_though_it_failed(context, run, request)
            raise
        # Last: none of what an attempt writes at its end asks whether the run is still there.
        publish.clear_if_deleted(context.storage, bucket, run, request)


def _clear_though_it_failed(context: Context, run: Run, request: Request) -> None:
    """Delete what an attempt that was cut short wrote of a run that was deleted meanwhile.

    What can't be deleted now is when its message comes again.
    """
    try:
        publish.clear_if_deleted(context.storage, context.settings.results_bucket, run, request)
    except StorageError as error:  # the one that cut it short is the one to be told
        log.warning("%s: what was written of it stays for now: %s", run.prefix, error)


def _is_too_new(context: Context, run: Run, request: Request) -> bool:
    """Leave a run to workers with the analysis version that was asked for, if this one's is older.

    Its message is dropped, and no attempt is made: the reconciler sends it again after a lease, to
    whoever takes it then.
    """
    own = analyses.installed().get(request.analysis)
    if own is None or not analyses.is_newer(request.analysis_version, own.version):
        return False
    note = NeedsNewer(
        worker=context.name,
        analysis=request.analysis,
        has=own.version,
        needs=request.analysis_version,
    )
    log.warning(
        "left to a newer worker: this one has %s version %s, the run needs %s",
        note.analysis,
        note.has,
        note.needs,
        extra={"analysis_id": request.analysis_id},
    )
    context.storage.write(context.settings.results_bucket, run.needs_newer, note.to_json())
    return True


def _make(attempt: RunAttempt, work: Work) -> None:
    """Work on an attempt, and record how it ended."""
    context, request, held = attempt.context, attempt.request, attempt.claim
    ids = {"analysis_id": request.analysis_id, "attempt": held.number, "task": held.task}
    log.info("attempt begins", extra=ids)

    def begin() -> None:
        attempt.check(look=True)
        held.log_tail = attempt.log_tail
        work(attempt)

    error = work_on(
        context,
        held,
        request.video.key,
        begin,
        run=attempt.run.prefix,
        check_fault=lambda error: check_machine(error, attempt.folders.kept),
        tell=lambda error: attempt.error(in_words(error)),
    )
    if isinstance(error, CancelledRunError):
        _stopped(attempt, error)
    elif isinstance(error, FINAL_ERRORS):
        failure = attempt.error(error)
        _leave(attempt)
        held.end("failed", failure)
        _fail(context, attempt.run, request, held.number, failure, held.artefacts)
    elif error is not None:
        trace = None if isinstance(error, ChildDiedError) else error
        log.warning("attempt failed: %s", error, extra=ids, exc_info=trace)
        _try_again(attempt, in_words(error))


# -- how an attempt ends ---------------------------------------------------------------------------


def _try_again(attempt: RunAttempt, error: PosedropError) -> None:
    """Count an attempt that failed, and send the run again: to be given up, if it was the last."""
    held = attempt.claim
    if attempt.context.closing:
        _hand_back(attempt)
        return
    if held.is_last:
        _leave(attempt)
    held.end("failed", attempt.error(error))
    attempt.context.send(attempt.next_actor, run=attempt.run.prefix)


def _leave(attempt: RunAttempt) -> None:
    """Publish what an attempt that fails has made: its log, and whole files, if any may be.

    Its heartbeat goes on: who took it for dead meanwhile would give the run up, in other words.
    """
    try:
        with attempt.claim.beating(attempt.context.settings.heartbeat_seconds):
            if attempt.claim.task == "render":
                attempt.take(attempt.folders.film / "out", layout.DRAWN)
            elif attempt.folders.predictions.exists():
                # What an analysis leaves by the way, before its predictions, need not be whole.
                attempt.take_tables()
            attempt.keep_log()
            # Predictions of another run, which may not be good for this one, go where no attempt
            # finds them; its own are there by now.
            attempt.publish(attempt.folders.kept.iterdir(), apart={layout.PREDICTIONS})
    except (OSError, StorageError) as error:
        # The predictions are safe: all else can be made of them again.
        run = attempt.run.prefix
        log.warning("%s: what a failed attempt has made is lost: %s", run, error)


def _stopped(attempt: RunAttempt, error: CancelledRunError) -> None:
    """Tell apart why the work stopped: cancelled, taken over, or this process ends."""
    held = attempt.claim
    if held.cancelled:
        held.end("done")
        publish.finish(
            attempt.context.storage,
            attempt.bucket,
            attempt.run,
            attempt.request,
            "cancelled",
            now=attempt.context.clock(),
            attempts=held.number,
            artefacts=with_files_of(_readable_inference(attempt), held.artefacts),
            error=claim.run_error(error, None),
        )
        attempt.clear_checkpoints()
    elif held.gives_way and not attempt.context.closing:
        # The handlers send it again, when it is its group's turn.
        held.end("handed_back")
    elif not held.lost:
        _hand_back(attempt)


def _hand_back(attempt: RunAttempt) -> None:
    """Let another worker go on at once, instead of after this one's lease."""
    attempt.claim.end("handed_back")
    attempt.context.send(attempt.next_actor, run=attempt.run.prefix)


# -- how a run fails -------------------------------------------------------------------------------


def _give_up(context: Context, run: Run, request: Request, spent: claim.Exhausted) -> None:
    last = spent.last
    error = spent.error("this run", stage_of(last.progress.stage, last.task))
    _fail(context, run, request, spent.attempts, error, spent.artefacts)


def _fail(
    context: Context,
    run: Run,
    request: Request,
    attempts: int,
    error: RunError,
    left: Iterable[Artefact],
) -> None:
    """End a run that failed, with all that was made of it: poses that can't be drawn are poses."""
    bucket = context.settings.results_bucket
    given = _if_given if error.code == StorageError.code else _in_any_case
    inference = given(context, run.inference, lambda: _inference(context, run))
    found = {artefact.plain_name: artefact for artefact in with_files_of(inference, left)}
    if layout.PREDICTIONS not in found:
        there = given(context, run.predictions, lambda: _published_predictions(context, run))
        found |= {there.name: there} if there is not None else {}
    publish.finish(
        context.storage,
        bucket,
        run,
        request,
        "failed",
        now=context.clock(),
        attempts=attempts,
        inference=inference,
        artefacts=[found[name] for name in sorted(found)],
        error=error,
    )
    checkpoints.clear(context.storage, bucket, run)


def _readable_inference(attempt: RunAttempt) -> Inference | None:
    """Return what infer wrote, None too if that is for a newer worker: a cancelled run ends."""
    try:
        return _inference(attempt.context, attempt.run)
    except RecordError as error:
        attempt.context.storage.report(error)
        return None


def _inference(context: Context, run: Run) -> Inference | None:
    bucket = context.settings.results_bucket
    return context.storage.read_whole_record(bucket, run.inference, Inference)


def _in_any_case(_: Context, __: str, read: Callable[[], T | None]) -> T | None:
    """Return what is read of an object; what the store does not give now is asked for again."""
    return read()


def _if_given(context: Context, key: str, read: Callable[[], T | None]) -> T | None:
    """Return what is read of an object; None: there is none, or the store has it and gives it not.

    Raises:
        StorageError: the store is away, the disk is full, or the record is for a newer worker.
    """
    try:
        return read()
    except StorageError as error:
        if error.code != StorageError.code:
            raise
        context.storage.head(context.settings.results_bucket, key)
        log.warning("the run ends without it: %s", error)
        return None


def _published_predictions(context: Context, run: Run) -> Artefact | None:
    """Return the predictions of a run whose attempts were killed before they could tell of them."""
    with context.scratch_dir() as folder:
        path = folder / layout.PREDICTIONS
        bucket = context.settings.results_bucket
        sha256 = publish.fetch_if_there(context.storage, bucket, run.predictions, path)
        return publish.describe(path, sha256) if sha256 is not None else None
