"""The child's one task: run an analysis on files of the scratch folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.analyses import Job


def run_analysis(
    payload: dict[str, Any], report: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Run the analysis that ``payload`` names and return what it found out.

    Args:
        payload: ``analysis`` (its name), ``video`` (a file), ``out`` (an empty folder), ``args``,
            and, where there are any, ``model`` (the folder of its files), ``model_digest`` and
            ``device`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``).
        report: called with stage, frames done, frames in all (None: not known).

    Returns:
        ``frames_expected``, ``frames_decoded`` and ``rows`` (frames), ``missing`` (a list of
        ``{"first", "last"}``, frame numbers), ``timings`` (seconds), ``versions``, ``details``.

    Raises:
        PosedropError: whatever the analysis raises.
    """
    analysis = analyses.get(payload["analysis"])
    module, _, function = analysis.run.partition(":")
    run = getattr(importlib.import_module(module), function)
    model = payload.get("model")
    job = Job(
        video=Path(payload["video"]),
        out=Path(payload["out"]),
        args=payload["args"],
        model=Path(model) if model else None,
        model_digest=payload.get("model_digest"),
        report=report,
        device=payload.get("device", "auto"),
    )
    result: dict[str, Any] = run(job)
    return result
