"""Search in names: how a name is spelled for SQLite's full text, and what a query asks of it. Pure.

FTS5's tokenizer ``trigram`` finds any three characters that stand side by side. Two things it can't
find are made three characters by marks between them: one or two first letters of a word, and a
single character of a script that writes without spaces, of which one is as much as a syllable or a
word. ``実験m2.mp4`` is spelled ``|実|験|<>m2.<>mp4``.

Of names and queries alike, case, accents and the width of letters are dropped, and characters are
taken apart: a Mac writes ``ü`` and ``が`` as two, other systems as one. So a search is one for text
inside of text, and its trigrams only say quickly where to look.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

#: Around each character of a dense script; before each word of others. None is in folded text.
_AROUND, _BEFORE = "\x01", "\x02\x03"
#: Chinese, Japanese, Korean (its letters, taken apart), Yi; symbols and emoji, which are as rich.
_DENSE = (
    "\u1100-\u11ff\u2190-\u2bff\u2e80-\u2fff\u3005-\u3007\u3021-\u302f\u3031-\ua4cf\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff\U0001f000-\U0003ffff"
)
_BETWEEN = r"\s!-/:-@\[-`{-~\u00a0-\u00bf\u2000-\u206f\u3000-\u3004\u3008-\u3020\u3030"
_RUN = re.compile(f"(?P<dense>[{_DENSE}]+)|[^{_DENSE}{_BETWEEN}]+")
#: Accents of Latin, Greek and Cyrillic letters; what only says how its neighbours are drawn.
_UNSEEN = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

#: No key is longer, and nobody types so many words.
_MAX_QUERY = 1100
_MAX_WORDS = 16
#: Each costs a look into the index; the whole text is compared anyway.
_MAX_TRIGRAMS = 16


def storable(value: Any) -> Any:
    """Return text without what UTF-8 can't say, which JSON from outside can."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def spelled(text: str) -> str:
    """Return a name as the full-text index keeps it."""
    return _RUN.sub(_marked, _folded(text))


def asked(query: str) -> list[list[str]]:
    """Return the ways in which a query is found, each a list of texts inside of a spelled name.

    All its words, a word of one or two letters at the beginning of a word; or, where such a word
    may have been cut out of another, the query as it stands. Nothing, if it is one or two signs.
    """
    folded = _folded(query[:_MAX_QUERY])
    words = [found for word in folded.split()[:_MAX_WORDS] if (found := _wanted(word))]
    as_it_stands = _wanted(folded)
    ways = [words] if words else []
    if as_it_stands and as_it_stands not in words and (not words or any(map(_is_short, words))):
        ways.append([as_it_stands])
    return ways


def trigrams(texts: list[str]) -> str:
    """Return an FTS5 query, by quoted trigrams, for names that may hold all of these texts."""
    found = {text[at : at + 3]: None for text in texts for at in range(len(text) - 2)}
    chosen = list(found)[:: len(found) // _MAX_TRIGRAMS + 1]
    return " AND ".join('"' + each.replace('"', '""') + '"' for each in chosen)


def _folded(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKD", storable(text)).casefold()
        # Turkish writes I for a small one without a dot.
        text = _UNSEEN.sub("", unicodedata.normalize("NFKD", text)).replace("\u0131", "i")
    return _CONTROL.sub(" ", text.lower())


def _marked(run: re.Match[str]) -> str:
    if run.lastgroup == "dense":
        return f"{_AROUND}{_AROUND.join(run[0])}{_AROUND}"
    return f"{_BEFORE}{run[0]}"


def _wanted(folded: str) -> str:
    """Return how a part of a query is spelled inside of a name; empty if it's too short."""
    found = _RUN.sub(_marked, folded)
    bare = found.removeprefix(_BEFORE)
    if len(bare) >= 3:
        return bare
    return found if _is_short(found) else ""


def _is_short(wanted: str) -> bool:
    return wanted.startswith(_BEFORE)
