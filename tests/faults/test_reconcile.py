"""What no event and no message told, the reconciler finds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count, islice

import pytest

from handlers.runs import pending, results
from handlers.upkeep import reconcile
from posedrop.buckets import layout
from posedrop.buckets.storage import Listing, ObjectInfo
from posedrop.errors import StorageError
from tests.support import labs
from tests.support.lab import Servers
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World


def test_the_whole_way_works_with_notifications_switched_off(servers: Servers) -> None:
    """No bucket says anything: uploads end all the same, and removals are noticed."""
    s3 = servers.s3()
    kept = {}
    for bucket in ("videos", "results"):
        answer = s3.get_bucket_notification_configuration(Bucket=bucket)
        kept[bucket] = {n: v for n, v in answer.items() if n != "ResponseMetadata"}
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    try:
        for number in range(5):
            labs.put(servers, f"silent/{number}.mp4", labs.asks())
        labs.put(servers, "silent/bad.mp4", body=b"no video")
        for number in range(5):
            assert labs.result(servers, f"silent/{number}.mp4")["state"] == "succeeded"
            file_id = servers.file(f"silent/{number}.mp4")["file_id"]
            analysis_id = servers.run_of(file_id)
            servers.until(
                lambda found=analysis_id: servers.get(f"/results/{found}")["status"] == "succeeded",
                "the index to know it",
            )
        assert servers.file("silent/bad.mp4")["state"] == "refused"
        s3.delete_object(Bucket="videos", Key="silent/0.mp4")
        servers.file("silent/0.mp4", "film gone")
    finally:
        for bucket, configuration in kept.items():
            s3.put_bucket_notification_configuration(
                Bucket=bucket, NotificationConfiguration=configuration
            )
    answer = json.loads(servers.posedrop("reconcile", "--json").stdout)
    assert answer["uploads_found"] == answer["files_gone"] == answer["runs_sent"] == 0
    assert answer["videos_seen"] >= 5


def planned(world: World) -> str:
    """Have one video ingested and planned; return its run."""
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    (row,) = world.context.index.analyses().rows
    return row.run


def test_each_kind_of_gap_is_found_and_counted(world: World) -> None:
    """A round says what it repaired; the next one has nothing to say."""
    storage, reconciler, index = world.storage, world.reconciler, world.context.index
    storage.put(VIDEOS, "a.mp4", b"a film")
    found = reconciler.round()
    assert (found.uploads_found, found.videos_seen) == (1, 1)
    for message in world.messages():
        world.work(message)
    assert reconciler.round().records_indexed == 1
    world.messages()  # lost
    world.clock.pass_(61)
    assert reconciler.round().runs_sent == 1
    for message in world.messages():
        world.work(message)
    assert reconciler.round().records_indexed == 2  # that it was begun, and that it is over
    (row,) = index.analyses().rows
    assert row.state == "succeeded"
    assert reconciler.round().mended == 0
    for key in [key for key in storage.buckets[RESULTS] if key.startswith(row.run)]:
        storage.remove(RESULTS, key)
    storage.remove(VIDEOS, "a.mp4")
    gone = reconciler.round()
    assert (gone.files_gone, gone.runs_gone, gone.mended) == (1, 1, 2)
    assert [row.state for row in index.files().rows] == ["film gone"]
    assert index.analyses().rows == []
    assert reconciler.round().mended == 0
    storage.remove(RESULTS, "a.mp4/video.json")
    gone = reconciler.round()
    assert (gone.files_gone, gone.mended, index.files().rows) == (1, 1, [])
    assert reconciler.round().mended == 0


def test_a_dead_workers_run_is_sent_when_its_lease_is_over(world: World) -> None:
    """Not before, whatever else waits, and once."""
    run = planned(world)
    (message,) = world.messages()
    frozen = world.freeze(message, 6)  # it has claimed, and is never heard of again
    assert frozen is not None
    assert world.reconciler.round().runs_sent == 0
    world.clock.pass_(61)
    assert world.reconciler.round().runs_sent == 1
    assert world.reconciler.round().runs_sent == 0
    for message in world.messages():
        world.work(message)
    assert f"{run}/result.json" in world.storage.buckets[RESULTS]
    frozen.wake()


def test_a_long_queue_is_not_sent_twice(world: World) -> None:
    """Runs may wait for hours: a worker has two messages, none is added; lost ones are."""
    for number in range(20):
        world.storage.put(VIDEOS, f"{number}.mp4", b"film %d" % number)
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    for _ in range(10):
        world.clock.pass_(3600)
        assert world.reconciler.round().runs_sent == 0
    waiting = world.messages()
    assert len(waiting) == 2
    world.put_back(waiting[:1])
    world.clock.pass_(61)
    assert world.reconciler.round().runs_sent == 1
    world.settle()
    assert {row.state for row in world.context.index.analyses().rows} == {"succeeded"}


def sent_while_ahead(world: World) -> None:
    """Have three runs and an ingest sent, as far as they are, by a clock two hours ahead."""
    world.set_handlers_ahead(timedelta(hours=2))
    world.close()
    world.open()
    for number in range(3):
        world.storage.put(VIDEOS, f"{number}.mp4", b"film %d" % number)
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    world.storage.put(VIDEOS, "last.mp4", b"the last film")
    world.reconciler.round()
    world.set_handlers_ahead(timedelta())


def test_a_clock_set_back_keeps_no_work_from_being_sent_again(world: World) -> None:
    """What was sent two hours from now, by a process that is gone, is sent in the first round."""
    sent_while_ahead(world)
    lost = [message.actor_name for message in world.messages()]
    assert lost == ["infer", "infer", "ingest"]
    world.close()
    world.open()
    found = world.reconciler.round()
    assert (found.ingests_sent, found.runs_sent) == (1, 2)
    again = world.messages()
    assert [message.actor_name for message in again] == lost
    world.put_back(again)
    assert world.reconciler.round().mended == 0
    world.settle()
    assert {row.state for row in world.context.index.analyses().rows} == {"succeeded"}


@pytest.mark.parametrize("forgets", [True, False])
def test_a_clock_set_back_sends_nothing_for_good(world: World, *, forgets: bool) -> None:
    """A process that has started ahead sends each work once more at most, not in each round."""
    sent_while_ahead(world)
    if not forgets:  # a broker of its own keeps its messages: here they are missed
        world.reconciler._forgotten_before = None
        world.messages()
    found = world.reconciler.round()
    assert (found.ingests_sent, found.runs_sent) == (1, 2)
    for _ in range(5):
        world.clock.pass_(10)
        assert world.reconciler.round().mended == 0
    world.settle()
    assert {row.state for row in world.context.index.analyses().rows} == {"succeeded"}


def test_one_damaged_record_holds_up_nothing(world: World) -> None:
    """A video.json that somebody overwrote is counted, and what lies behind it is found."""
    planned(world)
    world.storage.put(VIDEOS, "b.mp4", b"another film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.storage.put(RESULTS, "a.mp4/video.json", b"{}")
    world.lose_index()
    found = world.reconciler.round()
    assert found.damaged == 1
    row = world.context.index.file(layout.file_id_of(VIDEOS, "b.mp4"))
    assert row is not None
    assert row.state == "ready"


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("a.mp4/video.json", 1),
        (layout.planned(layout.file_id_of(VIDEOS, "a.mp4")), 1),
        ("attempts/1.json", 3),
    ],
)
def test_a_record_that_is_damaged_on_the_way_holds_up_nothing(
    world: World, name: str, when: int
) -> None:
    """Whatever it is of, its own film ends as well."""
    for key in ("a.mp4", "b.mp4"):
        world.storage.put(VIDEOS, key, key.encode())
    for _ in range(when):
        world.reconciler.round()
        for message in world.messages():
            world.work(message, Gate(9) if message.actor_name == "infer" else None)
    run = next((row.run for row in world.context.index.analyses(query="a.mp4").rows), "")
    damaged = f"{run}/{name}" if name.startswith("attempts/") else name
    world.storage.put(RESULTS, damaged, b"{")
    world.reconciler.round()
    world.settle()
    runs = world.context.index.analyses().rows
    assert {(row.key, row.state) for row in runs} == {
        ("a.mp4", "succeeded"),
        ("b.mp4", "succeeded"),
    }


def test_what_a_deletion_left_does_not_come_back(world: World) -> None:
    """A deletion that was cut short after its request: the run stays gone, round after round."""
    run = planned(world)
    world.settle()
    world.storage.remove(RESULTS, f"{run}/request.json")
    assert world.reconciler.round().runs_gone == 1
    assert world.reconciler.round().mended == 0
    assert world.context.index.analyses().rows == []


@pytest.mark.parametrize("over", [False, True])
def test_stopping_a_run_that_a_tool_has_removed_stops_no_later_one(
    world: World, over: bool
) -> None:
    """The wish to stop it comes when nobody has told yet that it is gone."""
    run = planned(world)
    if over:
        world.settle()
    (row,) = world.context.index.analyses().rows
    world.storage.events.clear()
    for key in [key for key in world.storage.buckets[RESULTS] if key.startswith(f"{run}/")]:
        world.storage.remove(RESULTS, key)
    assert results.cancel_or_delete(world.context, row.analysis_id) == "cancelled"
    assert f"{run}/cancel" not in world.storage.buckets[RESULTS]
    # An older posedrop has left such a wish.
    world.storage.put(RESULTS, f"{run}/cancel", b"")
    world.tell(world.storage.events)
    asked = pending.ask(world.context, row.file_id, row.analysis, row.args, force=False)
    assert asked == (row.analysis_id, "queued", False)
    world.settle()
    assert results.read(world.context, row.analysis_id).status == "succeeded"


def test_slices_make_a_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few steps a round takes, at its end a sweep has found the same."""
    monkeypatch.setattr(reconcile, "SLICE", 7)
    for number in range(30):
        world.storage.put(VIDEOS, f"{number}.mp4", b"film %d" % number)
    rounds = 1
    while not world.reconciler.step():
        rounds += 1
    assert len(world.messages()) == 30
    # 30 objects and then their 30 rows.
    assert rounds == 1 + 60 // 7
    for number in range(30):
        world.storage.remove(VIDEOS, f"{number}.mp4")
    while not world.reconciler.step():
        pass
    assert world.context.index.files().rows == []


