"""The rows of the index: what they are made of, and which of two accounts of a thing is newer.

Pure. That the rows come out the same in whatever order things are told is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from posedrop.buckets.records.batches import BatchOver, BatchRequest
from posedrop.buckets.records.requests import PendingRequest, Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact, RunError, RunState
from posedrop.buckets.records.videos import FileState, Probe, Refusal, VideoRecord
from posedrop.errors import ObjectChangedError, RecordError

_UNFINISHED: dict[str, int] = {"waiting": 0, "queued": 1, "running": 2}
_FINISHED = 3
#: The error of a run whose film was removed or replaced before it was over.
FILM_GONE = ObjectChangedError.code
#: The error of a run of which a record can't be read.
DAMAGED = RecordError.code


@dataclass(frozen=True, slots=True)
class FileRow:
    """A video as the index knows it.

    ``planned``: there is nothing to be planned now, for these bytes. ``waits_for``: None, its rules
    were followed for good; a rule's key, that one is wrong and may be mended; empty, it followed
    none, and one may come.
    """

    file_id: str
    bucket: str
    key: str
    filename: str
    state: FileState
    created_at: datetime
    updated_at: datetime
    etag: str | None = None
    size: int | None = None
    sha256: str | None = None
    sha1: str | None = None
    duplicate_of: str | None = None
    refusal_reason: str | None = None
    refusal_message: str | None = None
    probe: Probe | None = None
    metadata: dict[str, str] | None = None
    last_modified: datetime | None = None
    enqueued_at: datetime | None = None
    planned: bool = False
    waits_for: str | None = None

    @property
    def refusal(self) -> Refusal | None:
        """Why the video will not be analysed, None if it will."""
        if self.refusal_reason is None:
            return None
        return Refusal(reason=self.refusal_reason, message=self.refusal_message or "")


@dataclass(frozen=True, slots=True)
class AnalysisRow:
    """A run of an analysis; ``run`` is its folder in the results bucket, ``key`` its video's.

    ``sha256`` is its content's: each name of a content has a folder of its own for the same run.
    ``quality`` is the score of its poses, 0 to 100, and ``quality_reasons`` says why, worst first.
    """

    analysis_id: str
    file_id: str
    bucket: str
    key: str
    analysis: str
    args: dict[str, Any]
    run: str
    state: RunState
    created_at: datetime
    model: str | None = None
    model_digest: str | None = None
    error: RunError | None = None
    asked_by: str | None = None
    finished_at: datetime | None = None
    artefacts: tuple[Artefact, ...] = ()
    frames_decoded: int | None = None
    rows: int | None = None
    enqueued_at: datetime | None = None
    retry_of: str | None = None
    sha256: str | None = None
    quality: float | None = None
    quality_reasons: tuple[str, ...] | None = None
    versions: dict[str, str] | None = None
    batch: str | None = None
    notify: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingRow:
    """An analysis that was asked for before its video was ingested."""

    pending_id: str
    file_id: str
    key: str
    analysis: str
    args: dict[str, Any]
    created_at: datetime
    force: str | None = None
    analysis_id: str | None = None
    error: RunError | None = None
    batch: str | None = None
    notify: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the request still waits for its video."""
        return self.analysis_id is None and self.error is None


