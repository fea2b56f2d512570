"""Two children at one accelerator: while one's network computes, the other makes its video ready.

Each job has a child of its own, so a video that hangs or kills its decoder, while it is made ready
or later, takes nothing down but itself. The network is one child's at a time (``child.permit``).

Where the processor is the network's too, a second child would take of it what it is to save, and
hold the model once more: there all work is the first one's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from posedrop.errors import CancelledRunError, PosedropError
from worker.child.child import Child
from worker.child.messages import Begin
from worker.child.permit import POLL_SECONDS, AcceleratorPermit
from worker.child.walls import Walls

#: More would only hold more memory: one video is made ready in less time than another takes.
CHILDREN = 2
#: Seconds for a child to start and to import all that it needs.
WARM_UP_SECONDS = 300.0

log = logging.getLogger(__name__)


class ChildPool:
    """As one :class:`worker.child.child.Child`, but for two calls at a time.

    The first child has all the work as long as jobs come one by one. The second is started when
    there is one to be made ready, and has a job when it has done its imports: until then, the first
    may well be free again.
    """

    def __init__(
        self,
        name: str,
        scratch: Path,
        *,
        warm: Sequence[str] = (),
        device: str = "auto",
        begins_with: str = Begin.NAME,
        **options: Any,
    ) -> None:
        """Remember how to start the children.

        Args:
            name: what the first is called; the others have a number too.
            scratch: an existing folder, in which each child has one.
            warm: modules to import while a child waits for its first call.
            device: what the network is to run on: ``auto``, or as torch names it.
            begins_with: each child's first task, at leisure: it does what
                :class:`worker.child.messages.Begin` asks for.
            options: what else :class:`worker.child.child.Child` takes.
        """
        names = [name, *(f"{name}-{number}" for number in range(2, CHILDREN + 1))]
        self._children = [Child(each, scratch, warm=warm, **options) for each in names]
        self._idle = list(self._children)
        self._warm: set[Child] = set()
        self._changed = threading.Condition()
        self._begins_with, self._device = begins_with, device
        self._accelerated: bool | None = None
        self._closed = False
        self._permit = AcceleratorPermit()

    @property
    def walls(self) -> Walls | None:
        """Which walls stand around the children; None: none was started yet."""
        return self._children[0].walls

    def start(self) -> None:
        """Start the first child, so that its imports are done before work."""
        self._children[0].start()
        threading.Thread(target=self._be_ready, daemon=True).start()

    def call(
        self,
        task: str,
        payload: dict[str, Any],
        *,
        should_stop: Callable[[], bool],
        makes_ready: bool,
        **options: Any,
    ) -> dict[str, Any]:
        """Run ``task`` as :meth:`worker.child.child.Child.call` does.

        Args:
            makes_ready: whether the task itself asks for the permit, when all is ready for the
                network. Else it is begun when it has it.
        """
        options |= {"should_stop": should_stop}
        with self._one(should_stop) as child:
            self._know(child)
            if makes_ready:
                return child.call(task, payload, permit=self._permit, **options)
            with self._permit.held(should_stop):
                return child.call(task, payload, **options)

    def close(self) -> None:
        """End the children, whatever they do."""
        self._closed = True
        for child in self._children:  # all, before the death of one hands another the permit
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
        if self._idle and self._accelerated:
            cold = self._idle.pop()
            try:
                threading.Thread(target=self._warm_up, args=(cold,), daemon=True).start()
            except RuntimeError:  # out of threads: whoever waits looks again in a moment
                self._idle.append(cold)
        return None

    def _be_ready(self) -> None:
        with suppress(CancelledRunError), self._one(lambda: self._closed) as child:
            self._know(child)

    def _know(self, child: Child) -> None:
        """Know whether a second child is of use, as soon as the first one can tell."""
        if self._accelerated is not None:
            return
        accelerated = self._begun(child)
        with self._changed:
            self._accelerated = accelerated
            self._changed.notify_all()

    def _warm_up(self, child: Child) -> None:
        try:
            self._begun(child)
        finally:
            self._let_go(child)

    def _begun(self, child: Child) -> bool | None:
        """Have a child do its first task, after its imports; None: it failed, as others may not."""
        begin = Begin(device=self._device)
        try:
            answer = child.call(
                self._begins_with,
                begin.model_dump(),
                on_progress=lambda _: None,
                should_stop=lambda: self._closed,
                wall_seconds=WARM_UP_SECONDS,
                log=None,
            )
            return begin.output(answer).accelerated
        except PosedropError as error:
            if not self._closed:
                log.warning("a child for the network could not begin: %s", error)
            return None

    def _let_go(self, child: Child) -> None:
        with self._changed:
            if child.pid is None:  # it was killed, and has its imports before it again
                self._warm.discard(child)
            else:
                self._warm.add(child)
            self._idle = sorted([*self._idle, child], key=self._children.index)
            self._changed.notify_all()
