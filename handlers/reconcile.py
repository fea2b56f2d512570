"""The reconciler: buckets against index, index against queue; what differs is repaired.

Everything that an event, a message or a process lost is found here, at start and every minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from handlers import notify, plan, upload
from handlers.context import Context, now
from posedrop import layout
from posedrop.errors import PosedropError
from posedrop.index import AnalysisRow, FileRow, Page
from posedrop.records import Attempt, FileState, RunState, VideoRecord
from posedrop.storage import ObjectInfo

log = logging.getLogger(__name__)

Row = TypeVar("Row", FileRow, AnalysisRow)

#: A message younger than this may still be in the queue. Sending it again would harm nothing.
_PATIENCE = timedelta(minutes=10)
#: After a round that failed: a store that has just started may answer 500 for a moment.
_SOON_SECONDS = 5.0
#: How long an event is kept, to know it when it comes again; MinIO retries for days.
_REMEMBERED = timedelta(days=30)


@dataclass
class Repairs:
    """What a round found and mended."""

    videos_seen: int = 0
    results_seen: int = 0
    uploads_found: int = 0
    files_gone: int = 0
    records_indexed: int = 0
    runs_gone: int = 0
    ingests_sent: int = 0
    runs_sent: int = 0
    requests_planned: int = 0
    expired: int = 0

    def as_counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    @property
    def mended(self) -> int:
        """How many things were not as they should be."""
        return sum(self.as_counts().values()) - self.videos_seen - self.results_seen


class Reconciler:
    """The thread that reconciles at start and then every ``reconcile_seconds``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._one_at_a_time = threading.Lock()
        self._started = now()

    def start(self) -> None:
        """Begin; the first round runs at once and fills the queue of a broker that forgot it."""
        self._thread.start()

    def stop(self) -> None:
        """End between two rounds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def round(self) -> Repairs:
        """Reconcile once, now."""
        with self._one_at_a_time:
            return reconcile(self._context, sent_before=self._sent_before())

    def _sent_before(self) -> datetime:
        # The embedded broker lives in this process: what was sent before its start is gone.
        patience = now() - _PATIENCE
        embedded = self._context.settings.broker_url.startswith("stub://")
        return max(patience, self._started) if embedded else patience

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = min(_SOON_SECONDS, self._context.settings.reconcile_seconds)
            try:
                repairs = self.round()
                pause = self._context.settings.reconcile_seconds
                if repairs.mended:
                    log.info("reconciled", extra=repairs.as_counts())
            except PosedropError as error:
                log.warning("the reconciler tries again later: %s", error)
            except Exception:
                log.exception("the reconciler tries again later")
            self._stop.wait(pause)


def reconcile(context: Context, sent_before: datetime) -> Repairs:
    """Compare and repair; messages sent before ``sent_before`` are taken for lost."""
    repairs = Repairs()
    _index_videos(context, repairs)
    _index_results(context, repairs)
    _plan_forgotten(context, repairs)
    _send_ingests(context, repairs, sent_before)
    _send_runs(context, repairs, sent_before)
    _expire(context, repairs)
    context.index.forget_events(now() - _REMEMBERED)
    return repairs


def reindex(context: Context) -> Repairs:
    """Forget the index and make it anew from the buckets."""
    context.index.reset()
    return reconcile(context, sent_before=now())


def _index_videos(context: Context, repairs: Repairs) -> None:
    """Find uploads whose event never came, and rows whose object is gone."""
    known = {row.key: row for row in _all_files(context)}
    for found in context.storage.objects(context.settings.videos_bucket):
        repairs.videos_seen += 1
        row = known.pop(found.key, None)
        if row is not None and row.etag == found.etag and row.state != "expected":
            continue
        if found.key.endswith("/") or found.key.rsplit("/", 1)[-1] == layout.FOLDER_RULES:
            continue
        if row is not None and row.state != "expected":
            # What is there now counts, even where it is older than what was (a restored backup).
            context.index.file_removed(row.file_id)
        notify.video_arrived(context, found.key)
        repairs.uploads_found += 1
    for row in known.values():
        if row.state != "expected":
            notify.video_removed(context, row.key)
            repairs.files_gone += 1


def _index_results(context: Context, repairs: Repairs) -> None:
    """Find records that were never indexed, and runs whose records are gone."""
    runs = {row.run: row for row in _all_analyses(context)}
    videos = {layout.video_prefix(row.bucket, row.key): row for row in _all_files(context)}
    seen: set[str] = set()
    news: list[str] = []
    for found in context.storage.objects(context.settings.results_bucket):
        repairs.results_seen += 1
        if _is_news(context, found, runs, videos, seen):
            news.append(found.key)
    # Runs before their videos: a video's record has its runs planned, unless they are known.
    for key in sorted(news, key=lambda key: key.endswith(f"/{layout.VIDEO_RECORD}")):
        notify.result_arrived(context, key)
        repairs.records_indexed += 1
    for run, row in runs.items():
        if run not in seen:
            context.index.analysis_removed(row.analysis_id)
            repairs.runs_gone += 1


def _is_news(
    context: Context,
    found: ObjectInfo,
    runs: dict[str, AnalysisRow],
    videos: dict[str, FileRow],
    seen: set[str],
) -> bool:
    match layout.parse_result_key(found.key):
        case layout.VideoObject(video=prefix, name=layout.VIDEO_RECORD):
            row = videos.get(prefix)
            return row is not None and row.state == "received"
        case layout.AskedObject(pending_id=pending_id):
            pending = context.index.pending(pending_id)
            return pending is None
        case layout.RunObject(run=run, name=layout.REQUEST):
            seen.add(run)
            return run not in runs
        case layout.RunObject(run=run, name=layout.RESULT):
            run_row = runs.get(run)
            return run_row is None or run_row.finished_at is None
        case _:
            return False


def _plan_forgotten(context: Context, repairs: Repairs) -> None:
    """Plan what was asked for, or ruled, while nobody was there to plan it."""
    for pending in context.index.pending_open():
        file = context.index.file(pending.file_id)
        if file is None or file.state not in {"ready", "refused"}:
            continue
        key = layout.video_record(layout.video_prefix(file.bucket, file.key))
        video = context.storage.read_record(context.settings.results_bucket, key, VideoRecord)
        if video is not None:
            plan.plan_ingested(context, video)
            repairs.requests_planned += 1


def _send_ingests(context: Context, repairs: Repairs, sent_before: datetime) -> None:
    for row in _all_files(context, state="received"):
        if row.enqueued_at is not None and row.enqueued_at > sent_before:
            continue
        if row.etag is not None:
            context.enqueue_ingest(row.file_id, row.bucket, row.key, row.etag)
            repairs.ingests_sent += 1


def _send_runs(context: Context, repairs: Repairs, sent_before: datetime) -> None:
    """Send the runs that nobody is at again; oldest first, so that their order stands."""
    rows = [
        row
        for state in ("queued", "running")
        for row in _all_analyses(context, state=state)
        if row.enqueued_at is None or row.enqueued_at < sent_before
    ]
    for row in sorted(rows, key=lambda row: row.created_at):
        run = context.storage.listing(context.settings.results_bucket, f"{row.run}/")
        names = {found.key.removeprefix(f"{row.run}/"): found for found in run.objects}
        if layout.RESULT in names or layout.REQUEST not in names:
            continue
        if _alive(context, row.run, names, run.now):
            continue
        if layout.INFERENCE in names:
            context.enqueue_render(row.analysis_id, row.run)
        else:
            context.enqueue_infer(row.analysis_id, row.run)
        repairs.runs_sent += 1


def _alive(context: Context, run: str, names: dict[str, ObjectInfo], store_now: datetime) -> bool:
    """Tell whether the last attempt's worker has been heard of within a lease."""
    numbers = [n for name in names if (n := layout.attempt_number(name)) is not None]
    if not numbers:
        return False
    beaten = names[f"attempts/{max(numbers)}.json"].last_modified
    if (store_now - beaten).total_seconds() >= context.settings.lease_seconds:
        return False
    key = layout.attempt(run, max(numbers))
    attempt = context.storage.read_record(context.settings.results_bucket, key, Attempt)
    return attempt is not None and attempt.outcome is None


def _expire(context: Context, repairs: Repairs) -> None:
    """Remove videos that are older than the retention set, with their results."""
    days = context.settings.retention_days
    if days is None:
        return
    limit = now() - timedelta(days=days)
    for row in list(_all_files(context)):
        if row.last_modified is not None and row.last_modified < limit:
            upload.delete(context, row.file_id)
            repairs.expired += 1


def _all_files(context: Context, state: FileState | None = None) -> Iterator[FileRow]:
    return _rows(lambda cursor: context.index.files(state=state, cursor=cursor, limit=1000))


def _all_analyses(context: Context, state: RunState | None = None) -> Iterator[AnalysisRow]:
    return _rows(lambda cursor: context.index.analyses(state=state, cursor=cursor, limit=1000))


def _rows(page_at: Callable[[str | None], Page[Row]]) -> Iterator[Row]:
    """Yield the rows of all pages, each fetched when the one before it is used up."""
    cursor = None
    while True:
        page = page_at(cursor)
        yield from page.rows
        if page.cursor is None:
            return
        cursor = page.cursor
