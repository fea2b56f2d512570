"""A worker as a process of its own: ``dramatiq worker.main -Q cpu``, or ``-Q gpu -p 1 -t 2``."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

import dramatiq
from dramatiq import Broker, Middleware, Worker

from posedrop import logs, settings
from posedrop.transport import queue
from worker import exposed
from worker.actors import register
from worker.context import Context

#: Between two looks at a queue that was empty, at most.
TIMEOUT_MS = 100


class Children(Middleware):
    """Starts the children of this worker's queues with it, and ends them before it stops.

    A job of hours does not keep a worker from stopping: its child is killed, its run handed back,
    and whoever is there next goes on with it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop_metrics: Callable[[], None] = lambda: None

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Take no more of the gpu queue than there are threads for, and look for more soon.

        Dramatiq fetches twice as much; but there are two messages a gpu worker, so that the first
        of two workers would have all of them. It waits for up to a second before it looks again
        for messages, in which a card with clips of a second would have nothing to do.
        """
        worker.worker_timeout = min(worker.worker_timeout, TIMEOUT_MS)
        if worker.consumer_whitelist == {queue.GPU}:
            worker.queue_prefetch = min(worker.queue_prefetch, worker.worker_threads)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Start the children of this worker's queues, and the worker's own metrics."""
        mine = worker.consumer_whitelist or {queue.CPU, queue.GPU}
        queues = frozenset(mine) & {queue.CPU, queue.GPU}
        threading.Thread(target=self._context.start_children, args=(queues,), daemon=True).start()
        self._stop_metrics = exposed.serve(self._context.settings)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """End the children; their jobs are handed back."""
        self._context.close()
        self._stop_metrics()


logs.to_stderr()
_settings = settings.load()
broker = queue.connect(_settings.broker_url)
dramatiq.set_broker(broker)
_context = register(broker, _settings)
broker.add_middleware(Children(_context))
atexit.register(_context.close)
