"""Containers: a video's file opened for reading, its packets, and why a file can't be read."""

from __future__ import annotations

import builtins
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from posedrop.errors import RefusedVideoError
from worker.video import endings
from worker.video.fields import Fields, Part

#: Demuxers that read one file and nothing else. Playlists (HLS, DASH, concat, SDP) and image
#: patterns are absent: they open whatever path or address the file names.
DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,flv,asf,dv,mxf,"
    "mjpeg,yuv4mpegpipe,nut,dhav,mjpeg_2000,dirac,vc1,h263,h261,cine,gxf,wtv,rm,gif,apng,vvc"
)
#: Pixels a frame, for the decoder, where the caller sets no limit: 16384 x 16384.
MAX_PIXELS = 2**28
#: How a JPEG begins, and what parts it; within a scan, 0xFF is followed by 0 or a restart's number.
_JPEG = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
#: Zeros between two JPEGs, at most.
_JPEG_PADDING = 4096
#: A demuxer that reports damage more often than this is going in circles.
MAX_DAMAGED_READS = 1000


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


def count(path: Path) -> int:
    """Return how many frames a video's container holds, without decoding.

    By its index (MP4, MOV, AVI), where that is as long as the header says; else by its packets, for
    which the whole file is read. It is a promise: what can be decoded is another thing.

    Raises:
        RefusedVideoError: it is not a video that can be read.
    """
    with opened(path) as (container, stream):
        index, shown = stream.index_entries, Shown(stream)
        if 0 < len(index) == stream.frames and shown.one_a_packet:
            return sum(1 for entry in index if not entry.is_discard)
        return sum(1 for packet in packets(container, stream) if shown.take(packet))


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


class Shown:
    """Tells which packets of a stream end a frame that is shown, and when that is.

    Not shown is what an edit list cuts away, a reference that the codec hides, and a field alone.
    Each packet has to be taken once, in the order of the stream.
    """

    def __init__(self, stream: VideoStream) -> None:
        """Begin a stream at its start."""
        self.ends = False
        """Whether the last packet ends a frame that is shown."""
        self.part: Part = "frame"
        """What the last packet has."""
        self.time: int | None = None
        """When its frame is shown, in ticks: of two fields, the first one's time."""
        self._hidden = False
        self._fields = Fields(stream)
        self._is_vp8 = stream.codec_context.name == "vp8"
        self.one_a_packet = not self._is_vp8 and not self._fields.may_be()
        """Whether each packet that no edit list cuts away shows a frame, as the header has it."""

    def take(self, packet: Packet[VideoStream]) -> bool:
        """Take the next packet; return whether it ends a frame that is shown."""
        self.part = self._fields.part(packet)
        if self.part != "second":
            self.time = packet.pts
            # VP8 has packets that are only referred to, and says so in their first byte.
            self._hidden = packet.is_discard or (self._is_vp8 and not memoryview(packet)[0] & 0x10)
        self.ends = self.part != "first" and not self._hidden
        return self.ends


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


def rate_of(stream: VideoStream) -> Fraction:
    """Return the frames per second that a container tells; 25, as FFmpeg assumes, if none can be.

    One frame a day and a million a second are believed, more is a broken header.
    """
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and Fraction(1, 86_400) <= rate <= 10**6:
            return rate
    return Fraction(25)
