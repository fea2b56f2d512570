"""Batches done: film by film, in the background, each step noted in the bucket before the next.

The films of a batch are taken by their keys, a hundred at a time; what was begun with them is a
record, created once, which says where to go on. A process that dies repeats at most one hundred,
and to ask for the same run again begins nothing. Batches take turns, so a large one holds up none.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar

from handlers.context import Context
from handlers.runs import batches, damaged, pending, start, stopping, validation
from handlers.runs.batches import UNFINISHED
from handlers.runs.start import RunHandle
from handlers.runs.validation import ValidRequest, analysis_id_of
from posedrop.buckets import layout
from posedrop.buckets.records.batches import (
    BATCH_FILMS,
    BatchFilm,
    BatchFilms,
    BatchOver,
    BatchRequest,
)
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import RunError
from posedrop.errors import BadRequestError, PosedropError, RecordError, StorageError
from posedrop.index.index import IndexBusyError
from posedrop.index.rows import AnalysisRow, BatchFilmRow, BatchRow, FileRow, PendingRow

log = logging.getLogger(__name__)

#: Seconds between two looks whether a batch is over, and after an error.
_PAUSE_SECONDS = 1.0
#: Between two looks for runs that were removed, while a batch goes on.
_LOOK = timedelta(minutes=1)
#: How many of those are looked for at a time.
_LOST = 50
#: How often a film is tried of which the store, which is there, does not tell; and in between.
_TRIES, _TRY_SECONDS = 3, 0.2
_BAD = frozenset({"failed", "cancelled"})
#: In a walk over runs, before those: requests that wait for their film.
PENDING = "pending"
#: Behind those: films of a batch for which no run could be asked.
UNASKED = "unasked"
#: How many objects a step looks at, for films that no event has told of yet.
_SEEN = 2000
_Run = AnalysisRow | PendingRow | BatchFilmRow
_F = TypeVar("_F", BatchFilm, BatchFilm | None)


#: Indexes films below a prefix of which no event has told, behind a key; looks at so many objects
#: at most. Returns the key to go on behind, None at the end.
FindVideos = Callable[[Context, str, str, int], str | None]


class Batcher:
    """The thread that does what batches ask for."""

    def __init__(self, context: Context, find_videos: FindVideos) -> None:
        self._context = context
        self._find_videos = find_videos
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Begin with the batches that were not over before."""
        self._thread.start()

    def stop(self) -> None:
        """End after the film at hand; what was begun with those before it is repeated."""
        self._stop.set()
        self._context.to_batch.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        looked = _Looked()
        while not self._stop.is_set():
            try:
                more = go_on(self._context, looked, self._stop, self._find_videos)
            except Exception:
                log.exception("batches go on later")
                more = False
            if not more:
                self._context.to_batch.wait(_PAUSE_SECONDS)
                self._context.to_batch.clear()


class _Looked:
    """When runs were last looked for that the index does not know, by batch.

    And up to which key films, before a batch's first step; None: all were.
    """

    def __init__(self) -> None:
        self.at: dict[str, datetime] = {}
        self.films: dict[str, str | None] = {}

    def is_due(self, batch_id: str, now: datetime) -> bool:
        before = self.at.setdefault(batch_id, now)
        if now - before < _LOOK:
            return False
        self.at[batch_id] = now
        return True


def go_on(
    context: Context,
    looked: _Looked | None = None,
    stop: threading.Event | None = None,
    find_videos: FindVideos = lambda *_: None,
) -> bool:
    """Take one step of each batch that is not over; return whether there is more to do at once.

    A batch that fails at a step holds up no other; it takes that again when this is called again.
    """
    looked, stop = looked or _Looked(), stop or threading.Event()
    more = False
    for row in context.index.batches_open():
        if stop.is_set():
            return False
        try:
            if row.walked:
                _end(context, row, looked)
            elif _finds_more(context, row, looked, find_videos):
                more = True
            else:
                more |= _step(context, row, stop)
        except IndexBusyError:
            raise
        except RecordError as error:
            context.storage.report(error)
        except PosedropError as error:
            log.warning("the batch %s goes on later: %s", row.batch_id, error)
        except Exception:
            log.exception("the batch %s goes on later", row.batch_id)
    return more


