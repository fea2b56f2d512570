"""Rules of folders: whenever they come, are wrong, mended, changed or removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import model_validator

from handlers import upload
from handlers.context import Context
from handlers.runs import pending, plan, results, rules, waiting
from handlers.upkeep import reconcile
from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.planned import Planned
from posedrop.buckets.records.rules import WrongRule
from posedrop.errors import BadRequestError
from posedrop.index.index import Index
from tests.support.memory_storage import MODELS, RESULTS, VIDEOS, Gate
from tests.support.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world in which nothing is asked for unless somebody does."""
    world = World(tmp_path, default_analysis=None, default_args={})
    yield world
    world.end()


def rule(seconds: float = 1, **more: Any) -> bytes:
    """Return a posedrop.json."""
    return json.dumps({"analysis": "dummy", "args": {"seconds": seconds}, **more}).encode()


def put(world: World, *keys: str) -> None:
    """Upload films, each with a content of its own."""
    for key in keys:
        world.storage.put(VIDEOS, key, key.encode())


def set_rule(world: World, folder: str, data: bytes) -> None:
    """Upload a posedrop.json, a second later than all that was there."""
    world.clock.pass_(1)
    world.storage.put(VIDEOS, f"{folder}posedrop.json", data)


def set_default(world: World, analysis: str | None, args: dict[str, Any]) -> None:
    """Start the handlers again, with another default."""
    world.close()
    default = {"default_analysis": analysis, "default_args": args}
    world.settings = world.settings.model_copy(update=default)
    world.open()


def tell(world: World) -> None:
    """Have the events of all that happened told, and the work done that follows, to the end."""
    while True:
        events, world.storage.events = world.storage.events, []
        messages = world.messages()
        if not events and not messages:
            return
        world.tell(events)
        for message in messages:
            world.work(message)


def lose(world: World) -> None:
    """Have none of it told; the reconciler finds it."""
    world.storage.events.clear()
    world.settle()
    world.storage.events.clear()


def runs(world: World) -> dict[str, list[float]]:
    """Return what was run on each video, as the bucket has it."""
    found: dict[str, list[float]] = {}
    for key, stored in sorted(world.storage.buckets[RESULTS].items()):
        if key.endswith("/request.json"):
            request = json.loads(stored.data)
            run = key.rsplit("/", 1)[0]
            assert f"{run}/result.json" in world.storage.buckets[RESULTS], run
            found.setdefault(request["video"]["key"], []).append(request["args"]["seconds"])
    return found


def planned(world: World, key: str) -> Planned | None:
    """Return what the bucket says a video was planned by."""
    stored = world.storage.buckets[RESULTS].get(layout.planned(layout.file_id_of(VIDEOS, key)))
    return Planned.model_validate_json(stored.data) if stored is not None else None


def wrong(world: World) -> dict[str, WrongRule]:
    """Return the wrong rules that the bucket knows."""
    records = {
        key: WrongRule.model_validate_json(stored.data)
        for key, stored in world.storage.buckets[RESULTS].items()
        if key.startswith("_posedrop/rules/")
    }
    assert all(key == layout.wrong_rule(each.key) for key, each in records.items())
    return {each.key: each for each in records.values()}


FILMS = [f"day1/{number}.mp4" for number in range(12)]


@pytest.mark.parametrize("happen", [tell, lose])
def test_a_rule_that_comes_last_reaches_the_films_before_it(
    world: World, happen: Callable[[World], None]
) -> None:
    """12 films, then their posedrop.json: 12 runs; neither it again nor another one adds any."""
    put(world, *FILMS, "day2/other.mp4")
    happen(world)
    assert runs(world) == {}
    set_rule(world, "day1/", rule(1))
    happen(world)
    assert runs(world) == {key: [1] for key in FILMS}
    found = planned(world, FILMS[0])
    assert found is not None
    assert found.rule is not None
    etag = world.storage.buckets[VIDEOS]["day1/posedrop.json"].info.etag
    assert (found.rule.kind, found.rule.key, found.rule.etag) == (
        "folder",
        "day1/posedrop.json",
        etag,
    )
    set_rule(world, "day1/", rule(2))
    set_rule(world, "", rule(3))
    happen(world)
    world.lose_index()
    happen(world)
    assert runs(world) == {key: [1] for key in FILMS} | {"day2/other.mp4": [3]}


