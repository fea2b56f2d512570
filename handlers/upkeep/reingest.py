"""Looking at refused videos anew: those that an older posedrop refused, and whatever is asked for.

A refusal is taken back by removing its video.json, the attempts before it, and what it answered to
those who had asked for an analysis. Then the video is one that was received and not ingested yet,
and what is lost on the way is found by the reconciler.
"""

from __future__ import annotations

from handlers import changes
from handlers.apart import apart
from handlers.context import Context
from handlers.runs import pending
from posedrop.api.files import Reingested, ReingestedPage, ReingestRequest
from posedrop.buckets import layout
from posedrop.buckets.records.videos import INGEST_VERSION, VideoRecord
from posedrop.errors import RecordError
from posedrop.index.index import FileRow
from posedrop.transport import queue

#: How many refusals a round of the reconciler looks at, and how many of those videos it sends to
#: the cpu queue, where nothing else waits in it; else one, so that it comes to an end.
SEEN = 200
SENT = 5
#: How many videos one POST /reingest sends; `next` goes on with the others.
PAGE = 100


def reingest(context: Context, wanted: ReingestRequest) -> ReingestedPage:
    """Have refused videos looked at anew, page by page; GET /upload/<file_id> says what comes."""
    page = context.index.files(
        state="refused", prefix=wanted.prefix or None, cursor=wanted.cursor, limit=PAGE
    )
    items = [Reingested.model_validate(row) for row in page.rows if _again(context, row)]
    return ReingestedPage(items=items, next=page.cursor)


class OldRefusals:
    """One passage through the refusals, a few a round, for those of an older ingest.

    A video's new record names the new version: whatever is started anew, none is sent twice. Nor
    is one that a worker of the older posedrop takes, and refuses as before.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cursor: str | None = None
        self._sent: set[str] = set()
        """The file ids of those behind the cursor that were sent, or can't be."""
        self._over = False

    def go_on(self) -> int:
        """Look at the next refusals; return how many videos were sent to be looked at anew.

        Raises:
            PosedropError: the store, the index or the broker is away; the next round tries again.
        """
        if self._over:
            return 0
        context = self._context
        room = SENT if queue.ready(context.broker, queue.CPU) == 0 else 1
        page = context.index.files(state="refused", cursor=self._cursor, limit=SEEN)
        sent = 0
        for row in page.rows:
            if sent == room:
                return sent
            if row.file_id in self._sent:
                continue
            again = False
            with apart(context, f"{row.key} is not looked at anew") as trial:
                again = self._is_old(row) and _again(context, row)
            if again or trial.failed:
                self._sent.add(row.file_id)
            sent += again
        self._cursor, self._over = page.cursor, page.cursor is None
        self._sent.clear()
        return sent

    def _is_old(self, row: FileRow) -> bool:
        context = self._context
        key = layout.video_record(context.video_prefix(row.bucket, row.key))
        results = context.settings.results_bucket
        try:
            record = context.storage.read_whole_record(results, key, VideoRecord)
        except RecordError:  # of a newer ingest
            return False
        return record is not None and record.ingest_version < INGEST_VERSION


def _again(context: Context, row: FileRow) -> bool:
    """Take back a refusal, and have the video ingested; False: it is not refused any more."""
    # The index first: of a process that ends here the bucket still has the refusal, which is then
    # indexed again, by whoever looks for what was received and never ingested.
    if row.etag is None or not context.index.file_looked_at_anew(row.file_id, row.etag):
        return False
    prefix = context.video_prefix(row.bucket, row.key)
    results = context.settings.results_bucket
    pending.reopen_refused(context, prefix, row.etag)
    record = layout.video_record(prefix)
    context.storage.delete(results, [*context.ingest_attempts(row.file_id), record])
    context.enqueue_ingest(row.file_id, row.bucket, row.key, row.etag)
    changes.note("looked at anew", file_id=row.file_id, key=row.key)
    return True
