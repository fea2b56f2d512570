"""When each frame of a film is shown: the container's times, mended where they can't be right.

A recorder stamps one frame far from its neighbours, two parts are joined and the second begins at
zero again, a clock is set while the camera runs, a container rounds to milliseconds what comes
every half of one. Frames are counted in the order of display whatever their times say; here their
times are made to ascend in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")

#: A pause between two frames that is longer than this (seconds) is no pause but a clock that was
#: set, unless the frames around it are seldom too.
LONGEST_PAUSE = 60.0
#: ... so many times their interval.
SELDOM = 100
#: No two frames are further apart, whatever a header says: a day.
LONGEST_INTERVAL = 86_400.0
#: ... nor nearer: half of a millionth of a second.
SHORTEST_INTERVAL = 5e-7
#: Frames that are looked at before the time of the first of them is decided.
AHEAD = 6
#: So many intervals make a mean one.
REMEMBERED = 32


class Clock:
    """Mends the times of one film, a frame at a time and :data:`AHEAD` frames late.

    - A frame without a time, and one whose time is off those of its neighbours, is put between
      them.
    - Times that jump, back or by more than a pause, and go on from there, go on by one mean
      interval.
    - Times in the order of decoding, as of containers that know no order of display, are sorted.
    """

    def __init__(self, base: float, interval: float) -> None:
        """Begin a film.

        Args:
            base: seconds of a tick of the container's clock.
            interval: between two frames, in seconds, as long as none was measured.
        """
        self._base = base
        self._interval = interval
        self._measured: deque[float] = deque(maxlen=REMEMBERED)
        self._sum = 0.0
        self._origin: int | None = None
        """The first time that is known, in ticks: what follows is small beside it."""
        self._last = -interval
        self._offset: float | None = None
        """Of what the film shows to what its container says, in seconds, since the last jump."""
        self._disordered = False
        """Whether the last frames' times were in no order."""
        self.trusted = 0
        """Frames whose time is the container's."""
        self.mended = 0
        """Frames whose time is not, or that are behind a jump."""

    @property
    def interval(self) -> float:
        """The mean of the last intervals, in seconds."""
        return self._sum / len(self._measured) if self._measured else self._interval

    @property
    def source(self) -> str:
        """Where the times come from: ``container``, ``interpolated``, or ``rate``."""
        if not self._measured and self.trusted + self.mended > 1:
            return "rate"
        return "interpolated" if self.mended else "container"

    def run(self, frames: Iterable[tuple[int | None, Item]]) -> Generator[tuple[float, Item]]:
        """Yield frames with the time at which they are shown: seconds, 0 for the first, ascending.

        Args:
            frames: the container's time in ticks, if it has one, and anything else.
        """
        window: deque[tuple[float | None, Item]] = deque()
        ascending = 0  # so many of the last ones, each above the one before it
        before: float | None = None
        for ticks, item in frames:
            if self._origin is None:
                self._origin = ticks
            time = None if ticks is None else (ticks - (self._origin or 0)) * self._base
            step = 0.0 if time is None or before is None else time - before
            if not SHORTEST_INTERVAL <= step <= LONGEST_PAUSE:
                ascending = 0
            ascending += time is not None
            before = time
            window.append((time, item))
            if len(window) > AHEAD:
                yield from self._decide(window, ascending >= len(window))
        while window:
            yield from self._decide(window, ascending >= len(window))

    def _decide(
        self, window: deque[tuple[float | None, Item]], plain: bool
    ) -> Generator[tuple[float, Item]]:
        """Take the first frames from the window, with their times."""
        time, item = window[0]
        if plain and time is not None and self._offset is not None:
            shown = time + self._offset
            if SHORTEST_INTERVAL <= shown - self._last <= LONGEST_PAUSE:
                window.popleft()
                self._measure(shown - self._last)
                self._last = shown
                self.trusted += 1
                yield shown, item
                return
        times = [time for time, _ in window]
        if self._offset is None:
            self._begin(times)
        earliest = self._earliest(times)
        if earliest:
            (time, item), (other, another) = window[0], window[earliest]
            window[0], window[earliest] = (other, item), (time, another)
            times = [time for time, _ in window]
            self.mended += 1
        skipped, shown = self._next(times)
        begin, step = self._last, (shown - self._last) / (skipped + 1)
        for place in range(skipped):
            self.mended += 1
            yield begin + (place + 1) * step, window.popleft()[1]
        yield shown, window.popleft()[1]
        self._last = shown

    def _begin(self, times: list[float | None]) -> None:
        """Take the interval from the film's first frames: a header's mean counts its jumps too."""
        known = [time for time in times if time is not None]
        steps = sorted(b - a for a, b in pairwise(known) if b > a)
        if steps and SHORTEST_INTERVAL <= steps[len(steps) // 2] <= LONGEST_INTERVAL:
            self._interval = steps[len(steps) // 2]
            self._last = -self._interval

    def _earliest(self, times: list[float | None]) -> int:
        """Return whose time is the first's, if these are sound but for their order; else 0."""
        known = [(time, place) for place, time in enumerate(times) if time is not None]
        if len(known) < len(times) or len(known) < 2:
            return 0
        (first, place), (last, _) = min(known), max(known)
        begin = first - self.interval if self._offset is None else self._last - self._offset
        if not first > begin or last - begin > 3 * len(times) * self.interval:
            return 0
        # With a single one that is off, the others tell more.
        ascending = len(_chain(times, last - begin, None))
        self._disordered = ascending < len(times) - (not self._disordered)
        return place if self._disordered else 0

    def _next(self, times: list[float | None]) -> tuple[int, float]:
        """Return the place of the next frame whose time is taken, and that time as shown."""
        limit = self._limit(times)
        if self._offset is None:
            kept, moved = [], _chain(times, limit, None)
        else:
            kept = _chain(times, limit, self._last - self._offset)
            # Behind a jump it is regular: else two frames that are off together would be one.
            moved = _chain(times, min(limit, 8 * self.interval), None)
        if kept and len(kept) + 1 >= len(moved):
            place, time = kept[0]
            shown = time + (self._offset or 0.0)
            self._measure((shown - self._last) / (place + 1))
            self.trusted += 1
            return place, shown
        if not moved:
            self.mended += 1
            return 0, self._last + self.interval
        place, time = moved[0]
        shown = self._last + (place + 1) * self.interval
        if self._offset is None:
            self.trusted += 1
        else:
            self.mended += 1
        self._offset = shown - time
        return place, shown

    def _limit(self, times: list[float | None]) -> float:
        known = [time for time in times if time is not None]
        steps = sorted(b - a for a, b in pairwise(known) if b > a)
        usual = max(self.interval, steps[len(steps) // 2] if steps else 0.0)
        return min(max(LONGEST_PAUSE, SELDOM * usual), LONGEST_INTERVAL)

    def _measure(self, interval: float) -> None:
        if len(self._measured) == REMEMBERED:
            self._sum -= self._measured[0]
        self._measured.append(interval)
        self._sum += interval


def _chain(times: list[float | None], limit: float, begin: float | None) -> list[tuple[int, float]]:
    """Return the places and times of the most that ascend, by ``limit`` a frame at most.

    Args:
        begin: the time before the first, None: any.
    """
    best: list[tuple[int, float, list[tuple[int, float]]]] = []
    for place, time in enumerate(times):
        if time is None:
            continue
        chain: list[tuple[int, float]] = []
        if begin is None or SHORTEST_INTERVAL <= time - begin <= limit * (place + 1):
            chain = [(place, time)]
        for earlier, before, one in best:
            step = (time - before) / (place - earlier)
            if len(one) >= len(chain) and SHORTEST_INTERVAL <= step <= limit:
                chain = [*one, (place, time)]
        if chain:
            best.append((place, time, chain))
    return max((chain for _, _, chain in best), key=len, default=[])
