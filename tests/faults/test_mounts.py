"""A mounted bucket: it writes nothing, then the film, then copies that onto itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from handlers.events import follow
from handlers.runs import pending
from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.records.videos import VideoRecord
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import World

KEY, FILM = "day1/a.mp4", b"a film"
#: What a mount writes: how many seconds later, which bytes, in how many parts.
STEPS = [(0.1, b"", None), (0.1, FILM, None), (0.1, FILM, None)]
SLOW = [(0.0, b"", None), (90.0, FILM, 3), (2.0, FILM, 2)]


def check(world: World) -> None:
    """Assert that there is one film, ready, with one run."""
    stored = world.storage.buckets[RESULTS]
    record = VideoRecord.model_validate_json(stored[f"{KEY}/video.json"].data)
    assert record.refusal is None
    assert record.video.etag == world.storage.buckets[VIDEOS][KEY].info.etag
    (row,) = world.context.index.files().rows
    assert (row.state, row.etag, row.refusal_reason) == ("ready", record.video.etag, None)
    assert len([key for key in stored if key.endswith("/request.json")]) == 1
    (run,) = world.context.index.analyses().rows
    assert run.state == "succeeded"


def work(world: World) -> None:
    """Have the workers do what there is, and their events told, to the end."""
    while messages := world.messages():
        for message in messages:
            world.work(message)
        events, world.storage.events = world.storage.events, []
        world.tell(events)


@pytest.mark.parametrize("steps", [STEPS, SLOW], ids=["at once", "slowly"])
def test_a_mounts_film_has_one_run(world: World, steps: list[tuple[float, bytes, int]]) -> None:
    """Each write told and worked on at once: what was refused meanwhile is looked at again."""
    for seconds, data, parts in steps:
        world.clock.pass_(seconds)
        world.storage.put(VIDEOS, KEY, data, parts=parts)
        events, world.storage.events = world.storage.events, []
        world.tell(events)
        work(world)
        if not data and steps is SLOW:
            world.clock.pass_(follow.EMPTY_SECONDS)
            world.tell([])
            work(world)
            record = json.loads(world.storage.buckets[RESULTS][f"{KEY}/video.json"].data)
            assert record["refusal"]["reason"] == "empty"
        elif not data:
            assert f"{KEY}/video.json" not in world.storage.buckets[RESULTS]
    check(world)
    world.lose_index()
    world.settle()
    check(world)


def test_the_order_of_a_mounts_events_does_not_matter(world: World) -> None:
    """Told late, in any order, some twice."""
    for number, order in enumerate(itertools.permutations(range(3))):
        world.lose_index()
        for bucket in (VIDEOS, RESULTS):
            world.storage.buckets[bucket].clear()
        world.storage.events.clear()
        world.clock.pass_(10)
        for seconds, data, parts in (STEPS, SLOW)[number % 2]:
            world.clock.pass_(seconds)
            world.storage.put(VIDEOS, KEY, data, parts=parts)
        events, world.storage.events = world.storage.events, []
        for place in [*order, order[0]]:
            world.tell([events[place]])
            work(world)
        world.settle()
        check(world)


@pytest.mark.parametrize("at", range(1, 7))
def test_an_ingest_of_nothing_that_wakes_up_late_is_mended(world: World, at: int) -> None:
    """A worker was stopped with the empty object; it goes on when the film is ready."""
    world.storage.put(VIDEOS, KEY, b"")
    world.clock.pass_(follow.EMPTY_SECONDS)
    world.reconciler.round()
    (message,) = world.messages()
    frozen = world.freeze(message, at)
    world.clock.pass_(0.2)
    world.storage.put(VIDEOS, KEY, FILM)
    events, world.storage.events = world.storage.events, []
    world.tell(events)
    work(world)
    if frozen is not None:
        frozen.wake()
    events, world.storage.events = world.storage.events, []
    world.tell(events)
    work(world)
    world.settle()
    check(world)


def test_what_stays_empty_is_refused(world: World) -> None:
    """In words, seconds later, and once; by the reconciler where no event tells it."""
    for told in (True, False):
        key = f"empty/{told}.mp4"
        world.storage.put(VIDEOS, key, b"")
        events, world.storage.events = world.storage.events, []
        world.tell(events if told else [])
        assert world.messages() == []
        world.clock.pass_(follow.EMPTY_SECONDS)
        world.tell([]) if told else world.reconciler.round()
        work(world)
        world.settle()
        row = world.context.index.file(layout.file_id_of(VIDEOS, key))
        assert row is not None
        assert (row.state, row.refusal_reason) == ("refused", "empty")


def test_a_copy_under_another_etag_does_not_undo_an_answer(world: World) -> None:
    """Who asked before the film came gets that run alone, though a mount copies the film."""
    world.storage.put(VIDEOS, KEY, FILM, parts=2)
    events, world.storage.events = world.storage.events, []
    world.tell(events)
    pending.ask(world.context, layout.file_id_of(VIDEOS, KEY), "dummy", {"seconds": 3}, force=False)
    work(world)
    world.clock.pass_(3)
    world.storage.put(VIDEOS, KEY, FILM)
    events, world.storage.events = world.storage.events, []
    world.tell(events)
    work(world)
    world.settle()
    check(world)


@pytest.mark.parametrize("step", ["infer", "render"])
@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize(("then", "state"), [(FILM, "succeeded"), (b"a fish", "failed")])
def test_a_run_takes_its_film_by_the_bytes_and_not_by_the_etag(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, kept: int, then: bytes, state: str
) -> None:
    """Copied onto itself before a step of its run, it is the same film; other bytes end the run."""
    drawn = replace(analyses.get("dummy"), renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": drawn})
    world.cache_bytes = kept
    world.storage.put(VIDEOS, KEY, FILM, parts=3)
    for actor in ["ingest", "infer", "render"]:
        world.reconciler.round()
        (message,) = world.messages()
        assert message.actor_name == actor
        if actor == step:
            break
        world.work(message)
    world.put_back([message])
    (run,) = world.context.index.analyses().rows
    world.storage.put(VIDEOS, KEY, then, parts=2)
    world.settle()
    ended = world.context.index.analysis(run.analysis_id)
    assert ended is not None
    assert ended.state == state
    if then == FILM:
        check(world)
    else:
        assert ended.error is not None
        assert ended.error.code == "object_changed"
