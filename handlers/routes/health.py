"""Routes of what watches: liveness, readiness, metrics."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from handlers.context import Context
from handlers.door.error_response import RETRY_AFTER
from handlers.health import Health
from posedrop import __version__, metrics
from posedrop.api.health import Ready


def add_routes(app: FastAPI, context: Context, health: Health) -> None:
    """Add the routes of what watches."""

    @app.get("/healthz", summary="Liveness: this process turns")
    async def get_healthz() -> dict[str, str]:
        # In no thread: that this process turns is all that it says.
        return {"status": "ok", "version": __version__}

    @app.get(
        "/readyz",
        responses={503: {"model": Ready, "description": "Some part does not"}},
        summary="Readiness: each part does its work (200), or not (503)",
    )
    async def get_readyz(response: Response) -> Ready:
        loop = asyncio.get_running_loop()
        problems = await loop.run_in_executor(health.threads, health.problems)
        wrong = any(problems.values())
        if wrong:
            response.status_code = 503
            response.headers["Retry-After"] = RETRY_AFTER
        return Ready(
            status="not ready" if wrong else "ready",
            parts={part: problem or "ok" for part, problem in problems.items()},
        )

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus")
    async def get_metrics() -> Response:
        def render() -> bytes:
            return context.metrics.render(context.index, context.clock(), *health.metrics())

        text = await asyncio.get_running_loop().run_in_executor(health.threads, render)
        return Response(text, media_type=metrics.CONTENT_TYPE)
