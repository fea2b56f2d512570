"""Two runs of one film compared: asked for, found, read."""

from __future__ import annotations

from handlers.context import Context
from handlers.runs import derived, results
from posedrop.api.runs import ComparisonAnswer
from posedrop.buckets import layout, names
from posedrop.buckets.layout import Run
from posedrop.errors import BadRequestError
from posedrop.index.index import AnalysisRow


def read(context: Context, a: str, b: str) -> ComparisonAnswer:
    """Return how far apart two runs put their keypoints; ask for it, if nobody has.

    Args:
        context: the handlers' tools.
        a: a run; the comparison is kept with it.
        b: a run of the same film, under whatever name; it may be the same one.

    Raises:
        NotFoundError: there was never a run of this id.
        GoneError: it was deleted.
        BadRequestError: they can't be compared; the message says why.
        BeingMadeError: it is not made yet.
    """
    of_a, of_b = _pair(context, a, b)
    run, what = Run(of_a.run), layout.comparison(of_b.analysis_id)
    artefact = derived.outcome(context, run, what, of_b.run)
    bucket, key = context.settings.results_bucket, run.key(artefact.object_name)
    found = context.storage.read_record(bucket, key, ComparisonAnswer)
    if found is None:  # an S3 tool has removed it
        derived.delete_comparison(context, run.prefix, of_b.analysis_id)
        return read(context, a, b)
    return found


def make_again(context: Context, a: str, b: str) -> bool:
    """Have a comparison made that could not be; tell whether that is to be done now.

    Raises:
        PosedropError: as :func:`read`.
    """
    of_a, of_b = _pair(context, a, b)
    what = layout.comparison(of_b.analysis_id)
    return derived.ask_again(context, Run(of_a.run), what, of_b.run)


def _pair(context: Context, a: str, b: str) -> tuple[AnalysisRow, AnalysisRow]:
    """Return two runs that can be compared, where each is to be read."""
    rows = results.row_to_read(context, a), results.row_to_read(context, b)
    for field, row in zip("ab", rows, strict=True):
        if row.finished_at is None:
            words = f"the run {row.analysis_id} is {row.state}: compare it once it is over"
            raise BadRequestError(words, code="not_over", field=field)
        if names.find(row.artefacts, "poses.csv") is None:
            words = f"the run {row.analysis_id} ({row.state}) has no table of poses"
            raise BadRequestError(words, code="no_poses", field=field)
    of_a, of_b = rows
    is_same = of_a.sha256 == of_b.sha256 if of_a.sha256 else of_a.file_id == of_b.file_id
    if not is_same:
        words = (
            f"{of_a.key} and {of_b.key} are different films: only runs of one film can be "
            "compared, frame by frame"
        )
        raise BadRequestError(words, code="different_films", field="b")
    return of_a, of_b
