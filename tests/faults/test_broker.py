"""The broker is transport: flushed, killed or away, it costs time."""

from __future__ import annotations

import redis

from tests.support import labs
from tests.support.lab import Servers


def test_a_flushed_broker_is_filled_again(servers: Servers) -> None:
    """With jobs in it and at work: each ends once, and none of those at work is cut."""
    keys = [f"flushed/{number}.mp4" for number in range(6)]
    for key in keys:
        labs.put(servers, key, labs.asks(seconds=2))
    servers.until(lambda: labs.records(servers, "flushed/", "1.json"), "a run to begin")
    redis.Redis.from_url(servers.broker.url).flushall()
    overs = [labs.result(servers, key) for key in keys]
    assert [(over["state"], over["attempts"]) for over in overs] == [("succeeded", 1)] * 6


def test_a_killed_broker_comes_back_and_is_away_meanwhile(servers: Servers) -> None:
    """What is asked for while it is away is acknowledged, and done when it is back."""
    labs.put(servers, "away/a.mp4", labs.asks())
    labs.result(servers, "away/a.mp4")
    file_id = servers.file("away/a.mp4")["file_id"]
    servers.broker.kill()
    asked = servers.ask(file_id, "dummy", {"seconds": 0})
    assert asked.status_code == 202
    labs.put(servers, "away/b.mp4", labs.asks())
    servers.broker.start()
    assert servers.over(asked.json()["analysis_id"])["status"] == "succeeded"
    assert labs.result(servers, "away/b.mp4")["state"] == "succeeded"


def test_a_job_longer_than_every_limit_is_neither_cut_nor_doubled(servers: Servers) -> None:
    """Two leases long, with rounds of the reconciler in between: one attempt."""
    labs.put(servers, "long.mp4", labs.asks(seconds=9))
    over = labs.result(servers, "long.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 1)


def test_a_dead_workers_job_is_picked_up_by_another(servers: Servers) -> None:
    """After kill -9 another worker begins it anew, without the broker's own long patience.

    What the dead one left on its scratch disk is gone with the next start.
    """
    labs.put(servers, "dead.mp4", labs.asks(seconds=3))
    servers.until(lambda: labs.records(servers, "dead.mp4/", "1.json"), "the run to begin")
    owner = next(iter(labs.records(servers, "dead.mp4/", "1.json").values()))["worker"]
    folders = set((servers.data_dir / "scratch").glob("worker-*"))
    gpus = servers.names("worker-gpu")
    servers.kill(next(name for name in gpus if labs.is_of(servers.pid(name), owner)))
    over = labs.result(servers, "dead.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 2)
    assert all(folder.is_dir() for folder in folders)
    servers.start_worker("worker-gpu")
    gone = servers.until(
        lambda: [folder for folder in folders if not folder.exists()], "its scratch to be removed"
    )
    assert len(gone) == 1


def test_a_worker_that_is_stopped_hands_its_job_back(servers: Servers) -> None:
    """SIGTERM: it ends with 0 within compose's grace, and another goes on at once."""
    labs.put(servers, "handed.mp4", labs.asks(seconds=4))
    servers.until(lambda: labs.records(servers, "handed.mp4/", "1.json"), "the run to begin")
    first = next(iter(labs.records(servers, "handed.mp4/", "1.json").values()))
    gpus = servers.names("worker-gpu")
    name = next(name for name in gpus if labs.is_of(servers.pid(name), first["worker"]))
    assert servers.end(name, labs.grace("worker-gpu")) == 0
    over = labs.result(servers, "handed.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 2)
    (handed,) = labs.records(servers, "handed.mp4/", "1.json").values()
    assert handed["outcome"] == "handed_back"
    servers.start_worker("worker-gpu")
