"""Records that somebody has written over: each run ends in words, and can be asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from handlers.runs import pending, results
from handlers.upkeep.repairs import Repairs
from posedrop import analyses
from posedrop.buckets import layout
from posedrop.index.rows import AnalysisRow
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import World


def of_another_run(data: bytes) -> bytes:
    """A whole record, but of another run and video."""
    record = json.loads(data) if data else {}
    video = {**record.get("video", {}), "file_id": "y" * 16, "key": "other/film.mp4"}
    more = {"analysis_id": "z" * 16} if "analysis_id" in record else {}
    return json.dumps({**record, **more, "video": video}).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no JSON": lambda _: b"{",
    "other shape": lambda _: b"[1]",
    "other types": lambda _: b'{"schema": 1, "analysis_id": 7, "state": [], "video": "no"}',
    "empty": lambda _: b"",
    "20 MB": lambda _: b" " * (20 * 2**20),
    "cut": lambda data: data[: len(data) // 2],
    "no text": lambda _: b'{"analysis_id": "\xff\xfe"}',
    "deep": lambda _: b"[" * 5000,
    "of another run": of_another_run,
}


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the analysis make tables, and drawn by a job of its own."""
    dummy = replace(analyses.get("dummy"), finish="x:y", artefacts=analyses.POSES, renders=True)
    found = {"dummy": dummy}
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: found)


