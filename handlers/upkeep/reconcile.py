"""The reconciler: buckets against index, index against queue; what differs is repaired.

Everything that an event, a message or a process lost is found here, at start and every minute. A
round asks the index alone what nobody is at, and looks at the next slice of both buckets: what a
round costs does not grow with the buckets, only how many rounds a whole sweep takes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import chain, islice

from handlers import gpu_queue, workers
from handlers.context import Context
from handlers.events import notify
from handlers.runs import copies, damaged, derived, plan, rules, waiting
from handlers.upkeep import retention
from handlers.upkeep.apart import apart
from handlers.upkeep.reingest import OldRefusals
from handlers.upkeep.retention import all_places, all_rows
from posedrop.buckets import layout
from posedrop.buckets.presigned import PARTS_SECONDS
from posedrop.buckets.records import FileState, RunError, RunState, VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import PosedropError, RecordError, StorageError
from posedrop.index.index import AnalysisRow, FileRow, PendingRow
from posedrop.index.rows import DAMAGED
from posedrop.transport import queue

log = logging.getLogger(__name__)

#: How many objects and rows a round looks at; benchmarks/scale.py says what a thousand cost.
SLICE = 20_000
#: An ingest reads the whole object: slower than this, in bytes a second, it is taken for lost.
_SLOWEST_INGEST = 10e6
#: After a round that failed: a store that has just started may answer 500 for a moment.
_SOON_SECONDS = 5.0
#: How long an event is kept, to know it when it comes again; MinIO retries for days.
_REMEMBERED = timedelta(days=30)
_PAGE = 1000
#: How many videos that wait for a rule are planned in a round; the follower does it between events.
_WAITING = 1000
#: Of so many steps of a sweep each removal takes the place, as it asks the store as often.
_REMOVAL = 100
#: How long after its URLs' end an upload may still be on its way: what was begun in time goes on.
_ON_ITS_WAY = timedelta(days=1)
#: How long an upload in parts is left alone, and how often is looked for older ones.
_PARTS_LEFT = timedelta(days=7)
_PARTS_EVERY = timedelta(hours=1)
_NO_REPAIRS = frozenset({"videos_seen", "results_seen", "held_back", "undeletable", "damaged"})


@dataclass
class Repairs:
    """What a round found and mended."""

    videos_seen: int = 0
    results_seen: int = 0
    uploads_found: int = 0
    rules_found: int = 0
    files_gone: int = 0
    records_indexed: int = 0
    runs_gone: int = 0
    results_copied: int = 0
    ingests_sent: int = 0
    runs_sent: int = 0
    requests_planned: int = 0
    exports_sent: int = 0
    expired: int = 0
    given_up: int = 0
    """Uploads that never came, and pending requests about them."""
    held_back: int = 0
    """Films and runs that are due, too many at once: `posedrop expire` removes them."""
    undeletable: int = 0
    damaged: int = 0

    def as_counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    @property
    def mended(self) -> int:
        """How many things were not as they should be."""
        return sum(n for name, n in self.as_counts().items() if name not in _NO_REPAIRS)


class Reconciler:
    """The thread that reconciles at start and then every ``reconcile_seconds``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._one_at_a_time = threading.Lock()
        self._sweep: Sweep | None = None
        self._succeeded_at = time.monotonic()
        self._stuck: set[str] = set()
        self._old_refusals = OldRefusals(context)
        self._parts = AbandonedParts(context)
        # The embedded broker lives in this process: what was sent before its start is gone.
        embedded = context.settings.broker_url.startswith("stub://")
        self._forgotten_before = context.clock() if embedded else None

    def start(self) -> None:
        """Begin; the first sweep goes on without a pause until all of both buckets was seen."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since a round came through, or since the start."""
        return time.monotonic() - self._succeeded_at

    def stop(self) -> None:
        """End between two rounds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def round(self) -> Repairs:
        """Reconcile all of it, now."""
        with self._one_at_a_time:
            self._sweep = None
            repairs = reconcile(self._context, self._forgotten_before, self._stuck)
            repairs.ingests_sent += self._old_refusals.go_on()
            self._parts.go_on(repairs)
            return self._succeeded(repairs)

    def reindex(self) -> Repairs:
        """Forget the index and make it anew from the buckets."""
        with self._one_at_a_time:
            self._sweep = None
            self._context.index.reset()
            return self._succeeded(reconcile(self._context, self._context.clock()))

    def step(self) -> bool:
        """Reconcile what the index knows, and the next slice; True at the end of a sweep."""
        with self._one_at_a_time:
            repairs = Repairs()
            send_again(self._context, repairs, self._forgotten_before)
            repairs.ingests_sent += self._old_refusals.go_on()
            sweep, self._sweep = self._sweep or Sweep(self._context, self._stuck), None
            over = sweep.go_on(repairs, SLICE)
            if not over:
                self._sweep = sweep
            self._parts.go_on(repairs)
            self._succeeded(repairs)
        self._context.to_copy.set()
        if repairs.mended or repairs.held_back or repairs.undeletable or repairs.damaged:
            log.info("reconciled", extra=repairs.as_counts())
        return over

    def _run(self) -> None:
        swept = False
        while not self._stop.is_set():
            pause = min(_SOON_SECONDS, self._context.settings.reconcile_seconds)
            try:
                swept = self.step() or swept
                pause = self._context.settings.reconcile_seconds if swept else 0.0
            except Exception as error:
                self._context.metrics.rounds.labels("failed").inc()
                known = isinstance(error, PosedropError)
                log.warning(
                    "the reconciler tries again later: %s", error, exc_info=None if known else error
                )
            self._stop.wait(pause)

    def _succeeded(self, repairs: Repairs) -> Repairs:
        self._succeeded_at = time.monotonic()
        counts = repairs.as_counts().items()
        mended = {name: count for name, count in counts if not name.endswith("_seen")}
        self._context.metrics.reconciled(mended, self._context.clock())
        return repairs


def reconcile(
    context: Context, forgotten_before: datetime | None, stuck: set[str] | None = None
) -> Repairs:
    """Compare all and repair; messages sent before ``forgotten_before`` are lost for certain."""
    repairs = Repairs()
    # First what lets work go on, whatever the buckets hold; at the end what they told of.
    send_again(context, repairs, forgotten_before)
    Sweep(context, stuck).go_on(repairs, None)
    send_again(context, repairs, forgotten_before)
    repairs.results_copied = copies.go_on(context)
    return repairs


# -- buckets against index -------------------------------------------------------------------------


class Sweep:
    """One passage through both buckets and the index, to be gone on with slice by slice.

    Of what it has seen it keeps eight bytes an object, in order to know which rows have none.
    """

    def __init__(self, context: Context, stuck: set[str] | None = None) -> None:
        """Nothing is looked at yet; ``stuck`` names what could not be removed before."""
        self._context = context
        self._stuck = stuck if stuck is not None else set()
        self._repairs = Repairs()
        self._seen = array("Q")
        self._bytes = 0
        self._later: list[str] = []
        self._without_film: list[str] = []
        self._not_made: list[tuple[str, str]] = []
        self._steps = self._all()

    def go_on(self, repairs: Repairs, steps: int | None) -> bool:
        """Take so many steps (None: all that are left); return whether it is over.

        Raises:
            PosedropError: the store or the index is away; this sweep is over, begin another.
        """
        self._repairs = repairs
        taken = sum(1 for _ in islice(self._steps, steps))
        return taken != steps

    def _all(self) -> Iterator[None]:
        yield from self._videos()
        yield from self._results()
        # Runs before their videos: a video's record has its runs planned, unless they are known.
        for key in self._later:
            yield
            self._index_result(key)
        for key in self._without_film:
            yield
            self._index_without_film(key)
        for run, what in self._not_made:
            yield
            self._derive(run, what)
        self._seen = array("Q", sorted(self._seen))
        yield from self._gone_rules()
        yield from self._gone_files()
        yield from self._gone_runs()
        yield from self._given_up()
        yield from self._expired()

    def _videos(self) -> Iterator[None]:
        """Find uploads whose event never came."""
        bucket = self._context.settings.videos_bucket
        for found in self._context.storage.objects(bucket):
            yield
            self._repairs.videos_seen += 1
            self._bytes += found.size
            if found.key.endswith("/"):
                continue
            self._see(found.key)
            if layout.is_folder_rule(found.key):
                rule = self._context.index.rule(found.key)
                if rule is None or rule.etag != found.etag:
                    self._look_at_rule(found.key)
                continue
            row = self._context.index.file(layout.file_id_of(bucket, found.key))
            if not _is_known(row, found):
                with apart(self._context, f"{found.key} is not indexed") as trial:
                    self._index_video(found.key)
                self._repairs.damaged += trial.failed

    def _look_at_rule(self, key: str) -> None:
        try:
            waiting.rule_changed(self._context, key)
        except StorageError as error:
            # The models that it asks for may be away alone; the next sweep comes here again.
            log.warning("%s is looked at later: %s", key, error)
        else:
            self._repairs.rules_found += 1

    def _index_video(self, key: str) -> None:
        bucket = self._context.settings.videos_bucket
        file_id = layout.file_id_of(bucket, key)
        # The page of the listing may be older than what the index has been told since.
        there = self._context.storage.head(bucket, key)
        row = self._context.index.file(file_id)
        if there is None or _is_known(row, there) or _is_new_and_empty(self._context, there):
            return
        if row is not None and row.key == key and row.state != "expected":
            # What is there now counts, even where it is older than what was (a restored backup).
            self._context.index.file_removed(file_id)
        notify.video_arrived(self._context, key)
        self._repairs.uploads_found += 1

    def _results(self) -> Iterator[None]:
        """Find records that were never indexed."""
        requested = last_pending = ""
        for found in self._context.storage.objects(self._context.settings.results_bucket):
            yield
            self._repairs.results_seen += 1
            self._bytes += found.size
            match layout.parse_result_key(found.key):
                case layout.VideoObject(video=prefix, name=layout.VIDEO_RECORD):
                    self._see(f"{prefix}/")
                    row = self._row_of(prefix)
                    if row is None:
                        self._without_film.append(found.key)
                    elif row.state == "received":
                        self._later.append(found.key)
                case layout.PendingRequestObject(pending_id=pending_id):
                    last_pending = pending_id
                    if self._context.index.pending(pending_id) is None:
                        self._later.append(found.key)
                case layout.PendingOutcomeObject(pending_id=pending_id):
                    pending = self._context.index.pending(pending_id)
                    if pending_id == last_pending and (pending is None or pending.is_open):
                        self._later.append(found.key)
                case layout.RuleObject():
                    self._check_wrong_rule(found.key)
                case layout.RunObject(run=run, name=name, analysis_id=analysis_id):
                    if name == layout.REQUEST:
                        requested = run
                        self._see(run)
                    # A result whose request is gone is what a deletion left that was cut short.
                    if run == requested or name == "attempts/1.json":
                        self._compare_run(found.key, run, name, analysis_id)
                    self._compare_derived(run, name)

    def _compare_derived(self, run: str, name: str) -> None:
        """Note what was asked for of a run's poses; its outcome, if any, is the next of the two."""
        match layout.parse_derived(name):
            case (what, False):
                self._not_made.append((run, what))
            case (what, True) if self._not_made and self._not_made[-1] == (run, what):
                self._not_made.pop()

    def _derive(self, run: str, what: str) -> None:
        with apart(self._context, f"{what} of {run} is not sent again") as trial:
            self._repairs.exports_sent += derived.send_again(self._context, run, what)
        self._repairs.damaged += trial.failed

    def _check_wrong_rule(self, record: str) -> None:
        """Find a record of what is wrong with a rule that is mended or gone."""
        with apart(self._context, f"{record} is not looked at") as trial:
            wrong = rules.wrong(self._context, record)
            rule = self._context.index.rule(wrong.key) if wrong is not None else None
            if wrong is not None and (rule is None or rule.error is None):
                self._look_at_rule(wrong.key)
        self._repairs.damaged += trial.failed

    def _row_of(self, prefix: str) -> FileRow | None:
        bucket = self._context.settings.videos_bucket
        return self._context.index.file(layout.file_id_of_prefix(bucket, prefix))

    def _compare_run(self, key: str, run: str, name: str, analysis_id: str) -> None:
        if name not in {layout.REQUEST, layout.RESULT, "attempts/1.json"}:
            return
        row = self._context.index.place(analysis_id, run)
        is_news = {
            layout.REQUEST: row is None,
            layout.RESULT: row is not None and row.finished_at is None,
            "attempts/1.json": row is not None and row.state == "queued",
        }
        if is_news[name]:
            self._index_result(key)

    def _index_result(self, key: str) -> None:
        with apart(self._context, f"{key} is not indexed") as trial:
            try:
                notify.result_arrived(self._context, key)
            except RecordError:
                self._end_run(key)
                raise
            self._repairs.records_indexed += 1
        self._repairs.damaged += trial.failed or self._is_damaged(key)

    def _is_damaged(self, key: str) -> bool:
        match layout.parse_result_key(key):
            case layout.RunObject(run=run, analysis_id=analysis_id, name=layout.RESULT):
                row = self._context.index.place(analysis_id, run)
                return row is not None and row.error is not None and row.error.code == DAMAGED
            case _:
                return False

    def _end_run(self, key: str) -> None:
        """End the run of a request that can't be read, if it is not over and nobody is at it."""
        match layout.parse_result_key(key):
            case layout.RunObject(run=run, name=layout.REQUEST):
                seen = gpu_queue.look(self._context, run)
                if layout.RESULT not in seen.names and not seen.alive:
                    damaged.end(self._context, run)

    def _index_without_film(self, key: str) -> None:
        """List what was made of a film that was removed, and lies in the results."""
        with apart(self._context, f"{key} is not indexed") as trial:
            self._repairs.records_indexed += notify.film_may_be_gone(self._context, key)
        self._repairs.damaged += trial.failed

    def _gone_rules(self) -> Iterator[None]:
        """Find rules that were removed."""
        after: str | None = ""
        while after is not None:
            page = self._context.index.rules(after, _PAGE)
            for row in page:
                yield
                is_there = row.key == rules.DEFAULT or row.etag is None or self._saw(row.key)
                if not is_there:
                    self._look_at_rule(row.key)
            after = page[-1].key if len(page) == _PAGE else None

    def _gone_files(self) -> Iterator[None]:
        """Find rows whose object is gone, or never came."""
        for row in _all_files(self._context):
            yield
            if self._saw(row.key):
                continue
            if row.state == "film gone":
                self._forget_film(row)
                continue
            if row.state == "expected":
                if row.created_at < self._context.clock() - self._patience:
                    # Only a row: should it come all the same, its event makes it anew.
                    self._context.index.file_removed(row.file_id)
                    self._repairs.given_up += 1
                continue
            with apart(self._context, f"what was planned of {row.key} is not forgotten") as trial:
                # It may have come behind our back: this asks the bucket itself.
                notify.video_removed(self._context, row.key)
                now_there = self._context.index.file(row.file_id)
                self._repairs.files_gone += now_there is None or now_there.state == "film gone"
            self._repairs.undeletable += trial.failed

    def _forget_film(self, row: FileRow) -> None:
        """Drop the row of a film that is gone, if what was made of it is gone as well."""
        prefix = self._context.video_prefix(row.bucket, row.key)
        if self._saw(f"{prefix}/"):
            return
        record = layout.video_record(prefix)
        if self._context.storage.head(self._context.settings.results_bucket, record) is None:
            self._context.index.file_removed(row.file_id)
            self._repairs.files_gone += 1

    @property
    def _patience(self) -> timedelta:
        """How long after it was announced an upload may still come."""
        good = max(self._context.settings.presign_seconds, PARTS_SECONDS)
        return timedelta(seconds=good) + _ON_ITS_WAY

    def _given_up(self) -> Iterator[None]:
        """Find pending requests about videos that never came."""
        for pending in self._context.index.pending_open():
            yield
            file = self._context.index.file(pending.file_id)
            if file is not None and file.state != "expected":
                continue
            with apart(self._context, f"the request {pending.pending_id} stays pending") as trial:
                self._repairs.given_up += self._give_up(pending)
            self._repairs.undeletable += trial.failed

    def _give_up(self, pending: PendingRow) -> bool:
        storage, settings = self._context.storage, self._context.settings
        prefix = self._context.video_prefix(settings.videos_bucket, pending.key)
        request = layout.pending_request(prefix, pending.pending_id)
        there = storage.head(settings.results_bucket, request)
        if there is None:
            self._context.index.pending_removed(pending.pending_id)
            return False
        # By the store's clock: the request may be all that there is of what somebody wants.
        if storage.time(settings.results_bucket) - there.last_modified < self._patience:
            return False
        if storage.head(settings.videos_bucket, pending.key) is not None:
            return False
        outcome = layout.pending_outcome(prefix, pending.pending_id)
        storage.delete(settings.results_bucket, [request, outcome])
        error = RunError(
            code="never_uploaded",
            message=f"{pending.key} was announced, and not uploaded while its URL was good: "
            "upload it, and ask again",
        )
        self._context.index.pending_failed(pending.pending_id, error)
        return True

    def _expired(self) -> Iterator[None]:
        """Remove what is due, unless that is too much at once."""
        share = self._context.settings.expire_share
        try:
            plan = yield from retention.find(self._context, self._bytes, self._stuck)
        except StorageError as error:
            if error.code != "no_date":
                raise
            log.warning("nothing is removed: %s", error)
            return
        held = plan.is_held(share)
        if held:
            self._repairs.held_back += plan.count("age", "space", "orphan", "results")
            words = self._context.notices[retention.NOTICE] = plan.held_words(share)
            log.warning("%s", words)
        else:
            self._context.notices.pop(retention.NOTICE, None)
        for due in plan.due:
            if held and due.kind != "limit":
                continue
            with apart(self._context, f"{due.key} is not removed") as trial:
                self._repairs.expired += retention.remove(self._context, due)
            self._repairs.undeletable += trial.failed
            (self._stuck.add if trial.failed else self._stuck.discard)(due.name)
            for _ in range(_REMOVAL):
                yield

    def _gone_runs(self) -> Iterator[None]:
        """Find runs whose records are gone."""
        bucket = self._context.settings.results_bucket
        for row in chain(_all_analyses(self._context), all_places(self._context)):
            yield
            if self._saw(row.run):
                continue
            with apart(self._context, f"{row.run} is not looked at") as trial:
                if self._context.storage.head(bucket, f"{row.run}/{layout.REQUEST}") is None:
                    row_now = self._context.index.place_removed(row.analysis_id, row.run)
                    copies.moved(self._context, row_now)
                    self._repairs.runs_gone += 1
            self._repairs.damaged += trial.failed

    def _see(self, name: str) -> None:
        self._seen.append(_fingerprint(name))

    def _saw(self, name: str) -> bool:
        wanted = _fingerprint(name)
        place = bisect_left(self._seen, wanted)
        return place < len(self._seen) and self._seen[place] == wanted


