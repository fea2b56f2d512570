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
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import pandas as pd

from benchmarks.alone import (
    DEVICE_SECONDS,
    alone,
    network_and_matrices,
    our_inference,
    our_render,
    stock_inference,
    stock_render,
)
from benchmarks.made import distance, filmed, labels_of, made_resnet50
from benchmarks.way import clips_through, idle_share, put_to_ingest
from tests.support.lab import Embedded
from tests.support.samples import REPOSITORY, SHARED, Sample, has_real_mouse, sample

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


ALL = Amount(3, 300, 240, 1500, 10, 300, 2330, 60, 2330)
QUICK = Amount(1, 16, 60, 300, 4, 30, 600, 4, 100)


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
                        f"head's, in fp32; all multiplications in fp32 "
                        f"{1000 * found['untiled']:.0f} ms",
                    )
                )  # fmt: skip
        return figures

    def idle(self) -> list[Figure]:
        """How long an accelerator waits between the videos of a queue, for want of a ready one."""
        from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
        from worker.child.pool import ChildPool

        film, model = self.mouse(self.amount.clip_frames).film, self.mouse(2).model
        scratch = self._fresh("children")
        both = ChildPool(
            "gpu", scratch, warm=["worker.engine.inference"], begins_with="benchmarks.alone:beside"
        )

        def analyse(number: int) -> dict[str, Any]:
            job = scratch / f"job{number}"
            out = job / "out"
            out.mkdir(parents=True)
            shutil.copyfile(film, job / "video")
            shutil.copytree(model, job / "model")
            payload = {
                "analysis": "deeplabcut_2d", "video": str(job / "video"), "out": str(out),
                "args": deeplabcut_2d.normalise({"model": "m", "batch_size": 8}),
                "model": str(job / "model"), "model_digest": "d", "device": "cpu",
            }  # fmt: skip
            answer = both.call(
                "benchmarks.alone:on_a_device", payload, makes_ready=True,
                on_progress=lambda _: None, should_stop=lambda: False, wall_seconds=600,
                folder=job, log=job / "run.log",
            )  # fmt: skip
            return {"timings": answer["timings"], "details": answer["details"]}

        try:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(analyse, range(-6, 0)))  # both have their model then
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
        stock: list[float] = []
        ours: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(self.amount.pairs):
            stock.append(self._stock(model, film, constant=True))
            for beside, speeds in ours.items():
                answer = self._ours(model, film, "fp32", constant=True, beside=beside)
                speeds.append(answer["frames"] / answer["seconds"])
        short = self._ours(model, self.looped(1), "fp32", constant=True)
        long = self._ours(model, self.looped(self.amount.long_minutes), "fp32", constant=True)
        notes = "the device's work, from {} on, replaced by a constant"
        return [
            Figure(
                "pipeline_ceiling", "frames/s", statistics.median(stock),
                statistics.median(ours[False]), ">= 3", notes.format("pixels"),
            ),
            Figure(
                "pipeline_ceiling_device", "frames/s", statistics.median(stock),
                statistics.median(ours[True]), ">= 8",
                notes.format("planes, which a pretended accelerator is sent,"),
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
        count = self.amount.clips
        script, seconds, results, waits = self._way(self.mouse(2).model, count)
        warm = [
            result["timings"]["total"] - result["timings"]["inference"]
            - result["timings"]["render_video"] - wait
            for result, wait in zip(results[-1:], waits[-1:], strict=True)
        ]  # fmt: skip
        return [
            self._batch(f"batch{count}", count, script, seconds),
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

    def heavy(self) -> list[Figure]:
        """The same with a ResNet-50 of made weights; fewer clips and one script, for time."""
        model = made_resnet50(self.folder, self.mouse(self.amount.resnet50_frames))
        count = min(4, self.amount.clips)
        script, seconds, _, _ = self._way(model, count, scripts=1)
        return [self._batch(f"batch{count}_resnet50", count, script, seconds)]

    def _way(
        self, model: Path, count: int, scripts: int | None = None
    ) -> tuple[list[float], float, list[dict[str, Any]], list[float]]:
        """Return the seconds of some scripts, and of all clips by our way; their results."""
        film = self.mouse(self.amount.clip_frames).film
        script = []
        for _ in range(scripts or min(count, self.amount.pairs)):
            out, project = self._fresh("script"), self._project(model)
            config = str(project / "config.yaml")
            first = alone(
                stock_inference, config=config, film=str(film), out=str(out), constant=False
            )
            second = alone(stock_render, config=config, film=str(film), out=str(out), fast=True)
            script.append(first["wall"] + second["wall"])
        lab = Embedded(self._fresh("data"))
        lab.haste = {}
        lab.start()
        try:
            seconds, results, waits = clips_through(lab, film, model, count)
        finally:
            lab.stop()
        return script, seconds, results, waits

    def _batch(self, name: str, count: int, script: list[float], seconds: float) -> Figure:
        return Figure(
            name, "s", count * statistics.median(script), seconds, "<= 0.25",
            f"{count} clips of {self.amount.clip_frames} frames; a script's {len(script)} "
            f"processes, times {count / len(script):g}",
        )  # fmt: skip

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
        beside: bool = False,
        out: Path | None = None,
        stop: int | None = None,
    ) -> Any:
        out = out or self._fresh("ours")
        return alone(
            our_inference,
            model=str(model), film=str(film), out=str(out), precision=precision, constant=constant,
            stop=stop, beside=beside,
        )  # fmt: skip

    def _poses(self, done: Path, answer: Any, film: Path) -> Path:
        """Write our predictions under DeepLabCut's own name, for both renderers."""
        from worker.poses.tables import table_of

        indexes, poses = _predicted(done)
        details = answer["details"]
        table = table_of(indexes, poses[:, None], details["scorer"], [], details["bodyparts"])
        path = done / f"{film.stem}{details['scorer']}.h5"
        table.to_hdf(path, key="df_with_missing", format="table", mode="w")
        return path


def _predicted(done: Path) -> tuple[Any, Any]:
    """Take our predictions: frame numbers (n), and x, y, likelihood (n, bodyparts, 3)."""
    from posedrop.buckets.layout import PREDICTIONS
    from worker.poses import predictions

    path = done / PREDICTIONS
    found = predictions.read(path)
    path.unlink()
    indexes, poses = found.frames, found.values["bodyparts"][:, 0, :, :3]
    return indexes, poses


def _arithmetic(told: dict[str, Any]) -> str:
    """Return in words what result.json says of the precision."""
    return (
        f"{told['used']}, of which {told['frames_checked_in_fp32']} checked in fp32, "
        f"{told['frames_repeated_in_fp32']} repeated ({told['share_repeated']:.1%}), noise "
        f"{told['heatmap_noise']:.4f}, largest deviation of those checked "
        f"{told['largest_deviation_px']:.3f} px"
    )


def transcode(film: Path, target: Path) -> float:
    """Return the seconds of a plain ffmpeg transcode with the preset that posedrop uses."""
    started = time.perf_counter()
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(film), "-an", "-c:v", "libx264", "-preset", "veryfast",
         "-crf", "23", "-pix_fmt", "yuv420p", str(target)],
        check=True,
    )  # fmt: skip
    return time.perf_counter() - started


#: All but what needs the real mouse.
FIGURES = (
    "resnet50", "resnet18", "faithful", "limit", "ceiling", "idle", "render", "way", "heavy",
    "event",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", nargs="*", help=f"{', '.join(FIGURES)}, labels")
    parser.add_argument("--quick", action="store_true", help="fewer frames, one pair")
    parser.add_argument("--pairs", type=int, help="paired runs (3)")
    parser.add_argument("--clip-frames", type=int, help="frames of a clip of the batch (300)")
    given = parser.parse_args()
    if unknown := set(given.figures) - {*FIGURES, "labels"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
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
