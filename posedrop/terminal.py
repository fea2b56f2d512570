"""What a person's terminal is shown: names from outside, with nothing in them that steers it."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from typing import Any

import click

#: What a terminal acts on, or shows as what it is not: controls, ESC and C1 among them; halves of
#: characters; ends of lines; and what reverses, hides or joins text, but for the two joiners that
#: words of some languages, and emoji, are spelled with.
_KINDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")
#: Most text has none of them.
_SUSPECT = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff\u3040-\ud7ff]")


def printable(text: str) -> str:
    r"""Return a text on one line, with ``\x1b``, ``\n``, ``\u202e`` in place of what they are."""
    return _SUSPECT.sub(_escaped, text)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line, whatever is in it, to stdout or stderr."""
    click.echo(printable(text), err=err)


def rewrite(text: str) -> None:
    """Print a line to a terminal's stderr in place of the one before."""
    click.echo(f"\r\x1b[K{printable(text)}", nl=False, err=True)


def say_json(value: Any) -> None:
    """Print a value as JSON; whoever reads it has the value as it was."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    text = json.dumps(value, indent=1, ensure_ascii=not encoding.startswith("utf"))
    # Only strings can have such characters, and there is no end of a line in one.
    click.echo("\n".join(_SUSPECT.sub(_json_escaped, line) for line in text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    return char.encode("unicode_escape").decode() if _steers(char) else char


def _json_escaped(found: re.Match[str]) -> str:
    char = found[0]
    return json.dumps(char)[1:-1] if _steers(char) else char


def _steers(char: str) -> bool:
    return unicodedata.category(char) in _KINDS and char not in _JOINERS
