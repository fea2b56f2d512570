"""The viewer: what the page of one run shows, its film and its poses.

Where browsers show each frame of a film at the time that it has in the table, the page has the film
itself; else a copy of it, made when somebody opens the page.
"""

from __future__ import annotations

from handlers.context import Context
from handlers.runs import results
from handlers.runs.derived import BeingMadeError
from posedrop.api.viewer import View, ViewFile
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.derived import VIEWS
from posedrop.buckets.records.results import Result
from posedrop.errors import BadRequestError, NotFoundError
from posedrop.index.index import AnalysisRow, FileRow


def describe(context: Context, analysis_id: str, *, copy: bool = False) -> View:
    """Return what the page of a run shows; what is not there is made, or said why not.

    Args:
        context: the handlers' tools.
        analysis_id: the run.
        copy: whether a copy of the film is wanted, whatever its probe says.

    Raises:
        NotFoundError: there is no such run.
        GoneError: it was deleted.
    """
    answer = results.read(context, analysis_id)
    row = context.index.analysis(answer.analysis_id)
    if row is None or answer.result is None:
        nothing = ViewFile(
            state="none", message=f"This run is {answer.status}: there is nothing to see yet."
        )
        poses = film = nothing
    else:
        poses = _file(context, row, "viewer")
        if poses.state == "none":
            poses = ViewFile(state="none", message=_without_poses(answer.result, poses))
        film = _film(context, row, answer.result, copy=copy)
    result = answer.result
    return View(
        analysis_id=answer.analysis_id,
        file_id=answer.file_id,
        key=row.key if row is not None else None,
        analysis=answer.analysis,
        model=result.model.name if result is not None and result.model is not None else None,
        status=answer.status,
        error=answer.error,
        film=film,
        poses=poses,
        quality=result.quality if result is not None else None,
    )


def _file(context: Context, row: AnalysisRow, what: str) -> ViewFile:
    """Return one of :data:`posedrop.buckets.records.derived.VIEWS` of a run that is over."""
    try:
        url = results.download_url(context, row.analysis_id, VIEWS[what])
    except BeingMadeError as error:
        progress = _progress(context, row, what)
        return ViewFile(state="making", message=error.message, progress=progress)
    except (NotFoundError, BadRequestError) as error:
        return ViewFile(state="none", message=error.message)
    return _there(context, url)


def _there(context: Context, url: str) -> ViewFile:
    return ViewFile(state="there", url=url, seconds=context.settings.presign_seconds)


def _progress(context: Context, row: AnalysisRow, what: str) -> Progress | None:
    """Return how far the last attempt to make something of a run is."""
    bucket, folder = context.settings.results_bucket, layout.Run(row.run).derived_attempts(what)
    keys = [each.key for each in context.storage.objects(bucket, f"{folder}/")]
    numbers = [n for key in keys if (n := layout.number_of(key, folder)) is not None]
    if not numbers:
        return None
    last = context.storage.read_whole_record(bucket, f"{folder}/{max(numbers)}.json", Attempt)
    return last.progress if last is not None and last.outcome is None else None


def _without_poses(result: Result, poses: ViewFile) -> str:
    if result.error is not None:
        return f"This run has no poses to show: {result.error.message}"
    if result.analysis == "dummy":
        return "This run has no poses to show: the analysis dummy looks for none."
    return f"This run has no poses to show: {poses.message}"


def _film(context: Context, row: AnalysisRow, result: Result, *, copy: bool) -> ViewFile:
    file = context.index.file(row.file_id)
    if file is None or file.state != "ready":
        return ViewFile(
            state="none", message="The film of this run was removed; its poses are here."
        )
    if result.sha256 is not None and file.sha256 != result.sha256:
        words = "The film was replaced by another one since this run: its poses would not fit."
        return ViewFile(state="none", message=words)
    kind = _plays_as(file, result)
    if copy or kind is None:
        made = _file(context, row, "view")
        if made.state == "none":
            # A run without poses has no copy; nothing is to be drawn on its film.
            words = f"This browser can't show the film frame by frame: {made.message}"
            return ViewFile(state="none", message=words)
        return made.model_copy(update={"is_copy": True})
    url = context.storage.presign_get(
        file.bucket, file.key, content_type=kind, filename=file.filename
    )
    return _there(context, url)


def _plays_as(file: FileRow, result: Result) -> str | None:
    """Return the type as which browsers play a film; None: its frames would not be the run's."""
    probe = file.probe
    if probe is None or probe.browser is None or not probe.browser.startswith("video/"):
        return None
    args = result.args
    is_all = not args.get("start") and args.get("stop") is None
    fits = (
        not result.missing
        and not result.cut
        and not result.concealed
        and result.timestamps in {None, "container"}
        # What a browser shows between two rows has no number.
        and args.get("stride", 1) == 1
        and not (is_all and result.rows is not None and result.rows != probe.frames)
    )
    return probe.browser if fits else None
