"""Derive: what is made of a run's poses when somebody asks for it, and kept beside them.

``derived/<what>/asked.json`` asks; ``made.json`` beside it is written once, and last: the file that
was made, or why it can't be. Each attempt is a record, as those of an ingest are. No film is
opened, and of a run's tables the CSV alone, in which nothing is ever executed.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from posedrop.buckets import names
from posedrop.buckets.layout import RUN_LOG, Run
from posedrop.buckets.records import (
    DERIVED_VERSION,
    EXPORTS,
    Artefact,
    Derived,
    Request,
    Result,
    RunError,
)
from posedrop.errors import (
    AnalysisError,
    BadRequestError,
    CancelledRunError,
    ObjectChangedError,
    PosedropError,
    RecordError,
    StorageError,
)
from posedrop.hashing import sha256_of
from posedrop.transport.queue import QueueError
from worker.child import messages
from worker.child.patience import QUIET_SECONDS
from worker.context import Context
from worker.jobs import artefacts, claim, publish
from worker.jobs.claim import MAX_UNPUBLISHED, Held, History

log = logging.getLogger(__name__)

#: Seconds a frame within which a child has written a file.
SECONDS_A_FRAME = 0.2
POSES, TIMESTAMPS = "poses.csv", "timestamps.csv"


def derive(context: Context, run: str, what: str) -> None:
    """Make something of a run's poses, unless it is there, being made, or deleted.

    Args:
        context: this worker's.
        run: its folder.
        what: a name of :data:`posedrop.buckets.records.EXPORTS`.

    Raises:
        Exception: the store or the broker is away; the message is to come again.
    """
    if context.closing:
        context.send("derive", run=run, what=what)
        time.sleep(1.0)  # as in worker.jobs.lifecycle: kept from taking it again
        return
    if what not in EXPORTS:
        log.warning("left to a newer worker: %s of %s", what, run)
        return
    storage, bucket, place = context.storage, context.settings.results_bucket, Run(run)
    try:
        request = storage.read_record(bucket, place.request, Request)
        result = storage.read_record(bucket, place.result, Result)
    except RecordError as error:
        storage.report(error)
        return
    is_made = storage.head(bucket, place.derived_record(what)) is not None
    is_asked = storage.head(bucket, place.derived_request(what)) is not None
    if request is None or result is None or is_made or not is_asked:
        log.info("nothing to be made", extra={"run": run, "what": what})
        return
    folder = place.derived_attempts(what)
    before = claim.history(storage, bucket, folder, "derive")
    if before.is_busy(context.settings.lease_seconds):
        return
    if (why := _is_given_up(before, context.settings.max_attempts)) is not None:
        _tell(context, place, what, error=why)
        return
    record = claim.begin(
        storage, bucket, folder, before, "derive", context.name, now=context.clock()
    )
    if record is not None:
        held = Held(storage, bucket, folder, record)
        _attempt(context, place, request, result, what, held)


def _is_given_up(before: History, max_attempts: int) -> RunError | None:
    """Return why there is no further attempt, None if there is."""
    spent = before.spent(None, "failed")
    if len(spent) < max_attempts and len(before.attempts) < max_attempts + MAX_UNPUBLISHED:
        return None
    last = (spent or before.attempts)[-1]
    known = last.error or RunError(
        code="worker_died", message=f"worker {last.worker} was killed or lost while it was at it"
    )
    words = f"given up after {len(before.attempts)} attempts; the last: {known.message}"
    return known.model_copy(update={"message": words, "stage": "derive"})


def _attempt(
    context: Context, run: Run, request: Request, result: Result, what: str, held: Held
) -> None:
    """Make it, and record how that ended."""
    told = context.record.at(held, request.video.key, run.prefix)
    try:
        with (
            context.scratch_dir() as scratch,
            told,
            held.beating(context.settings.heartbeat_seconds),
        ):
            versions = _make(context, run, request, result, what, held, scratch)
            artefact = _publish(context, run, what, held, scratch / EXPORTS[what])
        held.end("done")
        _tell(context, run, what, artefact=artefact, versions=versions)
    except CancelledRunError:  # taken over, deleted, or this process ends
        if not held.lost:
            _hand_back(context, run, what, held)
    except (AnalysisError, BadRequestError, ObjectChangedError) as error:
        known = claim.run_error(error, "derive")
        held.end("failed", known)
        _tell(context, run, what, error=known)
    except (StorageError, QueueError) as error:
        held.end("handed_back", claim.run_error(error, "derive"))
        raise
    except Exception as error:
        if context.closing:  # which has ended the child
            _hand_back(context, run, what, held)
            return
        log.warning("attempt failed: %s", error, extra={"run": run.prefix, "what": what})
        known = (
            claim.run_error(error, "derive")
            if isinstance(error, PosedropError)
            else RunError(code="internal", message=ascii(error)[:1000], stage="derive")
        )
        held.end("failed", known)
        context.send("derive", run=run.prefix, what=what)


def _hand_back(context: Context, run: Run, what: str, held: Held) -> None:
    """Leave it to another worker, at once."""
    held.end("handed_back")
    context.send("derive", run=run.prefix, what=what)


def _make(
    context: Context,
    run: Run,
    request: Request,
    result: Result,
    what: str,
    held: Held,
    scratch: Path,
) -> dict[str, str]:
    """Have a child write the file, and take it; return the versions of the libraries."""
    folder = scratch / "derive"
    (folder / "out").mkdir(parents=True)
    held.stage("fetch")
    poses = _fetch(context, run, result, folder, POSES)
    if poses is None:
        raise AnalysisError("this run has no table of poses", code="no_poses")
    times = _fetch(context, run, result, folder, TIMESTAMPS)
    probe, deeplabcut = request.probe, result.versions.get("deeplabcut", "")
    software = [f"{name} {version}" for name, version in sorted(result.versions.items())]
    task = messages.ExportPoses.model_validate(
        {
            "format": what,
            "poses": str(poses),
            "timestamps": str(times) if times is not None else None,
            "out": str(folder / "out" / EXPORTS[what]),
            "analysis_id": request.analysis_id,
            "created_at": request.created_at.isoformat(),
            "video": request.video.key,
            "description": f"Poses by {request.analysis} {result.analysis_version} in "
            f"{request.video.key}. The time of the session is when they were asked for.",
            "software": ", ".join(software) or request.analysis,
            "software_version": deeplabcut or "unknown",
            "fps": probe.fps,
            "frames": probe.frames,
            "width": probe.width,
            "height": probe.height,
            "skeleton": _skeleton(result),
        }
    )
    held.stage("write")
    output = messages.ask(
        context.tables_child.call,
        task,
        wall_seconds=QUIET_SECONDS + SECONDS_A_FRAME * probe.frames,
        on_progress=held.progress,
        should_stop=lambda: held.lost or context.closing,
        folder=folder,
        log=folder / RUN_LOG,
    )
    most = artefacts.largest(probe.frames, probe.width, probe.height)
    left = artefacts.take(folder / "out", scratch, (EXPORTS[what],), most)
    if not (scratch / EXPORTS[what]).is_file():
        why = "; ".join(left) or "it left no such file"
        raise AnalysisError(f"{EXPORTS[what]} could not be made: {why}"[:1000], code="bad_answer")
    return output.versions


def _fetch(context: Context, run: Run, result: Result, folder: Path, name: str) -> Path | None:
    """Put a table of the run into the folder; None: it has none.

    Raises:
        AnalysisError: code ``damaged_poses``: it has other content than result.json says.
    """
    artefact = names.find(result.artefacts, name)
    if artefact is None:
        return None
    bucket, path = context.settings.results_bucket, folder / name
    for _ in range(2):  # once may be the network's fault
        sha256 = publish.fetch_if_there(
            context.storage, bucket, run.key(artefact.object_name), path
        )
        if sha256 == artefact.sha256:
            return path
        path.unlink(missing_ok=True)
    raise AnalysisError(
        f"{artefact.name} of this run is gone, or not what was published: run it anew with --force",
        code="damaged_poses",
    )


def _skeleton(result: Result) -> list[list[str]]:
    """Return the pairs of bodyparts that result.json says are joined."""
    told = result.details.get("skeleton")
    pairs = [pair for pair in told if isinstance(pair, list)] if isinstance(told, list) else []
    return [pair for pair in pairs if all(isinstance(name, str) for name in pair)]


def _publish(context: Context, run: Run, what: str, held: Held, path: Path) -> Artefact:
    """Upload a file; where a late attempt has left one of its name, below this one's number.

    Raises:
        CancelledRunError: another worker is at it, or it was deleted.
    """
    held.stage("publish")
    held.look()
    if held.lost:
        raise CancelledRunError("this worker has to stop")
    storage, bucket = context.storage, context.settings.results_bucket
    sha256, kind = sha256_of(path), publish.content_type_of(path.name)
    key = f"{run.derived}{path.name}"
    if not storage.upload_new(bucket, key, path, kind, sha256):
        key = f"{run.derived_attempts(what)}/{held.number}/{path.name}"
        storage.upload(bucket, key, path, kind)
    return publish.describe(path, sha256, run.name(key))


def _tell(
    context: Context,
    run: Run,
    what: str,
    *,
    artefact: Artefact | None = None,
    versions: dict[str, str] | None = None,
    error: RunError | None = None,
) -> None:
    """Write the record, once; of a run that was deleted meanwhile nothing comes back."""
    storage, bucket = context.storage, context.settings.results_bucket
    record = Derived(
        what=what,
        version=DERIVED_VERSION,
        artefact=artefact,
        versions=versions or {},
        error=error,
        made_at=context.clock(),
    )
    storage.create(bucket, run.derived_record(what), record.to_json())
    if storage.head(bucket, run.request) is None:
        storage.delete(bucket, [found.key for found in storage.objects(bucket, run.derived)])
