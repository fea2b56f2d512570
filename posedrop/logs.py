"""Log lines with the ids in them: which file, which run, which attempt.

Whatever a message quotes is printed so that it neither steers a terminal nor forges a second line.
"""

from __future__ import annotations

import json
import logging
import sys

from posedrop.terminal import printable

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    """``time LEVEL logger: message key=value ...``, with what a call gave as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line without its traceback."""
        given = {name: value for name, value in vars(record).items() if name not in _USUAL}
        pairs = (f"{name}={json.dumps(value, default=str)}" for name, value in given.items())
        return " ".join([printable(super().formatMessage(record)), *pairs])

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and its traceback on lines that can't be taken for others."""
        first, *more = super().format(record).split("\n")
        return "\n".join([first, *(f"  {printable(line)}" for line in more)])


class ShortFormatter(Formatter):
    """``posedrop: message``, for a person at a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line."""
        return f"posedrop: {printable(record.message)}"


def to_stderr(level: int = logging.INFO) -> None:
    """Have this process log to stderr, where containers keep it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for own in ("uvicorn", "uvicorn.access"):  # it has set up its own, whose tracebacks are raw
        logging.getLogger(own).handlers.clear()
        logging.getLogger(own).propagate = True
    quieten_libraries()


def quieten_libraries() -> None:
    """Have libraries that log every request log what goes wrong alone."""
    for library in ("httpx", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
