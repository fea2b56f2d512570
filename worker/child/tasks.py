"""The children's tasks: run an analysis on files of the scratch folder, and finish it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.analyses import Job
from worker.child.messages import FinishAnalysis, RunAnalysis


def run_analysis(
    payload: dict[str, Any], report: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Run an analysis on a film and return what it found out.

    Args:
        payload: :class:`worker.child.messages.RunAnalysis` as JSON.
        report: called with stage, frames done, frames in all (None: not known). What it has as
            ``permit`` gives the accelerator, else it is there for the taking.

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
        permit=getattr(report, "permit", nullcontext),
    )
    result: dict[str, Any] = _function(analysis.run)(job)
    return result


def finish_analysis(
    payload: dict[str, Any], report: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Make of ``predictions.npz`` what is left of an analysis, where there is no film.

    Args:
        payload: :class:`worker.child.messages.FinishAnalysis` as JSON.
        report: as above.
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
        frame_size=task.frame_size,
    )
    result: dict[str, Any] = _function(analysis.finish)(job)
    return result


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