def _finds_more(context: Context, row: BatchRow, looked: _Looked, find_videos: FindVideos) -> bool:
    """Index the next films of a batch that are not known yet; return whether there may be more."""
    # By an event a film is known a moment after it was put; without, at the next sweep.
    prefix = row.request.prefix
    if row.chunks or row.request.kind != "analyse" or prefix is None:
        looked.films.pop(row.batch_id, None)
        return False
    after = looked.films.get(row.batch_id, "")
    if after is None:
        return False
    after = looked.films[row.batch_id] = find_videos(context, prefix, after, _SEEN)
    return after is not None


def _step(context: Context, row: BatchRow, stop: threading.Event) -> bool:
    """Take the next hundred films of a batch; False: it was interrupted."""
    bucket, number = context.settings.results_bucket, row.chunks + 1
    key = layout.batch_films(row.batch_id, number)
    # What was cut short between the record and the index is not done again.
    done = context.storage.read_record(bucket, key, BatchFilms)
    if done is None:
        done = _WALKS[row.request.kind](context, row.request, row.after, stop)
        if done is None:
            return False
        if not context.storage.create(bucket, key, done.to_json()):
            done = context.storage.read_record(bucket, key, BatchFilms) or done
    context.index.batch_films_added(row.batch_id, number, done)
    return True


def _end(context: Context, row: BatchRow, looked: _Looked) -> None:
    """Note that a batch is over, once all of its runs are; the bucket first."""
    if context.index.batch_is_open(row.batch_id):
        if looked.is_due(row.batch_id, context.clock()):
            _find_lost(context, row.batch_id)
        return
    bucket, key = context.settings.results_bucket, layout.batch(row.batch_id, layout.BATCH_OVER)
    over = batches.how_far(context, row.batch_id)
    if not context.storage.create(bucket, key, over.to_json()):
        over = context.storage.read_record(bucket, key, BatchOver) or over
    context.index.batch_over(row.batch_id, over)
    looked.at.pop(row.batch_id, None)
    looked.films.pop(row.batch_id, None)
    log.info("batch over", extra={"batch_id": row.batch_id, "counts": over.counts})


def _find_lost(context: Context, batch_id: str) -> None:
    """Find films whose run somebody has removed with an S3 tool: they are waited for no more."""
    bucket = context.settings.results_bucket
    for film in context.index.batch_films_lost(batch_id, _LOST):
        prefix = context.video_prefix(context.settings.videos_bucket, film.key)
        found = context.storage.objects(bucket, f"{prefix}/")
        if film.run_id is not None and not any(film.run_id in each.key for each in found):
            context.index.batch_film_gone(batch_id, film.place)


# -- analyse ---------------------------------------------------------------------------------------


def _analyse(
    context: Context, batch: BatchRequest, after: str | None, stop: threading.Event
) -> BatchFilms | None:
    """Ask for the runs of the next films; None: interrupted."""
    found: list[tuple[str, FileRow | None]]
    if batch.prefix is not None:
        rows = context.index.files_below(batch.prefix, after or "", BATCH_FILMS)
        found = [(row.file_id, row) for row in rows]
        then = rows[-1].key if len(rows) == BATCH_FILMS else None
    else:
        begin = int(after or 0)
        ids = batch.file_ids[begin : begin + BATCH_FILMS]
        found = [(file_id, context.index.file(file_id)) for file_id in ids]
        then = str(begin + BATCH_FILMS) if begin + BATCH_FILMS < len(batch.file_ids) else None
    asking = _Asking(context, batch)
    films = []
    for file_id, row in found:
        if stop.is_set():
            return None
        if row is None:
            error = RunError(code="not_found", message=f"there is no file {file_id[:40]}")
            films.append(BatchFilm(file_id=file_id, key="", run_id=None, error=error))
        elif batch.prefix is None or row.created_at <= batch.films_until:
            films.append(asking.film(row))
    return BatchFilms(films=films, after=then)


