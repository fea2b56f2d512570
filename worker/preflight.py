"""Preflight: what a file is, found out in a child process. A probe, or a typed refusal."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import RefusedVideoError
from posedrop.records import Probe
from worker import video
from worker.video import Picture

Report = Callable[[str, int, int | None], None]

#: The smallest side of a frame, in pixels.
MIN_SIDE = 16
#: Up to so many pixels in all, a probe decodes every frame (a few seconds of work).
DECODE_ALL_PIXELS = 10**9
#: By how many frames the order of decoding can differ from that of display (H.264: 16), with room.
REORDERED = 64
#: Frame intervals that differ by more than this share of the mean make a variable frame rate.
UNEVEN = 0.1


def probe(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Probe a video and draw its thumbnail.

    Args:
        payload: ``video`` and ``thumbnail`` (paths; the latter a JPEG to write), ``max_pixels``
            (a frame) and ``max_frames``.
        report: ``report(stage, frames_done, frames_total)``.

    Returns:
        ``{"probe": posedrop.records.Probe as JSON}``.

    Raises:
        RefusedVideoError: it can't be analysed; the code says why.
    """
    path = Path(payload["video"])
    report("probe", 0, None)
    found = examine(path, max_pixels=payload["max_pixels"], max_frames=payload["max_frames"])
    thumbnail(path, Path(payload["thumbnail"]))
    report("probe", found.frames, found.frames)
    return {"probe": found.model_dump(mode="json")}


def examine(path: Path, *, max_pixels: int, max_frames: int) -> Probe:
    """Find out what a video is, and that it can be decoded.

    Frames are counted by decoding all of them where that takes a few seconds at most, else by
    reading the container's packets.

    Args:
        path: the video.
        max_pixels: the most pixels a frame may have; looked at before any is decoded.
        max_frames: the most frames a video may have.

    Raises:
        RefusedVideoError: code ``empty``, ``not_a_video``, ``no_video_stream``,
            ``unsupported_codec``, ``truncated``, ``no_frames``, ``too_large`` or ``bad_size``.
    """
    if path.stat().st_size == 0:
        raise video.unreadable(path)
    with video.opened(path, max_pixels) as (container, stream):
        _check_side(stream.width, stream.height, max_pixels)
        _check_count(stream.frames, max_frames)
        tally = _read_packets(container, stream, max_frames)
        if _ends_early(path, stream):
            raise video.truncated()
    with video.opened(path, max_pixels) as (container, stream):
        shown = video.decoded(container, stream)
        first = next(shown, None)
        if first is None:
            raise RefusedVideoError(
                f"no frame of it can be decoded: it is damaged, or has frames of far more than the "
                f"{max_pixels:,} pixels that this server takes",
                code="no_frames",
            )
        _check_side(first.width, first.height, max_pixels)
        total, seen = tally.packets, "mov" in container.format.name
        if tally.packets * first.width * first.height <= DECODE_ALL_PIXELS:
            total, seen = 1 + sum(1 for _ in shown), True
        _check_count(total, max_frames)
        return _describe(stream, first, tally, total, seen)


