"""The two halves of a run: infer makes the poses, render draws them. Each claims, works, publishes.

Whatever happens, a run ends: with what it was asked for, or with an error that says why not.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.records import (
    Artefact,
    Inference,
    Model,
    NeedsNewer,
    PosesOf,
    Progress,
    Request,
    RunError,
    Task,
)
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
from posedrop.models.fetch import fetch
from posedrop.transport.queue import QueueError
from worker import room, tuning_memory
from worker.child import messages, pool
from worker.child.child import Child
from worker.child.messages import AnalysisOutput
from worker.child.patience import QUIET_SECONDS, Patience
from worker.context import Context
from worker.jobs import artefacts, checkpoints, claim, publish
from worker.jobs.artefacts import NotTakenError
from worker.jobs.claim import Claim

log = logging.getLogger(__name__)

#: What no further attempt can mend.
FINAL_ERRORS = (AnalysisError, BadRequestError, RefusedVideoError, ObjectChangedError)
#: What a child says that it is at; the other stages are steps of this process.
STAGES = frozenset({"infer", "track", "filter", "write", "render"})
RUN_LOG = layout.RUN_LOG
POSES, POSES_FILTERED = "poses.h5", "poses_filtered.h5"
_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Folders:
    """Where an attempt has its files: what children write to, and what was taken from them."""

    scratch: Path
    """It holds the others, and goes with the attempt."""
    left_out: list[str] = field(default_factory=list)
    """Words about files that children left and that were not taken."""

    def __post_init__(self) -> None:
        """Make them."""
        self.film.mkdir()
        self.kept.mkdir()

    @property
    def film(self) -> Path:
        """For the child that opens the film: ``video``, ``out``, ``parts``, ``run.log``."""
        return self.scratch / "film"

    @property
    def tables(self) -> Path:
        """For the child that makes tables, where no film ever is: ``out``, ``run.log``."""
        return self.scratch / "tables"

    @property
    def kept(self) -> Path:
        """What is published, and no child writes to."""
        return self.scratch / "kept"


Work = Callable[[Context, str, Request, Claim, Folders], None]


def infer(context: Context, run: str) -> None:
    """Make the poses of a run and pass it on to render."""
    _attempt(context, run, "infer", _infer)


def render(context: Context, run: str) -> None:
    """Draw the poses of a run and end it."""
    _attempt(context, run, "render", _render)


def _attempt(context: Context, run: str, task: Task, work: Work) -> None:
    if context.closing:
        # Two threads take messages: what the one hands back is not for the other of a process that
        # ends. It is kept from taking it again, until somebody else has.
        context.send(task, run=run)
        time.sleep(1.0)
        return
    bucket = context.settings.results_bucket
    try:
        request = context.storage.read_record(bucket, f"{run}/{layout.REQUEST}", Request)
    except RecordError as error:  # no worker like this one can do it, now or later
        context.storage.report(error)
        return
    if request is None:
        log.info("deleted before its turn", extra={"run": run})
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
    )
    if isinstance(held, claim.Exhausted):
        _give_up(context, run, request, held)
    elif isinstance(held, Claim):
        _hold(context, run, request, held, task, work)


def _is_too_new(context: Context, run: str, request: Request) -> bool:
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
    context.storage.write(context.settings.results_bucket, layout.needs_newer(run), note.to_json())
    return True


def _hold(
    context: Context, run: str, request: Request, held: Claim, task: Task, work: Work
) -> None:
    ids = {"analysis_id": request.analysis_id, "attempt": held.number, "task": task}
    log.info("attempt begins", extra=ids)
    with context.scratch_dir() as scratch:
        folders = Folders(scratch)
        try:
            held.look()
            _go_on(held, context)
            told = context.record.at(held, request.video.key, run)
            with told, held.beating(context.settings.heartbeat_seconds):
                work(context, run, request, held, folders)
        except CancelledRunError as error:
            _stopped(context, run, request, held, error)
        except FINAL_ERRORS as error:
            failure = _failure(error, held, folders)
            _leave(context, run, request, held, folders)
            held.end("failed", failure)
            _fail(context, run, request, held.number, failure, held.artefacts)
        except ChildDiedError as error:
            log.warning("attempt failed: %s", error, extra=ids)
            _try_again(context, run, request, held, folders, error)
        except Exception as error:
            if _is_of_the_machine(error, folders.kept):
                # The attempt does not count, and Dramatiq tries the message again.
                held.end("handed_back", _failure(_told(error), held, folders))
                raise
            log.exception("attempt failed", extra=ids)
            wrong = _told(error)
            _try_again(context, run, request, held, folders, wrong)


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


def _told(error: Exception) -> PosedropError:
    """Return an error that nobody foresaw as one with words."""
    if isinstance(error, PosedropError):
        return error
    words = f"posedrop itself failed: {error!r}"[:1000]
    return AnalysisError(words.encode(errors="replace").decode(), code="internal")


def _try_again(
    context: Context,
    run: str,
    request: Request,
    held: Claim,
    folders: Folders,
    error: PosedropError,
) -> None:
    """Count an attempt that failed, and send the run again: to be given up, if it was the last."""
    if context.closing:
        _hand_back(context, run, held)
        return
    if held.is_last:
        _leave(context, run, request, held, folders)
    held.end("failed", _failure(error, held, folders))
    context.send(held.task, run=run)


def _failure(error: PosedropError, held: Claim, folders: Folders) -> RunError:
    return claim.run_error(error, _stage(held.at, held.task), _tail(folders))


def _stage(at: str, task: Task) -> str:
    return at if at in STAGES else task


def _leave(context: Context, run: str, request: Request, held: Claim, folders: Folders) -> None:
    """Publish what an attempt that fails has made: its log, and whole files, if any may be."""
    try:
        if held.task == "render":
            _take(folders, folders.film / "out", layout.DRAWN, request)
        elif layout.PREDICTIONS in _names(held.artefacts):
            # What an analysis leaves by the way, before its predictions, need not be whole.
            _take_tables(folders, request)
        _keep_log(folders)
        _upload(context, run, held, folders.kept.iterdir())
    except (OSError, StorageError) as error:
        # The predictions are safe: all else can be made of them again.
        log.warning("%s: what a failed attempt has made is lost: %s", run, error)


def _take(folders: Folders, out: Path, names: Collection[str], request: Request) -> None:
    """Take the files that a child left in ``out``, by these names alone."""
    given = (layout.PREDICTIONS,) if out.parent == folders.tables else ()
    told = artefacts.take(out, folders.kept, names, _largest(request), besides=given)
    for words in told:
        log.warning("left out: %s", words, extra={"analysis_id": request.analysis_id})
    folders.left_out.extend(told)


def _take_tables(folders: Folders, request: Request) -> None:
    if folders.tables.exists():
        names = artefacts.names_of(analyses.get(request.analysis), opens_film=False)
        _take(folders, folders.tables / "out", names, request)


def _largest(request: Request) -> int:
    """Return how many bytes a file of a run may have."""
    probe = request.probe
    return artefacts.largest(probe.frames, probe.width, probe.height)


def _keep_log(folders: Folders) -> None:
    """Put the end of a job's log to its artefacts; of a child gone mad there may be none."""
    logs = [_log_of(folders.film), _log_of(folders.tables)]
    words = "".join(f"left out: {each}\n" for each in folders.left_out).encode()
    if whole := b"".join([*logs, words]):
        (folders.kept / RUN_LOG).write_bytes(whole)


