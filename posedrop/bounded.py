"""Values from outside, held to a size and a depth before anything walks through them. Pure.

JSON, YAML and pickles can all be nested deeper than Python recurses, and the last two can hold one
part a thousand times: a few hundred bytes that are a gigabyte to whoever follows them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Node = TypeVar("Node")


class TooDeepError(ValueError):
    """JSON that is nested deeper than whoever walks through it later can recurse."""


#: How deep JSON from outside may be nested, in lists and objects.
MAX_DEPTH = 32
#: How many values JSON in a record may have.
MAX_VALUES = 200_000
_LONG = 2**63


_ITEMS = (list, tuple, set, frozenset)
_HOLDS = (dict, *_ITEMS)


def is_larger(root: Node, inside: Callable[[Node], Iterable[Node]], most: int) -> bool:
    """Tell whether a tree has more than ``most`` nodes, one that is held twice counted twice.

    Args:
        root: of the tree; it may hold itself.
        inside: returns the nodes right below one.
        most: after so many the walk ends.
    """
    waiting, seen = [root], 0
    while waiting:
        seen += 1
        if seen > most:
            return True
        waiting.extend(inside(waiting.pop()))
        if len(waiting) > most:
            return True
    return False


def parts(value: Any) -> Iterable[Any]:
    """Return what is right inside of a value: keys and values, or items."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, _ITEMS) else ()


def is_deeper(value: Any, most: int) -> bool:
    """Tell whether a value is nested more than ``most`` deep; without recursion."""
    level = [value]
    for _ in range(most + 1):
        # Of a million values nearly all hold nothing, and are looked at once.
        level = [each for each in level if isinstance(each, _HOLDS)]
        if not level:
            return False
        level = [part for each in level for part in parts(each)]
    return True


def loads(text: bytes | str, most: int = MAX_DEPTH) -> Any:
    """Return the value of a JSON text.

    Raises:
        TooDeepError: it is nested more than ``most`` deep.
        ValueError: it is no JSON.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise TooDeepError(f"it is nested more than {most} deep") from error
    data = text.encode(errors="replace") if isinstance(text, str) else text
    # Where there are few brackets, none can be deep.
    if data.count(b"[") + data.count(b"{") > most and is_deeper(value, most):
        raise TooDeepError(f"it is nested more than {most} deep")
    return value


def bounded(tree: Any, *, is_finite: bool = True) -> Any:
    """Return a copy of a tree of JSON.

    Args:
        tree: as a parser of JSON gives it, or anything else.
        is_finite: False: NaN and infinity are let in, as null.

    Raises:
        ValueError: it is deeper than :data:`MAX_DEPTH`, has more than :data:`MAX_VALUES` values, a
            whole number of more than 64 bits, or something that is no JSON.
    """
    left = [MAX_VALUES]

    def copied(value: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES:,} values, or deeper than {MAX_DEPTH}")
        match value:
            case None | bool():
                return value
            case str():
                value.encode()  # half a surrogate pair is no text
                return value
            case int() if -_LONG <= value < _LONG:
                return value
            case float() if math.isfinite(value):
                return value
            case float() if not is_finite:
                return None
            case list() | tuple():
                return [copied(each, depth + 1) for each in value]
            case dict() if all(isinstance(name, str) for name in value):
                return {
                    copied(name, depth): copied(each, depth + 1) for name, each in value.items()
                }
            case int():
                raise ValueError("a whole number in it has more than 64 bits")
            case float():
                raise ValueError("a number in it is infinite, or none")
        raise ValueError(f"{type(value).__name__} is no JSON")

    return copied(tree, 0)