def pages_that_fail(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int, fails: Callable[[int, str], bool]
) -> None:
    """List ``size`` objects a page; ``fails`` is told how many came before, and the first key."""
    objects, asked = world.storage.objects, count()

    def in_pages(bucket: str, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        found = objects(bucket, prefix, after)
        while page := list(islice(found, size)):
            if fails(next(asked), page[0].key):
                raise StorageError("the store answers 500")
            yield from page

    monkeypatch.setattr(world.storage, "objects", in_pages)


def step(world: World) -> bool:
    """Have the reconciler take a step; tell whether it was the last of a sweep."""
    with contextlib.suppress(StorageError):
        return world.reconciler.step()
    return False


def test_a_sweep_goes_on_where_the_store_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bucket with more pages than a store answers without a failure, the end is reached."""
    monkeypatch.setattr(reconcile, "SLICE", 7)
    pages_that_fail(world, monkeypatch, 10, lambda asked, _: asked % 3 == 2)
    for number in range(100):
        world.storage.put(VIDEOS, f"{number:03}.mp4", b"film %d" % number)
    assert any(step(world) for _ in range(100))
    assert len(world.messages()) == 100
    world.storage.remove(VIDEOS, "099.mp4")
    assert any(step(world) for _ in range(100))
    assert len(world.context.index.files(limit=200).rows) == 99


def test_a_store_that_is_away_for_long_costs_a_sweep_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was, however often it was tried meanwhile."""
    monkeypatch.setattr(reconcile, "SLICE", 7)
    asked, away = list[str](), False

    def fails(_: int, first: str) -> bool:
        asked.append(first)
        return away

    def refuse(*_: str) -> Listing:
        raise StorageError("the store is away")

    pages_that_fail(world, monkeypatch, 1, fails)
    for number in range(20):
        world.storage.put(VIDEOS, f"{number:02}.mp4", b"film %d" % number)
    assert not step(world)
    with monkeypatch.context() as outage:
        outage.setattr(world.storage, "listing", refuse)
        away = True
        assert not any(step(world) for _ in range(30))
        away = False
    assert any(step(world) for _ in range(20))
    films = [key for key in asked if key.endswith(".mp4")]
    assert len(films) > 20 + 10
    assert films == sorted(films)


def test_a_place_that_no_sweep_gets_past_hides_nothing_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries a sweep begins anew, and finds what has come meanwhile."""
    monkeypatch.setattr(reconcile, "SLICE", 7)
    pages_that_fail(world, monkeypatch, 1, lambda _, first: first > "b")
    for name in ("a", "c"):
        world.storage.put(VIDEOS, f"{name}/0.mp4", name.encode())
    for number in range(2):
        world.storage.put(VIDEOS, f"a/{number}.mp4", b"film %d" % number)
        for _ in range(20):
            assert not step(world)
        rows = world.context.index.files().rows
        assert {row.key for row in rows} == {f"a/{each}.mp4" for each in range(number + 1)}


def runs(world: World) -> set[tuple[str, float]]:
    """Return the runs of the index: each video's key, and the seconds that were asked for."""
    rows = world.context.index.analyses(limit=100).rows
    return {(row.key, row.args["seconds"]) for row in rows}


def clear(world: World, prefix: str) -> None:
    """Remove what lies there, as an S3 tool does."""
    for key in [key for key in world.storage.buckets[RESULTS] if key.startswith(prefix)]:
        world.storage.remove(RESULTS, key)


def test_rules_are_followed_once_even_if_the_index_is_lost(world: World) -> None:
    """Deleted results stay so, also with the whole folder gone; a later rule reaches no old video.

    Uploading the video again is asking again.
    """
    for name in ("api", "tool", "folder"):
        world.storage.put(VIDEOS, f"{name}.mp4", name.encode())
    world.settle()
    assert runs(world) == {("api.mp4", 0), ("tool.mp4", 0), ("folder.mp4", 0)}
    rows = {row.key: row for row in world.context.index.analyses().rows}
    assert results.cancel_or_delete(world.context, rows["api.mp4"].analysis_id) == "deleted"
    clear(world, rows["tool.mp4"].run)
    clear(world, "folder.mp4/")
    world.settings = world.settings.model_copy(update={"default_args": {"seconds": 1}})
    for _ in range(2):
        world.lose_index()
        world.settle()
        assert runs(world) == set()
        assert {row.state for row in world.context.index.files().rows} == {"ready"}
    world.storage.remove(VIDEOS, "folder.mp4")
    world.settle()
    world.storage.put(VIDEOS, "folder.mp4", b"folder")
    world.settle()
    assert runs(world) == {("folder.mp4", 1)}


def test_a_question_is_answered_for_what_is_ingested_first_after_it(world: World) -> None:
    """Not for what replaces that, which has its rules; asked then, it is another question."""
    world.storage.put(VIDEOS, "a.mp4", b"one")
    world.reconciler.round()
    file_id = layout.file_id_of(VIDEOS, "a.mp4")
    first = pending.ask(world.context, file_id, "dummy", {"seconds": 2}, force=False)
    world.settle()
    # Whoever asked needs no default on top.
    assert runs(world) == {("a.mp4", 2)}
    world.clock.pass_(1)
    world.storage.put(VIDEOS, "a.mp4", b"two")
    world.settle()
    answered = results.read(world.context, first.analysis_id).analysis_id
    for _ in range(2):
        assert runs(world) == {("a.mp4", 2), ("a.mp4", 0)}
        assert results.read(world.context, first.analysis_id).analysis_id == answered
        world.lose_index()
        world.settle()
    world.clock.pass_(1)
    world.storage.put(VIDEOS, "a.mp4", b"three")
    world.reconciler.round()
    again = pending.ask(world.context, file_id, "dummy", {"seconds": 2}, force=False)
    assert again.analysis_id != first.analysis_id
    world.settle()
    assert results.read(world.context, again.analysis_id).analysis_id != answered
    assert results.cancel_or_delete(world.context, again.analysis_id) == "deleted"
    world.lose_index()
    world.settle()
    assert len(world.context.index.analyses().rows) == 2


def test_what_could_not_be_planned_is_planned_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that can be read and not written, however long, loses no video's rules."""
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)

    def full(*_: object) -> bool:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "create", full)
        for _ in range(2):
            assert world.reconciler.round().damaged >= 1
    assert runs(world) == set()
    world.settle()
    assert runs(world) == {("a.mp4", 0)}
