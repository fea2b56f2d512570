"""Two children at one accelerator: while one's network computes, the other makes its video ready.

Each job has a child of its own, so a video that hangs or kills its decoder, while it is made ready
or later, takes nothing down but itself. The network is one child's at a time (``worker.turn``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posedrop.errors import CancelledRunError
from worker.child import Child
from worker.turn import POLL_SECONDS, Turn

#: More would only hold more memory: one video is made ready in less time than another takes.
CHILDREN = 2


class Pair:
    """As one :class:`worker.child.Child`, but for two calls at a time.

    The first child has all the work as long as jobs come one by one; the second is started when
    there is one to be made ready.
    """

    def __init__(self, name: str, scratch: Path, *, warm: Sequence[str] = ()) -> None:
        """Remember how to start the children; see there."""
        names = [name, *(f"{name}-{number}" for number in range(2, CHILDREN + 1))]
        self._children = [Child(each, scratch, warm=warm) for each in names]
        self._free = list(self._children)
        self._changed = threading.Condition()
        self._turn = Turn()

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
        for child in self._children:  # all, before the death of one is another's turn
            child.kill()
        for child in self._children:
            child.close()

    @contextmanager
    def _one(self, should_stop: Callable[[], bool]) -> Iterator[Child]:
        """Have a child for oneself: the first that is free, which has its models loaded."""
        with self._changed:
            while not self._free:
                if should_stop():
                    raise CancelledRunError("cancelled: the run was asked to stop")
                self._changed.wait(POLL_SECONDS)
            child = min(self._free, key=self._children.index)
            self._free.remove(child)
        try:
            yield child
        finally:
            with self._changed:
                self._free.append(child)
                self._changed.notify()
