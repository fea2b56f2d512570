"""Decoding: a video's frames. With preflight.py and canvas.py the only user of PyAV.

Frames come out as ``cv2.VideoCapture``, and so DeepLabCut, sees them: the same ones, in the order
of display, rotated as the container asks, with the same pixels. Everything here runs in a child
process, because a decoder is the part of a system that a hostile file gets to talk to.
"""

from __future__ import annotations

import builtins
import queue
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import RefusedVideoError

Item = TypeVar("Item")
Image = npt.NDArray[np.uint8]
Order = Literal["rgb", "bgr"]

#: Demuxers that read one file and nothing else. Playlists (HLS, DASH, concat, SDP) and image
#: patterns are absent: they open whatever path or address the file names.
DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,flv,asf,dv,mxf"
)
#: Pixels a frame, for the decoder, where the caller sets no limit: 16384 x 16384.
MAX_PIXELS = 2**28
#: A demuxer that reports damage more often than this is going in circles.
MAX_DAMAGED_READS = 1000


# -- opening ---------------------------------------------------------------------------------------


@contextmanager
def opened(
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
        raise unreadable(path) from error
    except av.error.FFmpegError as error:
        raise unreadable(path) from error
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


def unreadable(path: Path) -> RefusedVideoError:
    """Return why a file can't be opened: empty, cut off, or not a video at all."""
    if path.stat().st_size == 0:
        return RefusedVideoError("the file is empty (0 bytes): upload it again", code="empty")
    if _is_cut_mp4(path):
        return truncated()
    return RefusedVideoError(
        "this is not a video that can be read: text, a picture, a playlist, or a format other than "
        "mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, ogv",
        code="not_a_video",
    )


def truncated() -> RefusedVideoError:
    """Return the refusal of a file that is cut off."""
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
class Picture:
    """A decoded frame, and what is done to each of its video's."""

    index: int
    frame: VideoFrame
    turns: int
    """Quarter turns clockwise."""
    width: int
    """Pixels before rotation; the first frame's, whatever a later one has."""
    height: int


def frames(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    order: Order = "rgb",
    threads: int = 1,
) -> Generator[tuple[int, Image]]:
    """Decode a video, one frame in memory at a time (and the few that the decoder holds).

    A frame that can't be decoded is left out and its number is not given to another; OpenCV, which
    counts what it gets, would number those behind it lower. A video whose size changes on the way
    is scaled to the size of its first frame.

    Args:
        path: the video.
        start: the first frame to yield, counted from 0.
        stop: the frame after the last, None: to the end.
        stride: yield every n-th frame from ``start`` on.
        order: of a pixel's bytes.
        threads: how many convert to RGB, which takes longer than to decode; each has a frame or
            two in memory.

    Yields:
        The frame's number, and its pixels: uint8, (height, width, 3), C-contiguous.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    own = threading.local()

    def convert(picture: Picture) -> tuple[int, Image]:
        if not hasattr(own, "reformatter"):
            own.reformatter = VideoReformatter()
        return picture.index, _converted(picture, own.reformatter, order)

    with closing(pictures(path, start, stop, stride)) as shown:
        if threads == 1:
            yield from map(convert, shown)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="to_rgb") as pool:
            begun: deque[Future[tuple[int, Image]]] = deque()
            for picture in shown:
                begun.append(pool.submit(convert, picture))
                if len(begun) > 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()


def count(path: Path) -> int:
    """Return how many frames a video's container holds, by its packets and without decoding.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    with opened(path) as (container, stream):
        return sum(1 for packet in packets(container, stream) if is_shown(packet))


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


def pictures(path: Path, start: int, stop: int | None, stride: int) -> Generator[Picture]:
    """Yield the decoded frames ``start``, ``start + stride``, ... before ``stop``."""
    with opened(path) as (container, stream):
        times = _times(path)
        index = -1
        first: VideoFrame | None = None
        for frame in decoded(container, stream):
            index = _number(frame.pts, index, times)
            if stop is not None and index >= stop:
                return
            first = first or frame
            if index >= start and (index - start) % stride == 0:
                yield Picture(index, frame, turns_of(first), first.width, first.height)


def _times(path: Path) -> list[int]:
    """Return when each frame of a video is shown, ascending; none, where not all tell it."""
    with opened(path) as (container, stream):
        times = [packet.pts for packet in packets(container, stream) if is_shown(packet)]
    known = sorted(time for time in times if time is not None)
    return known if len(set(known)) == len(times) else []


def _number(time: int | None, last: int, times: list[int]) -> int:
    """Return a frame's number: its place in time, so that none that is lost shifts those behind."""
    if time is not None:
        place = bisect_left(times, time)
        if place > last and place < len(times) and times[place] == time:
            return place
    return last + 1


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames in the order of display; packets that can't be decoded are skipped."""
    for packet in packets(container, stream):
        try:
            pictures = stream.decode(packet)
        except builtins.MemoryError:
            raise
        except av.error.FFmpegError:
            continue
        yield from pictures


def is_shown(packet: Packet[VideoStream]) -> bool:
    """Tell a packet with a frame from what an edit list cuts away, and from the empty last one."""
    return bool(packet.size) and not packet.is_discard


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets; the last one is empty and flushes the decoder."""
    for _ in range(MAX_DAMAGED_READS):
        try:
            yield from container.demux(stream)
        except av.error.InvalidDataError:
            continue  # with what follows the damage
        return


def rotation_of(frame: VideoFrame) -> int:
    """Return the clockwise rotation in degrees, 0 to 359, that the container asks for."""
    return -frame.rotation % 360


def turns_of(frame: VideoFrame) -> int:
    """Return the quarter turns clockwise; other angles are left alone, as OpenCV does."""
    return {90: 1, 180: 2, 270: 3}.get(rotation_of(frame), 0)


def to_rgb(picture: Picture, reformatter: VideoReformatter) -> Image:
    """Return a frame as RGB, uint8 (height, width, 3), upright."""
    return _converted(picture, reformatter, "rgb")


def _converted(picture: Picture, reformatter: VideoReformatter, order: Order) -> Image:
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
    image: Image = np.asarray(converted.to_ndarray(), np.uint8)
    if order == "rgb":
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    return np.ascontiguousarray(np.rot90(image, -picture.turns))


def rate_of(stream: VideoStream, mean: float | None, base: Fraction) -> Fraction:
    """Return the average frames per second; 25 where nothing tells it, as FFmpeg assumes.

    Args:
        mean: ticks of ``base`` (seconds) between two frames, where they were counted.
    """
    if stream.average_rate:
        return stream.average_rate
    if mean:
        return 1 / (Fraction(mean) * base)
    return stream.guessed_rate or Fraction(25)
