"""Retention: films removed by their age, or for want of space; and those that never are.

Nothing of a lab's goes that is not a film: no posedrop.json, no notes beside the films. Ages are
counted on the store's clock alone, and looked at again at the moment of removal, as are the pins
(``"keep"`` in a posedrop.json). Where more than a share of all films would go at once, be it by a
wrong clock or a wrong setting, nothing does until a person has seen it: ``posedrop expire``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain

from handlers import changes, upload
from handlers.apart import apart
from handlers.context import Context
from handlers.events import follow
from handlers.runs import copies, results, rules
from handlers.upkeep.rows import all_analyses, all_files, all_places
from posedrop.api.retention import DUE_SHOWN, DueKind, Expired, ExpireRequest, Expiry
from posedrop.api.retention import Due as DueAnswer
from posedrop.buckets import layout
from posedrop.buckets.folder_rules import Keep
from posedrop.buckets.records.videos import FileState
from posedrop.errors import BadRequestError, NotFoundError, StorageError
from posedrop.index.index import AnalysisRow, FileRow
from posedrop.settings import Settings

log = logging.getLogger(__name__)

#: How long an upload stays that is larger than this server takes.
OVER_LIMIT = timedelta(days=7)
#: Where the lower of the two water marks is, if only the upper one is set.
_LOW_WATER = 0.9
#: Of a sweep that was held, in ``Context.notices``.
NOTICE = "expire"
#: So many folders' pins are remembered at a time; each upload has a folder of its own.
_REMEMBERED = 10_000
#: Refusals of what is no film: beside the films of a lab they are somebody's notes.
_NO_FILM = frozenset({"not_a_video", "no_video_stream", "empty"})
#: Of a film with too many bytes; an older posedrop has called it ``too_large``.
_TOO_MANY_BYTES = frozenset({"too_many_bytes", "too_large"})


@dataclass(frozen=True, slots=True)
class Due:
    """A film, or a run, that is due to be removed, and why.

    ``id`` is a film's file_id or a run's analysis_id, ``run`` the run's folder; a content has one
    beside each of its names. ``size`` is in bytes.
    """

    kind: DueKind
    id: str
    key: str
    size: int
    why: str
    etag: str = ""
    run: str = ""

    @property
    def name(self) -> str:
        """A name that nothing else that is due has."""
        return self.run or self.id


@dataclass
class Plan:
    """All that is due, and how much there is; ``stuck`` could not be removed before."""

    now: datetime
    stuck: Set[str] = frozenset()
    due: list[Due] = field(default_factory=list)
    films: int = 0
    orphans: int = 0
    """Films that are gone, of which there are results."""
    runs: int = 0
    kept: int = 0

    def count(self, *kinds: DueKind) -> int:
        """Return how many of these kinds are due, and not stuck."""
        return sum(each.kind in kinds and each.name not in self.stuck for each in self.due)

    def freed_by(self, due: Due) -> int:
        """Return the bytes that a removal is hoped to free."""
        return 0 if due.name in self.stuck else due.size

    def is_held(self, share: float) -> bool:
        """Tell whether more is due at once than this share of all, so that a person is to say so.

        A single one that is not for want of space waits for no other share than 0, or a lab that
        has three could not use retention. Films that are gone make no others fewer.
        """

        def too_many(due: int, there: int, *, alone: bool = False) -> bool:
            return due > share * there and not (alone and due == 1 and share > 0)

        return (
            too_many(self.count("age", "space"), self.films, alone=not self.count("space"))
            or too_many(self.count("orphan"), self.films + self.orphans, alone=True)
            or too_many(self.count("results"), self.runs)
        )

    def held_words(self, share: float) -> str:
        """Return, for a person, why a sweep removed nothing."""
        films, orphans = self.count("age", "space"), self.count("orphan")
        # Numbers alone: no name of a lab's goes into the words.
        return (  # no SQL
            f"{films:,} of {self.films:,} films, the results of {orphans:,} that are gone, and "
            f"{self.count('results'):,} single runs are due to be removed at once: more than "
            f"POSEDROP_EXPIRE_SHARE ({share:g}) of all. Nothing is removed until somebody runs "
            "`posedrop expire`, which lists them and asks"
        )


# -- what is due -----------------------------------------------------------------------------------


def find(
    context: Context, bytes_there: int | None = None, stuck: Set[str] = frozenset()
) -> Generator[None, None, Plan]:
    """Look for what is due, a row of the index at a step, and return it.

    Args:
        context: the handlers' tools.
        stuck: the names of what could not be removed lately: it is tried again, and frees no room.
        bytes_there: in both buckets, if somebody has just counted; they are counted again where
            that is above the mark.

    Raises:
        StorageError: the store is away, or does not tell its time (``no_date``).
    """
    settings = context.settings
    # Without a retention the refused are all that may be due; a person is told of all.
    ages = settings.retention_days is not None or _orphans_go(settings)
    few = not ages and bytes_there is not None
    state: FileState | None = "refused" if few and settings.high_water_bytes is None else None
    plan = Plan(context.storage.time(settings.results_bucket), stuck)
    pins = Pins(context)
    for row in all_files(context, state):
        yield
        if not _is_film(row):
            continue
        if row.state == "film gone":
            plan.orphans += 1
        else:
            plan.films += 1
        due = _due_by_age(context, row, plan.now)
        if due is not None and pins.keep(row.key):
            plan.kept += 1
        elif due is not None:
            plan.due.append(due)
    high = settings.high_water_bytes
    is_full = high is not None and (bytes_there is None or bytes_there > high)
    # What goes by its age makes room, how much is known when it has gone.
    if high is not None and is_full and not plan.count("age", "limit"):
        yield from _find_for_space(context, plan, pins, high)
    return plan


def _due_by_age(context: Context, row: FileRow, now: datetime) -> Due | None:
    settings = context.settings
    if row.last_modified is None or row.etag is None:
        return None
    age, size, days = now - row.last_modified, row.size or 0, settings.retention_days
    since = f"{row.last_modified:%Y-%m-%d}"
    if _is_over_limit(context, row, size) and age > OVER_LIMIT:
        why = f"{size:,} bytes, more than this server takes, since {since}"
        return Due("limit", row.file_id, row.key, size, why, row.etag)
    if days is not None and age > timedelta(days=days):
        why = f"older than {days:g} days: {since}"
        kind: DueKind = "orphan" if row.state == "film gone" else "age"
        return Due(kind, row.file_id, row.key, size if kind == "age" else 0, why, row.etag)
    if row.state == "film gone" and _orphans_go(settings):
        why = "the film is not in the bucket any more"
        return Due("orphan", row.file_id, row.key, 0, why, row.etag)
    return None


def _orphans_go(settings: Settings) -> bool:
    # Films that have gone for want of space are not told from others, and leave their results.
    return settings.orphans == "delete" and settings.high_water_bytes is None


def _is_film(row: FileRow) -> bool:
    if row.state == "refused":
        return layout.is_upload(row.key, row.file_id) or row.refusal_reason not in _NO_FILM
    return row.state in {"ready", "film gone"}


def _is_over_limit(context: Context, row: FileRow, size: int) -> bool:
    return (
        row.refusal_reason in _TOO_MANY_BYTES
        and size > context.settings.max_video_bytes
        and layout.is_upload(row.key, row.file_id)
    )


def _find_for_space(
    context: Context, plan: Plan, pins: Pins, high: int
) -> Generator[None, None, None]:
    """Find films and results that make room: films first, those finished first, then results."""
    there = count_bytes(context)
    low = context.settings.low_water_bytes or int(_LOW_WATER * high)
    left = there
    if there <= high:
        return
    due = {each.id for each in plan.due}
    finished: list[tuple[datetime, Due]] = []
    for row in all_files(context, "ready"):
        yield
        when = _finished(context, row)
        if when is not None and row.file_id not in due and row.etag is not None:
            why = f"{there:,} bytes are more than {high:,}; finished {when:%Y-%m-%d}"
            film = Due("space", row.file_id, row.key, row.size or 0, why, row.etag)
            finished.append((when, film))
    for _, film in sorted(finished, key=lambda each: each[0]):
        if left <= low:
            return
        yield
        if pins.keep(film.key):
            plan.kept += 1
        else:
            plan.due.append(film)
            left -= plan.freed_by(film)
    yield from _find_results(context, plan, pins, left - low, f"{there:,} bytes, above {high:,}")


def _find_results(
    context: Context, plan: Plan, pins: Pins, wanted: int, why: str
) -> Generator[None, None, None]:
    going = {each.key for each in plan.due}
    over: list[tuple[datetime, AnalysisRow]] = []
    for row in chain(all_analyses(context), all_places(context)):
        yield
        plan.runs += 1
        if row.finished_at is not None and _is_orphan(context, row, going):
            over.append((row.finished_at, row))
    for when, row in sorted(over, key=lambda each: each[0]):
        if wanted <= 0:
            return
        yield
        if pins.keep(row.key):
            plan.kept += 1
            continue
        below = context.storage.objects(context.settings.results_bucket, layout.Run(row.run).folder)
        size = sum(found.size for found in below)
        said = f"{why}, and no film is left to go; finished {when:%Y-%m-%d}"
        due = Due("results", row.analysis_id, row.key, size, said, run=row.run)
        plan.due.append(due)
        wanted -= plan.freed_by(due)


def _is_orphan(context: Context, row: AnalysisRow, going: set[str]) -> bool:
    file = context.index.file(row.file_id)
    return row.key in going or file is None or file.state == "film gone"


def _finished(context: Context, row: FileRow) -> datetime | None:
    """Return when the last of a film's runs was over, None unless all are, and one has poses.

    A film without is all that there is of it. Nor is one finished whose results are still to be
    copied from another name of its content.
    """
    if not row.planned or context.index.pending_of_file(row.file_id):
        return None
    runs = context.index.places_of_file(row.file_id)
    ends = [run.finished_at for run in runs]
    known = [end for end in ends if end is not None]
    has_poses = any(run.state in {"succeeded", "partial"} for run in runs)
    return max(known) if has_poses and len(known) == len(ends) else None


def count_bytes(context: Context) -> int:
    """Return the bytes of all objects in the buckets of videos and results, as they are now."""
    settings = context.settings
    return sum(
        found.size
        for bucket in (settings.videos_bucket, settings.results_bucket)
        for found in context.storage.objects(bucket)
    )


class Pins:
    """Pins: the films that posedrop.json files up their folders keep; few files are read twice."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rules: dict[str, Keep] = {}

    def keep(self, key: str) -> bool:
        """Tell whether a film is kept: the nearest rule that says so or otherwise decides."""
        # However deep: what a person has pinned is not removed, whatever that costs to find out.
        for rule in layout.folder_rules(key, deepest=None):
            if rule not in self._rules:
                if len(self._rules) >= _REMEMBERED:
                    self._rules.clear()
                self._rules[rule] = Keep(rule, self._read(rule))
            kept = self._rules[rule].of(key)
            if kept is not None:
                return kept
        return False

    def _read(self, key: str) -> bool | list[str] | None:
        try:
            rule = rules.read(self._context, key)
        except StorageError as error:
            log.warning("the videos below %s are kept, as it can't be read: %s", key, error)
            return True
        if rule is None:
            return None
        # Who wrote it may have meant to keep them: a comma too much must not cost a film.
        return True if rule.problem is not None else rule.keep