class _Asking:
    """What the films of one step have in common."""

    def __init__(self, context: Context, batch: BatchRequest) -> None:
        """Read what a batch asks for."""
        self._context = context
        self._batch = batch
        self._token = batch.run_token
        self._wanted: ValidRequest | PosedropError
        try:
            self._wanted = _valid(context, batch)
        except StorageError:
            raise
        except PosedropError as error:  # the model was removed meanwhile
            self._wanted = error

    def film(self, row: FileRow) -> BatchFilm:
        """Ask for the run of one film; what is wrong with it holds up no other.

        Raises:
            StorageError: the store is away.
        """
        return _apart(self._context, row.file_id, row.key, lambda: self.ask(row))

    def ask(self, row: FileRow) -> BatchFilm:
        """Ask for the run of one film.

        Raises:
            PosedropError: it can't be asked for.
        """
        context, batch, wanted = self._context, self._batch, self._wanted
        if isinstance(wanted, PosedropError):
            raise wanted
        if _is_cancelled(context, batch, row.key):
            return self._stopped(row, wanted)
        known = self._known(row, wanted)
        if known is not None:
            return _film(row, known.analysis_id, existed=True)
        handle = pending.ask_for(
            context,
            row,
            wanted,
            token=self._token,
            retry_before=batch.created_at if batch.retry else None,
            batch=batch.batch_id,
            notify=tuple(batch.notify),
        )
        if not handle.existed and _is_cancelled(context, batch, row.key):
            # Since it was looked at above: what is younger than the batch that stops is passed by.
            if handle.status == "waiting":
                pending.withdraw(context, handle.analysis_id, row.file_id)
            return self._stopped(row, wanted)
        return _film(row, handle.analysis_id, existed=_existed(context, batch, handle))

    def _known(self, row: FileRow, wanted: ValidRequest) -> AnalysisRow | None:
        """Return the run of a film that has it already, without asking the store."""
        if row.state != "ready" or row.sha256 is None:
            return None
        found = self._context.index.analysis(analysis_id_of(row.sha256, wanted, self._token))
        if found is None or found.file_id != row.file_id or found.state in _BAD:
            return None
        return found if found.batch != self._batch.batch_id else None

    def _stopped(self, row: FileRow, wanted: ValidRequest) -> BatchFilm:
        """Stop a run that was begun for this batch before it was cancelled, and not noted."""
        context = self._context
        error = RunError(code="cancelled", message="the batch was cancelled before its turn")
        nothing = BatchFilm(file_id=row.file_id, key=row.key, run_id=None, error=error)
        if row.state != "ready" or row.sha256 is None:
            return nothing
        analysis_id = analysis_id_of(row.sha256, wanted, self._token)
        known = context.index.analysis(analysis_id)
        if known is None:
            prefix = context.video_prefix(row.bucket, row.key)
            run = layout.run_prefix(prefix, wanted.analysis.name, analysis_id)
            bucket = context.settings.results_bucket
            request = context.storage.read_whole_record(bucket, layout.Run(run).request, Request)
            known = start.known(context, run, request) if request is not None else None
        if known is None or known.batch != self._batch.batch_id:
            return nothing
        if known.finished_at is None:
            stopping.stop(context, known)
        return _film(row, analysis_id, existed=False)


def _valid(context: Context, batch: BatchRequest) -> ValidRequest:
    """Return a batch's request with the model that it was asked for with, by its digest."""
    return _with_model(context, batch.analysis or "", batch.args, batch.model)


def _with_model(
    context: Context, analysis: str, args: dict[str, object], model: object
) -> ValidRequest:
    name, digest = getattr(model, "name", None), getattr(model, "digest", None)
    exact = {**args, "model": f"{name}@{digest}"} if name is not None else args
    wanted = validation.validate(context, analysis, exact)
    return wanted._replace(args={**wanted.args, **({"model": args["model"]} if name else {})})


def _is_cancelled(context: Context, batch: BatchRequest, key: str) -> bool:
    """Tell whether a batch that stops runs was asked for later, and reaches this film."""
    return batches.is_cancelled(context, batch.created_at, key, batch.batch_id)


