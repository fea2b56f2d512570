"""One run, one worker: races, second deliveries, and workers that wake up late."""

from __future__ import annotations

import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from posedrop import analyses
from posedrop.buckets.layout import Run
from posedrop.buckets.records.results import Result
from posedrop.buckets.storage import Storage
from posedrop.settings import load
from tests.support import labs
from tests.support.lab import Embedded, Lab, Servers
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import World
from worker.jobs import claim

ROUNDS = 500
RACERS = 2
#: How often an attempt calls the store, and then some.
CALLS = 15


def storage_of(lab: Lab, folder: Path) -> Storage:
    """Return the lab's store, as its worker sees it."""
    if isinstance(lab, Embedded):
        return Storage(load(lab.data_dir))
    env = lab.aws_environment()
    keys = {
        "s3_endpoint": env["AWS_ENDPOINT_URL"],
        "s3_access_key": env["AWS_ACCESS_KEY_ID"],
        "s3_secret_key": env["AWS_SECRET_ACCESS_KEY"],
    }
    return Storage(load(folder, keys))


def test_of_racing_claims_one_wins_each_of_500_rounds(lab: Lab, tmp_path: Path) -> None:
    """Workers that are delivered the same run at the same moment: one works, on either store."""
    storage = storage_of(lab, tmp_path)

    def take(racer: tuple[int, int]) -> int | None:
        held = claim.take(
            storage,
            "results",
            Run(f"race/{racer[0]}/dummy-aaaaaaaaaaaaaaaa"),
            "infer",
            worker=f"racer {racer[1]}",
            lease_seconds=60,
            max_attempts=3,
            now=datetime.now(UTC),
        )
        return racer[0] if isinstance(held, claim.Claim) else None

    with ThreadPoolExecutor(RACERS) as pool:
        racers = [(number, racer) for number in range(ROUNDS) for racer in range(RACERS)]
        won = [number for number in pool.map(take, racers) if number is not None]
    storage.delete("results", [found.key for found in storage.objects("results", "race/")])
    assert sorted(won) == list(range(ROUNDS))


def test_a_second_delivery_of_a_live_run_neither_runs_nor_holds_a_worker(servers: Servers) -> None:
    """While one worker is at a run, the other takes the message again, drops it, and goes on."""
    labs.put(servers, "twice/long.mp4", labs.asks(seconds=8))
    run = servers.until(
        lambda: [*labs.records(servers, "twice/long.mp4/", "1.json")], "the run to begin"
    )[0].removesuffix("/attempts/1.json")
    broker = labs.broker_of(servers)
    for _ in range(5):
        labs.send(broker, "infer", run=run)
    labs.put(servers, "twice/short.mp4", labs.asks())
    assert labs.result(servers, "twice/short.mp4")["state"] == "succeeded"
    assert labs.records(servers, "twice/long.mp4/", "result.json") == {}
    over = labs.result(servers, "twice/long.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 1)


def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(servers: Servers) -> None:
    """SIGSTOP, a takeover, SIGCONT: the result is the second worker's, byte for byte."""
    labs.put(servers, "late.mp4", labs.asks(seconds=3))
    servers.until(lambda: labs.records(servers, "late.mp4/", "1.json"), "the run to begin")
    gpus = servers.names("worker-gpu")
    owner = next(iter(labs.records(servers, "late.mp4/", "1.json").values()))["worker"]
    late = next(name for name in gpus if labs.is_of(servers.pid(name), owner))
    servers.signal(late, signal.SIGSTOP)
    try:
        over = labs.result(servers, "late.mp4")
        before = labs.objects(servers, "late.mp4/")
    finally:
        servers.signal(late, signal.SIGCONT)
    assert (over["state"], over["attempts"]) == ("succeeded", 2)
    # It has come to its senses when it takes new work again; the other one is kept busy.
    for number in range(4):
        labs.put(servers, f"after-late/{number}.mp4", labs.asks(seconds=1))
    for number in range(4):
        labs.result(servers, f"after-late/{number}.mp4")
    after = labs.objects(servers, "late.mp4/")
    named = [name for name in before if "/attempts/" not in name]
    assert {name: after[name] for name in named} == {name: before[name] for name in named}
    labs.check_artefacts(servers, "late.mp4")


@pytest.mark.parametrize("renders", [False, True])
def test_a_late_worker_is_harmless_wherever_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renders: bool
) -> None:
    """Two workers frozen at any two of their calls to the store, woken up in either order.

    There is one result, and every file that it names is what it says.
    """
    dummy = analyses.get("dummy")
    if renders:
        dummy = replace(dummy, renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": dummy})
    both_frozen = 0
    for first in range(1, CALLS + 1):
        for second in range(1 + first % 2, CALLS + 1, 2):
            world = World(tmp_path / f"{first}-{second}")
            try:
                both_frozen += _freeze_two(world, first, second)
            finally:
                world.end()
    assert both_frozen > CALLS


def _freeze_two(world: World, first: int, second: int) -> bool:
    """Return whether both were frozen, after having checked the outcome."""
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.reconciler.round()
    (message,) = world.messages()
    one = world.freeze(message, first)
    world.clock.pass_(world.settings.lease_seconds + 1)
    two = world.freeze(message, second)
    for frozen in (one, two) if (first + second) % 2 else (two, one):
        if frozen is not None:
            frozen.wake()
    world.settle()
    objects = world.storage.buckets[RESULTS]
    (key,) = [key for key in objects if key.endswith("/result.json")]
    result = Result.model_validate_json(objects[key].data)
    assert result.state == "succeeded"
    drawn = {"predictions.npz", "poses.h5", "pose.mp4"}
    names = drawn if analyses.get("dummy").renders else {"poses.csv"}
    assert {artefact.plain_name for artefact in result.artefacts} == {*names, "run.log"}
    for artefact in result.artefacts:
        data = objects[f"{key.rsplit('/', 1)[0]}/{artefact.object_name}"].data
        assert hashlib.sha256(data).hexdigest() == artefact.sha256
    return one is not None and two is not None
