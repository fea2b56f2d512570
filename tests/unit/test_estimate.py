"""When runs will be over, by workers' records that are replayed with runs of known length."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.runs.estimate import (
    AtWork,
    Model,
    Speeds,
    Work,
    at_one_worker,
    ends,
    network_left,
    render_left,
)
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.workers import Speed, Step
from tests.support.index_rows import NOW
from worker.child.process import PipeReporter

MODELS: list[Model] = [("deeplabcut_2d", ModelRef(name=name, digest=name * 16)) for name in "abc"]
SIZES = [(320, 240), (640, 480), (1280, 1024), (1920, 1080)]


def speed_of(work: Work, frames_per_second: float, step: Step = "network") -> Speed:
    """Return what a worker tells of a step."""
    return Speed(
        analysis=work.model[0],
        model=work.model[1],
        width=work.width,
        height=work.height,
        step=step,
        frames_per_second=frames_per_second,
        frames=work.frames,
        measured_at=NOW,
    )


@dataclass
class Replayed:
    """A worker that tells of its runs as a real one does, with a speed that is never quite even."""

    chance: random.Random
    fast: float
    """Frames per second of 640 x 480."""
    told: list[Speed] = field(default_factory=list)

    def usual(self, work: Work) -> dict[Step, float]:
        """Return the seconds that the steps of a run usually take."""
        larger = work.width * work.height / (640 * 480)
        network = work.frames * larger**0.9 * (1 + MODELS.index(work.model)) / self.fast
        drawing = work.frames * larger / 300
        return {"network": network, "tables": work.frames / 4000, "drawing": drawing}

    def run(
        self, work: Work, slower: Callable[[float], float] = lambda _: 1.0, most_loads: float = 8.0
    ) -> tuple[float, AtWork]:
        """Do a run; return how long it took, and what was told when half of that was over.

        Args:
            work: the run.
            slower: by how much the network is slower than usual, by the part of it that is done.
            most_loads: seconds.
        """
        steps = self.usual(work)
        elapsed, done, loads = 0.0, 0.0, self.chance.uniform(0.2, most_loads)
        tick = max(0.1, (loads + steps["network"]) / 300)
        said: list[tuple[float, dict[str, Any]]] = []
        report = PipeReporter(
            lambda message: said.append((elapsed, message["progress"])), lambda: elapsed
        )
        report("load", 0, None)
        while done < work.frames:
            elapsed += tick
            if elapsed > loads:
                uneven = self.chance.lognormvariate(0, 0.3) / slower(done / work.frames)
                done = min(work.frames, done + work.frames / steps["network"] * uneven * tick)
                report("infer", int(done), work.frames)
        spread = self.chance.uniform(0.9, 1.1)
        whole = elapsed + (steps["tables"] + steps["drawing"]) * spread
        self.told = [speed_of(work, work.frames / (elapsed - loads))]
        self.told += [
            speed_of(work, work.frames / seconds / spread, step)
            for step, seconds in steps.items()
            if step != "network"
        ]
        half = min(whole / 2, elapsed)
        at, progress = max((each for each in said if each[0] <= half), key=lambda each: each[0])
        return whole, AtWork("run", work, Progress.model_validate(progress), at)


def works(chance: random.Random) -> Work:
    """Return a run as a lab has them."""
    return Work(chance.choice(MODELS), chance.choice([600, 3000, 18_000]), *chance.choice(SIZES))


@pytest.mark.parametrize(
    ("known", "slower"),
    [
        ("the same", lambda _: 1.0),
        ("another size", lambda _: 1.0),
        ("another model", lambda _: 1.0),
        ("the same", lambda done: 2.5 if done > 0.2 else 1.0),
        ("two workers", lambda _: 1.0),
    ],
    ids=["known", "another size", "the first of its model", "slowed down", "two workers"],
)
def test_at_half_time_the_median_error_is_a_fifth_at_most(
    known: str, slower: Callable[[float], float]
) -> None:
    """Whatever was done before, and however uneven a worker is: 40 runs of each kind."""
    chance = random.Random(known)
    errors = []
    for _ in range(40):
        worker, work = Replayed(chance, chance.choice([5.0, 30.0, 200.0])), works(chance)
        size = chance.choice(SIZES) if known == "another size" else (work.width, work.height)
        model = MODELS[MODELS.index(work.model) - 1] if known == "another model" else work.model
        worker.run(Work(model, 600, *size))
        speeds = {"this": worker.told}
        if known == "two workers":
            other = Replayed(chance, worker.fast * 20)
            other.run(work)
            speeds["other"] = other.told
        whole, told = worker.run(work, slower)
        found, _ = at_one_worker(Speeds(speeds), [told], "this")
        guess = found["run"]
        left = whole - told.elapsed
        errors.append(abs(guess - left) / left if guess is not None else 1.0)
    assert statistics.median(errors) <= 0.2, sorted(errors)


def test_a_queue_before_two_workers_of_other_speeds_is_foretold() -> None:
    """Runs that wait are given to whichever worker is free first, each as fast as it is."""
    chance = random.Random(1)
    errors = []
    for _ in range(20):
        workers = {"slow": Replayed(chance, 20.0), "fast": Replayed(chance, 100.0)}
        model = chance.choice(MODELS)
        runs = {str(n): Work(model, 3000, *chance.choice(SIZES[:2])) for n in range(8)}
        for each in workers.values():
            each.run(Work(model, 600, *SIZES[0]))
        speeds = Speeds({name: each.told for name, each in workers.items()})
        told = ends(dict.fromkeys(workers, 0.0), speeds, runs)
        free = dict.fromkeys(workers, 0.0)
        for name, work in runs.items():
            at = min(free, key=lambda each: free[each])
            over = free[at] + workers[at].run(work, most_loads=2.0)[0]
            free[at] = over - sum(workers[at].usual(work)[step] for step in work.after)
            errors.append(abs(told[name] - over) / over)
    assert statistics.median(errors) <= 0.2, sorted(errors)


WORK = Work(MODELS[0], 1000, 640, 480)
FAST = Speeds({"w": [speed_of(WORK, 100.0), speed_of(WORK, 1.0, "drawing")]})


def at(stage: str, done: int = 0, rate: float | None = None, **more: float) -> AtWork:
    """Return a run at a stage; 1,000 frames from the network on."""
    total = 1000 if stage in {"infer", "idle", "render", "decode", "confirm"} else None
    progress = Progress(stage=stage, done=done, total=total, frames_per_second=rate)
    return AtWork(stage, WORK, progress, elapsed=more.get("elapsed", 5.0))


@pytest.mark.parametrize(
    ("job", "left"),
    [
        (at("claimed"), 10.0),
        (at("wait"), 10.0),
        (at("decode", 400, rate=500.0), 10.0),  # what is passed over says nothing of the network
        (at("confirm", 400, rate=500.0), 0.0),
        (at("infer", 500, rate=50.0), 10.0),
        (at("infer", 500), 5.0),
        (at("infer", 500, rate=0.0), 5.0),  # it hangs at this moment
        (at("infer", 1000, rate=50.0), 0.0),
        (at("infer", 1200, rate=50.0), 0.0),
        (at("write"), 0.0),
        (at("a plug-in's own"), None),
        (AtWork("x", None, Progress(stage="load"), 5), None),
        (AtWork("x", None, Progress(stage="idle", done=10, total=30), 5), 10.0),
        (AtWork("x", None, Progress(stage="idle", done=0, total=30), 5), None),
    ],
)
def test_the_network_is_free_when_its_frames_are_done(job: AtWork, left: float | None) -> None:
    """By the frames a second of now, else by those of before, else by what this run has done."""
    assert network_left(FAST, job) == left


def test_a_second_run_of_a_worker_waits_for_its_first() -> None:
    """A worker fetches its next film meanwhile: that run is over after the network was free."""
    jobs = [at("wait", elapsed=1.0), at("infer", 500, rate=50.0), at("write")]
    found, free = at_one_worker(FAST, jobs, "w")
    assert (found, free) == ({"infer": 1010.0, "wait": 1020.0, "write": 1000.0}, 20.0)
    idle = [AtWork(name, None, Progress(stage="idle", done=10, total=30), 5) for name in "ab"]
    assert at_one_worker(FAST, idle, "w") == (
        {"a": 10.0, "b": 10.0},
        10.0,
    )  # none needs the network
    found, free = at_one_worker(FAST, [at("a plug-in's own"), at("wait"), at("write")], "w")
    assert (found["wait"], found["write"], free) == (None, 1000.0, None)
    assert render_left(FAST, at("render", 900, rate=20.0)) == 5.0
    assert render_left(FAST, at("fetch")) == 1000.0
    assert render_left(FAST, at("decode", 900, rate=500.0)) == 1000.0
    assert render_left(FAST, at("publish")) == 0.0
    assert render_left(Speeds(), at("fetch")) is None


def test_steps_are_not_taken_for_each_other() -> None:
    """That tables are made at 4,000 frames a second says nothing of the network."""
    tables = Speeds({"w": [speed_of(WORK, 4000.0, "tables")]})
    assert tables.seconds(WORK) is None
    both = Speeds({"w": [speed_of(WORK, 100.0), speed_of(WORK, 4000.0, "tables")]})
    assert (both.seconds(WORK), both.rest(WORK)) == (10.0, 0.25)
    newest = Speeds({"w": [speed_of(WORK, 10.0), speed_of(WORK, 100.0)]})
    assert newest.seconds(WORK) == newest.seconds(WORK, worker="another") == 10.0


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
    st.lists(st.integers(1, 10_000), max_size=9),
)
def test_runs_that_wait_come_in_their_order(busy: list[float], frames: list[int]) -> None:
    """None ends before it could have begun, and all workers together do no more than they can."""
    waiting = {str(n): Work(MODELS[0], each, 640, 480, ()) for n, each in enumerate(frames)}
    free: dict[str, float | None] = {f"w{n}": each for n, each in enumerate(busy)}
    found = ends(free, FAST, waiting)
    assert list(found) == list(waiting)
    for name, work in waiting.items():
        assert found[name] >= min(busy) + work.frames / 100 - 1e-6
    if frames:
        assert max(found.values()) >= (min(busy) * len(busy) + sum(frames) / 100) / len(busy) - 1e-6


def test_behind_what_is_not_known_nothing_is_foretold() -> None:
    """No worker, a worker that is at something unknown, a run of an unknown film or model."""
    stranger = Work(MODELS[1], 10, 640, 480)
    assert ends({}, FAST, {"a": WORK}) == ends({"w": None}, FAST, {"a": WORK}) == {}
    assert list(ends({"w": 0.0}, FAST, {"a": WORK, "b": None, "c": WORK})) == ["a"]
    assert list(ends({"w": 0.0}, FAST, {"a": WORK, "b": stranger, "c": WORK})) == ["a"]
