"""The frames of a video and their numbers: each has one, whether it can be decoded or not."""

from __future__ import annotations

import builtins
import heapq
from array import array
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.video import endings
from worker.video.containers import MAX_PIXELS, Shown, opened, packets, rate_of
from worker.video.pixels import Picture, turns_of
from worker.video.times import LONGEST_PAUSE, Clock

if TYPE_CHECKING:
    from worker.video.cuda_decode import Card

#: By how many frames the order of decoding can differ from that of display (H.264: 16), with room.
REORDERED = 64
#: Frames that a decoder with threads has in hand at most.
_IN_FLIGHT = 17
#: Of the frames that are passed over, each of so many is told of.
_TELLING = 64
#: Stands for a time that a container doesn't tell.
NO_TIME = -(2**63)


def passing(report: Callable[[str, int, int | None], None], begin: int) -> Callable[[int], None]:
    """Return what reports the frames that are decoded on the way to the frame ``begin``.

    Those behind it are decoded once more where a film is damaged; up to where is not known.
    """
    return lambda number: report("decode", number, begin if number < begin else None)


@dataclass(slots=True)
class Reading:
    """What one passage over a film finds out; complete once its frames are used up."""

    lost: array[int] = field(default_factory=lambda: array("q"))
    """Numbers of the frames that could not be decoded, ascending."""
    concealed: int = 0
    """Frames that were delivered, and that the decoder says are damaged."""
    cut: bool = False
    """Whether the end of the file is missing; found out at its end."""
    end: int = 0
    """One more than the last number that was given, to a frame or to a lost one."""
    ticks: array[int] = field(default_factory=lambda: array("q"))
    """When the container shows each frame, ``NO_TIME`` where it doesn't say."""
    base: Fraction = Fraction(1, 90_000)
    """Seconds a tick."""
    rate: Fraction = Fraction(25)
    """Frames a second, as far as the container tells."""
    brightness: dict[int, tuple[float, float]] | None = None
    """By number, of the frames that were given and that nobody has taken out: mean and standard
    deviation of their brightness (``planes.brightness_of``). None: nobody asks."""
    passed: Callable[[int], None] | None = None
    """Told the numbers of frames that are decoded on the way to those that are wanted, now and
    then: of a long film they may take hours, in which somebody waits for a sign of life."""

    def passes(self, number: int) -> None:
        """Note that a frame was decoded that nobody is given."""
        if self.passed is not None and number % _TELLING == 0:
            self.passed(number)

    def seconds(self, numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], str]:
        """Return when frames are shown, and where these times come from.

        Args:
            numbers: of the frames, each below ``end``; (rows,).

        Returns:
            Seconds from the film's first frame on, ascending with the numbers; (rows,). And
            ``container``, ``interpolated`` (some of them, where the container's could not be
            right) or ``rate`` (all of them, by the frames a second).
        """
        clock = Clock(float(self.base), float(1 / self.rate))
        known = ((None if time == NO_TIME else time, None) for time in self.ticks)
        times = np.fromiter((time for time, _ in clock.run(known)), np.float64, len(self.ticks))
        return times[numbers], clock.source

    def add(self, time: int | None) -> int:
        """Return the next number, of a frame that is shown at this time (ticks)."""
        self.ticks.append(NO_TIME if time is None else time)
        self.end += 1
        return self.end - 1


def numbered(
    path: Path, reading: Reading, max_pixels: int = MAX_PIXELS, card: Card | None = None
) -> Generator[Picture]:
    """Yield all frames of a video that can be decoded, each with its number.

    Args:
        card: decodes, as long as it can; then all is decoded by the CPU (:meth:`Card.compare`).
    """
    given = 0
    passages = [_passage(path, reading, exact, max_pixels) for exact in (False, True)]
    if card is not None and card.takes(path):
        passages.insert(0, _by_card(path, reading, max_pixels, card))
    for passage in passages:
        with suppress(_DamagedError), closing(passage):
            for picture in passage:
                if card is not None:
                    card.compare(picture)
                if picture.index >= given:
                    given = picture.index + 1
                    yield picture
                else:
                    reading.passes(picture.index)
            return
        # Once more from the start: it all comes again, but for what is wrong.
        reading.lost, reading.ticks = array("q"), array("q")
        reading.concealed = reading.end = 0