# -- removal ---------------------------------------------------------------------------------------


def remove(context: Context, due: Due) -> bool:
    """Remove a film or a run that was due, unless it was replaced, pinned or asked for since.

    Returns:
        Whether it was removed.

    Raises:
        PosedropError: it can't be removed.
    """
    if Pins(context).keep(due.key):
        return False
    done = _remove_results(context, due) if due.kind == "results" else _remove_film(context, due)
    if done:
        ids = {"kind": due.kind, "id": due.id, "key": due.key, "why": due.why}
        changes.note("expired", by="retention", **ids)
    return done


def _remove_film(context: Context, due: Due) -> bool:
    settings = context.settings
    row = context.index.file(due.id)
    there = context.storage.head(settings.videos_bucket, due.key)
    if row is None or row.key != due.key or row.etag != due.etag:
        return False
    if there is None:
        return row.state == "film gone" and _remove_orphan(context, row, due)
    if there.etag != row.etag:
        return False
    if due.kind == "space":
        if _finished(context, row) is None:
            return False
        context.storage.delete(settings.videos_bucket, [due.key])
        # As if a person's tool had done it: what was made of the film stays.
        follow.video_removed(context, due.key)
        return True
    days = settings.retention_days
    patience = timedelta(days=days) if due.kind == "age" and days is not None else OVER_LIMIT
    # A copy onto itself has made it new, and left its ETag.
    if context.storage.time(settings.results_bucket) - there.last_modified <= patience:
        return False
    try:
        return upload.delete_if_unchanged(context, due.id, there)
    except NotFoundError:
        return False


