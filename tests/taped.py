"""A pretended device that records: it notes the operations of a run, and does them again.

As a CUDA graph does, it knows nothing of the Python code that asked for them, reads and writes the
same memory each time, and refuses to be looked at while it records.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.graphs import WARM_UPS, Outputs, Recording


class Device:
    """Records; counts what it was asked for, and how many recordings are held."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []
        self.replays = 0
        self.most_held = 0
        self.room = 10**9
        """Bytes that its recordings may take together."""
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def held(self) -> int:
        return len(self._held)

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
