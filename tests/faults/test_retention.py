"""What is removed by itself: by the store's clock, films alone, and never more than a share."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import upload
from handlers.runs import pending, results
from handlers.upkeep import retention
from posedrop.api.retention import ExpireRequest
from posedrop.buckets import layout
from posedrop.buckets.storage import UnfinishedUpload
from posedrop.errors import BadRequestError
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import WorkerContext, World
from worker import gone
from worker.cache import Cache

DAY = 86400.0

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a posedrop that removes films after 90 days."""
    made: list[World] = []

    def make_one(**settings: Any) -> World:
        world = World(tmp_path / str(len(made)), **{"retention_days": 90, **settings})
        made.append(world)
        return world

    yield make_one
    for world in made:
        world.end()


def fill(world: World, *keys: str, size: int = 0, pause: float = 0.0) -> None:
    """Have films of these names analysed, with a pause in seconds behind each."""
    for key in keys:
        world.storage.put(VIDEOS, key, f"film {key}".encode().ljust(size))
        world.settle()
        world.clock.pass_(pause)


def films(world: World) -> set[str]:
    """Return the keys of the videos bucket."""
    return set(world.storage.buckets[VIDEOS])


def analysed(world: World) -> set[str]:
    """Return the films of which there are results."""
    found = (layout.parse_result_key(key) for key in world.storage.buckets[RESULTS])
    return {
        each.video
        for each in found
        if isinstance(each, layout.RunObject) and each.name == layout.RESULT
    }


def pin(world: World, folder: str, keep: object, **more: object) -> None:
    """Put a posedrop.json there."""
    world.storage.put(VIDEOS, f"{folder}posedrop.json", json.dumps({"keep": keep, **more}).encode())


def test_a_locked_film_stops_no_round(make: Make) -> None:
    """120 rounds with a film that can't be deleted: the others go, lost messages are sent again."""
    world = make(expire_share=1)
    fill(world, "a.mp4", "locked.mp4", "z.mp4")
    world.storage.locked.add((VIDEOS, "locked.mp4"))
    world.clock.pass_(91 * DAY)
    first = world.reconciler.round()
    assert (first.expired, first.undeletable) == (2, 1)
    assert films(world) == {"locked.mp4"}
    world.storage.put(VIDEOS, "new.mp4", b"new")
    world.reconciler.round()
    for _ in range(120):
        world.messages()  # lost
        world.clock.pass_(61)
        found = world.reconciler.round()
        assert (found.ingests_sent, found.undeletable) == (1, 1)
    for message in world.messages():
        world.work(message)
    world.storage.locked.clear()
    world.settle()
    assert films(world) == analysed(world) == {"new.mp4"}


@pytest.mark.parametrize("bucket", [VIDEOS, RESULTS])
def test_nothing_that_cannot_be_deleted_or_read_stops_a_round(make: Make, bucket: str) -> None:
    """Each object in turn is locked, then unreadable: a lost message is sent again all the same."""
    world = make(expire_share=1)
    fill(world, "day1/a.mp4", "day1/b.mp4")
    file_id = layout.file_id_of(VIDEOS, "day1/c.mp4")
    pin(world, "day2/", True, analysis="no such analysis")
    world.storage.put(VIDEOS, "day2/d.mp4", b"waits for its rule")
    world.storage.put(VIDEOS, "day1/c.mp4", b"c")
    world.settle()
    world.storage.put(VIDEOS, "day1/lost.mp4", b"lost")
    world.reconciler.round()
    for key in sorted(world.storage.buckets[bucket]):
        for faults in (world.storage.locked, world.storage.unreadable):
            faults.add((bucket, key))
            for _ in range(2):
                world.messages()
                world.clock.pass_(61)
                assert world.reconciler.round().ingests_sent >= 1, key
                assert world.reconciler.step() in {True, False}
            faults.clear()
    assert world.context.index.file(file_id) is not None


