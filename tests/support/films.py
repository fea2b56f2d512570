"""Films as recorders, phones and cut streams write them, by the hundred, and OpenCV to judge them.

``python -m tests.faults.films`` compares many more than the tests do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Literal, get_args

import av
import cv2
import numpy as np
from hypothesis import strategies as st

from tests.support import videos
from worker.video import decode, numbering

Change = Literal["none", "far_off", "shuffled", "pts_is_dts", "offset", "hours"]
Shape = Literal["whole", "joined", "cut_start"]
CHANGES: tuple[Change, ...] = get_args(Change)

#: Options of each codec: B-frames, open groups of pictures, hidden reference frames.
CODECS: dict[str, list[dict[str, str]]] = {
    "libx264": [
        {"bf": "0"},
        {"bf": "3", "b-pyramid": "normal"},
        {"bf": "2", "x264-params": "open-gop=1"},
        {"bf": "2", "x264-params": "intra-refresh=1"},
    ],
    "libx265": [
        {"x265-params": "log-level=none:bframes=0"},
        {"x265-params": "log-level=none:bframes=3:open-gop=1"},
    ],
    "mpeg4": [{"bf": "0"}, {"bf": "2"}],
    "mpeg2video": [{"bf": "0"}, {"bf": "2"}],
    "libvpx": [{"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7", "b": "100k"}],
    "libvpx-vp9": [{"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k", "cpu-used": "8"}],
    "mjpeg": [{}],
    "ffv1": [{}],
}
CONTAINERS: dict[str, list[str]] = {
    "libx264": ["mp4", "matroska", "mpegts", "avi", "mov", "nut", "flv"],
    "libx265": ["mp4", "matroska", "mpegts"],
    "mpeg4": ["mp4", "matroska", "avi", "nut"],
    "mpeg2video": ["mpegts", "matroska", "vob"],
    "libvpx": ["webm", "ivf", "nut"],
    "libvpx-vp9": ["webm", "mp4"],
    "mjpeg": ["avi", "mov", "matroska"],
    "ffv1": ["matroska", "avi", "nut"],
}
#: Those of which the bytes of two files are a file.
JOINED = ("mpegts", "matroska", "webm")

#: Those with a list of what is to be shown.
EDITED = ("mp4", "mov")


@dataclass(frozen=True)
class Film:
    """How a film is made."""

    codec: str
    options: tuple[tuple[str, str], ...]
    container: str
    frames: int
    gop: int
    rate: Fraction
    change: Change = "none"
    """Of the times that its packets are written with."""
    shape: Shape = "whole"
    seed: int = 0


@st.composite
def films(draw: st.DrawFn) -> Film:
    """Draw a film."""
    codec = draw(st.sampled_from(sorted(CODECS)))
    container = draw(st.sampled_from(CONTAINERS[codec]))
    shapes: list[Shape] = ["whole"]
    if container in JOINED:
        shapes.append("joined")
    if container == "mpegts":
        shapes.append("cut_start")
    return Film(
        codec,
        tuple(draw(st.sampled_from(CODECS[codec])).items()),
        container,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 20)),
        draw(st.sampled_from([Fraction(r) for r in ("15", "25", "30000/1001", "240", "2000")])),
        # FFmpeg aborts where a NUT file's times are in another order.
        draw(st.sampled_from(["none", "offset"] if container == "nut" else CHANGES)),
        draw(st.sampled_from(shapes)),
        draw(st.integers(0, 99)),
    )


def make(path: Path, film: Film) -> Path:
    """Write a film; its muxer's error where it doesn't take the times."""
    _mux(path, film, Fraction(100 if film.shape == "joined" else 0))
    if film.shape == "joined":
        second = path.with_suffix(".second")
        _mux(second, film, Fraction(5))
        path.write_bytes(path.read_bytes() + second.read_bytes())
    if film.shape == "cut_start":
        content = path.read_bytes()
        path.write_bytes(content[188 * (len(content) // 188 * film.seed // 150) :])
    return path


def _mux(path: Path, film: Film, offset: Fraction) -> None:
    chance = random.Random(film.seed)
    with av.open(str(path), "w", format=film.container) as output:
        stream = output.add_stream(film.codec, rate=film.rate, options=dict(film.options))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if film.codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        stream.codec_context.gop_size = film.gop
        packets = []
        for picture in videos.pictures(film.frames, 64, 48):
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        packets += stream.encode()
        _change(packets, film, chance)
        for packet in packets:
            ticks = int(offset / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            output.mux(packet)


def _change(packets: list[av.Packet], film: Film, chance: random.Random) -> None:
    base = packets[0].time_base
    times = [packet.pts for packet in packets]
    place = chance.randrange(len(packets))
    for number, packet in enumerate(packets):
        if film.change == "far_off" and number == place:
            packet.pts += int(100 / base)
        elif film.change == "pts_is_dts":
            packet.pts = packet.dts
        elif film.change == "hours" and number >= place:
            packet.pts, packet.dts = packet.pts + int(7200 / base), packet.dts + int(7200 / base)
    if film.change == "shuffled":
        late = max(times) - min(packet.dts for packet in packets)
        chance.shuffle(times)
        for packet, time in zip(packets, times, strict=True):
            packet.pts = time + late
    if film.change == "offset":
        ticks = chance.randrange(1, int(50 / base))
        for packet in packets:
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks


def is_read(path: Path) -> bool:
    """Return whether OpenCV opens a film: a transport stream of two frames is too little."""
    return bool(cv2.VideoCapture(str(path)).isOpened())


def opencv_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield a film's frames as OpenCV, and so DeepLabCut, reads them: BGR."""
    capture = cv2.VideoCapture(str(path))
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def agree(path: Path) -> numbering.Reading:
    """Check that a film's frames are those of OpenCV: as many, in its order, its pixels."""
    reading = numbering.Reading()
    ours = decode.frames(path, order="bgr", reading=reading)
    for count, (found, expected) in enumerate(zip_longest(ours, opencv_frames(path))):
        assert found is not None, f"OpenCV reads more than {count}"
        assert expected is not None, f"OpenCV reads {count}"
        number, frame = found
        assert number == count
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(np.int16) - expected).max() <= 1
    return reading


def check(path: Path, film: Film) -> numbering.Reading:
    """Check that a film without damage is read whole, and that its times can be."""
    reading = agree(path)
    assert not len(reading.lost)
    # What comes before zero is cut away by an MP4's edit list, for OpenCV too.
    if film.shape != "cut_start" and (film.change == "none" or film.container not in EDITED):
        assert reading.end == film.frames * (2 if film.shape == "joined" else 1)
    if film.shape != "cut_start":
        assert not reading.cut
        # FFmpeg calls the only frame of an MPEG-2 film damaged.
        assert not reading.concealed or film.codec == "mpeg2video"
    seconds, source = reading.seconds(np.arange(reading.end))
    assert source in ("container", "interpolated", "rate")
    assert len(seconds) == 0 or seconds[0] == 0
    assert all(earlier < later for earlier, later in pairwise(seconds))
    return reading
