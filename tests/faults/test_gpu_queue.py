"""Whose run the gpu workers get next: groups go round, and what is lost holds nobody up."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dramatiq import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import gpu_queue
from handlers.events import follow, notify
from handlers.runs import results, stopping
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.videos import VideoRef
from posedrop.buckets.records.workers import WorkerRecord
from posedrop.index.index import Index
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.samples import PROBE
from tests.support.world import Child, World, new_index
from worker.jobs import claim
from worker.jobs.claim import Claim


def put(world: World, *keys: str) -> None:
    """Upload films, have them ingested and planned, in their order; nobody infers yet."""
    for key in keys:
        world.clock.pass_(0.001)
        world.storage.put(VIDEOS, key, key.encode())
        events, world.storage.events = world.storage.events, []
        world.tell(events)
        messages = world.messages()
        for message in messages:
            if message.actor_name == "ingest":
                world.work(message)
            else:
                world.put_back([message])
        tell(world)


def tell(world: World) -> None:
    """Tell the handlers all that has happened in the buckets."""
    while world.storage.events:
        events, world.storage.events = world.storage.events, []
        world.tell(events)


def sent(world: World) -> list[Message[Any]]:
    """Take what the gpu workers are sent, in its order."""
    waiting = world.broker.queues[queue.GPU]
    found: list[Message[Any]] = []
    while not waiting.empty():
        found.append(Message.decode(waiting.get()))
    return found


def keys(messages: Iterable[Message[Any]]) -> list[str]:
    """Name the films that messages are about."""
    return [message.kwargs["run"].rsplit("/", 1)[0] for message in messages]


def worked_off(world: World) -> list[str]:
    """Have one worker do what it is sent, one after the other; name the films in that order."""
    done: list[str] = []
    waiting = sent(world)
    while waiting:
        assert len(waiting) <= gpu_queue.A_WORKER
        message = waiting.pop(0)
        done += keys([message])
        world.work(message)
        world.clock.pass_(5)  # as long as the follower waits for events at most
        tell(world)
        gpu_queue.send_next(world.context)
        waiting += sent(world)
    return done


def serve(world: World, *names: str, queues: list[str] | None = None) -> None:
    """Have workers say that they live."""
    for name in names:
        record = WorkerRecord(
            worker_id=name,
            name=name,
            started_at=world.clock(),
            queues=queues or [queue.GPU],
            device="cuda",
        )
        world.storage.put(RESULTS, layout.worker(name), record.to_json())


def states(world: World) -> set[str]:
    """How the runs stand, as the index knows."""
    return {row.state for row in world.context.index.analyses(limit=1000).rows}


def test_groups_go_round_and_the_oldest_run_of_each_goes_first(world: World) -> None:
    """All of uploads/ is one group, and so is what lies in no folder."""
    put(world, *(f"alice/{n}.mp4" for n in range(6)))
    put(world, "bob/1.mp4", "plain.mp4", "bob/deep/2.mp4", "other.mp4")
    put(world, *(f"uploads/{letter * 16}/film.mp4" for letter in "ab"))
    assert worked_off(world) == [
        "alice/0.mp4", "alice/1.mp4", "alice/2.mp4",  # waited before there was another group
        "bob/1.mp4", "plain.mp4", f"uploads/{'a' * 16}/film.mp4", "alice/3.mp4",
        "bob/deep/2.mp4", "other.mp4", f"uploads/{'b' * 16}/film.mp4", "alice/4.mp4",
        "alice/5.mp4",
    ]  # fmt: skip
    assert states(world) == {"succeeded"}


def test_many_films_at_once_hold_up_no_other(world: World) -> None:
    """Their events come in any order, the one film's last: it is the next but one."""
    for number in range(200):
        world.storage.put(VIDEOS, f"alice/{number}.mp4", b"film %d" % number)
    events, world.storage.events = world.storage.events, []
    world.tell(reversed(events))
    for message in world.messages():
        world.work(message)
    world.storage.events.sort(key=lambda event: event["s3"]["object"]["key"][-9:])
    tell(world)
    first, second = sent(world)
    put(world, "bob/a.mp4")
    assert sent(world) == []
    world.work(first)
    tell(world)
    assert len(sent(world)) == 1
    world.work(second)
    tell(world)
    assert keys(sent(world)) == ["bob/a.mp4"]