@pytest.mark.parametrize("new", [b"film a.mp4", b"another film"])
@pytest.mark.parametrize("old", ["analysed", "refused", "gone"])
def test_a_film_that_comes_while_the_old_one_is_removed_stays(
    make: Make, monkeypatch: pytest.MonkeyPatch, old: str, new: bytes
) -> None:
    """Between the check of its age and its removal lie minutes, where results are handed over."""
    world = make(**OLD_LAB)
    fill(world, "a.mp4", size=2000 if old == "refused" else 0, pause=91 * DAY)
    if old == "gone":
        world.storage.remove(VIDEOS, "a.mp4")
        world.tell(world.storage.events)
    objects = world.storage.objects
    came = []

    def listed(bucket: str, prefix: str = "", after: str = "") -> Iterator[Any]:
        if (bucket, prefix) == (RESULTS, "a.mp4/") and not came:
            came.append(world.storage.put(VIDEOS, "a.mp4", new))
        return objects(bucket, prefix, after)

    monkeypatch.setattr(world.storage, "objects", listed)
    assert world.reconciler.round().expired == 0
    assert came
    world.settle()
    assert world.storage.buckets[VIDEOS]["a.mp4"].data == new
    assert analysed(world) == {"a.mp4"}


def test_an_old_refusal_that_is_locked_stops_no_round(make: Make) -> None:
    """It can't be taken back, and the others are looked at anew."""
    world = make()
    for key in ("a.mp4", "locked.mp4", "z.mp4"):
        world.storage.put(VIDEOS, key, b"bad film")
    world.settle()
    for key in ("a.mp4", "locked.mp4", "z.mp4"):
        record = json.loads(world.storage.buckets[RESULTS][f"{key}/video.json"].data)
        old = json.dumps({**record, "ingest_version": 1}).encode()
        world.storage.put(RESULTS, f"{key}/video.json", old)
    world.storage.locked.add((RESULTS, "locked.mp4/video.json"))
    world.close()
    world.open()
    world.storage.put(VIDEOS, "lost.mp4", b"lost")
    world.reconciler.step()
    for _ in range(5):
        world.messages()
        world.clock.pass_(61)
        world.reconciler.step()
    looked_at = {message.kwargs["key"] for message in world.messages()}
    assert looked_at >= {"a.mp4", "z.mp4", "lost.mp4"}
    world.settle()
    assert analysed(world) == {"lost.mp4"}


@pytest.mark.parametrize("by_steps", [True, False])
def test_the_handlers_clock_deletes_nothing(make: Make, *, by_steps: bool) -> None:
    """With a handlers' clock a year ahead, five new films out of five stay; with one behind, too.

    Nor does it keep what is old.
    """
    world = make(expire_share=1)
    fill(world, *(f"{n}.mp4" for n in range(5)))
    for days in (365, -365):
        world.set_handlers_ahead(timedelta(days=days))
        if by_steps:
            while not world.reconciler.step():
                pass
        else:
            world.reconciler.round()
        assert len(films(world)) == len(world.context.index.files().rows) == 5
    world.clock.pass_(91 * DAY)
    world.reconciler.round()
    assert films(world) == analysed(world) == set()


def test_more_than_a_share_waits_for_a_person(make: Make) -> None:
    """A store's clock a year ahead deletes nothing: it is said, listed, and done when told."""
    world = make()
    fill(world, *(f"{n}.mp4" for n in range(5)))
    pin(world, "", ["3.mp4"])
    world.settle()
    world.clock.pass_(365 * DAY)
    for _ in range(3):
        found = world.reconciler.round()
        assert (found.held_back, found.expired) == (4, 0)
        while not world.reconciler.step():
            pass
    assert len(films(world)) == 6
    (words,) = world.context.notices.values()
    assert "4 of 5 films" in words
    assert "`posedrop expire`" in words
    said = retention.describe(world.context)
    assert (said.due, said.films, said.kept, said.held) == (4, 5, 1, True)
    assert {item.key for item in said.items} == {f"{n}.mp4" for n in (0, 1, 2, 4)}
    assert all("older than 90 days: 2026-01-01" in item.why for item in said.items)
    with pytest.raises(BadRequestError, match="4 films and runs are due now, more than 3"):
        retention.expire(world.context, ExpireRequest(due=3))
    assert len(films(world)) == 6
    done = retention.expire(world.context, ExpireRequest(due=4))
    assert (done.expired, done.undeletable) == (4, 0)
    assert films(world) == {"3.mp4", "posedrop.json"}
    assert world.context.notices == {}


def left(world: World) -> set[str]:
    """What the buckets hold, but for what differs from one run to the next."""
    return {
        f"{bucket}/{key}" for bucket in (VIDEOS, RESULTS) for key in world.storage.buckets[bucket]
    }


