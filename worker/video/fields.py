"""Interlaced H.264 of which a packet may hold one field, half a frame, as camcorders write it.

AVCHD's cameras (.MTS) code some frames as a whole and others as two fields, as it suits the
picture. Of a transport stream or a raw one FFmpeg gives each field as a packet of its own (so does
what was copied from there into another container), and the decoder makes one frame of two. Neither
a packet's time nor its length tells which it is: a rate that the header tells wrong, or a pulldown,
looks the same. The headers of its slices do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

#: Kinds of NAL units, by the standard (ITU-T H.264, 7.4.1).
_SLICES, _SPS, _PPS = (1, 2, 5), 7, 8
_START = re.compile(b"\0\0\1")
#: A byte that is in the way of a start code, so that none is seen where none is.
_ESCAPED = re.compile(b"\0\0\3")
#: Bytes of a slice in which its header has told what is asked of it, and of what comes before.
_SLICE_HEAD, _SET_HEAD = 64, 1024
#: Profiles whose headers have more about colours.
_HIGH = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244})


#: What a packet has: a frame, or its first field, or the second one, with which it is whole.
Part = Literal["frame", "first", "second"]


class Fields:
    """Tells of the packets of a stream which hold a field alone, and which two of them are a frame.

    Each packet has to be asked about once, in the order of the stream. What can't be read is held
    for a frame, as all are where a codec is another one or a stream has no fields.
    """

    def __init__(self, stream: VideoStream) -> None:
        """Begin a stream at its start."""
        self._sets: _ParameterSets | None = None
        self._length = 0
        """Bytes of a NAL unit's length before it; 0: start codes part them."""
        if stream.codec_context.name == "h264":
            self._sets = _ParameterSets()
            self._length = _read_header(stream.codec_context, self._sets)
        self._first: _Field | None = None
        """The last packet's, where that began a frame."""

    def may_be(self) -> bool:
        """Tell whether the file's header allows frames that are coded as two fields."""
        return self._sets is not None and self._sets.fields

    def part(self, packet: Packet[VideoStream]) -> Part:
        """Return what the next packet has."""
        if self._sets is None:
            return "frame"
        field, first = _only_field(memoryview(packet), self._length, self._sets), self._first
        # As the decoder pairs them: whatever else follows a first field, that one was alone.
        if field is not None and first is not None and field.completes(first):
            self._first = None
            return "second"
        self._first = field
        return "frame" if field is None else "first"


@dataclass(frozen=True, slots=True)
class _Field:
    """Of which frame a field is, and which of its lines."""

    frame: int
    bottom: bool

    def completes(self, first: _Field) -> bool:
        return self.frame == first.frame and self.bottom != first.bottom


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What a sequence parameter set says of the slices that follow."""

    fields: bool
    """Whether a picture may be a field."""
    number_bits: int
    """Of a frame's number."""
    planes: bool
    """Whether a slice is of one colour."""


class _ParameterSets:
    """The parameter sets that a stream had so far, by their ids."""

    def __init__(self) -> None:
        self.fields = False
        """Whether any of them allows pictures that are fields."""
        self._sequences: dict[int, _Sequence] = {}
        self._of_picture: dict[int, int] = {}

    def take(self, kind: int, body: bytes) -> None:
        """Remember one; what can't be read is passed over."""
        if kind == _SPS and (told := _sequence(body)):
            self._sequences[told[0]] = told[1]
            self.fields = any(one.fields for one in self._sequences.values())
        elif kind == _PPS and (ids := _picture(body)):
            self._of_picture[ids[0]] = ids[1]

    def field(self, body: bytes) -> _Field | None:
        """Return of which field a slice is; None: of a frame, or that can't be told."""
        if not self.fields:
            return None
        bits = _Bits(body)
        try:
            bits.unsigned()
            bits.unsigned()
            told = self._sequences.get(self._of_picture.get(bits.unsigned(), -1))
            if told is None or not told.fields:
                return None
            bits.take(2 if told.planes else 0)
            frame = bits.take(told.number_bits)
            return _Field(frame, bool(bits.take(1))) if bits.take(1) else None
        except _TooShortError:
            return None


