"""What the tests film and analyse: the real mouse where the machine has it, else the demo's."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from posedrop.buckets.records.videos import Probe
from posedrop.demo import MODEL, mouse

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
#: What a look at ten seconds of film finds, for records that no film stands behind.
PROBE = Probe(
    codec="h264",
    pixel_format="yuv420p",
    width=640,
    height=480,
    fps=29.97,
    frames=300,
    frames_counted=True,
    duration=10.01,
    rotation=0,
    variable_frame_rate=False,
)


class Sample(NamedTuple):
    """A film, a model that knows its animal, and what to expect of them."""

    film: Path
    model: Path
    bodyparts: list[str]


def has_real_mouse() -> bool:
    """Tell whether DeepLabCut's open-field example lies beside the clone."""
    return (SHARED / "data/openfield/m3v1.mp4").is_file()


def sample(folder: Path, frames: int) -> Sample:
    """Return ``frames`` frames of a mouse, cut or drawn into ``folder``, and its model."""
    film = folder / f"mouse{frames}.mp4"
    if has_real_mouse():
        if not film.exists():
            cut(SHARED / "data/openfield/m3v1.mp4", film, frames)
        model = SHARED / "models/openfield-resnet18"
        return Sample(film, model, ["snout", "leftear", "rightear", "tailbase"])
    if not film.exists():
        mouse.film(film, frames=frames, seed=7)
    return Sample(film, MODEL, list(mouse.BODYPARTS))


def free_box(size: int, content: bytes = b"") -> bytes:
    """Return an MP4 box of ``size`` bytes that players pass over, to make a file another one."""
    return size.to_bytes(4, "big") + b"free" + content.ljust(size - 8, b"\0")


def cut(source: Path, target: Path, frames: int) -> None:
    """Encode the first frames of a film anew, so that exactly these are in it."""
    import av

    with av.open(str(source)) as film, av.open(str(target), "w") as out:
        stream = film.streams.video[0]
        copy = out.add_stream("libx264", rate=30, options={"crf": "18"})
        copy.width, copy.height, copy.pix_fmt = stream.width, stream.height, "yuv420p"
        for number, frame in enumerate(film.decode(stream)):
            if number == frames:
                break
            plain = frame.reformat(format="yuv420p")
            plain.pts, plain.time_base = number, Fraction(1, 30)
            out.mux(copy.encode(plain))
        out.mux(copy.encode())
