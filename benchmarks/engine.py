"""Figures of the engine, each against stock DeepLabCut in the same run.

Prints a table and writes build/bench.json: a list of {figure, unit, stock, posedrop, ratio, limit,
notes}, medians of the paired runs. A ratio is posedrop's to stock's; for speeds more is better, for
times and memory less.

    python -m benchmarks.engine                      # all: hours on two cores
    python -m benchmarks.engine --quick render       # fewer frames, one pair
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import httpx
import numpy as np
import pandas as pd

from tests.e2e.lab import Embedded, Lab
from tests.samples import REPOSITORY, SHARED, Sample, free_box, has_real_mouse, sample

OUT = REPOSITORY / "build/bench.json"


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    figure: str
    unit: str
    stock: float | None
    posedrop: float
    limit: str
    """What it should reach."""
    notes: str = ""

    @property
    def ratio(self) -> float | None:
        """How posedrop's value stands to stock's."""
        return None if self.stock is None else self.posedrop / self.stock

    def row(self) -> dict[str, Any]:
        """Return it as bench.json has it."""
        known = asdict(self)
        limit, notes = known.pop("limit"), known.pop("notes")
        return {**known, "ratio": self.ratio, "limit": limit, "notes": notes}


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    pairs: int
    resnet50_frames: int
    resnet18_frames: int
    rendered_frames: int
    clips: int
    clip_frames: int
    ceiling_frames: int
    long_minutes: int
    faithful_frames: int


ALL = Amount(3, 120, 240, 1500, 10, 300, 2330, 60, 2330)
QUICK = Amount(1, 16, 60, 300, 4, 30, 600, 4, 100)

#: What a frame takes on the accelerator that ``idle`` pretends to have, in seconds: 200 a second.
DEVICE_SECONDS = 0.005


# -- in a process of its own: python -m benchmarks.engine --alone NAME '{json}' --------------------


def stock_inference(config: str, film: str, out: str, constant: bool) -> dict[str, Any]:
    """Run ``analyze_videos``; return its frames, and the seconds within its inference runner."""
    import deeplabcut
    import torch
    from deeplabcut.pose_estimation_pytorch.models.model import PoseModel
    from deeplabcut.pose_estimation_pytorch.runners.inference import PoseInferenceRunner

    if constant:
        PoseModel.forward = lambda self, x: {  # noqa: ARG005
            "bodypart": {
                "heatmap": torch.zeros((len(x), 4, 61, 81)),
                "locref": torch.zeros((len(x), 8, 61, 81)),
            }
        }
    inference = PoseInferenceRunner.inference
    seconds: list[float] = []
    counts: list[int] = []

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        found = inference(self, *args, **kwargs)
        seconds.append(time.perf_counter() - started)
        counts.append(len(found))
        return found

    PoseInferenceRunner.inference = timed
    deeplabcut.analyze_videos(config, [film], destfolder=out, device="cpu")
    return {"seconds": sum(seconds), "frames": sum(counts), **_memory()}


def our_inference(
    model: str, film: str, out: str, precision: str, constant: bool, stop: int | None = None
) -> Any:
    """Run the analysis; return its answer."""
    from posedrop.analyses import Job
    from worker import inference
    from worker.analyses.deeplabcut_2d import deeplabcut_2d

    args: dict[str, Any] = {"model": "m", "precision": precision, "stop": stop}
    if constant:
        _be_constant(0.0)
        args["batch_size"] = 8
    whole = deeplabcut_2d.normalise(args)
    job = Job(Path(film), Path(out), whole, Path(model), "d", lambda *_: None, device="cpu")
    answer = inference.run(job)
    return {
        "seconds": answer["timings"]["inference"],
        "frames": answer["frames_decoded"],
        "details": answer["details"],
        **_memory(),
    }


def _be_constant(seconds_a_frame: float) -> None:
    """Let all that happens on the device, from frames of uint8 to poses, take so long, elsewhere.

    Batches are computed one after the other, whoever waits for them.
    """
    import torch

    from worker import arithmetic, feed

    free = time.monotonic()
    ends: deque[float] = deque()

    class Constant(arithmetic.Arithmetic):
        def launch(self, pixels: torch.Tensor) -> arithmetic.Launched:
            nonlocal free
            free = max(free, time.monotonic()) + seconds_a_frame * len(pixels)
            ends.append(free)
            return arithmetic.Launched(pixels, None, fast=False)

        def collect(self, batch: arithmetic.Launched) -> arithmetic.Predictions:
            time.sleep(max(0.0, ends.popleft() - time.monotonic()))
            self.state.frames += len(batch.x)
            return {"bodypart": {"poses": torch.zeros((len(batch.x), 1, 4, 3))}}

    feed.Arithmetic = Constant  # type: ignore[misc]


def on_a_device(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Be ``worker.engine:run_analysis`` in a worker's child, on a pretended accelerator."""
    from worker import engine, feed

    if feed.Arithmetic.__name__ != "Constant":
        _be_constant(DEVICE_SECONDS)
        feed.accelerated = lambda _: True
    return engine.run_analysis(payload, report)


