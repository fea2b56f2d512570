"""Lists of the index: pages, their cursors, and conditions made of what a person typed. Pure."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from posedrop.errors import BadRequestError
from posedrop.index import search
from posedrop.index.search import storable

MAX_PAGE = 1000
LAST_NUMBER = 2**63 - 1
LAST_CHARACTER = "\U0010ffff"
_ENDS_PLAINLY = re.compile(r".*[ -~]", re.DOTALL)

Row = TypeVar("Row")
#: Of runs: the newest first; or those of the lowest score first, of one score the newest, and last
#: those without one.
Order = Literal["newest", "quality"]
#: By what each order goes, falling; SQLite keeps an index of it.
COLUMNS: dict[Order, tuple[str, ...]] = {"newest": ("number",), "quality": ("badness", "newness")}


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, in order; ``cursor`` asks for those after them, None if there are none.

    A search that looked at many names for few rows gives those, and a cursor to go on with.
    """

    rows: list[Row]
    cursor: str | None


class Where:
    """Conditions with their values, and an order; a cursor says behind what a page begins."""

    def __init__(self, cursor: str | None, order: Order = "newest") -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self._prefix: re.Match[str] | None = None
        self.columns = COLUMNS[order]
        self.before = (math.inf,) * (len(self.columns) - 1) + (LAST_NUMBER,)
        if cursor is not None:
            self.before = from_cursor(cursor, len(self.columns))
        if order != "newest" or cursor is not None:
            places = ", ".join("?" * len(self.columns))
            self.add(f"({self.listed('f')}) < ({places})", *self.before)

    def add(self, condition: str, *values: object) -> None:
        """Add a condition with a value for each of its question marks."""
        self._conditions.append(condition)
        self.values += [storable(value) for value in values]

    def equal(self, column: str, value: str | None) -> None:
        """Ask for one value of a column; None asks for nothing."""
        if value is not None:
            self.add(f"f.{column} = ?", value)

    def begins(self, prefix: str) -> None:
        """Ask for keys that begin with ``prefix``.

        A search can use it too, and is spared from looking at the key of each of its hits: as far
        as its last letter that no later one changes.
        """
        self.add("f.key >= ? AND f.key < ?", prefix, f"{prefix}{LAST_CHARACTER}")
        self._prefix = _ENDS_PLAINLY.match(prefix)

    def search(self, query: str) -> str | None:
        """Ask for names, spelled as ``s.name``, with a query inside; None if it has no word.

        Returns:
            What to ask the full text for names that may have it. Each part is quoted, so that none
            is taken for FTS5's own language.
        """
        ways = search.asked(query)
        if not ways:
            return None
        inside = [" AND ".join(["instr(s.name, ?)"] * len(way)) for way in ways]
        self.add(f"({' OR '.join(inside)})", *(text for way in ways for text in way))
        begun = [search.spelled(self._prefix[0])] if self._prefix else []
        both = [[t for texts in (way, begun) if (t := search.trigrams(texts))] for way in ways]
        return " OR ".join(f"({' AND '.join(parts)})" for parts in both)

    def sql(self) -> str:
        """Return all conditions."""
        return " AND ".join(self._conditions) or "TRUE"

    def listed(self, table: str, ending: str = "") -> str:
        """Return the columns of the order, as SQL."""
        return ", ".join(f"{table}.{column}{ending}" for column in self.columns)

    def cursor_behind(self, row: Mapping[str, Any]) -> str:
        """Return the cursor for what comes after a row."""
        return to_cursor(*(row[column] for column in self.columns))


def to_cursor(*values: float) -> str:
    """Return the cursor for what comes after the row with these values in an order's columns.

    Args:
        values: its number last, which is a whole one.
    """
    text = ",".join(map(repr, values))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(cursor: str, columns: int = 1) -> tuple[float, ...]:
    """Return what a cursor was made of.

    Raises:
        BadRequestError: it is none, or one of another order.
    """
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        *others, last = text.split(",")
        before, number = [float(each) for each in others], int(last)
    except (ValueError, binascii.Error):
        before, number = [], -1
    is_one = len(before) == columns - 1 and all(map(math.isfinite, before))
    if not is_one or not 0 <= number <= LAST_NUMBER:
        raise BadRequestError(
            "This is not a cursor that a list in this order has answered.", field="cursor"
        )
    return (*before, number)
