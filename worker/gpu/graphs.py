"""CUDA graphs: a network's work on pictures of one shape, recorded once and then replayed.

A network has hundreds of kernels, and Python starts each; on a fast card and small frames that
takes longer than to compute them. A recorded network is started as one. All batches of a film have
the same shape, which is what a recording is made for.

A recording is held to what the network itself finds: on its first batches both compute, and where
a single bit differs (its Python code looks at what is in the pictures), or it can't be recorded at
all, the network goes on as it is. So a recording changes the speed and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.memory import is_out_of_memory

log = logging.getLogger(__name__)

#: By head, by name.
Outputs = dict[str, dict[str, Tensor]]
Forward = Callable[[Tensor], Outputs]

#: Runs before a recording: libraries choose their kernels and take what memory they need.
WARM_UPS = 2
#: Batches on which a recording has to find what the network does.
PROOFS = 2
#: Batches of one shape before it is recorded: more than timing has of it.
SEEN = 4
#: It is worth it where to tell the device what to do takes this share of its own time: else that is
#: done while the device is at the batch before, and a recording would but hold memory.
WORTH = 0.7


#: Why a recording that does not find the network's bits is none.
LOOKS = "a recording finds something else: the network looks at its pictures"
DIFFERS = "the network itself finds something else each time"


class Recording(Protocol):
    """A recorded run; its memory is kept as long as somebody holds it."""

    outputs: Outputs
    """Where a replay leaves what it finds: written over by the next one."""
    bytes: int
    """Of the device's memory, which it keeps between two replays."""

    def replay(self) -> None:
        """Compute once more, on what is in the tensor that it was recorded on."""


@dataclass(frozen=True)
class Timing:
    """How long a run took."""

    host: float
    """Seconds to tell the device what to do."""
    device: Callable[[], float]
    """Waits for the device; seconds from the run's first operation to its last."""


class Recorder(Protocol):
    """Records what a device is told to do."""

    def timed(self, run: Callable[[], Outputs]) -> tuple[Outputs, Timing]:
        """Return what a run finds, and how long it takes; that is not waited for."""

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Record a run.

        Raises:
            Exception: that can't be, whatever the reason; nothing is left of the attempt.
        """


class CudaRecorder:
    """Records on an NVIDIA card, beside the stream that work is put on."""

    def __init__(self, device: torch.device) -> None:
        """Record what runs on ``device``."""
        self._device = device

    def timed(self, run: Callable[[], Outputs]) -> tuple[Outputs, Timing]:
        """Return what a run finds, and how long it takes."""
        with torch.cuda.device(self._device):
            first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            first.record()
            began = time.perf_counter()
            found = run()
            host = time.perf_counter() - began
            last.record()

        def device() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return found, Timing(host, device)

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Record a run in a CUDA graph."""
        with torch.cuda.device(self._device):
            return _CudaRecording(run)


class _CudaRecording:
    def __init__(self, run: Callable[[], Outputs]) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        here.wait_stream(aside)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads decode films and pin memory meanwhile, which is no part of it.
        with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
            self.outputs = run()
        self.bytes = max(0, torch.cuda.memory_reserved() - before)

    def replay(self) -> None:
        self._graph.replay()


class Graphed:
    """A network's forward pass on pictures of one shape, by a recording."""

    def __init__(self, forward: Forward, example: Tensor, recorder: Recorder) -> None:
        """Record ``forward`` on pictures like ``example``; it may not be possible, see ``why``."""
        self._forward = forward
        self._like = _like(example)
        self._proofs = PROOFS
        self._recording: Recording | None = None
        self._pictures: Tensor | None = None
        self.why = ""
        """The reason that nothing is recorded."""
        self.is_hopeless = False
        """Whether that will be so the next time, too."""
        try:
            pictures = torch.empty_like(example)  # its order in memory, too
            pictures.copy_(example)
            self._recording = recorder.record(lambda: forward(pictures))
            self._pictures = pictures
        except Exception as error:  # of torch, CUDA, or the network's own code
            self._give_up(f"{type(error).__name__}: {error}"[:300])
            self.is_hopeless = not is_out_of_memory(error)

    @property
    def is_recorded(self) -> bool:
        """Whether the next pictures are computed by a recording."""
        return self._recording is not None

    @property
    def bytes(self) -> int:
        """Bytes of the device's memory that the recording keeps."""
        return 0 if self._recording is None else self._recording.bytes

    def takes(self, pictures: Tensor) -> bool:
        """Tell whether the recording can compute pictures of this shape and order in memory."""
        return _like(pictures) == self._like

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Outputs:
        """Return what ``forward`` finds in pictures; it is the caller's, whatever comes next."""
        recording = self._recording
        if recording is None or self._pictures is None or not self.takes(pictures):
            return self._forward(pictures)
        self._pictures.copy_(pictures)
        recording.replay()
        found = {
            head: {name: value.clone() for name, value in named.items()}
            for head, named in recording.outputs.items()
        }
        if self._proofs:
            self._proofs -= 1
            true = self._forward(pictures)
            if not _are_equal(found, true):
                same = _are_equal(true, self._forward(pictures))
                self._give_up(f"{LOOKS if same else DIFFERS} (by {_apart(found, true):.1g})")
                return true
        return found

    def _give_up(self, why: str) -> None:
        log.info("the network is not recorded: %s", why)
        self.why, self.is_hopeless = why, True
        self._recording = self._pictures = None


