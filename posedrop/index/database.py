"""The SQLite file of the index: a connection a thread, reads, and one writer at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from posedrop.index import schema
from posedrop.index.listing import Row
from posedrop.index.schema import IndexBusyError
from posedrop.index.search import storable

Changes = frozenset[tuple[str, str]]


class IndexFile:
    """The index's file as all its parts use it, from any number of threads and processes."""

    #: Called after each transaction of this process, in the thread that made it, with what it
    #: changed: (table, id), at most :data:`schema.MOST_TOLD` of them.
    on_change: Callable[[Changes], None]
    #: Whether the tables are there whose changes are told.
    _is_made = False

    def __init__(self, path: Path, timeout: float) -> None:
        """Nothing is opened yet; ``timeout``: seconds to wait for other writers."""
        self._path = path
        self._timeout = timeout
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in list(self._open):
                connection.db.close()
            self._open.clear()
        self._local = threading.local()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all that this thread tells the index inside of it one transaction: all, or nothing.

        Others who write wait for its end, so nothing slow (a store, a broker) belongs inside.
        """
        with self._write():
            yield

    @property
    def _db(self) -> Database:
        """Return this thread's own connection."""
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _Connection(schema.connect(str(self._path), self._timeout))
            self._local.connection = connection
            if self._is_made:
                schema.tell_changes(connection.db, connection.changes)
            with self._lock:
                self._open.add(connection)
        return connection.db

    @contextmanager
    def _read(self) -> Iterator[Database]:
        with schema.translated():
            yield self._db

    @contextmanager
    def _write(self) -> Iterator[Database]:
        """Hold the write lock from the first read on, so that nothing changes in between."""
        with schema.translated():
            db = self._db
            if db.conn.in_transaction:
                # Inside of ``together``, which ends it.
                yield db
                return
            with self._turn():
                changed = self._local.connection.changes
                changed.clear()
                db.conn.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.conn.execute("COMMIT")
                except BaseException:
                    db.rollback()
                    raise
            if changed:
                self.on_change(frozenset(changed))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for this process' other writers: SQLite would sleep and ask again, up to 0.1 s."""
        if not self._writing.acquire(timeout=self._timeout):
            raise IndexBusyError("The index is written by another thread; try again.")
        try:
            yield
        finally:
            self._writing.release()

    def _rows(self, kind: type[Row], sql: str, values: Sequence[object] = ()) -> list[Row]:
        with self._read() as db:
            found = db.conn.execute(sql, [storable(v) for v in values]).fetchall()
        return [schema.decode(kind, row) for row in found]

    def _row(self, kind: type[Row], sql: str, values: Sequence[object]) -> Row | None:
        return next(iter(self._rows(kind, sql, values)), None)

    def _value(self, sql: str, values: Sequence[object]) -> Any:
        with self._read() as db:
            return db.conn.execute(sql, [storable(v) for v in values]).fetchone()[0]

    def _enqueued(self, table: str, identity: str, value: str, now: datetime) -> None:
        # Even where that is earlier than what is there: the clock was set back since.
        with self._write() as db:
            db.execute(
                f"UPDATE {table} SET enqueued_at = ? WHERE {identity} = ?",  # noqa: S608
                (schema.to_text(now), value),
            )


class _Connection:
    """A connection that is closed with its thread, and does not wait for the garbage collector."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.changes: set[tuple[str, str]] = set()
        """The rows that the present transaction has changed."""

    def __del__(self) -> None:
        self.db.close()
