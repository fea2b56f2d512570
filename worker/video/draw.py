"""Render: poses and their video -> a labelled video and two plots, drawn in a child process.

Dots, trails and bones are drawn straight onto the planes of the decoded YUV frame: no picture is
converted to RGB and back, so that what isn't drawn on stays as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av.error
import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posedrop.analyses import UNFINISHED
from posedrop.errors import AnalysisError
from worker.video import decode, nvenc, pixels
from worker.video.canvas import X264, Canvas, Encoder, encode, open_canvases
from worker.video.numbering import passing

Report = Callable[[str, int, int | None], None]
Floats = npt.NDArray[np.float32]
Colour = tuple[float, float, float]

#: Frames decoded ahead of the drawing.
AHEAD = 4
#: Frames from one key frame to the next of a copy, any of which a person may step to.
GROUP = 24
#: A plot has not more points a keypoint than this: every n-th frame of a longer video.
PLOT_POINTS = 20_000
#: Bits behind the binary point of a coordinate, as OpenCV draws it.
SHIFT = 4
#: How much of its lane a likelihood of 1 fills.
LANE = 0.9
BONE: Colour = (0.9, 0.9, 0.9)


def render(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write ``pose.mp4``, ``trajectory.png`` and ``likelihood.png``, each whole or not at all.

    The video has the size (an odd side is a pixel longer), the timing and the frames of what was
    analysed. Keypoints that are not above ``pcutoff``, not finite, or outside the frame are not
    drawn.

    Args:
        payload: ``video`` (None: it is left out, and ``frame_size`` says how wide and high its
            frames are, in pixels), ``poses`` (a path; DeepLabCut's HDF5 table of
            one or several animals, x and y in pixels), ``out`` (an existing folder), ``pcutoff``
            (0 to 1),
            ``style`` (``dotsize``: radius in pixels or None, ``trail``: frames, ``skeleton``: bool,
            ``colormap``: matplotlib's name), ``skeleton`` (pairs of bodyparts), ``start``, ``stop``
            and ``stride`` (the frames that were analysed); ``encode`` (``auto``, ``cpu``, ``cuda``)
            and ``device`` (where networks run, as torch names it), if a card may encode.
        report: ``report(stage, frames_done, frames_total)``.

    Returns:
        ``{"frames": drawn, "timings": {"video": seconds, "plots": seconds}}``, and in ``encode``
        what :class:`posedrop.buckets.records.inference.Encoded` has.

    Raises:
        RefusedVideoError: the video can't be decoded.
        AnalysisError: code ``no_frames``: it has none in this range.
    """
    poses = read_poses(Path(payload["poses"]))
    style = payload["style"]
    colours = colours_of(poses, style.get("colormap", "rainbow"))
    bones = _bones(poses, payload["skeleton"]) if style.get("skeleton") else []
    out = Path(payload["out"])
    painter = Painter(
        poses, colours, bones, payload["pcutoff"], style.get("dotsize"), style.get("trail", 0)
    )
    started = time.monotonic()
    drawn, encoded = 0, None
    if payload["video"] is not None:
        unfinished = out / f"pose{UNFINISHED}"
        drawn, encoded = _encoded(payload, painter, unfinished, report)
        if not drawn:
            raise AnalysisError("the video has no frame in this range", code="no_frames")
        unfinished.rename(out / "pose.mp4")
    else:
        painter.size = payload["frame_size"]
    at = time.monotonic()
    plot_trajectory(out / "trajectory.png", poses, colours, payload["pcutoff"], painter.size)
    plot_likelihood(out / "likelihood.png", poses, colours, payload["pcutoff"])
    return {
        "frames": drawn,
        "timings": {
            "video": round(at - started, 3),
            "plots": round(time.monotonic() - at, 3),
        },
        "encode": encoded,
    }


