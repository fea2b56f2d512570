"""H.264 with frames coded as two fields each (PAFF), as camcorders write it; no encoder here does.

x264 codes each field as if it were a small frame, and each whole frame as an interlaced one
(MBAFF). The headers of its slices are then written anew, so that the small frames are the fields of
large ones. All pictures are flat: a field's factors are in another order than those of a frame, and
only the first of them is coded here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

#: Frames a second, and ticks of a transport stream a field.
RATE, FIELD_TICKS = 25, 1800
_SLICE, _KEY_SLICE, _SPS, _PPS = 1, 5, 7, 8
_BEGIN = b"\0\0\0\1"
#: An access unit's delimiter: each field and each whole frame is one.
_DELIMITER = _BEGIN + b"\x09\x10"


def raw(path: Path, pictures: str, size: tuple[int, int] = (160, 128)) -> Path:
    """Write a raw stream.

    Args:
        path: the file to write.
        pictures: in their order: ``p``, a frame of a pair of fields; ``f``, one that is coded as a
            whole; ``t`` and ``b``, a top or a bottom field without the other one.
        size: of a frame (width, height); multiples of 16 and 64.
    """
    width, height = size
    field, _, _ = _coded(width, height // 2, interlaced=False)
    frame, numbers, sets = _coded(width, height, interlaced=True)
    content = b"".join(_BEGIN + one for one in sets)
    for number, picture in enumerate(pictures):
        if picture == "f":
            content += _DELIMITER + frame.unit(number, numbers, None, not number)
            continue
        for place, which in enumerate("tb" if picture == "p" else picture):
            content += _DELIMITER + field.unit(number, numbers, which, not number and not place)
    path.write_bytes(content)
    return path


def contained(path: Path, pictures: str, container: str, joined: bool = False) -> Path:
    """Write a stream as ``raw`` does into a container, each packet with the time it is shown at.

    Args:
        path: the file to write.
        pictures: as for ``raw``.
        container: FFmpeg's name of it.
        joined: whether both fields of a pair are in one packet; then there are only pairs.
    """
    source = raw(path.with_suffix(".raw"), pictures)
    lengths = [length for one in pictures for length in {"p": (1, 1), "f": (2,)}.get(one, (1,))]
    with (
        av.open(str(source), format="h264") as film,
        av.open(str(path), "w", format=container) as output,
    ):
        stream = output.add_stream_from_template(film.streams.video[0])
        packets = [packet for packet in film.demux(video=0) if packet.size]
        if joined:
            packets = [
                av.Packet(bytes(one) + bytes(other))
                for one, other in zip(packets[::2], packets[1::2], strict=True)
            ]
            lengths = [2] * len(packets)
        time = 0
        for packet, length in zip(packets, lengths, strict=True):
            packet.time_base = Fraction(1, 90_000)
            packet.pts = packet.dts = time
            packet.duration = length * FIELD_TICKS
            packet.stream = stream
            output.mux(packet)
            time += length * FIELD_TICKS
    return path


@dataclass(frozen=True)
class _Numbers:
    """How many bits a slice's header has for its picture's place."""

    frame: int
    order: int
    """0: none, pictures are shown as they are coded."""


class _Slice:
    """A key picture that x264 coded in one slice, to be written with another header."""

    def __init__(self, body: str, numbers: _Numbers, interlaced: bool) -> None:
        bits = _Bits(body)
        self._begin = "".join(_golomb(bits.golomb()) for _ in range(3))
        bits.take(numbers.frame + interlaced)
        bits.golomb()  # which key picture it is
        if numbers.order:
            bits.take(numbers.order)
            bits.golomb()
        bits.take(2)
        self._rest = bits.rest()

    def unit(self, number: int, numbers: _Numbers, which: str | None, is_key: bool) -> bytes:
        """Return it as the NAL unit of one picture.

        Args:
            number: of its frame.
            numbers: how the stream writes numbers.
            which: ``t`` or ``b``: a field; None: a whole frame.
            is_key: whether nothing before it is known any more.
        """
        order = 2 * number + (which == "b")
        header = self._begin + _last_bits(number, numbers.frame)
        header += {"t": "10", "b": "11", None: "0"}[which]
        header += _golomb(0) * is_key + _last_bits(order, numbers.order)
        header += _golomb(1) * (which is None) + "0" * (1 + is_key)
        kind = 0x60 | (_KEY_SLICE if is_key else _SLICE)
        return _BEGIN + bytes([kind]) + _bytes(header + self._rest)


def _coded(width: int, height: int, interlaced: bool) -> tuple[_Slice, _Numbers, tuple[bytes, ...]]:
    """Return a flat picture as x264 codes it, and the parameter sets before it."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    options = "cabac=0:keyint=1:threads=1:slices=1:bframes=0:ref=1:no-deblock=1:aud=0"
    context.options = {
        "profile": "main",
        "preset": "ultrafast",
        "x264-params": options + ":interlaced=1" * interlaced,
    }
    picture = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
    picture.pts = 0
    packets = [*context.encode(picture), *context.encode()]
    units = re.split(b"\0\0\0?\1", b"".join(bytes(packet) for packet in packets))[1:]
    sets = tuple(unit for unit in units if unit[0] & 31 in (_SPS, _PPS))
    bits = _Bits(_plain(sets[0][1:]))
    bits.take(24)
    bits.golomb()
    numbers = _Numbers(bits.golomb() + 4, bits.golomb() + 4 if bits.golomb() == 0 else 0)
    body = next(unit for unit in units if unit[0] & 31 == _KEY_SLICE)[1:]
    return _Slice(_plain(body), numbers, interlaced), numbers, sets


def _last_bits(number: int, count: int) -> str:
    return f"{number % (1 << count):0{count}b}" if count else ""


class _Bits:
    """Reads a text of zeros and ones."""

    def __init__(self, text: str) -> None:
        self._text = text

    def take(self, count: int) -> int:
        taken, self._text = self._text[:count], self._text[count:]
        return int(taken or "0", 2)

    def golomb(self) -> int:
        """Return the next number of a length that it tells itself (Exp-Golomb)."""
        return self.take(2 * self._text.index("1") + 1) - 1

    def rest(self) -> str:
        return self._text


def _golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _plain(unit: bytes) -> str:
    """Return a NAL unit's bits up to its end, without those that keep start codes out of it."""
    plain = unit.rstrip(b"\0").replace(b"\0\0\3", b"\0\0")
    return "".join(f"{byte:08b}" for byte in plain)


def _bytes(bits: str) -> bytes:
    """Return bits as a NAL unit has them: whole bytes, among which is no start code."""
    bits = bits.rstrip("0")
    bits += "0" * (-len(bits) % 8)
    plain = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", plain)
