"""Render: the labelled video and the plots of a run's poses, and the run's end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from posedrop.buckets import layout
from posedrop.buckets.layout import RUN_LOG
from posedrop.buckets.names import Naming
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.models import Model
from posedrop.errors import AnalysisError, ChildDiedError, RecordError
from worker.child import messages
from worker.child.patience import Patience
from worker.context import Context
from worker.jobs.attempt import POSES, RunAttempt, walls
from worker.jobs.lifecycle import perform

#: Seconds that drawing a frame takes at most, on a slow processor.
SLOWEST_FRAME = 1.0
#: The likelihood from which a keypoint is drawn, where neither request nor model says so.
DEFAULT_PCUTOFF = 0.6


def render(context: Context, run: str) -> None:
    """Draw the poses of a run and end it."""
    perform(context, run, "render", _render)


def _render(attempt: RunAttempt) -> None:
    context, claim, folders = attempt.context, attempt.claim, attempt.folders
    with suppress(ChildDiedError):  # who needs it will tell
        context.cpu_tables.be_ready()  # with its imports, for who tunes these poses again
    inference = _read_inference(attempt)
    is_drawn = attempt.request.args.get("style", {}).get("video", True)
    video = attempt.fetch_video() if is_drawn else None
    poses = _fetch_poses(attempt, inference)
    out = folders.film / "out"
    out.mkdir()
    attempt.check()
    task = _task(attempt, attempt.model(), inference, video, poses, out)
    output = messages.ask(
        context.cpu.call,
        task,
        wall_seconds=Patience(attempt.request.probe.frames, SLOWEST_FRAME),
        **attempt.call_options(folders.film),
    )
    if video is not None:
        attempt.measured("drawing", inference.rows, sum(output.timings.values()))
    claim.stage("publish")
    attempt.take(out, layout.DRAWN)
    naming = Naming.of(attempt.request.video.key, inference.details, task.pcutoff)
    attempt.publish_kept("render", layout.DRAWN[0 if is_drawn else 1], naming=naming)
    details = {**inference.details, "render_walls": walls(context.cpu)}
    if output.encode is not None:
        details["encode"] = output.encode.model_dump()
    kept = [artefact for artefact in inference.artefacts if artefact.name != RUN_LOG]
    timings = {f"render_{name}": seconds for name, seconds in output.timings.items()}
    claim.end("done")
    changes = {"details": details, "artefacts": kept + claim.artefacts}
    attempt.succeed(inference.model_copy(update=changes), timings)
    attempt.clear_checkpoints()  # of an infer that was killed behind its inference.json


def _read_inference(attempt: RunAttempt) -> Inference:
    """Return the record that infer wrote.

    Raises:
        AnalysisError: it is gone (code ``no_poses``) or damaged.
        RecordError: code ``newer_record``: it is for a newer worker.
    """
    storage = attempt.context.storage
    try:
        inference = storage.read_record(attempt.bucket, attempt.run.inference, Inference)
    except RecordError as error:
        if error.code == "newer_record":
            raise
        words = f"{error.message}: `posedrop analyse` makes the run anew, from its predictions"
        raise AnalysisError(words, code=error.code) from error
    if inference is None:
        raise AnalysisError("the poses of this run are gone; ask again with force", code="no_poses")
    return inference


def _fetch_poses(attempt: RunAttempt, inference: Inference) -> Path:
    """Put the table into ``film/poses``, and infer's log where the child goes on with it.

    The plain one: what DeepLabCut draws under the names that the files get is not filtered.

    Returns:
        The folder of the table.

    Raises:
        AnalysisError: code ``damaged_poses``: it has other content than infer wrote.
    """
    film = attempt.folders.film
    poses = film / "poses"
    poses.mkdir()
    by_name = {artefact.plain_name: artefact for artefact in inference.artefacts}
    if POSES in by_name:
        key = attempt.run.key(by_name[POSES].object_name)
        if not attempt.fetch(key, poses / POSES, by_name[POSES].sha256):
            raise AnalysisError(f"{POSES} is not what infer wrote", code="damaged_poses")
    if RUN_LOG in by_name:
        key = attempt.run.key(by_name[RUN_LOG].object_name)
        attempt.context.storage.download(attempt.bucket, key, film / RUN_LOG)
    return poses


def _task(
    attempt: RunAttempt,
    model: Model | None,
    inference: Inference,
    video: Path | None,
    poses: Path,
    out: Path,
) -> messages.RenderVideo:
    settings, args = attempt.context.settings, attempt.request.args
    pcutoff = args.get("pcutoff")
    if pcutoff is None:
        # As the tables were judged: those of an earlier posedrop may have gone by another.
        known = inference.details.get("pcutoff")
        if isinstance(known, int | float) and 0 <= known <= 1:
            pcutoff = known
        else:
            pcutoff = model.pcutoff if model else DEFAULT_PCUTOFF
    return messages.RenderVideo(
        video=str(video) if video is not None else None,
        frame_size=(attempt.request.probe.width, attempt.request.probe.height),
        poses=str(poses / POSES),
        out=str(out),
        pcutoff=pcutoff,
        style=args.get("style", {}),
        skeleton=model.skeleton if model else [],
        start=args.get("start", 0),
        stop=args.get("stop"),
        stride=args.get("stride", 1),
        device=settings.device,
        encode=attempt.unless_tried(settings.encode),
    )