OLD_LAB = {"expire_share": 1, "orphans": "delete", "max_video_bytes": 1000}


def upload_id(name: str) -> str:
    return layout.new_file_id(layout.make_id(name))


def old_lab(make: Make) -> World:
    """Films that are due in each way, films that are not, and what is pinned."""
    world = make(**OLD_LAB)
    fill(world, "a/1.mp4", "a/2.mp4", "b/kept.mp4", "c/gone.mp4", "d/copied.mp4")
    fill(world, f"uploads/{upload_id('large')}/large.mp4", size=2000)
    pin(world, "b/", True)
    # The same content under two names, one of which is new.
    world.storage.put(VIDEOS, "a/same.mp4", b"film of two names")
    world.settle()
    world.storage.remove(VIDEOS, "c/gone.mp4")
    world.clock.pass_(91 * DAY)
    world.storage.put(VIDEOS, "new/same.mp4", b"film of two names")
    world.storage.put(VIDEOS, "d/copied.mp4", world.storage.buckets[VIDEOS]["d/copied.mp4"].data)
    for message in world.messages():
        world.work(message)
    return world


def sweep(world: World) -> None:
    """A round of the reconciler."""
    world.reconciler.round()


def command(world: World) -> None:
    """`posedrop expire`."""
    retention.expire(world.context, ExpireRequest(due=100))


class AfterChange(Gate):
    """Cut behind the ``at``-th change of the buckets: what is read in between changes nothing."""

    def __init__(self, world: World, at: int) -> None:
        super().__init__(at, after=True)
        self._events = world.storage.events
        self._seen = len(self._events)

    def passed(self) -> None:
        """Crash, if it is the one."""
        if len(self._events) != self._seen:
            self._seen = len(self._events)
            super().passed()


def twin(world: World, make: Make) -> World:
    """Return another world that is as this one, whose handlers are down."""
    other = make(**OLD_LAB)
    other.close()
    for path in world.folder.glob("index.sqlite*"):
        shutil.copy(path, other.folder)
    other.storage.buckets = {name: dict(found) for name, found in world.storage.buckets.items()}
    other.clock.time = world.clock.time
    other.open()
    return other


@pytest.mark.parametrize("remove", [sweep, command])
def test_a_removal_killed_after_any_step_ends_as_one_that_was_not(
    make: Make, remove: Callable[[World], None]
) -> None:
    """Whatever it has changed in the buckets so far: at the end they hold the same."""
    first = old_lab(make)
    first.close()
    whole = twin(first, make)
    remove(whole)
    whole.settle()
    assert films(whole) == {"b/kept.mp4", "b/posedrop.json", "new/same.mp4", "d/copied.mp4"}
    for at in itertools.count(1):
        world = twin(first, make)
        gate = AfterChange(world, at)
        with world.storage.gate(gate), contextlib.suppress(Crash):
            remove(world)
        if gate.left > 0:
            break
        world.close()
        world.open()
        world.settle()
        assert left(world) ^ left(whole) == set(), at
    assert at > 20


def test_films_that_are_gone_make_no_share_of_those_that_are_there(make: Make) -> None:
    """Of ten films seven are archived: the three that are left are all, and wait for a person."""
    world = make()
    fill(world, *(f"{n}.mp4" for n in range(10)))
    for number in range(7):
        world.storage.remove(VIDEOS, f"{number}.mp4")
    world.settle()
    world.clock.pass_(91 * DAY)
    found = world.reconciler.round()
    assert (found.held_back, found.expired) == (10, 0)
    assert len(films(world)) == 3
    assert len(analysed(world)) == 10
    retention.expire(world.context, ExpireRequest(due=10))
    world.settle()
    assert films(world) == analysed(world) == set()


@pytest.mark.parametrize(("share", "gone"), [(0, 0), (0.25, 1), (1, 1)])
def test_a_single_old_film_waits_for_no_share_but_none(make: Make, share: float, gone: int) -> None:
    """Of three, one is more than a quarter."""
    world = make(expire_share=share)
    fill(world, "old.mp4", pause=89 * DAY)
    fill(world, "1.mp4", "2.mp4")
    world.clock.pass_(2 * DAY)
    found = world.reconciler.round()
    assert (found.expired, found.held_back) == (gone, 1 - gone)


