"""When runs will be over: by how fast the workers that live say that each step of a model is.

Nothing depends on an estimate. All times are seconds, all speeds frames per second.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.workers import Speed, Step

#: Stages of a run before its network has begun.
_BEFORE = frozenset({"claimed", "fetch the model", "fetch", "load", "wait", "decode"})
#: Stages of a run that has had its network.
_AFTER = frozenset({"confirm", "track", "filter", "write", "publish"})

Model = tuple[str, ModelRef | None]
"""An analysis, and the model that it is done with."""


@dataclass(frozen=True)
class Work:
    """What of a run decides how long it takes."""

    model: Model
    frames: int
    """That were asked for."""
    width: int
    """Pixels of what goes through the network."""
    height: int
    """Pixels."""
    after: tuple[Step, ...] = ("tables", "drawing")
    """The steps behind the network."""


class Speeds:
    """How fast each step of each model is on each worker, by the size of the frames."""

    def __init__(self, told: Mapping[str, Iterable[Speed]] | None = None) -> None:
        """Take what the workers that live say, by their ids."""
        self._known: dict[tuple[Model, Step], dict[str, dict[tuple[int, int], float]]] = {}
        for worker, speeds in (told or {}).items():
            for each in speeds:  # the newest last
                of_step = self._known.setdefault(((each.analysis, each.model), each.step), {})
                of_step.setdefault(worker, {})[each.width, each.height] = each.frames_per_second

    def seconds(
        self, work: Work, step: Step = "network", worker: str | None = None
    ) -> float | None:
        """Return how long a step of a run will take; None: nobody has done it yet.

        Args:
            work: the run.
            step: of it.
            worker: that does it. Where it has not told of this step, or is None: the median of
                those that have.
        """
        known = self._known.get((work.model, step)) or self._of_others(step)
        if worker in known:
            return work.frames / _scaled(known[worker], work)
        if not known:
            return None
        return statistics.median(work.frames / _scaled(sizes, work) for sizes in known.values())

    def _of_others(self, step: Step) -> dict[str, dict[tuple[int, int], float]]:
        """Return how fast a step is with other models: what follows a network differs by little."""
        if step == "network":
            return {}
        alike = (known for (_, each), known in self._known.items() if each == step)
        return next(alike, {})

    def rest(self, work: Work) -> float:
        """Return how long what follows the network takes, as far as that is known."""
        return sum(self.seconds(work, step) or 0.0 for step in work.after)


def _scaled(sizes: Mapping[tuple[int, int], float], work: Work) -> float:
    """Return the speed for frames of one size: if it is not known, by pixels from the nearest."""
    if (work.width, work.height) in sizes:
        return sizes[work.width, work.height]
    pixels = max(1, work.width * work.height)
    width, height = min(sizes, key=lambda size: abs(size[0] * size[1] - pixels))
    return sizes[width, height] * max(1, width * height) / pixels


@dataclass(frozen=True)
class AtWork:
    """A run that a worker is at."""

    name: str
    work: Work | None
    """None: its film is not known."""
    progress: Progress
    elapsed: float
    """Since this attempt began, seconds."""


def network_left(speeds: Speeds, job: AtWork, worker: str | None = None) -> float | None:
    """Return for how long a run will have the network; None: that is not known."""
    progress = job.progress
    if progress.stage in _AFTER:
        return 0.0
    whole = speeds.seconds(job.work, worker=worker) if job.work is not None else None
    if progress.stage in _BEFORE:
        return whole
    if not progress.total:
        return None
    speed = progress.frames_per_second
    if not speed and job.work is not None and whole:
        speed = job.work.frames / whole
    if not speed and progress.done and job.elapsed > 0:
        speed = progress.done / job.elapsed
    return max(0, progress.total - progress.done) / speed if speed else None


def render_left(speeds: Speeds, job: AtWork) -> float | None:
    """Return for how long a run will be drawn; None: that is not known."""
    progress = job.progress
    if progress.stage == "publish":
        return 0.0
    if progress.total and progress.frames_per_second and progress.stage not in _BEFORE:
        return max(0, progress.total - progress.done) / progress.frames_per_second
    return speeds.seconds(job.work, "drawing") if job.work is not None else None


def at_one_worker(
    speeds: Speeds, jobs: Sequence[AtWork], worker: str | None = None
) -> tuple[dict[str, float | None], float | None]:
    """Return when the runs at a worker's network will be over, and when that will be free.

    Those that wait for it come one after the other behind those that have it, in the order in which
    they came.

    Args:
        speeds: as the workers tell them.
        jobs: of the worker, infer's alone.
        worker: its id.

    Returns:
        Seconds, by the names of the runs; None where it is not known, as of all behind such a one.
    """
    free: float | None = 0.0
    found: dict[str, float | None] = {}
    for job in sorted(jobs, key=lambda job: (job.progress.stage in _BEFORE, -job.elapsed)):
        left = network_left(speeds, job, worker)
        if job.progress.stage in _AFTER:
            found[job.name] = speeds.rest(job.work) if job.work is not None else None
            continue
        waits = free if job.progress.stage in _BEFORE else 0.0
        over = waits + left if waits is not None and left is not None else None
        rest = speeds.rest(job.work) if job.work is not None else 0.0
        found[job.name] = over + rest if over is not None else None
        free = max(free, over) if free is not None and over is not None else None
    return found, free


def ends(
    free: Mapping[str, float | None], speeds: Speeds, waiting: Mapping[str, Work | None]
) -> dict[str, float]:
    """Return in how many seconds runs that wait will be over.

    Args:
        free: in how many seconds each gpu worker will be free, by its id.
        speeds: as the workers tell them.
        waiting: the runs, in the order in which they come; None: a film that is not known.

    Returns:
        Nothing of those behind a run of which that is not known.
    """
    if not free or None in free.values():
        return {}
    numbers = count()  # of workers that are free at one time, who was so first
    heap = [(each or 0.0, next(numbers), worker) for worker, each in free.items()]
    heapq.heapify(heap)
    found: dict[str, float] = {}
    for name, work in waiting.items():
        begins, _, worker = heap[0]
        seconds = speeds.seconds(work, worker=worker) if work is not None else None
        if work is None or seconds is None:
            break
        heapq.heapreplace(heap, (begins + seconds, next(numbers), worker))
        found[name] = begins + seconds + speeds.rest(work)
    return found
