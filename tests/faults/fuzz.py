"""Films that were damaged at random, each decoded in the worker's child: how does each end?

``python -m tests.faults.fuzz --seconds 300 --seed 1`` (``make fuzz``). A line for each that ended
otherwise than with a probe or a refusal; such are kept in ``--keep``, to be looked at. With
``--cuts``, before that, films of all containers are cut at each of their lengths.
"""

from __future__ import annotations

import argparse
import math
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import av.error

from posedrop.buckets.records.videos import Probe
from posedrop.errors import AnalysisError, ChildDiedError, PosedropError, RefusedVideoError
from tests.support import videos
from worker.child.child import Child
from worker.limits import Limits

#: What a worker's settings say of films, and what its child may take for one of a few kilobytes.
MAX_PIXELS = 4096 * 4096
MAX_FRAMES = 20_000_000
MEMORY_BYTES = 2 << 30
FILE_BYTES = 64 << 20
WALL_SECONDS = 60.0


@dataclass(frozen=True)
class Kind:
    """A container and a codec."""

    name: str
    container: str
    codec: str
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    options: dict[str, str] = field(default_factory=dict)
    movflags: str | None = None


KINDS = (
    Kind("mp4", "mp4", "libx264", options={"bf": "2"}),
    Kind("mp4-index-first", "mp4", "libx264", movflags="faststart"),
    Kind("mp4-fragmented", "mp4", "libx264", movflags="frag_keyframe+empty_moov"),
    Kind("mp4-hevc", "mp4", "libx265", options={"x265-params": "log-level=none"}),
    Kind("mov-mjpeg", "mov", "mjpeg", "yuvj420p"),
    Kind("mov-prores", "mov", "prores_ks", "yuv422p10le"),
    Kind("mkv", "matroska", "libx264"),
    Kind("webm-vp8", "webm", "libvpx"),
    Kind("webm-vp9", "webm", "libvpx-vp9"),
    Kind("avi-mjpeg", "avi", "mjpeg", "yuvj420p"),
    Kind("avi-mpeg4", "avi", "mpeg4", options={"bf": "1"}),
    Kind("avi-ffv1", "avi", "ffv1"),
    Kind("avi-raw", "avi", "rawvideo"),
    Kind("ts", "mpegts", "libx264"),
    Kind("ts-mpeg2", "mpegts", "mpeg2video"),
    Kind("mpg", "mpeg", "mpeg1video"),
    Kind("flv", "flv", "flv1"),
    Kind("asf", "asf", "wmv2"),
    Kind("ogv", "ogg", "libvpx"),
    Kind("dv", "dv", "dvvideo", size=(720, 576)),
    Kind("mxf", "mxf", "mpeg2video"),
    Kind("h264", "h264", "libx264"),
    Kind("hevc", "hevc", "libx265", options={"x265-params": "log-level=none"}),
    Kind("ivf", "ivf", "libvpx"),
    Kind("m4v", "m4v", "mpeg4"),
    Kind("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
    Kind("y4m", "yuv4mpegpipe", "wrapped_avframe"),
    Kind("nut", "nut", "ffv1"),
)


def films(folder: Path) -> dict[str, bytes]:
    """Make a film of some kilobytes of each kind that the installed FFmpeg can write."""
    return _films(folder, KINDS, 6)


def tiny_films(folder: Path) -> dict[str, bytes]:
    """Make one as short as can be of each container; DV has no small frames."""
    kinds = [replace(kind, size=(16, 16)) for kind in KINDS if kind.container != "dv"]
    return _films(folder, kinds, 1)


def _films(folder: Path, kinds: Iterable[Kind], frames: int) -> dict[str, bytes]:
    made = {}
    for kind in kinds:
        path = folder / kind.name
        try:
            videos.video(
                path,
                count=frames if kind.name != "dv" else 2,
                size=kind.size,
                codec=kind.codec,
                pixel_format=kind.pixel_format,
                container=kind.container,
                options=kind.options,
                movflags=kind.movflags,
            )
        except (av.error.FFmpegError, ValueError):
            continue  # no such encoder, or not with these rates
        made[kind.name] = path.read_bytes()
    return made


# -- damage ----------------------------------------------------------------------------------------

Damage = Callable[[random.Random, bytearray, bytes], bytearray]


def _bits(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    for _n in range(rng.choice((1, 2, 8, 64))):
        film[rng.randrange(len(film))] ^= 1 << rng.randrange(8)
    return film


def _head_bits(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    """Where containers have what they say of themselves: the first and the last kilobyte."""
    for _n in range(rng.choice((1, 2, 8))):
        place = rng.randrange(min(1024, len(film)))
        film[rng.choice((place, len(film) - 1 - place))] = rng.randrange(256)
    return film


#: Sizes and counts at which a parser may go wrong.
_EDGES = (0, 1, 7, 8, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 8, 2**63, -1)


def _field(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    """A number of the header becomes as large as can be, or nothing."""
    for _n in range(rng.choice((1, 1, 2, 4))):
        form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        data = struct.pack(form, rng.choice(_EDGES) % 256 ** struct.calcsize(form))
        ends = [min(2048, len(film)), len(film)]
        place = rng.randrange(max(1, rng.choice(ends) - len(data)))
        film[place : place + len(data)] = data
    return film


def _named_field(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    """So does a number right behind the name of a box or a chunk."""
    names = [
        place
        for place in range(len(film) - 16)
        if all(97 <= byte <= 122 for byte in film[place : place + 4])
    ]
    if not names:
        return _field(rng, film, _)
    place = rng.choice(names) + rng.choice((-4, 4, 8, 12))
    order = rng.choice("<>")
    film[max(0, place) : max(0, place) + 4] = struct.pack(f"{order}I", rng.choice(_EDGES) % 2**32)
    return film


def _span(rng: random.Random, film: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(film))
    return start, min(len(film), start + rng.choice((1, 4, 16, 188, 512, 4096)))


def _removed(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    start, end = _span(rng, film)
    del film[start:end]
    return film


def _doubled(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    start, end = _span(rng, film)
    film[end:end] = film[start:end] * rng.choice((1, 1, 50))
    return film


def _swapped(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    (a, b), (c, d) = sorted((_span(rng, film), _span(rng, film)))
    if b > c:
        return _removed(rng, film, _)
    return film[:a] + film[c:d] + film[b:c] + film[a:b] + film[d:]


def _cut(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    return film[: rng.randrange(len(film))]


def _cut_start(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    return film[rng.randrange(len(film)) :]


def _spliced(rng: random.Random, film: bytearray, other: bytes) -> bytearray:
    return film[: rng.randrange(len(film))] + other[rng.randrange(len(other)) :]


def _zeros(rng: random.Random, film: bytearray, _: bytes) -> bytearray:
    start, end = _span(rng, film)
    film[start:end] = bytes([rng.choice((0, 255))]) * (end - start)
    return film


DAMAGE: tuple[Damage, ...] = (
    _bits,
    _head_bits,
    _field,
    _field,
    _named_field,
    _named_field,
    _removed,
    _doubled,
    _swapped,
    _cut,
    _cut_start,
    _spliced,
    _zeros,
)


def cut(made: dict[str, bytes], stride: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield films cut at each ``stride``-th of their lengths, another share of them for each."""
    for number, (name, film) in enumerate(sorted(made.items())):
        for length in range(number % stride, len(film), stride):
            yield f"{name} cut at {length}", film[:length]


def damaged(rng: random.Random, made: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield films with one to three damages, and what they are, without end."""
    names = sorted(made)
    while True:
        name = rng.choice(names)
        film = bytearray(made[name])
        done = rng.choices(DAMAGE, k=rng.choice((1, 1, 1, 2, 3)))
        for damage in done:
            film = damage(rng, film, made[rng.choice(names)]) or bytearray(b"\0")
        yield f"{name} {'+'.join(d.__name__.strip('_') for d in done)}", bytes(film)


# -- how they end ----------------------------------------------------------------------------------


def measured(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """In the child: probe a film, and tell what it took of memory, in bytes, beyond the start.

    0 where an earlier film took more: a child can't have its peak begin anew.
    """
    from worker.video import preflight

    before, peak = _memory("VmRSS"), _memory("VmHWM")
    try:
        answer: dict[str, Any] = preflight.probe(payload, report)
    except RefusedVideoError as error:
        answer = {"refused": error.code, "message": error.message}
    highest = _memory("VmHWM")
    return {**answer, "memory": highest - before if highest > peak else 0}


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


@dataclass
class Ends:
    """How films ended; times in seconds, memory in bytes."""

    tried: int = 0
    by: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.by.most_common())
        return (
            f"{self.tried} films: {kinds}\n"
            f"slowest: {self.slowest[0]:.1f} s ({self.slowest[1]})\n"
            f"largest: {self.largest[0] / 2**20:.0f} MiB ({self.largest[1]})"
        )


class Trial:
    """One child, and the films that it was given."""

    def __init__(self, folder: Path, keep: Path | None = None) -> None:
        """Use ``folder``; films that end oddly are left in ``keep``."""
        self.ends = Ends()
        self._folder, self._keep = folder, keep
        self._child = Child(
            "fuzz",
            folder,
            warm=["worker.video.preflight"],
            limits=Limits(MEMORY_BYTES, FILE_BYTES),
        )

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def tries(self, name: str, film: bytes) -> str:
        """Have a film decoded; return how it ended: ok, a refusal's code, or what is counted."""
        job = self._folder / "job"
        job.mkdir(exist_ok=True)
        path = job / "video"
        path.write_bytes(film)
        self._child.start()
        started = time.monotonic()
        answer: dict[str, Any] = {}
        words = ""
        try:
            answer = self._child.call(
                "tests.faults.fuzz:measured",
                {
                    "video": str(path),
                    "thumbnail": str(job / "thumbnail.jpg"),
                    "max_pixels": MAX_PIXELS,
                    "max_frames": MAX_FRAMES,
                },
                on_progress=lambda _: None,
                should_stop=lambda: False,
                wall_seconds=WALL_SECONDS,
                folder=job,
                log=job / "log",
            )
            end = answer.get("refused") or _checked(answer)
        except (AnalysisError, ChildDiedError) as error:
            end, words = f"failed: {error.code}", error.message
        except PosedropError as error:
            end, words = f"NO END: {error.code}", error.message
        seconds = time.monotonic() - started
        self._note(name, end, words, seconds, answer.get("memory", 0))
        if words and self._keep is not None:
            self._keep.mkdir(exist_ok=True)
            (self._keep / f"{self.ends.tried:06}-{end.split()[-1]}").write_bytes(film)
        return end

    def _note(self, name: str, end: str, words: str, seconds: float, memory: int) -> None:
        ends = self.ends
        ends.tried += 1
        ends.by[end] += 1
        ends.slowest = max(ends.slowest, (seconds, name))
        ends.largest = max(ends.largest, (memory, name))
        if words:
            ends.odd.append(f"{ends.tried:06} {name}: {end}: {words[:200]}")


def _checked(answer: dict[str, Any]) -> str:
    probe = Probe.model_validate(answer["probe"])
    good = probe.frames > 0 and math.isfinite(probe.fps) and math.isfinite(probe.duration)
    return "ok" if good else "failed: bad_answer"


def main() -> None:
    """Damage films for a while, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", action="store_true", help="each length of each container, too")
    parser.add_argument("--keep", type=Path, help="a folder for films that ended oddly")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posedrop-fuzz-") as temporary:
        folder = Path(temporary)
        (folder / "made").mkdir()
        made = films(folder / "made")
        print(len(made), "kinds:", " ".join(sorted(made)))
        trial = Trial(folder, options.keep)
        try:
            if options.cuts:
                for name, film in cut(tiny_films(folder / "made")):
                    trial.tries(name, film)
                print(trial.ends)
            deadline = time.monotonic() + options.seconds
            for name, film in damaged(random.Random(options.seed), made):
                trial.tries(name, film)
                if time.monotonic() > deadline:
                    break
        finally:
            trial.close()
    print("\n".join(trial.ends.odd))
    print(trial.ends)
    sys.exit(1 if any(end.startswith("NO END") for end in trial.ends.by) else 0)


if __name__ == "__main__":
    main()
