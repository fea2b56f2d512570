"""Pictures of one size through a pose network, in batches, each in its order.

How they are computed is found by timing on the first of them (``precision.tuning``); pictures that
are to be computed once more in fp32 (``precision.guard``) are gathered over several batches
and computed together: a size of batch that is new takes a network up to a second to prepare.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker import hardware
from worker.engine.loaded import LoadedModel
from worker.gpu import staging
from worker.gpu.staging import AnyFrame
from worker.gpu.streams import Mark, Upload, device_of
from worker.memory import give_back, is_out_of_memory
from worker.precision import tuning, ways
from worker.precision.guard import (
    WINDOW,
    Choice,
    Doubt,
    InFlightBatch,
    PrecisionGuard,
    PrecisionStats,
)
from worker.precision.heads import watches_of
from worker.precision.tuning import Memory, Tuned, Way
from worker.precision.variants import Precision
from worker.video import decode

Frame = npt.NDArray[np.uint8]
#: Of a picture: by head and name what DeepLabCut's predictor gives, without the row.
Raw = dict[str, dict[str, npt.NDArray[Any]]]

#: Batches at work at the same time on a GPU: it computes one while another is read.
IN_FLIGHT = 2
#: Each time that so many pictures more are done, it is asked whether the way still pays.
LOOK_EVERY = 8
#: The share of pictures to be computed again is taken for that of other films at first: that weighs
#: as much as a share of this one's pictures, or so many of them at least and at most. It is never
#: asked again, and a film's first frames are much like each other.
TAKEN_SHARE, TAKEN_LEAST, TAKEN_MOST = 1 / 8, 2, 64
#: Of fewer multiplications no picture is taken to be computed again: as much as so many weigh.
TAKEN_TILED = 16


class Batch:
    """A batch that was computed: its predictions, and what of them is still to be settled."""

    def __init__(self, found: Raw, count: int, doubts: list[Doubt]) -> None:
        self.found = found
        self.count = count
        self.open = len(doubts)

    def put(self, row: int, values: Raw, its: int) -> None:
        """Put a picture's settled predictions in the place of the first ones."""
        for head, named in values.items():
            for name, value in named.items():
                self.found[head][name][row] = value[its]
        self.open -= 1


class _Work:
    """The pictures on their way through the network, and whether more will come."""

    def __init__(self) -> None:
        self.more = True
        """Whether the pictures have not come to their end."""
        self.waiting: deque[AnyFrame] = deque()
        """Pictures of which no batch was made yet."""
        self.group: list[AnyFrame] = []
        """Pictures of the batch that is being begun."""
        self.flying: deque[tuple[list[AnyFrame], InFlightBatch, Mark | None]] = deque()
        """Batches at work: their pictures, the batch, and where the device is when it is done."""
        self.began = 0.0
        """When the last batch was begun, by ``time.perf_counter``."""

    def take_back(self) -> None:
        """Put all that was begun back to the front of the queue, in its order."""
        groups = [*(group for group, *_ in self.flying), self.group]
        self.waiting.extendleft(one for its in reversed(groups) for one in reversed(its))
        self.flying.clear()
        self.group = []


