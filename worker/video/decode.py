"""Decoding: a video's frames. With preflight.py, canvas.py and planes.py the only user of PyAV.

Frames come out as ``cv2.VideoCapture``, and so DeepLabCut, sees them: the same ones, in the order
of display, rotated as the container asks, with the same pixels. Everything here runs in a child
process, because a decoder is the part of a system that a hostile file gets to talk to.
"""

from __future__ import annotations

import builtins
import heapq
import mmap
import queue
import re
import threading
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain, starmap
from math import atan2, degrees
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import RefusedVideoError
from worker.video import endings
from worker.video.planes import Planes, brightness_of, converted, planes_of
from worker.video.times import LONGEST_PAUSE, Clock

if TYPE_CHECKING:
    from worker.video.cuda_decode import Card

Item = TypeVar("Item")
Image = npt.NDArray[np.uint8]
#: ``planes``: a frame as it was decoded, where it can be converted later (video.planes); else BGR.
Order = Literal["rgb", "bgr", "planes"]

#: Demuxers that read one file and nothing else. Playlists (HLS, DASH, concat, SDP) and image
#: patterns are absent: they open whatever path or address the file names.
DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,flv,asf,dv,mxf,"
    "mjpeg,yuv4mpegpipe,nut,dhav,mjpeg_2000,dirac,vc1,h263,h261,cine,gxf,wtv,rm,gif,apng,vvc"
)
#: Pixels a frame, for the decoder, where the caller sets no limit: 16384 x 16384.
MAX_PIXELS = 2**28
#: By how many frames the order of decoding can differ from that of display (H.264: 16), with room.
REORDERED = 64
#: Frames that a decoder with threads has in hand at most.
_IN_FLIGHT = 17
# As FFmpeg numbers primaries and transfer functions.
_BT709, _UNSPECIFIED = 1, 2
_NARROW = (_BT709, _UNSPECIFIED, 4, 5, 6, 7)
_HIGH_RANGE = (16, 18)
#: Stands for a time that a container doesn't tell.
NO_TIME = -(2**63)
#: How a JPEG begins, and what parts it; within a scan, 0xFF is followed by 0 or a restart's number.
_JPEG = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
#: Zeros between two JPEGs, at most.
_JPEG_PADDING = 4096
#: A demuxer that reports damage more often than this is going in circles.
MAX_DAMAGED_READS = 1000


# -- opening ---------------------------------------------------------------------------------------


@contextmanager
def opened(
    path: Path, max_pixels: int = MAX_PIXELS, hwaccel: HWAccel | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video for reading; what it holds that can't be read is a RefusedVideoError."""
    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "file",
        # Opening decodes a little; the limit holds for that too.
        "max_pixels": str(_decoder_limit(max_pixels)),
    }
    # FFmpeg takes JPEGs in a row for a picture, where no name of the file says otherwise.
    known = "mjpeg" if is_jpeg_film(path) else None
    try:
        # The prefix keeps a path from being read as an address. Tags in any encoding are fine.
        container = av.open(
            f"file:{path}",
            format=known,
            options=options,
            metadata_errors="replace",
            hwaccel=hwaccel,
        )
    except (av.error.FFmpegError, builtins.MemoryError) as error:
        # FFmpeg says EIO, EPERM and ENOMEM of what it reads in a header, too.
        _read(path)
        raise unreadable(path) from error
    with container:
        try:
            yield container, _video_stream(container, max_pixels)
        except builtins.MemoryError:
            raise
        except av.error.FFmpegError as error:
            _read(path)
            raise RefusedVideoError(
                f"its decoder failed ({error}); re-encode it, e.g. "
                "ffmpeg -i IN -c:v libx264 OUT.mp4",
                code="decoder_failed",
            ) from error


def is_jpeg_film(path: Path) -> bool:
    """Tell a raw MJPEG film from a picture: behind its first JPEG a second one begins.

    So does a phone's photo, with a depth map or a brighter picture behind it; but that says so
    (MPF).
    """
    with path.open("rb") as file:
        if file.read(2) != _JPEG:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = len(_JPEG)
            while found := _JPEG_MARKER.search(data, at):
                at = found.end()
                if found[1] == b"\xd9":  # the end
                    return data[at : at + _JPEG_PADDING].lstrip(b"\0").startswith(_JPEG)
                if found[1] == b"\xe2" and data[at + 2 : at + 6] == b"MPF\0":
                    return False
                at += int.from_bytes(data[at : at + 2], "big")
    return False


