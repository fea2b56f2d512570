"""A store that is slow holds up who asks it, and nobody else."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from handlers import upload_parts
from posedrop.api.uploads import CheckedFile, CheckRequest
from posedrop.buckets import layout
from posedrop.buckets.storage import ObjectInfo
from tests.faults.test_rules import tell
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World

#: Of so many characters were the ids that older uploads have: their films' ids the store knows.
LIKE_AN_ID = "uploads/openfieldsession/"


class Writer(Gate):
    """Whoever asks the store has another process try to write the index meanwhile."""

    def __init__(self, index: Path) -> None:
        super().__init__(0)
        self.index = index
        self.asked = 0
        self.refused = 0

    def passed(self) -> None:
        self.asked += 1
        other = sqlite3.connect(self.index, timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        except sqlite3.OperationalError:
            self.refused += 1
        finally:
            other.close()


def test_others_write_the_index_while_the_follower_waits_for_the_store(world: World) -> None:
    """For the ids of films that come and go, and the request of a run whose event was lost."""
    writer = Writer(world.folder / "index.sqlite")
    keys = [f"{LIKE_AN_ID}one.mp4", f"{LIKE_AN_ID}two.mp4"]
    for key in keys:
        world.storage.put(VIDEOS, key, key.encode())
    events, world.storage.events = world.storage.events, []
    world.tell(events, writer)
    tell_work(world)
    results = [key for key in world.storage.buckets[RESULTS] if key.endswith("/result.json")]
    assert len(results) == len(keys)

    world.lose_index()
    for key in [*results, *keys]:
        bucket = VIDEOS if key in keys else RESULTS
        world.storage.forge(bucket, key)
    events, world.storage.events = world.storage.events, []
    world.tell(events, writer)
    rows = world.context.index.analyses().rows
    assert {(row.key, row.state) for row in rows} == {(key, "succeeded") for key in keys}
    requests = [layout.Run(row.run).request for row in rows]
    assert all((RESULTS, request) in world.storage.asked for request in requests)

    for key in keys:
        world.storage.remove(VIDEOS, key)
    world.tell(world.storage.events, writer)
    assert writer.asked
    assert not writer.refused


def tell_work(world: World) -> None:
    """Have the messages worked on, and all told that follows."""
    for message in world.messages():
        world.work(message)
    tell(world)


def test_events_are_followed_while_a_caller_asks_about_many_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request may have five hundred looked up; the store answers none of them."""
    answers, asked, head = threading.Event(), threading.Event(), world.storage.head

    def slow(bucket: str, key: str) -> ObjectInfo | None:
        if key.startswith("asked/"):
            asked.set()
            answers.wait()
        return head(bucket, key)

    monkeypatch.setattr(world.storage, "head", slow)
    callers = replace(world.context.for_callers(), storage=world.storage)
    files = [CheckedFile(path=f"{number}.mp4", size=1) for number in range(100)]
    wanted = CheckRequest(to="asked", files=files)
    caller = threading.Thread(target=upload_parts.check, args=(callers, wanted), daemon=True)
    caller.start()
    assert asked.wait(10)
    for key in ("one.mp4", "two.mp4"):
        world.storage.put(VIDEOS, key, key.encode())
    follower = threading.Thread(target=world.tell, args=(world.storage.events,), daemon=True)
    follower.start()
    follower.join(10)
    was_held_up = follower.is_alive()
    answers.set()
    caller.join()
    follower.join()
    assert not was_held_up


def test_a_film_many_folders_deep_costs_a_bounded_number_of_looks(world: World) -> None:
    """It goes by the rules of the folders further up."""
    folders = "a/" * 500
    world.storage.put(VIDEOS, "a/a/posedrop.json", b'{"analysis": null}')
    world.storage.put(VIDEOS, f"{folders}x.mp4", b"film")
    tell(world)
    looked = {key for _, key in world.storage.asked if layout.is_folder_rule(key)}
    assert 2 < len(looked) < 40
    assert {row.state for row in world.context.index.files().rows} == {"ready"}
    assert not world.context.index.analyses().rows