def _log_of(folder: Path, most: int = artefacts.MAX_LOG_BYTES) -> bytes:
    return artefacts.end_of(folder / RUN_LOG, most)


def _tail(folders: Folders) -> str | None:
    """Return the end of what was printed last, for a record."""
    tail = _log_of(folders.tables, _TAIL_BYTES) or _log_of(folders.film, _TAIL_BYTES)
    return tail.decode(errors="replace") or None


def _upload(
    context: Context, run: str, held: Claim, paths: Iterable[Path], apart: Collection[str] = ()
) -> None:
    """Publish files that this attempt has not published yet."""
    known = _names(held.artefacts)
    new = [path for path in paths if path.name not in known]
    bucket = context.settings.results_bucket
    held.published(
        publish.upload_artefacts(context.storage, bucket, run, new, held.number, apart=apart)
    )


def _names(artefacts: Iterable[Artefact]) -> set[str]:
    return {artefact.name for artefact in artefacts}


def _stopped(
    context: Context, run: str, request: Request, held: Claim, error: CancelledRunError
) -> None:
    """Tell apart why the work stopped: cancelled, taken over, or this process ends."""
    if held.cancelled:
        held.end("done")
        publish.finish(
            context.storage,
            context.settings.results_bucket,
            run,
            request,
            "cancelled",
            attempts=held.number,
            artefacts=held.artefacts,
            error=claim.run_error(error, None),
        )
        checkpoints.clear(context.storage, context.settings.results_bucket, run)
    elif held.gives_way and not context.closing:
        # The handlers send it again, when it is its group's turn.
        held.end("handed_back")
    elif not held.lost:
        _hand_back(context, run, held)