def _read(path: Path) -> None:
    """Raise the OSError of a disk that can't give a file: what fails else is the file's fault."""
    with path.open("rb") as file:
        while file.read(2**20):
            pass


def _video_stream(container: InputContainer, max_pixels: int) -> VideoStream:
    for stream in container.streams.video:
        if stream.disposition & stream.disposition.attached_pic:  # the cover of an audio file
            continue
        # None where no decoder is built in, whatever PyAV's types say.
        if getattr(stream, "codec_context", None) is None:
            raise RefusedVideoError(
                f"there is no decoder for the codec of its video stream ({stream.index}); "
                "re-encode it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4",
                code="unsupported_codec",
            )
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(_decoder_limit(max_pixels))}
        return stream
    raise RefusedVideoError(
        "the file holds no video stream, e.g. only sound: upload the film itself",
        code="no_video_stream",
    )


def _decoder_limit(max_pixels: int) -> int:
    # A decoder counts whole blocks, of up to 128 pixels, around what it shows.
    return 2 * max_pixels + 2**16


def unreadable(path: Path) -> RefusedVideoError:
    """Return why a file can't be opened: empty, cut off, or not a video at all."""
    if path.stat().st_size == 0:
        return RefusedVideoError("the file is empty (0 bytes): upload it again", code="empty")
    if endings.is_cut_mp4(path):
        return truncated()
    return RefusedVideoError(
        "this is not a video that can be read: text, a picture, a playlist, or a format other than "
        "mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, ogv, mjpeg, y4m, nut, dav; if it is a video, "
        "convert it: ffmpeg -i IN -c copy OUT.mkv",
        code="not_a_video",
    )


def truncated() -> RefusedVideoError:
    """Return the refusal of a file that is cut off."""
    return RefusedVideoError(
        "the file is cut off: its end is missing; upload it again, and check that the recording "
        "was finished",
        code="truncated",
    )


def ends_early(path: Path, stream: VideoStream) -> bool:
    """Whether the index in front of the samples lists some beyond the end of the file."""
    if "mov" not in stream.container.format.name or not len(stream.index_entries):
        return False
    size = path.stat().st_size
    beyond = any(entry.pos + entry.size > size for entry in stream.index_entries)
    return beyond and not endings.is_fragmented(path)


# -- decoding --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reading:
    """What one passage over a film finds out; complete once its frames are used up."""

    lost: array[int] = field(default_factory=lambda: array("q"))
    """Numbers of the frames that could not be decoded, ascending."""
    concealed: int = 0
    """Frames that were delivered, and that the decoder says are damaged."""
    cut: bool = False
    """Whether the end of the file is missing; found out at its end."""
    end: int = 0
    """One more than the last number that was given, to a frame or to a lost one."""
    ticks: array[int] = field(default_factory=lambda: array("q"))
    """When the container shows each frame, ``NO_TIME`` where it doesn't say."""
    base: Fraction = Fraction(1, 90_000)
    """Seconds a tick."""
    rate: Fraction = Fraction(25)
    """Frames a second, as far as the container tells."""
    brightness: dict[int, tuple[float, float]] | None = None
    """By number, of the frames that were given and that nobody has taken out: mean and standard
    deviation of their brightness (``planes.brightness_of``). None: nobody asks."""

    def seconds(self, numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], str]:
        """Return when frames are shown, and where these times come from.

        Args:
            numbers: of the frames, each below ``end``; (rows,).

        Returns:
            Seconds from the film's first frame on, ascending with the numbers; (rows,). And
            ``container``, ``interpolated`` (some of them, where the container's could not be
            right) or ``rate`` (all of them, by the frames a second).
        """
        clock = Clock(float(self.base), float(1 / self.rate))
        known = ((None if time == NO_TIME else time, None) for time in self.ticks)
        times = np.fromiter((time for time, _ in clock.run(known)), np.float64, len(self.ticks))
        return times[numbers], clock.source

    def add(self, time: int | None) -> int:
        """Return the next number, of a frame that is shown at this time (ticks)."""
        self.ticks.append(NO_TIME if time is None else time)
        self.end += 1
        return self.end - 1


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


