"""Lists of files and runs, page by page, and the search for parts of their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlite_utils import Database

from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.listing import LAST_CHARACTER, LAST_NUMBER, MAX_PAGE, Page, Where, to_cursor
from posedrop.index.rows import AnalysisRow, FileRow

#: In how many names that hold a query's trigrams a search looks for all of it, for one page.
MAX_LOOKED_AT = 100_000
#: So many files are picked by their keys, and sorted.
_FEW = 50_000
#: How many of them, the newest, are sorted where another order is asked for.
MAX_SORTED = 10_000

_Listed = TypeVar("_Listed", FileRow, AnalysisRow)


class Lists(IndexFile):
    """The part of the index that answers lists."""

    def _page(
        self,
        kind: type[_Listed],
        table: str,
        where: Where,
        query: str | None,
        limit: int,
        how: str = "",
    ) -> Page[_Listed]:
        """Return a page of a list; ``how`` tells SQLite which index to take.

        Only the numbers of the rows are picked and sorted, the rows themselves are read after.
        """
        limit = max(1, min(limit, MAX_PAGE))
        if query is not None and query.strip():
            return self._search(kind, table, where, query, limit)
        picked = (
            f"SELECT f.number FROM {table} AS f {how} WHERE {where.sql()}"  # noqa: S608
            f" ORDER BY {where.listed('f', ' DESC')} LIMIT ?"
        )
        with self._read() as db:
            found = _in_order(db, table, where, picked, [*where.values, limit + 1])
        return _page_of(kind, where, found, limit)

    def _few_begin_with(self, prefix: str) -> bool:
        """Tell whether so few files' keys begin so that picking and sorting them all is quick."""
        found = self._value(
            "SELECT count(*) FROM (SELECT 1 FROM uploaded_file WHERE key >= ? AND key < ? LIMIT ?)",
            (prefix, f"{prefix}{LAST_CHARACTER}", _FEW),
        )
        return int(found) < _FEW

    def _search(
        self, kind: type[_Listed], table: str, where: Where, query: str, limit: int
    ) -> Page[_Listed]:
        """Return a page of what a query finds; so many names are looked at, however few have it.

        Full text gives them in order of their number, the newest first.
        """
        match = where.search(query)
        if match is None:
            return Page([], None)
        likely = (
            f"FROM {table}_fts WHERE {table}_fts MATCH ? AND rowid < ? ORDER BY rowid DESC LIMIT"
        )
        is_by_number = len(where.columns) == 1
        most = MAX_LOOKED_AT if is_by_number else MAX_SORTED
        picked = (
            f"SELECT f.number FROM (SELECT rowid, name {likely} {most}) AS s"  # noqa: S608
            f" CROSS JOIN {table} AS f WHERE f.number = s.rowid AND {where.sql()}"
        )
        if not is_by_number:
            picked += f" ORDER BY {where.listed('f', ' DESC')}"
        asked: tuple[object, ...] = (match, where.before[0] if is_by_number else LAST_NUMBER)
        with self._read() as db:
            values = [*asked, *where.values, limit + 1]
            found = _in_order(db, table, where, f"{picked} LIMIT ?", values)
            page = _page_of(kind, where, found, limit)
            if page.cursor is None and is_by_number:
                sql = f"SELECT rowid {likely} 1 OFFSET {MAX_LOOKED_AT - 1}"
                last = db.conn.execute(sql, asked).fetchone()
                page = Page(page.rows, to_cursor(last[0]) if last is not None else None)
        return page


def _in_order(
    db: Database, table: str, where: Where, picked: str, values: Sequence[object]
) -> list[Any]:
    return db.conn.execute(
        f"SELECT f.* FROM ({picked}) AS page JOIN {table} AS f ON f.number = page.number"  # noqa: S608
        f" ORDER BY {where.listed('f', ' DESC')}",
        values,
    ).fetchall()


def _page_of(kind: type[_Listed], where: Where, found: Sequence[Any], limit: int) -> Page[_Listed]:
    cursor = where.cursor_behind(found[limit - 1]) if len(found) > limit else None
    return Page([schema.decode(kind, row) for row in found[:limit]], cursor)
