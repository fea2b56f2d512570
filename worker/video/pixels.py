"""Pixels of decoded frames as OpenCV, and so DeepLabCut, sees them: BGR or RGB, upright."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import atan2, degrees
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from posedrop.errors import RefusedVideoError
from worker.video.planes import Planes, converted, planes_of

Image = npt.NDArray[np.uint8]
# As FFmpeg numbers primaries and transfer functions.
_BT709, _UNSPECIFIED = 1, 2
_NARROW = (_BT709, _UNSPECIFIED, 4, 5, 6, 7)
_HIGH_RANGE = (16, 18)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame, and what is done to each of its video's."""

    index: int
    frame: VideoFrame
    turns: int
    """Quarter turns clockwise."""
    width: int
    """Pixels before rotation; as the file's header says, whatever a frame has."""
    height: int


class OpenCVReading:
    """OpenCV's own reading of a film that is read already, for colours that PyAV can't map so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture: cv2.VideoCapture | None = None
        self._grabbed = 0

    def image(self, place: int) -> Image | None:
        """Return OpenCV's BGR of a frame, upright, by its place among those that are shown."""
        if self._capture is None:
            self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        while self._grabbed < place and self._capture.grab():
            self._grabbed += 1
        if self._grabbed < place:
            return None
        self._grabbed += 1
        there, image = self._capture.read()
        return np.asarray(image, np.uint8) if there else None

    def close(self) -> None:
        """Close OpenCV's film."""
        if self._capture is not None:
            self._capture.release()


def rotation_of(frame: VideoFrame) -> int:
    """Return the clockwise rotation in degrees, 0 to 359, that the container asks for."""
    if not frame.rotation:
        return 0
    # PyAV cuts the fraction off, and OpenCV rounds.
    matrix = np.frombuffer(bytes(side_data_of(frame)["DISPLAYMATRIX"]), np.int32)
    across, down = np.hypot(matrix[[0, 1]], matrix[[3, 4]].astype(float))
    if not (across and down):  # it would squeeze the frame to nothing; OpenCV turns none then
        return 0
    return round(degrees(atan2(matrix[1] / down, matrix[0] / across))) % 360


def turns_of(frame: VideoFrame) -> int:
    """Return the quarter turns clockwise; other angles are left alone, as OpenCV does."""
    return {90: 1, 180: 2, 270: 3}.get(rotation_of(frame), 0)


def to_rgb(picture: Picture, reformatter: VideoReformatter) -> Image:
    """Return a frame as RGB, uint8 (height, width, 3), upright."""
    return as_rgb(as_bgr(picture, reformatter))


def as_rgb(image: Image) -> Image:
    """Return a BGR image as RGB."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def as_planes(picture: Picture) -> Planes | None:
    """Return a frame as it was decoded, if who converts it by that alone finds the same."""
    frame = picture.frame
    if (frame.width, frame.height) != (picture.width, picture.height) or _mapped(frame):
        return None
    return planes_of(frame, picture.turns)


def as_bgr(picture: Picture, reformatter: VideoReformatter) -> Image:
    """Return a frame as BGR, uint8 (height, width, 3), upright."""
    size = (picture.width, picture.height)
    try:
        image = converted(picture.frame, *size, reformatter, **_mapped(picture.frame))
    except av.error.FFmpegError:
        with convertible():  # a transfer function that libswscale doesn't know: OpenCV shows black
            image = converted(picture.frame, *size, reformatter)
    return np.ascontiguousarray(np.rot90(image, -picture.turns))


@contextmanager
def convertible() -> Iterator[None]:
    """Say what is wrong with frames that libswscale can't convert."""
    try:
        yield
    except builtins.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise RefusedVideoError(
            "its colours are stored in a way that can't be converted; re-encode it, e.g. "
            "ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4",
            code="unsupported_codec",
        ) from error


def tells_screen_colours(frame: VideoFrame) -> bool:
    """Whether a frame tells the colours of the screen it was made on.

    They are the source's, and PyAV takes them for the target's too.
    """
    if frame.color_trc not in _HIGH_RANGE and frame.color_primaries in _NARROW:
        return False
    return bool(side_data_of(frame).keys() & {"MASTERING_DISPLAY_METADATA", "DYNAMIC_HDR_PLUS"})


def side_data_of(frame: VideoFrame) -> dict[str, Any]:
    """Return what goes with a frame, by the name of its kind: its turns, HDR metadata."""
    every: Any = frame.side_data  # no mapping, whatever PyAV's types say
    return {side.type.name: side for side in every}


def _mapped(frame: VideoFrame) -> dict[str, int]:
    """Return what OpenCV 5 leaves to libswscale, which maps wide colours and high range to BT.709.

    PyAV asks for no such thing unless told to.
    """
    trc, primaries = frame.color_trc, frame.color_primaries
    high, wide = trc in _HIGH_RANGE, primaries not in _NARROW
    colours = {}
    if (high or wide) and trc != _UNSPECIFIED:
        colours["dst_color_trc"] = _BT709 if high else trc
    if (high or wide) and primaries != _UNSPECIFIED:
        colours["dst_color_primaries"] = _BT709 if wide else primaries
    return colours
