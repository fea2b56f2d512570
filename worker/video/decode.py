"""Decoding: the frames of a video that are asked for, by number, as pixels or planes.

Frames come out as ``cv2.VideoCapture``, and so DeepLabCut, sees them: the same ones, in the order
of display, rotated as the container asks, with the same pixels. Everything here runs in a child
process, because a decoder is the part of a system that a hostile file gets to talk to.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from av.video.reformatter import VideoReformatter

from worker.video.numbering import Reading, numbered
from worker.video.pixels import (
    Image,
    OpenCVReading,
    Picture,
    as_bgr,
    as_planes,
    as_rgb,
    tells_screen_colours,
)
from worker.video.planes import Planes, brightness_of

if TYPE_CHECKING:
    from worker.video.cuda_decode import Card

Item = TypeVar("Item")
#: ``planes``: a frame as it was decoded, where it can be converted later (video.planes); else BGR.
Order = Literal["rgb", "bgr", "planes"]


def frames(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    only: Collection[int] | None = None,
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
        only: of these, yield those with these numbers, and convert no others.
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
    conversion = _Conversion(path, order, reading or Reading())
    shown = pictures(path, start, stop, stride, conversion.reading, card)
    with closing(conversion), closing(shown):
        begun = (
            (picture, conversion.begin(picture))
            for picture in shown
            if only is None or picture.index in only
        )
        if threads == 1:
            yield from starmap(conversion.finish, begun)
        else:
            yield from _in_threads(conversion, begun, threads)


class _Conversion:
    """What makes of decoded frames what was asked for: BGR, RGB or planes."""

    def __init__(self, path: Path, order: Order, reading: Reading) -> None:
        self.reading = reading
        self._order = order
        self._opencv = OpenCVReading(path)
        self._own = threading.local()  # a reformatter a thread

    def begin(self, picture: Picture) -> Image | Planes | None:
        """Return what has to be done in the order of the frames; None: nothing has."""
        if tells_screen_colours(picture.frame):
            return self._opencv.image(picture.index - len(self.reading.lost))
        return as_planes(picture) if self._order == "planes" else None

    def finish(self, picture: Picture, begun: Image | Planes | None) -> tuple[int, Image | Planes]:
        """Return a frame's number and its pixels or planes; in any thread, in any order."""
        if not hasattr(self._own, "reformatter"):
            self._own.reformatter = VideoReformatter()
        seen = as_bgr(picture, self._own.reformatter) if begun is None else begun
        if self.reading.brightness is not None:
            self.reading.brightness[picture.index] = brightness_of(picture.frame, seen)
        if self._order == "rgb" and not isinstance(seen, Planes):
            seen = as_rgb(seen)
        return picture.index, seen

    def close(self) -> None:
        """Close OpenCV's reading of the film."""
        self._opencv.close()


def _in_threads(
    conversion: _Conversion,
    begun: Iterator[tuple[Picture, Image | Planes | None]],
    threads: int,
) -> Iterator[tuple[int, Image | Planes]]:
    """Yield frames that several threads convert, in their order."""
    with ThreadPoolExecutor(threads, thread_name_prefix="to_rgb") as pool:
        waiting: deque[Future[tuple[int, Image | Planes]]] = deque()
        for picture, seen in begun:
            if isinstance(seen, Planes) and not waiting:
                yield conversion.finish(picture, seen)
                continue
            waiting.append(pool.submit(conversion.finish, picture, seen))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ahead(items: Iterator[Item], size: Callable[[Item], int]) -> Generator[Item]:
    """Yield what ``items`` yields, made in a thread of its own and early.

    An error of ``items`` is raised here, behind the items before it. Closing the generator ends the
    thread and closes ``items``.

    Args:
        items: what is made.
        size: how many are made early, by what the first one is.
    """
    ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(1)
    stopped = threading.Event()

    def put(kind: bool, item: object) -> None:
        while not stopped.is_set():
            if room.acquire(timeout=0.1):
                ready.put((kind, item))
                return

    def produce() -> None:
        try:
            for number, item in enumerate(items):
                if number == 0 and (more := size(item) - 1) > 0:
                    room.release(more)
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
            room.release()
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
    reading = reading or Reading()
    with closing(numbered(path, reading, card=card)) as shown:
        for picture in shown:
            if picture.index < start:
                reading.passes(picture.index)
            if stop is not None and picture.index >= stop:
                return
            if picture.index >= start and (picture.index - start) % stride == 0:
                yield picture
