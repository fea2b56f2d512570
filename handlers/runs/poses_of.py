"""The run whose poses an analysis takes (``args.run``): found, and checked before anything starts.

It has to be of the same content, to be over, and to have its table. What is asked for without a
run is the newest such one; its id then stands in the request, so that what it means is settled.
"""

from __future__ import annotations

from handlers.context import Context
from handlers.runs import damaged
from handlers.runs.validation import ValidRequest
from posedrop.analyses.outliers import MOST_PIXEL_BYTES, OutlierArgs
from posedrop.buckets import names
from posedrop.buckets.records.runs import RunRef
from posedrop.buckets.records.videos import Probe, VideoRecord
from posedrop.errors import BadRequestError
from posedrop.index.index import AnalysisRow

_ENDED = frozenset({"succeeded", "partial"})


class UnfinishedRunError(BadRequestError):
    """The poses that something is to be made of are not there yet; worth asking again later."""

    code = "unfinished_run"


def resolve(context: Context, video: VideoRecord, wanted: ValidRequest) -> ValidRequest:
    """Return a request with the run whose poses it takes filled in, and where that is.

    Args:
        context: the handlers' tools.
        video: of which it is asked.
        wanted: any request; one that takes no poses is returned as it is.

    Raises:
        BadRequestError: codes ``no_such_run``, ``run_gone``, ``other_film``, ``no_poses``,
            ``no_such_frame``, ``too_many_pixels``.
        UnfinishedRunError: the run is not over.
    """
    if not wanted.analysis.takes_poses or video.probe is None:
        return wanted
    asked = wanted.args.get("run")
    row = _named(context, video, asked) if asked else _newest(context, video)
    args = wanted.analysis.args.model_validate({**wanted.args, "run": row.analysis_id})
    if isinstance(args, OutlierArgs):
        _check_frames(args, video.probe, video.video.key)
    ref = RunRef(analysis_id=row.analysis_id, run=row.run)
    return wanted._replace(args=args.model_dump(mode="json"), poses_of=ref)


def _named(context: Context, video: VideoRecord, asked: str) -> AnalysisRow:
    pending = context.index.pending(asked)
    if pending is not None and pending.analysis_id is None:
        raise _unfinished(asked, "its video is not ingested yet")
    analysis_id = asked if pending is None or pending.analysis_id is None else pending.analysis_id
    row = context.index.analysis(analysis_id)
    if row is None and context.index.analysis_is_gone(analysis_id):
        raise _bad(f"the results of {asked} were deleted", "run_gone")
    if row is None:
        raise _bad(f"there is no run {asked}; GET /analyses lists what there is", "no_such_run")
    row = _up_to_date(context, row)
    if row.sha256 != video.sha256:
        raise _bad(f"{asked} is a run of another film, {row.key}", "other_film")
    if row.finished_at is None:
        raise _unfinished(asked, f"it is {row.state}")
    if not _has_poses(row):
        raise _bad(f"{asked} ({row.analysis}, {row.state}) has no table of poses", "no_poses")
    return row


def _newest(context: Context, video: VideoRecord) -> AnalysisRow:
    assert video.sha256 is not None  # noqa: S101
    rows = context.index.analyses_of_content(video.sha256)
    under_way = None
    for row in (_up_to_date(context, row) for row in rows):
        if row.state in _ENDED and _has_poses(row):
            return row
        if row.finished_at is None and row.analysis != "outliers":
            under_way = under_way or row
    if under_way is not None:
        raise _unfinished(under_way.analysis_id, f"it is {under_way.state}, and the film's first")
    raise _bad(
        f"{video.video.key} has no run with poses: ask for some first (posedrop analyse)",
        "no_poses",
    )


def _up_to_date(context: Context, row: AnalysisRow) -> AnalysisRow:
    """Return a row with what the bucket knows of a run that the index takes for unfinished."""
    known = damaged.up_to_date(context, row) if row.finished_at is None else None
    return known or row


def _has_poses(row: AnalysisRow) -> bool:
    return names.find(row.artefacts, "poses.csv") is not None


def _check_frames(args: OutlierArgs, probe: Probe, key: str) -> None:
    last = max(args.frames or [0])
    if probe.frames_counted and last >= probe.frames:
        words = f"{key} has no frame {last}: it has {probe.frames}, counted from 0"
        raise BadRequestError(words, code="no_such_frame", field="args.frames")
    # Of a film with fewer frames than are asked for, there are no more.
    chosen = min(args.most, probe.frames) if probe.frames_counted else args.most
    a_frame = 3 * probe.width * probe.height
    if chosen * a_frame > MOST_PIXEL_BYTES:
        words = f"{chosen} frames of {probe.width}x{probe.height} pixels are too much at once: ask "
        words += f"for {max(1, MOST_PIXEL_BYTES // a_frame)} at most"
        raise BadRequestError(words, code="too_many_pixels", field="args.n")


def _bad(words: str, code: str) -> BadRequestError:
    return BadRequestError(words, code=code, field="args.run")


def _unfinished(asked: str, why: str) -> UnfinishedRunError:
    words = f"{asked} has no poses yet, {why}: ask again when it is over"
    return UnfinishedRunError(words, field="args.run")