def frames(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    order: Order = "rgb",
    threads: int = 1,
    reading: Reading | None = None,
    card: Card | None = None,
) -> Generator[tuple[int, Any]]:
    """Decode a video, one frame in memory at a time (and the few that the decoder holds).

    A frame's number is its place among those that the decoder shows, as OpenCV counts. A frame
    that can't be decoded has a number too, and is left out: OpenCV's reading ends there. A video
    whose size changes on the way is scaled to the size that its header tells.

    Args:
        path: the video.
        start: the first frame to yield, counted from 0.
        stop: the frame after the last, None: to the end.
        stride: yield every n-th frame from ``start`` on.
        order: of a pixel's bytes; or ``planes``, for who converts them: BGR where that can't be.
        threads: how many convert to RGB, which takes longer than to decode; each has a frame or
            two in memory.
        reading: told what is found out on the way.
        card: decodes, if it can (:mod:`worker.video.cuda_decode`).

    Yields:
        The frame's number, and its pixels: uint8, (height, width, 3), C-contiguous; or planes of
        that ``shape``.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    own = threading.local()
    told = reading or Reading()
    opencv = _OpenCV(path)

    def convert(picture: Picture, seen: Image | Planes | None) -> tuple[int, Image | Planes]:
        if not hasattr(own, "reformatter"):
            own.reformatter = VideoReformatter()
        if seen is None:
            seen = _converted(picture, own.reformatter)
        if told.brightness is not None:
            told.brightness[picture.index] = brightness_of(picture.frame, seen)
        if order == "rgb" and not isinstance(seen, Planes):
            seen = _swapped(seen)
        return picture.index, seen

    def both() -> Iterator[tuple[Picture, Image | Planes | None]]:
        for picture in shown:
            seen: Image | Planes | None = None
            if _maps_by_metadata(picture.frame):
                seen = opencv.image(picture.index - len(told.lost))
            elif order == "planes":
                seen = _planes(picture)
            yield picture, seen

    with closing(opencv), closing(pictures(path, start, stop, stride, told, card)) as shown:
        if threads == 1:
            yield from starmap(convert, both())
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="to_rgb") as pool:
            begun: deque[Future[tuple[int, Image | Planes]]] = deque()
            for picture, seen in both():
                if isinstance(seen, Planes) and not begun:
                    yield convert(picture, seen)
                    continue
                begun.append(pool.submit(convert, picture, seen))
                if len(begun) > 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()


class _OpenCV:
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


def count(path: Path) -> int:
    """Return how many frames a video's container holds, without decoding.

    By its index (MP4, MOV, AVI), where that is as long as the header says; else by its packets, for
    which the whole file is read. It is a promise: what can be decoded is another thing.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    with opened(path) as (container, stream):
        index = stream.index_entries
        if 0 < len(index) == stream.frames and stream.codec_context.name != "vp8":
            return sum(1 for entry in index if not entry.is_discard)
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


def pictures(
    path: Path,
    start: int,
    stop: int | None,
    stride: int,
    reading: Reading | None = None,
    card: Card | None = None,
) -> Generator[Picture]:
    """Yield the decoded frames ``start``, ``start + stride``, ... before ``stop``."""
    with closing(numbered(path, reading or Reading(), card=card)) as shown:
        for picture in shown:
            if stop is not None and picture.index >= stop:
                return
            if picture.index >= start and (picture.index - start) % stride == 0:
                yield picture


def numbered(
    path: Path, reading: Reading, max_pixels: int = MAX_PIXELS, card: Card | None = None
) -> Generator[Picture]:
    """Yield all frames of a video that can be decoded, each with its number.

    Args:
        card: decodes, as long as it can; then all is decoded by the CPU (:meth:`Card.compare`).
    """
    given = 0
    passages = [_passage(path, reading, exact, max_pixels) for exact in (False, True)]
    if card is not None and card.takes(path):
        passages.insert(0, _by_card(path, reading, max_pixels, card))
    for passage in passages:
        with suppress(_DamagedError), closing(passage):
            for picture in passage:
                if card is not None:
                    card.compare(picture)
                if picture.index >= given:
                    given = picture.index + 1
                    yield picture
            return
        # Once more from the start: it all comes again, but for what is wrong.
        reading.lost, reading.ticks = array("q"), array("q")
        reading.concealed = reading.end = 0


class _DamagedError(Exception):
    """A decoder with threads met an error: which packet's it is, one without will tell."""


def _by_card(path: Path, reading: Reading, max_pixels: int, card: Card) -> Generator[Picture]:
    """Decode a video by a card; whatever goes wrong there is a :class:`_DamagedError`."""
    try:
        for picture in _passage(path, reading, False, max_pixels, card):
            card.gave(picture)
            yield picture
    except Exception as error:  # of the film or of the driver: without it, the film's will show
        card.gave_up(error)
        raise _DamagedError from error


