"""The sweep: buckets against index, slice by slice, for what events missed."""

from __future__ import annotations

import hashlib
import logging
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import chain, islice

from handlers import gpu_queue
from handlers.apart import apart
from handlers.context import Context
from handlers.events import follow
from handlers.runs import copies, damaged, derived, record_kinds, rules, waiting
from handlers.runs.record_kinds import RecordKind
from handlers.upkeep import retention
from handlers.upkeep.old_records import OldRecords
from handlers.upkeep.repairs import Repairs
from handlers.upkeep.rows import PAGE, all_analyses, all_files, all_places
from posedrop.buckets import layout
from posedrop.buckets.presigned import PARTS_SECONDS
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import RecordError, StorageError
from posedrop.index.index import FileRow, IndexBusyError, PendingRow
from posedrop.index.rows import DAMAGED
from posedrop.transport.queue import QueueError

log = logging.getLogger(__name__)


#: How long after its URLs' end an upload may still be on its way: what was begun in time goes on.
_ON_ITS_WAY = timedelta(days=1)
#: Of so many steps of a sweep each removal takes the place, as it asks the store as often.
_REMOVAL = 100
#: A video that is to be indexed takes as long as to look at so many that are.
_DEAR = 10
#: So often a sweep is gone on with at one place that alone fails; where it can't be passed, one
#: begun anew finds at least what came before it.
_TRIES = 10


