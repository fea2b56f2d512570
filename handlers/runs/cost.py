"""What a run will cost: whether it needs a network, and for how many seconds it will work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers.context import Context
from handlers.runs.validation import ValidRequest
from posedrop import analyses
from posedrop.api.runs import Cost
from posedrop.buckets import layout
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.videos import Probe
from posedrop.buckets.records.workers import Speed, Step
from posedrop.errors import StorageError
from posedrop.index.rows import AnalysisRow

#: Of what is there already.
NOTHING = Cost(network=False, seconds=0)


def of_run(context: Context, row: AnalysisRow | None) -> Cost | None:
    """Return what a run costs that was asked for; None: its video is not known yet.

    What is over costs nothing; of one that goes on, all of it counts.
    """
    if row is None:
        return None
    if row.finished_at is not None:
        return NOTHING
    bucket, key = context.settings.results_bucket, layout.Run(row.run).request
    request = context.storage.read_whole_record(bucket, key, Request)
    return of(context, request) if request is not None else None


def of(context: Context, request: Request) -> Cost:
    """Return what a run costs that is made, or is to be made.

    ``seconds`` is a sum over its steps: frames by the frames a second that the workers which live
    have told of for this analysis, model and size of frames, the newest of each step. It is None
    where one of them is not known. The wait for a worker is not in it.
    """
    known = _newest(context, request)
    frames = _frames(request)
    steps = _steps(request)
    # Nobody measures what is made of another run's poses.
    is_known = request.poses_of is None and all(step in known for step in steps)
    seconds = sum(frames / known[step].frames_per_second for step in steps) if is_known else None
    return Cost(
        network=request.needs_network,
        seconds=round(seconds, 1) if seconds is not None else None,
    )


def _steps(request: Request) -> list[Step]:
    behind = steps_behind(request.analysis, request.args)
    return ["network", *behind] if request.needs_network else list(behind)


def steps_behind(name: str, args: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps of a run behind its network.

    Raises:
        BadRequestError: there is no analysis of this name here.
    """
    analysis = analyses.get(name)
    steps: list[Step] = []
    if analysis.finish is not None:
        steps.append("arima" if args.get("filter") == "arima" else "tables")
    style = args.get("style")
    if analysis.renders and not (isinstance(style, dict) and style.get("video") is False):
        steps.append("drawing")
    return tuple(steps)


def of_many(
    context: Context, wanted: ValidRequest, sizes: Mapping[tuple[int, int], int]
) -> float | None:
    """Return the seconds that runs of one request take together, each with its network.

    Args:
        context: the handlers' tools.
        wanted: the request.
        sizes: how many frames there are, by their width and height in pixels.

    Returns:
        None: how fast one of the sizes is, is not known.
    """
    model = wanted.model
    total = 0.0
    for (width, height), frames in sizes.items():
        request = Request.model_construct(
            analysis=wanted.analysis.name,
            args={**wanted.args, "start": None, "stop": None, "stride": None},
            model=ModelRef(name=model.name, digest=model.digest) if model is not None else None,
            probe=Probe.model_construct(width=width, height=height, frames=frames),
            needs_network=True,
        )
        seconds = of(context, request).seconds
        if seconds is None:
            return None
        total += seconds
    return round(total, 1) if sizes else 0.0


def _frames(request: Request) -> int:
    return frames_asked(request.args, request.probe.frames)


def frames_asked(args: Mapping[str, Any], most: int) -> int:
    """Return how many frames of a film with ``most`` of them are asked for."""
    told = [args.get(name) for name in ("start", "stop", "stride")]
    # A plug-in may mean something else by these.
    start, stop, stride = (value if isinstance(value, int) else None for value in told)
    return len(range(max(start or 0, 0), most if stop is None else min(stop, most), stride or 1))


def _newest(context: Context, request: Request) -> dict[Step, Speed]:
    """Return how fast each step was on the last film like that of a request."""
    digest = request.model.digest if request.model is not None else None
    try:
        told = context.choosing.workers.speeds(context.storage, context.settings, context.clock())
    except StorageError:
        return {}
    found: dict[Step, Speed] = {}
    for speed in sorted(told, key=lambda each: each.measured_at):
        its = speed.model.digest if speed.model is not None else None
        size = speed.width, speed.height
        if (speed.analysis, its, size) == (request.analysis, digest, request.frame_size):
            found[speed.step] = speed
    return found
