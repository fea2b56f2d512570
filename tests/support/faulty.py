"""``faulty``: an analysis that does on demand what decoders and networks do."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from posedrop.analyses import Analysis, Args, Job
from posedrop.errors import AnalysisError


class FaultyArgs(Args):
    """The arguments of ``faulty``."""

    how: Literal["work", "hang", "segfault", "exit", "memory", "raise", "kill_worker"] = "work"
    seconds: float = 0
    #: A file that ends the seconds as soon as it is there.
    until: str = ""
    wall_seconds: float = 600


def run(job: Job) -> dict[str, Any]:
    """Leave two files, one of them other bytes each time, after doing ``how``."""
    args = FaultyArgs.model_validate(job.args)
    job.report("infer", 0, 10)
    print("about to", args.how, flush=True)
    _FAULTS[args.how]()
    _wait(args)
    (job.out / "poses.csv").write_text(f"made by {os.urandom(16).hex()}\n")
    (job.out / "same.csv").write_text("the same each time\n")
    return {
        "frames_expected": 2,
        "frames_decoded": 2,
        "rows": 2,
        "missing": [],
        "timings": {},
        "versions": {},
        "details": {},
    }


def _wait(args: FaultyArgs) -> None:
    if not args.until:
        time.sleep(args.seconds)
        return
    # No wall keeps a child from asking whether a file is there.
    ends = time.monotonic() + args.seconds
    while not Path(args.until).exists() and time.monotonic() < ends:
        time.sleep(0.05)


def begin(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Be a child's first task, without a network to make ready."""
    return {"accelerated": False}


def _segfault() -> None:
    # As Python says of a child that has imported DeepLabCut.
    print("Extension modules:", "scipy.linalg._fblas, " * 1000, flush=True)
    ctypes.string_at(0)


def _hang() -> None:
    # In C, with the interpreter's lock held, as a decoder does.
    ctypes.PyDLL(None).pause()


def _swallow_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    bytearray(1 << 40)


def _raise() -> None:
    raise AnalysisError("this one never works", code="faulty")


_FAULTS = {
    "work": lambda: None,
    "hang": _hang,
    "segfault": _segfault,
    "exit": lambda: os._exit(7),
    "memory": _swallow_memory,
    "raise": _raise,
    # As when memory is short and the kernel takes the parent instead of the child.
    "kill_worker": lambda: os.kill(os.getppid(), signal.SIGKILL),
}


def _wall_seconds(args: Mapping[str, Any], frames: int) -> float:  # noqa: ARG001
    return float(args["wall_seconds"])


faulty = Analysis(
    name="faulty",
    version="1",
    args=FaultyArgs,
    run="tests.support.faulty:run",
    summary="Does what decoders and networks do; for the tests.",
    renders=False,
    wall_seconds=_wall_seconds,
)
