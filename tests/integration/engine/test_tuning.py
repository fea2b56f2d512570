"""Which way of computing a network is tried, chosen and remembered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import tuning_memory
from worker.precision import tuning
from worker.precision.tuning import Memory, Way
from worker.precision.variants import Kind, Numbers

KINDS: dict[Numbers, list[Kind]] = {
    "bf16": ["direct", "winograd"],
    "fp32": ["direct", "winograd", "torch"],
}
KEY = {"device": "cpu: a", "size": [64, 64, 3]}
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


class Processor:
    """Takes so long for a way, and counts what timing costs."""

    def __init__(self, seconds: dict[Way, float]) -> None:
        self.now = 0.0
        self._seconds = seconds

    def seconds(self, way: Way) -> float:
        return self._seconds.get(way, 1.0)

    def time(self, way: Way) -> float:
        took = self.seconds(way)
        self.now += tuning.cost(way.batch * took) if took < float("inf") else 0.0
        return took

    def clock(self) -> float:
        return self.now


@st.composite
def processors(draw: st.DrawFn, among: tuning.Space) -> Processor:
    """Ways whose speed falls with the batch to one best, and rises behind it."""
    seconds = {}
    for numbers, kinds in among.kinds.items():
        for kind in kinds:
            base = draw(st.floats(1e-4, 1.0))
            best = draw(st.integers(0, 6))
            slope = draw(st.floats(0.05, 1.0))
            for power in range(7):
                way = Way(numbers, kind, 1 << power)
                seconds[way] = base * (1 + slope * abs(power - best))
    return Processor(seconds)


@given(sizes, st.booleans(), st.booleans(), st.data())
def test_with_time_the_best_is_found(
    size: tuple[int, int], accelerated: bool, tiles: bool, data: st.DataObject
) -> None:
    """Of a long film no way is chosen that is much slower than one of the same kind."""
    among = tuning.space(
        KINDS, size, None, accelerated=accelerated, multiplies_tiles=tiles, pictures=None
    )
    processor = data.draw(processors(among))
    tuned = tuning.tune(among, {}, None, processor.time, processor.clock)
    chosen = tuned.choice
    mine = processor.seconds(Way(chosen.numbers, chosen.kind, chosen.batch))
    alike = [
        processor.seconds(Way(chosen.numbers, chosen.kind, 1 << power))
        for power in range(7)
        if among.least <= 1 << power <= among.most
    ]
    assert mine <= tuning.GROWTH**2 * min(alike)
    assert among.least <= chosen.batch <= among.most


@given(sizes, st.integers(1, 100_000), st.data())
def test_timing_takes_a_small_share(
    size: tuple[int, int], pictures: int, data: st.DataObject
) -> None:
    """However slow the ways are, trying them stays a small part of the film's work."""
    among = tuning.space(
        KINDS, size, None, accelerated=False, multiplies_tiles=False, pictures=pictures
    )
    processor = data.draw(processors(among))
    tuned = tuning.tune(among, {}, pictures, processor.time, processor.clock)
    if tuned.choice.seconds is not None:
        work = pictures * max(tuned.timings.values())
        assert tuned.seconds <= 2 * tuning.FIRST_SHARE * work


@given(sizes, st.integers(1, 100_000), st.data())
def test_a_first_way_alone_takes_little(
    size: tuple[int, int], pictures: int, data: st.DataObject
) -> None:
    """On a processor, of one kind of numbers: only a later film gains by it."""
    among = tuning.space(
        {"fp32": KINDS["fp32"]}, size, None, accelerated=False, multiplies_tiles=False,
        pictures=pictures,
    )  # fmt: skip
    processor = data.draw(processors(among))
    tuned = tuning.tune(among, {}, pictures, processor.time, processor.clock)
    if len(tuned.timings) == 1:
        (took,) = tuned.timings.values()
        assert tuned.seconds <= tuning.FIRST_ALONE * pictures * took


@pytest.mark.parametrize(("threads", "first"), [(2, "winograd"), (64, "direct")])
def test_without_timing_many_threads_multiply_directly(threads: int, first: Kind) -> None:
    """Python hands Winograd's transforms out, which takes many threads longer than they save."""
    among = tuning.space(
        {"fp32": KINDS["fp32"]}, (480, 640), None, accelerated=False, multiplies_tiles=False,
        pictures=8, threads=threads,
    )  # fmt: skip
    assert tuning.choose({}, among).kind == first


@given(st.integers(1, 512), sizes)
def test_a_batch_asked_for_is_obeyed(asked: int, size: tuple[int, int]) -> None:
    """No other is tried."""
    among = tuning.space(
        KINDS, size, asked, accelerated=False, multiplies_tiles=True, pictures=10**6
    )
    processor = Processor({})
    tuned = tuning.tune(among, {}, 10**6, processor.time, processor.clock)
    assert tuned.choice.batch == asked
    assert {way.batch for way in tuned.timings} <= {asked}


def test_what_memory_does_not_suffice_for_is_not_chosen() -> None:
    """The batch below is."""
    among = tuning.space(
        {"fp32": ["direct"]}, (480, 640), None, accelerated=True, multiplies_tiles=False,
        pictures=None,
    )  # fmt: skip
    seconds = {Way("fp32", "direct", 1 << n): 1 / (1 << n) for n in range(4)}
    seconds |= {Way("fp32", "direct", 1 << n): float("inf") for n in range(4, 7)}
    processor = Processor(seconds)
    tuned = tuning.tune(among, {}, None, processor.time, processor.clock)
    assert tuned.choice.batch == 8
    memory = Memory()
    memory.learn(KEY, tuned.timings)
    known = memory.recall(KEY)
    assert known == {way: took for way, took in tuned.timings.items() if took < float("inf")}


