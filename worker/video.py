"""Videos in and out: what a file is, its frames, and H.264 for browsers. The only user of PyAV.

Frames come out as ``cv2.VideoCapture``, and so DeepLabCut, sees them: the same ones, in the order
of display, rotated as the container asks, with the same pixels. Everything here runs in a child
process, because a decoder is the part of a system that a hostile file gets to talk to.
"""

from __future__ import annotations

import builtins
import heapq
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import RefusedVideoError
from posedrop.records import Probe

Item = TypeVar("Item")
Image = npt.NDArray[np.uint8]

#: Demuxers that read one file and nothing else. Playlists (HLS, DASH, concat, SDP) and image
#: patterns are absent: they open whatever path or address the file names.
DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,flv,asf,dv,mxf"
)
#: Pixels a frame, for the decoder, where the caller sets no limit: 16384 x 16384.
MAX_PIXELS = 2**28
#: The smallest side of a frame, in pixels.
MIN_SIDE = 16
#: Up to so many pixels in all, a probe decodes every frame (a few seconds of work).
DECODE_ALL_PIXELS = 10**9
#: A demuxer that reports damage more often than this is going in circles.
MAX_DAMAGED_READS = 1000
#: By how many frames the order of decoding can differ from that of display (H.264: 16), with room.
REORDERED = 64
#: Frame intervals that differ by more than this share of the mean make a variable frame rate.
UNEVEN = 0.1

# As FFmpeg numbers colour spaces and ranges.
_RGB = 0
_UNSPECIFIED = 2
_LIMITED_RANGE = 1
_FULL_RANGE = 2


# -- opening ---------------------------------------------------------------------------------------


@contextmanager
def _opened(
    path: Path, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video for reading; what it holds that can't be read is a RefusedVideoError."""
    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "file",
        # Opening decodes a little; the limit holds for that too.
        "max_pixels": str(_decoder_limit(max_pixels)),
    }
    try:
        # The prefix keeps a path from being read as an address. Tags in any encoding are fine.
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (builtins.OSError, builtins.MemoryError) as error:
        if not isinstance(error, av.error.EOFError):
            raise
        raise _unreadable(path) from error
    except av.error.FFmpegError as error:
        raise _unreadable(path) from error
    with container:
        yield container, _video_stream(container, max_pixels)


def _video_stream(container: InputContainer, max_pixels: int) -> VideoStream:
    for stream in container.streams.video:
        if stream.disposition & stream.disposition.attached_pic:  # the cover of an audio file
            continue
        # None where no decoder is built in, whatever PyAV's types say.
        if getattr(stream, "codec_context", None) is None:
            raise RefusedVideoError(
                f"there is no decoder for its codec ({stream.codec_tag!r}); "
                "re-encode it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4",
                code="unsupported_codec",
            )
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(_decoder_limit(max_pixels))}
        return stream
    raise RefusedVideoError(
        "the file holds no video stream, e.g. only sound", code="no_video_stream"
    )


def _decoder_limit(max_pixels: int) -> int:
    # A decoder counts whole blocks, of up to 128 pixels, around what it shows.
    return 2 * max_pixels + 2**16


def _unreadable(path: Path) -> RefusedVideoError:
    """Return why a file can't be opened: empty, cut off, or not a video at all."""
    if path.stat().st_size == 0:
        return RefusedVideoError("the file is empty (0 bytes): upload it again", code="empty")
    if _is_cut_mp4(path):
        return _truncated()
    return RefusedVideoError(
        "this is not a video that can be read: text, a picture, a playlist, or a format other than "
        "mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, ogv",
        code="not_a_video",
    )


def _truncated() -> RefusedVideoError:
    return RefusedVideoError(
        "the file is cut off: its end is missing; upload it again, and check that the recording "
        "was finished",
        code="truncated",
    )


def _is_cut_mp4(path: Path) -> bool:
    """Whether a file is an MP4 or QuickTime one of which the end is missing."""
    size = path.stat().st_size
    position = 0
    kinds: set[str] = set()
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            box = _box(file)
            if box is None:
                return "ftyp" in kinds
            kind, length = box
            if not kinds and kind not in {"ftyp", "moov", "mdat", "wide", "free", "skip"}:
                return False
            kinds.add(kind)
            position = size if length == 0 else position + length
    return position > size or "moov" not in kinds


def _box(file: IO[bytes]) -> tuple[str, int] | None:
    """Return kind and length in bytes (0: to the end) of the box that begins here, if one does."""
    header = file.read(16)
    if len(header) < 8:
        return None
    length = int.from_bytes(header[:4], "big")
    if length == 1 and len(header) == 16:
        length = int.from_bytes(header[8:], "big")
    if 0 < length < 8:
        return None
    return header[4:8].decode("latin-1"), length