def _only_field(data: memoryview, length: int, sets: _ParameterSets) -> _Field | None:
    """Return which field a packet is; None: it is a frame, coded as a whole or as two fields."""
    found: _Field | None = None
    for begin, end in _units(data, length):
        kind = data[begin] & 31
        if kind in (_SPS, _PPS):
            sets.take(kind, bytes(data[begin + 1 : min(end, begin + _SET_HEAD)]))
        elif kind in _SLICES:
            field = sets.field(bytes(data[begin + 1 : min(end, begin + _SLICE_HEAD)]))
            if field is None or (found is not None and field != found):
                return None
            found = field
    return found


def _read_header(context: VideoCodecContext, sets: _ParameterSets) -> int:
    """Take the parameter sets of a container's header; return how many bytes a length has."""
    header = context.extradata or b""
    if header[:1] != b"\1":  # not as MP4 and Matroska have it: with start codes, or nothing
        _only_field(memoryview(header), 0, sets)
        return 0
    at, length = 5, 1 + (header[4] & 3) if len(header) > 4 else 0
    for mask in (31, 255):
        count = header[at] & mask if at < len(header) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(header[at : at + 2], "big")
            unit = header[at + 2 : at + 2 + size]
            sets.take(unit[0] & 31 if unit else 0, unit[1:])
            at += 2 + size
    return length


def _units(data: memoryview, length: int) -> Iterator[tuple[int, int]]:
    """Yield where the NAL units of a packet begin and, unless they are long, end; none is empty."""
    if length:
        at = 0
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            at += length
            if 0 < size <= len(data) - at:
                yield at, at + size
            at += size
        return
    found = _START.search(data)
    while found:
        begin = found.end()
        # Most are long, and end the packet: nobody asks what is further on.
        found = _START.search(data, begin, begin + _SET_HEAD)
        end = found.start() if found else min(len(data), begin + _SET_HEAD)
        if begin < end:
            yield begin, end
        found = found or _START.search(data, begin)


@lru_cache(64)  # some recorders write them before each frame
def _sequence(body: bytes) -> tuple[int, _Sequence] | None:
    """Return a sequence parameter set's id and what it says; None: it can't be read."""
    bits = _Bits(body)
    try:
        profile = bits.take(24) >> 16
        which, planes = bits.unsigned(), False
        if profile in _HIGH:
            chroma = bits.unsigned()
            planes = chroma == 3 and bool(bits.take(1))
            bits.unsigned()
            bits.unsigned()
            bits.take(1)
            if bits.take(1):
                for place in range(8 if chroma != 3 else 12):
                    if bits.take(1):
                        bits.pass_scaling(16 if place < 6 else 64)
        number_bits = bits.unsigned() + 4
        order = bits.unsigned()
        if order == 0:
            bits.unsigned()
        elif order == 1:
            bits.take(1)
            bits.unsigned()
            bits.unsigned()
            for _ in range(bits.unsigned()):
                bits.unsigned()
        bits.unsigned()
        bits.take(1)
        bits.unsigned()
        bits.unsigned()
        fields = not bits.take(1)
    except _TooShortError:
        return None
    return (which, _Sequence(fields, number_bits, planes)) if number_bits <= 16 else None


@lru_cache(64)
def _picture(body: bytes) -> tuple[int, int] | None:
    """Return the id of a picture parameter set and of its sequence's; None: it can't be read."""
    bits = _Bits(body)
    try:
        return bits.unsigned(), bits.unsigned()
    except _TooShortError:
        return None


class _TooShortError(Exception):
    """Bits are asked for that aren't there."""


class _Bits:
    """Reads a NAL unit bit by bit, as H.264 writes numbers."""

    def __init__(self, body: bytes) -> None:
        plain = _ESCAPED.sub(b"\0\0", body)
        self._bits = int.from_bytes(plain, "big")
        self._left = 8 * len(plain)

    def take(self, count: int) -> int:
        """Return the number that the next bits are."""
        self._left -= count
        if self._left < 0:
            raise _TooShortError
        return self._bits >> self._left & ((1 << count) - 1)

    def unsigned(self) -> int:
        """Return the next number of a length that it tells itself (Exp-Golomb)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def pass_scaling(self, size: int) -> None:
        """Pass over a list of factors: each is the difference to the one before, until one is 0."""
        factor = 8
        for _ in range(size):
            code = self.unsigned()
            factor = (factor + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
            if factor == 0:
                return