def _hand_back(context: Context, run: str, held: Claim) -> None:
    """Let another worker go on at once, instead of after this one's lease."""
    held.end("handed_back")
    context.send(held.task, run=run)


def _give_up(context: Context, run: str, request: Request, spent: claim.Exhausted) -> None:
    last = spent.last
    known = last.error or RunError(
        code="worker_died",
        message=f"worker {last.worker} was killed or lost while it was at this run",
        stage=_stage(last.progress.stage, last.task),
    )
    message = f"given up after {spent.counted} attempts; the last: {known.message}"
    error = known.model_copy(update={"message": message})
    _fail(context, run, request, spent.attempts, error, spent.artefacts)


def _fail(
    context: Context,
    run: str,
    request: Request,
    attempts: int,
    error: RunError,
    left: Iterable[Artefact],
) -> None:
    """End a run that failed, with all that was made of it: poses that can't be drawn are poses."""
    bucket = context.settings.results_bucket
    inference = context.storage.read_whole_record(bucket, f"{run}/{layout.INFERENCE}", Inference)
    drawn_from = inference.artefacts if inference is not None else []
    found = {artefact.name: artefact for artefact in (*drawn_from, *left)}
    if layout.PREDICTIONS not in found and (there := _published_predictions(context, run)):
        found[there.name] = there
    publish.finish(
        context.storage,
        bucket,
        run,
        request,
        "failed",
        attempts=attempts,
        inference=inference,
        artefacts=[found[name] for name in sorted(found)],
        error=error,
    )
    checkpoints.clear(context.storage, bucket, run)


def _published_predictions(context: Context, run: str) -> Artefact | None:
    """Return the predictions of a run whose attempts were killed before they could tell of them."""
    with context.scratch_dir() as folder:
        path = folder / layout.PREDICTIONS
        sha256 = _fetched(context, f"{run}/{layout.PREDICTIONS}", path)
        return publish.describe(path, sha256) if sha256 is not None else None


def _fetched(context: Context, key: str, path: Path) -> str | None:
    """Fetch an object of the results bucket, if it is there; return its SHA-256."""
    bucket = context.settings.results_bucket
    there = context.storage.head(bucket, key)
    if there is None:
        return None
    return context.storage.download(bucket, key, path, there.etag)["sha256"]


def _go_on(held: Claim, context: Context) -> None:
    if held.cancelled:
        raise CancelledRunError("somebody asked for this run to stop")
    if held.lost or context.closing:
        raise CancelledRunError("this worker has to stop")


def _should_stop(held: Claim, context: Context) -> Callable[[], bool]:
    return lambda: held.cancelled or held.lost or context.closing


def _fetch_video(context: Context, request: Request, held: Claim, folder: Path) -> Path:
    held.stage("fetch")
    local = folder / "video"
    video = request.video
    there = context.storage.head(video.bucket, video.key)
    if there is None or there.etag != video.etag:
        raise ObjectChangedError(f"{video.key} was replaced or removed since it was planned")
    if context.cache.link_video(request.sha256, local):
        return local
    room.check_fits(video.size, context.settings.scratch_dir)
    if not room.fetch_with_room(
        context.cache,
        lambda: _downloaded(context, video.bucket, video.key, local, request.sha256, video.etag),
    ):
        raise ObjectChangedError(f"{video.key} has other content than when it was planned")
    context.cache.keep_video(request.sha256, local)
    return local


