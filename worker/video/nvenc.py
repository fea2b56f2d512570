"""Who encodes pose.mp4: an NVIDIA card (NVENC) where it really can, else x264.

That a card is there says little: data centres' have no encoder, drivers are too old for this
FFmpeg, consumers' cards encode a few films at a time, each has a smallest and a largest frame. So a
card is believed when it has encoded some frames which the decoder shows as they were; and a film
that it fails at, wherever, is encoded once more by x264.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from worker.video.canvas import NVENC, X264, Canvas, Encoder, encode, view_of
from worker.video.pixels import Image

#: A side of the frames that are tried, in pixels: within what every card takes.
_SIDE = 256
#: When they are shown, in ticks: unevenly, as cameras do.
_TIMES = (0, 3, 4, 9, 10, 11, 30, 31, 33, 34, 35, 50)
_TICK = Fraction(1, 100)
#: Levels of luma by which they may differ in the mean, when they come back.
_OFF = 6.0
#: Seconds until a card that could not encode is tried again.
AGAIN_SECONDS = 600.0

#: When a card was tried, and why it can't.
_tried: dict[int, tuple[float, str]] = {}


def chosen(wanted: str, device: str) -> tuple[Encoder, str]:
    """Return the encoder to begin with, and why.

    Args:
        wanted: ``cuda``: a card, if it can; ``auto``: the same, unless networks are kept from it;
            ``cpu``: x264.
        device: where networks run, as it is set: a card of that number encodes, if it is one.
    """
    if wanted == "cpu":
        return X264, "POSEDROP_ENCODE=cpu, or it was tried before"
    if wanted == "auto" and device.partition(":")[0] not in {"auto", "cuda"}:
        return X264, f"POSEDROP_DEVICE={device}"
    lacks = lacking_on(device)
    return (X264, lacks) if lacks else (NVENC, "a card encodes")


def lacking_on(device: str) -> str:
    """Return why the card that torch calls so can't encode, empty: it can."""
    return lacking(number_of(device))


def number_of(device: str) -> int:
    """Return the number of a card, as NVIDIA counts them, that torch names; the first if none."""
    kind, _, number = device.partition(":")
    return int(number) if kind == "cuda" and number.isdecimal() else 0


def lacking(gpu: int) -> str:
    """Return why a card can't encode here, empty: it can. It is tried once, and if it can't, again.

    Another process may have had all that it encodes at a time.
    """
    when, why = _tried.get(gpu, (0.0, ""))
    if gpu not in _tried or (why and time.monotonic() - when > AGAIN_SECONDS):
        why = _try(gpu)
        _tried[gpu] = time.monotonic(), why
    return why


def _try(gpu: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.mp4"
        try:
            write_sample(path, NVENC, gpu)
            wrong = _what_is_wrong(path)
        except Exception as error:  # whatever a driver makes of it
            return f"no card can encode here: {words(error)}"
    return f"a card's encoding is of no use: {wrong}" if wrong else ""


def write_sample(path: Path, encoder: Encoder, gpu: int = 0) -> None:
    """Write a film of some frames, small and uneven."""
    encode(path, _drawn(), encoder=encoder, gpu=gpu)


def words(error: Exception) -> str:
    """Return what an error of FFmpeg's says, without the options that it was asked for."""
    return str(getattr(error, "strerror", None) or error)[:300]


def _drawn() -> Iterator[Canvas]:
    for index, (at, luma) in enumerate(zip(_TIMES, _lumas(), strict=True)):
        frame = VideoFrame(_SIDE, _SIDE, "yuv420p")
        y, u, v = (view_of(plane) for plane in frame.planes)
        y[:], u[:], v[:] = luma, 128, 128
        yield Canvas(index, y, u, v, at, 1, _TICK, Fraction(24), Fraction(1), frame)


def _lumas() -> Iterator[Image]:
    """Yield what the frames show: a square that moves over a gradient."""
    gradient = np.broadcast_to(np.linspace(60, 180, _SIDE), (_SIDE, _SIDE)).astype(np.uint8)
    for number in range(len(_TIMES)):
        luma = gradient.copy()
        luma[40 + 8 * number :, 40 + 8 * number :][:64, :64] = 230
        yield luma


def _what_is_wrong(path: Path) -> str:
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        shown = list(film.decode(stream))
        base = stream.time_base or Fraction(1)
        times = [(frame.pts or 0) * base for frame in shown]
    if times != [at * _TICK for at in _TIMES]:
        return f"frames are shown at {', '.join(f'{float(at):.3f}' for at in times)} s"[:200]
    if shown[0].format.name != "yuv420p" or not shown[0].key_frame:
        return f"it begins with {shown[0].format.name}, or with no key frame"
    for frame, luma in zip(shown, _lumas(), strict=True):
        off = float(np.abs(view_of(frame.planes[0]).astype(float) - luma).mean())
        if off > _OFF:
            return f"a frame is off by {off:.0f} levels"
    return ""
