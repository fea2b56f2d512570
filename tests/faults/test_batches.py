"""Batches: one request for many films, whatever is killed, lost or asked twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from handlers.context import Context
from handlers.runs import batch_steps, batches, pending
from handlers.runs.start import RunHandle
from handlers.upkeep import old_records, sweep
from posedrop.api.batches import BatchStarted, CancelRequest, DryRun, RetryRequest
from posedrop.api.runs import AnalyseRequest
from posedrop.buckets import layout
from posedrop.buckets.records.batches import BatchRequest
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.errors import BadRequestError, NotFoundError
from posedrop.index.rows import FileRow
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import World

ARGS = {"seconds": 0}


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's steps are four films long, so that few make several."""
    monkeypatch.setattr(batch_steps, "BATCH_FILMS", 4)


def world_with(folder: Path, films: dict[str, bytes]) -> World:
    world = World(folder, default_analysis=None)
    for key, content in films.items():
        world.storage.put(VIDEOS, key, content)
    world.settle()
    return world


def films_of(count: int, folder: str = "day1") -> dict[str, bytes]:
    return {f"{folder}/{n:04}.mp4": b"film %d" % n for n in range(count)}


def ask(world: World, **wanted: object) -> BatchStarted:
    body = AnalyseRequest.model_validate({"analysis": "dummy", "args": ARGS, **wanted})
    answer = batches.analyse(world.context, body, ())
    assert isinstance(answer, BatchStarted)
    return answer


def dry(world: World, **wanted: object) -> DryRun:
    body = AnalyseRequest.model_validate(
        {"analysis": "dummy", "args": ARGS, "dry_run": True, **wanted}
    )
    answer = batches.analyse(world.context, body, ())
    assert isinstance(answer, DryRun)
    return answer


def go_on(world: World) -> None:
    """Let batches go on until they wait for runs, then the runs, until all is over."""
    for _ in range(20):
        while batch_steps.go_on(world.context):
            pass
        if not world.context.index.batches_open():
            return
        world.settle()
    raise AssertionError("a batch does not end")


def requests(world: World) -> list[Request]:
    found = world.storage.buckets[RESULTS]
    return [
        Request.model_validate_json(found[key].data)
        for key in sorted(found)
        if key.endswith("/request.json")
    ]


def test_a_batch_runs_each_film_below_its_prefix_once_and_says_how_it_went(tmp_path: Path) -> None:
    films = films_of(9) | {"day1/bad.mp4": b"bad", "day10/other.mp4": b"other"}
    world = world_with(tmp_path, films)
    assert dry(world, prefix="day1/").model_dump(exclude={"sample"}) == {
        "films": 10, "run": 9, "again": 0, "exists": 0, "not_ready": 0, "refused": 1, "unknown": 0,
        "stop": 0, "runs": 9, "frames": 18, "seconds": None, "more": False,
    }  # fmt: skip
    assert requests(world) == []

    started = ask(world, prefix="day1/")
    assert ask(world, prefix="day1/") == BatchStarted(batch_id=started.batch_id, existed=True)
    go_on(world)

    batch = batches.read(world.context, started.batch_id)
    assert batch.counts == {"succeeded": 9, "refused": 1}
    assert batch.line == "9 done, 1 refused: ... was refused (not_a_video): no video"
    assert batch.status == "over"
    assert len(requests(world)) == 9
    assert {each.batch for each in requests(world)} == {started.batch_id}
    again = ask(world, prefix="day1/")
    assert again.batch_id != started.batch_id
    go_on(world)
    assert batches.read(world.context, again.batch_id).existed == 9
    assert len(requests(world)) == 9
    assert [b.batch_id for b in batches.page(world.context, None, 10).items] == [
        again.batch_id,
        started.batch_id,
    ]


def test_a_forced_batch_asked_again_after_its_records_are_gone_makes_new_runs(
    tmp_path: Path,
) -> None:
    """The batch may have the id that the first had, its runs have not; asked at once, it is one."""
    world = world_with(tmp_path, films_of(2))
    seen: set[str] = set()
    for made in (2, 4):
        started = ask(world, prefix="day1/", force=True)
        assert ask(world, prefix="day1/", force=True).batch_id == started.batch_id
        world.lose_index()
        world.reconciler.round()
        go_on(world)
        batch = batches.read(world.context, started.batch_id)
        assert (batch.counts, batch.existed) == ({"succeeded": 2}, 0)
        seen |= {each.analysis_id for each in requests(world)}
        assert len(seen) == made
        world.clock.pass_(old_records.KEPT.total_seconds() + 1)
        world.settle()
        assert batches.page(world.context, None, 10).items == []