def _check_side(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RefusedVideoError(
            f"its frames have {width} x {height} pixels, more than the {max_pixels:,} this server "
            "takes; scale it down, e.g. ffmpeg -i IN -vf scale=1280:-2 OUT.mp4",
            code="too_large",
        )
    # Neither is known yet where the container doesn't say it; the first frame will.
    if width and height and min(width, height) < MIN_SIDE:
        raise RefusedVideoError(
            f"its frames have {width} x {height} pixels; the smallest that can be analysed is "
            f"{MIN_SIDE} x {MIN_SIDE}",
            code="bad_size",
        )


def _check_count(frames_: int, max_frames: int) -> None:
    if frames_ > max_frames:
        raise RefusedVideoError(
            f"it has {frames_:,} frames or more, and this server takes {max_frames:,}; cut it into "
            "parts, e.g. ffmpeg -i IN -c copy -f segment -segment_time 3600 OUT%03d.mp4",
            code="too_large",
        )


@dataclass(slots=True)
class _Tally:
    """What the packets of a video say, without decoding; times in the stream's time base."""

    packets: int = 0
    first: int | None = None
    last: int | None = None
    duration: int = 0
    """Of the last frame."""
    intervals: int = 0
    shortest: int | None = None
    longest: int = 0

    def add(self, pts: int, duration: int) -> None:
        """Take in the next time of display, in ascending order."""
        if self.first is None:
            self.first = pts
        if self.last is not None:
            interval = pts - self.last
            self.intervals += 1
            self.shortest = interval if self.shortest is None else min(interval, self.shortest)
            self.longest = max(interval, self.longest)
        self.last, self.duration = pts, duration

    @property
    def mean(self) -> float:
        """The mean interval between frames; 0 where there is none."""
        if self.first is None or self.last is None or not self.intervals:
            return 0.0
        return (self.last - self.first) / self.intervals

    @property
    def uneven(self) -> bool:
        """Whether intervals differ by more than rounding to the time base explains."""
        spread = self.longest - (self.shortest or 0) if self.intervals else 0
        return spread > max(2, UNEVEN * self.mean)


def _read_packets(container: InputContainer, stream: VideoStream, max_frames: int) -> _Tally:
    tally = _Tally()
    waiting: list[tuple[int, int]] = []
    for packet in video.packets(container, stream):
        if not video.is_shown(packet):
            continue
        tally.packets += 1
        _check_count(tally.packets, max_frames)
        if packet.pts is not None:
            heapq.heappush(waiting, (packet.pts, packet.duration or 0))
        if len(waiting) > REORDERED:
            tally.add(*heapq.heappop(waiting))
    while waiting:
        tally.add(*heapq.heappop(waiting))
    return tally


def _ends_early(path: Path, stream: VideoStream) -> bool:
    """Whether the container's index lists samples that lie beyond the end of the file."""
    if "mov" not in stream.container.format.name or not len(stream.index_entries):
        return False
    size = path.stat().st_size
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _describe(
    stream: VideoStream, first: VideoFrame, tally: _Tally, total: int, seen: bool
) -> Probe:
    base = stream.time_base or Fraction(1, 90_000)
    rate = video.rate_of(stream, tally.mean if tally else None, base)
    span = 0 if tally.first is None or tally.last is None else tally.last - tally.first
    duration = float((span + tally.duration) * base if span else total / rate)
    upright = video.turns_of(first) % 2 == 0
    return Probe(
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        width=first.width if upright else first.height,
        height=first.height if upright else first.width,
        fps=float(rate),
        frames=total,
        frames_counted=seen,
        duration=duration,
        rotation=video.rotation_of(first),
        variable_frame_rate=tally.uneven,
    )


def thumbnail(path: Path, out: Path, width: int = 320) -> None:
    """Write a small JPEG of a frame about a tenth into the video.

    Args:
        path: the video.
        out: the JPEG to write.
        width: its width in pixels; its height keeps the frame's proportions.

    Raises:
        RefusedVideoError: it is not a video that can be read, or no frame can be decoded.
    """
    picture = _keyframe(path, 0.1) or _keyframe(path, 0.0)
    if picture is None:
        raise RefusedVideoError("no frame of it can be decoded", code="no_frames")
    rgb = video.to_rgb(picture, VideoReformatter())
    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    out.write_bytes(jpeg.tobytes())


def _keyframe(path: Path, share: float) -> Picture | None:
    with video.opened(path) as (container, stream):
        if share and stream.duration:
            try:
                offset = (stream.start_time or 0) + int(share * stream.duration)
                container.seek(offset, stream=stream)
            except av.error.FFmpegError:
                return None
        frame = next(video.decoded(container, stream), None)
        if frame is None:
            return None
        return Picture(0, frame, video.turns_of(frame), frame.width, frame.height)