def _passage(
    path: Path, reading: Reading, exact: bool, max_pixels: int, card: Card | None = None
) -> Generator[Picture]:
    """Decode a video once from start to end, and number its frames.

    Args:
        exact: one frame after the other, so that an error is told with the packet it is in; else
            with threads, and at the first error a :class:`_DamagedError`.
        card: decodes, in place of the CPU.
    """
    accelerator = card.accelerator() if card is not None else None
    with opened(path, max_pixels, accelerator) as (container, stream):
        if exact or card is not None:
            stream.codec_context.thread_count = 1
        decode = stream.decode if card is None else partial(card.decode, stream)
        reading.base = stream.time_base or reading.base
        reading.rate = rate_of(stream)
        size = (stream.width, stream.height)
        turns: int | None = None
        gone = _Gone(reading)
        waiting: deque[int | None] = deque(maxlen=_IN_FLIGHT)
        shown: deque[int | None] = deque(maxlen=_IN_FLIGHT + REORDERED)
        missing = 0

        def number(frame: VideoFrame) -> Picture:
            nonlocal size, turns
            if turns is None:  # the first one's are those of all
                turns = turns_of(frame)
                size = size if all(size) else (frame.width, frame.height)
            reading.concealed += frame.is_corrupt
            shown.append(frame.pts)
            return Picture(gone.number(frame.pts), frame, turns, *size)

        def on_damage() -> None:
            if not exact:
                raise _DamagedError("the container can't be read")
            gone.hides()

        broken = False
        for packet in packets(container, stream, on_damage):
            broken = packet.is_corrupt
            if is_shown(packet):
                missing += 1
                waiting.append(packet.pts)
            try:
                found = decode(packet)
            except builtins.MemoryError:
                raise
            except av.error.FFmpegError as error:
                if not exact:
                    raise _DamagedError from error
                gone.add(packet.pts)
                continue
            gone.goes_on(packet)
            missing -= len(found)
            yield from map(number, found)
        try:
            found = decode(None)
        except builtins.MemoryError:
            raise
        except av.error.FFmpegError as error:
            if not exact:
                raise _DamagedError from error
            found = []
        missing -= len(found)
        told = {*shown, *(frame.pts for frame in found)}
        if not exact and missing > 0 and any(time is None or time not in told for time in waiting):
            # PyAV keeps an error to itself that comes behind a frame.
            raise _DamagedError("a frame is missing")
        if not gone.at_the_end():
            yield from map(number, found)
            gone.close()
        if card is not None:
            card.ended(missing)
        reading.cut = broken or gone.at_the_end() or gone.hidden or endings.lacks_its_end(path)


