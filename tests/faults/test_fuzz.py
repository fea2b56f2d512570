"""Films that were cut, and damaged at random, end: each in words or in a probe, within bounds."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.faults import fuzz
from tests.support import videos

#: Of all cut lengths every so many-th is tried here, and all of them by `make fuzz`.
STRIDE = 23
DAMAGED = 400
#: What a film of a few kilobytes may take of memory beyond what the child has anyway.
MEMORY_BYTES = 512 << 20
SECONDS = 30.0


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[fuzz.Trial]:
    """The worker's child, with its limits."""
    one = fuzz.Trial(tmp_path)
    yield one
    one.close()


def check(ends: fuzz.Ends, kinds: int) -> None:
    # What a header claims may be more memory than there is; that is an end, too, after three.
    odd = [line for line in ends.odd if "failed: out_of_memory" not in line]
    assert not odd, "\n".join(odd)
    assert ends.slowest[0] < SECONDS, ends
    assert ends.largest[0] < MEMORY_BYTES, ends
    # Not all were refused for a reason that has nothing to do with the damage.
    assert ends.by["ok"] > 0.02 * ends.tried, ends
    assert kinds > 20


def test_a_film_cut_at_any_length_ends(trial: fuzz.Trial, tmp_path: Path) -> None:
    """Of each container: a probe, or a refusal that says what is wrong with it."""
    made = fuzz.tiny_films(tmp_path)
    for name, film in fuzz.cut(made, STRIDE):
        trial.tries(name, film)
    check(trial.ends, len(made))


def test_a_film_that_is_turned_to_nothing_is_not_turned(trial: fuzz.Trial, tmp_path: Path) -> None:
    """A matrix of the display without one of its axes, as the damage above once made it."""
    film = videos.video(tmp_path / "film", size=(64, 48), count=2, rotate=90).read_bytes()
    turned, flat = (struct.pack(">5i", 0, -(2**16), 0, n, 0) for n in (2**16, 0))
    assert turned in film
    assert trial.tries("flat", film.replace(turned, flat)) == "ok"


def test_a_damaged_film_ends(trial: fuzz.Trial, tmp_path: Path) -> None:
    """Bits turned, numbers at their limits, chunks gone, doubled, swapped; two films in one."""
    made = fuzz.films(tmp_path)
    for name, film in islice(fuzz.damaged(random.Random(12), made), DAMAGED):
        trial.tries(name, film)
    check(trial.ends, len(made))
