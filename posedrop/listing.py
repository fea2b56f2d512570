"""Lists of the index: pages, their cursors, and conditions made of what a person typed. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from posedrop.errors import BadRequestError

MAX_PAGE = 1000
LAST_CHARACTER = "\U0010ffff"
_MAX_WORDS = 16
_WORD = re.compile(r"[^\W_]")
_ASCII_WORD = re.compile(r"[A-Za-z0-9]")

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, newest first; ``cursor`` asks for those after them, None if there are none."""

    rows: list[Row]
    cursor: str | None


class Where:
    """Conditions with their values; the cursor becomes one on whatever the rows are sorted by."""

    def __init__(self, cursor: str | None) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self._words: list[str] = []
        self._before = from_cursor(cursor) if cursor is not None else None

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

        A search can use its words too, and is spared from looking at the key of each of its hits.
        Only those with an ASCII letter or digit: what else is a word, Python and FTS5 don't agree.
        """
        self.add("f.key >= ? AND f.key < ?", prefix, f"{prefix}{LAST_CHARACTER}")
        self._words = _quoted(prefix, _ASCII_WORD)

    def search(self, table: str, query: str) -> bool:
        """Ask for all words of a query, as beginnings of words; False if there is no word in it.

        Each is quoted, so that none of it is taken for FTS5's own language.
        """
        words = _quoted(query, _WORD)
        if words:
            self.add(f"{table} MATCH ?", " ".join([*self._words, *words]))
        return bool(words)

    def sql(self, order: str) -> str:
        """Return all conditions, for rows in descending order of the column ``order``."""
        if self._before is not None:
            self.add(f"{order} < ?", self._before)
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
    if not 0 <= number < 2**63:
        raise BadRequestError("This is not a cursor that a list has answered.", field="cursor")
    return number


def _quoted(text: str, kind: re.Pattern[str]) -> list[str]:
    words = storable(text.replace("\0", " ")).split()
    quoted = [word.replace('"', '""') for word in words if kind.search(word)]
    return [f'"{word}"*' for word in quoted[:_MAX_WORDS]]


def storable(value: Any) -> Any:
    """Return text without what UTF-8 can't say, which JSON from outside can."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
