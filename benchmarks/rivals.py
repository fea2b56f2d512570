"""posedrop's network on a CPU beside other engines, in turn, in the same run: time and heatmaps.

Only the network is timed: pictures go in normalised, heatmaps and offsets come out. Each engine is
in a process of its own (benchmarks/networks.py), prepared and warm before the first round; in each
round each of them has its turn, every time another one first. The table has medians.

    pip install -e '.[rivals]'                # OpenVINO, ONNX Runtime and ncnn
    python -m benchmarks.rivals               # 40 minutes on two cores
    python -m benchmarks.rivals --models resnet18 --rounds 2 --engines stock,direct,openvino
    python -m benchmarks.rivals --table       # what was measured

What was measured is in build/rivals.json, and as a table of Markdown in build/rivals.md; a model
that was measured with as many rounds and threads before stays in the table. All engines hold their
network at once: 14 GB for a ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alone import Alive, network_by_engine
from benchmarks.made import made_resnet50
from benchmarks.networks import ENGINES
from tests.support.samples import REPOSITORY, Sample, sample

OUT, TABLE = REPOSITORY / "build/rivals.json", REPOSITORY / "build/rivals.md"
#: timm's names of backbones; the last is what a new project of DeepLabCut's has.
MODELS = ("resnet18", "resnet50", "resnet50_gn")
#: Frames at once.
BATCHES = (1, 8)
#: Frames of the film; heatmaps of all are compared.
FRAMES = 8
#: A keypoint counts from this likelihood on, as in the mouse's project.
PCUTOFF = 0.4
REFERENCE = "stock"


def measure(
    folder: Path, model: Path, film: Path, engines: Sequence[str], rounds: int, threads: int
) -> dict[str, Any]:
    """Return what each engine makes of a model, by engine and batch, as JSON types.

    Args:
        folder: for logs, and for what was found.
        engines: of ENGINES; the reference is the first of them.
    """
    alive = {name: Alive(network_by_engine, folder / f"{name}.log") for name in engines}
    found: dict[str, Any] = {}

    def ask(name: str, batch: int, out: Path | None) -> Any:
        try:
            answer = alive[name](
                engine=name, model=str(model), film=str(film), frames=FRAMES, threads=threads,
                batch=batch, out=None if out is None else str(out),
            )  # fmt: skip
        except RuntimeError as error:
            answer = {"impossible": str(error)[:300]}
        return answer

    try:
        for name in engines:
            found[name] = {"batches": {}}
            for batch in BATCHES:
                out = folder / f"{name}_{batch}.npz"
                answer = ask(name, batch, out)
                took = f"{answer['prepare']:.0f} s" if "prepare" in answer else "impossible"
                print(f"  prepared {name}, {batch} at once: {took}", flush=True)
                if "impossible" in answer:
                    found[name] = answer
                    alive.pop(name).close()
                    break
                found[name]["version"] = answer["version"]
                found[name]["batches"][str(batch)] = {
                    "prepare": answer["prepare"],
                    "rounds": [],
                    **compared(folder / f"{REFERENCE}_{BATCHES[0]}.npz", out),
                }
        for number in range(rounds):
            for batch in BATCHES:
                names = list(alive)
                shift = number % len(names)
                for name in names[shift:] + names[:shift]:
                    answer = ask(name, batch, None)
                    if "impossible" in answer:
                        found[name] = answer
                        alive.pop(name).close()
                    else:
                        seconds = statistics.median(answer["seconds"])
                        found[name]["batches"][str(batch)]["rounds"].append(seconds)
            print(f"  round {number + 1} of {rounds}", flush=True)
    finally:
        for process in alive.values():
            process.close()
    return found


def compared(reference: Path, found: Path) -> dict[str, float]:
    """Compare what two engines found in the same frames.

    Returns:
        ``heatmap``: the largest difference of heatmaps; ``moved``: the largest distance in pixels
        of a keypoint that the reference is sure of; ``sure``: how many these are.
    """
    true, other = np.load(reference), np.load(found)
    sure = true["poses"][..., 2] >= PCUTOFF
    away = np.linalg.norm(true["poses"][..., :2] - other["poses"][..., :2], axis=-1)[sure]
    return {
        "heatmap": float(np.abs(true["heatmap"] - other["heatmap"]).max()),
        "moved": float(away.max(initial=0.0)),
        "sure": int(sure.sum()),
    }


# -- the table ----


def table(measured: dict[str, Any]) -> str:
    """Return what was measured as a table of Markdown, and what it was measured on."""
    models = measured["models"]
    head = ["", "", *(f"{name}, {batch} at once" for name in models for batch in BATCHES)]
    head += [f"{name}: heatmap, keypoint" for name in models]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    without: dict[str, None] = {}
    for name, engine in ENGINES.items():
        cells = [models[model].get(name, {}) for model in models]
        if not any("batches" in cell for cell in cells):
            without |= {
                f"{engine.title}, {engine.numbers}: {cell['impossible']}": None
                for cell in cells
                if "impossible" in cell
            }
            continue
        row = [engine.title, engine.numbers]
        row += [_time(cell, batch) for cell in cells for batch in BATCHES]
        row += [_difference(cell) for cell in cells]
        lines.append("| " + " | ".join(row) + " |")
    versions = {
        ENGINES[name].package: cell["version"]
        for cells in models.values()
        for name, cell in cells.items()
        if "version" in cell
    }
    about = [
        f"{measured['processor']}, {measured['threads']} threads, 640x480, "
        f"{measured['rounds']} rounds, medians: ms a frame (frames a second). Heatmap: largest "
        f"difference from torch's in {FRAMES} frames; keypoint: how far the furthest one over "
        f"{PCUTOFF} moved, in pixels.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        *(f"Not measured: {why}." for why in without),
    ]
    return "\n".join([*lines, "", *about])


def _time(cell: dict[str, Any], batch: int) -> str:
    rounds = cell.get("batches", {}).get(str(batch), {}).get("rounds")
    if not rounds:
        return "-"
    seconds = statistics.median(rounds)
    return f"{_digits(1000 * seconds)} ({_digits(1 / seconds)})"


def _difference(cell: dict[str, Any]) -> str:
    batches = cell.get("batches", {}).values()
    if not batches:
        return "-"
    moved = max(one["moved"] for one in batches)
    return f"{max(one['heatmap'] for one in batches):.0e}, {moved:.2g}"


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


# -- what is measured ----


def film_and_mouse(folder: Path) -> Sample:
    """Return a film of 640x480, and the mouse's ResNet-18 where the machine has it.

    Raises:
        SystemExit: it has not.
    """
    found = sample(folder, FRAMES * 4)
    if found.model.is_relative_to(REPOSITORY):
        sys.exit("DeepLabCut's open-field example has to lie in shared/, beside the clone")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--resnet50", type=Path, help="a project's folder, for resnet50")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, default=9, help="each engine's turns (9)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--table", action="store_true", help="print what was measured")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(OUT.read_text())))
        return
    models, engines = given.models.split(","), given.engines.split(",")
    if unknown := {*models} - {*MODELS} | {*engines} - {*ENGINES}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    engines = [REFERENCE, *(name for name in ENGINES if name in engines and name != REFERENCE)]
    machine = {"processor": _processor(), "threads": given.threads, "rounds": given.rounds}
    measured: dict[str, Any] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    if {name: measured.get(name) for name in machine} != machine:
        measured = {**machine, "models": {}}  # other models of the same kind of run stay
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mouse = film_and_mouse(folder)
        for model in models:
            print(model, flush=True)
            project = given.resnet50 if model == "resnet50" else None
            if project is None:
                project = mouse.model
                if model != "resnet18":
                    project = made_resnet50(folder, mouse, model)
            place = folder / f"found_{model}"
            place.mkdir()
            measured["models"][model] = measure(
                place, project, mouse.film, engines, given.rounds, given.threads
            )
            OUT.parent.mkdir(exist_ok=True)
            OUT.write_text(json.dumps(measured, indent=1))
    TABLE.write_text(table(measured) + "\n")
    print(TABLE.read_text())


def _processor() -> str:
    """Return the processor's name, and which of its units for small numbers it has."""
    about = Path("/proc/cpuinfo")
    if not about.is_file():
        return platform.processor() or platform.machine()
    told: dict[str, str] = {}
    for line in about.read_text().splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    flags = told.get("flags", "").split()
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{told.get('model name', platform.machine())} ({', '.join(units)})"


if __name__ == "__main__":
    main()