def test_the_nearest_rule_counts(world: World) -> None:
    """A rule that comes passes by what has a nearer one, and what followed a farther one."""
    put(world, "a/1.mp4", "a/b/2.mp4")
    set_rule(world, "a/b/", rule(9, existing=False))
    tell(world)
    assert runs(world) == {}
    put(world, "a/b/3.mp4")
    set_rule(world, "a/", rule(1))
    tell(world)
    assert runs(world) == {"a/1.mp4": [1], "a/b/3.mp4": [9]}
    set_rule(world, "a/c/", json.dumps({"analysis": None}).encode())
    put(world, "a/c/4.mp4")
    tell(world)
    set_rule(world, "a/c/", rule(2))
    tell(world)
    assert runs(world) == {"a/1.mp4": [1], "a/b/3.mp4": [9]}
    # Without the flag, what it passed by is reached.
    set_rule(world, "a/b/", rule(8))
    tell(world)
    assert runs(world) == {"a/1.mp4": [1], "a/b/2.mp4": [8], "a/b/3.mp4": [9]}


def test_existing_films_are_those_that_were_uploaded_before_the_rule(world: World) -> None:
    """However long their ingest takes: with "existing": false they are passed by."""
    put(world, "a/1.mp4", "a/2.mp4")
    set_rule(world, "a/", rule(1, existing=False))
    put(world, "a/3.mp4")
    tell(world)
    assert runs(world) == {"a/3.mp4": [1]}


def test_films_that_waited_have_come_after_the_rule(world: World) -> None:
    """Mended with "existing": false, it is followed by them, and not by those before it."""
    put(world, "a/1.mp4")
    tell(world)
    set_rule(world, "a/", b"{")
    world.clock.pass_(1)
    put(world, "a/2.mp4")
    tell(world)
    set_rule(world, "a/", rule(1, existing=False))
    tell(world)
    assert runs(world) == {"a/2.mp4": [1]}


def test_a_rule_whose_removal_nobody_told_is_forgotten(world: World) -> None:
    """Also a wrong one with an index that was lost meanwhile; what comes later finds none."""
    set_rule(world, "a/", rule(1))
    set_rule(world, "b/", b"{")
    tell(world)
    world.storage.remove(VIDEOS, "a/posedrop.json")
    world.storage.remove(VIDEOS, "b/posedrop.json")
    lose(world)
    assert (wrong(world), world.context.index.rules("", 9)) == ({}, [])
    set_rule(world, "b/", b"{")
    tell(world)
    world.storage.remove(VIDEOS, "b/posedrop.json")
    world.lose_index()
    put(world, "a/1.mp4", "b/1.mp4")
    lose(world)
    assert (wrong(world), runs(world)) == ({}, {})


def test_a_film_that_waits_and_is_asked_about_waits_no_more(world: World) -> None:
    """It has a run then, which the rule does not add to, whoever removes it."""
    put(world, "a/1.mp4")
    set_rule(world, "a/", b"{")
    tell(world)
    file_id = layout.file_id_of(VIDEOS, "a/1.mp4")
    assert upload.describe(world.context, file_id).waiting is not None
    pending.ask(world.context, file_id, "dummy", {"seconds": 4}, force=False)
    tell(world)
    assert upload.describe(world.context, file_id).waiting is None
    for key in [key for key in world.storage.buckets[RESULTS] if "/dummy-" in key]:
        world.storage.remove(RESULTS, key)
    tell(world)
    world.lose_index()
    set_rule(world, "a/", rule(1))
    tell(world)
    lose(world)
    assert runs(world) == {}


def test_a_rule_reaches_no_film_that_was_decided_about(world: World) -> None:
    """By its metadata, by the default, by a question; whether or not the results were deleted."""
    metadata = {"analysis": "dummy", "args": '{"seconds": 4}'}
    world.storage.put(VIDEOS, "a/metadata.mp4", b"1", metadata)
    put(world, "a/before.mp4", "a/after.mp4", "a/gone.mp4", "a/none.mp4")
    world.tell(world.storage.events)
    world.storage.events.clear()
    ids = {name: layout.file_id_of(VIDEOS, f"a/{name}.mp4") for name in ("before", "after", "gone")}
    pending.ask(world.context, ids["before"], "dummy", {"seconds": 5}, force=False)
    tell(world)
    asked = [
        pending.ask(world.context, ids[name], "dummy", {"seconds": 6}, force=False).analysis_id
        for name in ("after", "gone")
    ]
    tell(world)
    assert results.cancel_or_delete(world.context, asked[1]) == "deleted"
    world.lose_index()
    set_rule(world, "", rule(6))
    tell(world)
    lose(world)
    assert runs(world) == {
        "a/metadata.mp4": [4],
        "a/before.mp4": [5],
        "a/after.mp4": [6],
        "a/none.mp4": [6],
    }


