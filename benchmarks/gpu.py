"""posedrop beside stock DeepLabCut on an NVIDIA card: one command, and nothing but the wheels.

    python -m benchmarks.gpu                  # on a machine with a card: half an hour
    python -m benchmarks.gpu --only decode encode
    python -m benchmarks.gpu --pretend        # no card: shows that this script works; no figure

Stock ``analyze_videos`` and posedrop run in turn, each in a process of its own, on the same film
with the same weights. Writes build/gpu.json and build/gpu.md, and says of each thing that could not
be run why not. Weights are overfitted on the film's mouse (benchmarks/overfitted.py), so that
there are keypoints to be sure of.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build"
SIZE = (640, 480)
#: By what benchmarks/overfitted.py calls them.
MODELS = ("resnet50", "resnet18", "top_down_resnet50")
#: The one that was trained on the real mouse's own film, where a machine has both.
OWN = "resnet18"
#: Frames of the film that is gone round and round for the others.
PLACED = 1600
#: What can be left out.
PARTS = (*MODELS, "network", "decode", "encode", "queue")
FRAMES, PAIRS, CLIPS, CLIP_FRAMES = 3000, 3, 8, 600
PRETENDED_FRAMES = 24
#: Seconds that a process may take.
PATIENCE = 1800.0
#: Seconds between two looks at the card.
LOOK_SECONDS = 0.1
#: Pixels by which a keypoint has flipped.
FLIPPED = 0.5


# -- what runs in processes of its own -------------------------------------------------------------


def stock(model: str, film: str, out: str, device: str) -> dict[str, Any]:
    """Run ``analyze_videos`` as it comes."""
    import deeplabcut
    from deeplabcut.pose_estimation_pytorch.apis import videos

    seconds: list[float] = []
    counts: list[int] = []
    whole = videos.video_inference

    card: dict[str, Any] = {}

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watched() as seen:
            started = time.perf_counter()
            found = whole(*args, **kwargs)
            seconds.append(time.perf_counter() - started)
        card.update(seen)
        counts.append(len(found))
        return found

    videos.video_inference = timed
    scorer = deeplabcut.analyze_videos(
        str(Path(model) / "config.yaml"), [film], destfolder=out, device=device
    )
    table = next(Path(out).glob(f"*{scorer}.h5"))
    return {"seconds": sum(seconds), "frames": sum(counts), "poses": str(table), "card": card}


def ours(
    model: str, film: str, out: str, device: str, precision: str, decode: str, runs: int
) -> dict[str, Any]:
    """Run the analysis, several times in one process: the first one times ways, the others know."""
    _be_a_worker()
    from posedrop.analyses import Job
    from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
    from worker.engine import inference
    from worker.poses import tables

    args = deeplabcut_2d.normalise({"model": "m", "precision": precision})
    answers: list[Any] = []
    known: dict[str, str] = {}
    for number in range(runs):
        folder = Path(out) / str(number)
        folder.mkdir()
        job = Job(
            Path(film), folder, args, Path(model), "d", lambda *_: None, device=device,
            decode=decode, model_bytes=8 << 30, tuning=known,
        )  # fmt: skip
        with watched() as card:  # the last one counts
            answers.append(inference.run(job))
        known = known | answers[-1].get("tuning", {})
    tables.finish(job)
    return {
        "seconds": [answer["timings"]["inference"] for answer in answers],
        "frames": answers[-1]["frames_decoded"],
        "poses": str(folder / "poses.h5"),
        "details": answers[-1]["details"],
        "card": card,
    }


def network_alone(
    model: str, device: str, size: list[int], batches: list[int], rounds: int
) -> dict[str, Any]:
    """Time the pose network on pictures that are there already: as stock has it, and in our forms.

    Returns:
        ``flop`` of a picture (two a multiplication and addition), and pictures a second by form and
        batch.
    """
    _be_a_worker()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from worker import hardware
    from worker.engine import network
    from worker.gpu.graphs import Graphed, recorder_of
    from worker.precision.variants import ModelVariants

    where = torch.device(device)
    loaded = network.load(Path(model), None, device).pose.model
    pictures = torch.rand((max(batches), 3, size[1], size[0]), device=where)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        loaded(pictures[:1])
    speeds: dict[str, float] = {}
    failed: dict[str, str] = {}

    def time_it(name: str, batch: int, forward: Callable[[Any], Any], x: Any) -> None:
        try:
            forward(x)
            _wait(where)
            took = []
            for _ in range(rounds):
                started = time.perf_counter()
                forward(x)
                _wait(where)
                took.append(time.perf_counter() - started)
            speeds[f"{name}/{batch}"] = batch / statistics.median(took)
        except Exception as error:  # memory, mostly
            failed[f"{name}/{batch}"] = _words(error)

    with torch.inference_mode():
        for batch in batches:
            time_it("stock fp32", batch, loaded, pictures[:batch])
    with torch.inference_mode(), hardware.tf32(allowed=False):
        variants = ModelVariants(loaded, device)
        for batch in batches:
            x = pictures[:batch].contiguous(memory_format=torch.channels_last)
            for numbers in ("fp32", "fp16"):
                form = variants.form(numbers, "direct")  # type: ignore[arg-type]
                time_it(f"{numbers} eager", batch, form, x)
                recorder = recorder_of(where)
                if recorder is not None:
                    graphed = Graphed(form, x, recorder)
                    time_it(f"{numbers} recorded", batch, graphed, x)
                    if graphed.why:
                        failed[f"{numbers} recorded/{batch}"] = graphed.why
                    del graphed
    return {"flop": float(counter.get_total_flops()), "speeds": speeds, "failed": failed}


def decode_alone(film: str, device: str) -> dict[str, Any]:
    """Decode a film and do nothing with it: frames a second, by who decodes."""
    import av
    from av.codec.context import CodecContext
    from av.codec.hwaccel import HWAccel

    from worker.video import cuda_decode, numbering

    path, number = Path(film), device.partition(":")[2] or "0"
    speeds: dict[str, float] = {}
    failed: dict[str, str] = {}

    def time_it(name: str, frames: Callable[[], Iterator[Any]]) -> None:
        try:
            given = frames()
            next(given)
            started = time.perf_counter()
            count = sum(1 for _ in given)
            speeds[name] = count / (time.perf_counter() - started)
        except Exception as error:  # no card, no driver, not this film
            failed[name] = _words(error)

    def by_stream(threads: int, **options: Any) -> Callable[[], Iterator[Any]]:
        def frames() -> Iterator[Any]:
            with av.open(film, **options) as container:
                stream = container.streams.video[0]
                stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
                yield from container.decode(stream)

        return frames

    def by_cuvid() -> Iterator[Any]:
        with av.open(film) as container:
            stream = container.streams.video[0]
            decoder: Any = CodecContext.create("h264_cuvid", "r")
            decoder.extradata = stream.codec_context.extradata
            decoder.options = {"gpu": number}
            for packet in container.demux(stream):
                yield from decoder.decode(packet if packet.size else None)

    def by_posedrop() -> Iterator[Any]:
        card = cuda_decode.Card("cuda", device)
        yield from numbering.numbered(path, numbering.Reading(), card=card)
        if card.used != "cuda":
            raise RuntimeError(card.why)

    time_it("cpu, threads", by_stream(0))
    time_it("cpu, one thread", by_stream(1))
    time_it("posedrop's, by the card", by_posedrop)
    hwaccel = {"hwaccel": HWAccel("cuda", device=number, allow_software_fallback=False)}
    time_it("nvdec, one thread, to memory", by_stream(1, **hwaccel))
    time_it("nvdec, threads, to memory", by_stream(0, **hwaccel))
    stays = {
        "hwaccel": HWAccel("cuda", device=number, allow_software_fallback=False, is_hw_owned=True)
    }
    time_it("nvdec, one thread, frames stay", by_stream(1, **stays))
    time_it("h264_cuvid", by_cuvid)
    return {"speeds": speeds, "failed": failed}


def encode_alone(film: str, frames: int, device: str) -> dict[str, Any]:
    """Encode a film's frames as pose.mp4 is: frames a second, bytes, how far off the luma is."""
    import numpy as np

    from worker.video import canvas, nvenc

    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for encoder in (canvas.X264, canvas.NVENC):
            path = Path(folder) / f"{encoder}.mp4"
            drawn = list(islice(canvas.open_canvases(Path(film)), frames))
            before = [drawn[at].y.astype(float) for at in range(0, len(drawn), 50)]
            try:
                started = time.perf_counter()
                canvas.encode(path, drawn, encoder=encoder, gpu=nvenc.number_of(device))
                seconds = time.perf_counter() - started
            except Exception as error:  # no encoder on it, no session
                failed[encoder] = nvenc.words(error)
                continue
            again = islice(canvas.open_canvases(path), 0, None, 50)
            off = [
                float(np.mean((one - other.y) ** 2))
                for one, other in zip(before, again, strict=True)
            ]
            found[encoder] = {
                "frames_per_second": len(drawn) / seconds,
                "bytes_a_frame": path.stat().st_size / len(drawn),
                "psnr_db": float(10 * np.log10(255**2 / max(np.mean(off), 1e-9))),
            }
    return {"found": found, "failed": failed}


