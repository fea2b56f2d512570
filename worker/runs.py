"""The two halves of a run: infer makes the poses, render draws them. Each claims, works, publishes.

Whatever happens, a run ends: with what it was asked for, or with an error that says why not.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posedrop import analyses, layout, models
from posedrop.errors import (
    AnalysisError,
    BadRequestError,
    CancelledRunError,
    ChildDiedError,
    ObjectChangedError,
    RefusedVideoError,
)
from posedrop.records import (
    Artefact,
    Inference,
    Model,
    PosesOf,
    Progress,
    Request,
    RunError,
    Task,
)
from worker import checkpoints, claim, pair, publish
from worker.claim import Claim
from worker.workshop import Workshop

log = logging.getLogger(__name__)

#: What no further attempt can mend.
FINAL_ERRORS = (AnalysisError, BadRequestError, RefusedVideoError, ObjectChangedError)
RUN_LOG = "run.log"
_TAIL_BYTES = 2000

Work = Callable[[Workshop, str, Request, Claim, Path], None]


def infer(shop: Workshop, run: str) -> None:
    """Make the poses of a run and pass it on to render."""
    _attempt(shop, run, "infer", _infer)


def render(shop: Workshop, run: str) -> None:
    """Draw the poses of a run and end it."""
    _attempt(shop, run, "render", _render)


def _attempt(shop: Workshop, run: str, task: Task, work: Work) -> None:
    if shop.closing:
        # Two threads take messages: what the one hands back is not for the other of a process that
        # ends. It is kept from taking it again, until somebody else has.
        shop.send(task, run=run)
        time.sleep(1.0)
        return
    bucket = shop.settings.results_bucket
    request = shop.storage.read_record(bucket, f"{run}/{layout.REQUEST}", Request)
    if request is None:
        log.info("deleted before its turn", extra={"run": run})
        return
    held = claim.take(
        shop.storage,
        bucket,
        run,
        task,
        worker=shop.name,
        lease_seconds=shop.settings.lease_seconds,
        max_attempts=shop.settings.max_attempts,
    )
    if isinstance(held, claim.Exhausted):
        _give_up(shop, run, request, held)
    elif isinstance(held, Claim):
        _hold(shop, run, request, held, task, work)


def _hold(shop: Workshop, run: str, request: Request, held: Claim, task: Task, work: Work) -> None:
    ids = {"analysis_id": request.analysis_id, "attempt": held.number, "task": task}
    log.info("attempt begins", extra=ids)
    with shop.bench() as folder:
        run_log = folder / RUN_LOG
        try:
            held.look()
            _go_on(held, shop)
            with held.beating(shop.settings.heartbeat_seconds):
                work(shop, run, request, held, folder)
        except CancelledRunError as error:
            _stopped(shop, run, request, held, error)
        except FINAL_ERRORS as error:
            held.end("failed", claim.run_error(error, task))
            _fail(shop, run, request, held.number, claim.run_error(error, task, _tail(run_log)))
        except ChildDiedError as error:
            log.warning("attempt failed: %s", error, extra=ids)
            if shop.closing:
                _hand_back(shop, run, held)
                return
            held.end("failed", claim.run_error(error, task, _tail(run_log)))
            shop.send(task, run=run)
        except Exception:
            # The store or the broker is away, or posedrop is wrong: not this run's fault, so the
            # attempt does not count, and Dramatiq tries the message again.
            held.end("handed_back")
            raise


def _stopped(
    shop: Workshop, run: str, request: Request, held: Claim, error: CancelledRunError
) -> None:
    """Tell apart why the work stopped: cancelled, taken over, or this process ends."""
    if held.cancelled:
        held.end("done")
        publish.finish(
            shop.storage,
            shop.settings.results_bucket,
            run,
            request,
            "cancelled",
            attempts=held.number,
            error=claim.run_error(error, None),
        )
        checkpoints.clear(shop.storage, shop.settings.results_bucket, run)
    elif not held.lost:
        _hand_back(shop, run, held)


def _hand_back(shop: Workshop, run: str, held: Claim) -> None:
    """Let another worker go on at once, instead of after this one's lease."""
    held.end("handed_back")
    shop.send(held.task, run=run)


def _give_up(shop: Workshop, run: str, request: Request, spent: claim.Exhausted) -> None:
    last = spent.last
    known = last.error or RunError(
        code="worker_died",
        message=f"worker {last.worker} was killed or lost while it was at this run",
        stage=last.progress.stage,
    )
    message = f"given up after {shop.settings.max_attempts} attempts; the last: {known.message}"
    error = known.model_copy(update={"message": message})
    _fail(shop, run, request, spent.attempts, error)


def _fail(shop: Workshop, run: str, request: Request, attempts: int, error: RunError) -> None:
    publish.finish(
        shop.storage,
        shop.settings.results_bucket,
        run,
        request,
        "failed",
        attempts=attempts,
        error=error,
    )
    checkpoints.clear(shop.storage, shop.settings.results_bucket, run)


