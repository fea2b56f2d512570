"""Predictions and poses of earlier attempts and runs, which spare this one the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.layout import RUN_LOG, Run
from posedrop.buckets.records import Artefact, Inference, PosesOf, Request
from posedrop.errors import ObjectChangedError
from worker.child.messages import AnalysisOutput
from worker.jobs import artefacts, publish
from worker.jobs.attempt import RunAttempt


def predictions(attempt: RunAttempt) -> Iterator[str]:
    """Yield the folders of runs whose predictions this one may use, each time put into ``kept``.

    They are then among what this attempt has published.
    """
    if analyses.get(attempt.request.analysis).finish is None:
        return
    path = attempt.folders.kept / layout.PREDICTIONS
    for run in _runs_before(attempt):
        sha256 = publish.fetch_if_there(
            attempt.context.storage, attempt.bucket, run.predictions, path
        )
        if sha256 is None:
            continue
        if run == attempt.run:
            attempt.claim.published([publish.describe(path, sha256)])
        else:
            attempt.publish([path])
        yield run.prefix


def _runs_before(attempt: RunAttempt) -> Iterator[Run]:
    """Yield a run, the failed run of which it is a retry, the one of which that is a retry..."""
    yield attempt.run
    seen, earlier = {attempt.run.prefix}, attempt.request.retry_of
    while earlier is not None and earlier.run not in seen:
        run = Run(earlier.run)
        yield run
        seen.add(run.prefix)
        request = attempt.context.storage.read_whole_record(attempt.bucket, run.request, Request)
        earlier = request.retry_of if request is not None else None


def poses(attempt: RunAttempt) -> AnalysisOutput | None:
    """Fetch the poses that an earlier run found with the same arguments, or others of the drawing.

    Returns:
        What that run's analysis found out, with its files in ``kept``; None: there is none, its
        files are gone or no longer of those that are taken, or a run of its own was asked for
        (``force``).
    """
    request, storage = attempt.request, attempt.context.storage
    if request.force is not None:
        return None
    key = layout.poses_record(analyses.poses_id(request))
    there = storage.read_whole_record(attempt.bucket, key, PosesOf)
    if there is None or there.analysis_id == request.analysis_id:
        return None
    run = Run(there.run)
    earlier = storage.read_whole_record(attempt.bucket, run.inference, Inference)
    if earlier is None:
        return None
    kept = attempt.folders.kept
    if not all(_is_fetched(attempt, run, artefact) for artefact in earlier.artefacts):
        shutil.rmtree(kept)
        kept.mkdir()
        return None
    if (kept / RUN_LOG).exists():
        (kept / RUN_LOG).replace(attempt.folders.film / RUN_LOG)
    found = earlier.model_dump(exclude={"artefacts", "timings"})
    details = {**earlier.details, "poses_of": there.analysis_id}
    return AnalysisOutput.model_validate({**found, "details": details})


def _is_fetched(attempt: RunAttempt, run: Run, artefact: Artefact) -> bool:
    """Fetch a file of an earlier run; False: it is gone, damaged, or of none that are taken."""
    names = artefacts.names_of(analyses.get(attempt.request.analysis), opens_film=False)
    if not artefacts.is_allowed(artefact.plain_name, {*names, layout.PREDICTIONS, RUN_LOG}):
        return False
    path = attempt.folders.kept / artefact.plain_name
    try:
        return attempt.fetch(run.key(artefact.object_name), path, artefact.sha256)
    except ObjectChangedError:  # gone
        return False
