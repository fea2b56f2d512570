"""What is measured in a process of its own: stock DeepLabCut and posedrop, each from a fresh start.

python -m benchmarks.alone NAME '{"argument": ...}'
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.networks import be_a_worker, network_by_engine

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


#: What a frame takes on the accelerator that ``idle`` pretends to have, in seconds: 200 a second.
DEVICE_SECONDS = 0.005
#: Seconds that a call of a process for many may take.
PATIENCE = 900.0


def stock_inference(
    config: str, film: str, out: str, constant: bool, batch: int | None = None
) -> dict[str, Any]:
    """Run ``analyze_videos``; return its frames, and the seconds within its inference runners.

    What the network found is left in ``out/found.npz``: bodyparts, (frames, animals, bodyparts, 3).

    Args:
        batch: of the network and the detector; None: as the project has them.
    """
    import deeplabcut
    import numpy as np
    import torch
    from deeplabcut.pose_estimation_pytorch.models.model import PoseModel
    from deeplabcut.pose_estimation_pytorch.runners.inference import (
        DetectorInferenceRunner,
        PoseInferenceRunner,
    )

    from worker.engine.detectors import nothing_downloaded

    if constant:
        PoseModel.forward = lambda self, x: {  # noqa: ARG005
            "bodypart": {
                "heatmap": torch.zeros((len(x), 4, 61, 81)),
                "locref": torch.zeros((len(x), 8, 61, 81)),
            }
        }
    seconds: list[float] = []
    poses: list[Any] = []

    def timed(runner: Any) -> Any:
        inference = runner.inference

        def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = inference(self, *args, **kwargs)
            seconds.append(time.perf_counter() - started)
            if runner is PoseInferenceRunner:
                poses.extend(found)
            return found

        return whole

    runners = (PoseInferenceRunner, DetectorInferenceRunner)
    batches = {} if batch is None else {"batch_size": batch, "detector_batch_size": batch}
    with ExitStack() as stack:
        for runner in runners:
            stack.enter_context(patch.object(runner, "inference", timed(runner)))
        stack.enter_context(nothing_downloaded())
        try:
            deeplabcut.analyze_videos(config, [film], destfolder=out, device="cpu", **batches)
        except Exception as error:
            # Tracking may find nothing to track, and its thread for decoding may lose a frame.
            if not poses:
                raise
            print(f"after inference: {type(error).__name__}: {error}", file=sys.stderr)
    np.savez(Path(out) / "found.npz", bodyparts=np.stack([one["bodyparts"] for one in poses]))
    return {"seconds": sum(seconds), "frames": len(poses), **_memory()}


def our_inference(
    model: str,
    film: str,
    out: str,
    precision: str,
    constant: bool,
    stop: int | None = None,
    beside: bool = False,
) -> Any:
    """Run the analysis with nothing remembered of earlier ones; return its answer.

    Args:
        constant: all that happens on the device is replaced by a constant.
        beside: pretend that the device is an accelerator.
    """
    be_a_worker()
    from posedrop.analyses import Job
    from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
    from worker.engine import inference, passes

    args: dict[str, Any] = {"model": "m", "precision": precision, "stop": stop}
    if constant:
        _be_constant(0.0)
        args["batch_size"] = 8
    if beside:
        passes.accelerated = lambda _: True
    whole = deeplabcut_2d.normalise(args)
    job = Job(Path(film), Path(out), whole, Path(model), model, lambda *_: None, device="cpu")
    answer = inference.run(job)
    return {
        "seconds": answer["timings"]["inference"],
        "frames": answer["frames_decoded"],
        "details": answer["details"],
        **_memory(),
    }


def _be_constant(seconds_a_frame: float) -> None:
    """Let all that happens on the device, from what it is sent to poses, take so long, elsewhere.

    Batches are computed one after the other, whoever waits for them.
    """
    import torch

    from worker.engine import passes
    from worker.gpu import staging
    from worker.precision import guard
    from worker.video.planes import Layout, Planes

    free = time.monotonic()
    ends: deque[float] = deque()

    class Constant(guard.PrecisionGuard):
        learns = False

        def launch(self, pixels: torch.Tensor, count: int) -> guard.InFlightBatch:
            nonlocal free
            free = max(free, time.monotonic()) + seconds_a_frame * len(pixels)
            ends.append(free)
            return guard.InFlightBatch(pixels, None, fast=False, count=count)

        def collect(self, batch: guard.InFlightBatch) -> Any:
            left = ends.popleft() - time.monotonic()
            if left > 0:  # to sleep for no time takes some
                time.sleep(left)
            self.state.frames += batch.count
            return {"bodypart": {"poses": torch.zeros((len(batch.x), 1, 4, 3))}}, []

    passes.PrecisionGuard = Constant  # type: ignore[misc]

    def shown(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
        return packed.new_zeros(()).expand(len(packed), *Planes(layout, ()).shape)

    staging._shown = shown


def beside(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Pretend, in a worker's child, that there is an accelerator."""
    return {"accelerated": True}


