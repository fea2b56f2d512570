"""Draws a mouse seen from above, and knows exactly where each of its body parts is.

The films are the repository's own demo data: made here, so free to share, and with the true
keypoints at hand, so a prediction can be checked to a fraction of a pixel.

Every function is deterministic in its arguments. Coordinates are pixels of the picture, x to the
right and y down, the centre of the upper left pixel being (0, 0).
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

BODYPARTS: tuple[str, ...] = ("snout", "leftear", "rightear", "centre", "tailbase")
SIZE: tuple[int, int] = (320, 256)
"""Width and height of the picture, in pixels."""
FPS: int = 30

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = tuple[float, float, float]

# The animal, in pixels.
_SNOUT = 31.0  # centre to snout
_EARS = 19.0  # centre to the line between the ears
_EAR_GAP = 8.5  # that line to one ear
_REAR = 27.0  # centre to tail base
_TAIL = 44.0

# How it walks: pixels and radians per frame.
_MARGIN = 62.0  # a goal is at least this far from the picture's edge
_SPEED = 2.2
_TURN = 0.085

# Drawn this many times larger and then shrunk, which smooths every outline.
_SCALE = 3

_FUR: Colour = (84.0, 68.0, 56.0)
_FUR_SIDE: Colour = (52.0, 42.0, 35.0)
_FUR_EAR: Colour = (67.0, 54.0, 45.0)
_SKIN: Colour = (206.0, 148.0, 140.0)


def trajectory(frames: int, seed: int) -> Floats:
    """Let a mouse wander and say where its body parts are.

    Returns pixels of shape (frames, len(BODYPARTS), 2), x before y.
    """
    rng = np.random.default_rng([seed, 0])
    low = np.array([_MARGIN, _MARGIN])
    high = np.array(SIZE, dtype=np.float64) - _MARGIN
    position = rng.uniform(low, high)
    goal = rng.uniform(low, high)
    front = float(rng.uniform(-np.pi, np.pi))
    back = front
    turn = 0.0
    speed = 0.0
    phase = rng.uniform(0.0, 2 * np.pi, 2)
    poses = np.empty((frames, len(BODYPARTS), 2))
    for frame in range(frames):
        if np.hypot(*(goal - position)) < 24.0 or rng.random() < 0.008:
            goal = rng.uniform(low, high)
        away = goal - position
        wanted = _wrap(float(np.arctan2(away[1], away[0])) - front)
        # Eased rather than set, or the animal would jerk where it picks another goal.
        turn += 0.2 * (float(np.clip(0.12 * wanted, -_TURN, _TURN)) - turn)
        pace = _SPEED * (0.55 + 0.45 * np.sin(0.05 * frame + phase[0]))
        # It slows down to turn round; at full speed it would circle its goal for ever.
        speed += 0.1 * (pace * (0.25 + 0.75 * max(0.0, np.cos(wanted))) - speed)
        front = _wrap(front + turn)
        back = _wrap(back + 0.12 * _wrap(front - back))  # the rear follows, so the body bends
        position = position + speed * _direction(back)
        sniff = 0.12 * np.sin(0.21 * frame + phase[1])
        poses[frame] = _pose(position, front + sniff, back)
    return poses


def draw(pose: Floats, seed: int = 0, frame: int = 0) -> Image:
    """Draw one picture.

    `pose` is (len(BODYPARTS), 2) in pixels. `seed` chooses floor and light, `frame` the swing of
    the tail and the camera's noise. Returns (SIZE[1], SIZE[0], 3), RGB.
    """
    return _draw(pose, _floor(seed), seed, frame)


def film(path: Path, frames: int, seed: int) -> Floats:
    """Write an H.264 film of one mouse at FPS frames per second.

    Returns its keypoints in pixels, (frames, len(BODYPARTS), 2).
    """
    poses = trajectory(frames, seed)
    floor = _floor(seed)
    with av.open(str(path), "w") as container:
        # One thread: x264 may decide otherwise with more, and then the file differs by machine.
        stream = container.add_stream(
            "libx264", rate=FPS, options={"crf": "18", "preset": "medium", "threads": "1"}
        )
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for index, pose in enumerate(poses):
            picture = av.VideoFrame.from_ndarray(_draw(pose, floor, seed, index), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return poses


def write_keypoints(path: Path, keypoints: Floats) -> None:
    """Write keypoints (frames, len(BODYPARTS), 2) as CSV: one row per frame, pixels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frame", *(f"{part}_{axis}" for part in BODYPARTS for axis in "xy")])
        for frame, pose in enumerate(keypoints):
            writer.writerow([frame, *(f"{value:.3f}" for value in pose.ravel())])


