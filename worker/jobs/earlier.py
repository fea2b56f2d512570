"""Predictions and poses of earlier attempts and runs, which spare this one the network.

Of the same content and model, by the same arguments that the network goes by: of this run itself,
of the failed run of which it is a retry, of others that the handlers knew of when it was asked for.
What such a run left is looked at, never relied on: it may be deleted, or damaged, any time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from posedrop import analyses
from posedrop.buckets import layout, names
from posedrop.buckets.layout import RUN_LOG, Run
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.record import Record
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact
from posedrop.errors import ObjectChangedError, RecordError
from worker.child.messages import AnalysisOutput
from worker.jobs import artefacts, publish
from worker.jobs.attempt import RunAttempt

R = TypeVar("R", bound=Record)


class Earlier(NamedTuple):
    """A run that may have predictions for this one, or this run itself."""

    run: Run
    request: Request


def predictions(attempt: RunAttempt, lacking: list[str]) -> Iterator[Earlier]:
    """Yield the runs whose predictions this one may use, each time put into ``kept``.

    Those of another run are not published yet: what lies in this run's folder is taken for its own,
    and the next attempt would ask no more whether they are good for it.

    Args:
        attempt: this one.
        lacking: gets words about runs that had none.
    """
    path = attempt.folders.predictions
    for each in _runs_before(attempt, lacking):
        if each.run == attempt.run:
            sha256 = _sha256_if_there(attempt, each.run, path)
            if sha256 is None:
                continue
            attempt.claim.published([publish.describe(path, sha256)])
        else:
            why = _why_not_fetched(attempt, each.run, path)
            if why is not None:
                lacking.append(f"{layout.PREDICTIONS} of run {each.request.analysis_id} {why}")
                continue
        yield each


def _sha256_if_there(attempt: RunAttempt, run: Run, path: Path) -> str | None:
    return publish.fetch_if_there(attempt.context.storage, attempt.bucket, run.predictions, path)


def _why_not_fetched(attempt: RunAttempt, run: Run, path: Path) -> str | None:
    """Fetch the predictions of another run; return None, or why they are not taken."""
    result = _record(attempt, run.result, Result)
    told = names.find(result.artefacts, layout.PREDICTIONS) if result is not None else None
    try:
        if told is None:
            return None if _sha256_if_there(attempt, run, path) is not None else "are not there"
        if attempt.fetch(run.key(told.object_name), path, told.sha256):
            return None
    except ObjectChangedError:
        return "are gone"
    path.unlink()
    return "are not those that it published"


def _runs_before(attempt: RunAttempt, lacking: list[str]) -> Iterator[Earlier]:
    """Yield a run, the failed run of which it is a retry, the one of which that is..., others."""
    yield Earlier(attempt.run, attempt.request)
    wanted = analyses.predictions_id(attempt.request)
    seen = {attempt.run.prefix}
    left = [*attempt.request.earlier]
    if attempt.request.retry_of is not None:
        left.insert(0, attempt.request.retry_of)
    while left:
        ref = left.pop(0)
        if ref.run in seen:
            continue
        seen.add(ref.run)
        request = _record(attempt, Run(ref.run).request, Request)
        if request is None:
            lacking.append(f"run {ref.analysis_id} is gone")
            continue
        if request.retry_of is not None and ref == attempt.request.retry_of:
            left.insert(0, request.retry_of)
        if request.analysis == attempt.request.analysis and (
            analyses.predictions_id(request) == wanted
        ):
            yield Earlier(Run(ref.run), request)
        else:
            lacking.append(f"run {ref.analysis_id} is of another film, model or crop")


def _record(attempt: RunAttempt, key: str, kind: type[R]) -> R | None:
    """Return a record of another run, None if there is none that can be read."""
    try:
        return attempt.context.storage.read_whole_record(attempt.bucket, key, kind)
    except RecordError:  # of a newer posedrop: this one does without
        return None


def poses(attempt: RunAttempt) -> AnalysisOutput | None:
    """Fetch the poses that an earlier run found with the same arguments, or others of the drawing.

    Returns:
        What that run's analysis found out, with its files in ``kept``; None: there is none, or its
        files are gone or no longer of those that are taken.
    """
    wanted = analyses.poses_id(attempt.request)
    for run, request in _runs_before(attempt, []):
        if run == attempt.run or analyses.poses_id(request) != wanted:
            continue
        found = _record(attempt, run.inference, Inference)
        if found is None:
            continue
        kept = attempt.folders.kept
        if not all(_is_fetched(attempt, run, artefact) for artefact in found.artefacts):
            shutil.rmtree(kept)
            kept.mkdir()
            continue
        if (kept / RUN_LOG).exists():
            (kept / RUN_LOG).replace(attempt.folders.film / RUN_LOG)
        told = found.model_dump(exclude={"artefacts", "timings"})
        details = {**found.details, "poses_of": request.analysis_id}
        return AnalysisOutput.model_validate({**told, "details": details})
    return None


def _is_fetched(attempt: RunAttempt, run: Run, artefact: Artefact) -> bool:
    """Fetch a file of an earlier run; False: it is gone, damaged, or of none that are taken."""
    left = artefacts.names_of(analyses.get(attempt.request.analysis), opens_film=False)
    if not artefacts.is_allowed(artefact.plain_name, {*left, layout.PREDICTIONS, RUN_LOG}):
        return False
    path = attempt.folders.kept / artefact.plain_name
    try:
        return attempt.fetch(run.key(artefact.object_name), path, artefact.sha256)
    except ObjectChangedError:  # gone
        return False
