"""The five actors, by the names that the handlers enqueue."""

from __future__ import annotations

import threading

import dramatiq
from dramatiq import Broker

from posedrop import metrics
from posedrop.settings import Settings
from posedrop.transport import queue
from worker import gone
from worker.context import Context
from worker.jobs.derive import derive
from worker.jobs.infer import finish, infer
from worker.jobs.ingest import ingest
from worker.jobs.render import render


def register(broker: Broker, settings: Settings) -> Context:
    """Declare the actors on ``broker``; return the context that they share."""
    context = Context(settings, broker)
    metrics.DISKS.watch("scratch", settings.scratch_dir)

    @dramatiq.actor(actor_name="ingest", queue_name=queue.CPU, broker=broker)
    def actor_ingest(bucket: str, key: str, etag: str) -> None:
        with metrics.job("ingest"):
            ingest(context, bucket, key, etag)

    @dramatiq.actor(actor_name="infer", queue_name=queue.GPU, broker=broker)
    def actor_infer(run: str) -> None:
        with metrics.job("infer"):
            infer(context, run)

    @dramatiq.actor(actor_name="finish", queue_name=queue.CPU, broker=broker)
    def actor_finish(run: str) -> None:
        with metrics.job("finish"):
            finish(context, run)

    @dramatiq.actor(actor_name="render", queue_name=queue.CPU, broker=broker)
    def actor_render(run: str) -> None:
        with metrics.job("render"):
            render(context, run)

    @dramatiq.actor(actor_name="derive", queue_name=queue.CPU, broker=broker)
    def actor_derive(run: str, what: str) -> None:
        with metrics.job("derive"):
            derive(context, run, what)

    threading.Thread(target=gone.keep_forgetting, args=(context,), name="gone", daemon=True).start()
    return context
