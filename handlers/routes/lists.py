"""Routes of lists: files, runs, models, what can be asked; counts of a folder."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from handlers import upload
from handlers.routes.callers import Callers, Limit
from handlers.runs import summary
from posedrop import analyses
from posedrop.api.files import FilesPage
from posedrop.api.runs import RunRow, RunsPage, Summary
from posedrop.buckets.records.requests import AskedBy
from posedrop.buckets.records.runs import RunState
from posedrop.buckets.records.videos import FileState
from posedrop.index.listing import FileOrder, Order
from posedrop.models import catalog


def add_routes(app: FastAPI, callers: Callers) -> None:
    """Add the routes that list what there is."""
    context, asking = callers.context, callers.asking

    @app.get("/files", summary="List, filter and search the files")
    def get_files(
        q: str | None = None,
        state: FileState | None = None,
        prefix: str | None = None,
        order: FileOrder = "newest",
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> FilesPage:
        page = context.index.files(
            state=state, prefix=prefix, query=q, order=order, cursor=cursor, limit=limit
        )
        items = upload.file_answers(context, page.rows)
        return FilesPage(items=items, next=page.cursor)

    @app.get("/analyses", summary="List, filter and search the runs")
    def get_analyses(
        q: str | None = None,
        state: RunState | None = None,
        file_id: str | None = None,
        analysis: str | None = None,
        model: str | None = None,
        asked_by: AskedBy | None = None,
        prefix: str | None = None,
        batch: str | None = None,
        order: Order = "newest",
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> RunsPage:
        page = context.index.analyses(
            state=state,
            file_id=file_id,
            analysis=analysis,
            model=model,
            asked_by=asked_by,
            prefix=prefix,
            batch=batch,
            query=q,
            order=order,
            cursor=cursor,
            limit=limit,
        )
        items = [RunRow.model_validate(row) for row in page.rows]
        return RunsPage(items=items, next=page.cursor)

    @app.get("/summary", summary="How many runs and films of a folder are in each state, and why")
    def get_summary(prefix: str = "") -> Summary:
        return summary.summary(context, prefix)

    @app.get("/analysis-types", summary="What can be asked, with the JSON Schema of its args")
    def get_analysis_types() -> dict[str, Any]:
        items = [
            {
                "name": analysis.name,
                "summary": analysis.summary,
                "version": analysis.version,
                "needs_model": analysis.needs_model,
                "args": analysis.args.model_json_schema(),
            }
            for analysis in analyses.installed().values()
        ]
        return {"items": items}

    @app.get("/models", summary="The models of the models bucket, and how much each is used")
    @asking
    def get_models() -> dict[str, Any]:
        found = catalog.list_models(context.storage, context.settings.models_bucket)
        used = context.index.models_used()
        items = []
        for model in found:
            runs, last_used = used.get(model.digest, (0, None))
            known = model.model_dump(by_alias=True, exclude={"files"})
            items.append({**known, "runs": runs, "last_used": last_used})
        return {"items": items}