def begun(world: World) -> AnalysisRow:
    """Have a film's run planned; its message waits."""
    world.storage.put(VIDEOS, "a/1.mp4", b"a film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    (row,) = world.context.index.analyses().rows
    return row


def inferred(world: World) -> AnalysisRow:
    """Have its poses made; the message that they be drawn is lost."""
    row = begun(world)
    for message in world.messages():
        world.work(message)
    world.messages()
    assert f"{row.run}/{layout.INFERENCE}" in world.storage.buckets[RESULTS]
    assert f"{row.run}/{layout.RESULT}" not in world.storage.buckets[RESULTS]
    return row


def over(world: World) -> AnalysisRow:
    """Have a film's run made."""
    row = begun(world)
    world.settle()
    return row


def damage(world: World, row: AnalysisRow, name: str, how: str) -> str:
    """Write over a record of a run, or of its film; return its key."""
    folder = row.run.rsplit("/", 1)[0] if name == layout.VIDEO_RECORD else row.run
    key = f"{folder}/{name}"
    there = world.storage.buckets[RESULTS].get(key)
    world.storage.put(RESULTS, key, DAMAGES[how](there.data if there is not None else b""))
    return key


def rounds(world: World, number: int) -> Repairs:
    """Reconcile and work for some leases; sum up what was found."""
    total: dict[str, Any] = {}
    for _ in range(number):
        world.clock.pass_(61)
        for name, count in world.reconciler.round().as_counts().items():
            total[name] = total.get(name, 0) + count
        for message in world.messages():
            world.work(message)
    return Repairs(**total)


CASES = [
    *((layout.REQUEST, begun, how, False) for how in DAMAGES),
    *((layout.RESULT, over, how, True) for how in DAMAGES),
    *((layout.REQUEST, when, "cut", lost) for when in (begun, inferred) for lost in (False, True)),
    *((layout.RESULT, over, how, False) for how in ("cut", "of another run")),
]


@pytest.mark.parametrize(("name", "when", "how", "lost"), CASES)
def test_a_run_whose_record_is_damaged_has_failed(
    world: World, name: str, when: Callable[[World], AnalysisRow], how: str, lost: bool
) -> None:
    """It is sent to nobody any more, counted once, and says what is wrong and what to do."""
    row = when(world)
    key = damage(world, row, name, how)
    if lost:
        world.lose_index()
    elif name == layout.RESULT:
        world.tell(world.storage.events[-1:])
    found = rounds(world, 4)
    assert found.damaged == (0 if name == layout.RESULT and not lost else 1)
    assert found.runs_sent == 0
    (row,) = world.context.index.analyses().rows
    answer = results.read(world.context, row.analysis_id)
    assert (row.state, answer.status) == ("failed", "failed")
    assert answer.error == row.error
    assert answer.error is not None
    assert answer.error.code == "damaged_record"
    for words in (key, "posedrop analyse", f"posedrop rm {row.analysis_id}"):
        assert words in answer.error.message
    assert len(answer.error.message) < 2000
    again = pending.ask(world.context, row.file_id, row.analysis, row.args, force=False)
    world.settle()
    assert again.analysis_id != row.analysis_id
    after = results.read(world.context, again.analysis_id)
    assert (after.status, after.error) == ("succeeded", None)
    assert results.cancel_or_delete(world.context, row.analysis_id) == "deleted"
    assert not [left for left in world.storage.buckets[RESULTS] if left.startswith(row.run)]


@pytest.mark.parametrize("how", ["empty", "of another run"])
@pytest.mark.parametrize(
    ("name", "when", "status"),
    [
        (layout.VIDEO_RECORD, begun, "succeeded"),
        (layout.VIDEO_RECORD, over, "succeeded"),
        ("attempts/1.json", begun, "succeeded"),
        ("attempts/1.json", inferred, "succeeded"),
        (layout.INFERENCE, begun, "failed"),
        (layout.INFERENCE, inferred, "failed"),
        (layout.REQUEST, over, "succeeded"),
        (layout.CANCEL, begun, "cancelled"),
        (layout.CANCEL, over, "succeeded"),
    ],
)
def test_no_other_record_of_a_run_holds_it_up(
    world: World, name: str, when: Callable[[World], AnalysisRow], how: str, status: str
) -> None:
    """What can be made anew is; a cancel is one whatever is in it."""
    row = when(world)
    damage(world, row, name, how)
    rounds(world, 6)
    assert results.read(world.context, row.analysis_id).status == status
    found = world.context.index.analysis(row.analysis_id)
    assert found is not None
    assert found.state == status
    assert rounds(world, 2).mended == 0


def test_a_run_ends_though_nothing_is_known_of_its_film(world: World) -> None:
    """Its video.json is damaged as well: the index knows enough."""
    row = begun(world)
    for name in (layout.REQUEST, layout.VIDEO_RECORD):
        damage(world, row, name, "empty")
    assert rounds(world, 4).damaged == 1
    answer = results.read(world.context, row.analysis_id)
    assert answer.error is not None
    assert answer.error.code == "damaged_record"


def test_a_newer_request_is_left_to_newer_workers(world: World) -> None:
    """It is no damage: its run is sent again each lease, until one of them takes it."""
    row = begun(world)
    key = f"{row.run}/{layout.REQUEST}"
    whole = world.storage.buckets[RESULTS][key].data
    world.storage.put(RESULTS, key, json.dumps({**json.loads(whole), "schema": 2}).encode())
    found = rounds(world, 4)
    assert (found.damaged, results.read(world.context, row.analysis_id).status) == (0, "queued")
    world.storage.put(RESULTS, key, whole)
    world.settle()
    assert results.read(world.context, row.analysis_id).status == "succeeded"


def test_a_result_that_is_put_back_counts_again(world: World) -> None:
    """Who has a backup needs to make nothing anew."""
    row = over(world)
    key = f"{row.run}/{layout.RESULT}"
    whole = world.storage.buckets[RESULTS][key].data
    for data, state in ((b"{", "failed"), (whole, "succeeded"), (b"", "failed")):
        world.clock.pass_(60)
        world.storage.put(RESULTS, key, data)
        world.tell(world.storage.events[-1:])
        found = world.context.index.analysis(row.analysis_id)
        assert found is not None
        assert found.state == state
        assert results.read(world.context, row.analysis_id).status == state


@pytest.mark.parametrize("name", [layout.REQUEST, layout.RESULT])
@pytest.mark.parametrize("when", [begun, over])
def test_another_name_of_the_content_has_it_whole(
    world: World, name: str, when: Callable[[World], AnalysisRow]
) -> None:
    """It is made there, or read there."""
    world.storage.put(VIDEOS, "b/copy.mp4", b"a film")
    row = when(world) if when is not begun else begun_twice(world)
    damage(world, row, name, "no JSON")
    rounds(world, 8)
    assert results.read(world.context, row.analysis_id).status == "succeeded"


def begun_twice(world: World) -> AnalysisRow:
    """Have a run planned under both names of a content."""
    world.storage.put(VIDEOS, "a/1.mp4", b"a film")
    for _ in range(2):
        world.reconciler.round()
        for message in world.messages():
            if message.actor_name == "ingest":
                world.work(message)
    world.reconciler.round()
    (row,) = world.context.index.analyses().rows
    assert len(world.context.index.places(row.analysis_id)) == 2
    return row
