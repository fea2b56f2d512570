"""Whether the end of a film's file is missing, as far as its container tells.

A recording that a power loss ended, an upload that broke off: the sizes in the file reach beyond
its end. Containers that are written to be joined and cut anywhere (MPEG's transport streams, FLV,
raw streams) tell nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Boxes, elements and chunks that are looked at in a file.
MOST = 1_000_000

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_EBML = 0x1A45DFA3
_ASF = b"\x30\x26\xb2\x75"


def lacks_its_end(path: Path) -> bool:
    """Tell whether a fragmented MP4, a Matroska, AVI or ASF (WMV) file has lost its end."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(12)
        if begin[4:8] in _FIRST_BOXES:
            return is_fragmented(path) and any(end > size for _, end in _boxes(file, size))
        if int.from_bytes(begin[:4], "big") == _EBML:
            return any(end > size for end in _elements(file, 0, size))
        if begin[:4] == b"RIFF":
            return any(end > size for end in _chunks(file, size))
        if begin[:4] == _ASF:
            return any(end > size for end in _objects(file, size))
    return False


def is_cut_mp4(path: Path) -> bool:
    """Tell whether a file is an MP4 or QuickTime one of which the end is missing."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8)[4:8] not in _FIRST_BOXES:
            return False
        boxes = list(_boxes(file, size))
    kinds = {kind for kind, _ in boxes}
    if boxes[-1][1] < size:  # what follows is no box
        return b"ftyp" in kinds
    return boxes[-1][1] > size or b"moov" not in kinds


def is_fragmented(path: Path) -> bool:
    """Tell whether an MP4 is written piece by piece, each with its own index."""
    with path.open("rb") as file:
        return any(kind == b"moof" for kind, _ in _boxes(file, os.fstat(file.fileno()).st_size))


_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _boxes(file: IO[bytes], size: int) -> Iterator[tuple[bytes, int]]:
    """Yield kind and end of an MP4's boxes; the last one's may lie beyond that of the file."""
    position = 0
    for _ in range(MOST):
        if position >= size:
            return
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if len(header) < 8:  # of the next box there is a piece
            yield b"", size + 1
            return
        if length == 1 and len(header) == 16:
            length = int.from_bytes(header[8:], "big")
        if 0 < length < 8:
            return
        position = size if length == 0 else position + length
        yield header[4:8], position


def _elements(file: IO[bytes], position: int, size: int) -> Iterator[int]:
    """Yield where the elements of a Matroska file end, those in segments of unknown size too."""
    for _ in range(MOST):
        if position >= size:
            return
        file.seek(position)
        header = file.read(12)
        name = _number(header, marked=True)
        length = _number(header[name[1] :], marked=False) if name else None
        if name is None or length is None:
            if len(header) < 12:
                yield size + 1
            return
        inside = position + name[1] + length[1]
        unknown = length[0] == 2 ** (7 * length[1]) - 1
        if unknown and name[0] not in (_SEGMENT, _CLUSTER):
            return
        position = inside if unknown else inside + length[0]
        yield position


def _number(data: bytes, marked: bool) -> tuple[int, int] | None:
    """Return a number of EBML, with the bit that tells its length or without, and that length."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return None
    number = int.from_bytes(data[:width], "big")
    return number if marked else number - (1 << 7 * width), width


def _chunks(file: IO[bytes], size: int) -> Iterator[int]:
    """Yield where the lists of an AVI end, and its chunks where no list's size was written."""
    position = 0
    for _ in range(MOST):
        if position + 8 > size:
            return
        file.seek(position)
        header = file.read(12)
        length = int.from_bytes(header[4:8], "little")
        is_list = header[:4] in (b"RIFF", b"LIST")
        if is_list and length in (0, 2**32 - 1):  # a recorder that never came back to write it
            position += 12
            continue
        if not header[:4].isalnum() and header[:4] != b"JUNK":
            return
        position += 8 + length + length % 2
        # A player needs no padding behind the last byte.
        yield position - length % 2


def _objects(file: IO[bytes], size: int) -> Iterator[int]:
    """Yield where the objects of an ASF file end: header, data, index."""
    position = 0
    for _ in range(MOST):
        if position + 24 > size:
            return
        file.seek(position + 16)
        length = int.from_bytes(file.read(8), "little")
        if length < 24:
            return
        position += length
        yield position