def _downloaded(
    context: Context, bucket: str, key: str, path: Path, sha256: str, etag: str | None = None
) -> bool:
    """Fetch an object; False if it is not what it should be, twice: once may be the network's."""
    for _ in range(2):
        if context.storage.download(bucket, key, path, etag)["sha256"] == sha256:
            return True
        log.warning("%s came with another sha256", key)
    return False


# -- infer -----------------------------------------------------------------------------------------


def _infer(context: Context, run: str, request: Request, held: Claim, folders: Folders) -> None:
    started = time.monotonic()
    known = _known_poses(context, request, folders)
    if known is not None:
        _publish_inference(context, run, request, held, folders, known, time.monotonic() - started)
        return
    found = _from_predictions(context, run, request, held, folders)
    output, fetched = found or _from_the_network(context, run, request, held, folders)
    details = {**output.details, "walls": _walls(context.gpu)}
    output = output.model_copy(update={"details": details})
    _publish_inference(context, run, request, held, folders, output, fetched)
    record = PosesOf(analysis_id=request.analysis_id, run=run)
    bucket = context.settings.results_bucket
    context.storage.write(bucket, layout.poses_record(analyses.poses_id(request)), record.to_json())


def _from_the_network(
    context: Context, run: str, request: Request, held: Claim, folders: Folders
) -> tuple[AnalysisOutput, float]:
    """Return what the analysis found out, and the seconds to fetch what it needs."""
    started = time.monotonic()
    analysis = analyses.get(request.analysis)
    model = None
    if request.model is not None:
        held.stage("fetch the model")
        record = _model(context, request)
        if record is not None:
            room.check_model_fits(record, context.settings.scratch_dir)
        kept = context.cache.models
        ref, there = request.model, context.settings.models_bucket
        model = room.fetch_with_room(
            context.cache, lambda: fetch(context.storage, there, ref, kept)
        )
        model.touch()
        # As links of its own: what the child reads is what it was handed, and no other model.
        model = shutil.copytree(model, folders.film / "model", copy_function=os.link)
        context.cache.trim_models()
    video = _fetch_video(context, request, held, folders.film)
    fetched = time.monotonic() - started
    _go_on(held, context)
    bucket = context.settings.results_bucket
    parts = checkpoints.Checkpoints(context.storage, bucket, run, folders.film / "parts")
    parts.fetch()
    digest = request.model.digest if request.model is not None else None
    out = folders.film / "out"
    out.mkdir()
    task = messages.RunAnalysis(
        analysis=request.analysis,
        video=str(video),
        out=str(out),
        args=request.args,
        sha256=request.sha256,
        model=str(model) if model else None,
        model_digest=digest,
        device=context.settings.device,
        decode=_at_first(held, context.settings.decode),
        parts=str(parts.folder),
        part_seconds=context.settings.checkpoint_seconds,
        model_bytes=context.settings.model_bytes // pool.CHILDREN,
        tuning=tuning_memory.fetch(context.storage, bucket, digest) if digest is not None else {},
    )

    size = _frame_size(request)
    patience = _patience(context, request, size)

    def on_progress(progress: Progress) -> None:
        held.progress(progress)
        is_kept = parts.send() > 0
        if is_kept and held.asked_back and patience.measured[1] >= context.settings.turn_seconds:
            held.gives_way = True
            raise CancelledRunError("another group's turn: it goes on from its last checkpoint")

    options = _calls(context, request, held, folders.film)
    options |= {"on_progress": on_progress, "wall_seconds": patience}
    held.stage("wait")
    try:
        output = messages.ask(context.gpu.call, task, makes_ready=analysis.makes_ready, **options)
    finally:
        parts.send()
    _tell_speed(context, request, size, patience, output)
    if digest is not None:
        tuning_memory.keep(context.storage, bucket, digest, output.tuning)
    if analysis.finish is None:
        _take(folders, out, artefacts.names_of(analysis, opens_film=True), request)
        return output, fetched
    predictions = folders.kept / layout.PREDICTIONS
    try:
        artefacts.copy(out / layout.PREDICTIONS, predictions, _largest(request))
    except (NotTakenError, FileNotFoundError) as error:
        raise _bad_answer(request.analysis, f"{layout.PREDICTIONS}: {error}") from error
    # From here on no attempt needs the network again, whatever becomes of the tables.
    held.stage("publish")
    held.look()
    _go_on(held, context)
    _upload(context, run, held, [predictions])
    return _finished(context, request, held, folders), fetched


