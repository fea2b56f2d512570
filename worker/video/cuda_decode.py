"""Decoding by an NVIDIA card (NVDEC): the CPU decoder's frames, or the CPU decodes after all.

Nothing of what a card gives is taken on trust. Only codecs are asked of it whose standard says
every bit of a frame; its first frame and its last are compared with the CPU's, byte by byte; and a
film in which anything is amiss (an error, a frame that is damaged, missing or of another format) is
the CPU's from its start. What was used, and why, is told in result.json.

FFmpeg's own decoders run in either case, with their order of frames, their times and their
rotation; the card does what is within one frame (PyAV's ``HWAccel``). So frames have the same
numbers. They come as nv12, and are made what the CPU's decoder gives: Y, U and V in planes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import av.error
import numpy as np
from av.codec.context import CodecContext
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from posedrop.errors import PosedropError
from worker.video import containers, numbering, nvenc
from worker.video.canvas import X264
from worker.video.numbering import Reading
from worker.video.pixels import Picture

#: Decoders of FFmpeg that have a card's beside them, and whose standard leaves no bit to choose:
#: of MPEG-2, MPEG-4 and JPEG it does not say how to round.
EXACT_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
#: What a card's frames become, and what the CPU's decoder has to give for that.
_PLANAR = ("yuv420p", "yuvj420p")
_FROM_CARD = "nv12"
_FULL_RANGE = 2
#: Frames that ``auto`` decodes both ways, to see which is faster.
TRIAL = 64
#: Kinds of films of which it is remembered who is faster.
MOST_KINDS = 1000
#: Frames from a key frame to the film's last one, within which that is looked for first.
NEAR = 2000
#: After one that is not found, it is looked for again within so many times as many frames.
SELDOM = 20
#: How FFmpeg is to come by a CUDA context: torch's own, which is current in a thread that has used
#: it; the device's, if nobody has it yet; one of its own, which takes more memory.
_CONTEXTS: tuple[dict[str, str], ...] = ({"current_ctx": "1"}, {"primary_ctx": "1"}, {})

#: Codec, width, height and pixel format.
FilmKind = tuple[str, int, int, str]
#: By device and kind of film: frames a second by the processor, and by the card.
DecodeSpeeds = dict[tuple[str, FilmKind], tuple[float, float]]


class DecodedOtherwiseError(Exception):
    """The card's frames are not the CPU's, and that was found out late: begin again without it."""


class _UnfitError(Exception):
    """The card can't decode this film, or not so that it can be relied on; the message says why."""


