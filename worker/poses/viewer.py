"""``viewer.bin``: a run's poses as the page of a run reads them; docs/results.md has the format.

Whole numbers of 16 bits, a column after the other: so that an hour of film is a few megabytes, and
the plot of a bodypart reads one stretch of memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posedrop.analyses import UNFINISHED

MAGIC = b"PDVIEW1\n"
#: Stands for a position that is not known.
MISSING = -32768
_MOST = 32767
#: Each part begins at a multiple of so many bytes.
_ALIGNED = 8


@dataclass(frozen=True)
class View:
    """What the page of a run shows of its poses, a row for each frame that was asked for."""

    frames: npt.NDArray[np.int64]
    """Numbers of the frames in the film, from 0, ascending; (n,)."""
    seconds: npt.NDArray[np.float64]
    """When each is shown, 0 for the film's first frame; (n,)."""
    decoded: npt.NDArray[np.bool_]
    """False: the frame was lost; (n,)."""
    values: npt.NDArray[np.float64]
    """x and y in pixels of the whole frame, likelihood; (n, columns, 3). NaN, or a likelihood below
    0: there is none."""
    columns: Sequence[tuple[str, str]]
    """Animal (empty: it has no name) and bodypart of each column."""
    size: tuple[int, int]
    """Width and height of a frame, in pixels."""
    pcutoff: float
    skeleton: Sequence[tuple[str, str]]


def write(view: View, path: Path) -> None:
    """Write a view, whole or not at all.

    Positions keep a 32,767th of the frame's longer side; what is further outside of the frame than
    half of that side is moved to there.
    """
    side = float(max(1, *view.size))
    head = json.dumps(
        {
            "rows": len(view.frames),
            "columns": [{"individual": animal, "bodypart": part} for animal, part in view.columns],
            "width": view.size[0],
            "height": view.size[1],
            "origin": side / 2,
            "step": side / _MOST,
            "pcutoff": view.pcutoff,
            "skeleton": [list(bone) for bone in view.skeleton],
        },
        # A name may have half of a character; as text, no browser reads that.
        ensure_ascii=True,
    ).encode()
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("wb") as file:
        for part in (
            MAGIC + struct.pack("<II", len(head), 0) + head,
            view.seconds.astype("<f8"),
            view.frames.astype("<i4"),
            view.decoded.astype("u1"),
        ):
            data = bytes(part)
            file.write(data + b"\0" * (-len(data) % _ALIGNED))
        for column in range(len(view.columns)):
            x, y, likelihood = view.values[:, column].T.astype(np.float64)
            # Of a film's child, who may have been taken over.
            known = np.isfinite(x) & np.isfinite(y) & (likelihood >= 0)
            for levels in ((x - side / 2) / side, (y - side / 2) / side, likelihood):
                scaled = np.rint(np.clip(np.where(known, levels, 0), -1, 1) * _MOST)
                file.write(np.where(known, scaled, MISSING).astype("<i2").tobytes())
    unfinished.rename(path)
