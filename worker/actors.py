"""The three actors, by the names that the handlers enqueue."""

from __future__ import annotations

import threading

import dramatiq
from dramatiq import Broker

from posedrop import metrics
from posedrop.settings import Settings
from posedrop.transport import queue
from worker import gone
from worker.context import Workshop
from worker.jobs import runs
from worker.jobs.ingest import ingest


def register(broker: Broker, settings: Settings) -> Workshop:
    """Declare ingest, infer and render on ``broker``; return the workshop that they share."""
    shop = Workshop(settings, broker)
    metrics.DISKS.watch("scratch", settings.scratch_dir)

    @dramatiq.actor(actor_name="ingest", queue_name=queue.CPU, broker=broker)
    def actor_ingest(bucket: str, key: str, etag: str) -> None:
        with metrics.job("ingest"):
            ingest(shop, bucket, key, etag)

    @dramatiq.actor(actor_name="infer", queue_name=queue.GPU, broker=broker)
    def actor_infer(run: str) -> None:
        with metrics.job("infer"):
            runs.infer(shop, run)

    @dramatiq.actor(actor_name="render", queue_name=queue.CPU, broker=broker)
    def actor_render(run: str) -> None:
        with metrics.job("render"):
            runs.render(shop, run)

    threading.Thread(target=gone.keep_forgetting, args=(shop,), name="gone", daemon=True).start()
    return shop