def test_a_default_is_followed_for_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that comes later does not analyse anew what fell under the server's default.

    A film is not planned at the moment in which it is ready, and says so.
    """
    set_default(world, "dummy", {"seconds": 7})
    put(world, "a/1.mp4")
    with monkeypatch.context() as patched:
        patched.setattr(plan, "plan_runs", lambda *_: None)
        tell(world)
    film = upload.describe(world.context, layout.file_id_of(VIDEOS, "a/1.mp4"))
    assert (film.state, film.planned, film.analyses) == ("ready", False, [])
    lose(world)
    film = upload.describe(world.context, layout.file_id_of(VIDEOS, "a/1.mp4"))
    assert (film.planned, len(film.analyses)) == (True, 1)
    set_rule(world, "a/", rule(1))
    put(world, "a/2.mp4")
    tell(world)
    assert runs(world) == {"a/1.mp4": [7], "a/2.mp4": [1]}


@pytest.mark.parametrize("happen", [tell, lose])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"analysis": "dummy",}', "bad_rules"),
        (b'{"analysis": "nonsense"}', "unknown_analysis"),
        (b'{"analyse": "dummy"}', "bad_rules"),
        (b'{"analysis": "deeplabcut_2d"}', "bad_args"),
        (b'{"analysis": "dummy", "args": {"seconds": -1}}', "bad_args"),
        (b'{"analysis": "deeplabcut_2d", "args": {"model": "missing"}}', "no_such_model"),
        (b" " * 65_537, "bad_rules"),
    ],
)
def test_a_wrong_rule_is_told_once_and_followed_when_it_is_mended(
    world: World, happen: Callable[[World], None], data: bytes, code: str
) -> None:
    """Its films wait, though the index be lost, and nothing is written beside them."""
    put(world, *FILMS[:3])
    set_rule(world, "day1/", data)
    put(world, *FILMS[3:6])
    happen(world)
    assert runs(world) == {}
    told = wrong(world)["day1/posedrop.json"]
    assert told.code == code
    for key in FILMS[:6]:
        file = upload.describe(world.context, layout.file_id_of(VIDEOS, key))
        assert file.waiting is not None
        assert (file.waiting.rule, file.waiting.message) == (told.key, told.message)
    assert not any("/rejected-" in key for key in world.storage.buckets[RESULTS])
    world.lose_index()
    happen(world)
    lose(world)
    assert wrong(world) == {"day1/posedrop.json": told}
    set_rule(world, "day1/", rule(1))
    happen(world)
    assert wrong(world) == {}
    assert runs(world) == {key: [1] for key in FILMS[:6]}
    files = [upload.describe(world.context, layout.file_id_of(VIDEOS, key)) for key in FILMS[:6]]
    assert [file.waiting for file in files] == [None] * 6


@pytest.mark.parametrize("happen", [tell, lose])
def test_a_wrong_rule_that_is_removed_makes_room_for_the_farther_one(
    world: World, happen: Callable[[World], None]
) -> None:
    """Its record goes too, and what finds no other rule is open to the next."""
    put(world, "a/b/1.mp4", "c/2.mp4")
    set_rule(world, "a/", rule(3))
    set_rule(world, "a/b/", b"{")
    set_rule(world, "c/", b"{")
    happen(world)
    assert (runs(world), set(wrong(world))) == ({}, {"a/b/posedrop.json", "c/posedrop.json"})
    world.storage.remove(VIDEOS, "a/b/posedrop.json")
    world.storage.remove(VIDEOS, "c/posedrop.json")
    happen(world)
    assert (runs(world), wrong(world)) == ({"a/b/1.mp4": [3]}, {})
    set_rule(world, "", rule(5))
    happen(world)
    assert runs(world) == {"a/b/1.mp4": [3], "c/2.mp4": [5]}


def test_what_a_rule_lacked_is_found_when_it_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is pushed later tells nobody: the reconciler looks again."""
    found = analyses.get("dummy")
    with monkeypatch.context() as patch:
        patch.delitem(analyses.installed(), "dummy")
        put(world, *FILMS)
        set_rule(world, "day1/", rule(1))
        tell(world)
        assert set(wrong(world)) == {"day1/posedrop.json"}
    assert analyses.get("dummy") is found
    world.settle()
    assert runs(world) == {key: [1] for key in FILMS}
    assert wrong(world) == {}