class Sweep:
    """One passage through both buckets and the index, to be gone on with slice by slice.

    Of what it has seen it keeps eight bytes an object, in order to know which rows have none. Where
    it was interrupted by an error it goes on: millions of objects take it hours, in which a store
    fails now and then.
    """

    def __init__(self, context: Context, stuck: set[str] | None = None) -> None:
        """Nothing is looked at yet; ``stuck`` names what could not be removed before."""
        self._context = context
        self._stuck = stuck if stuck is not None else set()
        self._repairs = Repairs()
        self._seen = array("Q")
        self._bytes = 0
        self._later: deque[str] = deque()
        self._without_film: deque[str] = deque()
        self._not_made: deque[tuple[str, str]] = deque()
        self._compared: deque[tuple[str, str]] = deque()
        #: By kind: the run, or pending request, of the last record that was seen.
        self._last: dict[RecordKind, str] = {}
        self._old: OldRecords | None = None
        #: What is left to do, in this order; and behind which key of its bucket the first goes on.
        self._stages: deque[Callable[[], Iterator[None]]] = deque(
            [
                self._videos,
                self._results,
                self._noted,
                self._gone_rules,
                self._gone_files,
                self._gone_runs,
                self._given_up,
                self._old_ones,
                self._expired,
            ]
        )
        self._after = ""
        self._steps = self._all()
        self._failed_at: tuple[int, str, int] | None = None
        self._failures = 0

    @property
    def is_stuck(self) -> bool:
        """Whether it failed so often at one place that another one is to begin anew."""
        return self._failures >= _TRIES

    def go_on(self, repairs: Repairs, steps: int | None) -> bool:
        """Take ``steps`` steps of the sweep (None: all that are left); return whether it is over.

        Raises:
            PosedropError: the store or the index is away; called again, it goes on where it was.
        """
        self._repairs = repairs
        try:
            taken = sum(1 for _ in islice(self._steps, steps))
        except BaseException as error:
            self._steps = self._all()  # a generator that raised is over
            if not self._is_away(error):
                place = (len(self._stages), self._after, self._waiting)
                self._failures = self._failures + 1 if place == self._failed_at else 1
                self._failed_at = place
            raise
        return taken != steps

    def _is_away(self, error: BaseException) -> bool:
        """Tell whether the store, the index or the broker fails, and not this place alone."""
        if isinstance(error, StorageError):
            try:
                self._context.storage.listing(self._context.settings.results_bucket, layout.CLOCK)
            except StorageError:
                return True
        return isinstance(error, IndexBusyError | QueueError)

    def _all(self) -> Iterator[None]:
        while self._stages:
            yield from self._stages[0]()
            self._stages.popleft()
            self._after = ""

    @property
    def _waiting(self) -> int:
        """How much of what was noted is left to be done."""
        films, runs = len(self._later) + len(self._without_film), len(self._compared)
        return films + runs + len(self._not_made)

    def _objects(self, bucket: str) -> Iterator[ObjectInfo]:
        """Yield the objects that are left of a bucket; one is done with when the next is asked for.

        Counted then: of an object at which the sweep is interrupted and goes on, once.
        """
        for found in self._context.storage.objects(bucket, after=self._after):
            yield found
            self._bytes += found.size
            self._after = found.key

    def _noted(self) -> Iterator[None]:
        """Do what the results' listing has told of."""
        # Runs before their videos: a video's record has its runs planned, unless they are known.
        while self._later:
            yield
            self._index_result(self._later[0])
            self._later.popleft()
        while self._without_film:
            yield
            self._index_without_film(self._without_film[0])
            self._without_film.popleft()
        while self._compared:
            yield
            self._forget_comparison(*self._compared[0])
            self._compared.popleft()
        while self._not_made:
            yield
            self._derive(*self._not_made[0])
            self._not_made.popleft()
        self._seen = array("Q", sorted(self._seen))

    def _old_ones(self) -> Iterator[None]:
        """Remove old records of notices and batches."""
        if self._old is not None:
            yield from self._old.remove(self._context, self._repairs)

    def _videos(self) -> Iterator[None]:
        """Find uploads whose event never came."""
        bucket = self._context.settings.videos_bucket
        for found in self._objects(bucket):
            yield
            self._repairs.videos_seen += 1
            if layout.is_folder_mark(found.key, found.size):
                continue
            self._see(found.key)
            if layout.is_folder_rule(found.key):
                rule = self._context.index.rule(found.key)
                if rule is None or rule.etag != found.etag:
                    self._look_at_rule(found.key)
                continue
            row = self._context.index.file(self._context.file_id(found.key))
            if not _is_known(row, found):
                with apart(self._context, f"{found.key} is not indexed") as trial:
                    self._repairs.uploads_found += _index_video(self._context, found.key)
                self._repairs.damaged += trial.failed

    def _look_at_rule(self, key: str) -> None:
        try:
            waiting.rule_changed(self._context, key)
        except StorageError as error:
            # The models that it asks for may be away alone; the next sweep comes here again.
            log.warning("%s is looked at later: %s", key, error)
        else:
            self._repairs.rules_found += 1

    def _results(self) -> Iterator[None]:
        """Find records that were never indexed."""
        bucket = self._context.settings.results_bucket
        if not self._after:
            with suppress(StorageError):  # without the store's time nothing is said to be old
                self._old = OldRecords(self._context.storage.time(bucket))
        for found in self._objects(bucket):
            yield
            self._repairs.results_seen += 1
            key = layout.parse_result_key(found.key)
            if self._old is not None:
                self._old.look(found, key)
            if isinstance(key, layout.RuleObject):
                self._check_wrong_rule(found.key)
                continue
            if isinstance(key, layout.RunObject):
                self._compare_derived(key.run, key.name)
            kind = record_kinds.kind_of(key)
            if key is None or kind is None:
                continue
            self._last[kind] = record_kinds.owner_of(key)
            # A result whose request is gone is what a deletion left that was cut short.
            if kind.behind is None or self._last.get(kind.behind) == self._last[kind]:
                self._compare(kind, key, found.key)

    def _compare(self, kind: RecordKind, key: layout.ResultObject, name: str) -> None:
        """Index a record that the index does not know: that of a run now, others after all runs."""
        if isinstance(key, layout.VideoObject):
            self._see(layout.video_record(key.video))
            if self._row_of(key.video) is None:
                self._without_film.append(name)
                return
        if kind is record_kinds.REQUEST:
            self._see(record_kinds.owner_of(key))
        if not kind.is_news(self._context, key):
            return
        if isinstance(key, layout.RunObject):
            self._index_result(name)
        else:
            self._later.append(name)

    def _compare_derived(self, run: str, name: str) -> None:
        """Note what was asked for of a run's poses; its outcome, if any, is the next of the two."""
        match layout.parse_derived(name):
            case (what, False):
                other = layout.compared_with(what)
                if other is not None and self._context.index.analysis(other) is None:
                    self._compared.append((run, other))
                self._not_made.append((run, what))
            case (what, True) if self._not_made and self._not_made[-1] == (run, what):
                self._not_made.pop()

    def _derive(self, run: str, what: str) -> None:
        with apart(self._context, f"{what} of {run} is not sent again") as trial:
            self._repairs.exports_sent += derived.send_again(self._context, run, what)
        self._repairs.damaged += trial.failed

    def _forget_comparison(self, run: str, other: str) -> None:
        """Delete what a run keeps of its comparison with one that is gone."""
        with apart(self._context, f"the comparison of {run} with {other} stays") as trial:
            if self._context.index.analysis(other) is None:
                gone = derived.delete_comparison(self._context, run, other)
                self._repairs.comparisons_gone += gone
        self._repairs.undeletable += trial.failed

    def _check_wrong_rule(self, record: str) -> None:
        """Find a record of what is wrong with a rule that is mended or gone."""
        with apart(self._context, f"{record} is not looked at") as trial:
            wrong = rules.wrong(self._context, record)
            rule = self._context.index.rule(wrong.key) if wrong is not None else None
            if wrong is not None and (rule is None or rule.error is None):
                self._look_at_rule(wrong.key)
        self._repairs.damaged += trial.failed

    def _row_of(self, prefix: str) -> FileRow | None:
        return self._context.index.file(self._context.file_id_of_prefix(prefix))

    def _index_result(self, key: str) -> None:
        with apart(self._context, f"{key} is not indexed") as trial:
            try:
                follow.result_arrived(self._context, key)
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
        """List a film that was removed, if its results are there."""
        with apart(self._context, f"{key} is not indexed") as trial:
            self._repairs.records_indexed += follow.film_may_be_gone(self._context, key)
        self._repairs.damaged += trial.failed

    def _gone_rules(self) -> Iterator[None]:
        """Find rules that were removed."""
        after: str | None = ""
        while after is not None:
            page = self._context.index.rules(after, PAGE)
            for row in page:
                yield
                is_there = row.key == rules.DEFAULT or row.etag is None or self._saw(row.key)
                if not is_there:
                    self._look_at_rule(row.key)
            after = page[-1].key if len(page) == PAGE else None

    def _gone_files(self) -> Iterator[None]:
        """Find rows whose object is gone, or never came."""
        for row in all_files(self._context):
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
                follow.video_removed(self._context, row.key)
                now_there = self._context.index.file(row.file_id)
                self._repairs.files_gone += now_there is None or now_there.state == "film gone"
            self._repairs.undeletable += trial.failed

    def _forget_film(self, row: FileRow) -> None:
        """Drop the row of a film that is gone, if what was made of it is gone as well."""
        record = layout.video_record(self._context.video_prefix(row.bucket, row.key))
        if self._saw(record):
            return
        if self._context.storage.head(self._context.settings.results_bucket, record) is None:
            self._context.index.file_removed(row.file_id)
            self._repairs.files_gone += 1

    @property
    def _patience(self) -> timedelta:
        """How long after POST /upload an upload may still come."""
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
        """Remove films and runs that are due, unless they are too many at once."""
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
        for row in chain(all_analyses(self._context), all_places(self._context)):
            yield
            if self._saw(row.run):
                continue
            with apart(self._context, f"{row.run} is not looked at") as trial:
                if self._context.storage.head(bucket, layout.Run(row.run).request) is None:
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