def _go_on(held: Claim, shop: Workshop) -> None:
    if held.cancelled:
        raise CancelledRunError("somebody asked for this run to stop")
    if held.lost or shop.closing:
        raise CancelledRunError("this worker has to stop")


def _should_stop(held: Claim, shop: Workshop) -> Callable[[], bool]:
    return lambda: held.cancelled or held.lost or shop.closing


def _fetch_video(shop: Workshop, request: Request, held: Claim, folder: Path) -> Path:
    held.stage("fetch")
    local = folder / "video"
    video = request.video
    there = shop.storage.head(video.bucket, video.key)
    if there is None or there.etag != video.etag:
        raise ObjectChangedError(f"{video.key} was replaced or removed since it was planned")
    if shop.cache.link_video(request.sha256, local):
        return local
    if not _downloaded(shop, video.bucket, video.key, local, request.sha256, video.etag):
        raise ObjectChangedError(f"{video.key} has other content than when it was planned")
    shop.cache.keep_video(request.sha256, local)
    return local


def _downloaded(
    shop: Workshop, bucket: str, key: str, path: Path, sha256: str, etag: str | None = None
) -> bool:
    """Fetch an object; False if it is not what it should be, twice: once may be the network's."""
    for _ in range(2):
        if shop.storage.download(bucket, key, path, etag)["sha256"] == sha256:
            return True
        log.warning("%s came with another sha256", key)
    return False


# -- infer -----------------------------------------------------------------------------------------


def _infer(shop: Workshop, run: str, request: Request, held: Claim, folder: Path) -> None:
    started = time.monotonic()
    known = _known_poses(shop, request, folder)
    if known is not None:
        _publish_inference(shop, run, request, held, folder, known, time.monotonic() - started)
        return
    analysis = analyses.get(request.analysis)
    model = None
    if request.model is not None:
        held.stage("fetch the model")
        kept = shop.cache.models
        model = models.fetch(shop.storage, shop.settings.models_bucket, request.model, kept)
        model.touch()
        shop.cache.trim_models()
    video = _fetch_video(shop, request, held, folder)
    fetched = time.monotonic()
    _go_on(held, shop)
    out = folder / "out"
    out.mkdir()
    bucket = shop.settings.results_bucket
    parts = checkpoints.Checkpoints(shop.storage, bucket, run, folder / "parts")
    parts.fetch()
    payload = {
        "analysis": request.analysis,
        "video": str(video),
        "out": str(out),
        "args": request.args,
        "model": str(model) if model else None,
        "model_digest": request.model.digest if request.model else None,
        "device": shop.settings.device,
        "parts": str(parts.folder),
        "part_seconds": shop.settings.checkpoint_seconds,
        "model_bytes": shop.settings.model_bytes // pair.CHILDREN,
    }

    def on_progress(progress: Progress) -> None:
        held.progress(progress)
        parts.send()

    options: dict[str, Any] = {
        "on_progress": on_progress,
        "should_stop": _should_stop(held, shop),
        "wall_seconds": analysis.wall_seconds(request.args, request.probe.frames),
        "log": folder / RUN_LOG,
    }
    held.stage("wait")
    try:
        answer = shop.gpu.call(
            "worker.engine:run_analysis", payload, makes_ready=analysis.makes_ready, **options
        )
    finally:
        parts.send()
    if analysis.finish is not None:
        answer = shop.desk.call(
            "worker.engine:finish_analysis", {**payload, "answer": answer}, **options
        )
    _publish_inference(shop, run, request, held, folder, answer, fetched - started)
    record = PosesOf(analysis_id=request.analysis_id, run=run)
    shop.storage.write(bucket, layout.poses_record(_poses_id(request)), record.to_json())


def _poses_id(request: Request) -> str:
    """Return what is the same for two requests that differ in nothing but the drawing."""
    drawn = analyses.get(request.analysis).drawn | {"model"}
    args = {name: value for name, value in request.args.items() if name not in drawn}
    model = request.model.digest if request.model else ""
    args_text = json.dumps(args, sort_keys=True)
    return layout.make_id(
        request.sha256, request.analysis, request.analysis_version, model, args_text
    )


def _known_poses(shop: Workshop, request: Request, folder: Path) -> dict[str, Any] | None:
    """Fetch the poses that an earlier run found with the same arguments but for the drawing.

    Returns:
        The answer that run's analysis gave, with its files in ``out``; None: there is none, its
        files are gone, or a run of its own was asked for (``force``).
    """
    if request.force is not None or not analyses.get(request.analysis).drawn:
        return None
    bucket = shop.settings.results_bucket
    there = shop.storage.read_record(bucket, layout.poses_record(_poses_id(request)), PosesOf)
    if there is None or there.analysis_id == request.analysis_id:
        return None
    earlier = shop.storage.read_record(bucket, f"{there.run}/{layout.INFERENCE}", Inference)
    if earlier is None:
        return None
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = Path(temporary)
        for artefact in earlier.artefacts:
            key = f"{there.run}/{artefact.object_name}"
            path = files / Path(artefact.name).name
            try:
                whole = _downloaded(shop, bucket, key, path, artefact.sha256)
            except ObjectChangedError:  # gone
                return None
            if not whole:
                return None
        files.rename(folder / "out")
        files.mkdir()  # for who removes it
    (folder / "out" / RUN_LOG).replace(folder / RUN_LOG)
    answer = earlier.model_dump(include={"frames_expected", "frames_decoded", "rows", "versions"})
    missing = [part.model_dump() for part in earlier.missing]
    details = {**earlier.details, "poses_of": there.analysis_id}
    return {**answer, "missing": missing, "details": details}