def _frame_size(request: Request) -> tuple[int, int]:
    """Return the width and height, in pixels, of what goes through the network."""
    crop = request.args.get("crop")
    if crop:
        return crop["x2"] - crop["x1"], crop["y2"] - crop["y1"]
    return request.probe.width, request.probe.height


def _patience(context: Context, request: Request, size: tuple[int, int]) -> Patience:
    analysis = analyses.get(request.analysis)
    frames = request.probe.frames
    if analysis.wall_seconds is not None:
        return Patience.of(analysis.wall_seconds(request.args, frames))
    return Patience(
        frames,
        analysis.slowest_frame,
        batch=request.args.get("batch_size"),
        usual=context.record.frames_per_second(request.analysis, request.model, size),
    )


def _tell_speed(
    context: Context,
    request: Request,
    size: tuple[int, int],
    patience: Patience,
    output: AnalysisOutput,
) -> None:
    """Have the worker's record say how fast the network was, and on what."""
    frames, seconds = patience.measured
    context.record.measured(request.analysis, request.model, size, frames, seconds)
    device = output.details.get("device")
    if isinstance(device, str) and device.isprintable():
        context.record.runs_on(device)


def _at_first(held: Claim, by: str) -> str:
    """Return who is to decode or encode: of a film that was tried before, no card is asked again.

    A driver that hangs, or takes its process along, can't say so: the next attempt does without.
    """
    return by if held.is_first else "cpu"


def _from_predictions(
    context: Context, run: str, request: Request, held: Claim, folders: Folders
) -> tuple[AnalysisOutput, float] | None:
    """Make the tables of what the network found in an attempt, or a run, before this one.

    Returns:
        None where there is nothing, or nothing that can be read.
    """
    if analyses.get(request.analysis).finish is None:
        return None
    started = time.monotonic()
    path = folders.kept / layout.PREDICTIONS
    for place in _runs_before(context, run, request):
        sha256 = _fetched(context, f"{place}/{layout.PREDICTIONS}", path)
        if sha256 is None:
            continue
        if place == run:
            held.published([publish.describe(path, sha256)])
        else:
            _upload(context, run, held, [path])
        fetched = time.monotonic() - started
        _go_on(held, context)
        try:
            return _finished(context, request, held, folders), fetched
        except AnalysisError as error:
            if error.code != "damaged_predictions":
                raise
            log.warning("%s: %s", place, error)
            held.withdraw(layout.PREDICTIONS)
            path.unlink()
    return None


def _runs_before(context: Context, run: str, request: Request) -> Iterator[str]:
    """Yield a run, the failed one that it was made for, the one that this was made for..."""
    yield run
    seen, earlier = {run}, request.retry_of
    while earlier is not None and earlier.run not in seen:
        yield earlier.run
        seen.add(earlier.run)
        key = f"{earlier.run}/{layout.REQUEST}"
        its = context.storage.read_whole_record(context.settings.results_bucket, key, Request)
        earlier = its.retry_of if its is not None else None


def _finished(context: Context, request: Request, held: Claim, folders: Folders) -> AnalysisOutput:
    """Have the tables made of the predictions, by a child that never has a film near it."""
    held.stage("write")
    if folders.tables.exists():
        shutil.rmtree(folders.tables)
    out = folders.tables / "out"
    out.mkdir(parents=True)
    shutil.copyfile(folders.kept / layout.PREDICTIONS, out / layout.PREDICTIONS)
    task = messages.FinishAnalysis(
        analysis=request.analysis,
        out=str(out),
        args=request.args,
        sha256=request.sha256,
        model_digest=request.model.digest if request.model else None,
        frame_size=(request.probe.width, request.probe.height),
    )
    options = _calls(context, request, held, folders.tables)
    output = messages.ask(context.tables_child.call, task, **options)
    _take_tables(folders, request)
    return output