def copy_film(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write a copy of a film that browsers play, and any frame of which is reached soon.

    Its frames, size and timing are those of the labelled video; nothing is drawn on them.

    Args:
        payload: ``video`` and ``out`` (paths), ``start``, ``stop`` and ``stride`` (the frames that
            were analysed), ``frames`` (of the film).
        report: ``report(stage, frames_done, frames_total)``.

    Returns:
        ``{"frames": written}``.

    Raises:
        RefusedVideoError: the video can't be decoded.
        AnalysisError: code ``no_frames``: it has none in this range.
    """
    start, stop, stride = payload["start"], payload["stop"], payload["stride"]
    end = payload["frames"] if stop is None else min(stop, payload["frames"])
    total = max(1, -(-(end - start) // stride))

    def told(canvases: Iterator[Canvas]) -> Generator[Canvas]:
        for done, canvas in enumerate(canvases, 1):
            yield canvas
            report("copy", done, max(done, total))

    out = Path(payload["out"])
    unfinished = out.with_suffix(UNFINISHED)
    canvases = open_canvases(
        Path(payload["video"]),
        start=start,
        stop=stop,
        stride=stride,
        passed=passing(report, start),
    )
    with closing(decode.ahead(canvases, lambda _: AHEAD)) as ready:
        written = encode(unfinished, told(ready), group=GROUP)
    if not written:
        raise AnalysisError("the video has no frame in this range", code="no_frames")
    unfinished.rename(out)
    return {"frames": written}


def _encoded(
    payload: dict[str, Any], painter: Painter, path: Path, report: Report
) -> tuple[int, dict[str, str]]:
    """Write the labelled video; return its frames, and which encoder made it and why."""
    device = payload.get("device", "auto")
    encoder, why = nvenc.chosen(payload.get("encode", "cpu"), device)

    def encoded(encoder: Encoder) -> int:
        canvases = open_canvases(
            Path(payload["video"]),
            start=payload["start"],
            stop=payload["stop"],
            stride=payload["stride"],
            passed=passing(report, payload["start"]),
        )
        with closing(decode.ahead(canvases, lambda _: AHEAD)) as ready:
            drawn = _drawn(ready, painter, report)
            return encode(path, drawn, encoder=encoder, gpu=nvenc.number_of(device))

    try:
        frames = encoded(encoder)
    except av.error.FFmpegError as error:
        if encoder == X264:
            raise
        encoder, why = X264, f"the card could not encode this film: {nvenc.words(error)}"
        report("encode", 0, None)  # it begins anew
        frames = encoded(encoder)
    print(f"pose.mp4 by {encoder}: {why}")
    return frames, {"used": encoder, "why": why}


def _drawn(canvases: Iterator[Canvas], painter: Painter, report: Report) -> Generator[Canvas]:
    total = len(painter.poses.frames)
    for done, canvas in enumerate(canvases, 1):
        painter.paint(canvas)
        yield canvas
        report("render", done, max(done, total))


# -- poses -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Poses:
    """A table of DeepLabCut; the arrays are (frames, keypoints)."""

    frames: npt.NDArray[np.int64]
    """Frame numbers, counted from 0, ascending; (frames,)."""
    x: Floats
    """Pixels from the left; NaN where there is none."""
    y: Floats
    """Pixels from the top."""
    likelihood: Floats
    bodyparts: list[str]
    """Of each keypoint."""
    individuals: list[str]
    """Of each keypoint; empty names where the table holds one animal."""

    def shown(
        self, rows: slice, pcutoff: float, size: tuple[int, int], margin: int = 0
    ) -> npt.NDArray[np.bool_]:
        """Return which keypoints of these rows are to be drawn; (rows, keypoints).

        Those above ``pcutoff`` that are not farther outside a frame of ``size`` (width, height)
        than ``margin`` pixels: the others could not be seen, are not a number, or are beyond what
        OpenCV can count.
        """
        x, y, likelihood = self.x[rows], self.y[rows], self.likelihood[rows]
        with np.errstate(invalid="ignore"):
            inside_x = (x >= -margin) & (x <= size[0] - 1 + margin)
            inside_y = (y >= -margin) & (y <= size[1] - 1 + margin)
            shown: npt.NDArray[np.bool_] = inside_x & inside_y & (likelihood > pcutoff)
        return shown

    def names(self) -> list[str]:
        """Return what a keypoint is called on a plot, without anything that matplotlib parses."""
        pairs = zip(self.individuals, self.bodyparts, strict=True)
        return [f"{one} {part}".replace("$", r"\$").strip() for one, part in pairs]


def read_poses(path: Path) -> Poses:
    """Read a table of DeepLabCut: columns scorer, (individuals,) bodyparts, coords."""
    # Sorted by frame: nothing in the format promises it.
    table: pd.DataFrame = pd.DataFrame(pd.read_hdf(path)).sort_index()
    columns = table.columns
    coords = columns.get_level_values("coords")
    keypoints = columns[coords == "x"]
    several = "individuals" in columns.names

    def values(coord: str) -> Floats:
        return table.loc[:, coords == coord].to_numpy(np.float32)

    return Poses(
        frames=table.index.to_numpy(np.int64),
        x=values("x"),
        y=values("y"),
        likelihood=values("likelihood"),
        bodyparts=[str(name) for name in keypoints.get_level_values("bodyparts")],
        individuals=[
            str(name) if several else ""
            for name in keypoints.get_level_values("individuals" if several else "bodyparts")
        ],
    )


def colours_of(poses: Poses, colormap: str) -> list[Colour]:
    """Return each keypoint's colour, that of its bodypart: spread over the map, as DeepLabCut."""
    bodyparts = list(dict.fromkeys(poses.bodyparts))
    spread = matplotlib.colormaps[colormap](np.linspace(0, 1, len(bodyparts)))
    by_name = {
        name: (float(c[0]), float(c[1]), float(c[2]))
        for name, c in zip(bodyparts, spread, strict=True)
    }
    return [by_name[name] for name in poses.bodyparts]


def _bones(poses: Poses, skeleton: list[list[str]]) -> list[tuple[int, int]]:
    """Return pairs of keypoints, within one animal; bones without both ends are left out."""
    found = {
        key: number
        for number, key in enumerate(zip(poses.individuals, poses.bodyparts, strict=True))
    }
    return [
        (found[one, bone[0]], found[one, bone[1]])
        for one in dict.fromkeys(poses.individuals)
        for bone in skeleton
        if len(bone) == 2 and (one, bone[0]) in found and (one, bone[1]) in found
    ]


# -- the video -------------------------------------------------------------------------------------


class Painter:
    """Draws poses on canvases: trails, then bones, then dots."""

    def __init__(
        self,
        poses: Poses,
        colours: list[Colour],
        bones: list[tuple[int, int]],
        pcutoff: float,
        dotsize: int | None,
        trail: int,
    ) -> None:
        self.poses = poses
        self.size = (0, 0)
        """Width and height of the last canvas, in pixels."""
        self._colours = colours
        self._bones = bones
        self._pcutoff = pcutoff
        self._dotsize = dotsize
        self._trail = trail

    def paint(self, canvas: Canvas) -> None:
        """Draw one frame's poses; a frame that has none stays as it is."""
        height, width = canvas.y.shape
        self.size = (width, height)
        row = int(np.searchsorted(self.poses.frames, canvas.index))
        if row == len(self.poses.frames) or self.poses.frames[row] != canvas.index:
            return
        radius = self._dotsize or max(2, round(min(width, height) / 100))
        first = int(np.searchsorted(self.poses.frames, canvas.index - self._trail))
        rows = slice(first, row + 1)
        shown = self.poses.shown(rows, self._pcutoff, self.size, radius)
        points = np.stack([self.poses.x[rows], self.poses.y[rows]], axis=-1)
        points[~shown] = 0
        colours = [canvas.yuv(*colour) for colour in self._colours]
        bone = canvas.yuv(*BONE)
        for number, plane in enumerate((canvas.y, canvas.u, canvas.v)):
            # A chroma sample lies amid the four pixels that it colours.
            scale, offset = (1.0, 0.0) if number == 0 else (0.5, -0.25)
            at = np.rint((points * scale + offset) * 2**SHIFT).astype(np.int32)
            levels = [colour[number] for colour in colours]
            # Chroma is a bit wider: a thin line of half a sample would have no colour.
            thickness = max(1, round(radius / 3)) if number == 0 else 1 + radius // 6
            _draw_trails(plane, at, shown, levels, thickness)
            self._draw_bones(plane, at[-1], shown[-1], bone[number], thickness)
            _draw_dots(plane, at[-1], shown[-1], levels, round(radius * scale * 2**SHIFT))

    def _draw_bones(
        self,
        plane: pixels.Image,
        at: npt.NDArray[np.int32],
        shown: npt.NDArray[np.bool_],
        level: int,
        thickness: int,
    ) -> None:
        for one, other in self._bones:
            if shown[one] and shown[other]:
                ends = at[one].tolist(), at[other].tolist()
                cv2.line(plane, *ends, level, thickness, cv2.LINE_AA, SHIFT)


def _draw_trails(
    plane: pixels.Image,
    at: npt.NDArray[np.int32],
    shown: npt.NDArray[np.bool_],
    levels: list[int],
    thickness: int,
) -> None:
    if len(at) < 2:
        return
    for keypoint, level in enumerate(levels):
        runs = _runs(at[:, keypoint], shown[:, keypoint])
        if runs:
            cv2.polylines(plane, runs, False, level, thickness, cv2.LINE_AA, SHIFT)


def _draw_dots(
    plane: pixels.Image,
    at: npt.NDArray[np.int32],
    shown: npt.NDArray[np.bool_],
    levels: list[int],
    radius: int,
) -> None:
    for keypoint in np.flatnonzero(shown):
        centre = at[keypoint].tolist()
        cv2.circle(plane, centre, radius, levels[keypoint], cv2.FILLED, cv2.LINE_AA, SHIFT)


def _runs(
    points: npt.NDArray[np.int32], shown: npt.NDArray[np.bool_]
) -> list[npt.NDArray[np.int32]]:
    """Cut a path (rows, 2) where it isn't shown; parts of one point have no line."""
    parts = np.split(np.arange(len(shown)), np.flatnonzero(np.diff(shown)) + 1)
    return [points[part] for part in parts if shown[part[0]] and len(part) > 1]


# -- the plots -------------------------------------------------------------------------------------


def plot_trajectory(
    path: Path, poses: Poses, colours: list[Colour], pcutoff: float, size: tuple[int, int]
) -> None:
    """Write a PNG of each keypoint's way over the frame, where it is above ``pcutoff``.

    Axes are in pixels, y down, with the frame of ``size`` (width, height) as their limits.
    """
    width, height = size
    rows = _thinned(poses)
    shown = poses.shown(rows, pcutoff, size)
    x, y = (np.where(shown, coordinate[rows], np.nan) for coordinate in (poses.x, poses.y))
    figure, axes = _figure(min(12.0, max(3.0, 5.5 * width / height)) + 2, 5.5)
    for keypoint, colour in enumerate(colours):
        axes.plot(
            x[:, keypoint], y[:, keypoint], color=colour, linewidth=0.6, marker=".", markersize=1.5
        )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("x (pixels)")
    axes.set_ylabel("y (pixels)")
    axes.set_title(f"keypoints above {pcutoff:g}", fontsize="medium")
    keys = [Line2D([], [], color=colour, linewidth=3) for colour in colours]
    figure.legend(keys, poses.names(), loc="outside right upper", fontsize="small")
    _save(figure, path)


def plot_likelihood(path: Path, poses: Poses, colours: list[Colour], pcutoff: float) -> None:
    """Write a PNG of each keypoint's likelihood over the frames, a lane each, with ``pcutoff``."""
    rows = _thinned(poses)
    lanes = len(colours)
    figure, axes = _figure(10.0, min(60.0, 1.5 + 0.55 * lanes))
    for keypoint, colour in enumerate(colours):
        bottom = lanes - 1 - keypoint  # the first one on top
        likelihood = np.clip(poses.likelihood[rows, keypoint], 0, 1)
        axes.plot(poses.frames[rows], bottom + LANE * likelihood, color=colour, linewidth=0.6)
        axes.axhline(bottom + LANE * pcutoff, color="black", linewidth=0.6, linestyle=":")
        axes.axhline(bottom, color="0.8", linewidth=0.6)
    axes.set_ylim(-0.1, lanes)
    axes.margins(x=0.01)
    axes.set_yticks([lanes - 1 - keypoint + LANE / 2 for keypoint in range(lanes)], poses.names())
    axes.set_xlabel("frame")
    axes.set_title(f"likelihood, 0 to 1 in each lane; dotted: {pcutoff:g}", fontsize="medium")
    _save(figure, path)


def _thinned(poses: Poses) -> slice:
    return slice(None, None, max(1, -(-len(poses.frames) // PLOT_POINTS)))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps every figure, and this process draws many.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    unfinished = path.with_suffix(UNFINISHED)
    figure.savefig(unfinished, format="png")
    unfinished.rename(path)
