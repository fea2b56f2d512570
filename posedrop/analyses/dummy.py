"""``dummy``: takes its time and does nothing, to try out a deployment without a model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from posedrop.analyses import Analysis, Args, Job


class DummyArgs(Args):
    """The arguments of ``dummy``."""

    seconds: float = Field(default=5, ge=0, le=86400, description="how long it idles, in seconds")


def run(job: Job) -> dict[str, Any]:
    """Idle for ``seconds``; progress counts tenths of seconds in place of frames."""
    seconds = DummyArgs.model_validate(job.args).seconds
    tenths = round(seconds * 10)
    start = time.monotonic()
    for tenth in range(tenths):
        job.report("idle", tenth, tenths)
        time.sleep(max(0.0, start + min((tenth + 1) / 10, seconds) - time.monotonic()))
    job.report("idle", tenths, tenths)
    return {
        "frames_expected": 0,
        "frames_decoded": 0,
        "rows": 0,
        "missing": [],
        "timings": {"idle": round(time.monotonic() - start, 3)},
        "versions": {},
        "details": {},
    }


def _wall_seconds(args: Mapping[str, Any], frames: int) -> float:  # noqa: ARG001
    return float(args["seconds"]) + 60.0


dummy = Analysis(
    name="dummy",
    version="1",
    args=DummyArgs,
    run="posedrop.analyses.dummy:run",
    summary="Waits for some seconds and makes no poses: a trial of the way, without a model.",
    renders=False,
    wall_seconds=_wall_seconds,
)