def test_films_that_grow_old_one_after_the_other_go(make: Make) -> None:
    """A quarter of them at once is what retention does every day; nothing else of a lab's goes."""
    world = make()
    notes = {"notes.txt": b"bad: no film", "day1/posedrop.json": b'{"analysis": null}'}
    for key, data in notes.items():
        world.storage.put(VIDEOS, key, data)
    fill(world, *(f"{n}.mp4" for n in range(8)), pause=DAY)
    world.clock.pass_(83.9 * DAY)  # two of eight are older than 90 days
    assert world.reconciler.round().expired == 2
    assert films(world) == {f"{n}.mp4" for n in range(2, 8)} | set(notes)
    world.clock.pass_(30 * DAY)
    assert world.reconciler.round().held_back == 6


def test_what_was_replaced_or_copied_onto_itself_is_new(make: Make) -> None:
    """Even where no event has told the index of it, or it happens in the middle of a sweep."""
    world = make(expire_share=1)
    fill(world, "replaced.mp4", "copied.mp4", "old.mp4")
    world.clock.pass_(91 * DAY)
    due = retention.describe(world.context)
    assert due.due == 3
    world.storage.put(VIDEOS, "replaced.mp4", b"another film")
    world.storage.put(VIDEOS, "copied.mp4", b"film copied.mp4")
    assert retention.expire(world.context, ExpireRequest(due=3)).expired == 1
    assert films(world) == {"replaced.mp4", "copied.mp4"}


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (
            {"": {"keep": True}},
            {"a.mp4", "day1/a.mp4", "day1/cam2/a.mp4", "[ctrl] trial[1].mp4"},
        ),
        ({"day1/": {"keep": True}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        # A rule that says nothing of it lets the one above say so; one that says no, does not.
        (
            {"day1/": {"keep": True}, "day1/cam2/": {"analysis": None}},
            {"day1/a.mp4", "day1/cam2/a.mp4"},
        ),
        ({"day1/": {"keep": True}, "day1/cam2/": {"keep": False}}, {"day1/a.mp4"}),
        ({"": {"keep": ["a.mp4"]}}, {"a.mp4"}),
        ({"": {"keep": ["day1/"]}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"day1/": {"keep": ["./cam2/a.mp4"]}}, {"day1/cam2/a.mp4"}),
        ({"day1/": {"keep": ["day1/a.mp4"]}}, {"day1/a.mp4"}),
        ({"day1/": {"keep": ["cam2"]}}, {"day1/cam2/a.mp4"}),
        ({"": {"keep": ["*/a.mp4"]}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"": {"keep": ["[ctrl] tr*"]}}, {"[ctrl] trial[1].mp4"}),
        ({"day1/": {"keep": ["b.mp4"]}}, set()),
        ({"day1/": {"keep": []}}, set()),
        ({"day1/": {"keep": None}}, set()),
        # What can't be understood may have been meant to keep them.
        ({"day1/": b'{"keep": true,}'}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"day1/": {"keep": "a.mp4"}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"day1/": {"Keep": True}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"day1/": b""}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
        ({"day1/": {"keep": True, "analysis": "dumy"}}, {"day1/a.mp4", "day1/cam2/a.mp4"}),
    ],
)
def test_what_is_pinned_stays(make: Make, rules: dict[str, Any], kept: set[str]) -> None:
    """A folder, or files of it; the nearest posedrop.json that says something decides."""
    world = make(expire_share=1)
    keys = ["a.mp4", "day1/a.mp4", "day1/cam2/a.mp4", "[ctrl] trial[1].mp4"]
    fill(world, *keys)
    for folder, rule in rules.items():
        data = rule if isinstance(rule, bytes) else json.dumps(rule).encode()
        world.storage.put(VIDEOS, f"{folder}posedrop.json", data)
    world.clock.pass_(91 * DAY)
    world.reconciler.round()
    there = {key for key in films(world) if not layout.is_folder_rule(key)}
    assert there == analysed(world) == kept


def test_what_is_pinned_stays_however_deep_it_lies(make: Make) -> None:
    """Of so many folders no rule says what is run; what a person keeps is kept all the same."""
    world = make(expire_share=1)
    folder = "a/" * (layout.RULES_DEPTH + 8)
    fill(world, "a.mp4", f"{folder}a.mp4")
    world.storage.put(VIDEOS, f"{folder}posedrop.json", b'{"keep": true}')
    world.clock.pass_(91 * DAY)
    world.reconciler.round()
    assert {key for key in films(world) if not layout.is_folder_rule(key)} == {f"{folder}a.mp4"}


