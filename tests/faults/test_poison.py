"""What kills its worker, or its child, ends as failed with what is known; the next job runs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.records.results import Result
from posedrop.errors import StorageError
from tests.support import labs
from tests.support.lab import Servers
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import Child, World
from worker import room
from worker.jobs import infer


@pytest.mark.parametrize(
    ("how", "more", "attempts", "code", "words"),
    [
        ("segfault", {}, 3, "child_died", "SIGSEGV"),
        ("exit", {}, 3, "child_died", "exit code 7"),
        ("kill_worker", {}, 3, "child_died", "child process"),
        ("hang", {"wall_seconds": 8}, 3, "timeout", "no answer within 8 s"),
        ("memory", {}, 1, "out_of_memory", "MemoryError"),
        ("raise", {}, 1, "faulty", "never works"),
    ],
)
def test_a_child_that_fails_ends_its_run_and_no_other(
    servers: Servers, how: str, more: dict[str, float], attempts: int, code: str, words: str
) -> None:
    """The result says what happened, in which stage, and what the log said last."""
    labs.put(servers, f"poison/{how}.mp4", labs.asks(how, **more))
    labs.put(servers, f"poison/after-{how}.mp4", labs.asks())
    over = labs.result(servers, f"poison/{how}.mp4")
    assert (over["state"], over["attempts"], over["error"]["code"]) == ("failed", attempts, code)
    assert words in over["error"]["message"]
    assert over["error"]["stage"] == "infer"
    assert f"about to {how}" in over["error"]["log_tail"]
    assert labs.result(servers, f"poison/after-{how}.mp4")["state"] == "succeeded"


def test_a_run_whose_workers_are_killed_is_given_up(servers: Servers) -> None:
    """A killed worker raises nothing: its silence is counted. Three, and the run has failed."""
    labs.put(servers, "poison/kills.mp4", labs.asks("hang"))
    killed: set[str] = set()

    def over() -> bool:
        # The kernel, short of memory; then `restart: unless-stopped`.
        for number in ("1.json", "2.json", "3.json"):
            begun = labs.records(servers, "poison/kills.mp4/", number).keys() - killed
            for _ in begun:
                for name in servers.names("worker-gpu"):
                    servers.kill(name)
                    servers.start_worker("worker-gpu")
            killed.update(begun)
        return bool(labs.records(servers, "poison/kills.mp4/", "result.json"))

    servers.until(over, "the run to be given up", 180)
    result = labs.result(servers, "poison/kills.mp4")
    assert (result["state"], result["error"]["code"]) == ("failed", "worker_died")
    assert "given up after 3 attempts" in result["error"]["message"]
    assert len(labs.records(servers, "poison/kills.mp4/", "3.json")) == 1
    labs.put(servers, "poison/after-kills.mp4", labs.asks())
    assert labs.result(servers, "poison/after-kills.mp4")["state"] == "succeeded"


ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("run_analysis", {"frames_expected": "many"}),
    ("run_analysis", {"frames_expected": None}),
    ("run_analysis", {"rows": 2**63}),
    ("run_analysis", {"timings": [1]}),
    ("run_analysis", {"timings": {"infer": float("inf")}}),
    ("run_analysis", {"missing": [{"first": 1}]}),
    ("run_analysis", {"details": "none"}),
    ("render", {"timings": None}),
    ("render", {"timings": {"video": "long"}}),
    ("render", {"timings": {"video": float("nan")}}),
    ("render", {"timings": {}, "encode": {"used": "x264", "why": "y" * 10**6}}),
]


class Nonsense(Child):
    """A child, taken over or a bad plug-in's, that answers a task wrongly, and leaves no log."""

    def __init__(self, of: str, answer: dict[str, Any]) -> None:
        self.of = of
        self.answer = answer

    def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = super().call(task, payload, **more)
        if task == self.of:
            (Path(payload["out"]).parent / "run.log").unlink()
            return {**answer, **self.answer}
        return answer


@pytest.mark.parametrize(("task", "answer"), ANSWERS)
def test_an_answer_that_can_not_be_one_ends_its_run(
    world: World, monkeypatch: pytest.MonkeyPatch, task: str, answer: dict[str, Any]
) -> None:
    """It has failed, in words: such an answer is not asked for again and again."""
    drawn = replace(analyses.get("dummy"), renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": drawn})
    world.child = Nonsense(task, answer)
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.settle()
    (run,) = world.context.index.analyses().rows
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.code == "bad_answer"


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(2, "its folder is gone")])
@pytest.mark.parametrize("is_full", [False, True])
def test_what_nobody_foresaw_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, is_full: bool
) -> None:
    """Three times, and the run has failed; while the disk is full none of them counts."""

    def fails(*_: object) -> NoReturn:
        raise error

    def full(*_: object) -> NoReturn:
        raise StorageError("is the disk full?", code="scratch_unwritable")

    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    monkeypatch.setattr(infer, "_publish_inference", fails)
    if is_full:
        monkeypatch.setattr(room, "check_room", full)
    for _ in range(4):
        for message in world.messages():
            with contextlib.suppress(type(error)):  # for Dramatiq
                world.work(message)
                continue
            world.put_back([message])
    (run,) = world.context.index.analyses().rows
    result = world.storage.read_record(RESULTS, f"{run.run}/{layout.RESULT}", Result)
    if is_full:
        assert result is None
        return
    assert result is not None
    assert result.error is not None
    assert (result.state, result.error.code, result.attempts) == ("failed", "internal", 3)
