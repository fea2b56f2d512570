"""Routes of runs: asked for, how far they are, what they made, compared, removed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query, Response
from fastapi.responses import RedirectResponse

from handlers import changes
from handlers.door.error_response import GONE, NOT_FOUND, RETRY_AFTER
from handlers.routes import telling
from handlers.routes.callers import Callers
from handlers.runs import batches, compare, cost, pending, results, summary, viewer
from posedrop.api.batches import BatchStarted, DryRun
from posedrop.api.errors import ErrorAnswer
from posedrop.api.runs import AnalyseRequest, Attempts, ComparisonAnswer, RunAnswer, Started
from posedrop.api.viewer import View
from posedrop.buckets.records.runs import FINAL

RunId = Annotated[str, Query(max_length=100, description="an analysis_id")]
_GONE: dict[int | str, dict[str, Any]] = {**NOT_FOUND, **GONE}


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add the routes of single runs."""
    context, asking = callers.context, callers.asking

    @app.post(
        "/analyse",
        summary="Ask for an analysis",
        responses={
            200: {"description": "It exists already, or this was a dry run"},
            202: {"description": "It will be", "model": Started | BatchStarted},
            **NOT_FOUND,
        },
    )
    @asking
    def post_analyse(
        wanted: Annotated[AnalyseRequest, Body()], response: Response
    ) -> Started | BatchStarted | DryRun:
        notify = telling.aliases(context, wanted.notify)
        if wanted.file_id is None or wanted.prefix is not None or wanted.file_ids is not None:
            many = batches.analyse(context, wanted, notify)
            response.status_code = 202 if isinstance(many, BatchStarted) else 200
            return many
        if wanted.dry_run:
            handle, its_cost = pending.preview(
                context,
                wanted.file_id,
                wanted.analysis,
                wanted.args,
                force=wanted.force,
                retry=wanted.retry,
            )
        else:
            handle = pending.ask(
                context,
                wanted.file_id,
                wanted.analysis,
                wanted.args,
                force=wanted.force,
                retry=wanted.retry,
                notify=notify,
            )
            its_cost = cost.of_run(context, context.index.analysis(handle.analysis_id))
            if not handle.existed:
                changes.note("asked for", analysis_id=handle.analysis_id, file_id=wanted.file_id)
        is_done = wanted.dry_run or (handle.existed and handle.status in FINAL)
        response.status_code = 200 if is_done else 202
        return Started(
            analysis_id=handle.analysis_id,
            file_id=wanted.file_id,
            status=handle.status,
            cost=its_cost,
        )

    @app.get(
        "/results/{analysis_id}",
        summary="How far a run is (202), or what it made (200)",
        responses={
            202: {"description": "Not over yet", "model": RunAnswer},
            **_GONE,
        },
    )
    @asking
    def get_results(analysis_id: str, response: Response) -> RunAnswer:
        answer = results.read(context, analysis_id)
        if not answer.over:
            response.status_code = 202
            response.headers["Retry-After"] = RETRY_AFTER
        return answer

    @app.delete(
        "/analyse/{analysis_id}",
        status_code=202,
        responses={
            204: {"description": "Its results are deleted"},
            409: {"model": ErrorAnswer, "description": "It is over, and was only to be cancelled"},
            **_GONE,
        },
        summary="Cancel a run, or delete its results",
    )
    @callers.changing
    def delete_analyse(
        analysis_id: str,
        response: Response,
        only: Annotated[
            Literal["cancel"] | None, Query(description="delete no results of a run that is over")
        ] = None,
    ) -> dict[str, str] | None:
        status = results.cancel_or_delete(
            callers.patient_context, analysis_id, only_cancel=only == "cancel"
        )
        changes.note(status, analysis_id=analysis_id)
        if status == "deleted":
            response.status_code = 204
            return None
        return {"status": status}

    @app.get(
        "/attempts/{analysis_id}",
        responses=_GONE,
        summary="The attempts at a run, the last ones, each with the end of its log",
    )
    @asking
    def get_attempts(analysis_id: str) -> Attempts:
        return summary.attempts(context, analysis_id)

    @app.get(
        "/view/{analysis_id}",
        responses=_GONE,
        summary="What the page of a run shows: URLs of its film and its poses",
    )
    @asking
    def get_view(
        analysis_id: str,
        copy: Annotated[
            bool, Query(description="of the film, also where browsers should play it itself")
        ] = False,
    ) -> View:
        return viewer.describe(context, analysis_id, copy=copy)

    @app.get(
        "/download/{analysis_id}/{name}",
        status_code=307,
        response_class=RedirectResponse,
        responses=_GONE,
        summary="Redirects to a presigned GET of one file; ranges work",
    )
    @asking
    def get_download(analysis_id: str, name: str) -> RedirectResponse:
        return RedirectResponse(results.download_url(context, analysis_id, name), status_code=307)

    @app.post(
        "/download/{analysis_id}/{name}",
        status_code=202,
        summary="Have a file that could not be made tried again",
        responses={200: {"description": "It is made"}, **_GONE},
    )
    @asking
    def post_download(analysis_id: str, name: str, response: Response) -> dict[str, str]:
        is_asked = results.make_again(context, analysis_id, name)
        return _told(response, is_asked, analysis_id=analysis_id, file=name)

    @app.get(
        "/thumbnail/{file_id}",
        status_code=307,
        response_class=RedirectResponse,
        responses=NOT_FOUND,
        summary="Redirects to a video's thumbnail",
    )
    @asking
    def get_thumbnail(file_id: str) -> RedirectResponse:
        return RedirectResponse(results.thumbnail_url(context, file_id), status_code=307)

    @app.get("/compare", summary="How far apart two runs put their keypoints", responses=_GONE)
    @asking
    def get_compare(a: RunId, b: RunId) -> ComparisonAnswer:
        return compare.read(context, a, b)

    @app.post(
        "/compare",
        status_code=202,
        summary="Have a comparison that could not be made tried again",
        responses={200: {"description": "It is made"}, **_GONE},
    )
    @asking
    def post_compare(a: RunId, b: RunId, response: Response) -> dict[str, str]:
        return _told(response, compare.make_again(context, a, b), a=a, b=b)


def _told(response: Response, is_asked: bool, **what: str) -> dict[str, str]:
    if not is_asked:
        response.status_code = 200
        return {"status": "made"}
    response.headers["Retry-After"] = RETRY_AFTER
    changes.note("asked for again", **what)
    return {"status": "being made"}
