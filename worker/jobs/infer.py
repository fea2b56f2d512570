"""Infer: the poses of a film, by the network or from what an earlier attempt or run left."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.layout import RUN_LOG
from posedrop.buckets.names import Naming
from posedrop.buckets.records.attempts import NeedsNetwork, Progress
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import Artefact
from posedrop.buckets.records.workers import Step
from posedrop.errors import AnalysisError, CancelledRunError, RecordError
from posedrop.models.fetch import fetch
from worker import room, tuning_memory
from worker.child import messages, pool
from worker.child.messages import AnalysisOutput
from worker.child.patience import QUIET_SECONDS, Patience
from worker.context import Context
from worker.jobs import artefacts, earlier, outliers
from worker.jobs.artefacts import NotTakenError
from worker.jobs.attempt import POSES, RunAttempt, bad_answer, walls
from worker.jobs.checkpoints import Checkpoints
from worker.jobs.lifecycle import perform

log = logging.getLogger(__name__)

#: Errors about predictions that the network can find anew.
NOT_TAKEN = frozenset({"damaged_predictions", "not_covered"})
#: Seconds a frame within which a child has made the tables; a filter by arima takes minutes to
#: hours, and tells of nothing meanwhile.
TABLES_A_FRAME, ARIMA_A_FRAME = 0.2, 5.0


def infer(context: Context, run: str) -> None:
    """Make the poses of a run and pass it on to render."""
    perform(context, run, "infer", _infer)


def finish(context: Context, run: str) -> None:
    """Make the poses of a run of what the network found before, and pass it on to render.

    What can't be made so is left to :func:`infer`.
    """
    perform(context, run, "infer", _finish, actor="finish")


def _infer(attempt: RunAttempt) -> None:
    if attempt.request.poses_of is not None:
        outliers.find(attempt)
        return
    lacking: list[str] = []
    if _was_passed_on(attempt) or _made_of_earlier(attempt, lacking):
        return
    output, fetch_seconds = _from_the_network(attempt)
    details = {**output.details, "walls": walls(attempt.context.gpu)}
    if lacking:
        details["not_taken"] = lacking
    _publish_inference(attempt, output.model_copy(update={"details": details}), fetch_seconds)


def _finish(attempt: RunAttempt) -> None:
    if attempt.request.poses_of is not None:
        outliers.find(attempt)
        return
    lacking: list[str] = []
    if not (_was_passed_on(attempt) or _made_of_earlier(attempt, lacking)):
        _leave_to_the_network(attempt, lacking)


def _was_passed_on(attempt: RunAttempt) -> bool:
    """Pass a run on to render again, if its poses were made: its message came once more."""
    if attempt.context.storage.head(attempt.bucket, attempt.run.inference) is None:
        return False
    attempt.clear_checkpoints()
    _pass_on(attempt)
    return True


def _leave_to_the_network(attempt: RunAttempt, lacking: list[str]) -> None:
    """Note that a run needs the network, and end this attempt: the handlers see to its turn."""
    context = attempt.context
    why = "; ".join(lacking)[:1000] or f"there is no {layout.PREDICTIONS}"
    log.warning("left to the network: %s", why, extra={"run": attempt.run.prefix})
    note = NeedsNetwork(worker=context.name, why=why)
    context.storage.write(attempt.bucket, attempt.run.needs_network, note.to_json())
    attempt.claim.gives_way = True
    raise CancelledRunError(f"the network has to find the poses: {why}")


# -- what there was before -------------------------------------------------------------------------


def _made_of_earlier(attempt: RunAttempt, lacking: list[str]) -> bool:
    """Make the poses of what earlier attempts and runs left, without the network.

    Returns:
        Whether that was possible; if not, ``lacking`` has words about what could not be taken.
    """
    if analyses.get(attempt.request.analysis).finish is None:
        return False
    started = time.monotonic()
    output = earlier.poses(attempt)
    if output is not None:
        _publish_inference(attempt, output, time.monotonic() - started)
        return True
    for each in earlier.predictions(attempt, lacking):
        fetch_seconds = time.monotonic() - started
        attempt.check()
        try:
            output = _make_tables(attempt, is_own=each.run == attempt.run)
        except AnalysisError as error:
            if error.code not in NOT_TAKEN:
                raise
            words = f"{layout.PREDICTIONS} of run {each.request.analysis_id}: {error}"
            log.warning("%s", words, extra={"run": attempt.run.prefix})
            lacking.append(words[:1000])
            attempt.claim.withdraw(layout.PREDICTIONS)
            attempt.folders.predictions.unlink()
            continue
        if each.run != attempt.run:
            details = {**output.details, "predictions_of": each.request.analysis_id}
            output = output.model_copy(update={"details": details})
        _publish_inference(attempt, output, fetch_seconds)
        return True
    return False


# -- the network -----------------------------------------------------------------------------------


def _from_the_network(attempt: RunAttempt) -> tuple[AnalysisOutput, float]:
    """Run the network; return its answer, and the seconds that film and model took to fetch."""
    started = time.monotonic()
    model = _fetch_model(attempt)
    video = attempt.fetch_video()
    fetch_seconds = time.monotonic() - started
    attempt.check()
    folders = attempt.folders
    parts = Checkpoints(
        attempt.context.storage, attempt.bucket, attempt.run, folders.film / "parts"
    )
    parts.fetch()
    out = folders.film / "out"
    out.mkdir()
    output = _ask_the_network(attempt, _task(attempt, video, model, out, parts), parts)
    analysis = analyses.get(attempt.request.analysis)
    if analysis.finish is None:
        attempt.take(out, artefacts.names_of(analysis, opens_film=True))
        return output, fetch_seconds
    attempt.claim.stage("publish")
    attempt.check(look=True)
    try:
        artefacts.copy(out / layout.PREDICTIONS, folders.predictions, attempt.most_bytes)
    except (NotTakenError, FileNotFoundError) as error:
        folders.predictions.unlink(missing_ok=True)  # of one that grows, its beginning
        raise bad_answer(analysis.name, f"{layout.PREDICTIONS}: {error}") from error
    # From here on no attempt needs the network again, whatever becomes of the tables.
    attempt.publish([folders.predictions])
    return _make_tables(attempt), fetch_seconds


def _fetch_model(attempt: RunAttempt) -> Path | None:
    """Put the run's model into ``film/model``; return that, None: it needs none.

    Raises:
        ModelError: it is gone, damaged, or too large for the disk.
    """
    context, model = attempt.context, attempt.request.model
    if model is None:
        return None
    attempt.claim.stage("fetch the model")
    record = attempt.model()
    if record is not None:
        room.check_model_fits(record, context.settings.scratch_dir)
    bucket, kept = context.settings.models_bucket, context.cache.models
    whole = room.fetch_with_room(context.cache, lambda: fetch(context.storage, bucket, model, kept))
    os.utime(whole)  # not touch: where it was trimmed meanwhile, that would make a file of its name
    # As links of its own: what the child reads is what it was handed, and no other model.
    linked = shutil.copytree(whole, attempt.folders.film / "model", copy_function=os.link)
    context.cache.trim_models()
    return linked


def _task(
    attempt: RunAttempt, video: Path, model: Path | None, out: Path, parts: Checkpoints
) -> messages.RunAnalysis:
    request, settings = attempt.request, attempt.context.settings
    digest = _digest(request)
    storage = attempt.context.storage
    return messages.RunAnalysis(
        analysis=request.analysis,
        video=str(video),
        out=str(out),
        args=request.args,
        sha256=request.sha256,
        model=str(model) if model else None,
        model_digest=digest,
        device=settings.device,
        decode=attempt.unless_tried(settings.decode),
        parts=str(parts.folder),
        part_seconds=settings.checkpoint_seconds,
        model_bytes=settings.model_bytes // pool.CHILDREN,
        tuning=tuning_memory.fetch(storage, attempt.bucket, digest) if digest is not None else {},
    )


def _digest(request: Request) -> str | None:
    return request.model.digest if request.model is not None else None


def _ask_the_network(
    attempt: RunAttempt, task: messages.RunAnalysis, parts: Checkpoints
) -> AnalysisOutput:
    """Have a child run the analysis, and keep its checkpoints and what it learned of its speed."""
    context, request, held = attempt.context, attempt.request, attempt.claim
    size = request.frame_size
    patience = _patience(attempt, size)

    def keep() -> bool:
        sent = parts.send()
        if sent:
            held.keep(sent)
        return sent > 0

    def on_progress(progress: Progress) -> None:
        held.progress(progress)
        is_kept = keep()
        worked = patience.measured[1]
        if is_kept and held.asked_back and worked >= context.settings.turn_seconds:
            held.gives_way = True
            raise CancelledRunError("another group's turn: it goes on from its last checkpoint")

    options = attempt.call_options(attempt.folders.film)
    options |= {"on_progress": on_progress, "wall_seconds": patience}
    makes_ready = analyses.get(request.analysis).makes_ready
    held.stage("wait")
    try:
        output = messages.ask(context.gpu.call, task, makes_ready=makes_ready, **options)
    finally:
        keep()
    frames, seconds = patience.measured
    context.record.measured(request.analysis, request.model, size, "network", frames, seconds)
    device = output.details.get("device")
    if isinstance(device, str) and device.isprintable():
        context.record.runs_on(device)
    if (digest := _digest(request)) is not None:
        tuning_memory.keep(context.storage, attempt.bucket, digest, output.tuning)
    return output


def _patience(attempt: RunAttempt, size: tuple[int, int]) -> Patience:
    request = attempt.request
    analysis = analyses.get(request.analysis)
    frames = request.probe.frames
    if analysis.wall_seconds is not None:
        return Patience.of(analysis.wall_seconds(request.args, frames))
    return Patience(
        frames,
        analysis.slowest_frame,
        batch=request.args.get("batch_size"),
        usual=attempt.context.record.frames_per_second(request.analysis, request.model, size),
    )


# -- the tables ------------------------------------------------------------------------------------


def _make_tables(attempt: RunAttempt, *, is_own: bool = True) -> AnalysisOutput:
    """Have the tables made of the predictions, by a child that never has a film near it.

    Args:
        attempt: it has the predictions in ``kept``.
        is_own: whether they are this run's own.

    Raises:
        AnalysisError: codes of ``NOT_TAKEN``: the predictions are damaged, of another film or
            model, or of too few bits for the run's pcutoff.
    """
    attempt.claim.stage("write")
    request, folder = attempt.request, attempt.folders.tables
    if folder.exists():
        shutil.rmtree(folder)
    out = folder / "out"
    out.mkdir(parents=True)
    shutil.copyfile(attempt.folders.predictions, out / layout.PREDICTIONS)
    task = messages.FinishAnalysis(
        analysis=request.analysis,
        out=str(out),
        args=request.args,
        sha256=request.sha256,
        model_digest=_digest(request),
        fps=request.probe.fps,
        frame_size=(request.probe.width, request.probe.height),
        is_own=is_own,
        pcutoff=_pcutoff(attempt),
    )
    frames = request.probe.frames
    own = analyses.get(request.analysis).wall_seconds
    step: Step = "arima" if request.args.get("filter") == "arima" else "tables"
    a_frame = ARIMA_A_FRAME if step == "arima" else TABLES_A_FRAME
    seconds = own(request.args, frames) if own else QUIET_SECONDS + a_frame * frames
    options = attempt.call_options(folder)
    child = attempt.tables_child
    output = messages.ask(child.call, task, wall_seconds=seconds, **options)
    # As the child tells: it may have waited for another run's, or have been started for this.
    took = sum(output.timings.get(name, 0.0) for name in ("track", "write", "filter"))
    attempt.measured(step, output.rows, took)
    attempt.take_tables()
    return output


def _pcutoff(attempt: RunAttempt) -> float | None:
    """Return the model's own cutoff; None: that is not known, as its record is gone."""
    try:
        model = attempt.model()
    except RecordError:
        return None
    return model.pcutoff if model is not None else None


