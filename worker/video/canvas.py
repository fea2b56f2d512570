"""Frames to draw on, and their encoding as H.264 that browsers play."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Final, Literal

import av
import av.error
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.codec.context import ThreadType
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import AnalysisError
from worker.video import containers, numbering, pixels
from worker.video.numbering import Reading
from worker.video.pixels import Image, Picture
from worker.video.times import AHEAD, LONGEST_INTERVAL, LONGEST_PAUSE, SELDOM, Clock

Encoder = Literal["libx264", "h264_nvenc"]
X264: Final = "libx264"
NVENC: Final = "h264_nvenc"

#: The longest side that an encoder of H.264 takes, in pixels.
MOST_SIDE = 16_384
#: Ticks a second that a labelled video may have, the finest first. FFmpeg makes no MP4 of fewer.
_TICKS = (10**6, 10**5, 10**4)
#: Ticks between two frames at most. An MP4 has 31 bits for them, and for how much later than it is
#: decoded a frame is shown, which with B-frames is some frames.
_MOST_TICKS = 2**29

# As FFmpeg numbers colour spaces and ranges.
_RGB = 0
_UNSPECIFIED = 2
_LIMITED_RANGE = 1
_FULL_RANGE = 2


@dataclass(slots=True)
class Canvas:
    """A frame to draw on, as the encoder takes it: YUV with 8 bits, limited range, upright.

    Its sides are even, as H.264 wants them: an odd one is a pixel longer than the video's, on the
    right or at the bottom, by the last column or row once more.
    """

    index: int
    """The frame's number in the video, counted from 0."""
    y: Image
    """Luma, (height, width); writable, rows may have a gap between them."""
    u: Image
    """Blue difference, (height / 2, width / 2); the same."""
    v: Image
    """Red difference, (height / 2, width / 2); the same."""
    pts: int
    """When it is shown, in ``time_base``; the video's first frame at 0."""
    duration: int
    time_base: Fraction
    """Seconds."""
    rate: Fraction
    """The video's average frames per second."""
    aspect: Fraction
    """A pixel's width to its height."""
    frame: VideoFrame
    """What the planes are views of."""

    def yuv(self, red: float, green: float, blue: float) -> tuple[int, int, int]:
        """Return a colour (0 to 1 each) as the values of the three planes."""
        weight_red, weight_blue = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(
            self.frame.colorspace, (0.299, 0.114)
        )
        luma = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
        return (
            round(16 + 219 * luma),
            round(128 + 112 * (blue - luma) / (1 - weight_blue)),
            round(128 + 112 * (red - luma) / (1 - weight_red)),
        )


def open_canvases(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    passed: Callable[[int], None] | None = None,
) -> Generator[Canvas]:
    """Decode a video into canvases; frames, arguments and errors are those of :func:`frames`.

    They are shown when ``Reading.seconds`` says, to a millionth of a second; to a thousandth, where
    they are seldom or some are left out (``stride``). ``passed`` is told the numbers of frames
    before ``start``, now and then.

    Raises:
        AnalysisError: code ``too_large_to_draw``: the encoder takes no such sides.
    """
    with containers.opened(path) as (_, stream):
        base, rate = stream.time_base or Fraction(1, 90_000), containers.rate_of(stream)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        size = stream.width, stream.height
    if not Fraction(1, 32) < aspect < 32:  # no pixel is like that
        aspect = Fraction(1)
    _check_sides(size)
    clock = Clock(float(base), float(1 / rate))
    tick: Fraction | None = None
    reading = Reading(passed=passed)
    reformatter = VideoReformatter()

    def drawn_on(picture: Picture) -> Canvas:
        frame = _even(_upright(_yuv420p(picture, reformatter), picture.turns))
        y, u, v = _planes(frame)
        turned = 1 / aspect if picture.turns % 2 else aspect
        return Canvas(picture.index, y, u, v, 0, 0, base, rate / stride, turned, frame)

    def timed() -> Generator[tuple[int | None, Canvas | None]]:
        # Every frame goes by, so that each has the time that it has in the table.
        with closing(numbering.numbered(path, reading)) as shown:
            behind = 0
            for picture in shown:
                for ticks in reading.ticks[behind : picture.index]:  # of lost ones
                    yield None if ticks == numbering.NO_TIME else ticks, None
                behind = picture.index + 1
                if picture.index < start:
                    reading.passes(picture.index)
                if stop is not None and picture.index >= stop + AHEAD:
                    return
                is_asked = picture.index >= start and (picture.index - start) % stride == 0
                is_asked &= stop is None or picture.index < stop
                yield picture.frame.pts, drawn_on(picture) if is_asked else None

    with closing(clock.run(timed())) as run:
        for seconds, canvas in run:
            if canvas is not None:
                # By now the clock has seen the first frames: it knows better than the header.
                tick = tick or _tick(base, clock.interval, stride)
                canvas.time_base = tick
                canvas.pts = round(seconds / float(tick))
                canvas.duration = min(
                    max(1, round(clock.interval * stride / float(tick))), _MOST_TICKS
                )
                yield canvas


