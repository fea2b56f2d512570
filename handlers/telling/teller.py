"""Telling: each alias is told of the ends that it was named for, at least once each.

What is to be told stands in the index with the end itself, in one transaction; before the first
try there is a record in the bucket, beside what it is about, which says how often it was tried and
how it went. So a notice that is repeated after a crash has the id that it had, and none is sent
again when the index is made anew. Each alias has a thread and a process of its own: one that is
slow or away holds up no other.

Programs (webhooks) are told of each run, and of each batch. People (apprise) are told of a batch
at its end; of runs that are in none, or in one that does not name them, once no other of the same
folder is under way: one digest. What is in a digest is a record before it is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from handlers.context import Context
from handlers.telling import notices
from handlers.telling.receiver import Child, Receiver
from posedrop.buckets import layout
from posedrop.buckets.records.telling import Digest, Told
from posedrop.errors import PosedropError, StorageError
from posedrop.index.rows import AnalysisRow, TellingRow

log = logging.getLogger(__name__)

#: Of what ended longer ago nobody is told; a day later its records go (upkeep/old_records.py).
TOLD_WITHIN = timedelta(days=90)
#: After so many tries that failed, nobody tries again; a notice says so.
MAX_TRIES = 10
#: The longest pause between two tries.
_MOST = timedelta(hours=6)
#: So many runs are told of in one digest; and how long its first waits for the last of its folder.
DIGEST_RUNS, _DIGEST_WAITS = 1000, timedelta(hours=6)
#: A folder is taken to be through once none of its runs has ended for so long.
_QUIET = timedelta(seconds=20)
_PAUSE_SECONDS, _AT_ONCE = 2.0, 100
#: A process that sends is ended once it has had nothing to send for so long: it holds some 45 MB.
_IDLE_SECONDS = 60.0


class Teller:
    """The threads that tell, one for each alias of the settings."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._receivers = {
            alias: Child(context.settings, alias) for alias in sorted(_known(context))
        }
        self._threads = [
            threading.Thread(target=self._run, args=(alias,), name=f"tell {alias}", daemon=True)
            for alias in self._receivers
        ]
        self._threads.append(
            threading.Thread(target=self._run_unknown, name="tell nobody", daemon=True)
        )

    def start(self) -> None:
        """Begin with what was not told before."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what is being sent is sent again later, with the same id."""
        self._stop.set()
        for receiver in self._receivers.values():
            receiver.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)

    def _run(self, alias: str) -> None:
        failed, busy_at = 0, time.monotonic()
        while not self._stop.is_set():
            try:
                told = go_on(self._context, alias, self._receivers[alias], self._stop)
                failed = failed + 1 if told is False else 0
                if told is not None:
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at > _IDLE_SECONDS:
                    self._receivers[alias].close()
            except PosedropError as error:  # the store or the index is away
                log.warning("%s is told later: %s", alias, error)
            except Exception:
                log.exception("%s is told later", alias)
            # Where one notice fails, the others wait a little, each with its own count.
            first = self._context.settings.notify_retry_seconds / 5
            more = min(60.0, first * 2 ** min(failed, 5)) if failed else _PAUSE_SECONDS
            self._stop.wait(more)

    def _run_unknown(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            try:
                give_up_unknown(self._context)
                note_given_up(self._context)
            except PosedropError as error:
                log.warning("unknown aliases are looked at later: %s", error)
            except Exception:
                log.exception("unknown aliases are looked at later")


def _known(context: Context) -> frozenset[str]:
    return frozenset(context.settings.notify_urls)


def time_by_both(context: Context) -> datetime | None:
    """Return the time by this machine's clock or the store's, whichever is behind.

    What is old by it is not so because one of them runs ahead. None: the store does not tell.

    Raises:
        StorageError: the store is away.
    """
    try:
        return min(context.clock(), context.storage.time(context.settings.results_bucket))
    except StorageError as error:
        if error.code != "no_date":
            raise
        return None


def go_on(
    context: Context, alias: str, receiver: Receiver, stop: threading.Event | None = None
) -> bool | None:
    """Tell an alias what is due; False: one was not taken, the others wait; None: nothing is due.

    Raises:
        PosedropError: the store or the index is away.
    """
    stop = stop or threading.Event()
    now = context.clock()
    many = _AT_ONCE if receiver.is_webhook else 10_000
    rows = context.index.tellings_due(alias, now, many)
    if rows and now - rows[0].since > TOLD_WITHIN:
        surely = time_by_both(context)
        if surely is not None:
            context.index.tellings_forgotten(surely - TOLD_WITHIN)
            rows = context.index.tellings_due(alias, now, many)
    told: bool | None = None
    singly = [row for row in rows if receiver.is_webhook or row.event == "batch.over"]
    for row in singly:
        if stop.is_set():
            return None
        told = _tell_one(context, row, receiver)
        if told is False:
            return False
    gathered = [] if receiver.is_webhook else [row for row in rows if row.event == "run.over"]
    for folder, group in _by_folder(context, gathered).items():
        if stop.is_set():
            return None
        told = _tell_together(context, alias, folder, group, receiver)
        if told is False:
            return False
    return told


# -- one end, one notice ---------------------------------------------------------------------------


def _tell_one(context: Context, row: TellingRow, receiver: Receiver) -> bool | None:
    """Tell of one end; None: there is no need any more."""
    if row.event == "batch.over":
        batch = context.index.batch(row.subject)
        if batch is None or batch.over is None:
            context.index.telling_over([row.told_id])
            return None
        if receiver.is_webhook:
            title, body = "", notices.of_batch(batch, batch.over)
        else:
            title, body = notices.batch_in_words(batch, batch.over)
    else:
        run = context.index.analysis(row.subject)
        if run is None or run.finished_at is None:
            context.index.telling_over([row.told_id])
            return None
        title, body = "", notices.of_run(run)
    return _tell(context, [row], row.told_id, lambda id_: receiver.send(id_, title, body))


def _tell(
    context: Context,
    rows: Sequence[TellingRow],
    told_id: str,
    send: Callable[[str], str | None],
) -> bool | None:
    """Send a notice that has its record, and note how that went: the bucket first."""
    bucket, key, first = context.settings.results_bucket, layout.told(told_id), rows[0]
    ids = [row.told_id for row in rows]
    told = context.storage.read_whole_record(bucket, key, Told)
    if told is None:
        told = Told(
            told_id=told_id,
            alias=first.alias,
            event="batch.over" if first.event == "batch.over" else "run.over",
            subject=first.subject,
            changed_at=context.clock(),
        )
        context.storage.write(bucket, key, told.to_json())
    if told.state == "sent":
        context.index.telling_over(ids)
        return None
    asked_again = first.why is not None and first.tries == 0
    if told.state == "given_up" and not asked_again:
        context.index.telling_given_up(ids, told.tries, told.error or "")
        return None
    error = send(f"msg_{told_id}")
    now = context.clock()
    tries = (0 if asked_again else told.tries) + (error is not None)
    state = "sent" if error is None else "given_up" if tries >= MAX_TRIES else "due"
    update = {"state": state, "tries": tries, "error": error, "changed_at": now}
    context.storage.write(bucket, key, told.model_copy(update=update).to_json())
    ids_extra = {"alias": first.alias, "event": first.event, "told_id": told_id}
    if error is None:
        context.index.telling_over(ids)
        log.info("told", extra=ids_extra)
        return True
    log.warning("%s was not told, try %d: %s", first.alias, tries, error, extra=ids_extra)
    if state == "given_up":
        context.index.telling_given_up(ids, tries, error)
        note_given_up(context)
    else:
        context.index.telling_put_off(ids, tries, now + pause(context, tries), error)
    return False


def pause(context: Context, tries: int) -> timedelta:
    """Return how long is waited after so many tries that failed."""
    return min(_MOST, timedelta(seconds=context.settings.notify_retry_seconds * 3 ** (tries - 1)))


# -- several ends, one digest ----------------------------------------------------------------------


def _by_folder(
    context: Context, rows: Sequence[TellingRow]
) -> dict[str, list[tuple[TellingRow, AnalysisRow]]]:
    """Return tellings with their runs, by the folder of their films; those of batches are over."""
    found: dict[str, list[tuple[TellingRow, AnalysisRow]]] = {}
    for row in rows:
        run = context.index.analysis(row.subject)
        if run is None or run.finished_at is None or _is_in_batch(context, run, row.alias):
            context.index.telling_over([row.told_id])
            continue
        found.setdefault(folder_of(run.key), []).append((row, run))
    return found


def _is_in_batch(context: Context, run: AnalysisRow, alias: str) -> bool:
    """Tell whether an alias is told of a run by the end of its batch; of some none was named."""
    batch = context.index.batch(run.batch) if run.batch is not None else None
    return run.batch is not None and (batch is None or alias in batch.request.notify)


def folder_of(key: str) -> str:
    """Return the folder of which a film's runs are told together, with its slash."""
    if key.startswith("uploads/"):
        return "uploads/"
    return key[: key.rfind("/") + 1]


def _tell_together(
    context: Context,
    alias: str,
    folder: str,
    group: Sequence[tuple[TellingRow, AnalysisRow]],
    receiver: Receiver,
) -> bool | None:
    """Tell of the runs of one folder, once none of them is under way."""
    begun = [pair for pair in group if pair[0].digest is not None]
    if begun:
        digest_id = begun[0][0].digest or ""
    else:
        if not _is_through(context, alias, folder, group):
            return None
        # What is in a digest already, by the bucket: the index was made anew.
        group = [pair for pair in group if not _is_in_digest(context, pair[0])]
        if not group:
            return None
        digest_id = layout.make_id("digest", group[0][0].told_id)
    digest = _digest(context, alias, digest_id, [run.analysis_id for _, run in group])
    members = set(digest.runs)
    mine = [pair for pair in group if pair[1].analysis_id in members]
    if not begun:
        for row, _ in mine:
            _mark(context, row, digest_id)
        context.index.telling_in_digest([row.told_id for row, _ in mine], digest_id)
    runs = [run for _, run in mine]
    title, body = notices.runs_in_words(folder, runs)
    rows = [row for row, _ in mine]
    if not rows:
        return None
    return _tell(context, rows, digest_id, lambda id_: receiver.send(id_, title, body))


def _is_in_digest(context: Context, row: TellingRow) -> bool:
    """Tell whether a run is in a digest by its own record; then the index is told so."""
    key = layout.told(row.told_id)
    told = context.storage.read_whole_record(context.settings.results_bucket, key, Told)
    if told is None or told.digest is None:
        return False
    context.index.telling_in_digest([row.told_id], told.digest)
    return True


def _is_through(
    context: Context,
    alias: str,
    folder: str,
    group: Sequence[tuple[TellingRow, AnalysisRow]],
) -> bool:
    now = context.clock()
    since = [row.since for row, _ in group]
    if now - min(since) >= _DIGEST_WAITS or len(group) >= DIGEST_RUNS:
        return True
    return now - max(since) >= _QUIET and not context.index.is_to_be_told(alias, folder)


def _digest(context: Context, alias: str, digest_id: str, runs: list[str]) -> Digest:
    """Return the record of a digest, by its first run; the first that was made of it counts."""
    bucket, key = context.settings.results_bucket, layout.digest(digest_id)
    made = Digest(
        digest_id=digest_id, alias=alias, runs=runs[:DIGEST_RUNS], created_at=context.clock()
    )
    if context.storage.create(bucket, key, made.to_json()):
        return made
    return context.storage.read_whole_record(bucket, key, Digest) or made


def _mark(context: Context, row: TellingRow, digest_id: str) -> None:
    told = Told(
        told_id=row.told_id,
        alias=row.alias,
        event="run.over",
        subject=row.subject,
        digest=digest_id,
        changed_at=context.clock(),
    )
    key = layout.told(row.told_id)
    context.storage.write(context.settings.results_bucket, key, told.to_json())


# -- what can't be told ----------------------------------------------------------------------------


def give_up_unknown(context: Context) -> None:
    """Give up what is for aliases that the server does not have; a notice says so."""
    for alias in set(context.index.telling_aliases()) - _known(context):
        rows = context.index.tellings_due(alias, context.clock(), _AT_ONCE)
        words = "the server has no such alias: POSEDROP_NOTIFY_URLS has them"
        context.index.telling_given_up([row.told_id for row in rows], 0, words)


def note_given_up(context: Context) -> None:
    """Say, for a person, what was given up."""
    found = context.index.tellings_given_up()
    for about in [name for name in context.notices if name.startswith("notify ")]:
        if about.removeprefix("notify ") not in found:
            context.notices.pop(about, None)
    for alias, (count, why) in found.items():
        context.notices[f"notify {alias}"] = (
            f"{count} notices for {alias!r} were given up: {why}. `posedrop notify test {alias}` "
            f"tries one, `posedrop notify again {alias}` sends them"
        )


def test(context: Context, alias: str) -> str | None:
    """Send an alias a notice that says nothing; return what is wrong, None if it was taken."""
    receiver = Child(context.settings, alias)
    try:
        notice_id = f"msg_test_{layout.make_id('test', alias, str(time.time_ns()))}"
        words = "This is a test: posedrop can reach you."
        body = notices.test_event(words) if receiver.is_webhook else words
        return receiver.send(notice_id, "posedrop: test", body)
    finally:
        receiver.close()
