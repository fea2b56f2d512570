"""Log lines with the ids in them: which file, which run, which attempt."""

from __future__ import annotations

import json
import logging
import sys

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    """``time LEVEL logger: message key=value ...``, with what a call gave as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line without its traceback."""
        given = {name: value for name, value in vars(record).items() if name not in _USUAL}
        # JSON quotes what a hostile key could forge a second line with.
        pairs = (f"{name}={json.dumps(value, default=str)}" for name, value in given.items())
        return " ".join([super().formatMessage(record).replace("\n", "\\n"), *pairs])


def to_stderr(level: int = logging.INFO) -> None:
    """Have this process log to stderr, where containers keep it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