def _check_sides(size: tuple[int, int]) -> None:
    if max(size) > MOST_SIDE:
        raise AnalysisError(
            f"no video can be written of it: its frames have {size[0]} x {size[1]} pixels, and "
            f"H.264 has no side over {MOST_SIDE:,}; its poses are there, and a run with "
            '"style": {"video": false} has its plots too',
            code="too_large_to_draw",
            field="args.style.video",
        )


def _tick(base: Fraction, interval: float, stride: int) -> Fraction:
    """Return a time base, in seconds, that a frame's times have room in, and an MP4 too.

    It is a whole part of a second: an MP4 counts in these, whatever the time base. Where it can,
    it is one of the container's ticks too, so that a time that is not mended stays what it was. It
    is fine enough for those that are, and so coarse that there is room for a pause between two
    frames that are drawn.

    Args:
        base: of the container.
        interval: between two frames of the film, in seconds.
        stride: of so many frames one is drawn.
    """
    pause = stride * min(max(LONGEST_PAUSE, SELDOM * interval), LONGEST_INTERVAL)
    wanted = next((n for n in _TICKS if 2 * n * pause <= _MOST_TICKS), _TICKS[-1])
    ticks = base.denominator
    return Fraction(1, ticks * ceil(wanted / ticks) if ticks <= 2 * wanted else wanted)


def encode(
    path: Path,
    drawn: Iterable[Canvas],
    *,
    crf: int = 23,
    encoder: Encoder = X264,
    gpu: int = 0,
    group: int | None = None,
) -> int:
    """Write canvases as an H.264 video that browsers play while they load it.

    Each frame is shown when the source shows it, counted from the first one.

    Args:
        path: the MP4 to write; nothing is written where there is no frame.
        drawn: the frames in order.
        crf: x264's quality, lower is better and larger; NVENC's is near it.
        encoder: FFmpeg's name.
        gpu: which card, by NVIDIA's number, where the encoder is one.
        group: frames from one key frame to the next, decoded in the order in which they are shown,
            so that any is reached soon; None: as the encoder likes.

    Returns:
        How many frames it has.

    Raises:
        av.error.FFmpegError: the encoder can't be opened, or can't go on.
    """
    number = last = 0
    with ExitStack() as stack:
        for number, canvas in enumerate(drawn, 1):
            if number == 1:
                container = stack.enter_context(
                    av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
                )
                stream = _h264(container, canvas, encoder, _options(encoder, crf, gpu, group))
                begin = canvas.pts
                last = -1
            # Each a tick behind the one before it at least, and within what an MP4 can say.
            last = min(max(canvas.pts - begin, last + 1), last + _MOST_TICKS)
            canvas.frame.pts = last
            canvas.frame.duration = canvas.duration
            canvas.frame.time_base = canvas.time_base
            canvas.frame.pict_type = PictureType.NONE  # the encoder's choice, not the source's
            container.mux(stream.encode(canvas.frame))
        if number:
            container.mux(stream.encode())
    return number


