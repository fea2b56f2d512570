"""A child process for the dangerous part: decoders, networks, drawing. It can always be killed.

The parent keeps the credentials, the claim and the heartbeat; the child gets files in a scratch
folder and answers with JSON lines on pipes of its own. What is inside is ``worker.child.process``.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import posedrop
import worker
from posedrop.buckets.records.attempts import Progress
from posedrop.errors import AnalysisError, CancelledRunError, ChildDiedError
from worker import room
from worker.child import handover, messages
from worker.child.handover import lent
from worker.child.messages import Line
from worker.child.patience import Patience
from worker.child.permit import POLL_SECONDS, AcceleratorPermit, PermitRequest
from worker.child.walls import NAMES, OWN, Plan, Walls
from worker.limits import Limits, end_group, end_session, exceeded, new_group, ran_out

#: Seconds for an interpreter to start; nothing heavy is imported before its first word.
START_SECONDS = 60.0
#: Seconds that a killed child's processes may take to be gone: a driver's memory is not small.
END_SECONDS = 5.0
#: Seconds between two looks at what a child takes of the machine: at work, and idle.
WATCH_SECONDS, IDLE_SECONDS = 0.5, 5.0

#: What a child may know of its parent's environment: hardware and threads, nothing secret.
_PASSED_ON = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
)
#: What every child is told.
FIXED = {
    "DLClight": "True",  # DeepLabCut without its windows
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LOGNAME": "posedrop",
    "MPLBACKEND": "Agg",
    # A thread that waits for work soon sleeps; where it would spin, it keeps others from the
    # processor: of this process (worker.cpu.winograd), and those that render. Not at once: from one
    # operator of a network to the next it takes microseconds, which to sleep and be woken exceeds.
    "GOMP_SPINCOUNT": "10000",
    "OMP_WAIT_POLICY": "passive",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks PyPI for its newest version when imported
    "PYTHONUNBUFFERED": "1",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # whatever a model's own config says of it
    "TORCH_LOAD_WEIGHTS_ONLY": "true",
}


class Child:
    """One child process, started when first needed, warm between calls, replaced after a death.

    Calls come one at a time; :meth:`close` may come from any thread.
    """

    def __init__(
        self,
        name: str,
        scratch: Path,
        *,
        warm: Sequence[str] = (),
        limits: Limits | None = None,
        hidden: Sequence[Path] = (),
        reads: Sequence[Path] = (),
        cards: bool = False,
    ) -> None:
        """Remember how to start the child.

        Args:
            name: what it is called in messages and in its idle log, ``<scratch>/<name>.log``.
            scratch: an existing folder; the child has ``<scratch>/<name>`` of it for its own.
            warm: modules to import while it waits for its first call.
            limits: what it may take of the machine; None: anything.
            hidden: folders of which it reads nothing, wherever they lie.
            reads: files and folders that it may read beside libraries and what it is handed.
            cards: whether it may use the machine's accelerators.
        """
        self._name = name
        self._idle_log = scratch / f"{name}.log"
        self._folder = scratch / name
        self._warm = tuple(warm)
        self._limits = limits or Limits()
        self._plan = Plan(
            folder=str(self._folder.absolute()),
            reads=[str(path.absolute()) for path in reads],
            hidden=[str(path.absolute()) for path in (scratch, *hidden)],
            cards=cards,
        )
        self._call = threading.Lock()
        self._at_work = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = -1
        self._answers = -1
        self._status = -1
        self._walls: Walls | None = None
        self._verdict: ChildDiedError | None = None
        self._group = ""
        self._buffer = b""

    @property
    def pid(self) -> int | None:
        """The process' id, None while there is none."""
        return self._process.pid if self._process else None

    @property
    def walls(self) -> Walls | None:
        """The walls around the child, as its kernel grants; None: it was never started."""
        return self._walls

    def start(self) -> None:
        """Start the process if there is none.

        Raises:
            ChildDiedError: it ended, or said nothing, before it was ready.
        """
        with self._call:
            self._ensure_started()

    def be_ready(self) -> None:
        """Start the process if there is none, and nobody is at it, who would start it himself.

        Raises:
            ChildDiedError: as :meth:`start` does.
        """
        if self._call.acquire(blocking=False):
            try:
                self._ensure_started()
            finally:
                self._call.release()

    def call(
        self,
        task: str,
        payload: dict[str, Any],
        *,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        wall_seconds: float | Patience | None,
        log: Path | None,
        folder: Path | None = None,
        permit: AcceleratorPermit | None = None,
    ) -> dict[str, Any]:
        """Run ``task`` in the child and return its answer.

        Args:
            task: a name of :data:`worker.child.tasks.TASKS`, or ``package.module:function``.
            payload: JSON types.
            on_progress: called in this thread; what it raises ends the child.
            should_stop: asked every 0.25 s, from when the call has to wait for another; while
                ``on_progress`` is at something, not.
            wall_seconds: the task may last no longer, but for waiting for its permit; None: any
                time. A :class:`Patience` is told of the progress, and goes by it.
            log: everything that the task and its libraries print is appended to this file of
                ``folder``; None: to the idle log.
            folder: the job's, all that the child may write to, but for ``video`` and ``model`` in
                it, which it may read. It lies elsewhere meanwhile, and a link in its place.
            permit: what the task waits for where it asks for it; None: it has it at once.

        Raises:
            CancelledRunError: ``should_stop`` said so; the child is gone.
            ChildDiedError: it crashed or was killed; code ``timeout`` after ``wall_seconds``,
                ``not_started`` if it never came so far.
            PosedropError: what the task raised, as the class that it was.
            AnalysisError: anything else that the task raised: code ``out_of_memory``,
                ``file_too_large`` or ``internal``.
            StorageError: the disk is full, which is not the task's fault.
            RefusedVideoError: code ``no_room``: the task alone filled it.
        """
        with self._waited(should_stop):
            self._ensure_started()
            request = {"task": task, "payload": payload, "log": None if log is None else str(log)}
            permit_request = PermitRequest(permit)
            try:
                with contextlib.nullcontext() if folder is None else lent(folder, self._folder):
                    answer = self._asked(
                        request, on_progress, should_stop, wall_seconds, permit_request
                    )
            except BaseException:
                self._end()  # before, or when its folder could not be taken back
                raise
        if answer.error is None:
            return answer.result or {}
        error = answer.error.as_error()
        if isinstance(error, AnalysisError) and error.code == "disk_full":
            room.check_child(self._idle_log.parent.parent)
        raise error

    def kill(self) -> None:
        """Kill the process, whatever it does; a call in another thread gets ChildDiedError."""
        process = self._process
        if process is not None:
            _tell_to_end(process)

    def close(self) -> None:
        """Kill the process, and wait until nothing is left of it."""
        self.kill()
        with self._call:
            self._end()

    def _asked(
        self,
        request: dict[str, Any],
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        wall_seconds: float | Patience | None,
        permit_request: PermitRequest,
    ) -> Line:
        self._at_work.set()
        try:
            answer = self._converse(request, on_progress, should_stop, wall_seconds, permit_request)
        except BaseException:
            self._end()
            raise
        finally:  # when the child is gone: the next call is alone
            self._at_work.clear()
            permit_request.close()
        if answer.fresh:
            # A library failed in the middle of something: what it left behind is unknown.
            self._end()
        return answer

    @contextlib.contextmanager
    def _waited(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Wait for the calls before this one."""
        while not self._call.acquire(timeout=POLL_SECONDS):
            if should_stop():
                raise CancelledRunError("cancelled: the run was asked to stop")
        try:
            yield
        finally:
            self._call.release()

    # -- the process -----------------------------------------------------------------------------

    def _ensure_started(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is not None:
            return
        # Linux kills a child with the *thread* that started it (PR_SET_PDEATHSIG), and the caller's
        # may end before the process does.
        try:
            _spawner().submit(self._spawn).result()
            hello = self._wait_for_hello()
            name = f"watch of {self._name}"
            threading.Thread(
                target=self._watch, args=(self._process,), name=name, daemon=True
            ).start()
        except BaseException as error:  # a child that nobody watches is none
            self._end()
            if isinstance(error, ChildDiedError):
                raise ChildDiedError(error.message, code="not_started") from error
            if isinstance(error, OSError | RuntimeError):  # of processes, threads, descriptors
                words = f"{self._name}: no child process could be started: {error}"
                raise ChildDiedError(words, code="not_started") from error
            raise
        self._walls = _walls_of(hello)

    def _spawn(self) -> None:
        _compile()
        handover.prepare(self._folder)
        self._verdict = None
        self._group = new_group(self._limits.resident) if self._limits.resident else ""
        home = self._folder / OWN
        passed: list[int] = []
        try:
            child_reads, self._requests = os.pipe()
            passed.append(child_reads)
            self._answers, child_writes = os.pipe()
            passed.append(child_writes)
            self._status, child_tells = os.pipe()
            passed.append(child_tells)
            with self._idle_log.open("wb") as idle_log:
                self._process = subprocess.Popen(
                    self._command(*passed),
                    stdin=subprocess.DEVNULL,
                    stdout=idle_log,
                    stderr=idle_log,
                    cwd=home,
                    env=_environment(home),
                    pass_fds=passed,
                    start_new_session=True,
                )
        finally:
            for fd in passed:
                os.close(fd)
        os.set_blocking(self._requests, False)
        self._buffer = b""

    def _command(self, *descriptors: int) -> list[str]:
        """Return the child's command line, as ``worker.child.process`` reads it."""
        return [
            sys.executable,
            # Nothing is ever imported from the working directory, nor from a home that an earlier
            # child wrote to.
            "-Ps",
            "-m",
            "worker.child.process",
            *map(str, descriptors),
            str(os.getpid()),
            str(self._limits.memory),
            str(self._limits.file),
            json.dumps(asdict(replace(self._plan, group=self._group))),
            *self._warm,
        ]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that takes more of the machine than it may, at work or idle."""
        while self._process is process and process.returncode is None:
            found = exceeded(self._limits, process.pid, self._folder / OWN, self._idle_log)
            if found is not None:
                code, words = found
                words = f"{self._name}: the child process {words}, killed"
                self._verdict = ChildDiedError(words, code=code)
                _tell_to_end(process)
                return
            if self._at_work.wait(IDLE_SECONDS):
                time.sleep(WATCH_SECONDS)

    def _wait_for_hello(self) -> Line:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for line in self._exchange(b"")[1]:
                if line.hello is None:
                    raise self._nonsense()
                return line
        raise ChildDiedError(f"{self._name}: the child process did not start")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _tell_to_end(process)
            # By then what it started has given back its memory and its files.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            end_session(process.pid)
            process.wait()
        end_group(self._group)
        self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in (self._requests, self._answers, self._status):
            if fd >= 0:
                os.close(fd)
        self._requests = self._answers = self._status = -1
        self._buffer = b""

    # -- the conversation ------------------------------------------------------------------------

    def _converse(
        self,
        request: dict[str, Any],
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        wall_seconds: float | Patience | None,
        permit_request: PermitRequest,
    ) -> Line:
        started = time.monotonic()
        limit = Patience.of(wall_seconds) if isinstance(wall_seconds, int | float) else wall_seconds
        unsent = json.dumps(request).encode() + b"\n"
        while True:
            if should_stop():
                raise CancelledRunError("cancelled: the run was asked to stop")
            worked = time.monotonic() - started - permit_request.seconds
            if limit is not None and not permit_request.waits and worked > limit.seconds:
                raise ChildDiedError(
                    f"{self._name}: no {limit.wanted} within {limit.seconds:g} s, killed",
                    code="timeout",
                )
            unsent, lines = self._exchange(unsent, permit_request.waits_for)
            for line in lines:
                if line.progress is not None:
                    if limit is not None:
                        limit.heard(line.progress, worked)
                    on_progress(line.progress)
                elif line.permit == "over":
                    permit_request.close()
                elif line.permit == "wanted":
                    if not permit_request.ask():
                        raise self._nonsense()
                elif line.hello is not None:
                    raise self._nonsense()
                else:
                    return line
            # Not before it has read the last word: else it could fill our memory with wishes.
            if not unsent and permit_request.grant():
                unsent = b'{"permit": "yours"}\n'
            elif lines and permit_request.waits:
                on_progress(Progress(stage="wait"))

    def _exchange(
        self, unsent: bytes, also: AcceleratorPermit | None = None
    ) -> tuple[bytes, list[Line]]:
        """Send and receive within POLL_SECONDS; return the unsent bytes, and the lines received.

        It returns earlier when something came, or when ``also`` is free.
        """
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if unsent:
            poll.register(self._requests, select.POLLOUT)
        if also is not None:
            poll.register(also, select.POLLIN)
        for fd, _ in poll.poll(POLL_SECONDS * 1000):
            if fd == self._requests:
                with contextlib.suppress(BrokenPipeError, BlockingIOError):
                    unsent = unsent[os.write(self._requests, unsent) :]
            elif fd == self._answers:
                data = os.read(self._answers, 1 << 16)
                if not data:
                    raise self._death()
                self._buffer += data
        return unsent, self._complete_lines()

    def _complete_lines(self) -> list[Line]:
        *lines, self._buffer = self._buffer.split(b"\n")
        if max(map(len, (self._buffer, *lines))) > messages.MAX_LINE_BYTES:
            raise ChildDiedError(f"{self._name}: the child process sends without end, killed")
        try:
            return [messages.parse(line) for line in lines]
        except ValueError as error:
            raise self._nonsense() from error

    def _nonsense(self) -> ChildDiedError:
        return ChildDiedError(f"{self._name}: the child process speaks nonsense, killed")

    def _death(self) -> ChildDiedError:
        process = self._process
        if process is None:
            return ChildDiedError(f"{self._name}: the child process is gone")
        if self._verdict is not None:
            return self._verdict
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return ChildDiedError(f"{self._name}: the child process stopped listening, killed")
        # The process that is known here ends itself after the one within the walls (child.walls),
        # and has left word of how that one ended.
        if ran_out(self._group):
            words = f"{self._name}: the child process took all the memory that it may, killed"
            return ChildDiedError(words, code="out_of_memory")
        told = os.read(self._status, 16)
        with contextlib.suppress(ValueError):
            code = int(told)
        return ChildDiedError(f"{self._name}: the child process {_how_it_ended(code)}")


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (somebody killed it; when memory is short, the kernel does)" if code == -9 else ""
    return f"was ended by {name}{hint}"


def _tell_to_end(process: subprocess.Popen[bytes]) -> None:
    """Have the process outside of the walls kill all that is within, and itself when it is gone."""
    # Not yet reaped, so that its number is still its own.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform.startswith("linux"):
                process.terminate()
            else:  # there are no walls, and nobody outside of them
                os.killpg(process.pid, signal.SIGKILL)


def _walls_of(hello: Line) -> Walls:
    """Return the walls that a child names in its hello, before it has seen any film."""
    lack = {name: hello.lack[name] for name in NAMES if name in hello.lack}
    return Walls([name for name in NAMES if name in hello.walls], lack)


def _environment(home: Path) -> dict[str, str]:
    """Return the child's environment, made from nothing: no credential of ours is in it."""
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **FIXED,
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(home),
        "TMPDIR": str(home),
        # The same code as here, installed or not; relative entries would mean other folders there.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if Path(path).is_absolute()),
    }


@cache
def _compile() -> None:
    """Compile posedrop's code, once: a child can write none, and would do so at each start."""
    for package in (posedrop, worker):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=2)


_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()


def _spawner() -> ThreadPoolExecutor:
    """Return the one thread of this process that starts children, and lives as long as it does."""
    with _spawners_lock:
        # By process, because a fork has the dictionary but not the thread.
        if os.getpid() not in _spawners:
            spawner = ThreadPoolExecutor(1, thread_name_prefix="child-spawner")
            # One whose thread can't be started keeps what it was asked, and does it later, for
            # nobody: it is asked for nothing, and forgotten.
            spawner.submit(os.getpid)
            _spawners.clear()
            _spawners[os.getpid()] = spawner
        return _spawners[os.getpid()]