def test_a_forced_batch_of_an_older_posedrop_goes_on_with_its_runs(tmp_path: Path) -> None:
    """A record without a token has the runs that its id makes."""
    world = world_with(tmp_path, films_of(2))
    batch_id = ask(world, prefix="day1/", force=True).batch_id
    key = layout.batch(batch_id)
    record = BatchRequest.model_validate_json(world.storage.buckets[RESULTS][key].data)
    world.storage.put(RESULTS, key, record.model_copy(update={"token": None}).to_json())
    world.lose_index()
    world.reconciler.round()
    go_on(world)
    assert {each.force for each in requests(world)} == {f"batch:{batch_id}"}


@pytest.mark.parametrize("after", [False, True])
def test_a_batch_survives_a_kill_at_any_call_and_the_loss_of_the_index(
    tmp_path: Path, after: bool
) -> None:
    films = films_of(3) | {"day1/late.mp4": b"late", "day1/poison.mp4": b"bad"}
    batch_id = ""
    for at in range(1 + after, 400, 2):
        world = world_with(tmp_path / str(at), films)
        # Not looked at yet: its request is pending.
        world.storage.put(VIDEOS, "day1/new.mp4", b"new")
        world.tell(world.storage.events)
        with world.storage.gate(Gate(at, after=after)):
            try:
                batch_id = ask(world, prefix="day1/").batch_id
                while batch_steps.go_on(world.context):
                    pass
            except Crash:
                is_cut = True
            else:
                is_cut = False
        if at % 3 == 0:
            world.lose_index()
            world.settle()
        else:
            world.close()
            world.open()
        # Whoever got no answer asks again: it is the same one.
        again = ask(world, prefix="day1/")
        assert batch_id in {"", again.batch_id} or not is_cut
        go_on(world)
        assert batches.read(world.context, again.batch_id).counts == {"succeeded": 5, "refused": 1}
        assert len(requests(world)) == 5
        world.close()
        if not is_cut:
            assert at > 10
            return
    raise AssertionError("it was never cut behind its end")


def test_cancel_stops_what_a_batch_has_begun_and_what_it_has_not_and_deletes_nothing(
    tmp_path: Path,
) -> None:
    world = world_with(tmp_path, films_of(6))
    world.storage.put(VIDEOS, "day1/new.mp4", b"new")
    world.tell(world.storage.events)
    started = ask(world, prefix="day1/")
    batch_steps.go_on(world.context)  # the first four
    done = next(m for m in world.messages() if m.actor_name == "infer")
    world.work(done)
    for message in world.messages():
        world.work(message)  # what it sends for
    kept = {key for key in world.storage.buckets[RESULTS] if key.endswith("/request.json")}
    assert len(kept) == 4

    stopping = batches.cancel(world.context, CancelRequest(prefix="day1/"))
    assert isinstance(stopping, BatchStarted)
    go_on(world)

    counts = batches.read(world.context, started.batch_id).counts
    assert counts["cancelled"] >= 5
    assert counts["cancelled"] + counts.get("succeeded", 0) == 7
    assert kept == {key for key in world.storage.buckets[RESULTS] if key.endswith("/request.json")}
    # What is asked for later is not stopped by it.
    world.clock.pass_(1)
    second = ask(world, prefix="day1/")
    go_on(world)
    assert batches.read(world.context, second.batch_id).counts == {"succeeded": 7}