def test_a_rule_that_keeps_says_nothing_of_analyses(make: Make) -> None:
    """New films below are analysed as the folder above says, or the default; unless it says."""
    world = make()
    pin(world, "day1/", True)
    pin(world, "day2/", True, analysis=None)
    pin(world, "day3/", ["a.mp4"])
    world.storage.put(VIDEOS, "posedrop.json", b'{"analysis": "dummy", "args": {"seconds": 3}}')
    fill(world, "day1/a.mp4", "day2/a.mp4", "day3/b.mp4")
    rows = world.context.index.analyses().rows
    assert {(row.key, row.args["seconds"]) for row in rows} == {
        ("day1/a.mp4", 3),
        ("day3/b.mp4", 3),
    }


def test_an_upload_over_the_limit_goes_after_a_week(make: Make) -> None:
    """Below uploads/<file_id>/ alone, unless it is pinned or the limit is higher by now."""
    world = make(retention_days=None, max_video_bytes=100)
    keys = [f"uploads/{upload_id(name)}/{name}.mp4" for name in ("large", "pinned", "small")]
    for key in keys:
        world.storage.put(VIDEOS, key, key.encode().ljust(50 if "small" in key else 101))
    world.storage.put(VIDEOS, "day1/large.mp4", bytes(101))
    world.storage.put(VIDEOS, "uploads/large.mp4", bytes(101))
    pin(world, keys[1].removesuffix("pinned.mp4"), True)
    world.settle()
    refused = world.context.index.files(state="refused").rows
    assert {row.refusal_reason for row in refused} == {"too_many_bytes"}
    there = films(world)
    world.clock.pass_(6.9 * DAY)
    assert world.reconciler.round().expired == 0
    world.settings = world.settings.model_copy(update={"max_video_bytes": 200})
    world.close()
    world.open()
    world.clock.pass_(2 * DAY)
    assert world.reconciler.round().expired == 0
    world.settings = world.settings.model_copy(update={"max_video_bytes": 100})
    world.close()
    world.open()
    assert world.reconciler.round().expired == 1
    assert there - films(world) == {keys[0]}


def test_room_is_made_down_to_the_low_mark(make: Make) -> None:
    """The films that were finished first go, their results stay; none that is pinned or waits."""
    world = make(retention_days=None, expire_share=0.5, orphans="delete")
    fill(world, "0.mp4", "pinned.mp4", "1.mp4", "2.mp4", "3.mp4", size=10_000, pause=DAY)
    pin(world, "", ["pinned.mp4"])
    world.settle()
    file_id = layout.file_id_of(VIDEOS, "0.mp4")
    pending.ask(world.context, file_id, "dummy", {"seconds": 9}, force=False)  # it is not finished
    there = retention.count_bytes(world.context)
    marks = {"high_water_bytes": there - 1, "low_water_bytes": there - 15_000}
    world.settings = world.settings.model_copy(update=marks)
    world.close()
    world.open()
    before = films(world)
    assert {item.kind for item in retention.describe(world.context).items} == {"space"}
    assert world.reconciler.round().expired == 2
    assert before - films(world) == {"1.mp4", "2.mp4"}
    assert world.reconciler.round().expired == 0
    assert analysed(world) >= {"1.mp4", "2.mp4", "pinned.mp4"}


def test_results_go_when_no_film_is_left_to_go(make: Make) -> None:
    """First all finished films, then the results of the oldest; a share of each at most."""
    world = make(retention_days=None, expire_share=1)
    fill(world, "0.mp4", "pinned.mp4", "2.mp4", size=10_000, pause=DAY)
    pin(world, "", ["pinned.mp4"])
    world.settle()
    there = retention.count_bytes(world.context)
    marks = {"high_water_bytes": there - 1, "low_water_bytes": there - 20_100}
    world.settings = world.settings.model_copy(update=marks)
    world.close()
    world.open()
    kinds = [(item.kind, item.key) for item in retention.describe(world.context).items]
    assert kinds == [("space", "0.mp4"), ("space", "2.mp4"), ("results", "0.mp4")]
    assert world.reconciler.round().expired == 3
    assert films(world) == {"pinned.mp4", "posedrop.json"}
    assert analysed(world) == {"pinned.mp4", "2.mp4"}


