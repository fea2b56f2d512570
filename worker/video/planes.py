"""A decoded frame as its planes of brightness and colour, for a device that makes pixels of them.

Decoders give a plane of brightness (Y) and two of colour at half the size (U, V): half the bytes of
BGR. OpenCV converts them with libswscale, and so does ``video.decode``. For 8 bits at this
subsampling, blue is a function of a pixel's Y and of the U nearest to it, red of Y and V, green of
all three; in gray films everything is a function of Y. So libswscale is asked once for all there
is, and a device that looks it up (:mod:`worker.gpu.staging`) finds the same bits.

Where a height is odd, or a film is interlaced, libswscale computes colours between rows; of 10 bits
and of nv12 it always does. Such frames have no planes here: they are converted by libswscale.
"""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

Plane = npt.NDArray[np.uint8]

#: Formats with 8 bits whose first plane is the brightness.
_LUMA_FIRST = re.compile(r"gray|yuva?j?4[0-4][0-4]p|nv12|nv21|nv16|nv24")
#: Some so many rows are looked at for a frame's brightness.
ROWS = 32
#: Formats with 8 bits, and colours that are shared by two by two pixels.
_COLOURED = ("yuv420p", "yuvj420p")
_GRAY = "gray"
_FULL_RANGE = 2


class Colours(NamedTuple):
    """What decides how planes become BGR; by FFmpeg's names and numbers."""

    format: str
    space: int
    range: int


class Layout(NamedTuple):
    """What pictures have to have in common to be converted together."""

    colours: Colours
    height: int
    """Rows of Y that are kept,"""
    width: int
    """and columns; of colours half as many, rounded up."""
    top: int
    """Rows of Y that are kept for their colours' sake alone, 0 or 1;"""
    left: int
    """columns of this kind."""
    turns: int
    """Quarter turns clockwise, which come last."""


