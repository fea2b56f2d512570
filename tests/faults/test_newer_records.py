"""Records that this posedrop can't read: those of a newer one, and damaged ones."""

from __future__ import annotations

import json
import logging

import pytest

from handlers.runs import results
from posedrop.buckets import layout
from posedrop.errors import RecordError
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import World

DAMAGED = [b"{}", b"", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1', b"null", b'{"schema": "x"}']
NEWER = [
    b'{"schema": 2}',
    b'{"schema": 10000000000000000000000, "more": [1, 2]}',
    b' {"later": {"schema": 1}, "schema": 7}',
]
#: Records of a film whose run is over, by what their keys end in.
NAMES = ["/video.json", "/request.json", "/attempts/1.json", "/result.json", "_planned/"]


def finished(world: World) -> dict[str, str]:
    """Have a film analysed; return the keys of its records by what they end in."""
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.settle()
    keys = list(world.storage.buckets[RESULTS])
    return {name: next(key for key in keys if name in key) for name in NAMES}


def schema_2(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "schema": 2}).encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lost", [False, True])
def test_a_newer_record_is_left_alone_and_holds_up_nothing(
    world: World, name: str, lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody writes over it, it is told of a few times, and other films are analysed."""
    key = finished(world)[name]
    world.storage.events.clear()
    newer = schema_2(world.storage.buckets[RESULTS][key].data)
    world.storage.put(RESULTS, key, newer)
    if lost:
        world.lose_index()
    world.storage.put(VIDEOS, "b.mp4", b"another film")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        world.tell(world.storage.events)
        world.settle()
        for _ in range(20):
            world.clock.pass_(61)
            world.reconciler.round()
            for message in world.messages():
                world.work(message)
    row = world.context.index.file(layout.file_id_of(VIDEOS, "b.mp4"))
    (run,) = world.context.index.analyses_of_file(layout.file_id_of(VIDEOS, "b.mp4"))
    assert row is not None
    assert (row.state, run.state) == ("ready", "succeeded")
    assert world.storage.buckets[RESULTS][key].data == newer
    assert len([line for line in caplog.messages if key in line]) <= 3, caplog.messages


@pytest.mark.parametrize("data", NEWER)
def test_who_asks_is_told_what_is_the_matter(world: World, data: bytes) -> None:
    """A newer result is no store that is away, and no failure: asking again changes nothing."""
    key = finished(world)["/result.json"]
    (row,) = world.context.index.analyses().rows
    world.storage.put(RESULTS, key, data)
    with pytest.raises(RecordError) as caught:
        results.read(world.context, row.analysis_id)
    assert caught.value.code == "newer_record"
    assert key in caught.value.message
    assert len(caught.value.message) < 1200


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_record_is_reported_once(
    world: World, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One dead letter, however often its event comes, and a line in the log, not one a round."""
    key = finished(world)["/video.json"]
    world.storage.events.clear()
    caplog.clear()
    world.storage.put(RESULTS, key, data)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            world.tell(world.storage.events)
            world.clock.pass_(3600)
            world.reconciler.round()
    letters = world.context.index.dead_letters()
    assert [key in letter.reason for letter in letters] == [True]
    assert len([line for line in caplog.messages if key in line]) <= 2, caplog.messages
