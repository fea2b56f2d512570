"""`posedrop demo`: the whole way of a video, on a drawn mouse whose keypoints are known."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from posedrop.address import LOOPBACK, is_free
from posedrop.buckets.storage import Storage
from posedrop.client import Client, Run
from posedrop.demo import MODEL
from posedrop.embedded.stack import (
    DEFAULT_PORT,
    DEFAULT_S3_PORT,
    Stack,
    banner,
    log_to,
    page_link,
    token_of,
)
from posedrop.errors import AnalysisError, ConfigurationError
from posedrop.models.push import push
from posedrop.settings import Settings
from posedrop.terminal import say

#: What its model is called in the models bucket.
_NAME = "demo"
MAX_MEAN_ERROR_PIXELS = 3.0
#: Another mouse in another arena than any of those that the model was trained on.
_SEED = 20_261_123
_PATIENCE_SECONDS = 600.0

Points = list[tuple[float, float]]


def run(data_dir: Path, *, frames: int = 300, leave: bool = False) -> bool:
    """Film, upload, track, fetch and compare; return whether the poses are right.

    Args:
        data_dir: of the stack; the film and the results come into its folder ``demo``.
        frames: length of the film.
        leave: end when done; else stay up until Ctrl-C.

    Raises:
        ConfigurationError: the worker's packages lack, or the stack can't be started.
        AnalysisError: the video was refused or its run failed.
    """
    mouse = _mouse()
    started = time.monotonic()
    log_to(data_dir)
    folder = data_dir / "demo"
    folder.mkdir(exist_ok=True, mode=0o700)
    film = folder / "mouse.mp4"
    say(f"drawing {frames} frames of a mouse: {film}")
    known = mouse.film(film, frames, _SEED)
    stack = Stack(data_dir, port=_or_free(DEFAULT_PORT), s3_port=_or_free(DEFAULT_S3_PORT))
    try:
        say("starting the object store, the API and the workers")
        stack.start()
        analysed = _track(stack.settings, film)
        paths = _fetch(stack.settings, analysed, folder / "results")
        error, points = mean_error(paths["poses.csv"], list(mouse.BODYPARTS), known)
        right = error <= MAX_MEAN_ERROR_PIXELS
        _report(stack.settings, analysed, folder / "results", error, points)
        say(f"took {time.monotonic() - started:.0f} s")
        if not leave:
            for line in ["", *banner(stack.settings, data_dir)]:
                say(line)
            stack.wait()
    finally:
        stack.stop()
    return right


def _track(settings: Settings, film: Path) -> Run:
    model = push(Storage(settings), settings.models_bucket, MODEL, _NAME)
    say(f"model {model.name} {model.digest[:12]}: {', '.join(model.bodyparts)}")
    args = {"model": _NAME}
    with _client(settings) as client:
        ticket = client.upload(film, analysis="deeplabcut_2d", args=args)
        say(f"uploaded as {ticket.bucket}/{ticket.key}")
        file = client.wait_for_file(ticket.file_id, seconds=_PATIENCE_SECONDS)
        if file.refusal is not None:
            raise AnalysisError(f"the film was refused: {file.refusal.message}")
        # The upload has asked for it already: the same request only tells its id.
        asked = client.analyse(ticket.file_id, "deeplabcut_2d", args)
        analysed = client.wait(
            asked.analysis_id, on_progress=_Progress(), seconds=_PATIENCE_SECONDS
        )
    if analysed.error is not None:
        raise AnalysisError(f"the run {analysed.status}: {analysed.error.message}")
    return analysed


def _fetch(settings: Settings, analysed: Run, folder: Path) -> dict[str, Path]:
    with _client(settings) as client:
        client.download(analysed, folder)
    return {file.plain_name: folder / file.name for file in analysed.files}


def _client(settings: Settings) -> Client:
    return Client(settings.url, token_of(settings), multipart_bytes=settings.multipart_bytes)


def _report(settings: Settings, analysed: Run, folder: Path, error: float, points: int) -> None:
    verdict = "right" if error <= MAX_MEAN_ERROR_PIXELS else "WRONG"
    say()
    say(
        f"mean error {error:.2f} pixels over {points} keypoints: {verdict} "
        f"(at most {MAX_MEAN_ERROR_PIXELS:g})"
    )
    say(f"files     {folder}")
    say(f"page      {page_link(settings)}")
    if analysed.video_file is not None:
        say(f"video     {settings.url}{analysed.video_file}")


class _Progress:
    """Prints each change of a run's progress, a line each."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, analysed: Run) -> None:
        from posedrop.cli.display import describe_progress

        text = describe_progress(analysed)
        if text != self._said:
            say(f"  {text}")
        self._said = text


def mean_error(poses: Path, bodyparts: list[str], known: Any) -> tuple[float, int]:
    """Return the mean distance (pixels) of DeepLabCut's keypoints from the known ones.

    Args:
        poses: poses.csv: rows scorer, bodyparts, coords, then one row a frame.
        bodyparts: the order of ``known``.
        known: x and y in pixels, by frame and bodypart.

    Returns:
        The mean error, and over how many keypoints.

    Raises:
        AnalysisError: a frame or a bodypart is missing.
    """
    tracked = _read_poses(poses)
    if any(len(tracked.get(part, [])) != len(known) for part in bodyparts):
        raise AnalysisError(f"{poses} has not every bodypart in every frame of the film")
    errors = [
        math.dist(tracked[part][frame], known[frame][index])
        for index, part in enumerate(bodyparts)
        for frame in range(len(known))
    ]
    return sum(errors) / len(errors), len(errors)


def _read_poses(poses: Path) -> dict[str, Points]:
    with poses.open(newline="") as file:
        _, parts, coords, *rows = csv.reader(file)
    columns: dict[str, dict[str, int]] = {}
    for column, (part, coord) in enumerate(zip(parts, coords, strict=True)):
        columns.setdefault(part, {})[coord] = column
    return {
        part: [(float(row[at["x"]] or "nan"), float(row[at["y"]] or "nan")) for row in rows]
        for part, at in columns.items()
        if {"x", "y"} <= set(at)
    }


def _mouse() -> ModuleType:
    try:
        from posedrop.demo import mouse
    except ImportError as error:
        raise ConfigurationError(
            f"the demo needs the worker's packages ({error.name} is missing): "
            "pip install 'posedrop[worker]'"
        ) from error
    return mouse


def _or_free(port: int) -> int:
    return port if is_free(LOOPBACK, port) else 0