class Pass:
    """Pictures of one size through one network: predictions in the order of the pictures."""

    def __init__(
        self,
        loaded: LoadedModel,
        batch: int | None,
        precision: Precision,
        pcutoff: float,
        *,
        part: str = "",
        memory: Memory | None = None,
        pictures: int | None = None,
        fills: bool = False,
    ) -> None:
        """Prepare to compute; how it is done is decided by the first picture.

        Args:
            loaded: the model.
            batch: pictures at once; None: found by timing.
            precision: of the arithmetic.
            pcutoff: keypoints below this likelihood are not held to the tolerance.
            part: of the model that the network is, to remember timings by.
            memory: what is remembered; None: nothing.
            pictures: how many there will be, as far as that is known.
            fills: whether the last batch is filled up too. (Of pictures whose batches don't begin
                at the same ones in each attempt, the bits would else depend on it.)
        """
        assert loaded.padding is not None  # noqa: S101  # else it is not for this way
        self.padding = loaded.padding
        """How pictures are padded before the network sees them."""
        self._loaded = loaded
        self._asked = batch
        self._precision = precision
        self._part = part
        self._memory = memory or Memory()
        self._pictures = pictures
        self._fills = fills
        self._device = torch.device(loaded.network.device)
        self._accelerated = accelerated(self._device)
        self._cuda = device_of(self._device)
        self._upload = Upload(self._device, self._cuda)
        self._graphs = loaded.variants.graphs
        self._replays = self._graphs.replays
        self.order: decode.Order = "planes" if self._accelerated else "bgr"
        """Of the bytes of a pixel that it takes."""
        self._watches = watches_of(loaded.variants.exact, pcutoff)
        self._strict = watches_of(loaded.variants.exact, -math.inf)
        self._again = max((watch.again for watch in (self._watches or {}).values()), default=0.0)
        some = TAKEN_MOST if pictures is None else min(TAKEN_MOST, TAKEN_SHARE * pictures)
        self._taken = max(TAKEN_LEAST, some)
        self._numbers = loaded.variants.numbers_for(precision, watched=self._watches is not None)
        self._kind_of_device = [
            self._device.type,
            loaded.variants.numbers_for("auto", watched=True),
        ]
        self._before: PrecisionStats | None = None
        """What another kind of device had taught of this film."""
        self._guard: PrecisionGuard | None = None
        self._tuned: Tuned | None = None
        self._key: dict[str, Any] = {}
        self._doubts: list[tuple[Doubt, Batch]] = []
        self._done: deque[Batch] = deque()
        # A batch with the first picture to show some keypoint, until it is settled.
        self._newcomers: tuple[InFlightBatch, Batch, list[Doubt]] | None = None
        self._looked = 0
        # Seconds a picture, on this film: in fewer bits, in fp32.
        self._took = [float("inf"), float("inf")]
        self.batch = batch or 1
        """Pictures at once, as soon as the first one was seen."""
        self.setup: dict[str, Any] = {
            "precision": precision,
            "batch": batch,
            "pcutoff": pcutoff,
            **_ways(),
        }
        """What a state has to have been made with."""
        self.rests = False
        """Set it, and all that was begun is given before more is begun: for a checkpoint."""

    @property
    def is_empty(self) -> bool:
        """Whether all that was begun was given: :meth:`state` is of use then alone."""
        return not self._done

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here as if nothing had happened; JSON types."""
        if self._guard is None or self._tuned is None:
            return {}
        return {
            "arithmetic": self._guard.state_as_json(),
            "choice": asdict(self._guard.choice),
            "tuned": self._tuned.summary(),
            "batch": self.batch,
            "looked": self._looked,
            "device": self._kind_of_device,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned in an earlier attempt."""
        if not state:
            return
        known = PrecisionStats.parse(state["arithmetic"])
        self._looked = int(state["looked"])
        if state.get("device") != self._kind_of_device:
            # What was found stays; its numbers may be none that this one multiplies.
            self._before = known
            return
        self.batch = int(state["batch"])
        choice = Choice(**state["choice"])
        timings = {Way.parse(way): ms / 1000 for way, ms in state["tuned"]["milliseconds"].items()}
        self._tuned = Tuned(
            choice, timings, int(state["tuned"]["remembered"]), state["tuned"]["seconds"]
        )
        self._guard = self._new_guard(choice, known)

    def enlarge(self, scale: float) -> None:
        """Let a pixel of a picture be so many of a frame, from now on, if that is more."""
        for watches in (self._watches or {}, self._strict or {}):
            for watch in watches.values():
                watch.scale = max(watch.scale, scale)

    def summary(self) -> dict[str, Any]:
        """Return what result.json says: ``precision``, ``batch_size``, ``tuning``."""
        state = self._guard.state if self._guard is not None else PrecisionStats(self._numbers)
        return {
            "precision": state.summary(self._precision),
            "batch_size": self.batch,
            "tuning": self._tuned.summary() if self._tuned is not None else None,
            **({"graphs": self._graphs.summary(self._replays)} if self._cuda is not None else {}),
        }

    def outputs(self, pictures: Iterator[AnyFrame]) -> Iterator[Raw]:
        """Yield predictions picture by picture, of the same pictures as :meth:`batches`."""
        for found, count in self.batches(pictures):
            for row in range(count):
                yield {
                    head: {name: value[row] for name, value in named.items()}
                    for head, named in found.items()
                }

    @torch.inference_mode()
    def batches(self, pictures: Iterator[AnyFrame]) -> Iterator[tuple[Raw, int]]:
        """Yield predictions by batches: arrays with a row a picture, and how many rows count.

        Args:
            pictures: (height, width, 3), BGR, or planes of that shape.

        Raises:
            UnfaithfulError: the fast arithmetic moved a keypoint; begin again in fp32.
        """
        work = _Work()
        while work.more or work.waiting or work.flying or self._done:
            self.rests = self.rests and bool(work.flying or self._done)
            self._take_in(pictures, work)
            try:
                if self._begins_another(work):
                    continue
                self._finish_one(work)
            except Exception as error:
                if not is_out_of_memory(error) or self.batch == 1:
                    raise
                work.take_back()
                self._halve()
                continue
            while self._done and not self._done[0].open:
                batch = self._done.popleft()
                yield batch.found, batch.count

    def _take_in(self, pictures: Iterator[AnyFrame], work: _Work) -> None:
        """Take pictures for the next batch, as far as there are more."""
        while work.more and len(work.waiting) < self._wanted:
            picture = next(pictures, None)
            if picture is None:
                work.more = False
            else:
                work.waiting.append(picture)
                if self._guard is None:
                    self._begin(picture)

    def _begins_another(self, work: _Work) -> bool:
        """Begin a batch, if one is due; return whether another is to be begun before one ends."""
        # At rest, a batch that is not full waits for more pictures.
        if not work.waiting or (self.rests and work.more):
            return False
        count = min(self._wanted, len(work.waiting))
        work.group = [work.waiting.popleft() for _ in range(count)]
        work.began = time.perf_counter()
        launched = self._launch(work.group, fills=self._fills)
        work.flying.append((work.group, launched, self._marked()))
        work.group = []
        in_flight = IN_FLIGHT if self._accelerated else 1
        return len(work.flying) < in_flight and work.more and not self.rests

    def _finish_one(self, work: _Work) -> None:
        """Collect the batch that was begun first, and compute again what is due."""
        self._settle_first()  # where memory ran out at it
        if work.flying:
            group, launched, mark = work.flying[0]
            self._settle_before(launched.first + launched.count - 1)
            self._collect(launched, mark)
            work.flying.popleft()
            if launched.fast and launched.outputs is not None and not self._accelerated:
                self._know(0, work.began, len(group))
            self._settle_first()
            self._settle(self._again_batch - 1)
            self._look()
        at_rest = self.rests and not work.flying
        if (not work.more and not work.waiting and not work.flying) or at_rest:
            self._settle(0)

    @property
    def _running(self) -> PrecisionGuard:
        assert self._guard is not None  # noqa: S101  # there is a picture
        return self._guard

    @property
    def _again_batch(self) -> int:
        return tuning.settled_at_once(self.batch)

    @property
    def _wanted(self) -> int:
        """Pictures of the next batch."""
        guard = self._guard
        if guard is None or not guard.learns:
            return self.batch
        # Few, as they are computed both ways; but a film may begin with long nothing.
        return min(self.batch, self._again_batch << min(guard.state.blank, 8))

    def _begin(self, picture: AnyFrame) -> None:
        """Choose how to compute, by timing it on a film's first picture."""
        variants = self._loaded.variants
        variants.rest()
        numbers = list(dict.fromkeys([self._numbers, "fp32"]))
        if self._precision != "auto":
            numbers = numbers[:1]
        watched = self._watches is not None
        kinds = {one: variants.kinds(one, watched=watched) for one in numbers}
        if watched and self._precision == "auto":
            kinds = {one: [*its, *variants.others(one)] for one, its in kinds.items()}
        among = tuning.space(
            kinds,
            self.padding.padded_size((picture.shape[0], picture.shape[1])),
            self._asked,
            accelerated=self._accelerated,
            multiplies_tiles=torch.cpu._is_amx_tile_supported(),
            pictures=self._pictures,
            again=self._again,
            threads=torch.get_num_threads(),
        )
        self._key = {
            **tuning.signature(self._device, torch.get_num_threads()),
            "part": self._part,
            "size": list(picture.shape),
        }
        known = self._memory.recall(self._key)
        self._tuned = tuning.tune(
            among, known, self._pictures, lambda way: self._timed(way, picture), time.perf_counter
        )
        if self._tuned.timings != known:
            self._memory.learn(self._key, self._tuned.timings)
        choice = self._tuned.choice
        variants.keep({(choice.numbers, choice.kind), ("fp32", choice.exact)})
        self.batch = choice.batch
        self._guard = self._new_guard(choice, self._before and self._before.anew(choice.numbers))

    def _new_guard(self, choice: Choice, state: PrecisionStats | None) -> PrecisionGuard:
        return PrecisionGuard(
            self._loaded.variants, self._precision, self._watches, self._strict, choice, state
        )

    def _timed(self, way: Way, picture: AnyFrame) -> float:
        """Return the seconds that a picture takes in a way; infinity if memory does not suffice."""
        state = PrecisionStats(way.numbers, samples=10**9)  # nothing is learnt by it
        choice = Choice(
            way.numbers, way.kind, way.kind if way.numbers == "fp32" else "direct", way.batch
        )
        best = float("inf")
        # In fp32 rows that do not count are looked at, but not computed again: here all would be,
        # or none. How many pictures of the film are is weighed later.
        count = 0 if way.numbers == "fp32" else way.batch
        try:
            guard = self._new_guard(choice, state)
            for call in range(1 + tuning.TIMES):
                began = time.perf_counter()
                pixels = self._pixels([picture] * way.batch)
                found, _ = guard.collect(guard.launch(pixels, count))
                _here(found)
                took = time.perf_counter() - began
                if call:
                    best = min(best, took / way.batch)
                    if took > tuning.LONG:
                        break
            form = self._loaded.variants.form(way.numbers, way.kind)
            if isinstance(form, ways.Other) and not form.works:
                best = float("inf")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._free()
        return best

    def _launch(self, group: list[AnyFrame], *, fills: bool) -> InFlightBatch:
        size = self._wanted if fills else len(group)
        pixels = self._pixels(group + group[-1:] * (size - len(group)))
        return self._running.launch(pixels, len(group))

    def _marked(self) -> Mark | None:
        """Mark where the device is when it has done what it was told so far."""
        if self._cuda is None:
            return None
        mark = self._cuda.mark()
        mark.record()
        return mark

    def _pixels(self, images: list[AnyFrame]) -> torch.Tensor:
        return self.padding.padded(staging.pixels(images, self._upload))

    def _collect(self, launched: InFlightBatch, mark: Mark | None) -> None:
        # What is computed only now has its place behind the batch that is at work.
        begun = launched.outputs is not None
        beside = self._cuda.beside(mark) if begun and self._cuda and mark else nullcontext()
        with beside:
            found, doubts = self._running.collect(launched)
            batch = Batch(_here(found), launched.count, doubts)
        self._done.append(batch)
        self._doubts += [(doubt, batch) for doubt in doubts]
        if any(doubt.first for doubt in doubts):
            self._newcomers = launched, batch, doubts

    def _settle_first(self) -> None:
        """Settle what shows a keypoint for the first time: its noise counts from there on."""
        if self._newcomers is None:
            return
        launched, batch, doubts = self._newcomers
        self._settle(0)
        more = self._running.look_again(launched, doubts)
        self._newcomers = None
        batch.open += len(more)
        self._doubts += [(doubt, batch) for doubt in more]

    def _settle_before(self, index: int) -> None:
        """Settle all whose noise could count for pictures up to this number."""
        if self._doubts and self._doubts[0][0].index // WINDOW + 2 <= index // WINDOW:
            self._settle(0)

    def _settle(self, left: int) -> None:
        """Compute again what is in doubt, in full batches, until no more than ``left`` are."""
        while len(self._doubts) > left:
            some, began = self._doubts[: self._again_batch], time.perf_counter()
            values = _here(self._running.settle([doubt for doubt, _ in some], self._again_batch))
            self._know(1, began, self._again_batch)
            del self._doubts[: len(some)]
            for its, (doubt, batch) in enumerate(some):
                if self._precision == "auto":
                    batch.put(doubt.row, values, its)
                else:
                    batch.open -= 1

    def _look(self) -> None:
        """Give up fewer bits where too many pictures have to be computed again."""
        guard = self._running
        state, choice = guard.state, guard.choice
        if state.frames // LOOK_EVERY == self._looked:
            return
        self._looked = state.frames // LOOK_EVERY
        if choice.exact == "winograd":  # of a film that begins with nothing, all is in fp32
            self._weigh_tiles()
            choice = guard.choice
        if self._precision != "auto" or state.numbers == "fp32":
            return
        if choice.seconds is None or choice.exact_seconds is None:
            # The film was too short to time it. What is known now counts for the rest of it.
            fast, exact = (known if known < float("inf") else None for known in self._took)
            choice = replace(
                choice,
                seconds=choice.seconds or fast,
                exact_seconds=choice.exact_seconds or exact,
            )
            guard.choice = choice
        if choice.seconds is None or choice.exact_seconds is None:
            return
        # Few pictures tell little: what is taken of all films counts as so many.
        again = state.again + state.tied + self._again * self._taken
        if not tuning.is_worth(
            choice.seconds, choice.exact_seconds, again / (state.frames + self._taken)
        ):
            guard.give_up()
            if self._asked is None and self._tuned is not None:
                self.batch = tuning.fp32_batch(self._tuned.timings, choice.exact, self.batch)

    def _weigh_tiles(self) -> None:
        """Multiply all from now on where too many pictures have to be computed again by that."""
        guard, tuned = self._running, self._tuned
        assert tuned is not None  # noqa: S101  # a picture was seen
        share = guard.state.untiled / (guard.state.frames + TAKEN_TILED)
        if not tuning.is_tiling_worth(tuned.timings, self.batch, share):
            guard.untile()
            tuned.choice = guard.choice

    def _know(self, which: int, began: float, pictures: int) -> None:
        took = (time.perf_counter() - began) / pictures
        self._took[which] = min(self._took[which], took)

    def _halve(self) -> None:
        self._running.back()
        if self._tuned is not None and self._key:
            choice, numbers = self._running.choice, self._running.state.numbers
            kind = choice.kind if numbers == choice.numbers else choice.exact
            self._tuned.timings[Way(numbers, kind, self.batch)] = float("inf")
            self._memory.learn(self._key, self._tuned.timings)
        self.batch = max(1, self.batch // 2)
        print(f"out of memory: {self.batch} pictures at once from now on")
        self._free()

    def _free(self) -> None:
        self._graphs.clear()
        if self._device.type == "cuda":
            hardware.released()
        else:
            give_back()


def _ways() -> dict[str, Any]:
    """Return the plug-ins that there are: a worker without them can't go on from here."""
    return {"ways": list(ways.installed())} if ways.installed() else {}


def accelerated(device: torch.device) -> bool:
    """Whether a device computes by itself: it wants work ahead, and much of it at once."""
    return device.type != "cpu"


def _here(found: Any) -> Raw:
    """Return predictions as arrays in memory: one copy a tensor, not one a picture."""
    return {
        head: {name: value.cpu().numpy() for name, value in named.items()}
        for head, named in found.items()
    }
