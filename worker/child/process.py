"""The inside of the child process (``python -m worker.child.process``); see ``worker.child.child``.

Until it has said hello it imports nothing heavy: first it shuts itself in.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from posedrop.errors import PosedropError
from worker.child import tasks
from worker.child.walls import Plan, put_up
from worker.limits import Limits
from worker.memory import is_out_of_memory

#: Seconds between two reports of the same stage.
REPORT_SECONDS = 0.2
#: Seconds over which frames per second are averaged.
RATE_SECONDS = 10.0

#: On a machine with few cores, store and API go first: what waits for them are people.
NICE = 5


def main(arguments: list[str]) -> None:
    """Serve calls until the parent closes its end.

    Args:
        arguments: the descriptors to read from, to write to, and to write to how this ended; the
            parent's process id; the bytes of memory and of a file that it may take (0: any);
            ``worker.child.walls.Plan`` as JSON; and the modules to import while idle.
    """
    reads, writes, status, parent, memory, file, told, *warm = arguments
    plan = Plan(**json.loads(told))
    walls = put_up(plan, int(parent), (int(reads), int(writes)), int(status))
    Limits(int(memory), int(file)).apply()
    os.nice(NICE)
    faulthandler.enable()
    threading.Thread(target=_exit_with_parent, args=(int(reads),), daemon=True).start()
    channel = Channel(int(writes))
    channel.send({"hello": os.getpid(), "walls": walls.stand, "lack": walls.lack})
    called = select.poll()
    called.register(int(reads), select.POLLIN)
    for module in warm:
        if called.poll(0):
            break  # a call that waits needs few of them, and imports those itself
        try:
            tasks.imported(module)
        except Exception:  # the call that needs it fails by itself, with its own message
            traceback.print_exc()
    idle_log = os.dup(2)
    with os.fdopen(int(reads), "rb") as requests:
        for line in requests:
            request = json.loads(line)
            # On a full disk there may be no room for a log; its task has the words for that.
            with suppress(OSError):
                if request["log"] is not None:
                    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                    _print_to(os.open(request["log"], flags, 0o600))
            report = PipeReporter(channel.send, heard=requests.readline)
            answer = _answer(request["task"], request["payload"], report)
            _print_to(os.dup(idle_log))
            channel.send(answer)


# -- shutting in -----------------------------------------------------------------------------------


def _exit_with_parent(reads: int) -> None:
    poll = select.poll()
    poll.register(reads, 0)  # nothing but the other end's closing
    while not poll.poll():
        pass
    os._exit(0)


# -- one call --------------------------------------------------------------------------------------


def _answer(task: str, payload: dict[str, Any], report: tasks.Reporter) -> dict[str, Any]:
    try:
        result = tasks.function(task)(payload, report)
        json.dumps(result)
    except BaseException as error:  # SystemExit too: a library's wish to end is no answer
        with suppress(OSError, ValueError):  # a full disk takes no words either
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip()[:2000]
        # Whatever else was made of it on its way: the disk is nobody's fault.
        if _came_of(error, errno.ENOSPC, errno.EDQUOT):
            return {"error": _error(None, "disk_full", text, None), "fresh": True}
        if isinstance(error, PosedropError):
            return {"error": _error(type(error), error.code, error.message, error.field)}
        if _came_of(error, errno.EFBIG):
            text = f"it needs a larger file than POSEDROP_CHILD_FILE_BYTES, raise that ({text})"
            return {"error": _error(None, "file_too_large", text, None), "fresh": True}
        code = "out_of_memory" if is_out_of_memory(error) else "internal"
        return {"error": _error(None, code, text, None), "fresh": True}
    return {"result": result}


def _came_of(error: BaseException, *numbers: int) -> bool:
    """Tell whether an error, or a cause of it, is an OSError with one of these ``errno``."""
    seen: list[BaseException | None] = []
    rest: BaseException | None = error
    while rest is not None and rest not in seen:
        if isinstance(rest, OSError) and rest.errno in numbers:
            return True
        seen.append(rest)
        rest = rest.__cause__ or rest.__context__
    return False


def _error(
    kind: type[PosedropError] | None, code: str, message: str, field: str | None
) -> dict[str, Any]:
    # A subclass of a plug-in travels as the nearest class that the parent knows.
    known = [c.__name__ for c in kind.__mro__ if c.__module__ == "posedrop.errors"] if kind else []
    name = known[0] if known else "AnalysisError"
    return {"class": name, "code": code, "message": message, "field": field}


class Channel:
    """Messages to the parent, a line each, whole whichever thread sends them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message."""
        # Words of a decoder may hold half a character, which no JSON of its parent's may.
        data = json.dumps(message, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]


class PipeReporter:
    """``report(stage, done, total)`` of a task: called at will, told at most 5 times a second.

    A new stage and the last frame are told at once.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
        heard: Callable[[], bytes] = lambda: b"alone",
    ) -> None:
        """Report by ``send``; ``heard`` waits for the parent's next line, empty: it is gone."""
        self._send = send
        self._clock = clock
        self._heard = heard
        self._stage: str | None = None
        self._told_at = 0.0
        self._told_done = -1
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Tell the parent how many frames of a stage are done."""
        now = self._clock()
        if stage != self._stage:
            self._stage = stage
            self._seen.clear()
        elif done == self._told_done or (now - self._told_at < REPORT_SECONDS and done != total):
            return
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()
        self._told_at, self._told_done = now, done
        progress = {"stage": stage, "done": done, "total": total}
        self._send({"progress": {**progress, "frames_per_second": self._rate()}})

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Wait for the accelerator, and have it for oneself within the block."""
        self._send({"permit": "wanted"})
        if not self._heard():
            raise EOFError("the parent is gone")
        try:
            yield
        finally:
            self._send({"permit": "over"})

    def _rate(self) -> float | None:
        (first, done_first), (last, done_last) = self._seen[0], self._seen[-1]
        return round((done_last - done_first) / (last - first), 2) if last > first else None


def _print_to(fd: int) -> None:
    """Let everything printed from now on, by Python or by C, go to ``fd``; closes ``fd``."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
