"""Threads for what waits for the object store, apart from those of everything else.

Starlette has 40 threads for all requests. With a store that hangs, as many callers would hold all
of them, and neither an event nor a page of the index would be answered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from posedrop.errors import BusyError

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A bounded number of threads; a call that finds none free waits a little, then is refused."""

    def __init__(self, most: int, patience: float) -> None:
        """Nothing is started yet.

        Args:
            most: how many callers are served at a time.
            patience: seconds that one more waits.
        """
        self._limiter = anyio.CapacityLimiter(most)
        self._patience = patience

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread, and return its result.

        Raises:
            BusyError: no thread was free in time.
        """
        me = object()
        try:
            with anyio.fail_after(self._patience):
                await self._limiter.acquire_on_behalf_of(me)
        except TimeoutError as error:
            raise BusyError(
                "too many requests wait for the object store: ask again in a moment"
            ) from error
        try:
            return await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))
        finally:
            self._limiter.release_on_behalf_of(me)

    def __call__(self, endpoint: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Decorate an endpoint of the API so that it runs in one of these threads."""

        @functools.wraps(endpoint)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.run(lambda: endpoint(*args, **kwargs))

        return run