class _DamagedError(Exception):
    """A decoder with threads met an error: which packet's it is, one without will tell."""


def _by_card(path: Path, reading: Reading, max_pixels: int, card: Card) -> Generator[Picture]:
    """Decode a video by a card; whatever goes wrong there is a :class:`_DamagedError`."""
    try:
        for picture in _passage(path, reading, False, max_pixels, card):
            card.gave(picture)
            yield picture
    except Exception as error:  # of the film or of the driver: without it, the film's will show
        card.gave_up(error)
        raise _DamagedError from error


def _passage(
    path: Path, reading: Reading, exact: bool, max_pixels: int, card: Card | None = None
) -> Generator[Picture]:
    """Decode a video once from start to end, and number its frames.

    Args:
        exact: one frame after the other, so that an error is told with the packet it is in; else
            with threads, and at the first error a :class:`_DamagedError`.
        card: decodes, in place of the CPU.
    """
    accelerator = card.accelerator() if card is not None else None
    with opened(path, max_pixels, accelerator) as (container, stream):
        if exact or card is not None:
            stream.codec_context.thread_count = 1
        decode = stream.decode if card is None else partial(card.decode, stream)
        reading.base = stream.time_base or reading.base
        reading.rate = rate_of(stream)
        made = _Pictures(reading, (stream.width, stream.height))
        gone = made.gone
        waiting: deque[int | None] = deque(maxlen=_IN_FLIGHT)
        missing, shown = 0, Shown(stream)

        def on_damage() -> None:
            if not exact:
                raise _DamagedError("the container can't be read")
            gone.hides()

        broken = False
        for packet in packets(container, stream, on_damage):
            broken = packet.is_corrupt
            if shown.take(packet):
                missing += 1
                waiting.append(shown.time)
            found = _tried(decode, packet, exact)
            if found is None:
                gone.add(shown)
                continue
            gone.goes_on(packet, shown)
            missing -= len(found)
            yield from map(made.picture, found)
        found = _tried(decode, None, exact) or []
        missing -= len(found)
        told = {*made.shown, *(frame.pts for frame in found)}
        if not exact and missing > 0 and any(time is None or time not in told for time in waiting):
            # PyAV keeps an error to itself that comes behind a frame.
            raise _DamagedError("a frame is missing")
        if not gone.at_the_end():
            yield from map(made.picture, found)
            gone.close()
        if card is not None:
            card.ended(missing)
        reading.cut = broken or gone.at_the_end() or gone.hidden or endings.lacks_its_end(path)


def _tried(
    decode: Callable[[Any], list[VideoFrame]], packet: Packet[VideoStream] | None, exact: bool
) -> list[VideoFrame] | None:
    """Return the frames that a packet gives, or the end of a film (None); None: it is damaged.

    Raises:
        _DamagedError: something is damaged, and with threads (not ``exact``) nobody knows what.
    """
    try:
        return decode(packet)
    except builtins.MemoryError:
        raise
    except av.error.FFmpegError as error:
        if not exact:
            raise _DamagedError from error
        return None


