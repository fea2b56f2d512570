"""A folder's posedrop.json: read in whatever encoding an editor saved it. Pure."""

from __future__ import annotations

import json
import unicodedata
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from pydantic import ValidationError

from posedrop.buckets.layout import FOLDER_RULES
from posedrop.buckets.records.record import Versioned
from posedrop.buckets.records.rules import FolderRules
from posedrop.errors import BadRequestError

#: A rule is a few lines: nothing larger is read.
MAX_BYTES = 64 * 1024
_MAX_DEPTH = 32
_MAX_MESSAGE = 500
_FIELDS = [name for name in FolderRules.model_fields if name not in Versioned.model_fields]
#: How alike two names are (difflib's ratio) of which one is taken for a slip.
_NEARLY = 0.7
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019'`"


class WrongRuleError(BadRequestError):
    """A posedrop.json that can't be followed; the message says where it is wrong."""

    code = "bad_rules"


def parse(data: bytes) -> FolderRules:
    """Parse the bytes of a posedrop.json, in whatever encoding.

    Fields that no rule has are a person's own ("comment", "$schema"), unless they look like a slip.
    UTF-8 and UTF-16 are known by their byte order mark or without one; what is neither is taken for
    Windows-1252, as old editors save it.

    Raises:
        WrongRuleError: it is no JSON, a field's value is wrong, or a name is nearly a field's.
    """
    value = load(data)
    _check_names(value)
    try:
        rules = FolderRules.model_validate(value)
    except ValidationError as error:
        raise WrongRuleError(_first(error)) from error
    if rules.args and rules.analysis is None:
        raise WrongRuleError("it has args, and no analysis that they are for")
    if rules.exports and rules.analysis is None:
        raise WrongRuleError("it has exports, and no analysis whose poses they are of")
    if rules.notify and rules.analysis is None:
        raise WrongRuleError("it has notify, and no analysis of whose end that is told")
    return rules


def load(data: bytes) -> dict[str, Any]:
    """Return the bytes of a posedrop.json as an object, whatever its fields are.

    Raises:
        WrongRuleError: it is no JSON object, or one that no later step could write.
    """
    value = _loads(decode(data))
    if not isinstance(value, dict):
        raise WrongRuleError('it is not a JSON object like {"analysis": "deeplabcut_2d"}')
    _check(value)
    return value


class Keep:
    """What a rule says of the videos below it that are never removed by themselves.

    A name is taken as generously as it can be meant, since what it does not match is removed: below
    the rule's folder or as the whole key, a file or a folder, with ``*`` and ``?``.
    """

    def __init__(self, rule: str, keep: bool | list[str] | None) -> None:
        """Take ``keep`` as the rule with this key has it."""
        self._folder = rule.removesuffix(FOLDER_RULES)
        self._all = None if isinstance(keep, list) else keep
        names = keep if isinstance(keep, list) else []
        spelled = {each for name in map(_nfc, names) for each in (name, name.replace("\\", "/"))}
        wanted = {name.removeprefix("./").lstrip("/") for name in spelled}
        self._names = frozenset(wanted)
        folders = {name.rstrip("/") for name in wanted}
        self._folders = tuple("" if name in {"", "."} else f"{name}/" for name in folders)
        # A name may have brackets, of which a pattern would make something else.
        patterns = (name for name in wanted if "*" in name or "?" in name)
        self._patterns = [pattern.replace("[", "[[]") for pattern in patterns]

    def of(self, key: str) -> bool | None:
        """Tell whether a video is kept; None: the rule does not say."""
        for path in map(_nfc, (key, key.removeprefix(self._folder))):
            if path in self._names or path.startswith(self._folders):
                return True
            if any(fnmatchcase(path, pattern) for pattern in self._patterns):
                return True
        return self._all


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def decode(data: bytes) -> str:
    """Return the text of a posedrop.json, without its byte order mark; see :func:`parse`.

    Raises:
        WrongRuleError: it is not text.
    """
    encoding = json.detect_encoding(data)
    for name in (encoding, "cp1252") if encoding.startswith("utf-8") else (encoding,):
        try:
            return data.decode(name).lstrip("\ufeff")
        except UnicodeDecodeError:
            continue
    raise WrongRuleError("it is not text; save it as UTF-8")


def check_size(size: int) -> None:
    """Refuse a posedrop.json by its size in bytes, before it is read.

    Raises:
        WrongRuleError: it is larger than a rule may be.
    """
    if size > MAX_BYTES:
        raise WrongRuleError(f"it has {size:,} bytes, more than the {MAX_BYTES:,} of a rule")


def _loads(text: str) -> Any:
    if not text.strip():
        raise WrongRuleError("it is empty")
    try:
        return json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise WrongRuleError(
            f"it is not JSON, line {error.lineno}, column {error.colno}: {_explain(error)}"
        ) from error
    except RecursionError as error:
        raise WrongRuleError("it is nested too deeply") from error
    except ValueError as error:
        raise WrongRuleError("a number in it has too many digits") from error


def _no_number(name: str) -> NoReturn:
    raise WrongRuleError(f"it is not JSON: {name} is no number there")


def _explain(error: json.JSONDecodeError) -> str:
    """Say in plain words why a text is no JSON, for the mistakes that are made often."""
    before, at = error.doc[: error.pos].rstrip(), error.doc[error.pos : error.pos + 1]
    if at in {"}", "]"} and before.endswith(","):
        return f"there is a comma before the {at}; take it out"
    if before.endswith(",") and "trailing comma" in error.msg:
        return "there is a comma before the closing bracket; take it out"
    if at and at in _QUOTES:
        return f'{at} is not a quote of JSON; use "'
    if at in {"/", "#"}:
        return "JSON has no comments"
    if not at:
        return f"it ends too early ({error.msg})"
    return f"{error.msg}, not {at!r}"


def _check(value: Any) -> None:
    """Refuse a rule whose args some later step could not write, or not within bounds."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, int | float) and not abs(each) < 2**63:
                raise WrongRuleError("a number in it is too large")
            elif isinstance(each, str) and not _is_whole(each):
                raise WrongRuleError("a text in it has half a character (a lone surrogate)")
        level = inner
        if not level:
            return
    raise WrongRuleError("it is nested too deeply")


def _check_names(value: dict[str, Any]) -> None:
    """Refuse a name that is nearly that of a field which is not given."""
    lacking = [name for name in _FIELDS if name not in value]
    for name in value:
        if name in FolderRules.model_fields:
            continue
        for meant in get_close_matches(name.strip().casefold(), lacking, 1, _NEARLY):
            raise WrongRuleError(f"{name[:80]!r} is no field of a rule; did you mean {meant!r}?")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))[:80]
    return f"{place}: {first['msg']}"[:_MAX_MESSAGE]