def test_each_gpu_worker_that_lives_has_two_messages(world: World) -> None:
    """One that comes is noticed, and one that is silent for a lease; cpu workers don't count."""
    put(world, *(f"alice/{n}.mp4" for n in range(12)))
    assert len(sent(world)) == 2
    serve(world, "one", "two", "three")
    serve(world, "cpu", queues=[queue.CPU])
    world.storage.put(RESULTS, layout.worker("odd"), b"{}")
    world.clock.pass_(10)
    world.tell([])
    assert len(sent(world)) == 4
    world.clock.pass_(61)
    serve(world, "one")
    put(world, "alice/last.mp4")
    assert sent(world) == []
    world.clock.pass_(600)
    serve(world, "one")
    world.reconciler.round()
    left = [key for key in world.storage.buckets[RESULTS] if key.startswith(layout.WORKERS)]
    assert left == [layout.worker("one")]


def test_a_place_is_free_as_soon_as_the_network_is_done(world: World) -> None:
    """The next film is fetched while the tables of the last are made, or it is drawn."""
    put(world, "alice/1.mp4", "alice/2.mp4", "bob/1.mp4")
    first, _ = sent(world)
    world.storage.put(RESULTS, f"{first.kwargs['run']}/{layout.PREDICTIONS}", b"poses")
    tell(world)
    assert keys(sent(world)) == ["bob/1.mp4"]


def record(world: World) -> None:
    """Have the handlers take what has happened as POST /events does; it is not followed yet."""
    events, world.storage.events = world.storage.events, []
    notify.record(world.context, json.dumps({"Records": events}).encode())


def choose(world: World) -> None:
    """Do what the chooser's thread does, if it was woken."""
    if world.context.choosing.woken.is_set():
        world.context.choosing.woken.clear()
        gpu_queue.send_next(world.context)


