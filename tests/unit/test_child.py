"""The child process: it may die, hang, lie or swallow memory; the parent goes on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posedrop.buckets.records.attempts import Progress
from posedrop.errors import (
    AnalysisError,
    CancelledRunError,
    ChildDiedError,
    ModelError,
    RefusedVideoError,
    StorageError,
)
from worker import limits
from worker.child import patience
from worker.child.child import Child
from worker.child.process import PipeReporter
from worker.limits import Limits

# -- what runs in the child (it imports this file) ---------------------------

Report = Callable[[str, int, int | None], None]


def pid_outside() -> int:
    """Return this process' number where the tests are: within its walls it has another."""
    return int(Path("/proc/self").readlink().name)


def echo(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    report("echo", 1, 1)
    return {"payload": payload, "pid": pid_outside()}


def die_by_signal(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    print("about to die", flush=True)
    os.kill(os.getpid(), payload["signal"])
    return {}


def die_by_segfault(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    ctypes.string_at(0)
    return {}


def exit_hard(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    os._exit(7)


def hang(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    """Hang as a decoder does: in C, with the interpreter's lock held."""
    report("hang", pid_outside(), None)
    ctypes.PyDLL(None).sleep(600)
    return {}


def hang_with_grandchild(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    grandchild = subprocess.Popen(["sleep", "600"])
    report("hang", 0, None)
    grandchild.wait()
    return {}


def fail(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    match payload["how"]:
        case "typed":
            raise ModelError("the snapshot is torn", code="model_damaged", field="args.snapshot")
        case "plugin":

            class PluginModelError(ModelError):
                """A plug-in's own."""

            raise PluginModelError("of a plug-in", code="odd")
        case "store":
            raise StorageError("the store is away, says a decoder" * 1000, code="No Code!")
        case "cancelled":
            raise CancelledRunError("somebody asked for an end, says a decoder")
        case "disk":
            try:
                Path("/dev/full").write_text("no space left on this device")
            except OSError as error:
                raise RefusedVideoError("can't be decoded", code="not_a_video") from error
        case "memory":
            raise MemoryError("no room for 1 TB")
        case "torch":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB")
        case "exit":
            sys.exit("a library gives up")
        case _:
            raise ZeroDivisionError("by chance")


def take(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    """Take as much as asked of memory, of a file, or of threads' stacks."""
    if size := payload.get("memory"):
        bytearray(size)
    if size := payload.get("file"):
        with (Path.home() / "film").open("wb") as file:
            file.truncate(size)
    for _ in range(payload.get("threads", 0)):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return {}


def make_off(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    """Put something else in the place of its job's film, or of the whole folder."""
    job = Path(payload["job"]).resolve()
    if payload["what"] == "folder":
        job.rename(job.with_name("elsewhere"))
    else:
        (job / "video").unlink()
        (job / "video").mkdir()
        (job / "video/film").write_text("another")
        (job / "shut").mkdir(0)
    return {}


def no_json(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    return {"answer": object()}


def environment(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    import resource

    return {
        "environ": dict(os.environ),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "pid": pid_outside(),
        "cwd_is_importable": "" in sys.path or os.getcwd() in sys.path,  # noqa: PTH109
        "uid": os.getuid(),
    }


def connect(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    try:
        socket.create_connection(("127.0.0.1", payload["port"]), timeout=5).close()
    except OSError as error:
        return {"connected": False, "why": str(error)}
    return {"connected": True}


def print_everywhere(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    print("python's stdout", payload["word"])
    print("python's stderr", payload["word"], file=sys.stderr)
    os.write(1, f"C's stdout {payload['word']}\n".encode())
    subprocess.run(["echo", "a subprocess", payload["word"]], check=True)
    return {}


def write_nonsense(payload: dict[str, Any], report: Report) -> dict[str, Any]:  # noqa: ARG001
    """Overwrite the protocol's pipe, as a compromised library might."""
    fds = [int(fd.name) for fd in Path("/proc/self/fd").iterdir()]
    for fd in fds:
        try:
            if fd > 2 and str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("pipe:"):
                os.write(fd, payload["bytes"].encode())
        except OSError:
            continue
    time.sleep(600)
    return {}


def report_much(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    for frame in range(payload["frames"] + 1):
        report("infer", frame, payload["frames"])
    return {}


def stop_short(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Report some frames, and nothing more."""
    for frame in range(payload["frames"]):
        time.sleep(0.05)
        report("infer", frame, None)
    time.sleep(600)
    return {}


# -- the parent --------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def child(scratch: Path) -> Iterator[Child]:
    one = Child("test", scratch)
    yield one
    one.close()


def call(child: Child, function: str, scratch: Path, **options: Any) -> dict[str, Any]:
    folder = scratch / "job"
    folder.mkdir(exist_ok=True)
    defaults: dict[str, Any] = {
        "folder": folder,
        "on_progress": lambda progress: None,  # noqa: ARG005
        "should_stop": lambda: False,
        "wall_seconds": 60,
        "log": folder / "run.log",
    }
    payload = options.pop("payload", {})
    return child.call(f"test_child:{function}", payload, **{**defaults, **options})


def test_a_film_that_hangs_in_its_middle_is_ended(
    child: Child, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was heard of for longer than it may be silent; then nothing follows."""
    call(child, "echo", scratch)  # or its imports would count as silence
    monkeypatch.setattr(patience, "QUIET_SECONDS", 1.5)
    told: list[int] = []
    with pytest.raises(ChildDiedError, match="no further frame within") as caught:
        call(
            child,
            "stop_short",
            scratch,
            payload={"frames": 40},
            wall_seconds=patience.Patience(200_000, 0.0001),
            on_progress=lambda progress: told.append(progress.done),
        )
    assert (caught.value.code, child.pid) == ("timeout", None)
    assert max(told) > 35


def gone_within(pid: int, seconds: float) -> bool:
    """Tell whether a process ends: neither running nor a zombie of ours."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z" and os.getpid() != _parent_of(pid):
            return True  # dead; whoever adopted it has yet to reap it
        time.sleep(0.01)
    return False


def of_session(session: int) -> list[int]:
    """Return the processes of a session that are no zombies: all that a child has started."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = each.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(each.parent.name))
    return found


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_answer_and_progress_come_back(child: Child, scratch: Path) -> None:
    """A task's dictionary and its reports arrive; it ran in another process, of a group of ours."""
    seen: list[Progress] = []
    answer = call(child, "echo", scratch, payload={"a": [1, None, "é"]}, on_progress=seen.append)
    assert answer["payload"] == {"a": [1, None, "é"]}
    assert child.pid is not None
    assert os.getsid(answer["pid"]) == child.pid
    assert seen == [Progress(stage="echo", done=1, total=1)]


@pytest.mark.parametrize("what", ["film", "folder"])
def test_what_a_job_was_given_comes_back(child: Child, scratch: Path, what: str) -> None:
    """Whatever a child does to its job's folder: the film is the one that it was handed."""
    job = scratch / "job"
    job.mkdir()
    (job / "video").write_text("film")
    payload = {"job": str(job), "what": what}
    if what == "film":
        assert call(child, "make_off", scratch, payload=payload) == {}
    else:
        with pytest.raises(ChildDiedError, match="took its job's folder away"):
            call(child, "make_off", scratch, payload=payload)
        assert child.pid is None
    assert not job.is_symlink()
    assert (job / "video").read_text() == "film"
    assert call(child, "echo", scratch)


def test_payload_larger_than_a_pipe(child: Child, scratch: Path) -> None:
    """A payload larger than a pipe's buffer arrives whole."""
    text = "x" * 1_000_000
    assert call(child, "echo", scratch, payload={"t": text})["payload"] == {"t": text}


def test_stays_warm(child: Child, scratch: Path) -> None:
    """Two calls are served by one process."""
    first = call(child, "echo", scratch)["pid"]
    assert first == call(child, "echo", scratch)["pid"]


@pytest.mark.parametrize(
    ("function", "payload", "words"),
    [
        ("die_by_signal", {"signal": int(signal.SIGKILL)}, "SIGKILL"),
        ("die_by_signal", {"signal": int(signal.SIGABRT)}, "SIGABRT"),
        ("die_by_segfault", {}, "SIGSEGV"),
        ("exit_hard", {}, "exit code 7"),
    ],
)
def test_death_is_named_and_survived(
    child: Child, scratch: Path, function: str, payload: dict[str, Any], words: str
) -> None:
    """A child that dies is reported with the signal or the exit code; the next call works."""
    with pytest.raises(ChildDiedError, match=words) as caught:
        call(child, function, scratch, payload=payload)
    assert caught.value.code == "child_died"
    assert child.pid is None
    assert os.getsid(call(child, "echo", scratch)["pid"]) == child.pid


def test_segfault_leaves_its_traceback_in_the_log(child: Child, scratch: Path) -> None:
    """The run's log says in which Python line a crash in C happened."""
    with pytest.raises(ChildDiedError):
        call(child, "die_by_segfault", scratch)
    assert "die_by_segfault" in (scratch / "job/run.log").read_text()


def test_cancel_kills_what_hangs(child: Child, scratch: Path) -> None:
    """A child that hangs in C, holding the GIL, is gone when its call has ended by a cancel."""
    pids: list[int] = []
    with pytest.raises(CancelledRunError):
        call(
            child,
            "hang",
            scratch,
            should_stop=lambda: bool(pids),
            on_progress=lambda progress: pids.append(progress.done),
        )
    assert gone_within(pids[0], 1)
    assert os.getsid(call(child, "echo", scratch)["pid"]) == child.pid


def test_cancel_kills_grandchildren(child: Child, scratch: Path) -> None:
    """What the child itself started is killed with it."""
    there: list[int] = []
    child.start()
    session = child.pid
    assert session is not None
    with pytest.raises(CancelledRunError):
        call(
            child,
            "hang_with_grandchild",
            scratch,
            should_stop=lambda: bool(there),
            on_progress=lambda progress: there.extend(of_session(session)),  # noqa: ARG005
        )
    assert len(there) > 2
    assert all(gone_within(pid, 5) for pid in there)


def test_time_limit(child: Child, scratch: Path) -> None:
    """A task that takes longer than its wall time is killed: code ``timeout``."""
    with pytest.raises(ChildDiedError, match=r"0\.5 s") as caught:
        call(child, "hang", scratch, wall_seconds=0.5)
    assert caught.value.code == "timeout"
    assert os.getsid(call(child, "echo", scratch)["pid"]) == child.pid


def test_what_on_progress_raises_ends_the_child(child: Child, scratch: Path) -> None:
    """An error of the caller's own leaves no child behind at work."""

    def refuse(progress: Progress) -> None:
        raise LookupError(progress.stage)

    with pytest.raises(LookupError, match="hang"):
        call(child, "hang", scratch, on_progress=refuse)
    assert child.pid is None


def test_typed_error_arrives_as_itself(child: Child, scratch: Path) -> None:
    """A PosedropError comes back as its class, with code, message and field; the child lives on."""
    pid = call(child, "echo", scratch)["pid"]
    with pytest.raises(ModelError) as caught:
        call(child, "fail", scratch, payload={"how": "typed"})
    error = caught.value
    assert (type(error), error.code, error.message, error.field) == (
        ModelError,
        "model_damaged",
        "the snapshot is torn",
        "args.snapshot",
    )
    assert call(child, "echo", scratch)["pid"] == pid


def test_plugins_error_arrives_as_the_nearest_known(child: Child, scratch: Path) -> None:
    """A subclass that the parent doesn't know comes back as its nearest base of ours."""
    with pytest.raises(ModelError) as caught:
        call(child, "fail", scratch, payload={"how": "plugin"})
    assert (type(caught.value), caught.value.code) == (ModelError, "odd")


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("memory", "out_of_memory", "MemoryError: no room for 1 TB"),
        ("torch", "out_of_memory", "can't allocate memory"),
        ("exit", "internal", "SystemExit: a library gives up"),
        ("other", "internal", "ZeroDivisionError: by chance"),
    ],
)
def test_unforeseen_error(child: Child, scratch: Path, how: str, code: str, words: str) -> None:
    """Any other exception is an AnalysisError; its traceback is in the log; a new child follows."""
    pid = call(child, "echo", scratch)["pid"]
    with pytest.raises(AnalysisError, match=words) as caught:
        call(child, "fail", scratch, payload={"how": how})
    assert (type(caught.value), caught.value.code) == (AnalysisError, code)
    assert "Traceback" in (scratch / "job/run.log").read_text()
    assert call(child, "echo", scratch)["pid"] != pid


@pytest.mark.parametrize(
    ("how", "code"), [("store", "internal"), ("cancelled", "cancelled"), ("disk", "disk_full")]
)
def test_what_only_the_parent_can_know_is_not_believed(
    child: Child, scratch: Path, how: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No child holds a run up by saying that the store is away, the disk full, or an end wanted."""
    # Whatever the disk of this machine holds.
    half_full = SimpleNamespace(total=2 * 10**9, used=10**9, free=10**9)
    monkeypatch.setattr("worker.room.shutil.disk_usage", lambda _: half_full)
    with pytest.raises(AnalysisError) as caught:
        call(child, "fail", scratch, payload={"how": how})
    assert type(caught.value) is AnalysisError
    assert caught.value.code == code
    assert len(caught.value.message) <= 2000


def test_a_full_disk_is_nobodys_fault(child: Child, scratch: Path) -> None:
    """Where the parent finds no room either, it is a StorageError, for another try."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    child.start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match="POSEDROP_SCRATCH_DIR full"):
            call(child, "fail", scratch, payload={"how": "disk"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        ({"memory": 200 << 20}, "out_of_memory", "MemoryError"),
        ({"file": 5 << 20}, "file_too_large", "POSEDROP_CHILD_FILE_BYTES"),
        ({"threads": 100}, "out_of_memory", "can't start new thread"),
    ],
)
def test_limits(scratch: Path, wanted: dict[str, int], code: str, words: str) -> None:
    """More than its share of the machine is an error with words; within it, all goes well."""
    child = Child("limited", scratch, limits=Limits(memory=200 << 20, file=4 << 20))
    try:
        child.start()
        assert (
            call(child, "take", scratch, payload={name: n // 10 for name, n in wanted.items()})
            == {}
        )
        with pytest.raises(AnalysisError, match=words) as caught:
            call(child, "take", scratch, payload=wanted)
        assert caught.value.code == code
        assert call(child, "take", scratch) == {}
    finally:
        child.close()


def test_limits_of_this_machine(tmp_path: Path) -> None:
    """Half of the memory of the machine, or of the tightest of its control groups."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.of(None, None, tmp_path).memory == max(
        1 << 30, limits.memory_of_this_machine() // 2
    )
    assert limits.of(None, None, tmp_path).file == shutil.disk_usage(tmp_path).total // 2
    assert limits.of(5, 6, tmp_path) == Limits(memory=5, file=6, resident=5, disk=6)
    proc, group = tmp_path / "proc/self", tmp_path / "sys/fs/cgroup/lab"
    (group / "worker").mkdir(parents=True)
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/lab/worker\n")
    (group / "memory.max").write_text("3000000\n")
    (group / "worker/memory.max").write_text("max\n")
    assert limits.memory_of_this_machine(tmp_path) == 3_000_000
    (group / "worker/memory.max").write_text("2000000\n")
    assert limits.memory_of_this_machine(tmp_path) == 2_000_000
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("1000000\n")
    (proc / "cgroup").write_text("4:cpu,memory:/elsewhere\n")
    assert limits.memory_of_this_machine(tmp_path) == 1_000_000
    (proc / "cgroup").unlink()
    assert limits.memory_of_this_machine(tmp_path) == there


def test_answer_that_is_no_json(child: Child, scratch: Path) -> None:
    """An answer that can't travel is an internal error, not a hang."""
    with pytest.raises(AnalysisError, match="not JSON serializable") as caught:
        call(child, "no_json", scratch)
    assert caught.value.code == "internal"


@pytest.mark.parametrize(
    "text", ["nonsense\n", "[1, 2]\n", '{"progress": {"done": "?"}}\n', "[" * 200_000 + "\n"]
)
def test_nonsense_on_the_pipe(child: Child, scratch: Path, text: str) -> None:
    """A child that breaks the protocol is killed."""
    with pytest.raises(ChildDiedError, match="nonsense"):
        call(child, "write_nonsense", scratch, payload={"bytes": text})
    assert child.pid is None


def test_prints_go_to_the_log_of_their_call(child: Child, scratch: Path) -> None:
    """What Python, C and subprocesses print is in the log of the call that printed it, only."""
    for word in ("one", "two"):
        log = scratch / f"job/{word}.log"
        call(child, "print_everywhere", scratch, payload={"word": word}, log=log)
        assert sorted(log.read_text().splitlines()) == [
            f"C's stdout {word}",
            f"a subprocess {word}",
            f"python's stderr {word}",
            f"python's stdout {word}",
        ]


def test_no_credentials_in_the_environment(
    child: Child, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's environment is made from nothing; hardware variables are passed on."""
    for name in ("POSEDROP_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "LAB_PASSWORD"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    inside = call(child, "environment", scratch)
    environ = inside["environ"]
    assert "s3cret" not in json.dumps(environ)
    assert [name for name in environ if name.startswith(("POSEDROP_", "AWS_"))] == []
    home = str(scratch / "test/own")
    assert (environ["HOME"], environ["TMPDIR"]) == (home, home)
    assert (environ["CUDA_VISIBLE_DEVICES"], environ["MPLBACKEND"]) == ("1", "Agg")
    assert environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"


def test_is_shut_in(child: Child, scratch: Path) -> None:
    """It is in a session of its own, leaves no core file, imports nothing from where it works."""
    inside = call(child, "environment", scratch)
    assert os.getsid(inside["pid"]) == child.pid
    assert inside["core"] == [0, 0]
    assert inside["cwd_is_importable"] is False
    assert inside["uid"] == os.getuid()


def test_no_network(child: Child, scratch: Path) -> None:
    """The child can't reach even the loopback, wherever one of the walls before it stands."""
    child.start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = call(child, "connect", scratch, payload={"port": server.getsockname()[1]})
    assert child.walls is not None
    assert answer["connected"] is not bool({"network", "tcp", "syscalls"} & set(child.walls.stand))


def test_close_leaves_no_zombie(child: Child) -> None:
    """After close the process is gone and reaped; close again is no error."""
    child.start()
    pid = child.pid
    assert pid is not None
    child.close()
    child.close()
    assert child.pid is None
    assert not Path(f"/proc/{pid}").exists()


def test_close_from_another_thread_ends_a_call(child: Child, scratch: Path) -> None:
    """A worker that is stopped closes its child in the middle of a call, which ends."""
    closer: list[threading.Thread] = []

    def close(progress: Progress) -> None:  # noqa: ARG001
        closer.append(threading.Thread(target=child.close))
        closer[0].start()

    with pytest.raises(ChildDiedError, match="SIGKILL"):
        call(child, "hang", scratch, on_progress=close)
    closer[0].join()
    assert child.pid is None


def test_outlives_the_thread_that_started_it(child: Child, scratch: Path) -> None:
    """The kernel's death signal follows the starting thread: it must not be the caller's."""
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    pid = child.pid
    assert os.getsid(call(child, "echo", scratch)["pid"]) == pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's PR_SET_PDEATHSIG")
def test_dies_with_its_parent(scratch: Path) -> None:
    """A parent that is killed takes a child with it that hangs in C with the interpreter's lock."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from worker.child.child import Child
Child("orphan", Path({str(scratch)!r})).call(
    "test_child:hang", {{}}, on_progress=lambda p: print(p.done, flush=True),
    should_stop=lambda: False, wall_seconds=None, log=None,
)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert gone_within(pid, 5)


@pytest.mark.parametrize("lacks", ["a spawner", "a descriptor", "a watcher"])
def test_a_start_that_fails_half_way_leaves_nothing(
    child: Child, scratch: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Out of threads or descriptors: no process, no pipe, no start on its own later; then it is."""
    spawned: list[int] = []
    start, pipe, popen = threading.Thread.start, os.pipe, subprocess.Popen
    pipes: list[os.stat_result] = []

    def starts(thread: threading.Thread) -> None:
        if thread.name.startswith("child-spawner" if lacks == "a spawner" else "watch of"):
            raise RuntimeError("can't start new thread")
        start(thread)

    def opens() -> tuple[int, int]:
        if lacks == "a descriptor" and pipes:
            raise OSError(errno.EMFILE, "too many open files")
        ends = pipe()
        pipes.append(os.fstat(ends[0]))
        return ends

    def is_open(of: os.stat_result) -> bool:
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(fd.stat(), of):
                    return True
        return False

    def spawns(*args: Any, **options: Any) -> Any:
        process = popen(*args, **options)
        spawned.append(process.pid)
        return process

    monkeypatch.setattr("worker.child.child._spawners", {})
    monkeypatch.setattr(subprocess, "Popen", spawns)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", opens)
        if lacks != "a descriptor":
            patched.setattr(threading.Thread, "start", starts)
        with pytest.raises(ChildDiedError) as caught:
            call(child, "echo", scratch)
    assert (caught.value.code, child.pid) == ("not_started", None)
    assert len(pipes) >= (lacks != "a spawner")
    assert not [each for each in pipes if is_open(each)]
    assert len(spawned) == (lacks == "a watcher")
    assert all(gone_within(pid, 5) for pid in spawned)
    assert os.getsid(call(child, "echo", scratch)["pid"]) == child.pid
    assert len(spawned) == 1 + (lacks == "a watcher")


def test_nobody_waits_for_another_call_to_have_a_child_ready(child: Child, scratch: Path) -> None:
    """Another's call may take hours, and starts it anyway."""
    child.be_ready()
    assert call(child, "echo", scratch)["pid"]
    child.close()
    with child._call:  # another thread's, which has not started it yet
        other = threading.Thread(target=child.be_ready, daemon=True)
        other.start()
        other.join(30)
        assert not other.is_alive()
    assert child.pid is None


def test_warm_modules_that_fail_are_no_obstacle(scratch: Path) -> None:
    """A module that can't be imported ahead of time is a line in the idle log."""
    child = Child("warm", scratch, warm=["json", "no_such_module"])
    try:
        child.start()
        while "no_such_module" not in (scratch / "warm.log").read_text():
            time.sleep(0.01)
        assert os.getsid(call(child, "echo", scratch)["pid"]) == child.pid
    finally:
        child.close()


def test_few_of_many_reports_travel(child: Child, scratch: Path) -> None:
    """A hundred thousand reports cost a few messages; the first and the last are among them."""
    seen: list[Progress] = []
    call(child, "report_much", scratch, payload={"frames": 100_000}, on_progress=seen.append)
    assert (seen[0].done, seen[-1].done) == (0, 100_000)
    assert len(seen) < 100


def test_reporter_tells_frames_per_second() -> None:
    """The rate is that of the last 10 s of a stage, and starts anew with each stage."""
    told: list[dict[str, Any]] = []
    now = [0.0]
    report = PipeReporter(lambda message: told.append(message["progress"]), lambda: now[0])
    for moment, stage, done in [
        (0.0, "load", 0),
        (9.0, "infer", 0),
        (9.1, "infer", 5),  # too early
        (10.0, "infer", 20),
        (20.0, "infer", 120),
        (30.0, "infer", 420),
        (30.1, "infer", 500),  # the last one is never too early
    ]:
        now[0] = moment
        report(stage, done, 500)
    assert [(one["stage"], one["done"], one["frames_per_second"]) for one in told] == [
        ("load", 0, None),
        ("infer", 0, None),
        ("infer", 20, 20.0),
        ("infer", 120, 10.0),
        ("infer", 420, 30.0),
        ("infer", 500, 37.62),
    ]