@dataclass(frozen=True, slots=True)
class Planes:
    """A frame as it was decoded, uint8; the arrays are parts of the decoder's memory."""

    layout: Layout
    parts: tuple[Plane, ...]
    """Y (height, width), then U and V, each (ceil(height / 2), ceil(width / 2)); gray: Y alone."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The size of the picture as it is shown: (height, width, 3)."""
        height = self.layout.height - self.layout.top
        width = self.layout.width - self.layout.left
        return (width, height, 3) if self.layout.turns % 2 else (height, width, 3)

    @property
    def luma(self) -> Plane:
        """The brightness of what is shown, before it is turned."""
        return self.parts[0][self.layout.top :, self.layout.left :]

    def cropped(self, x1: int, y1: int, x2: int, y2: int) -> Planes:
        """Return a part of the picture: columns ``x1`` to before ``x2`` of what is shown, and rows.

        Its arrays are parts of this one's.
        """
        height, width, _ = self.shape
        # Where the corners lie before the turns.
        for _ in range(self.layout.turns % 4):
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        top, left = y1 + self.layout.top, x1 + self.layout.left
        bottom, right = y2 + self.layout.top, x2 + self.layout.left
        if self.layout.colours.format == _GRAY:
            step, over = 1, (0, 0)
        else:
            step, over = 2, (top % 2, left % 2)
        top, left = top - over[0], left - over[1]
        luma, *others = self.parts
        taken = [luma[top:bottom, left:right]]
        for plane in others:
            taken.append(plane[top // step : -(-bottom // step), left // step : -(-right // step)])
        layout = self.layout._replace(
            height=bottom - top, width=right - left, top=over[0], left=over[1]
        )
        return replace(self, layout=layout, parts=tuple(taken))


def planes_of(frame: VideoFrame, turns: int = 0) -> Planes | None:
    """Return a frame's planes; None: it is of those that libswscale alone converts.

    Args:
        frame: as it was decoded; it is kept as long as its planes are.
        turns: quarter turns clockwise that it is shown with.
    """
    name = frame.format.name
    if name not in (*_COLOURED, _GRAY) or frame.interlaced_frame:
        return None
    if name != _GRAY and frame.height % 2:
        return None
    parts: list[Plane] = []
    for plane in frame.planes:
        if plane.line_size < plane.width:  # it is upside down
            return None
        parts.append(_rows_of(plane))
    colours = Colours(name, int(frame.colorspace), int(frame.color_range))
    if tables_of(colours) is None:
        return None
    return Planes(Layout(colours, frame.height, frame.width, 0, 0, turns), tuple(parts))


def brightness_of(frame: VideoFrame, seen: Planes | Plane) -> tuple[float, float]:
    """Return the mean and the standard deviation of a whole frame's luma, black 0 and white 255.

    Exactly, of every n-th row from the first on, n being the height // 32, at least 1: what is
    frozen or dark shows there too, and it costs a few hundredths of decoding.

    Args:
        frame: as it was decoded. Of 8 bits in planes its own luma is taken; where 16 stands for
            black and 235 for white, it is stretched, and what is darker than black is below 0.
        seen: its planes, or its BGR, (height, width, 3), which is looked at where that can't be.
    """
    name = frame.format.name
    if isinstance(seen, Planes):
        rows = seen.parts[0]
    elif _LUMA_FIRST.fullmatch(name) and frame.planes[0].line_size > 0:  # else it is upside down
        rows = _rows_of(frame.planes[0])
    else:
        rows = seen
    rows = rows[:: max(1, len(rows) // ROWS)]
    if rows.ndim == 3:  # BGR
        rows, name = np.asarray(cv2.cvtColor(rows, cv2.COLOR_BGR2GRAY), np.uint8), _GRAY
    stretches = name != _GRAY and "j" not in name and frame.color_range != _FULL_RANGE
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(rows))
    return ((mean - 16) * 255 / 219, deviation * 255 / 219) if stretches else (mean, deviation)


def _rows_of(plane: VideoPlane) -> Plane:
    rows: Plane = np.frombuffer(memoryview(plane), np.uint8)
    return rows.reshape(plane.height, plane.line_size)[:, : plane.width]


# -- what libswscale makes of them -----------------------------------------------------------------


def converted(
    frame: VideoFrame, width: int, height: int, reformatter: VideoReformatter, **colours: int
) -> npt.NDArray[np.uint8]:
    """Return a frame's BGR by libswscale, (height, width, 3), as OpenCV asks for it.

    Bicubic and BGR are what OpenCV asks: another way round, 10-bit video and video with subsampled
    chroma would differ by some levels.

    Raises:
        av.error.FFmpegError: its colours can't be converted.
    """
    found = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="bgr24",
        interpolation=Interpolation.BICUBIC,
        threads=1,  # the decoder's threads have the cores
        **colours,
    )
    return np.asarray(found.to_ndarray(), np.uint8)


class Tables(NamedTuple):
    """BGR of all there is, uint8."""

    blue: npt.NDArray[np.uint8]
    """By Y and U, (256, 256); gray: by Y, (256,)."""
    green: npt.NDArray[np.uint8]
    """By Y, U and V, (256, 256, 256); gray: by Y, (256,)."""
    red: npt.NDArray[np.uint8]
    """By Y and V, (256, 256); gray: by Y, (256,)."""


@lru_cache(maxsize=4)
def tables_of(colours: Colours) -> Tables | None:
    """Ask libswscale for all colours there are; None: it is no function of a pixel's own here.

    Takes half a second, once for a kind of film. What it says is tried on a picture of noise, since
    other processors have other code.
    """
    try:
        made = _gray(colours) if colours.format == _GRAY else _coloured(colours)
        if made is None:
            return None
        return made if _is_true(made, colours) else None
    except builtins.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        return None


def look_up(tables: Tables, parts: tuple[Plane, ...]) -> npt.NDArray[np.uint8]:
    """Return the BGR of planes, (height, width, 3), by tables."""
    luma, *others = parts
    height, width = luma.shape
    if not others:
        return np.stack([table[luma] for table in tables], axis=-1)
    blue, red = (plane.repeat(2, 0).repeat(2, 1)[:height, :width] for plane in others)
    found = (tables.blue[luma, blue], tables.green[luma, blue, red], tables.red[luma, red])
    return np.stack(found, axis=-1)


def _gray(colours: Colours) -> Tables:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = _asked(colours, every).reshape(256, 3)
    return Tables(*(np.ascontiguousarray(found[:, colour]) for colour in range(3)))


def _coloured(colours: Colours) -> Tables | None:
    every = np.arange(256, dtype=np.uint8)
    us, vs = np.broadcast_to(every[:, None], (256, 256)), np.broadcast_to(every, (256, 256))
    made = Tables(
        np.empty((256, 256), np.uint8),
        np.empty((256, 256, 256), np.uint8),
        np.empty((256, 256), np.uint8),
    )
    for first in range(0, 256, 4):
        four = np.arange(first, first + 4, dtype=np.uint8).reshape(2, 2)
        found = _asked(colours, np.tile(four, (256, 256)), us, vs)
        for luma in range(4):
            blue, green, red = found[luma // 2 :: 2, luma % 2 :: 2].transpose(2, 0, 1)
            if (blue != blue[:, :1]).any() or (red != red[:1]).any():
                return None
            made.blue[first + luma], made.red[first + luma] = blue[:, 0], red[0]
            made.green[first + luma] = green
    return made


def _is_true(tables: Tables, colours: Colours) -> bool:
    chance = np.random.default_rng(0)
    for height, width in ((98, 251), (2, 3)):
        sizes = [(height, width)]
        if colours.format != _GRAY:
            sizes += [(-(-height // 2), -(-width // 2))] * 2
        parts = tuple(chance.integers(0, 256, size, np.uint8) for size in sizes)
        if not np.array_equal(look_up(tables, parts), _asked(colours, *parts)):
            return False
    return True


def _asked(colours: Colours, *parts: Any) -> npt.NDArray[np.uint8]:
    """Return what libswscale makes of planes, (height, width, 3)."""
    height, width = parts[0].shape
    frame = VideoFrame(width, height, colours.format)
    frame.colorspace, frame.color_range = colours.space, colours.range
    for plane, values in zip(frame.planes, parts, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    return converted(frame, width, height, VideoReformatter())
