"""The broker, and messages by actor name: the handlers enqueue without knowing any actor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dramatiq import Broker, Message, MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.errors import BrokerError, ConnectionClosed
from dramatiq.middleware import (
    Callbacks,
    CurrentMessage,
    Middleware,
    Retries,
    ShutdownNotifications,
)
from redis.exceptions import RedisError

from posedrop.errors import PosedropError

CPU = "cpu"
GPU = "gpu"
#: Which queue an actor's messages wait in.
QUEUE_OF = {"ingest": CPU, "infer": GPU, "finish": CPU, "render": CPU, "derive": CPU}


#: Seconds that a job of the cpu queue lets events go first, at most: it must not wait for ever.
_PRIORITY_SECONDS = 0.25


class QueueError(PosedropError):
    """The broker did not take a message; the reconciler will send it again."""

    code = "queue"


def connect(url: str) -> Broker:
    """Return a broker for ``stub://``, ``redis://`` or ``amqp://`` with both queues declared."""
    broker: Broker
    if url.startswith("stub://"):
        broker = StubBroker(middleware=_middleware())
    elif url.startswith(("redis://", "rediss://")):
        from dramatiq.brokers.redis import RedisBroker

        broker = RedisBroker(  # type: ignore[no-untyped-call]
            url=url,
            middleware=_middleware(),
            # A dead worker's messages are only looked for in this share (in a million) of calls.
            maintenance_chance=1_000_000,
            # A worker busy for hours still beats every few seconds; five minutes' silence is death.
            heartbeat_timeout=300_000,
        )
    else:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        # RabbitMQ cuts off a consumer that works on one message for longer than the server's
        # consumer_timeout (30 minutes), which no client can set: docs/deploy.md says what to.
        broker = RabbitmqBroker(url=url, middleware=_middleware(), confirm_delivery=True)
    for queue in (CPU, GPU):
        broker.declare_queue(queue)
    return broker


def _middleware() -> list[Middleware]:
    # Without AgeLimit and TimeLimit: a job may wait for days and run for hours, and what ends one
    # that hangs is the child's wall limit, which knows the video's length. Dramatiq's time limit
    # raises in a thread that sits in C code, where it changes nothing.
    return [
        ShutdownNotifications(),
        Callbacks(),
        CurrentMessage(),
        # The claims in the bucket count the attempts; these retries only bridge a store or a
        # broker that is away.
        Retries(max_retries=10, min_backoff=1_000, max_backoff=60_000),
    ]


class EventPriority(Middleware):
    """Dramatiq middleware by which events go before jobs, where both share one interpreter.

    A thousand uploads at once are all known within seconds, and ingested after that; else each
    ingest, which can wait, holds up the events of many.
    """

    def __init__(self) -> None:
        """Let jobs begin at once, until events wait."""
        self._free = threading.Event()
        self._free.set()

    def set_busy(self, busy: bool) -> None:
        """Tell whether many events wait to be followed."""
        if busy:
            self._free.clear()
        else:
            self._free.set()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002
        """Hold up a job of the cpu queue, in its worker's thread, while many events wait."""
        if message.queue_name == CPU:
            self._free.wait(_PRIORITY_SECONDS)


def send(broker: Broker, actor: str, *, delay_seconds: float = 0.0, **arguments: str) -> None:
    """Enqueue one message for ``actor``, behind what waits; after a while, with ``delay_seconds``.

    Raises:
        QueueError: the broker is away.
    """
    message: Message[None] = Message(
        queue_name=QUEUE_OF[actor], actor_name=actor, args=(), kwargs=arguments, options={}
    )
    with _translated(f"the broker did not take {actor}{arguments}"):
        broker.enqueue(message, delay=round(1000 * delay_seconds) or None)


def ready(broker: Broker, *queues: str) -> int:
    """Return how many messages wait in these queues, or in both; not those that a worker fetched.

    Raises:
        QueueError: the broker is away.
    """
    with _translated("the broker did not say what waits in it"):
        return sum(_ready(broker, queue) for queue in queues or (CPU, GPU))


def _ready(broker: Any, queue: str) -> int:
    """Count the messages that wait, in each broker's own way: Dramatiq has none for all."""
    if isinstance(broker, StubBroker):
        return sum(broker.queues[name].qsize() for name in (queue, dq_name(queue)))
    if hasattr(broker, "get_queue_message_counts"):
        return _ready_in_rabbitmq(broker, queue)
    names = (f"{broker.namespace}:{name}" for name in (queue, dq_name(queue)))
    return sum(int(broker.client.llen(name)) for name in names)


def _ready_in_rabbitmq(broker: Any, queue: str) -> int:
    from pika.exceptions import AMQPError  # type: ignore[import-untyped]

    for last in (False, True):
        try:
            waiting, delayed, _ = broker.get_queue_message_counts(queue)
            return int(waiting + delayed)
        except AMQPError as error:
            # Dramatiq renews a connection for messages alone: one that was cut would stay so.
            del broker.connection
            if last:
                raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]
    raise AssertionError("unreachable")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (BrokerError, RedisError, OSError) as error:
        raise QueueError(f"{what}: {error}") from error