@pytest.mark.parametrize("of", ["prefix", "batch_id"])
def test_cancel_reaches_films_that_are_looked_at_while_it_is_carried_out(
    tmp_path: Path, of: str
) -> None:
    """Their requests become runs that are younger than it."""
    world = world_with(tmp_path, {})
    for key, content in films_of(9).items():
        world.storage.put(VIDEOS, key, content)
    world.tell(world.storage.events)
    started = ask(world, prefix="day1/")
    while batch_steps.go_on(world.context):
        pass
    assert world.context.index.batch_counts(started.batch_id) == {"waiting": 9}
    world.clock.pass_(1)
    wanted = {"prefix": "day1/"} if of == "prefix" else {"batch_id": started.batch_id}
    batches.cancel(world.context, CancelRequest.model_validate(wanted))
    world.clock.pass_(1)
    batch_steps.go_on(world.context)  # the first four
    for message in world.messages():
        if message.actor_name == "ingest":
            world.work(message)
    world.tell(world.storage.events)
    go_on(world)
    assert batches.read(world.context, started.batch_id).counts == {"cancelled": 9}
    assert all(world.context.index.runs_count(state, "") == 0 for state in batches.UNFINISHED)
    # And what is asked for afterwards is not stopped by it.
    world.clock.pass_(1)
    again = ask(world, prefix="day1/")
    go_on(world)
    assert batches.read(world.context, again.batch_id).counts == {"succeeded": 9}


def test_a_film_whose_request_was_cancelled_follows_its_rule(tmp_path: Path) -> None:
    """Whenever its ingest was: before the cancelling batch met it, or after."""
    world = world_with(tmp_path, {})
    rule = b'{"analysis": "dummy", "args": {"seconds": 0.5}}'
    world.storage.put(VIDEOS, "day1/posedrop.json", rule)
    for key, content in films_of(9).items():
        world.storage.put(VIDEOS, key, content)
    world.tell(world.storage.events)
    ask(world, prefix="day1/")
    while batch_steps.go_on(world.context):
        pass
    world.clock.pass_(1)
    batches.cancel(world.context, CancelRequest(prefix="day1/"))
    batch_steps.go_on(world.context)  # the first four
    world.settle()
    go_on(world)
    assert sorted((each.video.key, each.args["seconds"]) for each in requests(world)) == [
        (key, 0.5) for key in films_of(9)
    ]


def test_what_comes_after_a_cancel_is_stopped_by_the_next_though_the_first_goes_on(
    tmp_path: Path,
) -> None:
    """The first waits for a run whose worker is away, and may do so for days."""
    world = world_with(tmp_path, films_of(2))
    ask(world, file_ids=[layout.file_id_of(VIDEOS, "day1/0000.mp4")])
    batch_steps.go_on(world.context)
    message = next(each for each in world.messages() if each.actor_name == "infer")
    at = 1
    while not any(key.endswith("/attempts/1.json") for key in world.storage.buckets[RESULTS]):
        world.work(message, Gate(at))
        at += 1
    first = batches.cancel(world.context, CancelRequest(prefix="day1/"))
    while batch_steps.go_on(world.context):
        pass
    world.clock.pass_(1)
    other = pending.ask(
        world.context, layout.file_id_of(VIDEOS, "day1/0001.mp4"), "dummy", ARGS, force=False
    )
    world.clock.pass_(1)
    second = batches.cancel(world.context, CancelRequest(prefix="day1/"))
    assert isinstance(first, BatchStarted)
    assert isinstance(second, BatchStarted)
    assert second.batch_id != first.batch_id
    while batch_steps.go_on(world.context):
        pass
    row = world.context.index.analysis(other.analysis_id)
    assert row is not None
    assert row.state == "cancelled"


def test_a_run_that_begins_while_it_is_cancelled_is_counted_once(tmp_path: Path) -> None:
    """Met as one that is queued, and once more as one that is running: its event came late."""
    world = world_with(tmp_path, films_of(1))
    ask(world, prefix="day1/")
    batch_steps.go_on(world.context)
    message = next(each for each in world.messages() if each.actor_name == "infer")
    at = 1
    while not any(key.endswith("/attempts/1.json") for key in world.storage.buckets[RESULTS]):
        world.work(message, Gate(at))  # killed a little later each time: at last it has begun
        at += 1
    stopping = batches.cancel(world.context, CancelRequest(prefix="day1/"))
    assert isinstance(stopping, BatchStarted)
    for _ in range(3):
        batch_steps.go_on(world.context)
    assert batches.read(world.context, stopping.batch_id).films == 1
    world.tell(world.storage.events)
    assert world.context.index.analyses(limit=1).rows[0].state == "running"
    batch_steps.go_on(world.context)
    world.tell(world.storage.events)
    go_on(world)
    assert batches.read(world.context, stopping.batch_id).counts == {"cancelled": 1}