def test_a_mark_that_is_far_too_low_removes_nothing(make: Make) -> None:
    """1 MB in place of 1 TB: all films would go, so none does."""
    world = make(retention_days=None, high_water_bytes=1000)
    fill(world, *(f"{n}.mp4" for n in range(5)), size=10_000)
    found = world.reconciler.round()
    assert (found.held_back, found.expired) == (10, 0)
    assert len(films(world)) == 5


def test_what_never_came_is_given_up_when_its_urls_are_over(make: Make) -> None:
    """The row goes, and the question; a film that comes in time is analysed as was asked."""
    world = make()
    for name in ("never", "late", "came"):
        file_id = upload_id(name)
        key = f"uploads/{file_id}/{name}.mp4"
        world.context.index.expect_file(file_id, VIDEOS, key, world.clock())
    asked = {
        name: pending.ask(world.context, upload_id(name), "dummy", {"seconds": 7}, force=False)
        for name in ("never", "came")
    }
    world.clock.pass_(DAY)
    world.settle()
    world.storage.put(VIDEOS, f"uploads/{upload_id('came')}/came.mp4", b"came")
    world.settle()
    for ahead in (365, 0):  # what the handlers' clock says is of no importance to a question
        world.set_handlers_ahead(timedelta(days=ahead))
        world.reconciler.round()
        assert results.read(world.context, asked["never"].analysis_id).status == "waiting"
    assert results.read(world.context, asked["came"].analysis_id).status == "succeeded"
    world.clock.pass_(DAY)
    assert world.reconciler.round().given_up >= 1
    world.settle()
    index = world.context.index
    assert {row.key.rsplit("/", 1)[1] for row in index.files().rows} == {"came.mp4"}
    assert index.pending_open() == []
    answer = results.read(world.context, asked["never"].analysis_id)
    assert answer.error is not None
    assert (answer.status, answer.error.code) == ("failed", "never_uploaded")
    world.storage.put(VIDEOS, f"uploads/{upload_id('late')}/late.mp4", b"late")
    world.settle()
    assert len(index.analyses(state="succeeded").rows) == 2
    world.lose_index()
    world.settle()
    assert world.context.index.pending_open() == []


def test_uploads_in_parts_are_given_up_after_a_week(make: Make) -> None:
    """By the store's clock; one that can't be given up holds up no other."""
    world = make()
    begun = world.clock()
    old = [UnfinishedUpload(f"{n}.mp4", str(n), begun) for n in range(3)]
    world.storage.in_parts += [(VIDEOS, old[0]), (RESULTS, old[1]), (VIDEOS, old[2])]
    world.set_handlers_ahead(timedelta(days=365))
    world.reconciler.round()
    assert len(world.storage.in_parts) == 3
    world.clock.pass_(6 * DAY)
    young = UnfinishedUpload("young.mp4", "y", world.clock())
    world.storage.in_parts.append((VIDEOS, young))
    world.clock.pass_(1.1 * DAY)
    assert world.reconciler.round().given_up == 3
    assert world.storage.in_parts == [(VIDEOS, young)]


def test_a_worker_keeps_no_copy_of_a_film_that_is_gone(make: Make) -> None:
    """Whoever has removed it; a film of the same content is fetched again, and all ends well."""
    world = make()
    world.cache_bytes = 10**6
    fill(world, "kept.mp4", "expired.mp4", "removed.mp4")
    world.storage.put(VIDEOS, "copy.mp4", b"film removed.mp4")
    world.settle()
    cache = Cache(world.settings.scratch_dir / "cache", world.cache_bytes)
    context: Any = WorkerContext(world.settings, world.storage, world.broker, "worker", cache)
    assert (gone.forget_gone(context), len(cache.videos())) == (0, 3)
    upload.delete(world.context, layout.file_id_of(VIDEOS, "expired.mp4"))
    world.storage.remove(VIDEOS, "removed.mp4")
    world.settle()
    assert gone.forget_gone(context) == 2
    kept = hashlib.sha256(b"film kept.mp4").hexdigest()
    assert cache.videos() == [kept]
    file_id = layout.file_id_of(VIDEOS, "copy.mp4")
    pending.ask(world.context, file_id, "dummy", {"seconds": 5}, force=False)
    world.settle()
    assert {row.state for row in world.context.index.analyses(query="copy").rows} == {"succeeded"}