def stock_render(config: str, film: str, out: str, fast: bool) -> dict[str, Any]:
    """Run ``create_labeled_video`` on what ``analyze_videos`` left; return its seconds."""
    import deeplabcut

    started = time.perf_counter()
    deeplabcut.create_labeled_video(
        config, [film], destfolder=out, fastmode=fast, save_frames=False
    )
    return {"seconds": time.perf_counter() - started}


def our_render(film: str, poses: str, out: str) -> dict[str, Any]:
    """Draw and encode; return the seconds without plots."""
    from worker.render import render

    payload = {
        "video": film, "poses": poses, "poses_filtered": None, "out": out, "pcutoff": 0.4,
        "style": {}, "skeleton": [], "start": 0, "stop": None, "stride": 1,
    }  # fmt: skip
    answer = render(payload, lambda *_: None)
    return {"seconds": answer["timings"]["video"]}


def _memory() -> dict[str, float]:
    return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def network_and_matrices(model: str, film: str, rounds: int) -> dict[str, float]:
    """Time a network on single frames, and square matrices, in turn; return the best of each.

    Returns:
        ``flop`` of a frame (two a multiplication and addition); seconds of a frame in ``fp32``,
        ``bf16`` and of the ``head`` alone; FLOP/s of matrices, ``fp32_peak`` and ``bf16_peak``.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from worker import arithmetic, network, video

    loaded = network.load(Path(model), None, "cpu").pose.model
    _, frame = next(video.frames(Path(film), order="bgr"))
    picture = arithmetic.normalised(torch.from_numpy(frame[None]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded(picture)
    machine = arithmetic.Machine(loaded, "cpu")
    size = 2048
    square = torch.randn(size, size)
    half = square.to(torch.bfloat16)
    with torch.inference_mode():
        features = machine.exact.backbone(picture)
        timed: dict[str, Callable[[], Any]] = {
            "fp32": lambda: machine.exact(picture),
            "bf16": lambda: machine.fast(torch.bfloat16)(picture),
            "head": lambda: machine.exact.heads["bodypart"](features),
            "fp32_peak": lambda: square @ square,
            "bf16_peak": lambda: half @ half,
        }
        best = dict.fromkeys(timed, float("inf"))
        for _ in range(rounds):
            for name, function in timed.items():
                started = time.perf_counter()
                function()
                best[name] = min(best[name], time.perf_counter() - started)
    peaks = {name: 2 * size**3 / best[name] for name in ("fp32_peak", "bf16_peak")}
    return {**best, **peaks, "flop": float(counter.get_total_flops())}


ALONE: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        stock_inference, our_inference, stock_render, our_render, network_and_matrices
    )
}  # fmt: skip


def alone(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call one of the functions above in a fresh process; adds its ``wall`` seconds."""
    command = [sys.executable, "-m", "benchmarks.engine", "--alone", function.__name__]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{function.__name__} failed: {done.stderr[-2000:]}")
    return {
        **json.loads(done.stdout.rsplit("ANSWER ", 1)[1]), "wall": time.perf_counter() - started
    }  # fmt: skip