def _calls(context: Context, request: Request, held: Claim, folder: Path) -> dict[str, Any]:
    frames = request.probe.frames
    own = analyses.get(request.analysis).wall_seconds
    # Of tables: a filter by arima takes minutes to hours, and tells of nothing meanwhile.
    a_frame = 5.0 if request.args.get("filter") == "arima" else 0.2
    return {
        "on_progress": held.progress,
        "should_stop": _should_stop(held, context),
        "wall_seconds": own(request.args, frames) if own else QUIET_SECONDS + a_frame * frames,
        "folder": folder,
        "log": folder / RUN_LOG,
    }


def _known_poses(context: Context, request: Request, folders: Folders) -> AnalysisOutput | None:
    """Fetch the poses that an earlier run found with the same arguments, or others of the drawing.

    Returns:
        What that run's analysis found out, with its files in ``kept``; None: there is none, its
        files are gone or no longer of those that are taken, or a run of its own was asked for
        (``force``).
    """
    if request.force is not None:
        return None
    bucket = context.settings.results_bucket
    key = layout.poses_record(analyses.poses_id(request))
    there = context.storage.read_whole_record(bucket, key, PosesOf)
    if there is None or there.analysis_id == request.analysis_id:
        return None
    earlier = context.storage.read_whole_record(
        bucket, f"{there.run}/{layout.INFERENCE}", Inference
    )
    if earlier is None:
        return None
    names = artefacts.names_of(analyses.get(request.analysis), opens_film=False)
    wanted = {*names, layout.PREDICTIONS, RUN_LOG}
    for artefact in earlier.artefacts:
        key = f"{there.run}/{artefact.object_name}"
        path = folders.kept / artefact.name
        try:
            is_whole = artefacts.is_allowed(artefact.name, wanted) and _downloaded(
                context, bucket, key, path, artefact.sha256
            )
        except ObjectChangedError:  # gone
            is_whole = False
        if not is_whole:
            shutil.rmtree(folders.kept)
            folders.kept.mkdir()
            return None
    if (folders.kept / RUN_LOG).exists():
        (folders.kept / RUN_LOG).replace(folders.film / RUN_LOG)
    told = earlier.model_dump(exclude={"artefacts", "timings"})
    details = {**earlier.details, "poses_of": there.analysis_id}
    return AnalysisOutput.model_validate({**told, "details": details})


def _publish_inference(
    context: Context,
    run: str,
    request: Request,
    held: Claim,
    folders: Folders,
    output: AnalysisOutput,
    fetch_seconds: float,
) -> None:
    bucket = context.settings.results_bucket
    held.stage("publish")
    _keep_log(folders)
    held.look()
    _go_on(held, context)
    renders = analyses.get(request.analysis).renders
    if renders and not (folders.kept / POSES).is_file():
        why = "; ".join(folders.left_out) or "it left no such file"
        raise _bad_answer(request.analysis, f"{POSES}: {why}")
    # Render goes on with the log, and leaves all of it under its name.
    apart = {RUN_LOG} if renders else set()
    _upload(context, run, held, folders.kept.iterdir(), apart)
    published = held.artefacts
    inference = _inference(request, output, published, fetch_seconds)
    if renders:
        context.storage.create(bucket, f"{run}/{layout.INFERENCE}", inference.to_json())
        checkpoints.clear(context.storage, bucket, run)
        held.end("done")
        context.send("render", run=run)
    else:
        held.end("done")
        _succeed(context, run, request, held, inference, published, {})
        checkpoints.clear(context.storage, bucket, run)


def _inference(
    request: Request, output: AnalysisOutput, published: list[Artefact], fetch_seconds: float
) -> Inference:
    told = output.model_dump(exclude={"tuning"})
    version = output.analysis_version or analyses.get(request.analysis).version
    more = {
        "analysis_id": request.analysis_id,
        "analysis_version": version,
        "artefacts": published,
        "timings": {"fetch": fetch_seconds, **output.timings},
    }
    return Inference.model_validate({**told, **more})


def _bad_answer(who: str, why: str) -> AnalysisError:
    return AnalysisError(f"{who} gave no answer that can be one: {why}"[:1000], code="bad_answer")


# -- render ----------------------------------------------------------------------------------------


