"""Films whose frames have their number in their pixels, runs on them, and what a browser shows.

The number is a bar code: 16 squares along the upper edge, white for 1. A frame's pose is a function
of the frame, and there is a white dot in its pixels, so that the canvas over the film can be held
to both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import boto3
import cv2
import numpy as np
from botocore.config import Config
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from posedrop.buckets import layout
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact, FrameRange
from posedrop.buckets.records.videos import VideoRecord
from tests.support.lab import Embedded, Lab
from worker.video import numbering, pixels

WIDTH, HEIGHT, BITS, CELL = 640, 360, 16, 40
#: Radius of the dot, in pixels.
DOT = 8
BODYPARTS = ("dot", "<b>tail</b>")


def code(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Return a picture with a number and a dot in it, RGB.

    Args:
        number: of the frame.
        size: width and height in pixels, not much less than those that poses are made for.
    """
    width, height = size
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[height // 2 :, :: 1 + number % 7] = 110
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for bit in range(BITS):
        picture[:CELL, edges[bit] : edges[bit + 1]] = 235 if number >> bit & 1 else 20
    x, y = pose(number)
    return np.asarray(cv2.circle(picture, (round(x), round(y)), DOT, (250, 250, 250), -1))


def read_code(picture: np.ndarray) -> int:
    """Return the number in a picture of any size."""
    height, width = picture.shape[:2]
    row = round(CELL / 2 / HEIGHT * height)
    return sum(
        1 << bit
        for bit in range(BITS)
        if picture[row, round((bit + 0.5) * CELL / WIDTH * width)].mean() > 128
    )


def film(
    path: Path,
    times: list[float],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rate: Fraction = Fraction(25),
    turned: int = 0,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    aspect: Fraction | None = None,
) -> Path:
    """Write a film with a frame at each of the times (seconds); each has its number in it."""
    base = Fraction(1, 60_000 if codec == "mpeg4" else 90_000)  # MPEG-4 has 16 bits for it
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size[::-1] if turned % 2 else size
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            picture = np.ascontiguousarray(np.rot90(code(number, size), turned))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def regular(frames: int, rate: float = 25.0) -> list[float]:
    """Return times of a constant rate, in seconds."""
    return [number / rate for number in range(frames)]


def uneven(frames: int) -> list[float]:
    """Return times of a variable rate, from 5 to 200 milliseconds apart."""
    chance, times = random.Random(7), [0.0]
    while len(times) < frames:
        times.append(times[-1] + chance.choice([0.005, 0.02, 0.033, 0.04, 0.1, 0.2]))
    return times


def _ffmpeg(source: Path, target: Path, *before: str, after: tuple[str, ...] = ()) -> Path:
    command = ["ffmpeg", "-v", "error", "-y", *before, "-i", str(source), *after, str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


_B_FRAMES = {"bf": "3", "g": "48", "x264-params": "scenecut=0"}


def _edit_list(folder: Path) -> Path:
    plain = film(folder / "whole.mp4", regular(260), options=_B_FRAMES)
    return _ffmpeg(plain, folder / "edit.mp4", "-ss", "1.3", after=("-c", "copy"))


def _late(folder: Path) -> Path:
    plain = film(folder / "soon.mp4", regular(200), options=_B_FRAMES)
    return _ffmpeg(plain, folder / "late.mp4", after=("-c", "copy", "-output_ts_offset", "10"))


def _rotated(turns: int, aspect: Fraction | None = None) -> Callable[[Path], Path]:
    """Return a film that is to be turned: so many quarters clockwise, by its metadata."""

    def make(folder: Path) -> Path:
        name = f"rotated-{turns}{'-wide' if aspect else ''}.mp4"
        plain = film(folder / f"lying-{name}", regular(200), turned=4 - turns, aspect=aspect)
        tags = ("-c", "copy", "-metadata:s:v:0", f"rotate={90 * turns}")
        return _ffmpeg(plain, folder / name, after=tags)

    return make


def changing(frames: int) -> list[float]:
    """Return times of a rate that changes, in seconds: 30 a second, then 10, then 60."""
    apart = [1 / 30] * (frames // 3) + [1 / 10] * (frames // 3) + [1 / 60] * frames
    return [0.0, *np.cumsum(apart)[: frames - 1].tolist()]


def _of_size(width: int, height: int, codec: str, suffix: str) -> Callable[[Path], Path]:
    return lambda folder: film(
        folder / f"{width}x{height}-{codec}.{suffix}",
        regular(200),
        codec=codec,
        pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p",
        options={"cpu-used": "8"} if codec == "libvpx-vp9" else {},
        size=(width, height),
    )


def _two_films(folder: Path) -> Path:
    """Return a film with a second one beside it, which is not shown."""
    one = film(folder / "one.mp4", regular(200))
    second = _ffmpeg(one, folder / "negative.mp4", after=("-vf", "negate"))
    both = ("-i", str(second), "-map", "0:v", "-map", "1:v", "-c", "copy")
    return _ffmpeg(one, folder / "two.mp4", after=both)


def _delayed(seconds: float, suffix: str) -> Callable[[Path], Path]:
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    options = {"cpu-used": "8"} if suffix == "webm" else _B_FRAMES

    def make(folder: Path) -> Path:
        times = [seconds + time for time in regular(150)]
        return film(folder / f"delayed-{seconds}.{suffix}", times, codec=codec, options=options)

    return make


def _no_edit_list(folder: Path) -> Path:
    """Return a film whose first frame is shown late, as B-frames need it, and no list says so."""
    plain = film(folder / "listed.mp4", regular(200), options=_B_FRAMES)
    return _ffmpeg(plain, folder / "unlisted.mp4", after=("-c", "copy", "-use_editlist", "0"))


def _with_sound(folder: Path) -> Path:
    plain = film(folder / "mute.mp4", regular(200), options=_B_FRAMES)
    sound = ("-f", "lavfi", "-i", "sine=440", "-shortest", "-c:v", "copy", "-c:a", "aac")
    return _ffmpeg(plain, folder / "sound.mp4", after=sound)


def _remuxed(name: str, *options: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        plain = film(folder / f"plain-{name}.mp4", regular(200), options=_B_FRAMES)
        return _ffmpeg(plain, folder / name, after=("-c", "copy", *options))

    return make


def _encoded(name: str, *options: str, frames: int = 200) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        plain = film(folder / f"plain-{name}.mp4", regular(frames))
        return _ffmpeg(plain, folder / name, after=options)

    return make


#: Kinds of films, each made in a folder.
FILMS: dict[str, Callable[[Path], Path]] = {
    "constant": lambda folder: film(folder / "constant.mp4", regular(250)),
    "variable": lambda folder: film(folder / "variable.mp4", uneven(250), options=_B_FRAMES),
    "b-frames": lambda folder: film(folder / "b.mp4", regular(250), options=_B_FRAMES),
    "edit list": _edit_list,
    "webm": lambda folder: film(
        folder / "vp9.webm", regular(150), codec="libvpx-vp9", options={"cpu-used": "8"}
    ),
    "29.97": lambda folder: film(
        folder / "ntsc.mp4", regular(250, 30000 / 1001), rate=Fraction(30000, 1001)
    ),
    "1 a second": lambda folder: film(folder / "slow.mp4", regular(60, 1.0), rate=Fraction(1)),
    "240 a second": lambda folder: film(
        folder / "fast.mp4", regular(480, 240.0), rate=Fraction(240), options=_B_FRAMES
    ),
    "from 10 s": _late,
    "rotated": _rotated(3),
    "rotated by 90": _rotated(1),
    "rotated by 180": _rotated(2),
    "rotated, not square": _rotated(1, Fraction(4, 3)),
    "not square": lambda folder: film(folder / "sar.mp4", regular(200), aspect=Fraction(4, 3)),
    "tall pixels": lambda folder: film(folder / "tall.mp4", regular(200), aspect=Fraction(2, 3)),
    "odd webm": _of_size(641, 359, "libvpx-vp9", "webm"),
    "odd mjpeg": _of_size(641, 359, "mjpeg", "avi"),
    "odd width": _of_size(661, 360, "ffv1", "mkv"),
    "not of blocks": _of_size(650, 378, "libx264", "mp4"),
    "rate changes": lambda folder: film(folder / "rate.mp4", changing(240), options=_B_FRAMES),
    "from 0.3 s": _delayed(0.3, "mp4"),
    "webm from 0.3 s": _delayed(0.3, "webm"),
    "webm from 2 s": _delayed(2, "webm"),
    "no edit list": _no_edit_list,
    "two films": _two_films,
    "4:4:4": lambda folder: film(folder / "full.mp4", regular(150), pixel_format="yuv444p"),
    "full range": lambda folder: film(folder / "pc.mp4", regular(150), pixel_format="yuvj420p"),
    "mpeg-4": lambda folder: film(folder / "asp.mp4", regular(150), codec="mpeg4"),
    "vp8": lambda folder: film(
        folder / "vp8.webm", regular(150), codec="libvpx", options={"cpu-used": "8"}
    ),
    "sound": _with_sound,
    "mov": _remuxed("plain.mov"),
    "mkv": _remuxed("plain.mkv"),
    "fragments": _remuxed("fragments.mp4", "-movflags", "frag_keyframe+empty_moov"),
    "avi": _encoded("mjpeg.avi", "-c:v", "mjpeg", "-q:v", "3"),
    "10 bit": _encoded("ten.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
    "hevc": _encoded("hevc.mp4", "-c:v", "libx265", "-x265-params", "log-level=error"),
    "interlaced": _encoded("laced.mp4", "-c:v", "libx264", "-flags", "+ilme+ildct"),
    "anamorphic": _encoded("wide.mp4", "-c:v", "libx264", "-vf", "setsar=4/3"),
    "mpeg-ts": _remuxed("plain.ts"),
    "av1": _encoded("av1.mp4", "-c:v", "libsvtav1", "-preset", "12", frames=100),
    "one key frame": lambda folder: film(
        folder / "key.mp4", regular(400), options={"g": "9999", "x264-params": "scenecut=0"}
    ),
}


@cache
def made(kind: str, folder: Path) -> tuple[Path, Seen]:
    """Return a film of a kind in a folder, and how it is decoded; made once."""
    path = FILMS[kind](folder)
    found = seen(path)
    assert len(set(found.codes)) > 0.9 * len(found.codes), f"{kind}: no numbers in its pixels"
    return path, found


@dataclass(frozen=True)
class Seen:
    """A film as it is decoded here."""

    codes: list[int]
    """What each frame has in its pixels."""
    seconds: list[float]
    size: tuple[int, int] = (WIDTH, HEIGHT)
    """Width and height of a frame, upright, in pixels."""


def seen(path: Path) -> Seen:
    """Return what each frame of a film has in its pixels, by its number, and when it is shown."""
    codes: list[int] = []
    size = (WIDTH, HEIGHT)
    reading = numbering.Reading()
    reformatter = av.video.reformatter.VideoReformatter()
    with closing(numbering.numbered(path, reading)) as shown:
        for picture in shown:
            while len(codes) < picture.index:
                codes.append(-1)
            image = pixels.to_rgb(picture, reformatter)
            size = (image.shape[1], image.shape[0])
            codes.append(read_code(image))
    seconds, _ = reading.seconds(np.arange(len(codes)))
    return Seen(codes, seconds.tolist(), size)


def pose(frame: int, offset: int = 0) -> tuple[float, float]:
    """Return where a frame's dot is, in pixels."""
    return 20.0 + (frame * 7 + offset) % 600, 120.0 + (frame * 3) % 200


def publish(
    lab: Lab,
    key: str,
    film_seen: Seen,
    *,
    animals: tuple[str, ...] = (),
    rows: range | None = None,
    offset: int = 0,
    number: int = 0,
    missing: tuple[int, ...] = (),
    view: bytes | None = None,
    status: Literal["succeeded", "partial", "failed"] = "succeeded",
    **changes: Any,
) -> str:
    """Put a run of a film into the buckets, as a worker leaves it; return its id.

    Args:
        lab: has the film under this key.
        key: of the film.
        film_seen: the film.
        animals: names of the animals; none: one without a name.
        rows: frames that were analysed; None: all.
        offset: of the dots, in pixels.
        number: makes the run another one.
        missing: frames that count as lost.
        view: viewer.bin; None: it is to be made of the tables.
        status: how it ended; of lost frames it is partial.
        changes: of result.json.
    """
    s3, folder = _worker_s3(lab), layout.video_prefix("videos", key)
    record = s3.get_object(Bucket="results", Key=layout.video_record(folder))["Body"].read()
    video = VideoRecord.model_validate_json(record)
    assert video.probe is not None
    rows = rows if rows is not None else range(len(film_seen.codes))
    analysis_id = layout.make_id(key, str(number))
    run = layout.Run(layout.run_prefix(folder, "deeplabcut_2d", analysis_id))
    now = datetime.now(UTC)
    request = Request(
        analysis_id=analysis_id,
        analysis="deeplabcut_2d",
        analysis_version="3",
        args={
            "model": "dots",
            "start": rows.start,
            "stop": rows.stop if rows.stop < len(film_seen.codes) else None,
            "stride": rows.step,
        },
        video=video.video,
        sha256=video.sha256 or "",
        probe=video.probe,
        asked_by="api",
        created_at=now,
    )
    times = "".join(f"{frame},{film_seen.seconds[frame]:.9f}\n" for frame in rows)
    tables = {
        "poses.csv": _table(rows, animals, offset, missing).encode(),
        "timestamps.csv": f"frame,seconds\n{times}".encode(),
    }
    files = tables if view is None else {"viewer.bin": view}
    s3.put_object(Bucket="results", Key=run.request, Body=request.to_json())
    artefacts = []
    for name, data in files.items():
        s3.put_object(Bucket="results", Key=run.key(name), Body=data)
        artefacts.append(
            Artefact(
                name=name,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                content_type="text/csv",
            )
        )
    result = Result.of(
        request,
        "partial" if missing else status,
        finished_at=now,
        artefacts=artefacts,
        rows=len(rows),
        frames_decoded=len(rows),
        frames_expected=len(rows),
        missing=[FrameRange(first=frame, last=frame) for frame in missing],
        timestamps="container",
        details={"skeleton": [list(BODYPARTS)], "pcutoff": 0.5},
        **changes,
    )
    s3.put_object(Bucket="results", Key=run.result, Body=result.to_json())
    lab.until(lambda: lab.http.get(f"/results/{analysis_id}").status_code == 200, "the run")
    return analysis_id


def _worker_s3(lab: Lab) -> Any:
    """Return a client with the worker's key, which writes results; people's only reads them."""
    if isinstance(lab, Embedded):
        secrets = json.loads((lab.data_dir / "secrets.json").read_text())["service"]
        access, secret = secrets["access_key"], secrets["secret_key"]
    else:
        lines = (lab.data_dir / "keys.env").read_text().splitlines()
        keys = dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
        access = keys["POSEDROP_WORKER_ACCESS_KEY"].strip("'\"")
        secret = keys["POSEDROP_WORKER_SECRET_KEY"].strip("'\"")
    env = lab.aws_environment()
    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name=env["AWS_DEFAULT_REGION"],
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )


def _table(rows: range, animals: tuple[str, ...], offset: int, missing: tuple[int, ...]) -> str:
    """Return DeepLabCut's table as CSV: the dot where it belongs, the tail never sure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [(animal, part) for animal in (animals or ("",)) for part in BODYPARTS]
    writer.writerow(["scorer"] + ["dots"] * 3 * len(columns))
    if animals:
        writer.writerow(["individuals"] + [animal for animal, _ in columns for _ in range(3)])
    writer.writerow(["bodyparts"] + [part for _, part in columns for _ in range(3)])
    writer.writerow(["coords"] + ["x", "y", "likelihood"] * len(columns))
    for frame in rows:
        cells: list[str | float] = [frame]
        for number, (_, part) in enumerate(columns):
            x, y = pose(frame, offset + 40 * (number // 2))
            lost = frame in missing
            cells += ["", "", ""] if lost else [x, y, 0.99 if part == "dot" else 0.2]
        writer.writerow(cells)
    return text.getvalue()


def upload(lab: Lab, path: Path, key: str) -> str:
    """Put a film into the bucket; return its file_id once it is ready."""
    lab.s3().upload_file(str(path), "videos", key)
    file = lab.file(key)
    assert file["state"] == "ready", file
    return str(file["file_id"])


class Viewer:
    """The page of a run in a browser, held to what it has to show."""

    def __init__(
        self,
        page: Page,
        lab: Lab,
        run: str,
        film_seen: Seen,
        *,
        rows: range | None = None,
        **query: str,
    ) -> None:
        """Open the page of a run, of all frames unless others are said; wait for its film."""
        self.page, self.seen = page, film_seen
        self.rows = rows if rows is not None else range(len(film_seen.codes))
        more = "&".join(f"{name}={value}" for name, value in query.items())
        page.goto(f"{lab.url}/run/{run}" + (f"?{more}" if more else ""))
        try:  # by a selector: the page may be loaded anew meanwhile
            page.wait_for_selector("#viewer:not([hidden])", timeout=60_000)
        except PlaywrightTimeoutError as error:
            raise AssertionError(self._told()) from error
        self.until(
            "document.querySelectorAll('#stage video').length === 1"
            " && document.querySelector('#stage video').readyState >= 2"
            " && document.querySelector('#stage video').onended !== null"  # it is the film's now
            " && document.querySelector('#viewer').dataset.frame !== undefined"
        )

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression of JavaScript is true (playwright's own wait needs eval)."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise AssertionError(f"{expression}\n{self._told()}")
            time.sleep(0.005)

    def _told(self) -> str:
        """Return the page's address, and the beginning of what it says."""
        return f"{self.page.url}\n{self.page.inner_text('body')[:500]}"

    def until_shown(self, frame: int) -> None:
        """Wait until a frame is said to be shown."""
        self.until(f"document.querySelector('#viewer').dataset.frame === '{frame}'", 20)

    def go(self, frame: int) -> None:
        """Go to a frame by the address."""
        self.page.evaluate(f"location.hash = 'frame={frame}'")
        self.until_shown(frame)

    def press(self, key: str, frame: int) -> None:
        """Press a key, by which another frame comes."""
        self.page.keyboard.press(key)
        self.until_shown(frame)

    def shown(self) -> int:
        """Return the number of the frame that the page says it shows."""
        return int(self.page.evaluate("document.querySelector('#viewer').dataset.frame"))

    def pixels(self) -> int:
        """Return the number in the pixels of a screenshot."""
        shot = self.page.locator("#stage").screenshot(caret="initial")
        picture = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
        return read_code(np.asarray(picture))

    def drawn(self) -> tuple[float, float] | None:
        """Return where the canvas has something, on average, in pixels of the film."""
        found = self.page.evaluate(
            """() => {
              const canvas = document.querySelector('#overlay');
              const { width, height } = canvas;
              const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
              let [x, y, n] = [0, 0, 0];
              for (let at = 3; at < data.length; at += 4) {
                if (data[at] < 128) continue;
                const pixel = (at - 3) / 4;
                x += pixel % width; y += Math.floor(pixel / width); n += 1;
              }
              return n ? [(x / n + 0.5) / width, (y / n + 0.5) / height] : null;
            }"""
        )
        width, height = self.seen.size
        return (found[0] * width - 0.5, found[1] * height - 0.5) if found else None

    def dots(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return where the film has its dot, and where the canvas has: pixels of a screenshot."""
        found = []
        for hidden, threshold in (("#overlay", 180), ("video", 24)):
            style = f"document.querySelector('#stage {hidden}').style"
            self.page.evaluate(f"{style}.visibility = 'hidden'")
            shot = self.page.locator("#stage").screenshot(caret="initial")
            self.page.evaluate(f"{style}.visibility = ''")
            picture = np.asarray(cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR))
            above = round(CELL * 1.6 / HEIGHT * picture.shape[0])  # the bar code
            # The last rows may have some of what is below the stage.
            y, x = np.nonzero(picture[above:-3].max(axis=2) > threshold)
            assert len(x), f"no dot with {hidden} hidden"
            found.append((float(x.mean()), float(y.mean()) + above))
        return found[0], found[1]

    def check_dots(self, frame: int) -> None:
        """Hold the keypoint on the screen to the dot in the film that is behind it."""
        self.go(frame)
        film_has, canvas_has = self.dots()
        assert abs(film_has[0] - canvas_has[0]) < 2, (frame, film_has, canvas_has)
        assert abs(film_has[1] - canvas_has[1]) < 2, (frame, film_has, canvas_has)

    def check(self, frame: int) -> None:
        """Hold all that is shown to one frame: the number, the pixels, the pose."""
        assert self.shown() == frame
        assert self.pixels() == self.seen.codes[frame], f"frame {frame}"
        drawn, (x, y) = self.drawn(), pose(frame)
        assert drawn is not None
        assert abs(drawn[0] - x) < 1.5, (frame, drawn, x)
        assert abs(drawn[1] - y) < 1.5, (frame, drawn, y)


def walk(viewer: Viewer, seeks: int, steps: int, seed: int = 1) -> None:
    """Seek at random, then go step by step, each way; whatever is shown has to be one frame."""
    chance, rows = random.Random(seed), viewer.rows
    for frame in [rows[0], rows[-1], *(chance.choice(rows) for _ in range(seeks))]:
        viewer.go(frame)
        viewer.check(frame)
    for frame in (rows[0], rows[len(rows) // 3], rows[-1]):
        if viewer.seen.codes[frame] == frame:  # else its dot is that of another pose
            viewer.check_dots(frame)
    start = max(0, min(len(rows) // 2, len(rows) - 1 - steps))
    steps = min(steps, len(rows) - 1 - start)
    viewer.go(rows[start])
    for frame in rows[start + 1 : start + steps + 1]:
        viewer.press("ArrowRight", frame)
        viewer.check(frame)
    for frame in reversed(rows[start : start + steps]):
        viewer.press("ArrowLeft", frame)
        viewer.check(frame)
