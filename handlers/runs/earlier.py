"""Earlier runs whose predictions a new one may take: of the same content, model and crop..."""

from __future__ import annotations

from collections.abc import Iterable

from handlers.context import Context
from posedrop import analyses
from posedrop.buckets import layout, names
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.requests import MOST_EARLIER, Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunRef
from posedrop.errors import RecordError
from posedrop.index.rows import AnalysisRow


def noted(context: Context, request: Request, model: Model | None) -> Request:
    """Return a request that is about to be made, with the earlier runs that may spare it a network.

    Runs that are not over yet are among them, a few, behind the others: they may be by its turn. A
    forced one has no other than that of which it is a retry.

    Args:
        context: the handlers' tools.
        request: of a run that is not there yet.
        model: the record of its model, if it has one.
    """
    if analyses.get(request.analysis).finish is None:
        return request
    alike = [row for row in _rows(context, request) if _is_alike(row, request)]
    over = [row for row in alike if row.finished_at is not None]
    under_way = [row for row in alike if row.finished_at is None][:_UNDER_WAY]
    ranked: list[tuple[int, RunRef]] = []
    for row in [*over[: MOST_EARLIER - len(under_way)], *under_way]:
        rank = _rank(context, row, request, model)
        if rank is not None:
            ranked.append((rank, RunRef(analysis_id=row.analysis_id, run=row.run)))
    ranked.sort(key=lambda each: each[0])
    needs_network = not any(rank < _UNSURE for rank, _ in ranked)
    earlier = [ref for _, ref in ranked]
    return request.model_copy(update={"earlier": earlier, "needs_network": needs_network})


_SAME_POSES, _SURE, _UNSURE = range(3)
#: So many of the runs that are not over yet are looked at.
_UNDER_WAY = 2


def _rows(context: Context, request: Request) -> Iterable[AnalysisRow]:
    if request.force is None:
        return context.index.analyses_of_content(request.sha256)
    of = request.retry_of
    row = context.index.analysis(of.analysis_id) if of is not None else None
    return [row] if row is not None else []


def _is_alike(row: AnalysisRow, request: Request) -> bool:
    """Tell whether a run may have predictions for a request, as far as the index knows."""
    analysis = analyses.get(request.analysis)
    digest = request.model.digest if request.model is not None else None
    is_over = row.finished_at is not None
    return (
        row.analysis_id != request.analysis_id
        and (row.analysis, row.model_digest) == (request.analysis, digest)
        and analysis.network_args(row.args) == analysis.network_args(request.args)
        and not (is_over and names.find(row.artefacts, layout.PREDICTIONS) is None)
    )


def _rank(context: Context, row: AnalysisRow, request: Request, model: Model | None) -> int | None:
    """Return how good a run is for a request, the smaller the better; None: of no use."""
    run = layout.Run(row.run)
    bucket = context.settings.results_bucket
    try:
        known = context.storage.read_whole_record(bucket, run.request, Request)
        if known is None or analyses.predictions_id(known) != analyses.predictions_id(request):
            return None
        if row.finished_at is None:
            return _UNSURE
        if analyses.poses_id(known) == analyses.poses_id(request):
            return _SAME_POSES
        pcutoff = request.args.get("pcutoff")
        if known.args.get("pcutoff") != pcutoff:
            result = context.storage.read_whole_record(bucket, run.result, Result)
            details = result.details if result is not None else {}
            models = model.pcutoff if model is not None else None
            return _SURE if analyses.is_covered(details, pcutoff, models) else _UNSURE
    except RecordError:  # of a newer posedrop
        return None
    return _SURE