def test_retry_makes_anew_what_failed_once_with_its_own_request(tmp_path: Path) -> None:
    films = {f"day1/{n}.mp4": b"film %d" % n for n in range(4)}
    world = world_with(tmp_path, films)
    started = ask(world, prefix="day1/")
    while batch_steps.go_on(world.context):
        pass
    runs = {each.video.key: each for each in requests(world)}
    for key in ("day1/1.mp4", "day1/2.mp4"):
        _end(world, runs[key], "failed", f"{key} broke frame {key[5]}")
    _end(world, runs["day1/3.mp4"], "cancelled", "stopped")
    go_on(world)
    batch = batches.read(world.context, started.batch_id)
    assert batch.line == (
        "1 done, 2 failed, 1 cancelled: ... broke frame 2 (2 films)"
        if "frame 2" in batch.line
        else "1 done, 2 failed, 1 cancelled: ... broke frame 1 (2 films)"
    )

    world.clock.pass_(1)
    asked = RetryRequest(batch_id=started.batch_id)
    anew = batches.retry(world.context, asked, ())
    assert batches.retry(world.context, asked, ()) == anew.model_copy(update={"existed": True})
    assert isinstance(anew, BatchStarted)
    go_on(world)
    assert batches.read(world.context, anew.batch_id).counts == {"succeeded": 2}
    by_prefix = batches.retry(world.context, RetryRequest(prefix="day1/", cancelled=True), ())
    assert isinstance(by_prefix, BatchStarted)
    go_on(world)
    assert batches.read(world.context, by_prefix.batch_id).counts == {"succeeded": 1}
    assert len(requests(world)) == 4 + 3
    again = batches.retry(world.context, RetryRequest(prefix=""), ())
    assert isinstance(again, BatchStarted)
    go_on(world)
    assert batches.read(world.context, again.batch_id).line == "no films"


