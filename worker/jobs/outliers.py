"""Outliers: the frames worth correcting of a film, with the poses that another run has found.

No network is needed, so all of it is done by the workers of the cpu queue, and none of it waits for
an accelerator. The child that has the film picks frames and leaves their pixels; the one that never
has a film makes files of them, as some of these are HDF5.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from posedrop.analyses.outliers import COCO, LABELED_DATA, SLEAP_PACKAGE, OutlierArgs, outliers
from posedrop.buckets import names
from posedrop.buckets.layout import Run
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.results import Result
from posedrop.errors import AnalysisError, RecordError
from worker.child import messages
from worker.child.patience import QUIET_SECONDS
from worker.jobs import artefacts, publish
from worker.jobs.artefacts import NotTakenError
from worker.jobs.attempt import RunAttempt, bad_answer, walls
from worker.jobs.derive import skeleton_of

#: Seconds a frame of the film within which frames are picked; a fit by ARIMA tells of nothing.
PICK_A_FRAME, FIT_A_FRAME = 0.2, 5.0
#: Seconds to write a frame.
PACK_A_FRAME = 5.0
_FILES = (LABELED_DATA, SLEAP_PACKAGE, COCO)
_POSES, _PIXELS = "poses.csv", "pixels.npy"
_ITERATION = re.compile(r"dlc-models-pytorch/iteration-(\d{1,6})/")


def find(attempt: RunAttempt) -> None:
    """Make what a run of the analysis ``outliers`` asks for, and end it."""
    started = time.monotonic()
    source = _source(attempt)
    folders, claim = attempt.folders, attempt.claim
    video = attempt.fetch_video()
    poses = _fetch_poses(attempt, source, folders.film)
    fetched = time.monotonic()
    attempt.check()
    picked = _pick(attempt, video, poses)
    pixels = _take_pixels(attempt, len(picked.frames))
    found = time.monotonic()
    attempt.check()
    packed = _pack(attempt, source, pixels, picked.frames)
    claim.stage("publish")
    attempt.publish_kept("outliers", LABELED_DATA)
    claim.end("done")
    count = len(picked.frames)
    inference = Inference(
        analysis_id=attempt.request.analysis_id,
        frames_expected=count,
        frames_decoded=count,
        rows=count,
        artefacts=claim.artefacts,
        timings={
            "fetch": fetched - started,
            "pick": found - fetched,
            "write": time.monotonic() - found,
        },
        versions={**picked.versions, **packed.versions},
        analysis_version=outliers.version,
        details={
            "poses_of": source.analysis_id,
            "frames": picked.frames,
            "candidates": picked.candidates,
            "words": picked.words,
            "walls": walls(attempt.context.cpu),
        },
    )
    attempt.succeed(inference, {})


def _source(attempt: RunAttempt) -> Result:
    """Return the result of the run whose poses are taken.

    Raises:
        AnalysisError: code ``no_poses``: it was deleted; ``damaged_record``.
    """
    of = attempt.request.poses_of
    if of is None:
        raise AnalysisError("the request does not say whose poses it takes", code="no_poses")
    key = Run(of.run).result
    try:
        result = attempt.context.storage.read_record(attempt.bucket, key, Result)
    except RecordError as error:
        if error.code == "newer_record":
            raise
        raise AnalysisError(f"run {of.analysis_id}: {error.message}", code=error.code) from error
    if result is None:
        words = f"the results of {of.analysis_id}, whose poses this takes, were deleted: ask again"
        raise AnalysisError(words, code="no_poses")
    return result


def _fetch_poses(attempt: RunAttempt, source: Result, folder: Path) -> Path:
    """Put the run's table into a folder, once more into the one where no film is.

    Raises:
        AnalysisError: code ``no_poses``, ``damaged_poses``: it is gone, or has other content.
    """
    of, artefact = attempt.request.poses_of, names.find(source.artefacts, _POSES)
    if artefact is None or of is None:
        words = f"run {source.analysis_id} has no table of poses"
        raise AnalysisError(words, code="no_poses")
    path, key = folder / _POSES, Run(of.run).key(artefact.object_name)
    storage = attempt.context.storage
    for _ in range(2):  # once may be the network's fault
        if publish.fetch_if_there(storage, attempt.bucket, key, path) == artefact.sha256:
            tables = attempt.folders.tables
            (tables / "out").mkdir(parents=True)
            shutil.copyfile(path, tables / _POSES)
            return path
    words = f"{artefact.name} of run {source.analysis_id} is gone, or not what was published"
    raise AnalysisError(f"{words}: run it anew with --force", code="damaged_poses")


def _pick(attempt: RunAttempt, video: Path, poses: Path) -> messages.PickOutput:
    """Have the child that has the film choose the frames."""
    request, folder = attempt.request, attempt.folders.film
    probe, args = request.probe, OutlierArgs.model_validate(request.args)
    attempt.claim.stage("pick")
    a_frame = FIT_A_FRAME if args.by == "fitting" else PICK_A_FRAME
    return messages.ask(
        attempt.context.cpu.call,
        messages.PickFrames(
            video=str(video),
            poses=str(poses),
            pixels=str(folder / _PIXELS),
            args=request.args,
            width=probe.width,
            height=probe.height,
        ),
        wall_seconds=QUIET_SECONDS + a_frame * probe.frames,
        **attempt.call_options(folder),
    )


def _take_pixels(attempt: RunAttempt, count: int) -> Path:
    """Take the pixels that the film's child has left to where no film's child writes."""
    probe, target = attempt.request.probe, attempt.folders.tables / _PIXELS
    most = 4096 + 3 * count * probe.width * probe.height
    try:
        artefacts.copy(attempt.folders.film / _PIXELS, target, most)
    except (NotTakenError, FileNotFoundError) as error:
        raise bad_answer("outliers", f"{_PIXELS}: {error}") from error
    return target


def _pack(
    attempt: RunAttempt, source: Result, pixels: Path, frames: list[int]
) -> messages.PackOutput:
    """Have the child that never has a film write the files, and take them."""
    request, folder = attempt.request, attempt.folders.tables
    attempt.claim.stage("write")
    packed = messages.ask(
        attempt.tables_child.call,
        messages.PackFrames(
            poses=str(folder / _POSES),
            pixels=str(pixels),
            frames=frames,
            out=str(folder / "out"),
            video=request.video.key,
            film_frames=request.probe.frames,
            fps=request.probe.fps,
            iteration=_iteration(attempt, source),
            skeleton=skeleton_of(source),
        ),
        wall_seconds=QUIET_SECONDS + PACK_A_FRAME * len(frames),
        **attempt.call_options(folder),
    )
    attempt.take(folder / "out", _FILES)
    return packed


def _iteration(attempt: RunAttempt, source: Result) -> int:
    """Return which of the DeepLabCut project's refinements the model is of; 0 where nobody says."""
    ref = source.model
    if ref is None:
        return 0
    bucket, key = attempt.context.settings.models_bucket, f"{ref.name}/{ref.digest}/model.json"
    model = attempt.context.storage.read_whole_record(bucket, key, Model)
    for file in model.files if model is not None else []:
        if (found := _ITERATION.match(file.path)) is not None:
            return int(found[1])
    return 0