def queued(model: str, film: str, device: str, clips: int, pretends: bool) -> dict[str, Any]:
    """Send clips through two children, as a worker does: how long the card waits between two."""
    from benchmarks.way import idle_share
    from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
    from worker.child.pool import ChildPool

    scratch = Path(tempfile.mkdtemp())
    begins = "benchmarks.alone:beside" if pretends else "begin"
    both = ChildPool(
        "gpu",
        scratch,
        warm=["worker.engine.inference"],
        device=device,
        begins_with=begins,
        cards=True,
    )
    known: dict[str, str] = {}

    def analyse(number: int) -> dict[str, Any]:
        job = scratch / f"job{number}"
        (job / "out").mkdir(parents=True)
        shutil.copyfile(film, job / "video")
        shutil.copytree(model, job / "model")
        payload = {
            "analysis": "deeplabcut_2d", "video": str(job / "video"), "out": str(job / "out"),
            "args": deeplabcut_2d.normalise({"model": "m"}), "model": str(job / "model"),
            "model_digest": "d", "device": device, "model_bytes": 4 << 30, "tuning": dict(known),
        }  # fmt: skip
        began = time.time()
        answer = both.call(
            "run_analysis", payload,
            makes_ready=True, on_progress=lambda _: None,
            should_stop=lambda: False, wall_seconds=PATIENCE, folder=job, log=job / "run.log",
        )  # fmt: skip
        known.update(answer.get("tuning", {}))
        called = {"called": began, "answered": time.time()}
        return {"timings": {**answer["timings"], **called}, "details": answer["details"]}

    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(analyse, range(-2, 0)))  # both have their model then
            with watched() as card:
                results = list(threads.map(analyse, range(clips)))
    finally:
        both.close()
        shutil.rmtree(scratch, ignore_errors=True)
    when = ("inference_began_at", "inference_ended_at")
    clips_of = [
        {**one["timings"], **{name: one["details"][name] for name in when}} for one in results
    ]
    return {"idle_share": idle_share(results), "card": card, "clips": clips_of}