# -- the figures -----------------------------------------------------------------------------------


class Bench:
    """The figures by name; each method measures one or two."""

    def __init__(self, folder: Path, amount: Amount) -> None:
        self.folder = folder
        self.amount = amount
        self._number = 0

    def resnet50(self) -> list[Figure]:
        """Frames a second through a ResNet-50 with made weights."""
        model = made_resnet50(self.folder, self.mouse(self.amount.resnet50_frames))
        limits = {"fp32": ">= 1.7", "auto": ">= 3.5"}
        return self._inference("resnet50", model, self.amount.resnet50_frames, limits)

    def resnet18(self) -> list[Figure]:
        """Frames a second through the real model."""
        return self._inference(
            "resnet18", self.mouse(2).model, self.amount.resnet18_frames, {"auto": ""}
        )

    def _inference(
        self, name: str, model: Path, frames: int, limits: dict[str, str]
    ) -> list[Figure]:
        film = self.mouse(frames).film
        stock: list[float] = []
        ours: dict[str, list[float]] = {precision: [] for precision in limits}
        told: dict[str, Any] = {}
        for _ in range(self.amount.pairs):
            stock.append(self._stock(model, film))
            for precision, speeds in ours.items():
                answer = self._ours(model, film, precision)
                speeds.append(answer["frames"] / answer["seconds"])
                told[precision] = answer["details"]["precision"]
        return [
            Figure(
                f"inference_{name}_{precision}", "frames/s", statistics.median(stock),
                statistics.median(speeds), limits[precision],
                f"{frames} frames; {_arithmetic(told[precision])}",
            )
            for precision, speeds in ours.items()
        ]  # fmt: skip

    def faithful(self) -> list[Figure]:
        """How far ``auto`` moves a keypoint from fp32, on the whole real video."""
        whole = SHARED / "data/openfield/m3v1.mp4"
        frames = self.amount.faithful_frames
        film, model = whole if whole.is_file() else self.mouse(frames).film, self.mouse(2).model
        poses, answers = {}, {}
        for precision in ("fp32", "auto"):
            out = self._fresh("ours")
            answers[precision] = self._ours(model, film, precision, out=out, stop=frames)
            poses[precision] = _predicted(out)[1]
        true, fast = poses["fp32"], poses["auto"]
        pcutoff = answers["fp32"]["details"]["pcutoff"]
        sure = true[..., 2] >= pcutoff
        moved = np.linalg.norm(fast[..., :2] - true[..., :2], axis=-1)[sure]
        crossed = int((sure != (fast[..., 2] >= pcutoff)).sum())
        return [
            Figure(
                "faithful_auto", "pixels", None, float(moved.max()), "<= 0.5",
                f"largest distance to fp32 of {len(moved)} keypoints over pcutoff {pcutoff:g} in "
                f"{len(true)} frames; {int((moved > 0.5).sum())} flipped (moved by more than 0.5), "
                f"99th percentile {np.percentile(moved, 99):.3f}, {crossed} crossed pcutoff; "
                f"{_arithmetic(answers['auto']['details']['precision'])}",
            )
        ]  # fmt: skip

    def limit(self) -> list[Figure]:
        """How near the network comes to the machine's own multiplication of matrices."""
        mouse = self.mouse(self.amount.resnet50_frames)
        models = {"resnet50": made_resnet50(self.folder, mouse), "resnet18": mouse.model}
        figures = []
        for name, model in models.items():
            found = alone(
                network_and_matrices,
                model=str(model), film=str(mouse.film), rounds=8 * self.amount.pairs,
            )  # fmt: skip
            for precision in ("fp32", "bf16"):
                reached = found["flop"] / found[precision] / 1e9
                peak = found[f"{precision}_peak"] / 1e9
                figures.append(
                    Figure(
                        f"limit_{name}_{precision}", "GFLOP/s", peak, reached, "",
                        f"stock column: torch.matmul; {found['flop'] / 1e9:.1f} GFLOP a frame, "
                        f"{1000 * found[precision]:.0f} ms, {1000 * found['head']:.0f} of them the "
                        f"head's, in fp32",
                    )
                )  # fmt: skip
        return figures

    def idle(self) -> list[Figure]:
        """How long an accelerator waits between the videos of a queue, for want of a ready one."""
        from worker.analyses.deeplabcut_2d import deeplabcut_2d
        from worker.pair import Pair

        film, model = self.mouse(self.amount.clip_frames).film, self.mouse(2).model
        scratch = self._fresh("children")
        both = Pair("gpu", scratch, warm=["worker.inference"])

        def analyse(number: int) -> dict[str, Any]:
            out = scratch / f"out{number}"
            out.mkdir()
            payload = {
                "analysis": "deeplabcut_2d", "video": str(film), "out": str(out),
                "args": deeplabcut_2d.normalise({"model": "m", "batch_size": 8}),
                "model": str(model), "model_digest": "d", "device": "cpu",
            }  # fmt: skip
            answer = both.call(
                "benchmarks.engine:on_a_device", payload, makes_ready=True,
                on_progress=lambda _: None, should_stop=lambda: False, wall_seconds=600,
                log=scratch / "run.log",
            )  # fmt: skip
            return {"timings": answer["timings"], "details": answer["details"]}

        try:
            both.start(all_of_them=True)
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(analyse, range(-2, 0)))  # both have their model then
                results = list(threads.map(analyse, range(self.amount.clips)))
        finally:
            both.close()
        return [
            Figure(
                "idle_share_device", "share", None, idle_share(results), "<= 0.02",
                f"{self.amount.clips} clips of {self.amount.clip_frames} frames on a pretended "
                f"accelerator of {1 / DEVICE_SECONDS:.0f} frames/s, beside the processor",
            )
        ]  # fmt: skip

    def labels(self) -> list[Figure]:
        """Distance to human labels, where they lie beside the clone."""
        folder = SHARED / "data/openfield/labeled-data/m4s1"
        human = labels_of(folder)
        film = self.folder / "labelled.mkv"
        filmed(film, [folder / name for name in human.index])
        project, out = self._project(self.mouse(2).model), self._fresh("stock")
        config = str(project / "config.yaml")
        alone(stock_inference, config=config, film=str(film), out=str(out), constant=False)
        stock = pd.read_hdf(next(out.glob("*.h5")))
        figures = []
        for precision in ("fp32", "auto"):
            done = self._fresh("ours")
            answer = self._ours(self.mouse(2).model, film, precision, out=done)
            ours = pd.read_hdf(self._poses(done, answer, film))
            figures.append(
                Figure(
                    f"labels_{precision}", "pixels", distance(stock, human), distance(ours, human),
                    "1", f"mean over {len(human)} frames; keypoints above pcutoff 0.4",
                )
            )  # fmt: skip
        return figures

    def ceiling(self) -> list[Figure]:
        """Frames a second of everything but the network, and what length does to memory."""
        model = self.mouse(2).model
        film = self.looped(self.amount.ceiling_frames / 30 / 60)
        stock, ours = [], []
        for _ in range(self.amount.pairs):
            stock.append(self._stock(model, film, constant=True))
            answer = self._ours(model, film, "fp32", constant=True)
            ours.append(answer["frames"] / answer["seconds"])
        short = self._ours(model, self.looped(1), "fp32", constant=True)
        long = self._ours(model, self.looped(self.amount.long_minutes), "fp32", constant=True)
        notes = "the device's work, from uint8 frames on, replaced by a constant"
        return [
            Figure(
                "pipeline_ceiling", "frames/s", statistics.median(stock), statistics.median(ours),
                ">= 3", notes,
            ),
            Figure(
                "memory_60_over_1", "MiB", short["mib"], long["mib"], "<= 1.1",
                f"posedrop's child, {self.amount.long_minutes} minutes against 1 (in the stock "
                "column); constant network",
            ),
        ]  # fmt: skip

    def render(self) -> list[Figure]:
        """Rendered frames a second: DeepLabCut's fast and full mode, and a plain transcode."""
        film = self.mouse(self.amount.rendered_frames).film
        project = self._project(self.mouse(2).model)
        done = self._fresh("analysed")
        answer = self._ours(self.mouse(2).model, film, "auto", out=done)
        config = str(project / "config.yaml")
        # What it leaves beside the poses is wanted, not its poses.
        alone(stock_inference, config=config, film=str(film), out=str(done), constant=True)
        poses = self._poses(done, answer, film)
        frames = self.amount.rendered_frames
        fast, full, ours, plain = [], [], [], []
        for number in range(self.amount.pairs):
            for times, is_fast in ((fast, True), (full, False)):
                if is_fast or number == 0:
                    out = self._fresh("labelled")
                    for file in done.iterdir():
                        shutil.copy(file, out)
                    rendered = alone(
                        stock_render, config=config, film=str(film), out=str(out), fast=is_fast
                    )
                    times.append(frames / rendered["seconds"])
            out = self._fresh("rendered")
            rendered = alone(our_render, film=str(film), poses=str(poses), out=str(out))
            ours.append(frames / rendered["seconds"])
            plain.append(frames / transcode(film, out / "plain.mp4"))
        value = statistics.median(ours)
        notes = (
            f"{value / statistics.median(full):.1f} times the full mode, "
            f"{value / statistics.median(plain):.0%} of ffmpeg's transcode (x264 veryfast)"
        )
        return [Figure("render", "frames/s", statistics.median(fast), value, ">= 1", notes)]

    def way(self) -> list[Figure]:
        """Several clips by the whole way, against as many fresh processes of a script."""
        count, frames = self.amount.clips, self.amount.clip_frames
        film, model = self.mouse(frames).film, self.mouse(2).model
        script = []
        for _ in range(min(count, self.amount.pairs)):
            out, project = self._fresh("script"), self._project(model)
            config = str(project / "config.yaml")
            first = alone(
                stock_inference, config=config, film=str(film), out=str(out), constant=False
            )
            second = alone(stock_render, config=config, film=str(film), out=str(out), fast=True)
            script.append(first["wall"] + second["wall"])
        lab = Embedded(self._fresh("data")).start()
        try:
            seconds, results, waits = clips_through(lab, film, model, count)
        finally:
            lab.stop()
        warm = [
            result["timings"]["total"] - result["timings"]["inference"]
            - result["timings"]["render_video"] - wait
            for result, wait in zip(results[-1:], waits[-1:], strict=True)
        ]  # fmt: skip
        return [
            Figure(
                "batch10", "s", count * statistics.median(script), seconds, "<= 0.25",
                f"{count} clips of {frames} frames; a script's {len(script)} processes, times "
                f"{count / len(script):g}",
            ),
            Figure(
                "warm_overhead_s", "s", None, statistics.median(warm), "<= 0.7",
                "a job by itself on a warm model: from its request to its result, without "
                "inference, rendering and waiting",
            ),
            Figure(
                "idle_share", "share", None, idle_share(results[:-1]), "<= 0.02",
                "of the network between the first frame and the last of the queued clips",
            ),
        ]  # fmt: skip

    def event(self) -> list[Figure]:
        """From the end of a PUT to the start of its ingest."""
        lab = Embedded(self._fresh("data")).start()
        try:
            waits = put_to_ingest(lab, self.mouse(12).film, 50)
        finally:
            lab.stop()
        milliseconds = 1000 * statistics.median(waits)
        notes = "embedded stack, 50 PUTs; benchmarks/events.py has MinIO and Redis"
        return [Figure("event_to_start_ms", "ms", None, milliseconds, "<= 50", notes)]

    # -- helpers --

    def mouse(self, frames: int) -> Sample:
        """Return so many frames of the mouse, and its model."""
        return sample(self.folder, frames)

    def looped(self, minutes: float) -> Path:
        """Return a film of the mouse that goes on for so long."""
        path = self.folder / f"looped{minutes:g}.mp4"
        if not path.exists():
            source = self.mouse(600).film
            subprocess.run(
                ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", str(source), "-c", "copy",
                 "-t", str(60 * minutes), str(path)],
                check=True,
            )  # fmt: skip
        return path

    def _fresh(self, name: str) -> Path:
        self._number += 1
        folder = self.folder / f"{name}{self._number}"
        folder.mkdir()
        return folder

    def _project(self, model: Path) -> Path:
        project = self._fresh("project") / "model"
        shutil.copytree(model, project, copy_function=shutil.copyfile)
        for path in (project, *project.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return project

    def _stock(self, model: Path, film: Path, *, constant: bool = False) -> float:
        config = self._project(model) / "config.yaml"
        out = self._fresh("stock")
        answer = alone(
            stock_inference, config=str(config), film=str(film), out=str(out), constant=constant
        )
        return float(answer["frames"] / answer["seconds"])

    def _ours(
        self,
        model: Path,
        film: Path,
        precision: str,
        *,
        constant: bool = False,
        out: Path | None = None,
        stop: int | None = None,
    ) -> Any:
        out = out or self._fresh("ours")
        return alone(
            our_inference,
            model=str(model), film=str(film), out=str(out), precision=precision, constant=constant,
            stop=stop,
        )  # fmt: skip

    def _poses(self, done: Path, answer: Any, film: Path) -> Path:
        """Write our predictions under DeepLabCut's own name, for both renderers."""
        from worker.tables import table_of

        indexes, poses = _predicted(done)
        details = answer["details"]
        table = table_of(indexes, poses, details["scorer"], details["bodyparts"])
        path = done / f"{film.stem}{details['scorer']}.h5"
        table.to_hdf(path, key="df_with_missing", format="table", mode="w")
        return path


def _predicted(done: Path) -> tuple[Any, Any]:
    """Take our predictions: frame numbers (n), and x, y, likelihood (n, bodyparts, 3)."""
    from worker.tables import PREDICTIONS

    with np.load(done / PREDICTIONS) as file:
        indexes, poses = file["indexes"], file["bodyparts"][:, 0, :, :3]
    (done / PREDICTIONS).unlink()
    return indexes, poses


def _arithmetic(told: dict[str, Any]) -> str:
    """Return in words what result.json says of the precision."""
    return (
        f"{told['used']}, of which {told['frames_checked_in_fp32']} checked in fp32, "
        f"{told['frames_repeated_in_fp32']} repeated ({told['share_repeated']:.1%}), noise "
        f"{told['heatmap_noise']:.4f}, largest deviation of those checked "
        f"{told['largest_deviation_px']:.3f} px"
    )


def labels_of(folder: Path) -> pd.DataFrame:
    """Return a project's human labels: a row a picture by its name, x and y in pixels."""
    table = pd.read_csv(next(folder.glob("CollectedData_*.csv")), header=[0, 1, 2])
    table.index = pd.Index([str(name).rsplit("/", 1)[-1] for name in table.iloc[:, -9]])
    return table.iloc[:, -8:].astype(float)


def filmed(path: Path, pictures: list[Path]) -> None:
    """Write pictures as a film, without loss."""
    import av
    import cv2

    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.pix_fmt = "bgr0"
        for number, picture in enumerate(pictures):
            pixels = cv2.imread(str(picture))
            if number == 0:
                stream.width, stream.height = pixels.shape[1], pixels.shape[0]
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(format="bgr0")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def distance(poses: Any, human: pd.DataFrame) -> float:
    """Return the mean distance in pixels of what is above pcutoff to the labels."""
    found = poses.to_numpy().reshape(len(human), -1, 3)
    away = np.linalg.norm(found[..., :2] - human.to_numpy().reshape(len(human), -1, 2), axis=-1)
    return float(np.nanmean(away[found[..., 2] >= 0.4]))


def made_resnet50(folder: Path, mouse: Sample) -> Path:
    """Return the project with a ResNet-50 of made weights, sure of what it finds on this film.

    Its peaks stand out as trained ones do in all but a few frames. How many frames ``auto``
    computes again is a trained model's to tell: see ``faithful``.
    """
    import torch
    import yaml
    from deeplabcut.pose_estimation_pytorch.models.model import PoseModel

    from worker import video
    from worker.arithmetic import normalised

    target = folder / "resnet50"
    if target.exists():
        return target
    shutil.copytree(mouse.model, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    [config] = target.rglob("pytorch_config.yaml")
    described = yaml.safe_load(config.read_text())
    wanted = described["model"]
    wanted["backbone"]["model_name"] = "resnet50"
    wanted["backbone_output_channels"] = 2048
    head = wanted["heads"]["bodypart"]
    for part in ("heatmap_config", "locref_config"):
        head[part]["channels"][0] = 2048
    config.write_text(yaml.safe_dump(described, sort_keys=False))
    torch.manual_seed(0)
    made = PoseModel.build(wanted).eval()
    stride = max(1, video.count(mouse.film) // 8)
    with torch.no_grad():
        seen = [
            made.backbone(normalised(torch.from_numpy(frame[None])))
            for _, frame in video.frames(mouse.film, order="bgr", stride=stride)
        ]
        let_peaks_stand_out(made.heads["bodypart"].heatmap_head.deconv_layers[0], seen)
    [snapshot] = target.rglob("snapshot-*.pt")
    torch.save({"model": made.state_dict(), "metadata": {"epoch": 1}}, snapshot)
    return target


def let_peaks_stand_out(layer: Any, seen: list[Any], tried: int = 256) -> None:
    """Give a head's last layer, of many random weights, those whose heatmaps have one clear peak.

    Args:
        layer: a transposed convolution, a channel a keypoint.
        seen: what the backbone makes of some frames, each (1, channels, rows, columns).
        tried: how many channels to choose from.
    """
    import torch

    many = torch.randn(layer.weight.shape[0], tried, *layer.kernel_size)
    maps = torch.cat(
        [
            torch.nn.functional.conv_transpose2d(
                features, many, None, layer.stride, layer.padding, layer.output_padding
            )
            for features in seen
        ]
    )
    highest = maps.flatten(2).topk(2).values
    # By how much of its height a peak is above all the rest, in the frame where that is least.
    clear = ((highest[..., 0] - highest[..., 1]) / highest[..., 0]).amin(dim=0)
    clear[highest[..., 0].amin(dim=0) <= 0] = 0
    chosen = clear.topk(layer.weight.shape[1]).indices
    heights = highest[:, chosen, 0].amin(dim=0)
    layer.weight.copy_(many[:, chosen] * (0.8 / heights)[None, :, None, None])
    layer.bias.zero_()


def transcode(film: Path, target: Path) -> float:
    """Return the seconds of a plain ffmpeg transcode with the preset that posedrop uses."""
    started = time.perf_counter()
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(film), "-an", "-c:v", "libx264", "-preset", "veryfast",
         "-crf", "23", "-pix_fmt", "yuv420p", str(target)],
        check=True,
    )  # fmt: skip
    return time.perf_counter() - started


def clips_through(
    lab: Embedded, film: Path, model: Path, count: int
) -> tuple[float, list[dict[str, Any]], list[float]]:
    """PUT clips of different contents at once; then one more by itself, on the warm model.

    Returns:
        Seconds from the first PUT to the last result.json of the clips; the results, the single
        one last; the seconds that each waited for another.
    """
    lab.posedrop("models", "push", str(model), "--name", "mouse")
    content = film.read_bytes()

    def put(number: int) -> str:
        body = {
            "filename": f"{number}.mp4", "analysis": "deeplabcut_2d", "args": {"model": "mouse"},
        }  # fmt: skip
        asked = lab.http.post("/upload", json=body).json()
        upload = asked["upload"]
        data = content + free_box(number + 8)
        httpx.put(upload["url"], headers=upload["headers"], content=data).raise_for_status()
        return str(asked["file_id"])

    started = time.perf_counter()
    files = [put(number) for number in range(count)]
    answers = [lab.over(lab.run_of(file), seconds=7200) for file in files]
    seconds = time.perf_counter() - started
    answers.append(lab.over(lab.run_of(put(count)), seconds=7200))
    results = [answer["result"] for answer in answers]
    return seconds, results, [result["timings"].get("wait", 0.0) for result in results]


def put_to_ingest(lab: Lab, film: Path, puts: int) -> list[float]:
    """Return the seconds from the end of each PUT to the start of its ingest, by the log's time.

    Each PUT waits for the one before to be ready: it is the way's latency, not its rate.
    """
    s3 = lab.s3()
    seconds = []
    for number in range(puts):
        key = f"bench/{number}.mp4"
        s3.put_object(Bucket="videos", Key=key, Body=film.read_bytes() + free_box(number + 8))
        done = time.time()
        lab.file(key)
        record = json.loads(s3.get_object(Bucket="results", Key=f"{key}/video.json")["Body"].read())
        begun = datetime.fromisoformat(record["ingested_at"]).timestamp()
        seconds.append(max(0.0, begun - done))
    return seconds


def idle_share(results: list[dict[str, Any]]) -> float:
    """Return the share of time between the first frame and the last in which no video is at work.

    A video is at work from when its first frame goes into the network until its last one is out.
    """
    details = sorted((result["details"] for result in results), key=_began)
    span = details[-1]["inference_ended_at"] - details[0]["inference_began_at"]
    gaps = sum(
        max(0.0, _began(following) - one["inference_ended_at"])
        for one, following in pairwise(details)
    )
    return float(gaps / span)


def _began(details: dict[str, Any]) -> float:
    return float(details["inference_began_at"])


#: All but what needs the real mouse.
FIGURES = (
    "resnet50", "resnet18", "faithful", "limit", "ceiling", "idle", "render", "way", "event"
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", nargs="*", help=f"{', '.join(FIGURES)}, labels")
    parser.add_argument("--quick", action="store_true", help="fewer frames, one pair")
    parser.add_argument("--pairs", type=int, help="paired runs (3)")
    parser.add_argument("--clip-frames", type=int, help="frames of a clip of the batch (300)")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        name, arguments = given.alone
        print("ANSWER", json.dumps(ALONE[name](**json.loads(arguments))))
        return
    amount = QUICK if given.quick else ALL
    if given.pairs:
        amount = replace(amount, pairs=given.pairs)
    if given.clip_frames:
        amount = replace(amount, clip_frames=given.clip_frames)
    names = given.figures or list(FIGURES)
    if not given.figures and has_real_mouse():
        names.append("labels")
    rows = {row["figure"]: row for row in json.loads(OUT.read_text())} if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    print(f"{'figure':24}{'unit':>10}{'stock':>10}{'posedrop':>10}{'ratio':>8}{'limit':>9}  notes")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), amount)
        for name in names:
            for figure in getattr(bench, name)():
                stock = "" if figure.stock is None else f"{figure.stock:.2f}"
                ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
                print(
                    f"{figure.figure:24}{figure.unit:>10}{stock:>10}{figure.posedrop:>10.3f}"
                    f"{ratio:>8}{figure.limit:>9}  {figure.notes}",
                    flush=True,
                )
                rows[figure.figure] = figure.row()
                OUT.write_text(json.dumps(list(rows.values()), indent=1))


if __name__ == "__main__":
    main()
