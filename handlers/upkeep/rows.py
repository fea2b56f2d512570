"""Rows of the index, all of one sort: upkeep looks at each, and holds a page of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from handlers.context import Context
from posedrop.buckets.records.videos import FileState
from posedrop.index.index import AnalysisRow, FileRow, Page

Row = TypeVar("Row", FileRow, AnalysisRow)

#: Rows that are asked for at a time.
PAGE = 1000


def all_files(context: Context, state: FileState | None = None) -> Iterator[FileRow]:
    """Yield the rows of all files, or of those in one state."""
    return _all(lambda cursor: context.index.files(state=state, cursor=cursor, limit=PAGE))


def all_analyses(context: Context) -> Iterator[AnalysisRow]:
    """Yield the rows of all runs, each where it is read."""
    return _all(lambda cursor: context.index.analyses(cursor=cursor, limit=PAGE))


def all_places(context: Context) -> Iterator[AnalysisRow]:
    """Yield the folders of runs that are read in another one."""
    after = ""
    while page := context.index.places_after(after, PAGE):
        yield from page
        after = page[-1].run


def _all(page_at: Callable[[str | None], Page[Row]]) -> Iterator[Row]:
    cursor = None
    while True:
        page = page_at(cursor)
        yield from page.rows
        if page.cursor is None:
            return
        cursor = page.cursor