@dataclass(frozen=True, slots=True)
class EventRow:
    """A notification that was recorded; ``kind`` is created or removed."""

    id: int
    bucket: str
    key: str
    etag: str
    sequencer: str
    kind: str
    size: int | None
    received_at: datetime
    handled_at: datetime | None
    tries: int


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule that was seen; ``etag`` is None once it is gone, ``error`` is what is wrong with it.

    ``after`` is the key of the last of the videos below it that were planned anew since it came,
    None when all were; ``turn`` counts how often that was begun.
    """

    key: str
    etag: str | None
    error: RunError | None
    since: datetime
    checked_at: datetime
    after: str | None
    turn: int


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A run that needs a network: it ``waits`` for its group's turn, was ``sent`` to the workers,
    was ``asked`` to let another group go first, or is ``parked`` until ``since``."""

    analysis_id: str
    run: str
    grp: str
    state: str
    since: datetime


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """Something that could not be read or handled, kept for a person."""

    id: int
    received_at: datetime
    reason: str
    body: str


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch; ``chunks`` is how many records of its films are known, ``after`` where it goes on.

    ``walked``: all its films are known. ``over``: how it ended.
    """

    batch_id: str
    request: BatchRequest
    created_at: datetime
    chunks: int = 0
    after: str | None = None
    walked: bool = False
    over: BatchOver | None = None


@dataclass(frozen=True, slots=True)
class BatchFilmRow:
    """A film of a batch, by its place in it, with the state of its run."""

    batch_id: str
    place: int
    file_id: str
    key: str
    run_id: str | None
    existed: bool
    state: str
    error: RunError | None


@dataclass(frozen=True, slots=True)
class TellingRow:
    """An end (of a run, of a batch) that an alias is to be told of; ``subject`` is its id.

    ``digest``: the id of the notice that tells of several runs at once. ``tries``: that failed, the
    last as ``why`` says.
    """

    told_id: str
    alias: str
    event: str
    subject: str
    since: datetime
    due_at: datetime
    tries: int = 0
    state: str = "due"
    digest: str | None = None
    why: str | None = None


Row = (
    FileRow
    | AnalysisRow
    | PendingRow
    | EventRow
    | RuleRow
    | GpuRow
    | DeadLetterRow
    | BatchRow
    | BatchFilmRow
    | TellingRow
)


def whole_seconds(moment: datetime) -> datetime:
    """Return a time as HEAD tells it; a listing tells the same time with its milliseconds."""
    return moment.astimezone(UTC).replace(microsecond=0)


def new_file(file_id: str, bucket: str, key: str, state: FileState, moment: datetime) -> FileRow:
    """Return the row of a file of which little is known yet."""
    filename = key.rstrip("/").rsplit("/", 1)[-1]
    return FileRow(file_id, bucket, key, filename, state, moment, moment)


def ingested_file(record: VideoRecord) -> FileRow:
    """Return the row that a video.json stands for."""
    video, refusal, duplicate = record.video, record.refusal, record.duplicate_of
    moment = whole_seconds(record.last_modified)
    state: FileState = "ready" if refusal is None else "refused"
    return replace(
        new_file(video.file_id, video.bucket, video.key, state, moment),
        updated_at=record.ingested_at.astimezone(UTC),
        last_modified=moment,
        etag=video.etag,
        size=video.size,
        sha256=record.sha256,
        sha1=record.sha1,
        duplicate_of=duplicate.file_id if duplicate is not None else None,
        refusal_reason=refusal.reason if refusal is not None else None,
        refusal_message=refusal.message if refusal is not None else None,
        probe=record.probe,
        metadata=record.metadata,
    )


def newer_file(old: FileRow, new: FileRow) -> FileRow:
    """Return what is known of a file after both were told.

    The ETag says which version of the object is meant. Of two versions written within one second,
    the one told last is taken, because it was read last.
    """
    if new.state == "expected" or old.state == "expected":
        return _arrived(old, new)
    before, after = old.last_modified or old.created_at, new.last_modified or new.created_at
    if old.etag != new.etag:
        return new if after >= before else old
    told = new if _weight(new) >= _weight(old) else old
    latest = max(before, after)
    return replace(
        told,
        last_modified=latest,
        created_at=latest,
        enqueued_at=old.enqueued_at or new.enqueued_at,
        planned=old.planned or new.planned,
        waits_for=old.waits_for if old.waits_for is not None else new.waits_for,
    )


def _arrived(old: FileRow, new: FileRow) -> FileRow:
    if old.state == new.state:  # expected, and perhaps to be analysed otherwise by now
        return replace(
            new,
            created_at=min(old.created_at, new.created_at),
            metadata=new.metadata if new.metadata is not None else old.metadata,
            size=new.size if new.size is not None else old.size,
        )
    return old if new.state == "expected" else new


def _weight(row: FileRow) -> tuple[bool, datetime]:
    """Let a finding of ingest outweigh a mere arrival, and a later one an earlier one."""
    return row.state != "received", row.updated_at


def requested_analysis(request: Request, run: str, state: RunState) -> AnalysisRow:
    """Return the row that a request.json stands for."""
    model = request.model
    return AnalysisRow(
        analysis_id=request.analysis_id,
        file_id=request.video.file_id,
        bucket=request.video.bucket,
        key=request.video.key,
        analysis=request.analysis,
        args=request.args,
        run=run,
        state=state,
        created_at=request.created_at.astimezone(UTC),
        model=model.name if model is not None else None,
        model_digest=model.digest if model is not None else None,
        asked_by=request.asked_by,
        retry_of=request.retry_of.analysis_id if request.retry_of is not None else None,
        sha256=request.sha256,
        batch=request.batch,
        notify=tuple(request.notify),
    )


def finished_analysis(result: Result, run: str) -> AnalysisRow:
    """Return the row that a result.json stands for."""
    model, quality = result.model, result.quality
    return AnalysisRow(
        analysis_id=result.analysis_id,
        file_id=result.video.file_id,
        bucket=result.video.bucket,
        key=result.video.key,
        analysis=result.analysis,
        args=result.args,
        run=run,
        state=result.state,
        created_at=result.created_at.astimezone(UTC),
        model=model.name if model is not None else None,
        model_digest=model.digest if model is not None else None,
        error=result.error,
        finished_at=result.finished_at.astimezone(UTC),
        artefacts=tuple(result.artefacts),
        frames_decoded=result.frames_decoded,
        rows=result.rows,
        retry_of=result.retry_of.analysis_id if result.retry_of is not None else None,
        sha256=result.sha256,
        quality=quality.score if quality is not None else None,
        quality_reasons=tuple(quality.reasons) if quality is not None else None,
        versions={"analysis": result.analysis_version, **result.versions},
    )


def newer_analysis(old: AnalysisRow, new: AnalysisRow) -> AnalysisRow:
    """Return what is known of one folder of a run after both were told: what is further on."""
    told = new if _progress(new) >= _progress(old) else old
    if _has(DAMAGED, old, new) and old.finished_at is not None and new.finished_at is not None:
        told = new  # it was damaged, or mended, since
    return replace(
        told,
        created_at=min(old.created_at, new.created_at),
        asked_by=old.asked_by or new.asked_by,
        enqueued_at=old.enqueued_at or new.enqueued_at,
        retry_of=old.retry_of or new.retry_of,
        sha256=old.sha256 or new.sha256,
        batch=old.batch or new.batch,
        notify=old.notify or new.notify,
    )


def place_order(row: AnalysisRow) -> tuple[int, datetime, str]:
    """Return a key that sorts the folders which one run has, one beside each name of its content.

    The first is where the run is read, and made if it is not over: of those that are over, the one
    that was asked for first. One that failed by its folder alone comes last: the same content has
    another name, by which it can be made.
    """
    rank = 1 if row.finished_at is None else 2 if failed_by_its_folder(row) else 0
    return rank, row.created_at, row.run


def failed_by_its_folder(row: AnalysisRow) -> bool:
    """Tell whether a run is over just because its film was gone there, or a record is damaged."""
    return row.finished_at is not None and (_has(FILM_GONE, row) or _has(DAMAGED, row))


def _has(code: str, *rows: AnalysisRow) -> bool:
    return any(row.error is not None and row.error.code == code for row in rows)


def _progress(row: AnalysisRow) -> tuple[int, datetime]:
    return _UNFINISHED.get(row.state, _FINISHED), row.finished_at or row.created_at


def pending_row(request: PendingRequest) -> PendingRow:
    """Return the row that an asked/<id>.json stands for."""
    return PendingRow(
        pending_id=request.pending_id,
        file_id=request.file_id,
        key=request.key,
        analysis=request.analysis,
        args=request.args,
        created_at=request.created_at.astimezone(UTC),
        force=request.force,
        batch=request.batch,
        notify=tuple(request.notify),
    )
