"""Lists of the index: pages, their cursors, and conditions made of what a person typed. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from posedrop.errors import BadRequestError
from posedrop.index import search
from posedrop.index.search import storable

MAX_PAGE = 1000
LAST_NUMBER = 2**63 - 1
LAST_CHARACTER = "\U0010ffff"
_ENDS_PLAINLY = re.compile(r".*[ -~]", re.DOTALL)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, newest first; ``cursor`` asks for those after them, None if there are none.

    A search that looked at many names for few rows gives those, and a cursor to go on with.
    """

    rows: list[Row]
    cursor: str | None


class Where:
    """Conditions with their values; ``before`` is the number that the cursor names."""

    def __init__(self, cursor: str | None) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self._prefix: re.Match[str] | None = None
        self.before = from_cursor(cursor) if cursor is not None else LAST_NUMBER

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


def to_cursor(number: int) -> str:
    """Return the cursor for what comes after the row with this number."""
    return base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> int:
    """Return the number in a cursor."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        number = int(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        number = -1
    if not 0 <= number <= LAST_NUMBER:
        raise BadRequestError("This is not a cursor that a list has answered.", field="cursor")
    return number