@pytest.mark.parametrize("name", [layout.PREDICTIONS, layout.INFERENCE, layout.RESULT])
def test_the_gpu_waits_for_no_event_that_waits_to_be_followed(world: World, name: str) -> None:
    """The next run is sent once the end of one is recorded, be there a thousand events before."""
    put(world, "alice/1.mp4", "alice/2.mp4", "bob/1.mp4", "carol/1.mp4")
    first, _ = sent(world)
    for number in range(100):
        world.storage.put(VIDEOS, f"dave/{number}.mp4", b"film %d" % number)
    record(world)
    choose(world)
    assert sent(world) == []
    world.storage.put(RESULTS, f"{first.kwargs['run']}/{name}", b"{}")
    record(world)
    choose(world)
    assert keys(sent(world)) == ["bob/1.mp4"]
    # The same event is followed in its turn, and frees no second place.
    if name == layout.RESULT:
        world.storage.remove(RESULTS, f"{first.kwargs['run']}/{name}")
    tell(world)
    assert sent(world) == []


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.one_of(
            st.sampled_from(["record", "follow", "choose", "work", "reopen", "reconcile"]),
            st.tuples(st.just("forge"), st.integers(0, 5), st.integers(0, 2)),
            st.tuples(st.just("choose, killed"), st.integers(1, 8), st.booleans()),
        ),
        max_size=40,
    )
)
def test_no_order_of_events_and_kills_fills_the_queue_or_empties_it(steps: list[Any]) -> None:
    """Events may be forged, late, or lost with the process: two runs a worker, and all end."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            put(world, *(f"{group}/{n}.mp4" for n in range(2) for group in ("a", "b", "c")))
            runs = sorted(row.run for row in world.context.index.analyses().rows)
            held = sent(world)
            for step in steps:
                match step:
                    case "record":
                        record(world)
                    case "follow":
                        follow.follow(world.context)
                    case "choose":
                        choose(world)
                    case "work" if held:
                        world.work(held.pop(0))
                    case "reopen":
                        world.close()
                        world.open()
                        held.clear()  # the stub's messages go with its process
                    case "reconcile":
                        world.reconciler.round()
                    case "forge", run, name:
                        names = (layout.PREDICTIONS, layout.INFERENCE, layout.RESULT)
                        world.storage.forge(RESULTS, f"{runs[run]}/{names[name]}")
                        record(world)
                    case "choose, killed", at, after:
                        with world.storage.gate(Gate(at, after=after)), contextlib.suppress(Crash):
                            choose(world)
                held += sent(world)
                assert len({*keys(held)}) <= gpu_queue.A_WORKER
            world.put_back(held)
            world.settle()
            assert states(world) == {"succeeded"}
            assert world.context.index.gpu_taken() == 0
        finally:
            world.end()


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_the_choice_and_the_message_loses_no_run(world: World, after: bool) -> None:
    """Nor does it have one made twice."""
    put(world, *(f"alice/{n}.mp4" for n in range(4)), "bob/1.mp4")
    first, second = sent(world)
    world.work(first)
    for at in range(1, 12):
        if not world.storage.events:
            break
        events, world.storage.events = world.storage.events, []
        world.tell(events, Gate(at, after=after))
        world.close()
        world.open()
    world.put_back([second])
    world.settle()
    assert states(world) == {"succeeded"}
    attempts = [key for key in world.storage.buckets[RESULTS] if "/attempts/" in key]
    assert len(attempts) == 5


@pytest.mark.parametrize("loss", ["index", "broker", "both"])
def test_what_is_lost_holds_up_nothing(world: World, loss: str) -> None:
    """With no record of any worker, as an older posedrop has none, every run ends all the same."""
    names = [f"{group}/{n}.mp4" for n in range(4) for group in ("alice", "bob", "carol")]
    put(world, *names)
    messages = sent(world)
    if loss in {"broker", "both"}:
        messages = []
    if loss in {"index", "both"}:
        world.lose_index()
    world.put_back(messages)
    world.settle()
    assert states(world) == {"succeeded"}
    assert len(world.context.index.analyses(limit=100).rows) == len(names)
    assert world.context.index.gpu_taken() == 0


def test_posedrop_up_sends_anew_what_its_broker_forgot(world: World) -> None:
    """At its start, at once, and no more than before."""
    put(world, *(f"alice/{n}.mp4" for n in range(4)), "bob/1.mp4")
    assert len(sent(world)) == 2
    world.close()
    world.clock.pass_(1)
    world.open()
    world.reconciler.round()
    assert len(sent(world)) == 2


def test_a_run_whose_request_cannot_be_read_holds_up_no_group(world: World) -> None:
    """The store answers, for all but this one object: it has its turn once that can be read."""
    put(world, "alice/1.mp4", "alice/2.mp4", "ann/1.mp4", "ann/2.mp4", "bob/1.mp4")
    runs = {row.key: layout.Run(row.run) for row in world.context.index.analyses().rows}
    world.storage.unreadable.add((RESULTS, runs["ann/1.mp4"].request))
    assert worked_off(world) == ["alice/1.mp4", "alice/2.mp4", "ann/2.mp4", "bob/1.mp4"]
    world.storage.unreadable.clear()
    world.settle()
    assert states(world) == {"succeeded"}


def test_a_run_under_way_whose_attempt_cannot_be_read_holds_up_nobody(world: World) -> None:
    """Nor does it once it has had the network for long: whether it computes is not known."""
    put(world, "alice/1.mp4", "alice/2.mp4", "bob/1.mp4")
    first, _ = sent(world)
    run = layout.Run(first.kwargs["run"])
    elsewhere = claim.take(
        world.storage, RESULTS, run, "infer",
        worker="two", lease_seconds=60, max_attempts=3, now=world.clock(),
    )  # fmt: skip
    assert isinstance(elsewhere, Claim)
    world.clock.pass_(1801)
    elsewhere.progress(Progress(stage="infer", done=1))
    elsewhere._write()
    world.storage.unreadable.add((RESULTS, run.attempt(1)))
    serve(world, "one", "two")
    gpu_queue.send_next(world.context)
    assert keys(sent(world)) == ["bob/1.mp4"]


@pytest.mark.parametrize(
    ("stage", "computes"), [("wait", False), ("decode", False), ("infer", True)]
)
def test_a_run_that_is_made_ready_has_no_network_to_give_up(
    world: World, stage: str, computes: bool
) -> None:
    """Nor does one that passes over the frames before its own."""
    put(world, "alice/1.mp4")
    (message,) = sent(world)
    run = message.kwargs["run"]
    held = claim.take(
        world.storage, RESULTS, layout.Run(run), "infer",
        worker="one", lease_seconds=60, max_attempts=3, now=world.clock(),
    )  # fmt: skip
    assert isinstance(held, Claim)
    held.progress(Progress(stage=stage, done=1))
    held._write()
    assert gpu_queue.look(world.context, run).computes is computes


def test_runs_that_only_newer_workers_can_do_are_set_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no place of others, and come back each lease."""
    from worker.jobs import lifecycle

    def left(_: Any, run: Any, __: Any) -> bool:
        if not run.prefix.startswith("new/"):
            return False
        world.storage.write(RESULTS, run.needs_newer, b"{}")
        return True

    monkeypatch.setattr(lifecycle, "_is_too_new", left)
    put(world, "new/1.mp4", "new/2.mp4", "new/3.mp4", "alice/1.mp4", "alice/2.mp4")
    done = worked_off(world)
    assert sorted(done) == sorted(
        ["new/1.mp4", "new/2.mp4", "new/3.mp4", "alice/1.mp4", "alice/2.mp4"]
    )
    runs_of = {row.key: row.state for row in world.context.index.analyses().rows}
    assert [runs_of[key] for key in ("alice/1.mp4", "alice/2.mp4")] == ["succeeded"] * 2
    monkeypatch.undo()
    world.settle()
    assert states(world) == {"succeeded"}


