"""What a test needs, found by what it and its fixtures use: torch, programs, children.

Nobody has to remember a marker: a test that comes to use a broker is out of ``make unit`` by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

#: By the beginnings of names of modules: what uses one of these needs that.
NEEDS = {
    "torch": ("torch", "deeplabcut", "timm", "worker.engine", "worker.precision", "worker.gpu"),
    "server": (
        "moto",
        "tests.support.serving",
        "tests.support.brokers",
        "tests.support.browser",
        "tests.support.caddy",
        "tests.support.handlers_process",
        "tests.support.lab",
        "tests.support.labs",
        "tests.support.minio_server",
        "tests.support.proxies",
        "tests.support.tools.tool",
        "posedrop.embedded.stack.Stack",
        "posedrop.embedded.weed.Weed",
    ),
    "child": ("worker.child.child.Child", "worker.child.pool", "tests.support.taken_over"),
}
#: By the folder or file, where programs are named in strings.
PLACES = {
    "tests/e2e/": "server",
    "tests/integration/engine/": "torch",
    "tests/unit/test_connections.py": "server",
    "tests/unit/test_gpu_benchmark.py": "torch",
    "tests/unit/test_predictions.py": "torch",  # DeepLabCut's filters
    "tests/unit/test_walls.py": "child",
}


@cache
def _needs_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return what a function and all that it uses need."""
    return frozenset(
        need
        for name in _used(function, set())
        for need, begin in NEEDS.items()
        if any(f"{name}.".startswith(f"{each}.") for each in begin)
    )


def mark(item: pytest.Item) -> None:
    """Give a test the markers of what it needs."""
    if not isinstance(item, pytest.Function):
        return
    needed = {need for place, need in PLACES.items() if item.nodeid.startswith(place)}
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    for function in [item.function, *(each.func for defs in fixtures for each in defs)]:
        needed |= _needs_of(function)
    for need in needed:
        item.add_marker(need)


def _used(function: Callable[..., Any], seen: set[Any]) -> Iterator[str]:
    """Yield the full names of all that a function uses, and what the tests' own helpers do."""
    function = getattr(function, "__wrapped__", function)
    if isinstance(function, type):
        for each in vars(function).values():
            yield from _used(getattr(each, "__func__", each), seen)
        return
    if not isinstance(function, FunctionType) or function in seen:
        return
    seen.add(function)
    for name in _names(function.__code__):
        found = function.__globals__.get(name)
        if found is None:
            yield name  # imported within it
        elif isinstance(found, ModuleType):
            yield found.__name__
        else:
            module = getattr(found, "__module__", None) or ""
            yield f"{module}.{name}"
            if module.startswith("tests."):
                yield from _used(found, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