def _be_a_worker() -> None:
    from worker.child.child import FIXED

    os.environ.update(FIXED)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


# -- the card --------------------------------------------------------------------------------------


_ASKED = ("utilization.gpu", "utilization.decoder", "utilization.encoder", "memory.used")


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Look at the card while the block runs; what was seen is in the dictionary behind it.

    Percents are means (``gpu``: of the time in which some kernel ran), ``mib`` is the most.
    """
    seen: dict[str, Any] = {}
    smi = shutil.which("nvidia-smi")
    if smi is None:
        seen["lacks"] = "no nvidia-smi here: nobody looked at the card"
        yield seen
        return
    lines: list[list[float]] = []
    asked = subprocess.Popen(
        [smi, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits", "-i", _number(),
         f"-lms={int(1000 * LOOK_SECONDS)}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def read() -> None:
        for line in asked.stdout or ():
            values = [part.strip() for part in line.split(",")]
            if all(value.replace(".", "").isdecimal() for value in values):
                lines.append([float(value) for value in values])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        asked.terminate()
        reader.join(5)
        asked.wait(5)
        if lines:
            columns = list(zip(*lines, strict=True))
            seen |= {
                "gpu": statistics.mean(columns[0]), "decoder": statistics.mean(columns[1]),
                "encoder": statistics.mean(columns[2]), "mib": max(columns[3]),
                "looks": len(lines),
            }  # fmt: skip
        else:
            seen["lacks"] = "nvidia-smi told nothing of this card (MIG, or a container's)"


def _number() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"


def about(device: str) -> dict[str, Any]:
    """Return what the machine is."""
    import av
    import torch

    made = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": None,
        "av": av.__version__, "deeplabcut": version("deeplabcut"),
        "python": platform.python_version(), "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(), "card": None, "driver": None,
    }  # fmt: skip
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        made["card"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        made["cudnn"] = torch.backends.cudnn.version()
        smi = shutil.which("nvidia-smi")
        if smi:
            told = subprocess.run(
                [smi, "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            made["driver"] = told.stdout.strip().partition("\n")[0]
    return made


# -- films and models ------------------------------------------------------------------------------


def filmed(source: Path, target: Path, size: tuple[int, int], frames: int) -> Path:
    """Write a film of this size and length as H.264 4:2:0: the source's frames, over and over."""
    import av

    width, height = size
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        number = 0
        while number < frames:
            with av.open(str(source)) as film:
                for frame in film.decode(video=0):
                    if number == frames:
                        break
                    plain = frame.reformat(width, height, "yuv420p")
                    plain.pts, plain.time_base = number, Fraction(1, 30)
                    out.mux(stream.encode(plain))
                    number += 1
        out.mux(stream.encode())
    return target