def _fingerprint(name: str) -> int:
    # A run's folder ends like no video's key can, so the two share one list.
    return int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:8], "big")


def _is_new_and_empty(context: Context, found: ObjectInfo) -> bool:
    age = context.clock() - found.last_modified
    return found.size == 0 and age < timedelta(seconds=notify.EMPTY_SECONDS)


def _is_known(row: FileRow | None, found: ObjectInfo) -> bool:
    """Tell whether a row stands for an object, or for a newer one of the same file_id."""
    if row is None or row.state in {"expected", "film gone"}:
        return False
    if row.key != found.key:
        # Somebody put two files below one uploads/<file_id>/: the newer one has the id.
        return row.last_modified is not None and row.last_modified >= found.last_modified
    return row.etag == found.etag


# -- index against queue ---------------------------------------------------------------------------


def send_again(context: Context, repairs: Repairs, forgotten_before: datetime | None) -> None:
    """Plan what was forgotten, and send what nobody is at and no message waits for.

    What is lost of the gpu queue waits for its group's turn again, and is sent with the others.
    Messages can't be asked for by what they are about. But when fewer wait in a queue than there is
    to do, some are lost, and as many are sent again: those first that were sent the longest ago.
    One too many does no harm, it finds the run claimed or over.
    """
    _plan_forgotten(context, repairs)
    todo = [*_received(context), *_unfinished(context, repairs)]
    for name in (queue.CPU, queue.GPU):
        mine = [each for each in todo if each.queue == name]
        missing = len(mine) - (queue.ready(context.broker, name) if mine else 0)
        for each in sorted(mine, key=lambda each: each.created_at):
            if each.is_lost_for_certain(forgotten_before):
                missing -= _try_to_send(context, repairs, each)
        for each in sorted(mine, key=lambda each: each.sent_at):
            late = each.sent_at < context.clock() - each.patience
            if missing > 0 and late and not each.is_lost_for_certain(forgotten_before):
                missing -= _try_to_send(context, repairs, each)
    gpu_queue.send_next(context, context.clock())
    workers.sweep(context.storage, context.settings)
    context.index.forget_events(context.clock() - _REMEMBERED)