def find_videos(context: Context, prefix: str, after: str, most: int) -> str | None:
    """Index videos below a prefix whose event never came, or was not followed yet.

    Args:
        context: the handlers' tools.
        prefix: of their keys.
        after: the key to begin behind.
        most: how many objects are looked at.

    Returns:
        The key to go on behind; None: there are no more.

    Raises:
        StorageError: the store is away.
    """
    seen = 0
    for found in context.storage.objects(context.settings.videos_bucket, prefix, after):
        seen += 1
        is_mark = layout.is_folder_mark(found.key, found.size)
        if not is_mark and not layout.is_folder_rule(found.key):
            row = context.index.file(context.file_id(found.key))
            if not _is_known(row, found):
                seen += _DEAR  # asked about, and told
                with apart(context, f"{found.key} is not indexed"):
                    _index_video(context, found.key)
        if seen >= most:
            return found.key
    return None


def _index_video(context: Context, key: str) -> bool:
    bucket = context.settings.videos_bucket
    file_id = context.file_id(key)
    # The page of the listing may be older than what the index has been told since.
    there = context.storage.head(bucket, key)
    row = context.index.file(file_id)
    if there is None or _is_known(row, there) or _is_new_and_empty(context, there):
        return False
    if row is not None and row.key == key and row.state != "expected":
        # What is there now counts, even where it is older than what was (a restored backup).
        context.index.file_removed(file_id)
    follow.video_arrived(context, key)
    return True


def _fingerprint(name: str) -> int:
    # A run's folder and a film's record end like hardly any video's key, so all share one list.
    return int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:8], "big")


def _is_new_and_empty(context: Context, found: ObjectInfo) -> bool:
    age = context.clock() - found.last_modified
    return found.size == 0 and age < timedelta(seconds=follow.EMPTY_SECONDS)


def _is_known(row: FileRow | None, found: ObjectInfo) -> bool:
    """Tell whether a row stands for an object, or for a newer one of the same file_id."""
    if row is None or row.state in {"expected", "film gone"}:
        return False
    if row.key != found.key:
        # Somebody put two files below one uploads/<file_id>/: the newer one has the id.
        return row.last_modified is not None and row.last_modified >= found.last_modified
    return row.etag == found.etag
