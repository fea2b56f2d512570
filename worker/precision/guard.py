"""A network computed in fewer bits where no keypoint changes by it, else exactly.

Fewer bits (bf16, fp16) are faster than fp32 (:mod:`worker.precision.variants`), but two peaks of a
heatmap that nearly tie may change places, by which a keypoint jumps. So ``auto`` watches itself
(:mod:`worker.precision.watch`):

* The first pictures that show a keypoint are computed both ways. By how much the outputs differ is
  the *noise* of the fast way, on this video with this model.
* Each further picture in which the noise could put a keypoint elsewhere, by more than
  ``MAX_SPREAD`` pixels, is computed again, exactly.
* So is the first picture that shows a keypoint which none of those did, as when an animal comes
  into a film of landmarks: the noise of its outputs counts from there on.
* Every ``CHECK_EVERY``-th picture, of the first ones more, is computed both ways too. If a keypoint
  that was not caught moves by more than ``TOLERANCE``, the fast way is given up for all the video.

What such a check finds of the noise counts from the second window of ``WINDOW`` pictures behind it
on, whenever it was computed: so it makes no difference to a run whether it was interrupted. For
that, whoever collects a batch has settled all that counts for one of its pictures.

fp32 itself saves multiplications (:mod:`worker.cpu.winograd`), which errs by millionths. A picture
in which these could put a keypoint elsewhere is computed with all of them, however unlikely the
keypoint is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from worker.gpu.staging import normalised
from worker.precision.variants import TILED_NOISE, Kind, ModelVariants, Numbers, Precision
from worker.precision.watch import Named, Watch, greatest

#: Per head, per name: a tensor with a row a picture.
HeadPredictions = dict[str, Named]
Outputs = dict[str, Named]

#: Pictures with a keypoint that are computed both ways at the start.
SAMPLES = 6
#: Later, each of so many pictures is.
CHECK_EVERY = 64
#: Of the first ``EARLY`` each of so many is, besides: the samples at the start are few.
CHECK_EARLY, EARLY = 16, 128
#: Pictures between two moments from which on more noise counts.
WINDOW = 128
#: Pixels by which a keypoint may be uncertain in the fast arithmetic.
MAX_SPREAD = 0.4
#: Pixels by which a keypoint of the fast arithmetic may differ from fp32's.
TOLERANCE = 0.5
#: The samples are few: the largest difference of all pictures may be so many times theirs.
SAFETY = 1.5
#: Pixels by which a keypoint may be uncertain for the multiplications that fp32 saves.
TILED_SPREAD = 0.005


class UnfaithfulError(Exception):
    """The fast arithmetic moved a keypoint and did not notice: begin again without it."""


@dataclass(frozen=True)
class Choice:
    """How the pictures of one size are computed by one model on one device."""

    numbers: Numbers
    kind: Kind
    """Of the convolutions in these numbers."""
    exact: Kind
    """Of the convolutions in fp32, by which pictures are computed again."""
    batch: int
    """Pictures at once."""
    seconds: float | None = None
    """A picture, as it was timed; None: it was not."""
    exact_seconds: float | None = None
    """The same in fp32."""


@dataclass
class PrecisionStats:
    """What one video has taught of fewer bits; a checkpoint keeps it."""

    numbers: Numbers
    """Of the fast arithmetic, while that is used; else fp32."""
    noise: float = 0.0
    """Largest difference of the outputs to fp32's, of the pictures sampled at the start."""
    later: list[tuple[int, float]] = field(default_factory=list)
    """The same of those checked since, where it grew: the number of a picture, and the noise."""
    grown: list[tuple[int, float]] = field(default_factory=list)
    """The same of those with a keypoint that none had shown before."""
    met: dict[str, list[int | None]] = field(default_factory=dict)
    """By head, of each keypoint: the first picture that shows it, of those computed both ways."""
    samples: int = 0
    blank: int = 0
    """Batches before the first sample, that showed no keypoint."""
    checked: int = 0
    """Pictures computed both ways."""
    tied: int = 0
    """Of the samples, those that would have been computed again."""
    again: int = 0
    """Pictures computed again because their peaks nearly tie."""
    untiled: int = 0
    """Pictures computed again with all multiplications: their peaks tie but for millionths."""
    frames: int = 0
    deviation: float = 0.0
    """Largest distance in pixels of a keypoint that would have been kept, of the checked ones."""

    def anew(self, numbers: Numbers) -> PrecisionStats:
        """Return what counts of it for another arithmetic: not the noise."""
        fresh = PrecisionStats(numbers)
        names = ("noise", "later", "grown", "met", "samples", "tied", "blank")
        return replace(self, numbers=numbers, **{name: getattr(fresh, name) for name in names})

    @classmethod
    def parse(cls, content: dict[str, Any]) -> PrecisionStats:
        """Return what :func:`dataclasses.asdict` made such JSON types of."""
        pairs = {
            name: [(int(at), noise) for at, noise in content.get(name, [])]
            for name in ("later", "grown")
        }
        return cls(**{**content, **pairs})

    def noise_for(self, index: int) -> float:
        """Return the noise that counts for the picture of this number."""
        known = [noise for found, noise in self.later if found // WINDOW + 2 <= index // WINDOW]
        return max([self.noise, *known, *(noise for found, noise in self.grown if found <= index)])

    def meet(self, head: str, index: int, shown: Sequence[bool]) -> bool:
        """Note which keypoints a picture shows; return whether it is the first to show one.

        Pictures come in their order, but a run that was interrupted goes back some: those that were
        first are it again.
        """
        known = self.met.setdefault(head, [None] * len(shown))
        new = False
        for keypoint, there in enumerate(shown):
            first = known[keypoint]
            if there and (first is None or first >= index):
                known[keypoint] = index
                new = True
        return new

    def learn(self, index: int, noise: float, *, first: bool) -> None:
        """Note the noise of a picture that was computed both ways behind the samples.

        Args:
            first: it shows a keypoint that none before it did.
        """
        if not math.isfinite(noise):  # such a picture is unsure by itself
            return
        if first and noise > self.noise_for(index):
            self.grown.append((index, noise))
        elif not first and noise > self.largest_noise:
            self.later.append((index, noise))

    @property
    def largest_noise(self) -> float:
        """The largest noise known so far, whichever pictures it counts for."""
        return max([self.noise, *(noise for _, noise in [*self.later, *self.grown])])

    def summary(self, wanted: Precision) -> dict[str, Any]:
        """Return what result.json says of the precision."""
        return {
            "asked": wanted,
            "used": self.numbers,
            "frames_checked_in_fp32": self.checked,
            "frames_repeated_in_fp32": self.again,
            "frames_repeated_untiled": self.untiled,
            "share_repeated": round(self.again / self.frames, 4) if self.frames else 0.0,
            "largest_deviation_px": round(self.deviation, 4),
            "heatmap_noise": self.largest_noise,
        }


@dataclass(frozen=True)
class InFlightBatch:
    """A batch that is being computed; on a GPU, nobody has waited for it yet."""

    x: Tensor
    outputs: Outputs | None
    """None: not begun."""
    fast: bool
    first: int = 0
    """The number of its first picture."""
    count: int = 0
    """Its pictures; what is behind them only fills it up."""


@dataclass(frozen=True)
class Doubt:
    """A picture of a batch that is to be computed in fp32 too."""

    row: int
    """In its batch."""
    index: int
    """The picture's number."""
    x: Tensor
    """(3, height, width), normalised."""
    unsure: bool
    """Whether the noise could move a keypoint of it."""
    first: bool
    """Whether it is the first to show one of its keypoints."""
    outputs: Outputs | None
    """Of the fast arithmetic, with one row, where the noise is to be learnt from it."""
    predictions: HeadPredictions | None


class PrecisionGuard:
    """Computes one video's batches in fewer bits, and in fp32 what those could move."""

    def __init__(
        self,
        variants: ModelVariants,
        wanted: Precision,
        watches: dict[str, Watch] | None,
        strict: dict[str, Watch] | None,
        choice: Choice,
        state: PrecisionStats | None = None,
    ) -> None:
        """Begin a video, or go on with the ``state`` of an earlier attempt.

        Args:
            variants: the network.
            wanted: ``auto`` computes again where that could change a keypoint.
            watches: of its heads; None: they are of kinds that nobody knows how to watch.
            strict: the same, of keypoints of any likelihood.
            choice: how to compute.
            state: of an earlier attempt.
        """
        self._variants = variants
        self._wanted = wanted
        self._watches = watches
        self._strict = strict
        self.choice = choice
        self.state = state or PrecisionStats(choice.numbers)
        self._fast: Any = None
        if self.state.numbers != "fp32":
            self._fast = variants.form(self.state.numbers, choice.kind)
        self._exact_kind: Kind = choice.exact
        self._exact = variants.form("fp32", self._exact_kind)
        self._launched = self.state.frames

    @property
    def learns(self) -> bool:
        """Whether pictures are still computed both ways to know the noise."""
        return self._fast is not None and self._watches is not None and self.state.samples < SAMPLES

    def state_as_json(self) -> dict[str, Any]:
        """Return the state as JSON types, the fields of :class:`PrecisionStats`."""
        return asdict(self.state)

    def launch(self, pixels: Tensor, count: int) -> InFlightBatch:
        """Begin to compute a batch.

        Args:
            pixels: (n, height, width, 3), BGR, uint8, on the device.
            count: the first of them that are pictures of the video.
        """
        x = normalised(pixels)
        first = self._launched
        outputs = None
        if not self.learns:
            outputs = self._exactly(x, count) if self._fast is None else self._run(self._fast, x)
        self._launched += count
        return InFlightBatch(x, outputs, self._fast is not None, first, count)

    def back(self) -> None:
        """Forget what was launched and not collected: it is launched anew."""
        self._launched = self.state.frames

    def collect(self, batch: InFlightBatch) -> tuple[HeadPredictions, list[Doubt]]:
        """Return a batch's predictions, by the same names as DeepLabCut's ``get_predictions``.

        Batches are collected in the order in which they were launched.

        Returns:
            The predictions, and the pictures that :meth:`settle` is to look at: the predictions of
            those are not to be used before.

        Raises:
            UnfaithfulError: a keypoint moved unnoticed in fewer bits; begin again in fp32.
        """
        predictions, doubts = self._collect(batch)
        self.state.frames += batch.count
        return predictions, doubts

    def settle(self, doubts: Sequence[Doubt], size: int) -> HeadPredictions:
        """Compute pictures in fp32 that were computed fast, and compare where that is a check.

        Args:
            doubts: at most ``size`` of them.
            size: of the batch, which is filled up.

        Returns:
            HeadPredictions, a row for each: what is to be used.

        Raises:
            UnfaithfulError: a keypoint moved unnoticed in fewer bits; begin again in fp32.
        """
        x = torch.stack([doubt.x for doubt in doubts])
        if len(x) < size:
            x = torch.cat([x, x[-1:].expand(size - len(x), -1, -1, -1)])
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = self._exactly(x, len(doubts))
        exact = self._predictions(outputs)
        for row, doubt in enumerate(doubts):
            if doubt.outputs is None or doubt.predictions is None:
                continue
            found = self._compare(
                doubt.outputs, doubt.predictions, _of(outputs, [row]), _of(exact, [row]),
                noticed=doubt.unsure or doubt.first or self._is_unsure_by_now(doubt),
            )  # fmt: skip
            if self._wanted == "auto":
                self.state.learn(doubt.index, found, first=doubt.first)
        return exact

    def _is_unsure_by_now(self, doubt: Doubt) -> bool:
        """Tell whether a check is noticed by the noise of one before it, learnt since."""
        if self._wanted != "auto" or doubt.outputs is None:
            return False
        noise = SAFETY * self.state.noise_for(doubt.index)
        return bool(_unsure(self._watches, doubt.outputs, lambda *_: noise, MAX_SPREAD))

    def look_again(self, batch: InFlightBatch, doubts: Sequence[Doubt]) -> list[Doubt]:
        """Return what else of a collected batch is to be settled, since the noise has grown by it.

        Args:
            batch: as it was collected.
            doubts: what is to be settled already, or is.
        """
        assert batch.outputs is not None  # noqa: S101  # or nothing were in doubt
        there = {doubt.index - batch.first for doubt in doubts}
        rows = [row for row in sorted(self._unsure_rows(batch)) if row not in there]
        self.state.again += len(rows)
        return [self._doubt(batch, row, unsure=True) for row in rows]

    def _collect(self, batch: InFlightBatch) -> tuple[HeadPredictions, list[Doubt]]:
        # In flight when fewer bits were given up: of what noise to take it, nobody knows.
        given_up = batch.fast and self._fast is None
        if batch.outputs is None or given_up:
            return self._both(batch.x, batch.first, batch.count), []
        fast = self._predictions(batch.outputs)
        if not batch.fast or self._watches is None:
            return fast, []
        rows = range(batch.count)
        checked = {row for row in rows if _is_checked(batch.first + row)}
        first: set[int] = set()
        unsure: set[int] = set()
        if self._wanted == "auto":
            first = self._meet(fast, batch.first, list(rows))
            unsure = self._unsure_rows(batch)
        self.state.again += len(unsure - checked - first)
        return fast, [
            self._doubt(
                batch, row, fast if row in checked | first else None,
                unsure=row in unsure, first=row in first,
            )
            for row in sorted(checked | first | unsure)
        ]  # fmt: skip

    def _unsure_rows(self, batch: InFlightBatch) -> set[int]:
        """Return the rows of a batch in which the noise could move a keypoint."""
        assert batch.outputs is not None  # noqa: S101  # it was begun
        noises = [self.state.noise_for(batch.first + row) for row in range(batch.count)]
        noises += noises[-1:] * (len(batch.x) - batch.count)
        noise = SAFETY * torch.tensor(noises, device=batch.x.device)
        found = _unsure(self._watches, batch.outputs, lambda *_: noise, MAX_SPREAD)
        return {row for row in found if row < batch.count}

    @staticmethod
    def _doubt(
        batch: InFlightBatch,
        row: int,
        fast: HeadPredictions | None = None,
        *,
        unsure: bool,
        first: bool = False,
    ) -> Doubt:
        """Return a picture that is to be settled, and learnt from if ``fast`` is given."""
        assert batch.outputs is not None  # noqa: S101  # it was begun
        return Doubt(
            row,
            batch.first + row,
            batch.x[row].clone(),  # or it would hold the whole batch in memory
            unsure,
            first,
            None if fast is None else _of(batch.outputs, [row]),
            None if fast is None else _of(fast, [row]),
        )

    def _both(self, x: Tensor, first: int, count: int) -> HeadPredictions:
        """Compute a batch in fp32 and, where it shows a keypoint, the fast way too."""
        outputs = self._exactly(x, count)
        exact = self._predictions(outputs)
        shown = sorted(row for row in self._shown(exact) if row < count)
        if self._fast is None or not shown:
            self.state.blank += self.state.samples == 0
            return exact
        fast_outputs = self._run(self._fast, x)
        fast = self._predictions(fast_outputs)
        # While the noise is not known, nothing is kept that could go unnoticed.
        found = self._compare(
            _of(fast_outputs, shown), _of(fast, shown), _of(outputs, shown), _of(exact, shown),
            noticed=True,
        )  # fmt: skip
        self.state.samples += len(shown)
        if self._wanted != "auto":
            return fast
        self._meet(exact, first, shown)
        self.state.noise = greatest([self.state.noise, found])
        noise = SAFETY * self.state.noise
        tied = _unsure(self._watches, _of(fast_outputs, shown), lambda *_: noise, MAX_SPREAD)
        self.state.tied += len(tied)
        sure = [row for place, row in enumerate(shown) if place not in tied]
        moved = bool(sure) and self._has_moved(_of(exact, sure), _of(fast, sure))
        if moved or not math.isfinite(found):
            self.state.noise = 0.0
            self.give_up()
        return exact

    def _has_moved(self, exact: HeadPredictions, fast: HeadPredictions) -> bool:
        """Tell whether a keypoint of pictures moved too far, though the noise did not show it."""
        return any(
            not float(watch.moved(exact[name], fast[name]).max()) <= TOLERANCE
            for name, watch in (self._watches or {}).items()
        )

    def _meet(self, predictions: HeadPredictions, first: int, rows: Sequence[int]) -> set[int]:
        """Return the rows that are the first to show a keypoint above the cutoff."""
        found: set[int] = set()
        for name, watch in (self._watches or {}).items():
            known = self.state.met.get(name, [None])
            if name not in predictions or all(at is not None and at < first for at in known):
                continue  # none can be new: nobody waits for a card
            shown = watch.shown(predictions[name]).tolist()
            found.update(row for row in rows if self.state.meet(name, first + row, shown[row]))
        return found

    def give_up(self) -> None:
        """Compute all further pictures in fp32."""
        self.state.numbers = "fp32"
        self._fast = None

    def untile(self) -> None:
        """Compute all further pictures that are computed in fp32 with all multiplications."""
        self._exact_kind = "direct"
        self._exact = self._variants.form("fp32", "direct")
        kind: Kind = "direct" if self.choice.numbers == "fp32" else self.choice.kind
        self.choice = replace(self.choice, kind=kind, exact="direct")

    def _run(self, form: Any, x: Tensor) -> Outputs:
        return self._variants.graphs.run(form, x)

    def _predictions(self, outputs: Outputs) -> HeadPredictions:
        predictions: HeadPredictions = self._variants.exact.get_predictions(outputs)
        return predictions

    def _shown(self, predictions: HeadPredictions) -> set[int]:
        """Return the rows that show a keypoint above the cutoff."""
        shown = [
            watch.shown(predictions[name]).any(dim=1).cpu()  # some predictors answer there
            for name, watch in (self._watches or {}).items()
            if name in predictions
        ]
        rows: list[int] = torch.stack(shown).any(dim=0).nonzero().flatten().tolist()
        return set(rows)

    def _exactly(self, x: Tensor, count: int) -> Outputs:
        """Compute a batch in fp32, of which the first ``count`` rows are pictures."""
        outputs = self._run(self._exact, x)
        if self._exact_kind == "winograd":
            unsure = _unsure(
                self._strict,
                outputs,
                lambda watch, named: TILED_NOISE * watch.largest(named),
                TILED_SPREAD,
            )
            rows = [row for row in sorted(unsure) if row < count]
            if rows:
                self.state.untiled += len(rows)
                # A number of pictures that is new takes half a second to prepare: there are few.
                filled = rows + rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
                found = self._variants.exact(x[filled])
                _put(outputs, rows, _of(found, list(range(len(rows)))))
        return outputs

    def _compare(
        self,
        fast_outputs: Outputs,
        fast: HeadPredictions,
        exact_outputs: Outputs,
        exact: HeadPredictions,
        *,
        noticed: bool,
    ) -> float:
        """Learn from pictures computed both ways; return the noise.

        Args:
            noticed: they would be computed again in any case.
        """
        self.state.checked += len(next(iter(exact_outputs[next(iter(exact_outputs))].values())))
        noise = 0.0
        for name, watch in (self._watches or {}).items():
            if self._wanted == "auto":
                noise = greatest([noise, watch.noise(exact_outputs[name], fast_outputs[name])])
            if not noticed:
                moved = float(watch.moved(exact[name], fast[name]).max())
                if not moved <= self.state.deviation:  # nor if it is not a number
                    self.state.deviation = moved
        if self._wanted == "auto" and not self.state.deviation <= TOLERANCE:
            raise UnfaithfulError(
                f"a keypoint moved by {self.state.deviation:.2f} pixels unnoticed"
            )
        return noise


def _unsure(
    watches: dict[str, Watch] | None,
    outputs: Outputs,
    noise_of: Callable[[Watch, Named], float | Tensor],
    spread: float,
) -> set[int]:
    """Return the rows in which noise could move a keypoint by more than ``spread`` pixels."""
    found: set[int] = set()
    for name, watch in (watches or {}).items():
        noise = noise_of(watch, outputs[name])
        rows = watch.unsure(outputs[name], noise, spread)
        found.update(rows.nonzero().flatten().tolist())
    return found


def _of(values: dict[str, dict[str, Tensor]], rows: list[int]) -> dict[str, dict[str, Tensor]]:
    if len(rows) == 1:  # a list of numbers is sent to the card, which waits for it
        [row] = rows
        return {
            head: {name: value[row : row + 1].clone() for name, value in named.items()}
            for head, named in values.items()
        }
    return {
        head: {name: value[rows] for name, value in named.items()} for head, named in values.items()
    }


def _put(
    target: dict[str, dict[str, Tensor]], rows: list[int], values: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    for head, named in values.items():
        for name, value in named.items():
            target[head][name][rows] = value
    return target


def _is_checked(index: int) -> bool:
    return index % (CHECK_EARLY if index < EARLY else CHECK_EVERY) == 0
