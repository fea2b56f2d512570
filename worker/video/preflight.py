"""Preflight: what a file is, found out in a child process. A probe, or a typed refusal."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from posedrop.buckets.records.videos import Probe
from posedrop.errors import RefusedVideoError
from worker.video import browsers, containers, numbering, pixels
from worker.video.numbering import Reading
from worker.video.pixels import Picture
from worker.video.times import Clock

Report = Callable[[str, int, int | None], None]

#: The smallest side of a frame, in pixels.
MIN_SIDE = 16
#: Up to so many pixels in all, a probe decodes every frame (a few seconds of work).
DECODE_ALL_PIXELS = 10**9
#: Frame intervals that differ by more than this share of the mean make a variable frame rate.
UNEVEN = 0.1


def probe(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Probe a video and draw its thumbnail.

    Args:
        payload: ``video`` and ``thumbnail`` (paths; the latter a JPEG to write), ``max_pixels``
            (a frame) and ``max_frames``.
        report: ``report(stage, frames_done, frames_total)``.

    Returns:
        ``{"probe": posedrop.buckets.records.videos.Probe as JSON}``.

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
            ``unsupported_codec``, ``truncated``, ``no_frames``, ``too_many_pixels``,
            ``too_many_frames`` or ``bad_size``.
    """
    if path.stat().st_size == 0:
        raise containers.unreadable(path)
    with containers.opened(path, max_pixels) as (container, stream):
        _check_side(stream.width, stream.height, max_pixels)
        packets = browsers.Packets()
        listed = _read_packets(container, stream, max_frames, packets)
        if containers.ends_early(path, stream):
            raise containers.truncated()
        counts, codec = "mov" in container.format.name, stream.codec_context.name
    reading = Reading()
    with closing(numbering.numbered(path, reading, max_pixels)) as shown:
        first = next(shown, None)
        if first is None:
            raise RefusedVideoError(
                f"no frame of it can be decoded: it is damaged, or has frames of far more than the "
                f"{max_pixels:,} pixels that this server takes; upload it again, or scale it down",
                code="no_frames",
            )
        _check_side(first.frame.width, first.frame.height, max_pixels)
        total, ticks = len(listed), listed
        if len(listed) * first.width * first.height <= DECODE_ALL_PIXELS:
            for _ in shown:
                _check_count(reading.end, max_frames)
            total, counts, ticks = reading.end, True, reading.ticks
    _check_count(total, max_frames)
    found = _Times(ticks, reading)
    with containers.opened(path, max_pixels) as (container, stream):
        plays = browsers.plays_as(path, container, stream, packets, first.frame, found.clock)
    upright = first.turns % 2 == 0
    return Probe(
        codec=codec,
        pixel_format=first.frame.format.name,
        width=first.width if upright else first.height,
        height=first.height if upright else first.width,
        fps=found.rate,
        frames=total,
        frames_counted=counts,
        duration=found.duration or total / found.rate,
        rotation=pixels.rotation_of(first.frame),
        variable_frame_rate=found.uneven,
        browser=plays,
    )


def _check_side(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RefusedVideoError(
            f"its frames have {width} x {height} pixels, more than the {max_pixels:,} this server "
            "takes; scale it down, e.g. ffmpeg -i IN -vf scale=1280:-2 OUT.mp4",
            code="too_many_pixels",
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
            code="too_many_frames",
        )


def _read_packets(
    container: InputContainer, stream: VideoStream, max_frames: int, told: browsers.Packets
) -> array[int]:
    """Return when the packets' frames are shown, in ticks, in about that order."""
    ticks = array("q")
    waiting: list[int] = []
    shown = containers.Shown(stream)
    for packet in containers.packets(container, stream):
        shown.take(packet)
        if shown.part == "first":
            continue
        told.add(shown.ends, packet.is_keyframe, shown.time)
        if not shown.ends:
            continue
        heapq.heappush(waiting, numbering.NO_TIME if shown.time is None else shown.time)
        _check_count(len(ticks) + len(waiting), max_frames)
        if len(waiting) > numbering.REORDERED:
            ticks.append(heapq.heappop(waiting))
    while waiting:
        ticks.append(heapq.heappop(waiting))
    return ticks


class _Times:
    """What the times of a film's frames tell."""

    def __init__(self, ticks: array[int], reading: Reading) -> None:
        self.clock = clock = Clock(float(reading.base), float(1 / reading.rate))
        known = ((None if time == numbering.NO_TIME else time, None) for time in ticks)
        shortest, longest, last, frames = float("inf"), 0.0, 0.0, 0
        for frames, (time, _) in enumerate(clock.run(known), 1):
            if frames > 1:
                shortest, longest = min(shortest, time - last), max(longest, time - last)
            last = time
        mean = last / (frames - 1) if frames > 1 else 0.0
        self.rate = float(reading.rate)
        """Frames a second."""
        if mean and clock.source != "rate" and not 0.98 < mean * self.rate < 1.02:
            self.rate = 1 / mean
        self.duration = round(last + clock.interval, 6)
        """Seconds."""
        rounding = 2 * float(reading.base)
        self.uneven = frames > 1 and longest - shortest > max(rounding, UNEVEN * mean) * 1.000001
        """Whether intervals differ by more than rounding to the time base explains."""


def thumbnail(path: Path, out: Path, width: int = 320) -> None:
    """Write a small JPEG of a frame about a tenth into the video.

    Args:
        path: the video.
        out: the JPEG to write.
        width: its width in pixels; its height keeps the frame's proportions, up to twice that.

    Raises:
        RefusedVideoError: it is not a video that can be read, or no frame can be decoded.
    """
    picture = _keyframe(path, 0.1)
    if picture is None or picture.frame.is_corrupt:
        picture = _keyframe(path, 0.0) or picture
    if picture is None:
        raise RefusedVideoError(
            "no frame of it can be decoded: it is damaged; upload it again", code="no_frames"
        )
    rgb = pixels.to_rgb(picture, VideoReformatter())
    height, wide = rgb.shape[:2]
    scale = min(width / wide, 2 * width / height)
    size = (max(1, round(wide * scale)), max(1, round(height * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    if not done:
        raise RefusedVideoError(
            f"no thumbnail can be drawn of its frames of {wide} x {height} pixels; scale it, e.g. "
            "ffmpeg -i IN -vf scale=640:480 OUT.mp4",
            code="bad_size",
        )
    out.write_bytes(jpeg.tobytes())


def _keyframe(path: Path, share: float) -> Picture | None:
    with containers.opened(path) as (container, stream):
        size = (stream.width, stream.height)
        if share and stream.duration:
            # What made it is told before the first frame alone, and FFmpeg has to know it: before
            # build 151 x264 coded frames of 4:4:4 otherwise than others do.
            next(containers.decoded(container, stream), None)
            try:
                offset = (stream.start_time or 0) + int(share * stream.duration)
                container.seek(offset, stream=stream)
            except (av.error.FFmpegError, OverflowError):
                return None
        frame = next(containers.decoded(container, stream), None)
        if frame is None:
            return None
        width, height = size if all(size) else (frame.width, frame.height)
        return Picture(0, frame, pixels.turns_of(frame), width, height)