@dataclass
class _Form:
    """A form of a model, and how it was seen."""

    forward: Forward
    like: tuple[Any, ...] = ()
    """The shape of the last pictures that were no recording's."""
    seen: int = 0
    """How many batches of these have come."""
    timing: Timing | None = None
    """Of the last one before it is decided."""
    graphed: Graphed | None = None


class Graphs:
    """The recordings of one model: one for each of its forms, of the shape that is in use."""

    def __init__(self, recorder: Recorder | None) -> None:
        """Begin without recordings; with no ``recorder`` there never are any."""
        self._recorder = recorder
        self._forms: dict[int, _Form] = {}
        self.replays = 0
        """Batches that recordings have computed."""

    def run(self, forward: Forward, pictures: Tensor) -> Outputs:
        """Return what ``forward`` finds in pictures (n, channels, height, width).

        It is recorded when pictures of this shape have come some times (timing, and the last batch
        of a film, are not worth it), and if the device has to wait to be told what to do. A new
        recording takes the place of one of another shape, whose memory comes free before.
        """
        if self._recorder is None:
            return forward(pictures)
        form = self._forms.setdefault(id(forward), _Form(forward))
        if form.graphed is not None and form.graphed.takes(pictures):
            return self._by(form.graphed, pictures)
        like = _like(pictures)
        if form.like != like:
            form.like, form.seen, form.timing = like, 0, None
        form.seen += 1
        if form.seen < SEEN or form.seen > SEEN + 1:
            return forward(pictures)
        if form.timing is None:
            found, form.timing = self._recorder.timed(lambda: forward(pictures))
            return found
        if form.timing.host < WORTH * form.timing.device():
            return forward(pictures)
        form.graphed = None
        form.graphed = Graphed(forward, pictures, self._recorder)
        return self._by(form.graphed, pictures)

    def _by(self, graphed: Graphed, pictures: Tensor) -> Outputs:
        self.replays += graphed.is_recorded
        return graphed(pictures)

    @property
    def bytes(self) -> int:
        """Bytes of the device's memory that all recordings keep."""
        return sum(graphed.bytes for graphed in self._made())

    def summary(self, before: int = 0) -> dict[str, Any]:
        """Return what result.json says of the recordings, ``before``: replays of earlier films."""
        return {
            "replays": self.replays - before,
            "why_not": "; ".join(sorted({graphed.why for graphed in self._made()} - {""})),
        }

    def keep(self, forwards: Iterable[Forward]) -> None:
        """Drop the recordings of all but these forward passes."""
        kept = {id(forward) for forward in forwards}
        self._forms = {key: form for key, form in self._forms.items() if key in kept}

    def clear(self) -> None:
        """Drop all recordings: memory is short, or the model is put away.

        What can't be recorded is remembered: to try costs a film a moment, and memory that CUDA
        does not give back.
        """
        self._forms = {
            key: form
            for key, form in self._forms.items()
            if form.graphed is not None and form.graphed.is_hopeless
        }

    def _made(self) -> list[Graphed]:
        return [form.graphed for form in self._forms.values() if form.graphed is not None]


def recorder_of(device: torch.device) -> Recorder | None:
    """Return what records on a device; None: nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


def _like(pictures: Tensor) -> tuple[Any, ...]:
    """Return what a recording is bound to: it reads memory as it is laid out."""
    return pictures.shape, pictures.stride(), pictures.dtype, pictures.device


def _apart(one: Outputs, other: Outputs) -> float:
    """Return how far outcomes are apart at most: rounding, or another picture's."""
    return max(
        (
            float((value.float() - other[head][name].float()).abs().max())
            for head, named in one.items()
            for name, value in named.items()
            if value.numel() and _shape_of(other, head, name) == value.shape
        ),
        default=0.0,
    )


def _shape_of(outputs: Outputs, head: str, name: str) -> torch.Size | None:
    value = outputs.get(head, {}).get(name)
    return None if value is None else value.shape


def _are_equal(one: Outputs, other: Outputs) -> bool:
    """Tell whether all bits are the same: of what is not a number, too."""

    def bits(value: Tensor) -> Tensor:
        return value.contiguous().view(torch.uint8)

    return {head: set(named) for head, named in one.items()} == {
        head: set(named) for head, named in other.items()
    } and all(
        value.shape == other[head][name].shape
        and value.dtype == other[head][name].dtype
        and torch.equal(bits(value), bits(other[head][name]))
        for head, named in one.items()
        for name, value in named.items()
    )
