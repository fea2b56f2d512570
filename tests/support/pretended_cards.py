"""A pretended NVIDIA card for decoding: the CPU decodes, and frames come as a card's would."""

from __future__ import annotations

from collections.abc import Callable

from av.codec.hwaccel import HWAccel
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from worker.video.cuda_decode import Card

#: Changes what the card gives: the frame's place among those it decoded, and the frame.
Fault = Callable[[int, VideoFrame], list[VideoFrame]]


def faultless(number: int, frame: VideoFrame) -> list[VideoFrame]:  # noqa: ARG001
    return [frame]


class PretendedCard(Card):
    """One that any machine has; ``fault`` tells what is wrong with it."""

    fault: Fault = staticmethod(faultless)
    opened = 0
    """How many films were opened with it, trials among them."""

    def _find(self) -> None:
        self._options = {}

    def accelerator(self) -> HWAccel | None:
        type(self).opened += 1
        self._decoded_frames = 0
        return None

    def decode(self, stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        given = []
        for frame in stream.decode(packet):
            given += self.fault(self._decoded_frames, as_nv12(frame))
            self._decoded_frames += 1
        return [self._planes_of(frame) for frame in given]


def as_nv12(frame: VideoFrame) -> VideoFrame:
    """Return a frame as a card has it, what is not 8 bits of 4:2:0 as it is."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        return frame
    full = {"src_color_range": 2, "dst_color_range": 2} if "j" in frame.format.name else {}
    made = VideoReformatter().reformat(frame, format="nv12", threads=1, **full)
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    return made