def test_a_locked_film_keeps_no_room_from_being_made(make: Make) -> None:
    """The largest, finished first, can't be removed: the next sweep does without it."""
    world = make(retention_days=None, expire_share=0.5)
    fill(world, "locked.mp4", size=90_000)
    fill(world, *(f"{n}.mp4" for n in range(5)), size=10_000)
    world.storage.locked.add((VIDEOS, "locked.mp4"))
    there = retention.count_bytes(world.context)
    marks = {"high_water_bytes": there - 1, "low_water_bytes": there - 15_000}
    world.settings = world.settings.model_copy(update=marks)
    world.close()
    world.open()
    first, second, third = (world.reconciler.round() for _ in range(3))
    assert (first.expired, first.undeletable) == (0, 1)
    assert (second.expired, second.undeletable) == (2, 1)
    assert (third.expired, third.undeletable) == (0, 0)


#: What no posedrop has written, by what it is written over: JSON that is one thing too large.
NONSENSE: dict[str, dict[str, Any]] = {
    "video.json": {"video": {"size": 10**30}},
    "video.json ": {"last_modified": "0001-01-01T00:00:00+14:00"},
    "video.json  ": {"ingested_at": "9999-12-31T23:59:59-14:00"},
    "video.json   ": {"sha256": "\ud800"},
    "request.json": {"created_at": "0001-01-01T00:00:00+14:00"},
    "request.json ": {"args": {"seconds": 10**400}},
    "result.json": {"rows": 10**30},
    "result.json ": {"frames_decoded": 10**30},
    "result.json  ": {"finished_at": "9999-12-31T23:59:59-14:00"},
    "result.json   ": {"error": {"code": "x", "message": "\ud800"}},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_record_that_no_index_holds_stops_no_round(make: Make, name: str) -> None:
    """Whatever number or time it says: what lies behind it is found, and lost messages are sent."""
    world = make()
    fill(world, "a.mp4", "b.mp4")
    (key,) = [
        key
        for key in world.storage.buckets[RESULTS]
        if key.startswith("a.mp4/") and key.endswith(f"/{name.strip()}")
    ]
    record = json.loads(world.storage.buckets[RESULTS][key].data)
    for field, value in NONSENSE[name].items():
        record[field] = {**record[field], **value} if field == "video" else value
    world.storage.put(RESULTS, key, json.dumps(record).encode())
    world.storage.put(VIDEOS, "c.mp4", b"c")
    world.lose_index()
    world.reconciler.round()
    for _ in range(3):
        world.messages()  # lost
        world.clock.pass_(61)
        assert world.reconciler.round().ingests_sent >= 1
        world.reconciler.step()
    for message in world.messages():
        world.work(message)
    world.settle()
    assert analysed(world) >= {"b.mp4", "c.mp4"}


def test_a_content_keeps_its_results_beside_each_name_that_is_left(make: Make) -> None:
    """Of the first of a content, however it goes, nothing is taken that another name has."""
    world = make(expire_share=1)
    fill(world, "first.mp4", pause=89 * DAY)
    world.storage.put(VIDEOS, "copy.mp4", b"film first.mp4")
    world.settle()
    world.clock.pass_(2 * DAY)
    assert world.reconciler.round().expired == 1
    world.settle()
    assert films(world) == analysed(world) == {"copy.mp4"}
    (row,) = world.context.index.analyses().rows
    assert results.read(world.context, row.analysis_id).status == "succeeded"


def test_results_go_name_by_name(make: Make) -> None:
    """For want of space one name's results go, those beside a pinned name stay and are read."""
    world = make(retention_days=None, expire_share=1)
    fill(world, "a.mp4", "kept/a.mp4", size=10_000)
    world.storage.put(VIDEOS, "b.mp4", world.storage.buckets[VIDEOS]["kept/a.mp4"].data)
    pin(world, "kept/", True)
    world.settle()
    for key in ("b.mp4", "kept/a.mp4"):
        world.storage.remove(VIDEOS, key)
    world.settle()
    marks = {"high_water_bytes": 100, "low_water_bytes": 50}
    world.settings = world.settings.model_copy(update=marks)
    world.close()
    world.open()
    for _ in range(3):
        world.reconciler.round()
        world.settle()
    assert films(world) == {"kept/posedrop.json"}
    assert analysed(world) == {"kept/a.mp4"}
    (row,) = world.context.index.analyses().rows
    assert results.read(world.context, row.analysis_id).status == "succeeded"


FILMS = ("a.mp4", "day1/a.mp4", "day1/cam2/a.mp4", "day1/cam2/b.mp4", "day2/c.mp4")
FOLDERS = ("", "day1/", "day1/cam2/")
#: What people and machines do, and after each time what the reconciler does.
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(FILMS), st.integers(0, 2)),
    st.tuples(st.just("touch"), st.sampled_from(FILMS)),
    st.tuples(st.just("remove"), st.sampled_from(FILMS)),
    st.tuples(st.just("pin"), st.sampled_from(FOLDERS), st.sampled_from([True, False, None, "x"])),
    st.tuples(st.just("unpin"), st.sampled_from(FOLDERS)),
    st.tuples(st.just("handlers"), st.sampled_from([-500, 0, 500])),
    st.tuples(st.just("lock"), st.sampled_from(FILMS)),
    st.tuples(st.just("lose index")),
)
THEN = st.sampled_from(["round", "step", "settle", "events", "expire", "nothing"])
TURNS = st.tuples(STEPS, st.sampled_from([0, 0, 30, 100]), THEN)