def _render(context: Context, run: str, request: Request, held: Claim, folders: Folders) -> None:
    bucket = context.settings.results_bucket
    try:
        inference = context.storage.read_record(bucket, f"{run}/{layout.INFERENCE}", Inference)
    except RecordError as error:
        if error.code == "newer_record":
            raise
        words = f"{error.message}: `posedrop analyse` makes the run anew, from its predictions"
        raise AnalysisError(words, code=error.code) from error
    if inference is None:
        raise AnalysisError("the poses of this run are gone; ask again with force", code="no_poses")
    video = _fetch_video(context, request, held, folders.film)
    poses = folders.film / "poses"
    poses.mkdir()
    names = {artefact.name: artefact for artefact in inference.artefacts}
    for name in (POSES, POSES_FILTERED):
        if name in names:
            place = names[name].object_name
            sha256 = names[name].sha256
            if not _downloaded(context, bucket, f"{run}/{place}", poses / name, sha256):
                raise AnalysisError(f"{name} is not what infer wrote", code="damaged_poses")
    out = folders.film / "out"
    out.mkdir()
    run_log = folders.film / RUN_LOG
    if RUN_LOG in names:
        context.storage.download(bucket, f"{run}/{names[RUN_LOG].object_name}", run_log)
    _go_on(held, context)
    task = _drawing(
        request,
        _model(context, request),
        video,
        poses,
        out,
        context.settings.device,
        _at_first(held, context.settings.encode),
    )
    output = messages.ask(
        context.cpu.call,
        task,
        on_progress=held.progress,
        should_stop=_should_stop(held, context),
        wall_seconds=Patience(request.probe.frames, 1.0),
        folder=folders.film,
        log=run_log,
    )
    held.stage("publish")
    _take(folders, out, layout.DRAWN, request)
    if not (folders.kept / layout.DRAWN[0]).is_file():
        why = "; ".join(folders.left_out) or "it left no such file"
        raise _bad_answer("render", f"{layout.DRAWN[0]}: {why}")
    _keep_log(folders)
    held.look()
    _go_on(held, context)
    _upload(context, run, held, folders.kept.iterdir())
    kept = [a for a in inference.artefacts if a.name != RUN_LOG]
    timings = {f"render_{name}": seconds for name, seconds in output.timings.items()}
    details = {**inference.details, "render_walls": _walls(context.cpu)}
    if output.encode is not None:
        details["encode"] = output.encode.model_dump()
    inference = inference.model_copy(update={"details": details})
    held.end("done")
    _succeed(context, run, request, held, inference, kept + held.artefacts, timings)


def _walls(child: Child | pool.ChildPool) -> list[str]:
    """Return which walls stood around a child, by the names of :data:`worker.child.walls.NAMES`."""
    return child.walls.stand if child.walls is not None else []


def _model(context: Context, request: Request) -> Model | None:
    if request.model is None:
        return None
    key = f"{request.model.name}/{request.model.digest}/model.json"
    return context.storage.read_whole_record(context.settings.models_bucket, key, Model)


def _drawing(
    request: Request,
    model: Model | None,
    video: Path,
    poses: Path,
    out: Path,
    device: str,
    encode: str,
) -> messages.RenderVideo:
    args = request.args
    filtered = poses / POSES_FILTERED
    pcutoff = args.get("pcutoff")
    if pcutoff is None:
        pcutoff = model.pcutoff if model else 0.6
    return messages.RenderVideo(
        video=str(video),
        poses=str(poses / POSES),
        poses_filtered=str(filtered) if filtered.is_file() else None,
        out=str(out),
        pcutoff=pcutoff,
        style=args.get("style", {}),
        skeleton=model.skeleton if model else [],
        start=args.get("start", 0),
        stop=args.get("stop"),
        stride=args.get("stride", 1),
        device=device,
        encode=encode,
    )


def _succeed(
    context: Context,
    run: str,
    request: Request,
    held: Claim,
    inference: Inference,
    artefacts: list[Artefact],
    timings: dict[str, float],
) -> None:
    whole = (
        inference.rows == inference.frames_decoded
        and inference.frames_decoded == inference.frames_expected
        and not inference.missing
        and not inference.cut
    )
    total = (datetime.now(UTC) - request.created_at).total_seconds()
    publish.finish(
        context.storage,
        context.settings.results_bucket,
        run,
        request,
        "succeeded" if whole else "partial",
        attempts=held.number,
        inference=inference,
        artefacts=artefacts,
        timings={**timings, "total": total},
    )
