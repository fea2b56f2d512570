"""Lists of files and runs, page by page, and the search for parts of their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlite_utils import Database

from posedrop.index import schema
from posedrop.index.database import IndexFile
from posedrop.index.listing import (
    BY_NUMBER,
    LAST_CHARACTER,
    LAST_NUMBER,
    MAX_PAGE,
    Page,
    Sorting,
    Where,
    to_cursor,
)
from posedrop.index.rows import AnalysisRow, FileRow
from posedrop.index.search import storable

#: In how many names that hold a query's trigrams a search looks for all of it, for one page.
MAX_LOOKED_AT = 100_000
#: At how many rows a list looks for those that all its filters let through, for one page.
MAX_WALKED = 50_000
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
        values: tuple[object, ...]
        behind, values = where.behind_cursor("f")
        picked = (
            f"SELECT f.number FROM {table} AS f {how} WHERE {where.sql()} AND {behind}"  # noqa: S608
            f" ORDER BY {where.sorting.ordered('f')} LIMIT ?"
        )
        with self._read() as db:
            found = _in_order(db, table, where, picked, [*where.values, *values, limit + 1])
        return _page_of(kind, where, found, limit)

    def _walk(
        self,
        kind: type[_Listed],
        table: str,
        where: Where,
        limit: int,
        columns: Sequence[str],
        within: tuple[str, Sequence[object]] = ("TRUE", ()),
    ) -> Page[_Listed]:
        """Return a page of a list by the order's own index, which has all that it is filtered by.

        So many entries of it are looked at, however few are let through: then a cursor goes on.

        Args:
            columns: what the filters ask about.
            within: a condition on the index's first columns, and its values.
        """
        limit = max(1, min(limit, MAX_PAGE))
        values: tuple[object, ...]
        sorting: Sorting = where.sorting
        behind, values = where.behind_cursor("w")
        names = ", ".join(dict.fromkeys(("number", *columns, *sorting.columns)))
        walk = (
            f"FROM {table} AS w INDEXED BY {sorting.index} WHERE {within[0]} AND {behind}"
            f" ORDER BY {sorting.ordered('w')} LIMIT"
        )
        walked: list[object] = [*within[1], *values]
        picked = (
            f"SELECT f.number FROM (SELECT {names} {walk} {MAX_WALKED}) AS f"  # noqa: S608
            f" WHERE {where.sql()} LIMIT ?"
        )
        with self._read() as db:
            found = _in_order(db, table, where, picked, [*walked, *where.values, limit + 1])
            page = _page_of(kind, where, found, limit)
            if page.cursor is None:
                sql = f"SELECT {sorting.listed('w')} {walk} 1 OFFSET {MAX_WALKED - 1}"
                last = db.conn.execute(sql, walked).fetchone()
                page = Page(page.rows, where.cursor_behind(last) if last is not None else None)
        return page

    def _counts_below(
        self, kind: type[_Listed], table: str, index: str, prefix: str, limit: int, bad: str
    ) -> tuple[dict[str, int], list[_Listed]]:
        """Return how many rows whose keys begin so are in each state, and some in a bad one.

        Args:
            kind: of the rows.
            table: that has them.
            index: of it, by key.
            prefix: of the keys.
            limit: so many rows are counted, and no further ones.
            bad: the state of which rows are returned.
        """
        below = (
            f"SELECT number, state FROM {table} INDEXED BY {index}"  # noqa: S608
            " WHERE key >= ? AND key < ? LIMIT ?"
        )
        values: list[object] = [storable(prefix), storable(f"{prefix}{LAST_CHARACTER}"), limit]
        with self._read() as db:
            sql = f"SELECT state, count(*) FROM ({below}) GROUP BY state"  # noqa: S608
            counts = {row[0]: int(row[1]) for row in db.conn.execute(sql, values)}
        found = self._rows(
            kind,
            f"SELECT t.* FROM ({below}) AS b JOIN {table} AS t USING (number)"  # noqa: S608
            " WHERE b.state = ? LIMIT 1000",
            [*values, bad],
        )
        return counts, found

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
        is_by_number = where.sorting is BY_NUMBER
        values: tuple[object, ...] = ()
        behind = "TRUE"
        if not is_by_number:
            behind, values = where.behind_cursor("f")
        most = MAX_LOOKED_AT if is_by_number else MAX_SORTED
        picked = (
            f"SELECT f.number FROM (SELECT rowid, name {likely} {most}) AS s"  # noqa: S608
            f" CROSS JOIN {table} AS f WHERE f.number = s.rowid AND {where.sql()} AND {behind}"
        )
        if not is_by_number:
            picked += f" ORDER BY {where.sorting.ordered('f')}"
        asked: tuple[object, ...] = (match, where.before if is_by_number else LAST_NUMBER)
        with self._read() as db:
            wanted = [*asked, *where.values, *values, limit + 1]
            found = _in_order(db, table, where, f"{picked} LIMIT ?", wanted)
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
        f" ORDER BY {where.sorting.ordered('f')}",
        values,
    ).fetchall()


def _page_of(kind: type[_Listed], where: Where, found: Sequence[Any], limit: int) -> Page[_Listed]:
    cursor = where.cursor_behind(found[limit - 1]) if len(found) > limit else None
    return Page([schema.decode(kind, row) for row in found[:limit]], cursor)