def copied(model: Path, target: Path) -> Path:
    """Copy a project to where stock DeepLabCut may write to it."""
    shutil.copytree(model, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def overfitted_model(name: str) -> Path:
    """Return a project with weights that see the mouse: made, if it is not there; minutes, then."""
    from benchmarks import overfitted
    from tests.support.samples import has_real_mouse

    if name == OWN and has_real_mouse():
        return overfitted.mouse().model
    return overfitted.made(name, overfitted.FIRST)


# -- the run ---------------------------------------------------------------------------------------


class Run:
    """All that is measured, and what could not be."""

    def __init__(self, folder: Path, given: argparse.Namespace, device: str) -> None:
        """Measure on ``device``, with files in ``folder``."""
        self.folder = folder
        self.device = device
        self.out: Path = given.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.pretends = given.pretend
        self.frames = given.frames or (PRETENDED_FRAMES if self.pretends else FRAMES)
        self.pairs = 1 if self.pretends else given.pairs
        self.alone_too = "network" in (given.only or PARTS)
        self.found: dict[str, Any] = {
            "pretended": self.pretends, "about": about(device), "models": {}, "could_not": {},
        }  # fmt: skip
        self._number = 0

    def alone(self, what: Callable[..., Any], *, exactly: bool = False, **arguments: Any) -> Any:
        """Call a function of this file in a process of its own.

        Args:
            what: which.
            exactly: without TF32.
            arguments: JSON types.
        """
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if exactly:
            environment["NVIDIA_TF32_OVERRIDE"] = "0"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--alone", what.__name__,
             json.dumps(arguments)],
            capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=REPOSITORY,
            env=environment,
        )  # fmt: skip
        if done.returncode:
            self._number += 1
            log = self.out / f"gpu-{what.__name__}{self._number}.log"
            log.write_text(f"{arguments}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
            lines = done.stderr.strip().splitlines()
            why = lines[-1] if lines else f"ended with {done.returncode}"
            raise RuntimeError(f"{why} ({log.name})")
        return json.loads(done.stdout.rsplit("ANSWER ", 1)[1])

    def tried(self, name: str, what: Callable[[], Any]) -> Any:
        """Return what something gives; None, and the reason noted, where it can't be run."""
        print(f"{name}...", flush=True)
        try:
            return what()
        except Exception as error:
            self.found["could_not"][name] = _words(error)
            print(f"  could not be run: {_words(error)}", flush=True)
            return None
        finally:
            self.write()

    def fresh(self, name: str) -> Path:
        """Return a new folder."""
        self._number += 1
        made = self.folder / f"{name}{self._number}"
        made.mkdir()
        return made

    def film(self, frames: int, name: str = OWN) -> Path:
        """Return a film in which a model sees its mouse."""
        from benchmarks import overfitted
        from tests.support.samples import has_real_mouse, sample

        # A model that learnt smaller films knows the mouse at the size that it has there.
        placed = not self.pretends and not (name == OWN and has_real_mouse())
        path = self.folder / f"{'placed' if placed else 'film'}{frames}.mp4"
        if path.exists():
            return path
        few = self.pretends or frames < 900
        if placed:
            source = overfitted.placed_film_of(SIZE, PLACED)
        else:
            source = (sample(self.folder, frames) if few else overfitted.mouse()).film
        return filmed(source, path, (320, 256) if self.pretends else SIZE, frames)

    def model(self, name: str) -> Path:
        """Return a project."""
        from posedrop.demo import MODEL

        return MODEL if self.pretends else overfitted_model(name)

    def compared(self, name: str) -> None:
        """Stock and posedrop in turn; how far apart their keypoints are."""
        row = self.found["models"].setdefault(name, {})
        model = self.tried(f"{name}: weights", lambda: self.model(name))
        film = self.tried(f"{name}: film", lambda: str(self.film(self.frames, name)))
        if model is None or film is None:
            return
        stocks, ourss = [], []
        for pair in range(self.pairs):
            stocks.append(self.tried(f"{name}: stock {pair + 1}", lambda: self._stock(model, film)))
            ourss.append(
                self.tried(f"{name}: posedrop {pair + 1}", lambda: self._ours(model, film, "auto"))
            )
        stocks, ourss = [one for one in stocks if one], [one for one in ourss if one]
        if stocks:
            row["stock"] = {"frames_per_second": [_speed(one) for one in stocks], **_last(stocks)}
        if ourss:
            row["posedrop"] = {
                "frames_per_second": [_speed(one) for one in ourss],
                "first_film_frames_per_second": [
                    one["frames"] / one["seconds"][0] for one in ourss
                ],
                **_last(ourss),
                "details": {
                    name: ourss[-1]["details"].get(name)
                    for name in ("precision", "batch_size", "tuning", "graphs", "decode", "device")
                },
            }
        exact = self.tried(
            f"{name}: posedrop in fp32 without TF32",
            lambda: self._ours(model, film, "fp32", exactly=True),
        )
        if exact and ourss:
            row["auto_to_fp32"] = _apart(exact["poses"], ourss[-1]["poses"])
        if exact and stocks:
            row["stock_to_fp32"] = _apart(exact["poses"], stocks[-1]["poses"])
        if self.alone_too:
            self.network(name, model)

    def network(self, name: str, model: Path) -> None:
        """Time a network without a film around it."""
        self.found["models"][name]["network"] = self.tried(
            f"{name}: the network alone",
            lambda: self.alone(
                network_alone, model=str(model), device=self.device,
                size=[64, 64] if self.pretends else list(SIZE),
                batches=[1, 2] if self.pretends else [1, 8, 32, 64],
                rounds=2 if self.pretends else 20,
            ),
        )  # fmt: skip

    def _stock(self, model: Path, film: str) -> Any:
        project = copied(model, self.fresh("project") / "model")
        out = str(self.fresh("stock"))
        return self.alone(stock, model=str(project), film=film, out=out, device=self.device)

    def _ours(self, model: Path, film: str, precision: str, *, exactly: bool = False) -> Any:
        return self.alone(
            ours, model=str(model), film=film, out=str(self.fresh("ours")), device=self.device,
            precision=precision, decode="auto", runs=1 if exactly else 2, exactly=exactly,
        )  # fmt: skip

    def decode(self) -> None:
        """Decode alone: the limit of all the rest."""
        self.found["decode"] = self.tried(
            "decoding alone",
            lambda: self.alone(decode_alone, film=str(self.film(self.frames)), device=self.device),
        )

    def encode(self) -> None:
        """Encode alone: x264 and NVENC."""
        frames = min(self.frames, 600)
        self.found["encode"] = self.tried(
            "encoding alone",
            lambda: self.alone(
                encode_alone, film=str(self.film(self.frames)), frames=frames, device=self.device
            ),
        )

    def queue(self) -> None:
        """Send films through two children: idle between two."""
        name = "resnet18"
        model = self.tried(f"{name}: weights", lambda: self.model(name))
        if model is None:
            return
        film = self.tried(
            "clips", lambda: str(self.film(PRETENDED_FRAMES if self.pretends else CLIP_FRAMES))
        )
        if film is None:
            return
        self.found["queue"] = self.tried(
            "films in a queue",
            lambda: self.alone(
                queued, model=str(model), film=film, device=self.device,
                clips=2 if self.pretends else CLIPS, pretends=self.pretends,
            ),
        )  # fmt: skip

    def write(self) -> None:
        """Write what is known so far."""
        name = "gpu-pretended" if self.pretends else "gpu"
        (self.out / f"{name}.json").write_text(json.dumps(self.found, indent=1))
        (self.out / f"{name}.md").write_text(table(self.found))


def _speed(answer: Any) -> float:
    """Return frames a second; of several runs in a process, the fastest."""
    seconds = answer["seconds"]
    return float(answer["frames"] / (min(seconds) if isinstance(seconds, list) else seconds))


def _last(answers: list[Any]) -> dict[str, Any]:
    return {"frames": answers[-1]["frames"], "card": answers[-1]["card"]}


def _apart(exact: str, other: str) -> dict[str, Any]:
    """Compare two tables: keypoints that are over pcutoff in the first."""
    import numpy as np
    import pandas as pd

    true, found = (
        pd.DataFrame(pd.read_hdf(path)).to_numpy(float).reshape(-1, 3) for path in (exact, other)
    )
    pcutoff = 0.6
    sure = true[:, 2] >= pcutoff
    moved = np.linalg.norm(found[sure, :2] - true[sure, :2], axis=1)
    return {
        "keypoints": int(sure.sum()),
        "largest_px": float(moved.max()) if len(moved) else None,
        "flipped": int((~(moved <= FLIPPED)).sum()),
        "crossed_pcutoff": int((sure != (found[:, 2] >= pcutoff)).sum()),
    }


# -- the table -------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Return what was found as Markdown."""
    about_ = found["about"]
    lines = [f"# {about_['card'] or 'no card'}", ""]
    if found["pretended"]:
        lines += ["**Pretended on a processor, with a few frames: no figure, of nothing.**", ""]
    lines += [
        "driver {driver}, CUDA {cuda}, cuDNN {cudnn}, torch {torch}, PyAV {av}, DeepLabCut "
        "{deeplabcut}; {cores} cores".format(**about_), "",
        "| 640 x 480 | stock frames/s | posedrop frames/s | times | of decoding alone | decoded by "
        "| card idle, stock / posedrop | MiB, stock / posedrop | largest px to fp32 | flipped | "
        "repeated |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    limit = max((found.get("decode") or {}).get("speeds", {}).values(), default=None)
    for name, row in found["models"].items():
        its, own = row.get("stock"), row.get("posedrop")
        stock_speed = statistics.median(its["frames_per_second"]) if its else None
        speed = statistics.median(own["frames_per_second"]) if own else None
        details = (own or {}).get("details", {})
        apart = row.get("auto_to_fp32") or {}
        cells = [
            name, _number_of(stock_speed), _number_of(speed),
            _number_of(speed / stock_speed if speed and stock_speed else None, 2),
            _number_of(speed / limit if speed and limit else None, 2),
            str((details.get("decode") or {}).get("used", "-")),
            f"{_idle(its)} / {_idle(own)}", f"{_mib(its)} / {_mib(own)}",
            _number_of(apart.get("largest_px"), 3), str(apart.get("flipped", "-")),
            str((details.get("precision") or {}).get("frames_repeated_in_fp32", "-")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| alone | frames/s |", "|---|---|"]
    for name, speed in (found.get("decode") or {}).get("speeds", {}).items():
        lines.append(f"| decoding: {name} | {speed:.0f} |")
    for name, told in (found.get("encode") or {}).get("found", {}).items():
        about_it = f"{told['bytes_a_frame']:.0f} bytes a frame, {told['psnr_db']:.1f} dB"
        lines.append(f"| encoding: {name} ({about_it}) | {told['frames_per_second']:.0f} |")
    for name, row in found["models"].items():
        for form, speed in ((row.get("network") or {}).get("speeds") or {}).items():
            lines.append(f"| network: {name}, {form} | {speed:.0f} |")
    queue = found.get("queue")
    if queue:
        share = f"{queue['idle_share']:.1%}"
        lines += ["", f"Films in a queue: nothing on the card for {share} of the time between."]
    reasons = dict(found["could_not"])
    for part in ("decode", "encode"):
        for name, why in ((found.get(part) or {}).get("failed") or {}).items():
            reasons[f"{part}: {name}"] = why
    for name, row in found["models"].items():
        for form, why in ((row.get("network") or {}).get("failed") or {}).items():
            reasons[f"network: {name}, {form}"] = why
    if reasons:
        lines += ["", "Could not be run:", ""]
        lines += [f"- {name}: {why}" for name, why in reasons.items()]
    return "\n".join(lines) + "\n"


def _number_of(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _idle(row: dict[str, Any] | None) -> str:
    busy = ((row or {}).get("card") or {}).get("gpu")
    return "-" if busy is None else f"{100 - busy:.0f} %"


def _mib(row: dict[str, Any] | None) -> str:
    return _number_of(((row or {}).get("card") or {}).get("mib"))


ALONE = {
    function.__name__: function
    for function in (stock, ours, network_alone, decode_alone, encode_alone, queued)
}


def main() -> None:
    """Measure what can be, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretend", action="store_true", help="on a processor; no figure")
    parser.add_argument("--frames", type=int, help=f"of the film ({FRAMES})")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"paired runs ({PAIRS})")
    parser.add_argument("--device", default="cuda", help="as torch names it (cuda)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder to write to (build)")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        name, arguments = given.alone
        print("ANSWER", json.dumps(ALONE[name](**json.loads(arguments))))
        return
    import torch

    if not given.pretend and not torch.cuda.is_available():
        why = (
            "torch was built without CUDA" if torch.version.cuda is None else "torch finds no card"
        )
        parser.exit(1, f"nothing is measured: {why} here; --pretend shows that this script works\n")
    parts = given.only or PARTS
    if not set(MODELS) & set(parts) and "network" in parts:
        parts = [*parts, *MODELS]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), given, "cpu" if given.pretend else given.device)
        # First what bounds the rest.
        for part in ("decode", "encode"):
            if part in parts:
                getattr(run, part)()
        for name in ["demo"] if given.pretend else MODELS:
            if name in parts or (given.pretend and set(MODELS) & set(parts)):
                run.compared(name)
        if "queue" in parts:
            run.queue()
        run.write()
        print(table(run.found))


if __name__ == "__main__":
    main()