def test_retry_asks_for_what_could_not_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was away for two films; and one was stopped before its film was looked at."""
    world = world_with(tmp_path, films_of(4))
    ask_for = pending.ask_for

    def moody(context: Context, file: FileRow, *args: Any, **more: Any) -> RunHandle:
        if file.key in {"day1/0001.mp4", "day1/0002.mp4"}:
            raise BadRequestError("the model was removed")
        return ask_for(context, file, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(pending, "ask_for", moody)
        started = ask(world, prefix="day1/")
        go_on(world)
    assert batches.read(world.context, started.batch_id).counts == {"succeeded": 2, "failed": 2}
    world.clock.pass_(1)
    wanted = RetryRequest(batch_id=started.batch_id, dry_run=True)
    would = batches.retry(world.context, wanted, ())
    assert isinstance(would, DryRun)
    anew = batches.retry(world.context, wanted.model_copy(update={"dry_run": False}), ())
    assert isinstance(anew, BatchStarted)
    go_on(world)
    assert batches.read(world.context, anew.batch_id).counts == {"succeeded": would.again}
    assert len(requests(world)) == 4

    world.storage.put(VIDEOS, "day2/new.mp4", b"new")
    world.tell(world.storage.events)
    waits = ask(world, prefix="day2/")
    while batch_steps.go_on(world.context):
        pass
    world.clock.pass_(1)
    stops = batches.cancel(world.context, CancelRequest(prefix="day2/", dry_run=True))
    assert isinstance(stops, DryRun)
    assert stops.stop == 1
    batches.cancel(world.context, CancelRequest(prefix="day2/"))
    go_on(world)
    world.clock.pass_(1)
    asked = RetryRequest(batch_id=waits.batch_id, cancelled=True)
    again = batches.retry(world.context, asked, ())
    assert isinstance(again, BatchStarted)
    go_on(world)
    assert batches.read(world.context, again.batch_id).counts == {"succeeded": 1}


def _end(world: World, request: Request, state: str, message: str) -> None:
    prefix = layout.video_prefix(VIDEOS, request.video.key)
    run = layout.Run(layout.run_prefix(prefix, request.analysis, request.analysis_id))
    result = Result.of(
        request,
        state,  # type: ignore[arg-type]
        finished_at=world.clock(),
        error={"code": "broke", "message": message},
    )
    world.storage.put(RESULTS, run.result, result.to_json())
    world.tell(world.storage.events)


def test_the_runs_of_a_batch_leave_turns_to_those_asked_for_singly(tmp_path: Path) -> None:
    world = world_with(tmp_path, films_of(30) | {"day1/mine.mp4": b"mine"})
    started = ask(world, file_ids=[layout.file_id_of(VIDEOS, key) for key in films_of(30)])
    batch_steps.go_on(world.context)
    mine = layout.file_id_of(VIDEOS, "day1/mine.mp4")
    single = pending.ask(world.context, mine, "dummy", ARGS, force=False)
    assert world.context.index.position(single.analysis_id) <= 3
    go_on(world)
    assert batches.read(world.context, started.batch_id).counts == {"succeeded": 30}


def test_a_batch_ends_in_words_for_films_that_are_not_there_or_were_removed(
    tmp_path: Path,
) -> None:
    world = world_with(tmp_path, films_of(2))
    ids = [layout.file_id_of(VIDEOS, key) for key in films_of(2)]
    found = dry(world, file_ids=[*ids, *ids, "a" * 16])
    assert (found.films, found.run, found.unknown) == (3, 2, 1)
    started = ask(world, file_ids=[*ids, "a" * 16], idempotency_key="mine")
    while batch_steps.go_on(world.context):
        pass
    # By an S3 tool, with all that was made of it.
    for key in [k for k in world.storage.buckets[RESULTS] if k.startswith("day1/0000.mp4/")]:
        world.storage.remove(RESULTS, key)
    world.storage.remove(VIDEOS, "day1/0000.mp4")
    go_on(world)
    batch = batches.read(world.context, started.batch_id)
    assert batch.counts == {"succeeded": 1, "gone": 2}
    assert ask(world, file_ids=[*ids, "a" * 16], idempotency_key="mine").existed
    with pytest.raises(NotFoundError):
        batches.cancel(world.context, CancelRequest(batch_id="b" * 16))
    for odd in (["\ud800"], ["a" * 101], ["a"] * 10_001, []):  # no record could hold it
        with pytest.raises(ValidationError):
            ask(world, file_ids=odd)


def test_a_batch_has_the_films_of_which_no_event_has_told_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for right behind an upload, or where a store tells of nothing."""
    monkeypatch.setattr(batch_steps, "_SEEN", 3)
    world = world_with(tmp_path, {})
    for key, content in (films_of(7) | {"day2/other.mp4": b"other"}).items():
        world.storage.put(VIDEOS, key, content)
    started, looked = ask(world, prefix="day1/"), batch_steps._Looked()
    while batch_steps.go_on(world.context, looked, find_videos=sweep.find_videos):
        pass
    assert world.context.index.batch_counts(started.batch_id) == {"waiting": 7}
    go_on(world)
    assert batches.read(world.context, started.batch_id).counts == {"succeeded": 7}


def test_a_prefix_is_letters_and_nothing_else(tmp_path: Path) -> None:
    folders = [
        "a+b", "a%2Bb", "a%", "a_", "aX", "\U0001f42d", "-d", "tag/m\u00e4", "tag/ma\u0308",
        "\uffff", "'", "day1", "day10", "C:\\x", "x y",
    ]  # fmt: skip
    keys = [*(f"{folder}/1.mp4" for folder in folders), "day1/2.mp4"]
    world = world_with(tmp_path, {key: key.encode() for key in keys})
    for prefix, films in {
        "a+b/": 1, "a%2Bb/": 1, "a%": 2, "a_/": 1, "a": 5, "\U0001f42d": 1, "-d": 1, "'": 1,
        "tag/m\u00e4": 1, "tag/ma\u0308": 1, "\uffff": 1, "day1": 3, "day1/": 2, "": 16,
        "day1/*": 0, "/day1": 0, "s3://videos/day1/": 0, "\0": 0, "p" * 1024: 0,
    }.items():  # fmt: skip
        assert dry(world, prefix=prefix).films == films, prefix
        started = ask(world, prefix=prefix)
        while batch_steps.go_on(world.context):
            pass
        assert batches.read(world.context, started.batch_id).films == films, prefix