def test_a_wrong_default_is_a_wrong_rule(world: World) -> None:
    """Films wait for it, too, and follow it once it is right."""
    set_default(world, "deeplabcut_2d", {"model": "missing"})
    put(world, "a/1.mp4")
    tell(world)
    assert set(wrong(world)) == {"POSEDROP_DEFAULT_ANALYSIS"}
    set_default(world, "dummy", {"seconds": 2})
    world.settle()
    assert (wrong(world), runs(world)) == ({}, {"a/1.mp4": [2]})


def test_many_films_hold_up_nothing(world: World) -> None:
    """They are planned a few at a time, between events; killed anywhere, it goes on."""
    films = [f"a/{number:04}.mp4" for number in range(100)]
    put(world, *films)
    tell(world)
    set_rule(world, "a/", rule(1))
    put(world, "b/1.mp4")
    world.tell(world.storage.events, Gate(100))
    world.storage.events.clear()
    cuts = 0
    index = world.context.index
    while index.counts()["events"]["unhandled"] or index.rule_to_follow() is not None:
        world.close()
        world.open()
        index = world.context.index
        world.tell([], Gate(100))
        cuts += 1
    assert cuts > 3
    assert index.file(layout.file_id_of(VIDEOS, "b/1.mp4")) is not None
    world.storage.events.clear()
    world.settle()
    assert runs(world) == {key: [1] for key in films}


def test_a_rule_that_comes_while_a_film_is_planned_reaches_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan has found none, the rule's own look finds no film that waits: a round mends it."""
    real = rules.nearest

    def late(context: Context, key: str, seen: dict[str, str | None]) -> rules.Rule | None:
        found = real(context, key, seen)
        monkeypatch.undo()
        set_rule(world, "a/", rule(1))
        waiting.rule_changed(context, "a/posedrop.json")
        while waiting.go_on(context):
            pass
        return found

    monkeypatch.setattr(rules, "nearest", late)
    put(world, "a/1.mp4")
    lose(world)
    assert runs(world) == {"a/1.mp4": [1]}


def test_two_handlers_do_it_once(world: World, tmp_path: Path) -> None:
    """Each with an index of its own, of which one is told of the films, one of the rule."""
    other = replace(world.context, index=Index(tmp_path / "other.sqlite"))
    one, two = world.context, other
    sweeps = reconcile.Reconciler(one), reconcile.Reconciler(two)
    put(world, *FILMS)
    tell(world)
    set_rule(world, "day1/", b"{")
    world.context = two
    tell(world)
    for sweep in sweeps:
        sweep.round()
    world.storage.events.clear()
    for step, context in enumerate((one, two)):
        set_rule(world, "day1/", rule(step))
        world.context = context
        tell(world)
        for sweep in sweeps:
            world.clock.pass_(61)
            sweep.round()
    tell(world)
    assert (wrong(world), runs(world)) == ({}, {key: [0] for key in FILMS})
    for context in (one, two):
        files = context.index.files(limit=100).rows
        assert [(file.planned, file.waits_for) for file in files] == [(True, None)] * len(FILMS)
    two.index.close()
    world.context = one


@pytest.mark.parametrize("at", ["args", "check"])
def test_an_analysis_that_fails_at_a_films_metadata_says_so_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Anybody's plug-in: the film has its end, in words, and so has who asks by the API."""

    def fails(*_: object) -> Any:
        raise KeyError("arena")

    class OfModel(analyses.Args):
        model: str = "m"

        @model_validator(mode="before")
        @classmethod
        def _fails(cls, values: Any) -> Any:
            return fails() if at == "args" else values

    model = Model(
        name="m", digest="0" * 64, kind="export", task="t", scorer="s", bodyparts=["nose"],
        individuals=[], multianimal=False, net_type="n", pcutoff=0.6, snapshots=[], files=[],
        created_at=world.clock(),
    )  # fmt: skip
    world.storage.put(MODELS, f"m/{model.digest}/model.json", model.to_json())
    plug_in = replace(analyses.get("dummy"), args=OfModel, needs_model=True, check=fails)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": plug_in})
    metadata = {"analysis": "dummy", "args": '{"model": "m"}'}
    world.storage.put(VIDEOS, "a.mp4", b"a film", metadata)
    tell(world)
    world.settle()
    (run,) = world.context.index.analyses().rows
    assert (run.key, run.state, run.asked_by) == ("a.mp4", "failed", "metadata")
    assert run.error is not None
    assert "KeyError('arena')" in run.error.message
    with pytest.raises(BadRequestError, match="KeyError"):
        pending.ask(world.context, run.file_id, "dummy", {"model": "m"}, force=False)
