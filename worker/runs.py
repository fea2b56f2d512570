"""The two halves of a run: infer makes the poses, render draws them. Each claims, works, publishes.

Whatever happens, a run ends: with what it was asked for, or with an error that says why not.
"""

from __future__ import annotations

import logging
import shutil
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
from posedrop.records import Artefact, Inference, Model, Request, RunError, Task
from worker import claim, publish
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


def _go_on(held: Claim, shop: Workshop) -> None:
    if held.cancelled:
        raise CancelledRunError("somebody asked for this run to stop")
    if held.lost or shop.closing:
        raise CancelledRunError("this worker has to stop")


def _should_stop(held: Claim, shop: Workshop) -> Callable[[], bool]:
    return lambda: held.cancelled or held.lost or shop.closing


def _fetch_video(shop: Workshop, request: Request, held: Claim, folder: Path) -> Path:
    held.stage("fetch")
    video = folder / "video"
    wanted = request.video
    if not _downloaded(shop, wanted.bucket, wanted.key, video, request.sha256, wanted.etag):
        raise ObjectChangedError(f"{request.video.key} has other content than when it was planned")
    return video


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
    analysis = analyses.get(request.analysis)
    model = None
    if request.model is not None:
        held.stage("fetch the model")
        model = models.fetch(shop.storage, shop.settings.models_bucket, request.model, shop.models)
    video = _fetch_video(shop, request, held, folder)
    fetched = time.monotonic()
    _go_on(held, shop)
    out = folder / "out"
    out.mkdir()
    answer = shop.gpu.call(
        "worker.engine:run_analysis",
        {
            "analysis": request.analysis,
            "video": str(video),
            "out": str(out),
            "args": request.args,
            "model": str(model) if model else None,
            "model_digest": request.model.digest if request.model else None,
            "device": shop.settings.device,
        },
        on_progress=held.progress,
        should_stop=_should_stop(held, shop),
        wall_seconds=analysis.wall_seconds(request.args, request.probe.frames),
        log=folder / RUN_LOG,
    )
    _publish_inference(shop, run, request, held, folder, answer, fetched - started)


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
    shutil.copy(folder / RUN_LOG, out / RUN_LOG)
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
    shutil.copy(run_log, out / RUN_LOG)
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
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