def _wrap(angle: float) -> float:
    """Bring an angle in radians into [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _direction(angle: float) -> Floats:
    """Unit vector (2,) of an angle in radians, clockwise on the screen as y points down."""
    return np.array([np.cos(angle), np.sin(angle)])


def _pose(centre: Floats, front: float, back: float) -> Floats:
    """Body parts (len(BODYPARTS), 2) of a mouse whose halves point to `front` and `back`."""
    ahead = _direction(front)
    right = np.array([-ahead[1], ahead[0]])  # y points down, so this is the animal's right
    neck = centre + _EARS * ahead
    return np.stack(
        [
            centre + _SNOUT * ahead,
            neck - _EAR_GAP * right,
            neck + _EAR_GAP * right,
            centre,
            centre - _REAR * _direction(back),
        ]
    )


def _floor(seed: int) -> Floats:
    """Return the empty arena, (SIZE[1], SIZE[0], 3), 0 to 255: bedding, light from a side, wall."""
    rng = np.random.default_rng([seed, 1])
    width, height = SIZE
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = _direction(float(rng.uniform(-np.pi, np.pi)))
    light = 1.0 + 0.08 * (slope[0] * x + slope[1] * y) - 0.06 * (x * x + y * y)
    stains = np.zeros((height, width))
    for cells, strength in ((6, 6.0), (24, 4.0), (90, 4.0)):
        coarse = rng.normal(0.0, strength, (cells, cells))
        stains += cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
    base = np.array([202.0, 192.0, 174.0]) + rng.normal(0.0, 6.0, 3)
    floor = (base + stains[..., None]) * light[..., None]
    wall = np.full((height, width), 0.55)
    wall[9:-9, 9:-9] = 1.0
    return np.asarray(floor * cv2.GaussianBlur(wall, (0, 0), 1.5)[..., None])


def _draw(pose: Floats, floor: Floats, seed: int, frame: int) -> Image:
    """Draw `pose` (len(BODYPARTS), 2) upon `floor` (SIZE[1], SIZE[0], 3)."""
    snout, left, right, centre, rear = pose
    neck = (left + right) / 2
    tail = _tail(centre, rear, 0.5 * np.sin(0.13 * frame + seed))
    spine = np.concatenate(
        [
            np.linspace(rear, centre, 12, endpoint=False),
            np.linspace(centre, neck, 9, endpoint=False),
            np.linspace(neck, snout, 7),
        ]
    )
    along = np.linspace(0.0, 1.0, len(spine))
    girth = np.interp(
        along, [0.0, 0.12, 0.3, 0.5, 0.72, 0.88, 1.0], [6.5, 12.0, 15.0, 13.5, 11.0, 6.5, 2.5]
    )

    # Only a window round the animal is painted: the rest of the floor stays as it is.
    points = np.concatenate([pose, tail])
    x1, y1 = (int(v) for v in np.clip(np.floor(points.min(axis=0)) - 32, 0, np.array(SIZE) - 1))
    x2, y2 = (int(v) for v in np.clip(np.ceil(points.max(axis=0)) + 33, (x1 + 1, y1 + 1), SIZE))
    brush = _Brush(x1, y1, x2, y2)
    part = floor[y1:y2, x1:x2]

    shadow = brush.discs(spine + np.array([2.5, 3.5]), girth + 2.0, blur=3.0)
    part = part * (1.0 - 0.4 * shadow[..., None])
    part = _blend(part, brush.line(tail), (176.0, 132.0, 122.0))
    # The fur is darker at the sides, so that the back looks round.
    part = _blend(part, brush.discs(spine, girth), _FUR_SIDE)
    part = _blend(part, brush.discs(spine, 0.72 * girth, blur=2.0), _FUR)
    part = _blend(part, 0.5 * brush.discs(spine, 0.3 * girth, blur=2.5), (128.0, 106.0, 88.0))
    ears = np.stack([left, right])
    part = _blend(part, brush.discs(ears, [5.2, 5.2]), _FUR_EAR)
    part = _blend(part, brush.discs(ears, [3.6, 3.6]), _SKIN)
    part = _blend(part, brush.discs(snout[None], [2.3]), _SKIN)

    picture = floor.copy()
    picture[y1:y2, x1:x2] = part
    rng = np.random.default_rng([seed, 2, frame])
    picture += rng.normal(0.0, 2.5, (SIZE[1], SIZE[0], 1))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _tail(centre: Floats, rear: Floats, swing: float) -> Floats:
    """Points (n, 2) of the tail; `swing` is half the curl up to its tip, in radians."""
    away = rear - centre
    steps = 16
    angles = float(np.arctan2(away[1], away[0])) + 2.0 * swing * np.linspace(0.0, 1.0, steps)
    offsets = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (_TAIL / steps)
    return np.asarray(rear + np.cumsum(np.concatenate([np.zeros((1, 2)), offsets]), axis=0))


@dataclass(frozen=True)
class _Brush:
    """Paints shapes in the window of columns x1 to x2 and rows y1 to y2 of the picture.

    What it returns is how much of each pixel a shape covers, (y2 - y1, x2 - x1), 0 to 1.
    """

    x1: int
    y1: int
    x2: int
    y2: int

    def discs(self, points: Floats, radii: Sequence[float] | Floats, blur: float = 0.0) -> Floats:
        """Filled circles at `points` (n, 2) with `radii` (n,), all in pixels, as is `blur`."""
        canvas = self._canvas()
        for (x, y), radius in zip(self._fine(points), radii, strict=True):
            size = round(radius * _SCALE * 16)
            cv2.circle(canvas, (int(x), int(y)), size, 255, -1, cv2.LINE_AA, 4)
        cover = self._shrunk(canvas)
        if blur > 0.0:
            cover = np.asarray(cv2.GaussianBlur(cover, (0, 0), blur))
        return cover

    def line(self, points: Floats) -> Floats:
        """Line through `points` (n, 2), in pixels."""
        canvas = self._canvas()
        cv2.polylines(canvas, [self._fine(points)], False, 255, 3 * _SCALE, cv2.LINE_AA, 4)
        return self._shrunk(canvas)

    def _canvas(self) -> Image:
        shape = ((self.y2 - self.y1) * _SCALE, (self.x2 - self.x1) * _SCALE)
        return np.zeros(shape, dtype=np.uint8)

    def _fine(self, points: Floats) -> NDArray[np.int32]:
        """Pixels to the enlarged canvas, in cv2's fixed point with 4 bits after the point.

        Pixel centres are whole numbers in both, hence the half enlarged pixels.
        """
        inside = points - np.array([self.x1, self.y1])
        fine: NDArray[np.int32] = np.rint(((inside + 0.5) * _SCALE - 0.5) * 16).astype(np.int32)
        return fine

    def _shrunk(self, canvas: Image) -> Floats:
        size = (self.x2 - self.x1, self.y2 - self.y1)
        small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
        return np.asarray(small, dtype=np.float64) / 255.0


def _blend(picture: Floats, cover: Floats, colour: Colour) -> Floats:
    """Blend `colour` into `picture`, by `cover` at each pixel (0 to 1)."""
    amount = cover[..., None]
    return picture * (1.0 - amount) + np.array(colour) * amount


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a film, and its keypoints if asked to."""
    parser = argparse.ArgumentParser(description="Film a drawn mouse.")
    parser.add_argument("film", type=Path, metavar="OUT.mp4")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keypoints", type=Path, metavar="OUT.csv")
    options = parser.parse_args(arguments)
    keypoints = film(options.film, options.frames, options.seed)
    if options.keypoints is not None:
        write_keypoints(options.keypoints, keypoints)


if __name__ == "__main__":
    main()
