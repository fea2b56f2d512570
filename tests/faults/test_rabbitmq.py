"""RabbitMQ as the broker: killed, too impatient, or with a dead worker, it costs time alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import labs
from tests.support.brokers import RabbitMQ
from tests.support.lab import Servers

#: Milliseconds that the broker gives a job, scaled down from half an hour.
CONSUMER_TIMEOUT = 2500


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """MinIO and RabbitMQ, with a second gpu worker to take over from the first."""
    data = tmp_path_factory.mktemp("rabbit") / "data"
    broker = RabbitMQ(data.with_name("broker"), consumer_timeout=CONSUMER_TIMEOUT)
    lab = labs.servers(data, broker)
    lab.start()
    lab.start_worker("worker-gpu")
    yield lab
    assert lab.stop() == 0


def test_a_job_longer_than_the_broker_waits_is_neither_cut_nor_doubled(rabbit: Servers) -> None:
    """It closes the channel and delivers the message again: the run is claimed, and one does it."""
    labs.put(rabbit, "long.mp4", labs.asks(seconds=3 * CONSUMER_TIMEOUT / 1000))
    over = labs.result(rabbit, "long.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 1)
    assert "timed out" in (rabbit.broker.folder / "server.log").read_text()
    labs.put(rabbit, "next.mp4", labs.asks())
    assert labs.result(rabbit, "next.mp4")["state"] == "succeeded"


def test_a_killed_broker_comes_back(rabbit: Servers) -> None:
    """With jobs in it, and asked while it is away: each ends once, none of those at work is cut."""
    keys = [f"killed/{number}.mp4" for number in range(4)]
    for key in keys:
        labs.put(rabbit, key, labs.asks(seconds=2))
    rabbit.until(lambda: labs.records(rabbit, "killed/", "1.json"), "a run to begin")
    rabbit.broker.kill()
    labs.put(rabbit, "killed/away.mp4", labs.asks())
    rabbit.broker.start()
    overs = [labs.result(rabbit, key) for key in [*keys, "killed/away.mp4"]]
    assert [(over["state"], over["attempts"]) for over in overs] == [("succeeded", 1)] * 5


def test_a_dead_workers_job_is_picked_up_by_another(rabbit: Servers) -> None:
    """kill -9 in mid-job: begun anew when the lease is over, and made once."""
    labs.put(rabbit, "dead.mp4", labs.asks(seconds=3))
    rabbit.until(lambda: labs.records(rabbit, "dead.mp4/", "1.json"), "the run to begin")
    owner = next(iter(labs.records(rabbit, "dead.mp4/", "1.json").values()))["worker"]
    gpus = rabbit.names("worker-gpu")
    rabbit.kill(next(name for name in gpus if labs.is_of(rabbit.pid(name), owner)))
    over = labs.result(rabbit, "dead.mp4")
    assert (over["state"], over["attempts"]) == ("succeeded", 2)
    rabbit.start_worker("worker-gpu")