# -- decoding --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded frame, and what is done to each of its video's."""

    index: int
    frame: VideoFrame
    turns: int
    """Quarter turns clockwise."""
    width: int
    """Pixels before rotation; the first frame's, whatever a later one has."""
    height: int


def frames(
    path: Path, *, start: int = 0, stop: int | None = None, stride: int = 1
) -> Iterator[tuple[int, Image]]:
    """Decode a video, one frame in memory at a time (and the few that the decoder holds).

    A frame that can't be decoded is left out, and the numbers of those behind it close the gap, as
    with OpenCV. A video whose size changes on the way is scaled to the size of its first frame.

    Args:
        path: the video.
        start: the first frame to yield, counted from 0.
        stop: the frame after the last, None: to the end.
        stride: yield every n-th frame from ``start`` on.

    Yields:
        The frame's number, and its pixels: RGB, uint8, (height, width, 3), C-contiguous.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    reformatter = VideoReformatter()
    with closing(_pictures(path, start, stop, stride)) as pictures:
        for picture in pictures:
            yield picture.index, _rgb(picture, reformatter)


def count(path: Path) -> int:
    """Return how many frames a video's container holds, by its packets and without decoding.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    with _opened(path) as (container, stream):
        return sum(1 for packet in _packets(container, stream) if _is_shown(packet))


def ahead(items: Iterator[Item], size: int) -> Generator[Item]:
    """Yield what ``items`` yields, made in a thread of its own and up to ``size`` items early.

    An error of ``items`` is raised here, behind the items before it. Closing the generator ends the
    thread and closes ``items``.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    stopped = threading.Event()

    def put(kind: bool, item: object) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((kind, item), timeout=0.1)
                return

    def produce() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    break
            put(False, None)
        except BaseException as error:  # for the thread that waits for it
            put(False, error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        stopped.set()
        thread.join()


def _pictures(path: Path, start: int, stop: int | None, stride: int) -> Generator[_Picture]:
    with _opened(path) as (container, stream):
        decoded = enumerate(islice(_decoded(container, stream), stop))
        first: VideoFrame | None = None
        for index, frame in decoded:
            first = first or frame
            if index >= start and (index - start) % stride == 0:
                yield _Picture(index, frame, _turns(first), first.width, first.height)


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames in the order of display; packets that can't be decoded are skipped."""
    for packet in _packets(container, stream):
        try:
            pictures = stream.decode(packet)
        except builtins.MemoryError:
            raise
        except av.error.FFmpegError:
            continue
        yield from pictures


def _is_shown(packet: Packet[VideoStream]) -> bool:
    # Not what an edit list cuts away, nor the empty packet at the end.
    return bool(packet.size) and not packet.is_discard


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets; the last one is empty and flushes the decoder."""
    for _ in range(MAX_DAMAGED_READS):
        try:
            yield from container.demux(stream)
        except av.error.InvalidDataError:
            continue  # with what follows the damage
        return


def _rotation(frame: VideoFrame) -> int:
    """Return the clockwise rotation in degrees, 0 to 359, that the container asks for."""
    return -frame.rotation % 360


def _turns(frame: VideoFrame) -> int:
    """Return the quarter turns clockwise; other angles are left alone, as OpenCV does."""
    return {90: 1, 180: 2, 270: 3}.get(_rotation(frame), 0)


def _rgb(picture: _Picture, reformatter: VideoReformatter) -> Image:
    # Bicubic and BGR are what OpenCV asks of libswscale: another way round, 10-bit video and
    # video with subsampled chroma would differ by some levels.
    converted = reformatter.reformat(
        picture.frame,
        width=picture.width,
        height=picture.height,
        format="bgr24",
        interpolation=Interpolation.BICUBIC,
        threads=1,  # the decoder's threads have the cores
    )
    rgb = cv2.cvtColor(converted.to_ndarray(), cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(np.rot90(rgb, -picture.turns))


# -- what a file is --------------------------------------------------------------------------------


def probe(path: Path, *, max_pixels: int, max_frames: int) -> Probe:
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
        raise _unreadable(path)
    with _opened(path, max_pixels) as (container, stream):
        _check_side(stream.width, stream.height, max_pixels)
        _check_count(stream.frames, max_frames)
        tally = _read_packets(container, stream, max_frames)
        if _ends_early(path, stream):
            raise _truncated()
    with _opened(path, max_pixels) as (container, stream):
        decoded = _decoded(container, stream)
        first = next(decoded, None)
        if first is None:
            raise RefusedVideoError(
                f"no frame of it can be decoded: it is damaged, or has frames of far more than the "
                f"{max_pixels:,} pixels that this server takes",
                code="no_frames",
            )
        _check_side(first.width, first.height, max_pixels)
        total, seen = tally.packets, "mov" in container.format.name
        if tally.packets * first.width * first.height <= DECODE_ALL_PIXELS:
            total, seen = 1 + sum(1 for _ in decoded), True
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
    for packet in _packets(container, stream):
        if not _is_shown(packet):
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
    rate = _rate(stream, tally, base)
    span = 0 if tally.first is None or tally.last is None else tally.last - tally.first
    duration = float((span + tally.duration) * base if span else total / rate)
    upright = _turns(first) % 2 == 0
    return Probe(
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        width=first.width if upright else first.height,
        height=first.height if upright else first.width,
        fps=float(rate),
        frames=total,
        frames_counted=seen,
        duration=duration,
        rotation=_rotation(first),
        variable_frame_rate=tally.uneven,
    )


def _rate(stream: VideoStream, tally: _Tally | None, base: Fraction) -> Fraction:
    """Return the average frames per second; 25 where nothing tells it, as FFmpeg assumes."""
    if stream.average_rate:
        return stream.average_rate
    if tally is not None and tally.mean:
        return 1 / (Fraction(tally.mean) * base)
    return stream.guessed_rate or Fraction(25)


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
    rgb = _rgb(picture, VideoReformatter())
    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    out.write_bytes(jpeg.tobytes())


def _keyframe(path: Path, share: float) -> _Picture | None:
    with _opened(path) as (container, stream):
        if share and stream.duration:
            try:
                offset = (stream.start_time or 0) + int(share * stream.duration)
                container.seek(offset, stream=stream)
            except av.error.FFmpegError:
                return None
        frame = next(_decoded(container, stream), None)
        if frame is None:
            return None
        return _Picture(0, frame, _turns(frame), frame.width, frame.height)


# -- drawing and encoding --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
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
    """When it is shown, in ``time_base``."""
    duration: int
    time_base: Fraction
    """Seconds."""
    rate: Fraction
    """The video's average frames per second."""
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