# -- cancel ----------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """How far a walk over runs has come: a state, and the last key and id of it."""

    state: str
    key: str = ""
    id: str = ""

    @classmethod
    def of(cls, after: str | None, first: str) -> _Place:
        return cls(*json.loads(after)) if after else cls(first)

    def text(self) -> str:
        return json.dumps(self)


def _cancel(
    context: Context, batch: BatchRequest, after: str | None, stop: threading.Event
) -> BatchFilms | None:
    """Stop the next runs that are not over; None: interrupted."""
    return _over_runs(context, batch, after, stop, (PENDING, *UNFINISHED), _stop_one)


def _stop_one(context: Context, batch: BatchRequest, row: _Run) -> BatchFilm | None:
    if isinstance(row, BatchFilmRow):
        return None
    if isinstance(row, PendingRow):
        pending.withdraw(context, row.pending_id, row.file_id)
        error = RunError(code="cancelled", message="cancelled before its film was looked at")
        return BatchFilm(file_id=row.file_id, key=row.key, run_id=None, error=error)
    if context.index.is_of_batch(row.analysis_id, batch.batch_id):
        return None  # it was met before, as one that was queued, and is being stopped
    row = damaged.up_to_date(context, row) or row
    if row.finished_at is not None or stopping.stop(context, row) is None:
        return None
    return BatchFilm(file_id=row.file_id, key=row.key, run_id=row.analysis_id)


# -- retry -----------------------------------------------------------------------------------------


def _retry(
    context: Context, batch: BatchRequest, after: str | None, stop: threading.Event
) -> BatchFilms | None:
    """Make anew the next runs that failed; None: interrupted."""
    states = _again(batch)
    if batch.of_batch is not None:
        states += (UNASKED,)
    return _over_runs(context, batch, after, stop, states, _make_anew)


def _again(batch: BatchRequest) -> tuple[str, ...]:
    return ("failed", "cancelled") if batch.cancelled else ("failed",)


def _make_anew(context: Context, batch: BatchRequest, row: _Run) -> BatchFilm | None:
    """Start the run that is made for one that failed, as that was asked for."""
    if isinstance(row, BatchFilmRow):
        return _ask_again(context, batch, row)
    if isinstance(row, PendingRow):
        return None
    bucket = context.settings.results_bucket
    if _is_cancelled(context, batch, row.key):
        error = RunError(code="cancelled", message="the batch was cancelled before its turn")
        return BatchFilm(file_id=row.file_id, key=row.key, run_id=None, error=error)
    later = context.index.analysis(context.index.retry_of(row.analysis_id) or "")
    if batch.of_batch is None and later is not None and later.batch != batch.batch_id:
        return None  # it was made anew already: that one counts
    video = context.video_record(row.bucket, row.key)
    request = context.storage.read_record(bucket, layout.Run(row.run).request, Request)
    file = context.index.file(row.file_id)
    if video is None or request is None or file is None or file.state != "ready":
        raise BadRequestError("its film is gone: upload it again", code="film_gone")
    wanted = _with_model(context, request.analysis, request.args, request.model)
    handle = start.start_run(
        context,
        video,
        wanted,
        "api",
        request.force,
        retry_before=batch.created_at,
        exports=tuple(request.exports),
        batch=batch.batch_id,
        notify=tuple(batch.notify or request.notify),
    )
    existed = _existed(context, batch, handle)
    return BatchFilm(file_id=row.file_id, key=row.key, run_id=handle.analysis_id, existed=existed)


def _ask_again(context: Context, batch: BatchRequest, film: BatchFilmRow) -> BatchFilm | None:
    """Ask for the run of a film for which an earlier batch could not, as that had asked for it."""
    first = context.index.batch(batch.of_batch or "")
    if first is None or first.request.kind != "analyse":
        return None
    if film.run_id is not None and context.index.analysis(film.run_id) is not None:
        return None  # it was met before, as a run
    file = context.index.file(film.file_id)
    if file is None:
        raise BadRequestError("its film is gone: upload it again", code="film_gone")
    asked = first.request.model_copy(
        update={
            "batch_id": batch.batch_id,
            "token": first.request.token or first.batch_id,
            "created_at": batch.created_at,
            "notify": batch.notify or first.request.notify,
        }
    )
    return _Asking(context, asked).ask(file)


