"""What keeps a GPU at work: pictures come by pinned memory, and results are read beside the work.

All that is put on one stream runs in its order. So what is read of a batch would wait for the batch
that was begun behind it, and the GPU for who reads. And memory that is not pinned is copied twice,
while nothing else is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Buffers of pinned memory: one is filled while those before it are read.
BUFFERS = 3


class Mark(Protocol):
    """A point in what a device has to do."""

    def record(self) -> None:
        """Put it behind all that the device was told so far."""

    def synchronize(self) -> None:
        """Wait until the device is there."""


class Device:
    """What of a CUDA device is used here; a test pretends one."""

    def __init__(self, device: torch.device) -> None:
        """Use ``device``, an NVIDIA card."""
        self._device = device
        self._aside: Any = None

    def pinned(self, size: int) -> Tensor:
        """Return so many bytes that the device reads by itself."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        """Return a new mark."""
        with torch.cuda.device(self._device):
            made: Mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return made

    def sent(self, pinned: Tensor) -> Tensor:
        """Begin to copy pinned memory to the device."""
        return pinned.to(self._device, non_blocking=True)

    @contextmanager
    def beside(self, mark: Mark) -> Iterator[None]:
        """Let what the block asks for wait for ``mark`` alone."""
        with torch.cuda.device(self._device):
            if self._aside is None:
                self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._aside.wait_event(mark)
            with torch.cuda.stream(self._aside):
                yield
            self._aside.synchronize()


class Upload:
    """Arrays of bytes to where the network is."""

    def __init__(self, device: torch.device, cuda: Device | None) -> None:
        """Bring them to ``device``; ``cuda`` is what it can do, None where it is no CUDA device."""
        self.device = device
        self._cuda = cuda
        self._buffers: deque[tuple[Tensor, Mark]] = deque()
        self._plain: deque[Tensor] = deque(maxlen=BUFFERS)

    def __call__(self, arrays: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return arrays of one shape as one tensor, (n, ...); see :meth:`filled`."""
        if self.device.type == "cpu" and self._cuda is None and len(arrays) == 1:
            return torch.from_numpy(arrays[0][None])
        shape = (len(arrays), *arrays[0].shape)
        return self.filled(shape, lambda room: np.stack(arrays, out=room))

    def filled(
        self, shape: tuple[int, ...], fill: Callable[[npt.NDArray[np.uint8]], Any]
    ) -> Tensor:
        """Return what ``fill`` puts into an array of this shape.

        It may still be on its way. On a processor it is memory that is used again: it has to be
        read before ``BUFFERS`` more were asked for.
        """
        size = int(np.prod(shape))
        if self._cuda is None:
            full = len(self._plain) == BUFFERS
            plain = self._plain.popleft() if full else torch.empty(0, dtype=torch.uint8)
            if plain.numel() < size:
                plain = torch.empty(size, dtype=torch.uint8)
            self._plain.append(plain)
            room = plain[:size].view(shape)
            fill(room.numpy())
            return room.to(self.device)
        buffer, mark = self._free(size, self._cuda)
        pinned = buffer[:size].view(shape)
        fill(pinned.numpy())
        sent = self._cuda.sent(pinned)
        mark.record()
        self._buffers.append((buffer, mark))
        return sent

    def _free(self, size: int, cuda: Device) -> tuple[Tensor, Mark]:
        """Return a buffer that nobody reads any more."""
        if len(self._buffers) < BUFFERS:
            return cuda.pinned(size), cuda.mark()
        buffer, mark = self._buffers.popleft()
        mark.synchronize()
        return (buffer if buffer.numel() >= size else cuda.pinned(size)), mark


def device_of(device: torch.device) -> Device | None:
    """Return what a device can do; None where it is no CUDA device."""
    return Device(device) if device.type == "cuda" else None