def canvases(
    path: Path, *, start: int = 0, stop: int | None = None, stride: int = 1
) -> Generator[Canvas]:
    """Decode a video into canvases; frames, arguments and errors are those of :func:`frames`."""
    with _opened(path) as (_, stream):
        base = stream.time_base or Fraction(1, 90_000)
        rate = _rate(stream, None, base)
    step = max(1, round(1 / (rate * base)))
    reformatter = VideoReformatter()
    last: int | None = None
    with closing(_pictures(path, start, stop, stride)) as pictures:
        for picture in pictures:
            guess = picture.index * step if last is None else last + step * stride
            pts = guess if picture.frame.pts is None else picture.frame.pts
            # Two frames at the same instant: the later one gets the next tick.
            last = pts if last is None else max(pts, last + 1)
            duration = (picture.frame.duration or step) * stride
            frame = _even(_upright(_yuv420p(picture, reformatter), picture.turns))
            y, u, v = _planes(frame)
            yield Canvas(picture.index, y, u, v, last, duration, base, rate / stride, frame)


def encode(path: Path, drawn: Iterable[Canvas], *, crf: int = 23) -> int:
    """Write canvases as an H.264 video that browsers play while they load it.

    Each frame is shown when the source shows it, counted from the first one.

    Args:
        path: the MP4 to write; nothing is written where there is no frame.
        drawn: the frames in order.
        crf: x264's quality, lower is better and larger.

    Returns:
        How many frames it has.
    """
    number = 0
    with ExitStack() as stack:
        for number, canvas in enumerate(drawn, 1):
            if number == 1:
                container = stack.enter_context(
                    av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
                )
                stream = _h264(container, canvas, crf)
                begin = canvas.pts
            canvas.frame.pts = canvas.pts - begin
            canvas.frame.duration = canvas.duration
            canvas.frame.time_base = canvas.time_base
            canvas.frame.pict_type = PictureType.NONE  # the encoder's choice, not the source's
            container.mux(stream.encode(canvas.frame))
        if number:
            container.mux(stream.encode())
    return number


def _h264(container: OutputContainer, canvas: Canvas, crf: int) -> VideoStream:
    stream = container.add_stream(
        "libx264",
        rate=canvas.rate.limit_denominator(10**6),
        # subme 1 saves a third of x264's time here, at the same size and quality (46.8 dB).
        options={"preset": "veryfast", "crf": str(crf), "x264-params": "subme=1"},
    )
    stream.width, stream.height = canvas.frame.width, canvas.frame.height
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = canvas.time_base
    context.flags |= CodecFlags.frame_duration
    context.color_range = _LIMITED_RANGE
    context.colorspace = canvas.frame.colorspace
    context.color_primaries = canvas.frame.color_primaries
    context.color_trc = canvas.frame.color_trc
    return stream


def _yuv420p(picture: _Picture, reformatter: VideoReformatter) -> VideoFrame:
    frame = picture.frame
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
    y, u, v = (_view(plane) for plane in frame.planes)
    return y, u, v


def _view(plane: VideoPlane) -> Image:
    rows = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]  # it is a buffer
    view: Image = rows.reshape(-1, plane.line_size)[: plane.height, : plane.width]
    return view
