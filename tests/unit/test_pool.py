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

from posedrop.buckets.records.attempts import Progress
from posedrop.errors import CancelledRunError, ChildDiedError
from worker.child.child import Child
from worker.child.pool import ChildPool

# -- what runs in the children (they import this file) ---------------------------------------------


def work(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Make ready, and work until a file is there; both as told."""
    report("load", 0, None)
    _do(payload.get("before", "nothing"))
    with report.permit():
        begun = time.monotonic()
        report("infer", 1, None)
        _do(payload.get("within", "nothing"))
        _wait_for(payload.get("until"))
        ended = time.monotonic()
    return {"begun": begun, "ended": ended, "pid": _pid()}


def plain(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Work until a file is there, without a word of permits."""
    begun = time.monotonic()
    report("infer", 1, None)
    _wait_for(payload.get("until"))
    return {"begun": begun, "ended": time.monotonic(), "pid": _pid()}


def beside(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    return {"accelerated": payload["device"] != "cpu"}


def ask_twice(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    with report.permit(), report.permit():
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

    def __init__(self, bench: Bench, task: str, payload: dict[str, Any], **options: Any) -> None:
        self.stages: list[str] = []
        self.stop = threading.Event()
        self.call: Future[dict[str, Any]] = bench.threads.submit(
            bench.pool.call,
            f"test_pool:{task}",
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


class Bench:
    """A pool, and what its calls wait for."""

    def __init__(self, folder: Path, device: str = "cuda") -> None:
        self.folder = folder
        self.pool = ChildPool("test", folder, device=device, begins_with="test_pool:beside")
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
        self.pool.close()
        self.threads.shutdown()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    one = Bench(tmp_path)
    yield one
    one.close()


def test_the_next_is_ready_and_begins_when_the_last_has_ended(bench: Bench) -> None:
    """Both are loaded, in a process each, and one works: the permits don't overlap."""
    first = bench.begin(waits=True).until("infer")
    second = bench.begin().until("wait")
    assert "infer" not in second.stages
    bench.let_go()
    one, two = first.over(), second.over()
    assert one["ended"] <= two["begun"]
    assert one["pid"] != two["pid"]
    assert first.stages == ["load", "infer"]
    assert second.stages == ["load", "wait", "infer"]


def test_jobs_one_by_one_have_one_child(bench: Bench) -> None:
    """Its models stay loaded, and no second process takes memory for nothing."""
    assert len({bench.begin().over()["pid"] for _ in range(3)}) == 1


def test_without_an_accelerator_one_child_has_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would take of the processor what it is to save."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    bench = Bench(tmp_path, "cpu")
    bench.pool.start()
    first = bench.begin(waits=True).until("infer")
    waiting = [bench.begin() for _ in range(2)]
    bench.let_go()
    pids = {job.over()["pid"] for job in (first, *waiting)}
    bench.close()
    assert len(pids) == 1


def test_no_job_waits_for_imports_that_another_child_has_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second child starts, the first is free again, and takes the next job."""
    started = threading.Event()
    warm_up = ChildPool._warm_up

    def slow(self: ChildPool, child: Child) -> None:
        started.wait(30)
        warm_up(self, child)

    monkeypatch.setattr(ChildPool, "_warm_up", slow)
    first = bench.begin(waits=True).until("infer")
    second = bench.begin()
    bench.let_go()
    assert second.over()["pid"] == first.over()["pid"]
    started.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("what", ["no thread", "an error"])
def test_a_second_child_that_can_not_be_warmed_up_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Out of threads, or by an error that nobody foresaw: the next look has it."""
    failed = threading.Event()
    start, begun = threading.Thread.start, ChildPool._begun

    def starts(thread: threading.Thread) -> None:
        if "_warm_up" in thread.name and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def fails(self: ChildPool, child: Child) -> bool | None:
        if "_warm_up" in threading.current_thread().name and not failed.is_set():
            failed.set()
            raise OSError("by chance")
        return begun(self, child)

    if what == "no thread":
        monkeypatch.setattr(threading.Thread, "start", starts)
    else:
        monkeypatch.setattr(ChildPool, "_begun", fails)
    first = bench.begin(waits=True).until("infer")
    second = bench.begin().until("wait")
    assert failed.is_set()
    bench.let_go()
    assert first.over()["pid"] != second.over()["pid"]


@pytest.mark.parametrize("tasks", [("plain", "work", "plain"), ("work", "plain", "work")])
def test_one_that_knows_no_permits_has_the_accelerator_from_its_start(
    bench: Bench, tasks: tuple[str, ...]
) -> None:
    """More calls than children, of both kinds: one at a time, and all come to their end."""
    begun = [bench.begin(tasks[0], waits=True).until("infer")]
    begun += [bench.begin(task, waits=True) for task in tasks[1:]]
    bench.let_go()
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
    bench: Bench, what: dict[str, Any], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A decoder that dies or hangs before its permit, and a cancel, end that job and no other."""
    first = bench.begin(waits=True).until("infer")
    second = bench.begin(**what, **options)
    if error is CancelledRunError:
        second.until("wait").stop.set()
    with pytest.raises(error, match=words):
        second.over()
    third = bench.begin().until("wait")
    bench.let_go()
    assert first.over()["ended"] <= third.over()["begun"]


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        ({"within": "die"}, {}, "SIGSEGV"),
        ({"within": "hang"}, {"wall_seconds": 1}, "no answer within 1 s"),
    ],
)
def test_who_dies_at_work_gives_the_permit_back(
    bench: Bench, what: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    """The next one, ready, works on; waiting for its permit is none of its own time."""
    first = bench.begin(waits=True).until("infer")
    second = bench.begin(**what, **options).until("wait")
    if options:
        wait([second.call], timeout=1.5)  # longer than it may last
    assert not second.call.done()
    bench.let_go()
    first.over()
    third = bench.begin()
    with pytest.raises(ChildDiedError, match=words):
        second.over()
    third.over()


def test_close_ends_both(bench: Bench) -> None:
    """A worker that is stopped leaves neither at work, nor waiting."""
    first = bench.begin(waits=True).until("infer")
    second = bench.begin().until("wait")
    bench.pool.close()
    for job in (first, second):
        with pytest.raises(ChildDiedError, match="SIGKILL"):
            job.over()


def test_a_permit_in_a_permit_is_nonsense(bench: Bench) -> None:
    """A child that has the accelerator and asks for it would wait for itself."""
    with pytest.raises(ChildDiedError, match="nonsense"):
        bench.begin("ask_twice").over()
    bench.begin().over()