class _Gone:
    """Numbers frames, and leaves a number for each that could not be decoded.

    Behind an error, up to the next key frame, a packet that was to be shown and is not is lost too:
    a decoder passes silently over what refers to what it doesn't have.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._pause = int(LONGEST_PAUSE / reading.base)
        self._damaged = False
        self._key: int | None = None
        """The time of the key frame that ends the damage: what it shows earlier may lack."""
        self._waiting: list[tuple[int, bool]] = []
        """Packets whose frame has not come: when it is to be shown, and whether it never will."""
        self._timeless = 0
        """Packets with an error that don't say when."""
        self.hidden = False
        """Whether the container could not be read since the last packet."""
        self._tail: list[int | None] = []
        """Of the errors since the last packet without one."""
        self._last: int | None = None
        """The last frame's time."""

    def add(self, time: int | None) -> None:
        """Remember a packet that could not be decoded."""
        self._damaged = True
        self._tail.append(time)

    def hides(self) -> None:
        """Remember that the container could not be read: it may hide one, or many."""
        self.hidden = True

    def goes_on(self, packet: Packet[VideoStream]) -> None:
        """Remember a packet that could be decoded."""
        self._timeless += self.hidden
        self.hidden = False
        for time in self._tail:
            if time is None:
                self._timeless += 1
            else:
                heapq.heappush(self._waiting, (time, True))
        self._tail.clear()
        if packet.is_keyframe:
            self._damaged, self._key = False, packet.pts if self._damaged else None
        early = self._key is not None and packet.pts is not None and packet.pts < self._key
        if (self._damaged or early) and packet.pts is not None and is_shown(packet):
            heapq.heappush(self._waiting, (packet.pts, False))

    def at_the_end(self) -> bool:
        """Whether nothing could be decoded any more behind the last error."""
        return bool(self._tail)

    def number(self, time: int | None) -> int:
        """Return the number of a frame that is shown now."""
        if not self._reading.end:  # nothing that comes before the first is lost
            self._timeless = 0
            if time is None:
                self._waiting.clear()
            while self._waiting and time is not None and self._waiting[0][0] < time:
                heapq.heappop(self._waiting)
        last, self._last = self._last, time
        for _ in range(self._timeless):
            self._lose(None)
        self._timeless = 0
        ascends = time is not None and last is not None and 0 < time - last <= self._pause
        while self._waiting and not (ascends and time is not None and self._waiting[0][0] >= time):
            self._lose_first(ascends)
        while self._waiting and self._waiting[0][0] == time:
            heapq.heappop(self._waiting)
        return self._reading.add(time)

    def close(self) -> None:
        """Number what was to be shown behind the last frame."""
        if self._reading.end:
            for _ in range(self._timeless):
                self._lose(None)
            while self._waiting:
                self._lose_first(True)

    def _lose_first(self, ascends: bool) -> None:
        time, never = heapq.heappop(self._waiting)
        if never or ascends:
            self._lose(time)

    def _lose(self, time: int | None) -> None:
        self._reading.lost.append(self._reading.add(time))


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield what a decoder shows from where the container stands; its errors are passed over."""
    for packet in chain(packets(container, stream), [None]):
        try:
            found = stream.decode(packet)
        except builtins.MemoryError:
            raise
        except av.error.FFmpegError:
            continue
        yield from found


def is_shown(packet: Packet[VideoStream]) -> bool:
    """Tell a packet with a frame from what an edit list cuts away, and from hidden references."""
    if not packet.size or packet.is_discard:
        return False
    # VP8 has packets that are only referred to, and says so in their first byte.
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def packets(
    container: InputContainer,
    stream: VideoStream,
    on_damage: Callable[[], None] = lambda: None,
) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets that hold something.

    Args:
        on_damage: called where the container can't be read, and what is behind that is tried.
    """
    for _ in range(MAX_DAMAGED_READS):
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError:  # a packet that claims more memory than there is, too
            on_damage()
            continue
        return


def rotation_of(frame: VideoFrame) -> int:
    """Return the clockwise rotation in degrees, 0 to 359, that the container asks for."""
    if not frame.rotation:
        return 0
    # PyAV cuts the fraction off, and OpenCV rounds.
    matrix = np.frombuffer(bytes(_side_data(frame)["DISPLAYMATRIX"]), np.int32)
    across, down = np.hypot(matrix[[0, 1]], matrix[[3, 4]].astype(float))
    if not (across and down):  # it would squeeze the frame to nothing; OpenCV turns none then
        return 0
    return round(degrees(atan2(matrix[1] / down, matrix[0] / across))) % 360


def turns_of(frame: VideoFrame) -> int:
    """Return the quarter turns clockwise; other angles are left alone, as OpenCV does."""
    return {90: 1, 180: 2, 270: 3}.get(rotation_of(frame), 0)


def to_rgb(picture: Picture, reformatter: VideoReformatter) -> Image:
    """Return a frame as RGB, uint8 (height, width, 3), upright."""
    return _swapped(_converted(picture, reformatter))


def _swapped(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _planes(picture: Picture) -> Planes | None:
    """Return a frame as it was decoded, if who converts it by that alone finds the same."""
    frame = picture.frame
    if (frame.width, frame.height) != (picture.width, picture.height) or _mapped(frame):
        return None
    return planes_of(frame, picture.turns)


def _converted(picture: Picture, reformatter: VideoReformatter) -> Image:
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


def _maps_by_metadata(frame: VideoFrame) -> bool:
    """Whether a frame tells the colours of the screen it was made on.

    They are the source's, and PyAV takes them for the target's too.
    """
    if frame.color_trc not in _HIGH_RANGE and frame.color_primaries in _NARROW:
        return False
    return bool(_side_data(frame).keys() & {"MASTERING_DISPLAY_METADATA", "DYNAMIC_HDR_PLUS"})


def _side_data(frame: VideoFrame) -> dict[str, Any]:
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


def rate_of(stream: VideoStream) -> Fraction:
    """Return the frames per second that a container tells; 25, as FFmpeg assumes, if none can be.

    One frame a day and a million a second are believed, more is a broken header.
    """
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and Fraction(1, 86_400) <= rate <= 10**6:
            return rate
    return Fraction(25)