class _Pictures:
    """Makes pictures of the frames of one passage: numbered, and turned as the first one asks."""

    def __init__(self, reading: Reading, size: tuple[int, int]) -> None:
        """Begin a passage over a film whose header tells such a width and height, in pixels."""
        self.gone = _Gone(reading)
        self.shown: deque[int | None] = deque(maxlen=_IN_FLIGHT + REORDERED)
        """Times of the last frames."""
        self._reading = reading
        self._size = size
        self._turns: int | None = None

    def picture(self, frame: VideoFrame) -> Picture:
        """Return the picture of the next frame."""
        if self._turns is None:  # the first one's are those of all
            self._turns = turns_of(frame)
            if not all(self._size):
                self._size = (frame.width, frame.height)
        self._reading.concealed += frame.is_corrupt
        self.shown.append(frame.pts)
        return Picture(self.gone.number(frame.pts), frame, self._turns, *self._size)


class _Gone:
    """Numbers frames, and leaves a number for each that could not be decoded.

    Behind an error, up to the next key frame, a packet that was to be shown and is not is lost too:
    a decoder passes silently over what refers to what it doesn't have.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._pause = int(LONGEST_PAUSE / reading.base)
        self._damaged = False
        self._key: int | None = None
        """The time of the key frame that ends the damage: what it shows earlier may lack."""
        self._waiting: list[tuple[int, bool]] = []
        """Packets whose frame has not come: when it is to be shown, and whether it never will."""
        self._timeless = 0
        """Packets with an error that don't say when."""
        self.hidden = False
        """Whether the container could not be read since the last packet."""
        self._tail: list[int | None] = []
        """Of the errors since the last packet without one."""
        self._last: int | None = None
        """The last frame's time."""

    def add(self, shown: Shown) -> None:
        """Remember the last packet: it could not be decoded."""
        self._damaged = True
        if not self._began_in_vain(shown):
            self._tail.append(shown.time)

    def hides(self) -> None:
        """Remember that the container could not be read: it may hide one, or many."""
        self.hidden = True

    def goes_on(self, packet: Packet[VideoStream], shown: Shown) -> None:
        """Remember a packet, the last one: it could be decoded."""
        known = self._began_in_vain(shown)
        self._timeless += self.hidden
        self.hidden = False
        for time in self._tail:
            if time is None:
                self._timeless += 1
            else:
                heapq.heappush(self._waiting, (time, True))
        self._tail.clear()
        if packet.is_keyframe and shown.part != "second":
            self._damaged, self._key = False, packet.pts if self._damaged else None
        time = shown.time
        early = self._key is not None and time is not None and time < self._key
        if (self._damaged or early) and time is not None and shown.ends and not known:
            heapq.heappush(self._waiting, (time, False))

    def _began_in_vain(self, shown: Shown) -> bool:
        """Tell whether a packet is the second field of a frame whose first could not be decoded."""
        return shown.part == "second" and bool(self._tail)

    def at_the_end(self) -> bool:
        """Whether nothing could be decoded any more behind the last error."""
        return bool(self._tail)

    def number(self, time: int | None) -> int:
        """Return the number of a frame that is shown now."""
        if not self._reading.end:  # nothing that comes before the first is lost
            self._timeless = 0
            if time is None:
                self._waiting.clear()
            while self._waiting and time is not None and self._waiting[0][0] < time:
                heapq.heappop(self._waiting)
        last, self._last = self._last, time
        for _ in range(self._timeless):
            self._lose(None)
        self._timeless = 0
        ascends = time is not None and last is not None and 0 < time - last <= self._pause
        while self._waiting and not (ascends and time is not None and self._waiting[0][0] >= time):
            self._lose_first(ascends)
        while self._waiting and self._waiting[0][0] == time:
            heapq.heappop(self._waiting)
        return self._reading.add(time)

    def close(self) -> None:
        """Number what was to be shown behind the last frame."""
        if self._reading.end:
            for _ in range(self._timeless):
                self._lose(None)
            while self._waiting:
                self._lose_first(True)

    def _lose_first(self, ascends: bool) -> None:
        time, never = heapq.heappop(self._waiting)
        if never or ascends:
            self._lose(time)

    def _lose(self, time: int | None) -> None:
        self._reading.lost.append(self._reading.add(time))
