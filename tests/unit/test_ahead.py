"""Frames made early, beside the network: as many as there is room for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest

from worker.video import decode


@pytest.mark.parametrize("size", [1, 2, 7])
def test_so_many_are_made_early_as_the_first_one_tells(size: int) -> None:
    """And one more, which waits for room; what is left is not made."""
    made: list[int] = []
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            for number in count():
                made.append(number)
                yield number
        finally:
            closed.append(True)

    with closing(decode.ahead(items(), lambda first: size + first)) as ready:
        assert next(ready) == 0
        deadline = time.monotonic() + 20
        while len(made) < size + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(made) == size + 2
    assert closed == [True]


@pytest.mark.parametrize("size", [1, 5, 64])
def test_all_come_in_their_order_and_an_error_behind_them(size: int) -> None:
    """Whether the room is larger than what there is, or smaller."""
    found: list[int] = []

    def items() -> Iterator[int]:
        yield from range(20)
        raise LookupError("damaged")

    def take() -> None:
        for item in decode.ahead(items(), lambda _: size):
            found.append(item)

    with pytest.raises(LookupError, match="damaged"):
        take()
    assert found == list(range(20))
