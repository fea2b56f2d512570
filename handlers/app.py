"""The API, put together: its threads, its routes, what stands before them.

What a route does stands in the module that it names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from dramatiq import Broker
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from handlers import gpu_queue, stream
from handlers.context import Context
from handlers.door import access
from handlers.door.bodies import Bodies
from handlers.door.error_response import ANYWHERE
from handlers.events import follow, notify, sqs, webhook
from handlers.health import Health
from handlers.routes import (
    batches,
    errors,
    health,
    lists,
    page,
    rules,
    runs,
    sweeps,
    telling,
    upkeep,
    uploads,
)
from handlers.routes.callers import Callers
from handlers.runs import batch_steps, copies
from handlers.telling import teller
from handlers.upkeep import reconcile, sweep
from posedrop import __version__, metrics
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.settings import Settings


def create_app(
    settings: Settings,
    broker: Broker,
    *,
    set_busy: Callable[[bool], None] = lambda _: None,
    local: bool = False,
) -> FastAPI:
    """Return the API; its follower and reconciler run from its start to its end.

    Args:
        settings: where everything is.
        broker: takes the messages.
        set_busy: told whether many events wait to be followed, each time that may have changed.
        local: whether it is called by names of this machine's loopback alone.

    Raises:
        ConfigurationError: somebody is to be told of runs who can't be.
    """
    settings.check_aliases()
    context = Context(settings, Storage(settings), _index(settings), broker)
    follower = follow.Follower(context, set_busy)
    reconciler = reconcile.Reconciler(context)
    copier = copies.Copier(context)
    chooser = gpu_queue.Chooser(context)
    batcher = batch_steps.Batcher(context, sweep.find_videos)
    tells = teller.Teller(context)
    watched = Health(context, follower, reconciler)
    metrics.DISKS.watch("index", settings.index_file.parent)
    queue_url = settings.sqs_queue_url
    callers = Callers(context)
    live = stream.Stream(callers.context)
    poller = sqs.Poller(context, follower, queue_url) if queue_url else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        reconciler.start()
        copier.start()
        chooser.start()
        live.start()
        batcher.start()
        tells.start()
        if poller is not None:
            poller.start()
        yield
        await live.stop()
        if poller is not None:
            poller.stop()
        await run_in_threadpool(reconciler.stop)
        await run_in_threadpool(follower.stop)
        await run_in_threadpool(copier.stop)
        await run_in_threadpool(chooser.stop)
        await run_in_threadpool(batcher.stop)
        await run_in_threadpool(tells.stop)
        watched.close()
        context.index.close()

    app = FastAPI(
        title="posedrop",
        version=__version__,
        description="Drop a video into a bucket; get its pose data and a labelled video back.",
        lifespan=lifespan,
        responses=ANYWHERE,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Bodies)
    app.add_middleware(access.Guard, settings=settings, local=local)
    app.add_middleware(
        webhook.EventsEndpoint,
        token=settings.events_token,
        record=partial(notify.record, context),
        wake=follower.wake,
        metrics=context.metrics,
    )
    errors.add_handlers(app)
    uploads.add_routes(app, callers)
    runs.add_routes(app, callers)
    batches.add_routes(app, callers)
    rules.add_routes(app, callers)
    telling.add_routes(app, callers)
    lists.add_routes(app, callers)
    sweeps.add_routes(app, reconciler)
    upkeep.add_routes(app, callers, follower)
    health.add_routes(app, context, watched)
    page.add_routes(app, context, live)
    return app


def _index(settings: Settings) -> Index:
    return Index(settings.index_file, timeout=settings.index_timeout_seconds)