@dataclass(frozen=True)
class ToDo:
    """Something that a message should be waiting for."""

    row: FileRow | AnalysisRow
    patience: timedelta
    queue: str

    @property
    def created_at(self) -> datetime:
        """When it was asked for."""
        return self.row.created_at

    @property
    def sent_at(self) -> datetime:
        """When its last message was sent."""
        return self.row.enqueued_at or self.row.created_at

    def is_lost_for_certain(self, forgotten_before: datetime | None) -> bool:
        """Tell whether no message can be there: none was sent, or all were forgotten since."""
        if self.row.enqueued_at is None:
            return True
        return forgotten_before is not None and self.row.enqueued_at < forgotten_before

    def send(self, context: Context, repairs: Repairs) -> bool:
        """Send its message; False if there is no need, as the bucket knows."""
        row = self.row
        if isinstance(row, FileRow):
            if row.etag is None or _was_ingested(context, row):
                return False
            context.enqueue_ingest(row.file_id, row.bucket, row.key, row.etag)
            repairs.ingests_sent += 1
            return True
        seen = gpu_queue.look(context, row.run)
        if seen.alive or layout.RESULT in seen.names or layout.REQUEST not in seen.names:
            return False
        if damaged.end(context, row.run):
            repairs.damaged += 1
            return False
        if layout.INFERENCE in seen.names:
            context.enqueue_render(row.analysis_id, row.run)
        else:
            context.index.gpu_waits(row.analysis_id, context.clock())
        repairs.runs_sent += 1
        return True