def _publish_inference(
    shop: Workshop,
    run: str,
    request: Request,
    held: Claim,
    folder: Path,
    answer: dict[str, Any],
    fetch_seconds: float,
) -> None:
    bucket = shop.settings.results_bucket
    out = folder / "out"
    held.stage("publish")
    shutil.copy(folder / RUN_LOG, out / RUN_LOG, follow_symlinks=False)
    held.look()
    _go_on(held, shop)
    renders = analyses.get(request.analysis).renders
    # Render goes on with the log, and leaves all of it under its name.
    apart = {RUN_LOG} if renders else set()
    artefacts = publish.upload_artefacts(shop.storage, bucket, run, out, held.number, apart=apart)
    inference = Inference.model_validate(
        {
            **answer,
            "analysis_id": request.analysis_id,
            "artefacts": [artefact.model_dump() for artefact in artefacts],
            "timings": {"fetch": fetch_seconds, **answer.get("timings", {})},
        }
    )
    if renders:
        shop.storage.create(bucket, f"{run}/{layout.INFERENCE}", inference.to_json())
        checkpoints.clear(shop.storage, bucket, run)
        held.end("done")
        shop.send("render", run=run)
    else:
        held.end("done")
        _succeed(shop, run, request, held, inference, artefacts, {})


# -- render ----------------------------------------------------------------------------------------


def _render(shop: Workshop, run: str, request: Request, held: Claim, folder: Path) -> None:
    bucket = shop.settings.results_bucket
    inference = shop.storage.read_record(bucket, f"{run}/{layout.INFERENCE}", Inference)
    if inference is None:
        raise AnalysisError("the poses of this run are gone; ask again with force", code="no_poses")
    video = _fetch_video(shop, request, held, folder)
    poses = folder / "poses"
    poses.mkdir()
    names = {artefact.name: artefact for artefact in inference.artefacts}
    for name in ("poses.h5", "poses_filtered.h5"):
        if name in names:
            place = names[name].object_name
            sha256 = names[name].sha256
            if not _downloaded(shop, bucket, f"{run}/{place}", poses / name, sha256):
                raise AnalysisError(f"{name} is not what infer wrote", code="damaged_poses")
    out = folder / "out"
    out.mkdir()
    run_log = folder / RUN_LOG
    if RUN_LOG in names:
        shop.storage.download(bucket, f"{run}/{names[RUN_LOG].object_name}", run_log)
    _go_on(held, shop)
    model = _model(shop, request)
    answer = shop.cpu.call(
        "worker.render:render",
        _drawing(request, model, video, poses, out),
        on_progress=held.progress,
        should_stop=_should_stop(held, shop),
        wall_seconds=600.0 + 1.0 * request.probe.frames,
        log=run_log,
    )
    held.stage("publish")
    shutil.copy(run_log, out / RUN_LOG, follow_symlinks=False)
    held.look()
    _go_on(held, shop)
    drawn = publish.upload_artefacts(shop.storage, bucket, run, out, held.number)
    kept = [a for a in inference.artefacts if a.name != RUN_LOG]
    timings = {f"render_{name}": seconds for name, seconds in answer["timings"].items()}
    held.end("done")
    _succeed(shop, run, request, held, inference, kept + drawn, timings)


def _model(shop: Workshop, request: Request) -> Model | None:
    if request.model is None:
        return None
    key = f"{request.model.name}/{request.model.digest}/model.json"
    return shop.storage.read_record(shop.settings.models_bucket, key, Model)


def _drawing(
    request: Request, model: Model | None, video: Path, poses: Path, out: Path
) -> dict[str, Any]:
    args = request.args
    filtered = poses / "poses_filtered.h5"
    pcutoff = args.get("pcutoff")
    if pcutoff is None:
        pcutoff = model.pcutoff if model else 0.6
    return {
        "video": str(video),
        "poses": str(poses / "poses.h5"),
        "poses_filtered": str(filtered) if filtered.is_file() else None,
        "out": str(out),
        "pcutoff": pcutoff,
        "style": args.get("style", {}),
        "skeleton": model.skeleton if model else [],
        "start": args.get("start", 0),
        "stop": args.get("stop"),
        "stride": args.get("stride", 1),
    }


def _succeed(
    shop: Workshop,
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
    )
    total = (datetime.now(UTC) - request.created_at).total_seconds()
    publish.finish(
        shop.storage,
        shop.settings.results_bucket,
        run,
        request,
        "succeeded" if whole else "partial",
        attempts=held.number,
        inference=inference,
        artefacts=artefacts,
        timings={**timings, "total": total},
    )


def _tail(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