def _remove_orphan(context: Context, row: FileRow, due: Due) -> bool:
    """Remove what was made of a film that is gone, if it is due by that or by the film's age."""
    days, now = context.settings.retention_days, context.storage.time(row.bucket)
    since = row.last_modified or now
    is_old = days is not None and now - since > timedelta(days=days)
    if not is_old and not _orphans_go(context.settings):
        return False
    return upload.delete_if_unchanged(context, due.id, None)


def _remove_results(context: Context, due: Due) -> bool:
    settings = context.settings
    row = context.index.place(due.id, due.run)
    if row is None or context.storage.head(settings.videos_bucket, row.key) is not None:
        return False
    if context.storage.head(settings.results_bucket, layout.Run(row.run).result) is None:
        return False
    if len(context.index.places(due.id)) == 1:
        return results.cancel_or_delete(context, due.id) == "deleted"
    with context.copying:
        copies.forget(context, due.id, [due.run])
    return True


# -- asked by a person -----------------------------------------------------------------------------


def describe(context: Context) -> Expiry:
    """Return what is due, and remove nothing."""
    plan = _drained(find(context))
    items = [DueAnswer.model_validate(each) for each in plan.due[:DUE_SHOWN]]
    return Expiry(
        due=len(plan.due),
        size=sum(each.size for each in plan.due),
        films=plan.films,
        kept=plan.kept,
        held=plan.is_held(context.settings.expire_share),
        items=items,
    )


def expire(context: Context, wanted: ExpireRequest) -> Expired:
    """Remove what is due, whatever share that is; a person has seen how much.

    Raises:
        BadRequestError: more is due than was seen.
    """
    plan = _drained(find(context))
    if len(plan.due) > wanted.due:
        raise BadRequestError(
            f"{len(plan.due):,} films and runs are due now, more than {wanted.due:,}: look again",
            code="more_are_due",
            field="due",
        )
    expired = undeletable = 0
    for due in plan.due:
        with apart(context, f"{due.key} is not removed") as trial:
            expired += remove(context, due)
        undeletable += trial.failed
    context.notices.pop(NOTICE, None)
    return Expired(expired=expired, undeletable=undeletable)


def _drained(steps: Generator[None, None, Plan]) -> Plan:
    while True:
        try:
            next(steps)
        except StopIteration as over:
            plan: Plan = over.value
            return plan