@pytest.mark.parametrize("pictures", [None, 4000])
def test_numbers_that_memory_did_not_suffice_for_once_are_tried_in_smaller_batches(
    pictures: int | None,
) -> None:
    """Another program may have had it: fewer bits that are faster are not given up for it."""
    kinds: dict[Numbers, list[Kind]] = {"fp16": ["direct"], "fp32": ["direct"]}
    among = tuning.space(
        kinds, (480, 640), None, accelerated=True, multiplies_tiles=False, pictures=pictures
    )
    seconds = {Way("fp16", "direct", 1 << n): 0.3 for n in range(7)}
    full = {Way("fp16", "direct", 8): float("inf")}
    processor = Processor(seconds)
    tuned = tuning.tune(among, full, pictures, processor.time, processor.clock)
    assert tuned.choice.numbers == "fp16"
    assert tuned.choice.batch <= 4
    name = tuning.name_of(KEY)
    written = {"key": KEY, "seconds": {"fp16/direct/8": None, "fp32/direct/8": 1.0}}
    assert Memory({name: json.dumps(written)}).recall(KEY) == {Way("fp32", "direct", 8): 1.0}


def test_fewer_bits_that_are_repeated_too_often_are_not_worth_it() -> None:
    """What is gained has to be more than what the repeats and checks cost."""
    assert tuning.is_worth(0.2, 1.0, 0.1)
    assert not tuning.is_worth(0.2, 1.0, 0.8)
    assert not tuning.is_worth(0.95, 1.0, 0.1)


@pytest.mark.parametrize(
    ("pictures", "timed", "numbers"),
    [(16, False, "fp32"), (48, False, "bf16"), (8, True, "fp32"), (48, True, "bf16")],
)
def test_a_film_that_is_over_with_what_fewer_bits_cost_first_is_computed_without(
    pictures: int, timed: bool, numbers: Numbers
) -> None:
    """Its first frames are computed both ways, to know the noise."""
    among = tuning.space(
        {"bf16": ["direct"], "fp32": ["direct"]}, (256, 320), None, accelerated=False,
        multiplies_tiles=True, pictures=pictures, again=0.08,
    )  # fmt: skip
    known = {Way("bf16", "direct", among.first): 0.25, Way("fp32", "direct", among.first): 1.0}
    assert tuning.choose(known if timed else {}, among).numbers == numbers


def test_both_numbers_are_timed_of_networks_that_are_often_computed_again() -> None:
    """Part affinities are: whether that is worth it, only timing tells."""
    among = tuning.space(
        {"bf16": ["direct"], "fp32": ["direct"]}, (256, 320), None, accelerated=False,
        multiplies_tiles=True, pictures=2000, again=0.5,
    )  # fmt: skip
    processor = Processor({way: 0.2 if way.numbers == "bf16" else 1.0 for way in among.ways(8)})
    tuned = tuning.tune(among, {}, 2000, processor.time, processor.clock)
    assert {way.numbers for way in tuned.timings} == {"bf16", "fp32"}
    assert tuned.choice.numbers == "bf16"


def test_a_second_film_goes_on_from_the_first() -> None:
    """What was timed is not timed again."""
    processor, memory = Processor({}), Memory()
    among = tuning.space(
        KINDS, (480, 640), None, accelerated=False, multiplies_tiles=True, pictures=500
    )
    first = tuning.tune(among, memory.recall(KEY), 500, processor.time, processor.clock)
    assert len(first.timings) == 2
    memory.learn(KEY, first.timings)
    known = Memory(memory.learned).recall(KEY)
    assert known == first.timings
    second = tuning.tune(among, known, 500, processor.time, processor.clock)
    assert second.remembered == len(first.timings)
    assert known.items() < second.timings.items()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"a"', "{}",
        json.dumps({"key": {"device": "another"}, "seconds": {"fp32/direct/1": 1}}),
        json.dumps({"key": KEY, "seconds": {"fp32/direct": 1}}),
        json.dumps({"key": KEY, "seconds": {"fp32/direct/0": 1}}),
        json.dumps({"key": KEY, "seconds": {"fp64/direct/1": 1}}),
        json.dumps({"key": KEY, "seconds": {"fp32/direct/1": -1}}),
        json.dumps({"key": KEY, "seconds": {"fp32/direct/1": "fast"}}),
        '{"key": {"device": "cpu: a", "size": [64, 64, 3]}, "seconds": {"fp32/direct/1": NaN}}',
        json.dumps({"key": KEY, "seconds": [1]}),
        json.dumps({"key": KEY, "seconds": {f"fp32/direct/{n}": 1 for n in range(1, 999)}}),
        json.dumps({"key": KEY, "seconds": {"fp32/direct/1": 1}}) + " " * tuning_memory.MAX_BYTES,
    ],
)  # fmt: skip
def test_damaged_memory_is_ignored(text: str) -> None:
    """A film is timed as if nothing were remembered."""
    assert Memory({tuning.name_of(KEY): text}).recall(KEY) == {}
