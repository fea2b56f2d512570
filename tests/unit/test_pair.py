"""Two children at one accelerator: one works, the other is ready; neither takes the other down."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from posedrop.buckets.records import Progress
from posedrop.errors import CancelledRunError, ChildDiedError
from worker.child.child import Child
from worker.child.pool import Pair

# -- what runs in the children (they import this file) ---------------------------------------------


def work(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Make ready, and work until a file is there; both as told."""
    report("load", 0, None)
    _do(payload.get("before", "nothing"))
    with report.turn():
        begun = time.monotonic()
        report("infer", 1, None)
        _do(payload.get("within", "nothing"))
        _wait_for(payload.get("until"))
        ended = time.monotonic()
    return {"begun": begun, "ended": ended, "pid": _pid()}


def plain(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Do the same without a word of turns."""
    begun = time.monotonic()
    report("infer", 1, None)
    _wait_for(payload.get("until"))
    return {"begun": begun, "ended": time.monotonic(), "pid": _pid()}


def beside(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    return {"accelerated": payload["device"] != "cpu"}


def ask_twice(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    with report.turn(), report.turn():
        return {}


def _pid() -> int:
    """Return this process' number where the tests are: within its walls it has another."""
    return int(Path("/proc/self").readlink().name)


def _wait_for(path: str | None) -> None:
    while path is not None and not Path(path).exists():
        time.sleep(0.01)


def _do(what: str) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hang":  # in C, with the interpreter's lock held
        ctypes.PyDLL(None).sleep(600)


# -- the parent ------------------------------------------------------------------------------------


class Job:
    """A call in a thread of its own."""

    def __init__(self, desk: Desk, task: str, payload: dict[str, Any], **options: Any) -> None:
        self.stages: list[str] = []
        self.stop = threading.Event()
        self.call: Future[dict[str, Any]] = desk.threads.submit(
            desk.pair.call,
            f"test_pair:{task}",
            payload,
            makes_ready=task != "plain",
            on_progress=self._note,
            should_stop=self.stop.is_set,
            log=None,
            **{"wall_seconds": 60, **options},
        )

    def _note(self, progress: Progress) -> None:
        self.stages.append(progress.stage)

    def until(self, stage: str) -> Job:
        """Wait for a stage."""
        deadline = time.monotonic() + 30
        while stage not in self.stages:
            assert time.monotonic() < deadline, self.stages
            assert not self.call.done(), self.call.exception() or self.call.result()
            time.sleep(0.01)
        return self

    def over(self) -> dict[str, Any]:
        """Return its answer."""
        return self.call.result(30)


class Desk:
    """A pair, and what its calls wait for."""

    def __init__(self, folder: Path, device: str = "cuda") -> None:
        self.folder = folder
        self.pair = Pair("test", folder, device=device, begins_with="test_pair:beside")
        self.threads = ThreadPoolExecutor(8)
        self.go = folder / "go"

    def begin(self, task: str = "work", *, waits: bool = False, **more: Any) -> Job:
        """Call a task; if it ``waits``, it works until :meth:`let_go`."""
        options = {name: more.pop(name) for name in ("wall_seconds",) if name in more}
        return Job(self, task, {**more, "until": str(self.go) if waits else None}, **options)

    def let_go(self) -> None:
        """Let what waits come to its end."""
        self.go.touch()

    def close(self) -> None:
        """End all of it."""
        self.let_go()
        self.pair.close()
        self.threads.shutdown()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    one = Desk(tmp_path)
    yield one
    one.close()


def test_the_next_is_ready_and_begins_when_the_last_has_ended(desk: Desk) -> None:
    """Both are loaded, in a process each, and one works: the turns don't overlap."""
    first = desk.begin(waits=True).until("infer")
    second = desk.begin().until("wait")
    assert "infer" not in second.stages
    desk.let_go()
    one, two = first.over(), second.over()
    assert one["ended"] <= two["begun"]
    assert one["pid"] != two["pid"]
    assert first.stages == ["load", "infer"]
    assert second.stages == ["load", "wait", "infer"]


def test_jobs_one_by_one_have_one_child(desk: Desk) -> None:
    """Its models stay loaded, and no second process takes memory for nothing."""
    assert len({desk.begin().over()["pid"] for _ in range(3)}) == 1


def test_without_an_accelerator_one_child_has_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would take of the processor what it is to save."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    desk = Desk(tmp_path, "cpu")
    desk.pair.start()
    first = desk.begin(waits=True).until("infer")
    waiting = [desk.begin() for _ in range(2)]
    desk.let_go()
    pids = {job.over()["pid"] for job in (first, *waiting)}
    desk.close()
    assert len(pids) == 1


def test_no_job_waits_for_imports_that_another_child_has_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second child starts, the first is free again, and takes the next job."""
    started = threading.Event()
    warm_up = Pair._warm_up

    def slow(self: Pair, child: Child) -> None:
        started.wait(30)
        warm_up(self, child)

    monkeypatch.setattr(Pair, "_warm_up", slow)
    first = desk.begin(waits=True).until("infer")
    second = desk.begin()
    desk.let_go()
    assert second.over()["pid"] == first.over()["pid"]
    started.set()


@pytest.mark.parametrize("tasks", [("plain", "work", "plain"), ("work", "plain", "work")])
def test_one_that_knows_no_turns_has_the_accelerator_from_its_start(
    desk: Desk, tasks: tuple[str, ...]
) -> None:
    """More calls than children, of both kinds: one at a time, and all come to their end."""
    begun = [desk.begin(tasks[0], waits=True).until("infer")]
    begun += [desk.begin(task, waits=True) for task in tasks[1:]]
    desk.let_go()
    times = sorted((answer["begun"], answer["ended"]) for answer in (job.over() for job in begun))
    for (_, ended), (following, _) in pairwise(times):
        assert ended <= following


@pytest.mark.parametrize(
    ("what", "options", "error", "words"),
    [
        ({"before": "die"}, {}, ChildDiedError, "SIGSEGV"),
        ({"before": "hang"}, {"wall_seconds": 1}, ChildDiedError, "no answer within 1 s"),
        ({}, {}, CancelledRunError, "cancelled"),
    ],
)
def test_what_befalls_the_next_leaves_the_one_at_work_alone(
    desk: Desk, what: dict[str, Any], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A decoder that dies or hangs before its turn, and a cancel, end that job and no other."""
    first = desk.begin(waits=True).until("infer")
    second = desk.begin(**what, **options)
    if error is CancelledRunError:
        second.until("wait").stop.set()
    with pytest.raises(error, match=words):
        second.over()
    third = desk.begin().until("wait")
    desk.let_go()
    assert first.over()["ended"] <= third.over()["begun"]


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        ({"within": "die"}, {}, "SIGSEGV"),
        ({"within": "hang"}, {"wall_seconds": 1}, "no answer within 1 s"),
    ],
)
def test_who_dies_at_work_gives_the_turn_back(
    desk: Desk, what: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    """The next one, ready, works on; waiting for its turn is none of its own time."""
    first = desk.begin(waits=True).until("infer")
    second = desk.begin(**what, **options).until("wait")
    if options:
        wait([second.call], timeout=1.5)  # longer than it may last
    assert not second.call.done()
    desk.let_go()
    first.over()
    third = desk.begin()
    with pytest.raises(ChildDiedError, match=words):
        second.over()
    third.over()


def test_close_ends_both(desk: Desk) -> None:
    """A worker that is stopped leaves neither at work, nor waiting."""
    first = desk.begin(waits=True).until("infer")
    second = desk.begin().until("wait")
    desk.pair.close()
    for job in (first, second):
        with pytest.raises(ChildDiedError, match="SIGKILL"):
            job.over()


def test_a_turn_in_a_turn_is_nonsense(desk: Desk) -> None:
    """A child that has the accelerator and asks for it would wait for itself."""
    with pytest.raises(ChildDiedError, match="nonsense"):
        desk.begin("ask_twice").over()
    desk.begin().over()
