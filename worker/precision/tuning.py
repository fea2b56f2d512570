"""Which way of computing a network is fastest: found by timing a few, and remembered.

How many pictures at once, in which numbers, by which kind of convolutions: no rule tells for all
networks, sizes of pictures and processors. So ways are timed on the first picture of a film,
within a small share of the work that the film is, the most promising first. What was timed is
remembered for films of the same size by the same model on the same kind of device
(:func:`signature`), and a later film goes on from there.

What to try next and what to choose are functions of the timings alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from worker.precision import ways
from worker.precision.guard import CHECK_EVERY, SAMPLES, Choice
from worker.precision.variants import Kind, Numbers
from worker.tuning_memory import MAX_BYTES

#: Raised when what is timed changes: what was remembered before counts no more.
FORMAT = 2
#: Of a film's work, timing may take this share,
SHARE = 0.04
#: or so many seconds, if these are no more than ``MOST_SHARE`` of it.
SECONDS, MOST_SHARE = 0.4, 0.12
#: For the first two ways, that tell whether fewer bits are worth it at all, this one.
FIRST_SHARE = 0.2
#: and for a first way alone, this one.
FIRST_ALONE = 0.08
#: A way is called once to prepare it; the call that counts is the fastest of so many more, of one
#: alone where that takes longer than ``LONG``.
TIMES, LONG = 3, 0.15
#: A larger batch has to be so many times faster, a picture: it holds more memory.
GROWTH = 1.03
#: A kind of convolutions that was so many times slower at one batch isn't tried at another.
RIVAL = 1.3
#: Pixels in a batch: beyond, a processor's caches gain nothing, and memory fills up.
FIRST_PIXELS, MOST_PIXELS = 4 * 640 * 480, 8 * 640 * 480
#: Pictures at once on a processor, at most; to begin with and at most on an accelerator.
MOST_BATCH, FIRST_BATCH, LAST_BATCH = 64, 8, 64
#: Where neither was timed, fewer bits are taken to need this share of fp32's time, and are used if
#: no larger share than ``MOST_AGAIN`` is taken to be computed again.
UNTIMED, MOST_AGAIN = 0.5, 0.3
#: So many pictures are computed once more in fp32 together; half a batch of them, if that is more.
AGAIN_BATCH = 8
#: Pixels of a batch from which on it is taken for large enough for Winograd's tiles; and threads
#: from which on their transforms, handed out by Python, are taken to gain nothing.
LARGE, MANY_THREADS = 3 * 320 * 240, 16
#: What is computed with these is taken to be so many times as fast, where it was not timed.
TILED_GAIN = 1.25
#: How many ways a remembered tuning may hold: beyond, it is none of ours.
MAX_WAYS = 200


class Way(NamedTuple):
    """One way of computing a network."""

    numbers: Numbers
    kind: Kind
    batch: int

    def __str__(self) -> str:
        """Return the way as it is remembered: ``bf16/direct/8``."""
        return f"{self.numbers}/{self.kind}/{self.batch}"

    @classmethod
    def parse(cls, text: str) -> Way:
        """Return the way that ``str(way)`` gave such a text.

        Raises:
            ValueError: it is none.
        """
        numbers, kind, batch = text.split("/")
        known = numbers in get_args(Numbers) and kind in {*get_args(Kind), *ways.installed()}
        if not known or not 0 < int(batch) < 9999:
            raise ValueError(f"{text!r} is no way to compute")
        return cls(numbers, kind, int(batch))  # type: ignore[arg-type]  # just looked at


#: Seconds a picture; infinite where memory did not suffice.
Timings = dict[Way, float]


@dataclass(frozen=True)
class Space:
    """The ways that there are for a model, a size of pictures and a device."""

    kinds: Mapping[Numbers, Sequence[Kind]]
    """For the numbers that may be used, the fast ones first: the kinds of convolutions, that first
    which is taken for the fastest."""
    first: int
    """The batch to begin with,"""
    least: int
    most: int
    again: float = 0.0
    """The share of pictures that is taken to be computed again after fewer bits."""
    accelerated: bool = False
    """Whether the device is something beside the processor."""
    pictures: int | None = None
    """Of the film, as far as it is known."""

    def ways(self, batch: int) -> list[Way]:
        """Return all ways with such a batch, the most promising first."""
        firsts = [Way(numbers, kinds[0], batch) for numbers, kinds in self.kinds.items()]
        others = [
            Way(numbers, kind, batch) for numbers, kinds in self.kinds.items() for kind in kinds[1:]
        ]
        return firsts + others


def space(
    kinds: Mapping[Numbers, Sequence[Kind]],
    size: tuple[int, int],
    asked: int | None,
    *,
    accelerated: bool,
    multiplies_tiles: bool,
    pictures: int | None,
    again: float = 0.0,
    threads: int = 1,
) -> Space:
    """Return the ways of computing pictures of one size.

    Args:
        kinds: what the network can be computed in.
        size: height and width of a picture, in pixels.
        asked: the batch that somebody asked for; no other is tried.
        accelerated: whether the device is something beside the processor.
        multiplies_tiles: whether the processor has instructions (AMX) for products of 16-bit
            matrices, beside which saving multiplications saves nothing.
        pictures: of the film, as far as it is known; a batch is at most a quarter of them.
        again: the share of them that is taken to be computed again after fewer bits.
        threads: that compute.
    """
    pixels = max(1, size[0] * size[1])
    most = min(_power(MOST_PIXELS / pixels), MOST_BATCH)
    if pictures is not None:
        most = min(most, _power(max(1, pictures / 4)))
    first = min(_power(FIRST_PIXELS / pixels), most)

    def order(numbers: Numbers) -> list[Kind]:
        tiled = (asked or first) * pixels >= LARGE and not (numbers != "fp32" and multiplies_tiles)
        tiled = tiled and threads < MANY_THREADS
        tiled = tiled and again <= MOST_AGAIN  # after which pictures are computed again, too
        best: Kind = "winograd" if tiled else "direct"
        return sorted(kinds[numbers], key=lambda kind: (kind == "torch", kind != best))

    ordered = {numbers: order(numbers) for numbers in kinds}
    if asked is not None:
        return Space(ordered, asked, asked, asked, again, accelerated, pictures)
    if accelerated:
        return Space(ordered, FIRST_BATCH, 1, LAST_BATCH, again, accelerated, pictures)
    return Space(ordered, first, 1, most, again, pictures=pictures)


def _power(number: float) -> int:
    """Return the largest power of two that is no larger; at least 1."""
    return 1 << max(0, int(number).bit_length() - 1)


def next_way(timings: Timings, among: Space) -> Way | None:
    """Return which way to time next; None: nothing more is worth it."""
    for way in among.ways(among.first):
        if way not in timings:
            return way
    for numbers, kinds in among.kinds.items():
        tried = [way for way in timings if way.numbers == numbers and way.kind in kinds]
        batch = min(way.batch for way in tried) // 2
        if batch >= among.least and all(timings[way] == float("inf") for way in tried):
            return Way(numbers, kinds[0], batch)
    chosen = choose(timings, among)
    best = Way(chosen.numbers, chosen.kind, chosen.batch)
    for batch in (2 * best.batch, best.batch // 2):
        way = best._replace(batch=batch)
        if among.least <= batch <= among.most and way not in timings:
            return way
    for way in among.ways(best.batch):
        before = timings[way._replace(batch=among.first)]
        if way not in timings and before <= RIVAL * timings[best._replace(batch=among.first)]:
            return way
    return None


def choose(timings: Timings, among: Space) -> Choice:
    """Return the fastest way, the repeats and checks of fewer bits counted in."""
    exact = _best(timings, "fp32", among)
    fast = _best(timings, next(iter(among.kinds)), among)
    slow, quick = timings.get(exact), timings.get(fast)
    if "fp32" not in among.kinds:
        pays = True
    elif slow is None or quick is None:
        pays = among.again <= MOST_AGAIN and is_worth(UNTIMED, 1.0, _of_a_film(among, fast.batch))
    else:
        pays = is_worth(quick, slow, _of_a_film(among, fast.batch))
    if fast.numbers == "fp32" or not pays:
        return Choice("fp32", exact.kind, exact.kind, exact.batch, slow, slow)
    return Choice(fast.numbers, fast.kind, exact.kind, fast.batch, quick, slow)


def fp32_batch(timings: Timings, kind: Kind, batch: int) -> int:
    """Return the best batch for convolutions of a kind in fp32; ``batch`` where none was timed."""
    known = {way: took for way, took in timings.items() if way[:2] == ("fp32", kind)}
    return min(known, key=lambda way: known[way]).batch if known else batch


def settled_at_once(batch: int) -> int:
    """Return how many pictures are computed in fp32 together, beside such batches."""
    return max(min(batch, AGAIN_BATCH), batch // 2)


def _of_a_film(among: Space, batch: int) -> float:
    """Return the share of a film's pictures that is computed in fp32 after fewer bits.

    Its first ones are, to know the noise; there a short film ends before fewer bits gain anything.
    """
    if among.pictures is None:
        return among.again
    at_once = settled_at_once(batch)
    samples = -(-SAMPLES // at_once) * at_once
    both = min(1.0, samples / max(1, among.pictures))
    filled = at_once / 2 / max(1, among.pictures)  # the last ones, on average
    return both + (1 - both) * among.again + filled


def is_worth(seconds: float, exact: float, again: float) -> bool:
    """Tell whether fewer bits are faster, if ``again`` is the share of pictures done once more."""
    return seconds + (again + 1 / CHECK_EVERY) * exact < exact / GROWTH


def is_tiling_worth(timings: Timings, batch: int, share: float) -> bool:
    """Tell whether Winograd's convolutions are faster in fp32.

    Args:
        batch: pictures at once.
        share: of the pictures, that are computed once more with all multiplications.
    """
    tiled, direct = (timings.get(Way("fp32", kind, batch)) for kind in ("winograd", "direct"))
    gain = direct / tiled if tiled is not None and direct is not None else TILED_GAIN
    return 1 + share * gain < gain


def _best(timings: Timings, numbers: Numbers, among: Space) -> Way:
    """Return the fastest way with these numbers; of nearly equal ones, the smallest batch."""
    kinds = among.kinds.get(numbers, ("direct",))
    known = [
        way
        for way in timings
        if way.numbers == numbers and way.kind in kinds and among.least <= way.batch <= among.most
    ]
    if not known:
        return Way(numbers, kinds[0], among.first)
    least = min(timings[way] for way in known)
    near = [way for way in known if timings[way] <= GROWTH * least]
    return min(near, key=lambda way: (way.batch, timings[way]))


def guess(timings: Timings, way: Way) -> float:
    """Return the seconds that a picture may take, as far as other ways tell."""
    there = [known for known, took in timings.items() if took < float("inf")]
    alike = [known for known in there if known[:2] == way[:2]]
    alike = alike or [known for known in there if known.numbers == way.numbers]
    if alike:
        return timings[min(alike, key=lambda known: abs(known.batch - way.batch))]
    times = 1.0 if way.numbers != "fp32" else 2.0
    return times * min((timings[known] for known in there), default=0.0)


def signature(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what a timing holds for: device, instruction set, threads, versions."""
    if device.type == "cuda":
        what = f"{torch.cuda.get_device_properties(device).name}, without TF32"
    else:
        flags = {
            "amx": torch.cpu._is_amx_tile_supported(),
            "bf16": torch.cpu._is_avx512_bf16_supported(),
        }
        has = [name for name, there in flags.items() if there]
        what = " ".join([_processor(), torch.backends.cpu.get_cpu_capability(), *has])
    versions = {name: _version(name) for name in ("torch", "deeplabcut", "numba")}
    return {"format": FORMAT, "device": f"{device.type}: {what}", "threads": threads, **versions}