def may_go(world: World, key: str) -> bool:
    """Tell by the bucket alone whether a film may be removed by itself now."""
    there = world.storage.buckets[VIDEOS]
    if world.clock() - there[key].info.last_modified <= timedelta(days=90):
        return False
    for rule in layout.folder_rules(key):
        try:
            keep = json.loads(there[rule].data)["keep"] if rule in there else None
        except ValueError:
            return False
        if keep is not None:
            return not keep
    return True


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(TURNS, min_size=4, max_size=10), share=st.sampled_from([0.5, 1]))
def test_in_whatever_order_nothing_goes_that_must_not(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[tuple[tuple[Any, ...], int, str]],
    share: float,
) -> None:
    """Young, pinned and other objects stay, whatever is put, lost, locked, or said by a clock."""
    world = World(tmp_path_factory.mktemp("w"), retention_days=90, expire_share=share)
    fill(world, *FILMS)
    real = world.storage.delete
    wrongly: list[str] = []

    def delete(bucket: str, keys: Iterable[str]) -> None:
        for key in keys:
            if bucket == VIDEOS and key in world.storage.buckets[VIDEOS]:
                # Kept for later: what is raised here is one object's fault to the reconciler.
                wrongly.extend([] if key in FILMS and may_go(world, key) else [key])
            real(bucket, [key])

    world.storage.delete = delete  # type: ignore[method-assign]
    try:
        for (what, *of), days, then in turns:
            world.clock.pass_(days * DAY)
            match what:
                case "put":
                    world.storage.put(VIDEOS, of[0], b"film %d" % of[1])
                case "touch" if of[0] in films(world):
                    world.storage.put(VIDEOS, of[0], world.storage.buckets[VIDEOS][of[0]].data)
                case "remove":
                    world.storage.remove(VIDEOS, of[0])
                case "pin" if of[1] == "x":
                    world.storage.put(VIDEOS, f"{of[0]}posedrop.json", b'{"keep": true,}')
                case "pin":
                    pin(world, of[0], of[1])
                case "unpin":
                    world.storage.remove(VIDEOS, f"{of[0]}posedrop.json")
                case "handlers":
                    world.set_handlers_ahead(timedelta(days=of[0]))
                case "lock":
                    world.storage.locked ^= {(VIDEOS, of[0])}
                case "lose index":
                    world.lose_index()
            match then:
                case "round":
                    there = len(films(world))
                    world.reconciler.round()  # results of films that are gone are counted apart
                    assert there - len(films(world)) <= max(1, share * there)
                case "step":
                    world.reconciler.step()
                case "settle":
                    world.reconciler.round()
                    for message in world.messages():
                        world.work(message)
                case "events":
                    told, world.storage.events = world.storage.events, []
                    world.tell(told)
                case "expire":
                    due = retention.describe(world.context).due
                    retention.expire(world.context, ExpireRequest(due=due))
            assert wrongly == []
    finally:
        world.end()
