"""The children's tasks: run an analysis on files of the scratch folder, and finish it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.analyses import DEFAULT_MODEL_BYTES, Job


def run_analysis(
    payload: dict[str, Any], report: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Run the analysis that ``payload`` names and return what it found out.

    Args:
        payload: ``analysis`` (its name), ``video`` (a file), ``out`` (an empty folder), ``args``,
            and, where there are any, ``sha256`` (of the video), ``model`` (the folder of its
            files), ``model_digest`` and ``device`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``,
            ``mps``), ``decode`` (``auto``, ``cpu``, ``cuda``), ``parts`` (a folder for checkpoints)
            and ``part_seconds`` between two of them, ``model_bytes`` (of models that stay loaded),
            ``tuning`` (what is remembered of how fast the model is, texts by name).
        report: called with stage, frames done, frames in all (None: not known). What it has as
            ``turn`` gives the accelerator, else it is there for the taking.

    Returns:
        ``frames_expected``, ``frames_decoded`` and ``rows`` (frames), ``missing`` (a list of
        ``{"first", "last"}``, frame numbers), ``timings`` (seconds), ``versions``, ``details``;
        where there is something new to remember, ``tuning``.

    Raises:
        PosedropError: whatever the analysis raises.
    """
    analysis = analyses.get(payload["analysis"])
    result: dict[str, Any] = _function(analysis.run)(_job(payload, report))
    return result


def finish_analysis(
    payload: dict[str, Any], report: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Make of ``predictions.npz`` in ``out`` what is left of an analysis; ``payload`` as above."""
    analysis = analyses.get(payload["analysis"])
    if analysis.finish is None:
        raise ValueError(f"{analysis.name} has nothing left to do")
    result: dict[str, Any] = _function(analysis.finish)(_job(payload, report))
    return result


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _job(payload: dict[str, Any], report: Callable[[str, int, int | None], None]) -> Job:
    model, parts = payload.get("model"), payload.get("parts")
    return Job(
        video=Path(payload["video"]),
        out=Path(payload["out"]),
        args=payload["args"],
        model=Path(model) if model else None,
        model_digest=payload.get("model_digest"),
        report=report,
        device=payload.get("device", "auto"),
        decode=payload.get("decode", "auto"),
        parts=Path(parts) if parts else None,
        part_seconds=payload.get("part_seconds", 60.0),
        sha256=payload.get("sha256", ""),
        version=analyses.get(payload["analysis"]).version,
        model_bytes=payload.get("model_bytes", DEFAULT_MODEL_BYTES),
        tuning=payload.get("tuning", {}),
        turn=getattr(report, "turn", nullcontext),
    )