def _try_to_send(context: Context, repairs: Repairs, todo: ToDo) -> bool:
    sent = False
    with apart(context, f"{todo.row.key} is not sent again") as trial:
        sent = todo.send(context, repairs)
    repairs.damaged += trial.failed
    return sent


def _was_ingested(context: Context, row: FileRow) -> bool:
    """Index a video's record that no event told of, or no longer; False if there is none."""
    key = layout.video_record(context.video_prefix(row.bucket, row.key))
    results = context.settings.results_bucket
    try:
        record = context.storage.read_whole_record(results, key, VideoRecord)
    except RecordError as error:  # by a newer worker
        context.storage.report(error)
        return True
    if record is None or record.video.etag != row.etag:
        return False  # one that is damaged is written anew
    notify.result_arrived(context, key)
    return True


def _received(context: Context) -> Iterator[ToDo]:
    lease = context.settings.lease_seconds
    for row in _all_files(context, state="received"):
        yield ToDo(row, timedelta(seconds=lease + (row.size or 0) / _SLOWEST_INGEST), queue.CPU)


def _unfinished(context: Context, repairs: Repairs) -> Iterator[ToDo]:
    """Yield the runs that a message should wait for: sent, or left by a worker that fell silent.

    Those whose turn has not come have none.
    """
    lease = timedelta(seconds=context.settings.lease_seconds)
    for row in context.index.analyses_under_way():
        if row.state == "queued":
            yield ToDo(row, lease, queue.GPU)
            continue
        left = None
        with apart(context, f"{row.run} is not looked at") as trial:
            seen = gpu_queue.look(context, row.run)
            if not gpu_queue.FOUND.isdisjoint(seen.names):
                context.index.gpu_over(row.analysis_id)
            if layout.RESULT not in seen.names and not seen.alive:
                left = queue.CPU if layout.INFERENCE in seen.names else queue.GPU
        repairs.damaged += trial.failed
        if left is not None:
            yield ToDo(row, lease, left)


