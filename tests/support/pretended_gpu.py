"""A pretended GPU: it notes the operations of a run and does them again, and copies when it likes.

As a CUDA graph does, a recording knows nothing of the Python code that asked for it, reads and
writes the same memory each time, and refuses to be looked at while it is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.gpu import streams
from worker.gpu.graphs import WARM_UPS, Outputs, Recording, Timing
from worker.gpu.streams import Mark


class Device:
    """Records; counts what it was asked for, and how many recordings are held."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []
        self.replays = 0
        self.most_held = 0
        self.room = 10**9
        """Bytes that its recordings may take together."""
        self.waits = True
        """Whether it is faster than it is told what to do."""
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def held(self) -> int:
        return len(self._held)

    def timed(self, run: Callable[[], Outputs]) -> tuple[Outputs, Timing]:
        return run(), Timing(0.9 if self.waits else 0.5, lambda: 1.0)

    def record(self, run: Callable[[], Outputs]) -> Recording:
        for _ in range(WARM_UPS):
            run()
        made = _Taped(self, run)
        if made.bytes + sum(one.bytes for one in self._held) > self.room:
            raise torch.OutOfMemoryError("no room for a recording")
        self._held.add(made)
        self.most_held = max(self.most_held, self.held)
        return made


class _Taped(TorchDispatchMode):
    def __init__(self, device: Device, run: Callable[[], Outputs]) -> None:
        super().__init__()
        self._device = device
        self._tape: list[tuple[Any, Any, Any, Any]] = []
        with self:
            self.outputs = run()
        first = next(iter(next(iter(self.outputs.values())).values()))
        device.recorded.append(tuple(first.shape))
        self.bytes = sum(out.nbytes for *_, out in self._tape if isinstance(out, Tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
        ):
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self._tape.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self._device.replays += 1
        for func, args, kwargs, out in self._tape:
            again = func(*args, **kwargs)
            pairs = (
                zip(out, again, strict=True) if isinstance(out, tuple | list) else [(out, again)]
            )
            for there, new in pairs:
                if isinstance(there, Tensor):
                    there.copy_(new)


class Cuda(streams.Device):
    """A pretended CUDA device: a lazy one copies what it was sent when somebody waits for it.

    So memory that is written to too early arrives as what it became.
    """

    def __init__(self, *, lazy: bool = False) -> None:
        super().__init__(torch.device("cpu"))
        self.pinned_sizes: list[int] = []
        self.sent_count = 0
        self.beside_count = 0
        self._lazy = lazy
        self._queue: list[Callable[[], Any]] = []
        self._done = 0

    def pinned(self, size: int) -> Tensor:
        self.pinned_sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> _Mark:
        return _Mark(self)

    def sent(self, pinned: Tensor) -> Tensor:
        self.sent_count += 1
        there = torch.full_like(pinned, 111)
        self._queue.append(partial(there.copy_, pinned))
        if not self._lazy:
            self.work()
        return there

    @contextmanager
    def beside(self, mark: Mark) -> Iterator[None]:
        self.beside_count += 1
        mark.synchronize()
        yield

    def work(self, until: int | None = None) -> None:
        """Do what was asked for, in its order."""
        until = len(self._queue) if until is None else until
        for do in self._queue[self._done : until]:
            do()
        self._done = max(self._done, until)

    @property
    def asked(self) -> int:
        return len(self._queue)


class _Mark:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._at: int | None = None

    def record(self) -> None:
        self._at = self._cuda.asked

    def synchronize(self) -> None:
        assert self._at is not None, "nobody has put this mark anywhere"
        self._cuda.work(self._at)