@cache
def _version(package: str) -> str:
    return version(package)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0][:100] if names else platform.machine()


@dataclass
class Memory:
    """The remembered timings of a model: JSON texts by name, as they lie in the bucket."""

    known: Mapping[str, str] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)
    """What is new, to be kept."""

    def recall(self, key: Mapping[str, Any]) -> Timings:
        """Return what was timed under such a key; nothing if that is damaged or of another one."""
        text = self.learned.get(name_of(key)) or self.known.get(name_of(key))
        if text is None or len(text) > MAX_BYTES:
            return {}
        try:
            content = json.loads(text)
            if content["key"] != dict(key) or len(content["seconds"]) > MAX_WAYS:
                return {}
            timings = {
                Way.parse(way): float(took)
                for way, took in content["seconds"].items()
                if took is not None  # as an older posedrop wrote where memory had not sufficed
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {} if any(not took > 0 for took in timings.values()) else timings

    def learn(self, key: Mapping[str, Any], timings: Timings) -> None:
        """Remember what was timed; not what failed, as memory may suffice the next time."""
        seconds = {str(way): timings[way] for way in sorted(timings) if timings[way] < float("inf")}
        self.learned[name_of(key)] = json.dumps({"key": dict(key), "seconds": seconds})


def name_of(key: Mapping[str, Any]) -> str:
    """Return the name that a tuning is kept by."""
    written = json.dumps(dict(key), sort_keys=True)
    return f"{hashlib.sha256(written.encode()).hexdigest()[:32]}.json"


@dataclass
class Tuned:
    """How a way was chosen for a film; what result.json says of it."""

    choice: Choice
    timings: Timings
    remembered: int
    """How many of the timings another film had left."""
    seconds: float
    """What timing the others took of this one."""

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of the choice; times in milliseconds a picture."""
        return {
            "convolutions": self.choice.kind,
            "convolutions_fp32": self.choice.exact,
            "batch_size": self.choice.batch,
            "remembered": self.remembered,
            "seconds": round(self.seconds, 3),
            "milliseconds": {
                str(way): round(1000 * self.timings[way], 4)
                for way in sorted(self.timings)
                if self.timings[way] < float("inf")
            },
        }


def tune(
    among: Space,
    known: Timings,
    pictures: int | None,
    time: Callable[[Way], float],
    clock: Callable[[], float],
) -> Tuned:
    """Time ways until the best is found or the film's share is spent, and choose.

    Args:
        among: the ways.
        known: timings from before.
        pictures: of the film; None: not known, it may be long.
        time: returns the seconds of a picture that a way takes, infinity where it can't be had.
        clock: seconds.
    """
    timings, began = dict(known), clock()
    several = len(among.kinds) > 1
    while (way := next_way(timings, among)) is not None:
        work = _work(timings, among, pictures)
        spent = clock() - began
        allowed = FIRST_SHARE * work if several and len(timings) <= 1 else _allowed(work)
        if timings and spent + cost(way.batch * guess(timings, way)) > allowed:
            break
        if not timings and pictures is not None and pictures < _least(way.batch, among):
            break
        timings[way] = time(way)
    return Tuned(choose(timings, among), timings, len(known), clock() - began)


def cost(seconds: float) -> float:
    """Return the seconds that timing a way takes of which a call takes so many."""
    return seconds * (1 + (1 if seconds > LONG else TIMES))


def _least(batch: int, among: Space) -> float:
    """Return how many pictures a film has at least for a first way to be timed.

    One way alone teaches this film nothing, only a later one that goes on from it: of one kind of
    numbers on a processor it may take little. Of two kinds there is to be time for the second way,
    that is taken for half as fast.
    """
    if len(among.kinds) > 1:
        return (1 + 2) * (1 + TIMES) * batch / FIRST_SHARE
    return (1 + TIMES) * batch / (FIRST_SHARE if among.accelerated else FIRST_ALONE)


def _work(timings: Timings, among: Space, pictures: int | None) -> float:
    """Return the seconds that a film takes, as far as it is known."""
    if pictures is None:
        return float("inf")
    chosen = choose(timings, among)
    way = Way(chosen.numbers, chosen.kind, chosen.batch)
    return pictures * (chosen.seconds or guess(timings, way))


def _allowed(work: float) -> float:
    return max(SHARE * work, min(SECONDS, MOST_SHARE * work))
