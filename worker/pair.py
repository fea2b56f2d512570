"""Two children at one accelerator: while one's network computes, the other makes its video ready.

Each job has a child of its own, so a video that hangs or kills its decoder, while it is made ready
or later, takes nothing down but itself. The network is one child's at a time (``worker.turn``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posedrop.errors import CancelledRunError, PosedropError
from worker.child import Child
from worker.turn import POLL_SECONDS, Turn

#: More would only hold more memory: one video is made ready in less time than another takes.
CHILDREN = 2
#: Seconds for a child to start and to import all that it needs.
WARM_UP_SECONDS = 300.0

log = logging.getLogger(__name__)


class Pair:
    """As one :class:`worker.child.Child`, but for two calls at a time.

    The first child has all the work as long as jobs come one by one. The second is started when
    there is one to be made ready, and has a job when it has done its imports: until then, the first
    may well be free again.
    """

    def __init__(self, name: str, scratch: Path, *, warm: Sequence[str] = ()) -> None:
        """Remember how to start the children; see there."""
        names = [name, *(f"{name}-{number}" for number in range(2, CHILDREN + 1))]
        self._children = [Child(each, scratch, warm=warm) for each in names]
        self._idle = list(self._children)
        self._warm: set[Child] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._turn = Turn()
        self._log = scratch / f"{name}.log"

    def start(self, *, all_of_them: bool = False) -> None:
        """Start the first child, or all, so that their imports are done before work."""
        for child in self._children if all_of_them else self._children[:1]:
            child.start()

    def call(
        self,
        task: str,
        payload: dict[str, Any],
        *,
        should_stop: Callable[[], bool],
        makes_ready: bool,
        **options: Any,
    ) -> dict[str, Any]:
        """Run ``task`` as :meth:`worker.child.Child.call` does.

        Args:
            makes_ready: whether the task itself asks for its turn, when all is ready for the
                network. Else it is begun when it has it.
        """
        options |= {"should_stop": should_stop}
        with self._one(should_stop) as child:
            if makes_ready:
                return child.call(task, payload, turn=self._turn, **options)
            with self._turn.held(should_stop):
                return child.call(task, payload, **options)

    def close(self) -> None:
        """End the children, whatever they do."""
        self._closed = True
        for child in self._children:  # all, before the death of one is another's turn
            child.kill()
        for child in self._children:
            child.close()

    @contextmanager
    def _one(self, should_stop: Callable[[], bool]) -> Iterator[Child]:
        """Have a child for oneself."""
        with self._changed:
            while (child := self._chosen()) is None:
                if should_stop():
                    raise CancelledRunError("cancelled: the run was asked to stop")
                self._changed.wait(POLL_SECONDS)
            self._idle.remove(child)
        try:
            yield child
        finally:
            self._let_go(child)

    def _chosen(self) -> Child | None:
        """Return the first idle child that is warm, or any, where there is none to wait for."""
        warm = [child for child in self._idle if child in self._warm]
        if warm or len(self._idle) == CHILDREN:
            return (warm or self._idle)[0]
        if self._idle:
            cold = self._idle.pop()
            threading.Thread(target=self._warm_up, args=(cold,), daemon=True).start()
        return None

    def _warm_up(self, child: Child) -> None:
        try:
            child.call(
                "worker.pair:nothing",
                {},
                on_progress=lambda _: None,
                should_stop=lambda: self._closed,
                wall_seconds=WARM_UP_SECONDS,
                log=self._log,
            )
        except PosedropError as error:
            log.warning("no second child: %s", error)
        self._let_go(child)

    def _let_go(self, child: Child) -> None:
        with self._changed:
            # One that was killed has its imports before it again.
            (self._warm.discard if child.pid is None else self._warm.add)(child)
            self._idle = sorted([*self._idle, child], key=self._children.index)
            self._changed.notify_all()


def nothing(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Answer: a child does so when its imports are done."""
    return {}