# -- long runs -------------------------------------------------------------------------------------


class Slow(Child):
    """A child that infers minute by minute, with a checkpoint in each."""

    def __init__(self, world: World, claims: list[Claim]) -> None:
        self.world = world
        self.claims = claims
        self.minutes: dict[str, int] = {}
        """By the group of a film."""
        self.happens: dict[int, Callable[[], None]] = {}
        """What happens in which minute of the first run."""
        self.meanwhile: list[Claim] = []
        """Attempts of other workers that are at work."""
        self.seen: list[tuple[str, int, int]] = []
        """The film of each attempt, and its minutes: from, to."""

    def call(self, task: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Infer until the film is done, or the parent ends it."""
        if task != "run_analysis":
            return super().call(task, payload, **options)
        parts, key = Path(payload["parts"]), Path(payload["video"]).read_text()
        first = minute = len(list(parts.glob("*.npz")))
        try:
            while minute < self.minutes.get(layout.group_of(key), 0):
                progress = Progress(stage="infer", done=minute, total=1000)
                options["wall_seconds"].heard(progress, 60.0 * (minute - first))
                options["on_progress"](progress)
                self.happens.pop(minute, lambda: None)()
                minute += 1
                (parts / f"{minute:06}.npz").write_bytes(b"part")
                self.world.clock.pass_(60)
                self.beat()
        finally:
            self.seen.append((key, first, minute))
        return super().call(task, payload, **options)

    def beat(self) -> None:
        """Have the worker's heartbeat and the handlers do their part."""
        held = self.claims[-1]
        for each in (held, *self.meanwhile):
            each._write()
        tell(self.world)
        held.look()


@pytest.fixture
def slow(world: World, monkeypatch: pytest.MonkeyPatch) -> Slow:
    """The child of all workers, slow."""
    claims: list[Claim] = []
    take = claim.take

    def taken(*given: Any, **more: Any) -> Any:
        held = take(*given, **more)
        if isinstance(held, Claim):
            claims.append(held)
        return held

    monkeypatch.setattr(claim, "take", taken)
    world.child = Slow(world, claims)
    return world.child


def test_a_long_run_lets_another_group_go_first_after_half_an_hour(
    world: World, slow: Slow
) -> None:
    """It stops behind a checkpoint, goes on from there in its turn, and has failed no attempt."""
    slow.minutes = {"alice": 100, "bob": 3}
    put(world, "alice/1.mp4")
    slow.happens[5] = lambda: put(world, "alice/2.mp4", "alice/3.mp4", "bob/1.mp4")
    worked_off(world)
    assert [(key, last - first) for key, first, last in slow.seen if key == "bob/1.mp4"] == [
        ("bob/1.mp4", 3)
    ]
    began = {key: number for number, (key, first, _) in reversed(list(enumerate(slow.seen)))}
    # One of alice's has had half an hour, the one that was made ready behind it as well, then bob.
    assert began["bob/1.mp4"] == 2
    assert all(30 <= last - first <= 33 for _, first, last in slow.seen[:2])
    of_first = [(first, last) for key, first, last in slow.seen if key == "alice/1.mp4"]
    assert [first for first, _ in of_first[1:]] == [last for _, last in of_first[:-1]]
    assert of_first[-1][1] == 100
    assert states(world) == {"succeeded"}
    for row in world.context.index.analyses().rows:
        below = [
            key for key in world.storage.buckets[RESULTS] if key.startswith(f"{row.run}/parts")
        ]
        assert below == []
        result = results.read(world.context, row.analysis_id).result
        assert result is not None
        assert result.error is None


def test_a_long_run_goes_on_where_nobody_else_waits(world: World, slow: Slow) -> None:
    """Other films of its own group have no claim to its network, nor has a group that has one."""
    slow.minutes = {"alice": 100}
    serve(world, "one", "two")
    put(world, "alice/1.mp4", "bob/1.mp4", "alice/2.mp4", "bob/2.mp4", "alice/3.mp4", "bob/3.mp4")
    by_key = {keys([message])[0]: message for message in sent(world)}
    first, other = by_key["alice/1.mp4"], by_key["bob/1.mp4"]
    elsewhere = claim.take(
        world.storage, RESULTS, layout.Run(other.kwargs["run"]), "infer",
        worker="two", lease_seconds=60, max_attempts=3, now=world.clock(),
    )  # fmt: skip
    assert isinstance(elsewhere, Claim)
    elsewhere.progress(Progress(stage="infer", done=1))
    slow.meanwhile = [elsewhere]
    world.work(first)
    assert slow.seen == [("alice/1.mp4", 0, 100)]


def test_a_run_handed_back_is_sent_whatever_becomes_of_the_handlers(
    world: World, slow: Slow
) -> None:
    """They die when it was asked, and come back without an index."""
    slow.minutes = {"alice": 60}
    put(world, "alice/1.mp4", "alice/2.mp4")
    first, second = sent(world)
    slow.happens[5] = lambda: put(world, "bob/1.mp4")
    world.work(first)
    assert slow.seen[-1][2] < 60
    sent(world)
    world.lose_index()
    world.storage.events.clear()
    world.put_back([second])
    world.settle()
    assert states(world) == {"succeeded"}
    assert len(world.context.index.analyses().rows) == 3


@pytest.mark.parametrize("by", ["handlers", "worker"])
def test_a_long_run_that_is_cancelled_while_it_waits_leaves_no_checkpoints(
    world: World, slow: Slow, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The handlers delete them, or, where the store does not let them, who takes its message."""
    slow.minutes = {"alice": 60}
    put(world, "alice/1.mp4")
    (first,) = sent(world)
    slow.happens[5] = lambda: put(world, "bob/1.mp4", "bob/2.mp4")
    world.work(first)
    stored = world.storage.buckets[RESULTS]
    run = first.kwargs["run"]
    assert [key for key in stored if key.startswith(f"{run}/parts/")]
    attempt = world.storage.read_record(RESULTS, f"{run}/attempts/1.json", Attempt)
    assert attempt is not None
    assert attempt.kept, "a death of this worker would be one of three"
    if by == "worker":
        monkeypatch.setattr(stopping, "_clear_checkpoints", lambda *_: None)
    (row,) = [row for row in world.context.index.analyses().rows if row.run == run]
    results.cancel_or_delete(world.context, row.analysis_id, only_cancel=True)
    if by == "worker":
        world.work(first)
    world.settle()
    assert [key for key in stored if key.startswith(f"{run}/parts/")] == []


def test_a_worker_of_an_older_posedrop_is_asked_in_vain(
    world: World, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works to the end, and the group that waits comes then."""
    slow.minutes = {"alice": 100}
    put(world, "alice/1.mp4", "alice/2.mp4")
    slow.happens[5] = lambda: put(world, "bob/1.mp4")
    look = Claim.look
    monkeypatch.setattr(
        Claim, "look", lambda held: look(held) or setattr(held, "asked_back", False)
    )
    assert worked_off(world) == ["alice/1.mp4", "alice/2.mp4", "bob/1.mp4"]
    assert states(world) == {"succeeded"}


# -- fairness --------------------------------------------------------------------------------------

GROUPS = st.integers(0, 4)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.one_of(GROUPS, st.just("served")), max_size=60),
    tick=st.sampled_from([1, 0, -7]),
)
def test_no_group_waits_longer_than_one_run_of_each_other(steps: list[Any], tick: int) -> None:
    """From when it has a run that waits, whatever the clock does; and positions are true."""
    with contextlib.ExitStack() as stack:
        index = opened(stack)
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        waiting: dict[int, deque[str]] = {}
        served_meanwhile: dict[int, Counter[int]] = {}
        for number, step in enumerate(steps):
            moment += timedelta(seconds=tick)
            if step != "served":
                analysis_id = f"{number:016}"
                request = request_of(f"g{step}/{number}.mp4", analysis_id, moment)
                index.analysis_requested(request, f"run/{analysis_id}")
                if not waiting.setdefault(step, deque()):
                    served_meanwhile[step] = Counter()
                waiting[step].append(analysis_id)
                continue
            row = index.gpu_next()
            if not any(waiting.values()):
                assert row is None
                continue
            assert row is not None
            group = int(row.grp[1:])
            # Of a group the oldest, as far as a clock can tell.
            if tick > 0:
                assert row.analysis_id == waiting[group][0]
            assert index.position(row.analysis_id) == index.gpu_taken()
            index.gpu_sent(row.analysis_id, moment)
            index.gpu_over(row.analysis_id)
            waiting[group].remove(row.analysis_id)
            served_meanwhile[group] = Counter()
            for other, left in waiting.items():
                if left and other != group:
                    served_meanwhile[other][group] += 1
                    assert served_meanwhile[other][group] == 1
        left = [name for names in waiting.values() for name in names]
        told = {name: index.position(name) for name in left}
        order = []
        while (row := index.gpu_next()) is not None:
            moment += timedelta(seconds=1)
            order.append(row.analysis_id)
            index.gpu_sent(row.analysis_id, moment)
            index.gpu_over(row.analysis_id)
        assert told == {name: place for place, name in enumerate(order)}


def opened(stack: contextlib.ExitStack) -> Index:
    """An index of its own."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    file = Path(folder) / "index.sqlite"
    file.write_bytes(new_index())
    index = Index(file)
    stack.callback(index.close)
    return index


def request_of(key: str, analysis_id: str, moment: datetime) -> Request:
    """A run that was asked for at a moment."""
    video = VideoRef(file_id=analysis_id, bucket=VIDEOS, key=key, etag="e", size=1)
    return Request(
        analysis_id=analysis_id,
        analysis="dummy",
        analysis_version="1",
        args={},
        video=video,
        sha256="0" * 64,
        probe=PROBE,
        asked_by="api",
        created_at=moment,
    )
