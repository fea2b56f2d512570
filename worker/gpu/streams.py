"""What keeps a GPU at work: pictures come by pinned memory, and results are read beside the work.

All that is put on one stream runs in its order. So what is read of a batch would wait for the batch
that was begun behind it, and the GPU for who reads. Memory that is not pinned is copied twice,
while nothing else is. And what is put on no stream in particular, as FFmpeg copies what a card has
decoded, waits for all other work of that kind: so the network's is on a stream of its own.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
        """Put the mark behind all that the device was told so far."""

    def synchronize(self) -> None:
        """Wait until the device has come to the mark."""


class _Event:
    """A CUDA event, on whatever stream is the device's at the moment."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self.event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self.event.record(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        self.event.synchronize()


class Device:
    """The part of a CUDA device that is used here; a test pretends one."""

    def __init__(self, device: torch.device) -> None:
        """Use ``device``, an NVIDIA card."""
        self._device = device

    def pinned(self, size: int) -> Tensor:
        """Return so many bytes that the device reads by itself."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        """Return a new mark."""
        return _Event(self._device)

    def sent(self, pinned: Tensor) -> Tensor:
        """Begin to copy pinned memory to the device."""
        return pinned.to(self._device, non_blocking=True)

    @contextmanager
    def beside(self, mark: Mark) -> Iterator[None]:
        """Let what the block asks for wait for ``mark`` alone; it is done when the block ends."""
        assert isinstance(mark, _Event)  # noqa: S101  # it is one of ours
        aside = _stream_of_results(self._device)
        aside.wait_event(mark.event)
        with _done_at_its_end(aside), torch.cuda.stream(aside):
            yield


class Upload:
    """Brings arrays of bytes to the device on which the network is."""

    def __init__(self, device: torch.device, cuda: Device | None) -> None:
        """Bring arrays to ``device``; ``cuda`` is what it can do, None if it is none of CUDA's."""
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


@functools.cache
def _own_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.cache
def _stream_of_results(device: torch.device) -> Any:
    # One, and ahead of others: torch has but 32 of a kind, and gives them in turn.
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Let what the block asks of a GPU be on a stream of its own, and be done when it ends."""
    if device.type != "cuda":
        yield
        return
    own = _own_stream(device)
    own.wait_stream(torch.cuda.current_stream(device))  # where the model was loaded
    with _done_at_its_end(own), torch.cuda.device(device), torch.cuda.stream(own):
        yield


@contextmanager
def _done_at_its_end(stream: Any) -> Iterator[None]:
    """Wait for a stream when the block ends, however it does: others have their turn then."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the first error is the one to be told
            stream.synchronize()
        raise
    stream.synchronize()


def device_of(device: torch.device) -> Device | None:
    """Return what a device can do; None where it is no CUDA device."""
    return Device(device) if device.type == "cuda" else None
