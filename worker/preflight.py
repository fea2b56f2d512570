"""Preflight: what a video is, found out in a child process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import video

Report = Callable[[str, int, int | None], None]


def probe(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Probe a video and draw its thumbnail.

    Args:
        payload: ``video`` and ``thumbnail`` (paths; the latter a JPEG to write), ``max_pixels``
            (a frame) and ``max_frames``.
        report: ``report(stage, frames_done, frames_total)``.

    Returns:
        ``{"probe": posedrop.records.Probe as JSON}``.

    Raises:
        RefusedVideoError: it can't be analysed; the code says why.
    """
    path = Path(payload["video"])
    report("probe", 0, None)
    found = video.probe(path, max_pixels=payload["max_pixels"], max_frames=payload["max_frames"])
    video.thumbnail(path, Path(payload["thumbnail"]))
    report("probe", found.frames, found.frames)
    return {"probe": found.model_dump(mode="json")}