# -- inference.json --------------------------------------------------------------------------------


def _publish_inference(attempt: RunAttempt, output: AnalysisOutput, fetch_seconds: float) -> None:
    """Publish the files and inference.json; pass the run on to render, or end it."""
    attempt.claim.stage("publish")
    analysis = analyses.get(attempt.request.analysis)
    needed = POSES if analysis.renders else None
    # Render goes on with the log, and leaves all of it under its name.
    apart = {RUN_LOG} if analysis.renders else set()
    naming = Naming.of(attempt.request.video.key, output.details)
    attempt.publish_kept(analysis.name, needed, apart, naming)
    inference = _inference(attempt.request, output, attempt.claim.artefacts, fetch_seconds)
    if analysis.renders:
        attempt.context.storage.create(attempt.bucket, attempt.run.inference, inference.to_json())
        attempt.clear_checkpoints()
        _pass_on(attempt)
    else:
        attempt.claim.end("done")
        attempt.succeed(inference, {})
        attempt.clear_checkpoints()


def _pass_on(attempt: RunAttempt) -> None:
    attempt.claim.end("done")
    attempt.context.send("render", run=attempt.run.prefix)


def _inference(
    request: Request, output: AnalysisOutput, published: list[Artefact], fetch_seconds: float
) -> Inference:
    found = output.model_dump(exclude={"tuning"})
    version = output.analysis_version or analyses.get(request.analysis).version
    more = {
        "analysis_id": request.analysis_id,
        "analysis_version": version,
        "artefacts": published,
        "timings": {"fetch": fetch_seconds, **output.timings},
    }
    return Inference.model_validate({**found, **more})