class Card:
    """A card that decodes one film, and what became of it.

    ``video.decode`` asks it for an accelerator to open the film with, and passes what comes through
    :meth:`decode`. Whatever goes wrong before :meth:`confirm` has returned, the CPU's decoder takes
    over; :attr:`used` and :attr:`why` say so.
    """

    def __init__(self, wanted: str, device: str, speeds: DecodeSpeeds | None = None) -> None:
        """Begin a film.

        Args:
            wanted: ``auto``: if the card is faster than the CPU; ``cuda``: if it can; ``cpu``: not.
            device: where the network runs, as torch names it; of another kind than CUDA, or
                without a card, the CPU decodes.
            speeds: measured on earlier films; what is measured on this one is added.
        """
        self.wanted = wanted
        self.used: Literal["cpu", "cuda"] = "cpu"
        self.why = "POSEDROP_DECODE=cpu"
        self.frames = 0
        """Given by the card."""
        self._device = device
        self._speeds: DecodeSpeeds = {} if speeds is None else speeds
        self._options: dict[str, str] | None = None
        self._planar = _PLANAR[0]
        self._reformatter = VideoReformatter()
        self._last: Picture | None = None
        """That the card gave."""
        self._confirmed = False
        self._before: tuple[int, int] | None = None
        """A frame's number and time, as an earlier attempt had them from a card."""
        self._ask_from = 0
        """No frame before it is looked for, to confirm it: that has failed, and takes long."""
        self._missing = 0
        self._distrusted = False
        if wanted == "auto" and not device.startswith("cuda"):
            self.why = f"the network runs on {device}"

    def summary(self) -> dict[str, Any]:
        """Return what result.json says of the card."""
        return {"asked": self.wanted, "used": self.used, "why": self.why, "by_card": self.frames}

    @property
    def setup(self) -> dict[str, Any]:
        """Return what a checkpoint has to have been made with: by whom is the same, unless not."""
        return {"decode": "cpu"} if self._distrusted else {}

    def afresh(self) -> Card:
        """Return a card for the same film, from its start."""
        return type(self)(self.wanted, self._device, self._speeds)

    def distrusted(self, error: DecodedOtherwiseError) -> Card:
        """Return one that leaves this film to the CPU, because of ``error``."""
        card = self.afresh()
        card._distrusted, card.why = True, str(error)
        return card

    # -- what video.decode asks ----

    def takes(self, path: Path) -> bool:
        """Tell whether the card is to decode a film; the reason is in :attr:`why`."""
        elsewhere = self.wanted == "auto" and not self._device.startswith("cuda")
        if self.wanted == "cpu" or elsewhere or self._distrusted:
            return False
        try:
            self._try(path)
        except _UnfitError as unfit:
            self.why = str(unfit)
            return False
        except Exception as error:  # whatever a driver makes of it
            self.why = f"the card could not begin: {_words(error)}"
            return False
        self.used = "cuda"
        return True

    def accelerator(self) -> HWAccel | None:
        """Return what a film is opened with."""
        options, number = self._options or {}, self._device.partition(":")[2] or "0"
        if "current_ctx" in options:
            _make_current(number)
        return HWAccel("cuda", device=number, options=dict(options))

    def decode(self, stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Decode a packet, as ``stream.decode`` does, by the card.

        Raises:
            Exception: the card can't go on, whatever the reason.
        """
        return [self._planes_of(frame) for frame in stream.decode(packet)]

    def gave(self, picture: Picture) -> None:
        """Remember a frame that the card decoded and that goes on to the network."""
        self.frames += 1
        self._last = picture

    def ended(self, missing: int) -> None:
        """Remember how many frames less than packets there were, when the film is at its end."""
        self._missing = missing

    def gave_up(self, error: Exception) -> None:
        """Leave the rest to the CPU, which begins at the start."""
        self.used = "cpu"
        self.why = f"the card gave up after {self.frames} frames: {_words(error)}"
        print(f"{self.why}; the processor decodes all of it")

    def compare(self, picture: Picture) -> None:
        """Compare a frame that the CPU decodes, from the start, after the card has given up.

        (Of a film that is gone on with, each frame is seen, whoever decodes.)

        Raises:
            DecodedOtherwiseError: it is the card's last one, and another; or that never came.
        """
        if self._before is not None and picture.index >= self._before[0]:
            before, self._before = self._before, None
            if before != (picture.index, picture.frame.pts):
                raise DecodedOtherwiseError(
                    f"frame {before[0]} was another one when a card decoded the part before it"
                )
        if self._last is None or self._confirmed or self.used == "cuda":
            return
        if picture.index >= self._last.index:
            self._confirm(picture.index == self._last.index and _same(self._last, picture))

    @property
    def can_tell(self) -> bool:
        """Whether :meth:`checkpoint` is worth asking now."""
        last = self._last
        if last is None or self._confirmed:
            return True
        return self.used == "cuda" and last.index >= self._ask_from

    def checkpoint(self, path: Path) -> dict[str, Any] | None:
        """Return what a checkpoint has to know of the frames so far, JSON types.

        Returns:
            None where nobody can tell yet that they are the CPU's: then none is to be kept.
        """
        last = self._last
        if last is None or self._confirmed:
            return {}
        if self.used == "cuda" and self._is_seen_near(path, last):
            return {"frame": last.index, "ticks": last.frame.pts}
        # There is no key frame near. The film may have more of them further on.
        self._ask_from = last.index + 1 + min(last.index + 1, SELDOM * NEAR)
        return None

    def goes_on(self, known: dict[str, Any]) -> None:
        """Take up a checkpoint, whose last frame has to be the same one again."""
        if known:
            self._before = int(known["frame"]), int(known["ticks"])

    def confirm(self, path: Path, passed: Callable[[int], None] | None = None) -> None:
        """Compare the card's last frame, and the count of all, with the CPU's; its frames are used.

        Args:
            path: of the film.
            passed: told the numbers of frames that are decoded for it, now and then.

        Raises:
            DecodedOtherwiseError: they differ.
        """
        if self._last is None or self._confirmed:
            return
        if self.used == "cuda" and not self._missing and self._is_seen_near(path, self._last):
            self._confirm(True)
            return
        # From the start: the film can't be entered there, or its packets don't tell the count.
        end = 0
        reading = Reading(passed=passed)
        with closing(numbering.numbered(path, reading)) as shown:
            for picture in shown:
                end = picture.index + 1
                reading.passes(picture.index)
                if picture.index == self._last.index:
                    self._confirm(_same(self._last, picture))
                    if not self._missing:
                        return
        self._confirm(self._confirmed and end == self._last.index + 1)

    def _confirm(self, same: bool) -> None:
        if not same:
            raise DecodedOtherwiseError(
                f"of {self.frames} frames that the card gave, the last or the count is not the "
                "processor's"
            )
        self._confirmed = True

    def _is_seen_near(self, path: Path, last: Picture) -> bool:
        """Tell whether the CPU decodes the same last frame, beginning at the key frame before."""
        time = last.frame.pts
        if time is None:
            return False
        with (
            suppress(PosedropError, av.error.FFmpegError),
            containers.opened(path) as (film, stream),
        ):
            film.seek(time, stream=stream)
            for frame in islice(containers.decoded(film, stream), NEAR):
                if frame.pts == time and _is_same(last.frame, frame):
                    return True
        return False

    # -- at the start ------------------------------------------------------------------------------

    def _find(self) -> None:
        """Find a way to a CUDA context."""
        last: Exception | None = None
        for self._options in _CONTEXTS:
            try:
                CodecContext.create("h264", "r", hwaccel=self.accelerator())
            except Exception as error:  # FFmpeg's, torch's
                last = error
            else:
                return
        self._options = None
        raise _UnfitError(f"there is no card that FFmpeg can reach: {_words(last)}")

    def _try(self, path: Path) -> None:
        """Decode the first frame both ways, and for ``auto`` some more, to see which is faster."""
        with containers.opened(path) as (film, stream):
            codec = stream.codec_context.name
            if codec not in EXACT_CODECS:
                raise _UnfitError(f"{codec} is decoded by the processor alone")
            mine = _Timed(containers.decoded(film, stream))
            first = mine.first
            if first is None:
                raise _UnfitError("the processor decodes no first frame")
            if first.pts is None:
                raise _UnfitError("its frames have no times to find them by")
            if first.format.name not in _PLANAR:
                raise _UnfitError(f"its frames are {first.format.name}: a card has 8 bits of 4:2:0")
            self._planar = first.format.name
            kind = (codec, first.width, first.height, first.format.name)
            known = self._speeds.get((self._device, kind))
            if self.wanted == "auto" and known is not None:  # to begin with a card takes a while
                self._weigh(known)
            self._find()
            if self.wanted == "auto" and known is None:
                mine.go_on()
        with containers.opened(path, hwaccel=self.accelerator()) as (film, stream):
            stream.codec_context.thread_count = 1
            its = _Timed(self._decoded(film, stream))
            if its.first is None or not _is_same(its.first, first):
                raise _UnfitError("the card's first frame is not the processor's")
            if self.wanted == "auto" and known is None:
                its.go_on()
        if self.wanted == "cuda":
            self.why = "POSEDROP_DECODE=cuda"
            return
        if known is None:
            if len(self._speeds) > MOST_KINDS:
                self._speeds.clear()
            if min(mine.count, its.count) < TRIAL:
                raise _UnfitError(f"the film has not {TRIAL} frames to tell which is faster")
            known = self._speeds[self._device, kind] = (mine.rate, its.rate)
        self._weigh(known)

    def _weigh(self, known: tuple[float, float]) -> None:
        """Leave a film to the processor where that is faster."""
        self.why = f"{known[1]:.0f} frames/s by the card, {known[0]:.0f} by the processor"
        if known[1] < known[0]:
            raise _UnfitError(self.why)

    def _decoded(self, film: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        for packet in containers.packets(film, stream):
            yield from self.decode(stream, packet)
        yield from self.decode(stream, None)

    # -- frames ------------------------------------------------------------------------------------

    def _planes_of(self, frame: VideoFrame) -> VideoFrame:
        """Return a card's frame as the CPU's decoder would give it."""
        if frame.format.name != _FROM_CARD:
            raise _UnfitError(f"the card does not decode this: frames came as {frame.format.name}")
        if frame.is_corrupt:
            raise _UnfitError("a frame is damaged, which the processor's decoder conceals")
        # The same bytes, in planes; asked for so that no range is converted.
        full = {"src_color_range": _FULL_RANGE, "dst_color_range": _FULL_RANGE}
        made = self._reformatter.reformat(
            frame, format=self._planar, threads=1, **(full if self._planar == "yuvj420p" else {})
        )
        # PyAV tells BT.470 BG as SMPTE 170M, which has the same matrix.
        made.colorspace, made.color_range = frame.colorspace, frame.color_range
        return made


def lacking(device: str) -> str:
    """Return why the card that torch calls so can't decode, empty: it has decoded a small film."""
    card = Card("cuda", device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        nvenc.write_sample(path, X264)
        return "" if card.takes(path) else card.why


class _Timed:
    """Frames that are decoded one by one, and how fast."""

    def __init__(self, frames: Iterator[VideoFrame]) -> None:
        self._frames = frames
        self.first = next(frames, None)
        self.count = 0 if self.first is None else 1
        self.rate = 0.0
        """Frames a second, of those behind the first: that one waits for more than itself."""

    def go_on(self) -> None:
        """Decode as many as a trial has."""
        started = time.perf_counter()
        self.count += sum(1 for _ in islice(self._frames, TRIAL - 1))
        self.rate = (self.count - 1) / max(time.perf_counter() - started, 1e-6)


def _same(one: Picture, other: Picture) -> bool:
    return one.turns == other.turns and _is_same(one.frame, other.frame)


def _is_same(one: VideoFrame, other: VideoFrame) -> bool:
    """Tell whether two frames show the same, at the same time and turned the same way."""
    about = [
        (frame.format.name, frame.width, frame.height, frame.pts, frame.rotation, frame.colorspace,
         frame.color_range)
        for frame in (one, other)
    ]  # fmt: skip
    if about[0] != about[1]:
        return False
    return all(
        np.array_equal(a, b)
        for a, b in zip(_rows(one), _rows(other), strict=True)
    )  # fmt: skip


def _rows(frame: VideoFrame) -> list[Any]:
    """Return a frame's planes as (rows, columns)."""
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]  # type: ignore[call-overload]
        for plane in frame.planes
    ]


def _make_current(number: str) -> None:
    """Have torch's CUDA context be this thread's, if torch has one."""
    torch = sys.modules.get("torch")  # not ours to import: what decodes need not infer
    if torch is None or not torch.cuda.is_available():
        raise RuntimeError("torch has no CUDA here")
    torch.cuda.set_device(int(number))
    torch.zeros(1, device=f"cuda:{number}").item()


def _words(error: BaseException | None) -> str:
    told = error.__cause__ or error if error is not None else None
    return f"{told}"[:200] or type(told).__name__
