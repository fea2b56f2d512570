"""Two tasks of children: run an analysis on files of the scratch folder, and finish it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.analyses import Job
from worker.child.messages import FinishAnalysis, RunAnalysis
from worker.child.tasks import Reporter, function


def run_analysis(payload: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Run an analysis on a film and return what it found out.

    Args:
        payload: :class:`worker.child.messages.RunAnalysis` as JSON.
        report: tells the parent how many frames are done, and asks it for the accelerator.

    Returns:
        :class:`worker.child.messages.AnalysisOutput` as JSON.

    Raises:
        PosedropError: whatever the analysis raises.
    """
    task = RunAnalysis.model_validate(payload)
    analysis = analyses.get(task.analysis)
    job = Job(
        video=Path(task.video),
        out=Path(task.out),
        args=task.args,
        model=Path(task.model) if task.model else None,
        model_digest=task.model_digest,
        report=report,
        device=task.device,
        decode=task.decode,
        parts=Path(task.parts) if task.parts else None,
        part_seconds=task.part_seconds,
        sha256=task.sha256,
        version=analysis.version,
        model_bytes=task.model_bytes,
        tuning=task.tuning,
        permit=report.permit,
    )
    result: dict[str, Any] = function(analysis.run)(job)
    return result


def finish_analysis(payload: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Finish an analysis from ``predictions.npz``, where there is no film.

    Args:
        payload: :class:`worker.child.messages.FinishAnalysis` as JSON.
        report: tells the parent how many frames are done.
    """
    task = FinishAnalysis.model_validate(payload)
    analysis = analyses.get(task.analysis)
    if analysis.finish is None:
        raise ValueError(f"{analysis.name} has nothing left to do")
    job = Job(
        video=Path(os.devnull),
        out=Path(task.out),
        args=task.args,
        model=None,
        model_digest=task.model_digest,
        report=report,
        sha256=task.sha256,
        version=analysis.version,
        fps=task.fps,
        frame_size=task.frame_size,
        is_own=task.is_own,
        pcutoff=task.pcutoff,
    )
    result: dict[str, Any] = function(analysis.finish)(job)
    return result
