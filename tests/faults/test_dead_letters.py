"""Dead letters: what could not be read or followed is listed, and followed again once it can be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.app import create_app
from handlers.events import follow, letters
from posedrop import cli
from posedrop.api.letters import ReplayRequest
from posedrop.index.index import Index
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.serving import serving
from tests.support.world import World

#: What may lie in the table, whoever put it there.
BODIES = [
    "",
    "null",
    "[]",
    "not json \x1b]0;title\x07 \x9b31m \ud800",
    '{"Records": [{"eventName": "later:Thing"}]}',
    '{"bucket": "videos", "key": 1}',
    '{"kind": "moved", "bucket": "videos", "key": "a.mp4", "etag": "", "sequencer": ""}',
    "[" * 5000,
    '{"key": "' + "x" * 70_000 + '"}',
]


def test_a_record_that_was_mended_is_followed_again(world: World) -> None:
    """Its event went to the dead letters at once; replayed, it does what it would have done."""
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.tell(world.storage.events)
    (message,) = world.messages()
    world.work(message)
    key = "a.mp4/video.json"
    whole = world.storage.buckets[RESULTS][key]
    world.storage.put(RESULTS, key, b"{}")
    world.tell(world.storage.events[-1:])
    (letter,) = letters.page(world.context, None, 10).items
    assert key in letter.reason
    world.storage.buckets[RESULTS][key] = whole
    answer = letters.replay(world.context, ReplayRequest(ids=[letter.id]))
    assert (answer.replayed, answer.kept) == (1, 0)
    while follow.follow(world.context):
        pass
    (row,) = world.context.index.files().rows
    assert row.state == "ready"
    assert [message.actor_name for message in world.messages()] == ["infer"]
    assert letters.page(world.context, None, 10).items == []


def test_what_still_fails_is_one_dead_letter_again(world: World) -> None:
    """To have it followed again changes nothing then, however often, and loses nothing."""
    world.storage.put(RESULTS, "a.mp4/video.json", b"{}")
    world.tell(world.storage.events)
    before = letters.page(world.context, None, 10).items
    for _ in range(3):
        assert letters.replay(world.context, ReplayRequest()).replayed == 1
        while follow.follow(world.context):
            pass
    after = letters.page(world.context, None, 10).items
    assert [letter.reason for letter in after] == [letter.reason for letter in before]


def test_what_can_not_be_read_is_kept(world: World) -> None:
    """Only that; and of what can be, only what was asked for."""
    index, now = world.context.index, world.clock()
    for body in BODIES:
        index.dead_letter("odd", body, now)
    record = {"eventSource": "minio:s3", "eventName": "s3:ObjectCreated:Put"}
    for key in ("a.mp4", "b.mp4"):
        world.storage.put(VIDEOS, key, key.encode())
        s3 = {"bucket": {"name": VIDEOS}, "object": {"key": key, "eTag": "e", "sequencer": "1"}}
        index.dead_letter("not followed", {**record, "s3": s3}, now)
    rows = index.dead_letters()
    assert letters.replay(world.context, ReplayRequest(ids=[])).replayed == 0
    assert letters.replay(world.context, ReplayRequest(ids=[rows[0].id, 10**30])).replayed == 1
    answer = letters.replay(world.context, ReplayRequest())
    assert answer.replayed >= 1
    assert answer.kept == len(index.dead_letters()) < len(BODIES) + 1
    while follow.follow(world.context):
        pass
    assert {row.key for row in index.files().rows} == {"a.mp4", "b.mp4"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
EVENT_LIKE = st.fixed_dictionaries(
    {
        name: JSON | st.just(value)
        for name, value in {
            "bucket": "videos",
            "key": "a.mp4",
            "etag": "e",
            "sequencer": "1",
            "kind": "created",
            "size": 1,
            "received_at": "2026-01-01T00:00:00Z",
        }.items()
    }
)


@settings(deadline=None, max_examples=40)
@given(st.lists(JSON | EVENT_LIKE, max_size=8))
def test_no_letter_is_too_odd_to_be_replayed(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[Any]
) -> None:
    """Whatever is in the table, each is replayed or kept, and none stops the others."""
    world = World(tmp_path_factory.mktemp("letters"))
    for body in bodies:
        world.context.index.dead_letter("odd", body, world.clock())
    answer = letters.replay(world.context, ReplayRequest())
    assert answer.replayed + answer.kept == len(bodies)
    assert answer.kept == len(world.context.index.dead_letters(1000))
    world.end()


def test_the_command_line_lists_and_replays(tmp_path: Path) -> None:
    """Of what came from outside nothing reaches the terminal that it could act on."""
    here = load(tmp_path, {"s3_endpoint": "http://127.0.0.1:9"})
    index = Index(here.index_file)
    for body in BODIES:
        index.dead_letter(f"reason {body[:30]}", body, datetime.now(UTC))
    index.close()

    def run(*args: str) -> str:
        command = ["--data-dir", str(tmp_path), "--url", url, "dead-letters", *args]
        ended = CliRunner().invoke(cli.main, command)
        assert ended.exit_code == 0, ended.output
        return ended.output

    with serving(create_app(here, queue.connect("stub://"))) as url:
        listed = run("--limit", "1000")
        assert all(c.isprintable() or c == "\n" for c in listed)
        assert listed.count("reason") == len(BODIES)
        assert len(json.loads(run("--json", "4"))) == 1
        assert "replayed" in run("--replay")
