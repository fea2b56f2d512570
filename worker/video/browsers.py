"""Whether browsers show a film's frames, one by one, as they are decoded here.

A browser has decoders for few codecs, and a clock of its own: where a film turns its frames, cuts
some of them by an edit list, or has times that had to be mended, what a browser shows at a time is
another frame than the one that has this time in the table. Such a film is shown as a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.video import endings
from worker.video.pixels import side_data_of
from worker.video.times import Clock

#: As what browsers play a film of each kind.
_TYPES = {"mov": "video/mp4", "qt": "video/mp4", "webm": "video/webm"}
#: Pixels that are decoded for one step back, at most: 250 frames of 1280 x 720.
MOST_STEP_PIXELS = 250 * 1280 * 720
#: Seconds before the first frame, at most: browsers differ in what they show then.
MOST_DELAY = 0.5
_CODECS = {
    "mov": frozenset({"h264", "vp9", "av1"}),
    "qt": frozenset({"h264"}),
    "webm": frozenset({"vp8", "vp9", "av1"}),
}
_FORMATS = frozenset({"yuv420p", "yuvj420p"})
#: Bytes of a file in which its kind is named.
_HEAD = 256


@dataclass(slots=True)
class Packets:
    """What a film's packets tell, from the first to the last."""

    shown: int = 0
    hidden: bool = False
    """Whether an edit list, or the codec, hides some."""
    longest: int = 0
    """The most packets from one key frame to the next."""
    first: int | None = None
    """The earliest time, in ticks."""
    _behind: int = 0

    def add(self, is_shown: bool, is_key: bool, pts: int | None) -> None:
        """Take the next packet."""
        self._behind = 1 if is_key else self._behind + 1
        self.longest = max(self.longest, self._behind)
        self.shown += is_shown
        self.hidden |= not is_shown
        if is_shown and pts is not None:
            self.first = pts if self.first is None else min(self.first, pts)


def plays_as(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    packets: Packets,
    frame: VideoFrame,
    clock: Clock,
) -> str:
    """Return the type as which browsers play a film, or in a few words why they can't.

    To play it is to show each frame that is decoded here, at its own time.

    Args:
        path: the film.
        container: of it, open.
        stream: the video in it.
        packets: all that the stream has.
        frame: the first one that is shown.
        clock: has mended the times of all frames.
    """
    kind, codec = _kind(path, container), stream.codec_context.name
    codec = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx-vp9": "vp9"}.get(codec, codec)
    delay = float((packets.first or 0) * (stream.time_base or 0))
    listed = stream.frames if kind in {"mov", "qt"} else 0
    reasons = {
        f"no browser plays {codec} in such a file": codec not in _CODECS.get(kind, frozenset()),
        f"its pixels are {frame.format.name}": frame.format.name not in _FORMATS,
        "its frames are turned": "DISPLAYMATRIX" in side_data_of(frame),
        "its frames are interlaced": frame.interlaced_frame,
        "an edit list cuts or repeats frames": (packets.hidden and codec != "vp8")
        or listed not in {0, packets.shown},
        "its file is in fragments": kind in {"mov", "qt"} and endings.is_fragmented(path),
        "its times are mended": clock.source != "container",
        "it begins late": not -MOST_DELAY <= delay <= MOST_DELAY,
        "its key frames are seldom": packets.longest * frame.width * frame.height
        > MOST_STEP_PIXELS,
    }
    return next((reason for reason, applies in reasons.items() if applies), _TYPES.get(kind, kind))


def _kind(path: Path, container: InputContainer) -> str:
    """Return ``mov`` (MP4), ``qt`` (QuickTime), ``webm``, or the name of another container."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    name = container.format.name
    if "mov" in name:
        return "qt" if head[4:8] != b"ftyp" or head[8:12] == b"qt  " else "mov"
    return "webm" if "webm" in name and b"webm" in head else name
