"""Index against queue: work that nobody is at, and no message waits for, is sent again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from handlers import gpu_queue, workers
from handlers.apart import apart
from handlers.context import Context
from handlers.events import follow
from handlers.runs import damaged, plan, waiting
from handlers.upkeep.repairs import Repairs
from handlers.upkeep.rows import all_files
from posedrop.buckets import layout
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import RecordError
from posedrop.index.index import AnalysisRow, FileRow
from posedrop.transport import queue

#: An ingest reads the whole object: slower than this, in bytes a second, it is taken for lost.
_SLOWEST_INGEST = 10e6
#: The handlers' clock may be set back by so little without making what was sent look lost.
_SET_BACK = timedelta(minutes=1)
#: How long an event is kept, to know it when it comes again; MinIO retries for days.
_REMEMBERED = timedelta(days=30)
#: How many videos that wait for a rule are planned in a round; the follower does it between events.
_WAITING = 1000


def send_again(context: Context, repairs: Repairs, forgotten_before: datetime | None) -> None:
    """Plan videos that were forgotten, and send again the work that no message waits for.

    What is lost of the gpu queue waits for its group's turn again, and is sent with the others.
    Messages can't be asked for by what they are about. But when fewer wait in a queue than there is
    to do, some are lost, and as many are sent again: those first that were sent the longest ago.
    One too many does no harm, it finds the run claimed or over. Of what was sent at a time that is
    still to come, the clock having been set back since, nobody knows how long ago that was: it is
    late at once.
    """
    _plan_forgotten(context, repairs)
    todo = [*_received(context), *_unfinished(context, repairs)]
    for name in (queue.CPU, queue.GPU):
        mine = [each for each in todo if each.queue == name]
        now = context.clock()
        missing = len(mine) - (queue.ready(context.broker, name) if mine else 0)
        for each in sorted(mine, key=lambda each: each.created_at):
            if each.is_lost_for_certain(forgotten_before, now):
                missing -= _try_to_send(context, repairs, each)
        for each in sorted(mine, key=lambda each: each.sent_at):
            lost = each.is_lost_for_certain(forgotten_before, now)
            if missing > 0 and each.is_late(now) and not lost:
                missing -= _try_to_send(context, repairs, each)
    gpu_queue.send_next(context)
    workers.sweep(context.storage, context.settings)
    context.index.forget_events(context.clock() - _REMEMBERED)


@dataclass(frozen=True)
class ToDo:
    """An ingest or a run that a message should be waiting for."""

    row: FileRow | AnalysisRow
    patience: timedelta
    queue: str

    @property
    def created_at(self) -> datetime:
        """When the work was asked for."""
        return self.row.created_at

    @property
    def sent_at(self) -> datetime:
        """When the last message for the work was sent."""
        return self.row.enqueued_at or self.row.created_at

    def is_late(self, now: datetime) -> bool:
        """Tell whether the last message was sent so long ago that it may be lost."""
        return not -_SET_BACK <= now - self.sent_at <= self.patience

    def is_lost_for_certain(self, forgotten_before: datetime | None, now: datetime) -> bool:
        """Tell whether no message can be there: none was sent, or all were forgotten since.

        Where messages are forgotten with the process, one from a time that is still to come counts
        as sent by an earlier process. Sent again, it has the time that it is now.
        """
        sent = self.row.enqueued_at
        if sent is None:
            return True
        if forgotten_before is None:
            return False
        return sent < forgotten_before or sent > now + _SET_BACK

    def send(self, context: Context, repairs: Repairs) -> bool:
        """Send the message for the work; False if there is no need, as the bucket knows."""
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
            gpu_queue.go_on(context, row.analysis_id, row.run, seen.names)
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
    if record is None or record.video.etag != row.etag or not record.has_its_id:
        return False  # one that is damaged is written anew
    follow.result_arrived(context, key)
    return True


def _received(context: Context) -> Iterator[ToDo]:
    lease = context.settings.lease_seconds
    for row in all_files(context, state="received"):
        yield ToDo(row, timedelta(seconds=lease + (row.size or 0) / _SLOWEST_INGEST), queue.CPU)


def _unfinished(context: Context, repairs: Repairs) -> Iterator[ToDo]:
    """Yield the runs that a message should wait for: sent, or left by a worker that fell silent.

    Those whose turn has not come have none.
    """
    lease = timedelta(seconds=context.settings.lease_seconds)
    for row in context.index.analyses_under_way():
        if row.state == "queued":
            waits = context.index.gpu_needed(row.analysis_id, row.run)
            yield ToDo(row, lease, queue.GPU if waits else queue.CPU)
            continue
        left = None
        with apart(context, f"{row.run} is not looked at") as trial:
            seen = gpu_queue.look(context, row.run)
            if not gpu_queue.FOUND.isdisjoint(seen.names):
                context.index.gpu_over(row.analysis_id)
            if layout.RESULT not in seen.names and not seen.alive:
                is_light = layout.INFERENCE in seen.names or not gpu_queue.needs_network(
                    context, row.run, seen.names
                )
                left = queue.CPU if is_light else queue.GPU
        repairs.damaged += trial.failed
        if left is not None:
            yield ToDo(row, lease, left)


def _plan_forgotten(context: Context, repairs: Repairs) -> None:
    """Plan videos whose pending requests or rules were never followed."""
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
