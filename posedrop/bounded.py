"""Values from outside, held to a size and a depth before anything walks through them. Pure.

JSON, YAML and pickles can all be nested deeper than Python recurses, and the last two can hold one
part a thousand times: a few hundred bytes that are a gigabyte to whoever follows them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Node = TypeVar("Node")


class TooDeepError(ValueError):
    """JSON that is nested deeper than whoever walks through it later can recurse."""


#: How deep JSON from outside may be nested, in lists and objects.
MAX_DEPTH = 32


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
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def is_deeper(value: Any, most: int) -> bool:
    """Tell whether a JSON value is nested more than ``most`` deep; without recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [part for each in level for part in parts(each)]
        if not level:
            return False
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