def _plan_forgotten(context: Context, repairs: Repairs) -> None:
    """Plan what was asked for, or ruled, while nobody was there to plan it."""
    with apart(context, "wrong rules are not looked at again") as trial:
        waiting.try_again(context)
    repairs.damaged += trial.failed
    for _ in range(_WAITING // waiting.SLICE):
        planned = waiting.go_on(context)
        if planned == 0:
            break
        repairs.requests_planned += planned
    forgotten = {row.file_id: row for row in context.index.files_unplanned()}
    for pending in context.index.pending_open():
        file = context.index.file(pending.file_id)
        if file is not None and file.state in {"ready", "refused"}:
            forgotten[file.file_id] = file
    lately = context.clock() - timedelta(seconds=context.settings.lease_seconds)
    for file in forgotten.values():
        with apart(context, f"{file.key} is not planned") as trial:
            video = context.video_record(file.bucket, file.key)
            if video is not None and video.video.etag == file.etag:
                plan.plan_runs(context, video)
                repairs.requests_planned += 1
            elif file.etag is not None and (file.enqueued_at or file.created_at) < lately:
                # Somebody has cleared it away: it is made again.
                context.enqueue_ingest(file.file_id, file.bucket, file.key, file.etag)
                repairs.ingests_sent += 1
        repairs.damaged += trial.failed


class AbandonedParts:
    """Uploads in parts that nobody went on with: what they hold costs space, and no list shows it.

    Some stores remove them by themselves, others keep them for ever.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next = context.clock()

    def go_on(self, repairs: Repairs) -> None:
        """Give up those that were begun long ago, once in a while."""
        if self._context.clock() < self._next:
            return
        self._next = self._context.clock() + _PARTS_EVERY
        settings = self._context.settings
        for bucket in (settings.videos_bucket, settings.results_bucket):
            # A key from before this was done has no leave to list them: no reason to count that.
            with apart(self._context, f"old uploads in parts stay in {bucket}"):
                self._go_through(bucket, repairs)

    def _go_through(self, bucket: str, repairs: Repairs) -> None:
        storage = self._context.storage
        before = storage.time(self._context.settings.results_bucket) - _PARTS_LEFT
        for upload in list(storage.unfinished_uploads(bucket)):
            if upload.begun >= before:
                continue
            with apart(self._context, f"an upload of {upload.key} is not given up") as trial:
                storage.abort_upload(bucket, upload)
                repairs.given_up += 1
            repairs.undeletable += trial.failed


# -- rows ------------------------------------------------------------------------------------------


def _all_files(context: Context, state: FileState | None = None) -> Iterator[FileRow]:
    return all_rows(lambda cursor: context.index.files(state=state, cursor=cursor, limit=_PAGE))


def _all_analyses(context: Context, state: RunState | None = None) -> Iterator[AnalysisRow]:
    return all_rows(lambda cursor: context.index.analyses(state=state, cursor=cursor, limit=_PAGE))