# -- runs, one after the other ---------------------------------------------------------------------


def _over_runs(
    context: Context,
    batch: BatchRequest,
    after: str | None,
    stop: threading.Event,
    states: tuple[str, ...],
    act: Callable[[Context, BatchRequest, _Run], BatchFilm | None],
) -> BatchFilms | None:
    """Do with the next runs, below a prefix or of a batch, what a batch asks for.

    Below a prefix, runs that were asked for later than the batch are none of its. A state at a
    time, in the order in which runs pass through them: what passes on meanwhile is met in the next.
    """
    place = _Place.of(after, states[0])
    films: list[BatchFilm] = []
    rows = _next_runs(context, batch, place)
    for _, row in rows:
        if stop.is_set():
            return None
        if (
            isinstance(row, BatchFilmRow)
            or batch.of_batch is not None
            or row.created_at <= batch.created_at
        ):
            film = _apart(context, row.file_id, row.key, partial(act, context, batch, row))
            films += [film] if film is not None else []
    if len(rows) == BATCH_FILMS:
        return BatchFilms(films=films, after=rows[-1][0].text())
    others = states[states.index(place.state) + 1 :]
    return BatchFilms(films=films, after=_Place(others[0]).text() if others else None)


def _next_runs(
    context: Context, batch: BatchRequest, place: _Place
) -> Sequence[tuple[_Place, _Run]]:
    """Return runs, or pending requests, in a state behind a place, each with its own place."""
    index, state, prefix = context.index, place.state, batch.prefix or ""
    behind = place.key, place.id
    if batch.of_batch is not None:
        number = int(place.key or -1)
        if state == PENDING:
            waiting = index.pending_of_batch(batch.of_batch, number, BATCH_FILMS)
            return [(_Place(state, str(n)), row) for n, row in waiting]
        if state == UNASKED:
            films = index.batch_films(batch.of_batch, number, BATCH_FILMS, _again(batch))
            return [(_Place(state, str(film.place)), film) for film in films]
        runs = index.runs_of_batch(batch.of_batch, state, number, BATCH_FILMS)
        return [(_Place(state, str(n)), row) for n, row in runs]
    if state == PENDING:
        below = index.pending_below(prefix, behind, BATCH_FILMS)
        return [(_Place(state, row.key, row.pending_id), row) for row in below]
    found = index.runs_below(state, prefix, behind, BATCH_FILMS)
    return [(_Place(state, row.key, row.analysis_id), row) for row in found]


# -- what is said of a film ------------------------------------------------------------------------


def _film(row: FileRow, run_id: str, *, existed: bool) -> BatchFilm:
    return BatchFilm(file_id=row.file_id, key=row.key, run_id=run_id, existed=existed)


def _existed(context: Context, batch: BatchRequest, handle: RunHandle) -> bool:
    """Tell whether a run was there before this batch, which may have been cut short since."""
    if not handle.existed:
        return False
    index = context.index
    row = index.analysis(handle.analysis_id) or index.pending(handle.analysis_id)
    return row is None or row.batch != batch.batch_id


def _apart(context: Context, file_id: str, key: str, act: Callable[[], _F]) -> _F | BatchFilm:
    """Return what came of one film, in words where it can't be done.

    Raises:
        StorageError: the store is away, not one object of it.
    """
    for left in reversed(range(_TRIES)):
        try:
            return act()
        except IndexBusyError:
            raise
        except PosedropError as error:
            if isinstance(error, StorageError) and not isinstance(error, RecordError):
                context.storage.ping(context.settings.results_bucket)
                if left:
                    time.sleep(_TRY_SECONDS)
                    continue
            return _failed(file_id, key, error)
    raise AssertionError  # the last try has returned


def _failed(file_id: str, key: str, error: PosedropError) -> BatchFilm:
    words = RunError(code=error.code, message=error.message[:2000], field=error.field)
    return BatchFilm(file_id=file_id, key=key, run_id=None, error=words)


_WALKS: dict[
    str,
    Callable[[Context, BatchRequest, str | None, threading.Event], BatchFilms | None],
] = {"analyse": _analyse, "cancel": _cancel, "retry": _retry}
