"""Lists of the index: pages, their cursors, and conditions made of what a person typed. Pure."""

from __future__ import annotations

import base64
import binascii
import json
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
#: those without one; or by the names of their videos, as the store sorts keys.
Order = Literal["newest", "quality", "name"]
FileOrder = Literal["newest", "name"]


@dataclass(frozen=True, slots=True)
class Sorting:
    """The columns by which a list goes; SQLite keeps an index that begins with them."""

    columns: tuple[str, ...]
    kinds: tuple[type, ...]
    rising: bool = False
    index: str = ""
    """The index that has, behind those columns, all that the list is filtered by."""

    @property
    def direction(self) -> str:
        """How SQL calls it."""
        return "ASC" if self.rising else "DESC"

    def listed(self, table: str, ending: str = "") -> str:
        """Return the columns, as SQL."""
        return ", ".join(f"{table}.{column}{ending}" for column in self.columns)

    def ordered(self, table: str) -> str:
        """Return what SQL orders by."""
        return self.listed(table, f" {self.direction}")


BY_NUMBER = Sorting(("number",), (int,))
RUNS: dict[Order, Sorting] = {
    "newest": BY_NUMBER,
    "quality": Sorting(("badness", "newness"), (float, int), index="analysis_by_quality_listed"),
    "name": Sorting(("key", "newness"), (str, int), rising=True, index="analysis_by_name_listed"),
}
#: As the newest first, for a list that several things are asked of at once.
NEWEST_LISTED = Sorting(("newness",), (int,), index="analysis_listed")
FILES: dict[FileOrder, Sorting] = {
    "newest": BY_NUMBER,
    "name": Sorting(("key", "bucket"), (str, str), rising=True, index="file_by_key"),
}


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, in order; ``cursor`` asks for those after them, None if there are none.

    A search that looked at many names for few rows gives those, and a cursor to go on with.
    """

    rows: list[Row]
    cursor: str | None


class Where:
    """Conditions with their values, and an order; a cursor says behind what a page begins."""

    def __init__(self, cursor: str | None, sorting: Sorting = BY_NUMBER) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self._prefix: re.Match[str] | None = None
        self.sorting: Sorting = sorting
        self.behind: tuple[object, ...] | None = None
        if cursor is not None:
            self.behind = from_cursor(cursor, sorting)
        elif sorting.kinds[0] is float:  # else SQLite does not take the index of the order
            self.behind = (math.inf, LAST_NUMBER)

    @property
    def before(self) -> object:
        """The number behind which a list by numbers begins."""
        return LAST_NUMBER if self.behind is None else self.behind[0]

    def behind_cursor(self, table: str) -> tuple[str, tuple[object, ...]]:
        """Return the condition that a row comes after the cursor, and its values."""
        if self.behind is None:
            return "TRUE", ()
        places = ", ".join("?" * len(self.behind))
        than = ">" if self.sorting.rising else "<"
        return f"({self.sorting.listed(table)}) {than} ({places})", self.behind

    def key_range(self, prefix: str) -> tuple[str, tuple[object, ...]]:
        """Return the condition that a key begins so and is not before the cursor's, and its values.

        Of a list by keys: SQLite goes into its index by one lower bound alone.
        """
        first = storable(prefix)
        if self.behind is not None:
            first = max(first, self.behind[0])
        return "w.key >= ? AND w.key < ?", (first, storable(f"{prefix}{LAST_CHARACTER}"))

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
        """Return all conditions but for the cursor's."""
        return " AND ".join(self._conditions) or "TRUE"

    def cursor_behind(self, row: Mapping[str, Any]) -> str:
        """Return the cursor for what comes after a row."""
        return to_cursor(*(row[column] for column in self.sorting.columns))


def to_cursor(*values: object) -> str:
    """Return the cursor for what comes after the row with these values in an order's columns."""
    text = json.dumps(values, separators=(",", ":"))[1:-1]
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(cursor: str, sorting: Sorting = BY_NUMBER) -> tuple[Any, ...]:
    """Return what a cursor was made of.

    Raises:
        BadRequestError: it is none, or one of another order.
    """
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        values = json.loads(f"[{text}]")
        if len(values) == len(sorting.kinds):
            return tuple(map(_checked, sorting.kinds, values))
    except (ValueError, OverflowError, RecursionError, binascii.Error):
        pass
    raise BadRequestError(
        "This is not a cursor that a list in this order has answered.", field="cursor"
    )


def _checked(kind: type, value: object) -> object:
    """Return a value of a cursor, as the column has it; ValueError: it can't be one."""
    if kind is str and isinstance(value, str):
        return storable(value)
    if kind is int and type(value) is int and 0 <= value <= LAST_NUMBER:
        return value
    if kind is float and type(value) in {int, float} and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(value)