def _options(encoder: Encoder, crf: int, gpu: int, group: int | None) -> dict[str, str]:
    if encoder == X264:
        # subme 1 saves a third of x264's time here, at the same size and quality (46.8 dB).
        more = f":keyint={group}:bframes=0" if group is not None else ""
        return {"preset": "veryfast", "crf": str(crf), "x264-params": f"subme=1{more}"}
    return {
        "preset": "p4",
        "tune": "hq",
        "profile": "high",
        "rc": "vbr",
        "cq": str(crf),
        "spatial-aq": "1",
        "gpu": str(gpu),
    }


def _h264(
    container: OutputContainer, canvas: Canvas, encoder: Encoder, options: dict[str, str]
) -> VideoStream:
    rate = canvas.rate.limit_denominator(10**6)
    stream = container.add_stream(encoder, rate=rate, options=options)
    stream.width, stream.height = canvas.frame.width, canvas.frame.height
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = canvas.time_base
    context.sample_aspect_ratio = canvas.aspect
    if encoder == X264:
        # PyAV's own choice, slices, costs it some time, 2 % in size, and quality at their borders.
        context.thread_type = ThreadType.FRAME
    else:
        context.bit_rate = 0  # or FFmpeg asks for 2 Mbit/s, whatever the quality
        context.gop_size = 250  # as x264: where a player can enter
        # NVENC counts the times to decode by the average rate: with B-frames, which come in another
        # order, a film of uneven times would have frames that are decoded after they are shown.
        context.max_b_frames = 0
    context.flags |= CodecFlags.frame_duration
    context.color_range = _LIMITED_RANGE
    context.colorspace = canvas.frame.colorspace
    context.color_primaries = canvas.frame.color_primaries
    context.color_trc = canvas.frame.color_trc
    return stream


def _yuv420p(picture: Picture, reformatter: VideoReformatter) -> VideoFrame:
    frame = picture.frame
    with pixels.convertible():
        converted = reformatter.reformat(
            frame,
            width=picture.width,
            height=picture.height,
            format="yuv420p",
            dst_color_range=_LIMITED_RANGE if frame.color_range == _FULL_RANGE else None,
            threads=1,
        )
    if converted is frame:
        # The decoder predicts later frames from this one.
        frame.make_writable()
    if converted.colorspace == _RGB:
        converted.colorspace = _UNSPECIFIED
    return converted


def _upright(frame: VideoFrame, turns: int) -> VideoFrame:
    if turns == 0:
        return frame
    size = (frame.width, frame.height) if turns == 2 else (frame.height, frame.width)
    return _filled(frame, size, lambda plane: np.rot90(plane, -turns))


def _even(frame: VideoFrame) -> VideoFrame:
    odd_width, odd_height = frame.width % 2, frame.height % 2
    if not (odd_width or odd_height):
        return frame
    size = (frame.width + odd_width, frame.height + odd_height)

    def pad(plane: Image) -> Image:
        # Chroma needs none: an odd side's half was rounded up.
        if plane.shape != (frame.height, frame.width):
            return plane
        return np.pad(plane, ((0, odd_height), (0, odd_width)), mode="edge")

    return _filled(frame, size, pad)


def _filled(
    frame: VideoFrame, size: tuple[int, int], change: Callable[[Image], Image]
) -> VideoFrame:
    """Return a new frame of ``size`` (width, height), each plane made from the old one's."""
    new = VideoFrame(*size, "yuv420p")
    for plane, old in zip(_planes(new), _planes(frame), strict=True):
        plane[:] = change(old)
    new.colorspace, new.color_range = frame.colorspace, frame.color_range
    new.color_primaries, new.color_trc = frame.color_primaries, frame.color_trc
    return new


def _planes(frame: VideoFrame) -> tuple[Image, Image, Image]:
    y, u, v = (view_of(plane) for plane in frame.planes)
    return y, u, v


def view_of(plane: VideoPlane) -> Image:
    """Return a plane's levels, (rows, columns), to be written to."""
    rows = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]  # it is a buffer
    view: Image = rows.reshape(-1, plane.line_size)[: plane.height, : plane.width]
    return view
