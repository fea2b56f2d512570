"""The broker: it takes messages, and keeps them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from posedrop.doctor.finding import FAIL, HTTP_SECONDS, OK, WARN, Finding
from posedrop.settings import Settings


def broker(settings: Settings) -> Iterator[Finding]:
    """Check that the broker takes messages and keeps them when it is full or restarted."""
    url = settings.broker_url
    if url.startswith("stub:"):
        yield Finding("broker", OK, "inside of `posedrop up`; other processes can't share it")
    elif url.startswith("redis"):
        yield from _redis(url)
    else:
        yield _rabbitmq(url)


def _redis(url: str) -> Iterator[Finding]:
    import redis

    todo = "start it, or correct POSEDROP_BROKER_URL"
    try:
        # Closes the connection at the end.
        with redis.Redis.from_url(
            url, socket_timeout=HTTP_SECONDS, socket_connect_timeout=HTTP_SECONDS
        ) as client:
            client.ping()
            yield Finding("broker", OK, "Redis answers")
            try:
                found: Any = client.config_get("maxmemory-policy", "appendonly")
            except redis.ResponseError:
                found = {}
    except (redis.RedisError, ValueError) as error:
        yield Finding("broker", FAIL, f"Redis: {error}", todo)
        return
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
    wrong = [
        f"{name} is {found.get(name, 'not told')}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if wrong:
        yield Finding(
            "broker's memory",
            WARN,
            f"Redis: {', '.join(wrong)}",
            "set maxmemory-policy noeviction and appendonly yes; else messages get lost, and the "
            "reconciler has to send them again",
        )
    else:
        yield Finding("broker's memory", OK, "noeviction, append-only file")


def _rabbitmq(url: str) -> Finding:
    import pika  # type: ignore[import-untyped]
    from pika.adapters.utils import connection_workflow as workflow  # type: ignore[import-untyped]
    from pika.exceptions import AMQPError, UnroutableError  # type: ignore[import-untyped]

    try:
        parameters = pika.URLParameters(url)
        parameters.socket_timeout = HTTP_SECONDS
        parameters.stack_timeout = HTTP_SECONDS
        parameters.blocked_connection_timeout = HTTP_SECONDS
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            # To a queue that nobody has: a broker that takes messages says so, and drops this one.
            # One that is short of disk or memory says nothing.
            with suppress(UnroutableError):
                channel.basic_publish("", f"doctor-{uuid.uuid4().hex}", b"", mandatory=True)
    except (AMQPError, workflow.AMQPConnectorException, OSError, ValueError) as error:
        reason = _innermost(error)
        if isinstance(error, workflow.AMQPConnectorStackTimeout):
            reason = f"no AMQP from there within {HTTP_SECONDS:.0f} s"
        todo = next(
            (
                advice
                for name, advice in _RABBITMQ_ADVICE
                if name in f"{type(error).__name__} {reason}"
            ),
            "start it, or correct POSEDROP_BROKER_URL",
        )
        return Finding("broker", FAIL, f"RabbitMQ: {reason}", todo)
    return Finding("broker", OK, "RabbitMQ takes messages")


_RABBITMQ_ADVICE = (
    ("ProbableAuthenticationError", "correct the user and password in POSEDROP_BROKER_URL"),
    (
        "ProbableAccessDeniedError",
        "correct the virtual host, the part after the port in POSEDROP_BROKER_URL, "
        "or let this user in there (rabbitmqctl set_permissions)",
    ),
    (
        "ConnectionBlockedTimeout",
        "it is out of disk or memory and takes no messages: `rabbitmq-diagnostics alarms` says of "
        "which, and why",
    ),
    ("ACCESS_REFUSED", "let this user write and configure there (rabbitmqctl set_permissions)"),
    (
        "WRONG_VERSION_NUMBER",
        "the port speaks no TLS: say amqp:// in POSEDROP_BROKER_URL, or take the TLS port",
    ),
    ("CERTIFICATE", "let this machine trust the authority that signed the broker's certificate"),
    (
        "StackTimeout",
        "it hangs, or something else listens there: look at its log, or correct the port",
    ),
)


def _innermost(error: BaseException) -> str:
    """Return the message of an error's first cause, which pika wraps up to three times."""
    while True:
        inner = getattr(error, "exception", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            return str(error) or type(error).__name__
        error = inner
