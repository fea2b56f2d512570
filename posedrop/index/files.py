"""The index of files: what of a video is known, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from posedrop.buckets.records.videos import FileState, VideoRecord
from posedrop.index import rows, schema
from posedrop.index.listing import FILES, LAST_CHARACTER, FileOrder, Page, Where
from posedrop.index.pages import Lists
from posedrop.index.rows import (
    FileRow,
)
from posedrop.index.search import storable


class Files(Lists):
    """The part of the index that knows the videos."""

    #: Called with what ingest found out, where that is news to the index.
    on_video: Callable[[VideoRecord], None]

    def expect_file(
        self,
        file_id: str,
        bucket: str,
        key: str,
        now: datetime,
        *,
        size: int | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Note that somebody may upload a file; changes nothing once it has arrived."""
        expected = rows.new_file(file_id, bucket, key, "expected", now)
        self._merge_file(replace(expected, size=size, metadata=metadata))

    def file_received(
        self,
        bucket: str,
        key: str,
        file_id: str,
        etag: str,
        size: int,
        metadata: dict[str, str],
        last_modified: datetime,
    ) -> tuple[FileRow | None, FileRow]:
        """Note that an object is there, as the store describes it; return the row before and after.

        An object with another ETag than the one known replaces it unless it is older: then it is
        old news. To go back to an older object on purpose, call ``file_removed`` first.
        """
        moment = rows.whole_seconds(last_modified)
        received = rows.new_file(file_id, bucket, key, "received", moment)
        return self._merge_file(
            replace(received, etag=etag, size=size, metadata=metadata, last_modified=moment)
        )

    def file_ingested(self, record: VideoRecord) -> None:
        """Note what ingest found out about a video; nothing, of an older version of it."""
        old, new = self._merge_file(rows.ingested_file(record))
        if old is None or (old.etag, old.updated_at) != (new.etag, new.updated_at):
            self.on_video(record)

    def file_removed(self, file_id: str) -> None:
        """Forget a file."""
        with self._write() as db:
            db.execute("DELETE FROM uploaded_file WHERE file_id = ?", (file_id,))

    def film_gone(self, record: VideoRecord) -> None:
        """Note that the film of a video.json is not there, unless another has its file_id."""
        with self._write() as db:
            if self.file(record.video.file_id) is None:
                gone = replace(rows.ingested_file(record), state="film gone", planned=True)
                schema.put(db, "uploaded_file", "file_id", gone)

    def file_looked_at_anew(self, file_id: str, etag: str) -> bool:
        """Take back the refusal of a file with this ETag; False: it is not refused."""
        with self._write() as db:
            changed = db.execute(
                "UPDATE uploaded_file SET state = 'received', refusal_reason = NULL,"
                " refusal_message = NULL WHERE file_id = ? AND etag = ? AND state = 'refused'",
                (file_id, etag),
            ).rowcount
            return bool(changed > 0)

    def file_planned(
        self,
        file_id: str,
        etag: str,
        waits_for: str | None = None,
        seen: Mapping[str, str | None] | None = None,
    ) -> None:
        """Note that these bytes of a file were planned by its rule, or which rule it waits for.

        Args:
            waits_for: as :class:`FileRow` has it.
            seen: the ETags of the rules that were looked at, None where there was none. Of a file
                that waits, this is not taken for its last plan if other ones are known by now: what
                they let be planned has passed this file by.
        """
        seen = seen or {}
        with self._write() as db:
            news = False
            if waits_for is not None and seen:
                places = ", ".join("?" * len(seen))
                known = db.conn.execute(
                    f"SELECT key, etag FROM rule WHERE key IN ({places})",  # noqa: S608
                    [storable(key) for key in seen],
                ).fetchall()
                news = any(row["etag"] not in {None, seen.get(row["key"])} for row in known)
            db.execute(
                "UPDATE uploaded_file SET planned = ?, waits_for = ?"
                " WHERE file_id = ? AND etag = ?",
                (not news, storable(waits_for), file_id, etag),
            )

    def file_unplanned(self, file_id: str) -> None:
        """Note that a file is to be planned again, as that has failed."""
        with self._write() as db:
            db.execute("UPDATE uploaded_file SET planned = 0 WHERE file_id = ?", (file_id,))

    def files_waiting(
        self, prefix: str, after: str, limit: int, rule: str | None = None
    ) -> list[FileRow]:
        """Return files that wait for a rule, or for this one ``rule``; by key, behind ``after``."""
        only = "AND waits_for = ?" if rule is not None else ""
        return self._rows(
            FileRow,
            "SELECT * FROM uploaded_file WHERE waits_for IS NOT NULL"  # noqa: S608
            f" AND key >= ? AND key < ? AND key > ? {only} ORDER BY key LIMIT ?",
            (prefix, f"{prefix}{LAST_CHARACTER}", after, *([rule] if rule else []), limit),
        )

    def files_unplanned(self, limit: int = 1000) -> list[FileRow]:
        """Return files that were ingested and not planned, oldest first."""
        return self._rows(
            FileRow,
            "SELECT * FROM uploaded_file WHERE state = 'ready' AND NOT planned"
            " ORDER BY number LIMIT ?",
            (limit,),
        )

    def file_enqueued(self, file_id: str, now: datetime) -> None:
        """Note when a file was last handed to the queue."""
        self._enqueued("uploaded_file", "file_id", file_id, now)

    def file(self, file_id: str) -> FileRow | None:
        """Return a file by its id."""
        return self._row(FileRow, "SELECT * FROM uploaded_file WHERE file_id = ?", (file_id,))

    def file_by_key(self, bucket: str, key: str) -> FileRow | None:
        """Return a file by the name of its object."""
        return self._row(
            FileRow,
            "SELECT * FROM uploaded_file WHERE key = ? AND bucket = ? ORDER BY number LIMIT 1",
            (key, bucket),
        )

    def files_with_content(self, sha256: str) -> list[FileRow]:
        """Return the files that have this content, the one that had it first before all."""
        return self._rows(
            FileRow, "SELECT * FROM uploaded_file WHERE sha256 = ? ORDER BY number", (sha256,)
        )

    def files(
        self,
        *,
        state: FileState | None = None,
        prefix: str | None = None,
        query: str | None = None,
        order: FileOrder = "newest",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[FileRow]:
        """Return files in an order, whose key begins with ``prefix`` and has all words."""
        where = Where(cursor, FILES[order])
        where.equal("state", state)
        if prefix:
            where.begins(prefix)
        if order == "name" and not (query and query.strip()):
            within = where.key_range(prefix or "")
            return self._walk(FileRow, "uploaded_file", where, limit, ("key", "state"), within)
        if not prefix:
            return self._page(FileRow, "uploaded_file", where, query, limit)
        # A rare prefix is picked from the index of keys and sorted; a common one is met soon
        # enough in order of age. SQLite can't know which is which.
        how = "NOT INDEXED" if state is None else "INDEXED BY file_by_state"
        if self._few_begin_with(prefix):
            how = "INDEXED BY file_by_key"
        return self._page(FileRow, "uploaded_file", where, query, limit, how)

    def file_counts_below(self, prefix: str, limit: int) -> tuple[dict[str, int], list[FileRow]]:
        """Return how many files whose keys begin so are in each state, and some refused ones."""
        by = "file_by_key"
        return self._counts_below(FileRow, "uploaded_file", by, prefix, limit, "refused")

    def _merge_file(self, new: FileRow) -> tuple[FileRow | None, FileRow]:
        with self._write() as db:
            old = schema.fetch(
                db, FileRow, "SELECT * FROM uploaded_file WHERE file_id = ?", new.file_id
            )
            merged = rows.newer_file(old, new) if old is not None else new
            if merged != old:
                schema.put(db, "uploaded_file", "file_id", merged)
            return old, merged
