"""The broker of one process: who goes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import dramatiq
import pytest

from posedrop.transport import queue


@pytest.fixture
def worked() -> Iterator[tuple[dramatiq.Broker, queue.EventPriority, dict[str, threading.Event]]]:
    """A broker with a worker, and which of its actors have run."""
    broker = queue.connect("stub://")
    priority = queue.EventPriority()
    broker.add_middleware(priority)
    done = {actor: threading.Event() for actor in ("ingest", "infer")}
    for actor, over in done.items():
        dramatiq.actor(over.set, actor_name=actor, queue_name=queue.QUEUE_OF[actor], broker=broker)
    worker = dramatiq.Worker(broker, worker_threads=2, worker_timeout=100)
    worker.start()
    yield broker, priority, done
    priority.set_busy(False)
    worker.stop()


def test_jobs_of_the_cpu_queue_let_events_go_first(
    worked: tuple[dramatiq.Broker, queue.EventPriority, dict[str, threading.Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While many wait, an ingest does; the network's jobs, which are in a child, don't."""
    monkeypatch.setattr(queue, "_PRIORITY_SECONDS", 600.0)
    broker, priority, done = worked
    priority.set_busy(True)
    queue.send(broker, "ingest")
    queue.send(broker, "infer")
    assert done["infer"].wait(30)
    assert not done["ingest"].is_set()
    priority.set_busy(False)
    assert done["ingest"].wait(30)


def test_they_do_not_wait_for_ever(
    worked: tuple[dramatiq.Broker, queue.EventPriority, dict[str, threading.Event]],
) -> None:
    """However many events come, jobs are done."""
    broker, priority, done = worked
    priority.set_busy(True)
    queue.send(broker, "ingest")
    assert done["ingest"].wait(30)


def test_a_message_that_comes_later_waits_in_its_queue(
    worked: tuple[dramatiq.Broker, queue.EventPriority, dict[str, threading.Event]],
) -> None:
    """Who asks what waits is told of it, though no worker has it yet; then it is done."""
    idle = queue.connect("stub://")
    queue.send(idle, "ingest", delay_seconds=0.2)
    assert (queue.ready(idle, queue.CPU), queue.ready(idle, queue.GPU)) == (1, 0)
    broker, _, done = worked
    queue.send(broker, "ingest", delay_seconds=0.2)
    assert done["ingest"].wait(30)
