"""A message of infer or render, from its claim to its end.

Whatever happens, a run ends: with what it was asked for, or with an error that says why not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.buckets.records import Artefact, Inference, NeedsNewer, Request, RunError, Task
from posedrop.errors import (
    AnalysisError,
    BadRequestError,
    CancelledRunError,
    ChildDiedError,
    ObjectChangedError,
    PosedropError,
    RecordError,
    RefusedVideoError,
    StorageError,
)
from posedrop.transport.queue import QueueError
from worker import room
from worker.context import Context
from worker.jobs import checkpoints, claim, publish
from worker.jobs.attempt import Folders, RunAttempt, stage_of
from worker.jobs.claim import Claim

log = logging.getLogger(__name__)

#: What no further attempt can mend.
FINAL_ERRORS = (AnalysisError, BadRequestError, RefusedVideoError, ObjectChangedError)

Work = Callable[[RunAttempt], None]


def perform(context: Context, prefix: str, task: Task, work: Work) -> None:
    """Claim the next attempt at a half of a run, do it, and record how it ended.

    Args:
        context: this worker's.
        prefix: the run's folder, as its message has it.
        task: which half.
        work: does it; what it raises is recorded.

    Raises:
        Exception: the store, the broker or the disk is away; the message is to come again.
    """
    if context.closing:
        # Two threads take messages: what the one hands back is not for the other of a process that
        # ends. It is kept from taking it again, until somebody else has.
        context.send(task, run=prefix)
        time.sleep(1.0)
        return
    bucket, run = context.settings.results_bucket, Run(prefix)
    try:
        request = context.storage.read_record(bucket, run.request, Request)
    except RecordError as error:  # no worker like this one can do it, now or later
        context.storage.report(error)
        return
    if request is None:
        log.info("deleted before its turn", extra={"run": prefix})
        return
    if _is_too_new(context, run, request):
        return
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
    if isinstance(held, claim.Exhausted):
        _give_up(context, run, request, held)
    elif isinstance(held, Claim):
        with context.scratch_dir() as scratch:
            _make(RunAttempt(context, run, request, held, Folders(scratch)), work)


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
    try:
        attempt.check(look=True)
        told = context.record.at(held, request.video.key, attempt.run.prefix)
        with told, held.beating(context.settings.heartbeat_seconds):
            work(attempt)
    except CancelledRunError as error:
        _stopped(attempt, error)
    except FINAL_ERRORS as error:
        failure = attempt.error(error)
        _leave(attempt)
        held.end("failed", failure)
        _fail(context, attempt.run, request, held.number, failure, held.artefacts)
    except ChildDiedError as error:
        log.warning("attempt failed: %s", error, extra=ids)
        _try_again(attempt, error)
    except Exception as error:
        if _is_of_the_machine(error, attempt.folders.kept):
            # The attempt does not count, and Dramatiq tries the message again.
            held.end("handed_back", attempt.error(_in_words(error)))
            raise
        log.exception("attempt failed", extra=ids)
        _try_again(attempt, _in_words(error))


# -- how an attempt ends ---------------------------------------------------------------------------


def _is_of_the_machine(error: Exception, folder: Path) -> bool:
    """Tell whether the store or the broker is away, or the disk full: no run is to blame."""
    if isinstance(error, RecordError):
        # A damaged one stays so: that counts. A newer one is for a newer worker.
        return error.code == "newer_record"
    if isinstance(error, StorageError | QueueError):
        return True
    try:
        room.check_room(folder)
    except StorageError:
        return True
    return False


def _in_words(error: Exception) -> PosedropError:
    """Return an error that nobody foresaw as one with words."""
    if isinstance(error, PosedropError):
        return error
    words = f"posedrop itself failed: {error!r}"[:1000]
    return AnalysisError(words.encode(errors="replace").decode(), code="internal")


def _try_again(attempt: RunAttempt, error: PosedropError) -> None:
    """Count an attempt that failed, and send the run again: to be given up, if it was the last."""
    held = attempt.claim
    if attempt.context.closing:
        _hand_back(attempt)
        return
    if held.is_last:
        _leave(attempt)
    held.end("failed", attempt.error(error))
    attempt.context.send(held.task, run=attempt.run.prefix)


def _leave(attempt: RunAttempt) -> None:
    """Publish what an attempt that fails has made: its log, and whole files, if any may be."""
    try:
        if attempt.claim.task == "render":
            attempt.take(attempt.folders.film / "out", layout.DRAWN)
        elif layout.PREDICTIONS in {artefact.name for artefact in attempt.claim.artefacts}:
            # What an analysis leaves by the way, before its predictions, need not be whole.
            attempt.take_tables()
        attempt.keep_log()
        attempt.publish(attempt.folders.kept.iterdir())
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
            artefacts=held.artefacts,
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
    attempt.context.send(attempt.claim.task, run=attempt.run.prefix)


# -- how a run fails -------------------------------------------------------------------------------


def _give_up(context: Context, run: Run, request: Request, spent: claim.Exhausted) -> None:
    last = spent.last
    known = last.error or RunError(
        code="worker_died",
        message=f"worker {last.worker} was killed or lost while it was at this run",
        stage=stage_of(last.progress.stage, last.task),
    )
    message = f"given up after {spent.counted} attempts; the last: {known.message}"
    error = known.model_copy(update={"message": message})
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
    inference = context.storage.read_whole_record(bucket, run.inference, Inference)
    drawn_from = inference.artefacts if inference is not None else []
    found = {artefact.plain_name: artefact for artefact in (*drawn_from, *left)}
    if layout.PREDICTIONS not in found and (there := _published_predictions(context, run)):
        found[there.name] = there
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


def _published_predictions(context: Context, run: Run) -> Artefact | None:
    """Return the predictions of a run whose attempts were killed before they could tell of them."""
    with context.scratch_dir() as folder:
        path = folder / layout.PREDICTIONS
        bucket = context.settings.results_bucket
        sha256 = publish.fetch_if_there(context.storage, bucket, run.predictions, path)
        return publish.describe(path, sha256) if sha256 is not None else None