def on_a_device(payload: dict[str, Any], report: Any) -> dict[str, Any]:
    """Be ``worker.child.analysis.run_analysis`` in a worker's child, on a pretended accelerator."""
    from worker.child.analysis import run_analysis
    from worker.engine import passes

    if passes.PrecisionGuard.__name__ != "Constant":
        _be_constant(DEVICE_SECONDS)
        passes.accelerated = lambda _: True
    return run_analysis(payload, report)


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
    from worker.video.draw import render

    payload = {
        "video": film, "poses": poses, "out": out, "pcutoff": 0.4,
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
        in fp32 ``untiled``, in ``bf16`` and of the ``head`` alone; FLOP/s of matrices,
        ``fp32_peak`` and ``bf16_peak``.
    """
    be_a_worker()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from worker.engine import network
    from worker.gpu.staging import normalised
    from worker.precision.variants import ModelVariants
    from worker.video import decode

    loaded = network.load(Path(model), None, "cpu").pose.model
    _, frame = next(decode.frames(Path(film), order="bgr"))
    picture = normalised(torch.from_numpy(frame[None]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded(picture)
    variants = ModelVariants(loaded, "cpu")
    size = 2048
    square = torch.randn(size, size)
    half = square.to(torch.bfloat16)
    with torch.inference_mode():
        features = variants.exact.backbone(picture)
        timed: dict[str, Callable[[], Any]] = {
            "fp32": lambda: variants.tiled()(picture),
            "bf16": lambda: variants.form("bf16", "winograd")(picture),
            "bf16_untiled": lambda: variants.form("bf16", "direct")(picture),
            "untiled": lambda: variants.exact(picture),
            "head": lambda: variants.exact.heads["bodypart"](features),
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
        stock_inference, our_inference, stock_render, our_render, network_and_matrices,
        network_by_engine,
    )
}  # fmt: skip


def alone(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call one of the functions above in a fresh process; adds its ``wall`` seconds."""
    command = [sys.executable, "-m", "benchmarks.alone", function.__name__]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{function.__name__} failed: {done.stderr[-2000:]}")
    return {
        **json.loads(done.stdout.rsplit("ANSWER ", 1)[1]), "wall": time.perf_counter() - started
    }  # fmt: skip


class Alive:
    """A process for many calls of one of the functions above: loading DeepLabCut takes seconds."""

    def __init__(self, function: Callable[..., Any], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.alone", function.__name__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def __call__(self, **arguments: Any) -> Any:
        """Call it.

        Raises:
            RuntimeError: it failed; the message is its last words.
        """
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None
        assert answers is not None
        limit = threading.Timer(PATIENCE, self._process.kill)
        limit.start()
        try:
            pipe.write(json.dumps(arguments) + "\n")
            pipe.flush()
            for line in answers:
                if line.startswith("ANSWER "):
                    return json.loads(line.removeprefix("ANSWER "))
                if line.startswith("FAILED "):
                    raise RuntimeError(json.loads(line.removeprefix("FAILED ")))
        except BrokenPipeError:
            pass
        finally:
            limit.cancel()
        code = self._process.wait()
        raise RuntimeError(f"the process ended with {code}: see {self._log}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _serve(function: Callable[..., Any]) -> None:
    for line in sys.stdin:
        try:
            answer = function(**json.loads(line))
        except Exception as error:  # told where the figure was to be
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {error}"[:500]
            print("FAILED", json.dumps(f"{words} ({where.filename}:{where.lineno})"), flush=True)
        else:
            print("ANSWER", json.dumps(answer), flush=True)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if arguments:
        print("ANSWER", json.dumps(ALONE[name](**json.loads(arguments[0]))))
    else:
        _serve(ALONE[name])
