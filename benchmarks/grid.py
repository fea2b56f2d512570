"""Networks by sizes of frames: posedrop against stock DeepLabCut, in turn, in the same run.

Stock is ``analyze_videos`` as it comes, with a new project's batches, and beside it with the batch
that is best for it. posedrop is as it comes too, and remembers nothing of earlier films. Seconds
are those of inference, what posedrop takes to choose its arithmetic counted in. Networks are those
of benchmarks/overfitted.py; what is measured goes to build/grid.json after each cell, and a cell
that is there is not measured again.

    python -m benchmarks.grid                                      # 80 minutes on two cores
    python -m benchmarks.grid --models cspnext,dlcrnet --sizes 64x64,320x256 --fresh
    python -m benchmarks.grid --project DIR --sizes 200x150        # a project of one's own
    python -m benchmarks.grid --table                              # what was measured

Exits with 1 where posedrop is slower: a cell's median ratio under 0.97, or no ratio over 1.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.alone import Alive, our_inference, stock_inference
from benchmarks.overfitted import (
    BUILD,
    FIRST,
    RECIPES,
    STEPS,
    Size,
    cut_film,
    film_of,
    made,
    placed_film_of,
)
from tests.support.samples import REPOSITORY

OUT = BUILD / "grid.json"
MODELS = (
    "cspnext", "resnet18", "resnet50", "resnet50_gn", "hrnet_w32", "rtmpose_s",
    "top_down_resnet50", "dlcrnet",
)  # fmt: skip
SIZES = ("64x64", "160x120", "320x256", "640x480", "1280x1024")
#: Frames of a film at most, and at least unless they take too long; pixels of all at most.
MOST, LEAST, PIXELS = 6000, 16, 6000 * 320 * 256
#: Batches that stock is tried with; and pixels in one at most, for memory.
BATCHES, BATCH_PIXELS = (1, 2, 4, 16, 32, 64), 16 * 640 * 480
#: A stock run of so many times the seconds that were asked for is made shorter.
TOO_LONG = 2.0
SLOWER, NOISE = 1.0, 0.97


class Cell:
    """One network and one size of frames."""

    def __init__(
        self, folder: Path, project: Path, film: Path, seconds: float, stock: Alive, ours: Alive
    ) -> None:
        self.folder = folder
        self.project = project
        self.film = film
        self.seconds = seconds
        self.stock = stock
        self.ours = ours
        self._number = 0

    def measure(self, pairs: int, size: Size) -> dict[str, Any]:
        """Return what is to be known of the cell, as JSON types."""
        whole = min(MOST, PIXELS // (size[0] * size[1]))
        frames, took = self._enough(whole)
        self._ours(self._film(min(frames, LEAST)))  # warm
        best = self._best_batch(frames, took, size)
        film = self._film(frames)
        times: dict[str, list[float]] = {"stock": [], "best": [], "posedrop": []}
        told: dict[str, Any] = {}
        for _ in range(pairs):
            theirs, theirs_at = self._stock(film)
            times["stock"].append(theirs)
            if best is not None and not times["best"]:  # beside it only: once tells enough
                times["best"].append(self._stock(film, best)[0])
            mine, told, mine_at = self._ours(film)
            times["posedrop"].append(mine)
        rates = {
            name: frames / statistics.median(seconds) for name, seconds in times.items() if seconds
        }
        ratios = [
            theirs / mine for theirs, mine in zip(times["stock"], times["posedrop"], strict=True)
        ]
        return {
            "frames": frames,
            "short": frames < LEAST,
            "seconds": times,
            "rates": {"best": rates["stock"], **rates},
            "best_batch": best,
            "ratios": ratios,
            "median": statistics.median(ratios),
            "details": {name: told.get(name) for name in ("tuning", "precision", "batch_size")},
            "detector": told.get("detector"),
            "keypoints": compared(theirs_at, mine_at, told["pcutoff"]),
        }

    def _enough(self, whole: int) -> tuple[int, float]:
        """Return how many frames are for so many seconds of stock, and what one takes."""
        # Of two frames, stock's thread for decoding loses both now and then, and it fails.
        frames = min(8, whole)
        self._stock(self._film(frames))  # warm
        while True:
            took, _ = self._stock(self._film(frames))
            if took > 0.1 * self.seconds or frames == whole:
                break
            more = min(12.0, max(2.0, 0.2 * self.seconds / took))
            frames = min(whole, math.ceil(frames * more))
        one = took / frames
        wanted = self.seconds / one
        if wanted < LEAST:
            # Some for posedrop to choose by, but not for minutes.
            wanted = max(2.0, min(LEAST, TOO_LONG * wanted))
        return min(whole, int(wanted) // 8 * 8 or int(wanted)), one

    def _best_batch(self, frames: int, one: float, size: Size) -> int | None:
        """Return the batch that stock is fastest with; None: that of a new project."""
        # Not one frame: a top-down model loses the only one of a film.
        film = self._film(min(frames, max(8, round(0.12 * self.seconds / one))))
        tried = {None: min(self._stock(film)[0] for _ in range(2))}
        for batch in BATCHES:
            if batch * size[0] * size[1] > BATCH_PIXELS or batch > frames:
                continue
            tried[batch] = self._stock(film, batch)[0]
            if batch > 8 and tried[batch] > 1.15 * min(tried.values()):
                break
        best = min(tried, key=lambda batch: tried[batch])
        return best if tried[best] < 0.97 * tried[None] else None

    def _film(self, frames: int) -> Path:
        path = self.folder / f"{frames}.mp4"
        return path if path.exists() else cut_film(self.film, frames, path)

    def _out(self) -> Path:
        self._number += 1
        out = self.folder / f"out{self._number}"
        out.mkdir()
        return out

    def _stock(self, film: Path, batch: int | None = None) -> tuple[float, Path]:
        out = self._out()
        answer = self.stock(
            config=str(self.project / "config.yaml"), film=str(film), out=str(out),
            constant=False, batch=batch,
        )  # fmt: skip
        return answer["seconds"], out / "found.npz"

    def _ours(self, film: Path) -> tuple[float, dict[str, Any], Path]:
        out = self._out()
        answer = self.ours(
            model=str(self.project), film=str(film), out=str(out), precision="auto", constant=False
        )
        return answer["seconds"], answer["details"], out / "predictions.npz"


def compared(stock: Path, ours: Path, pcutoff: float) -> dict[str, Any]:
    """Compare what both found.

    Returns:
        ``over``: the share of keypoints over pcutoff; ``far``: the share of these that are more
        than half a pixel apart, or under it with posedrop by more than a hundredth; ``largest``:
        the largest distance in pixels; ``frames_unlike``: the share of frames with other animals,
        or with an animal put together of other keypoints.
    """
    from worker.poses import predictions

    theirs = np.load(stock)["bodyparts"][..., :3]
    found = predictions.read(ours)
    mine = found.values["bodyparts"][found.decoded][..., :3]
    if len(theirs) != len(mine):  # stock's thread for decoding loses a frame now and then
        return {"lost": len(mine) - len(theirs)}
    animals = min(theirs.shape[1], mine.shape[1])
    theirs, mine = theirs[:, :animals], mine[:, :animals]
    over = theirs[..., 2] >= pcutoff
    away = np.linalg.norm(theirs[..., :2] - mine[..., :2], axis=-1)
    far = over & ((away > 0.5) | (mine[..., 2] < pcutoff - 0.01) | ~np.isfinite(away))
    there = np.nan_to_num(theirs[..., 2], nan=-1) > 0, np.nan_to_num(mine[..., 2], nan=-1) > 0
    other = (there[0] != there[1]) | (there[0] & there[1] & (away > 0.5))
    return {
        "over": float(over.mean()),
        "far": float(far.sum() / max(1, over.sum())),
        "largest": float(away[over & np.isfinite(away)].max(initial=0.0)),
        "frames_unlike": float(other.any(axis=(1, 2)).mean()),
    }


# -- the table ----


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Return cells as a table of Markdown; frames a second."""
    head = (
        "model", "frame", "frames", "stock", "at its best batch", "posedrop", "ratio", "of pairs",
        "chosen", "again", "over pcutoff", "moved", "largest",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, cell in cells.items():
        model, _, size = name.partition(" ")
        if "error" in cell:
            lines.append(f"| {model} | {size} | failed: {cell['error']} |" + " |" * (len(head) - 3))
            continue
        rates, details = cell["rates"], cell["details"]
        keypoints = cell["keypoints"]
        best = f"{rates['best']:.3g} ({cell['best_batch'] or 'as it comes'})"
        shares = (
            [f"{keypoints['over']:.0%}", f"{keypoints['far']:.2%}", f"{keypoints['largest']:.2g}"]
            if "over" in keypoints
            else ["stock lost a frame", "", ""]
        )
        if keypoints.get("frames_unlike") and model in several():
            shares[1] += f"; frames with other animals {keypoints['frames_unlike']:.1%}"
        lines.append(
            "| "
            + " | ".join(
                [
                    model, size, f"{cell['frames']}{' (short)' if cell['short'] else ''}",
                    f"{rates['stock']:.3g}", best, f"{rates['posedrop']:.3g}",
                    f"**{cell['median']:.2f}**", ", ".join(f"{one:.2f}" for one in cell["ratios"]),
                    chosen(details), again(details), *shares,
                ]
            )
            + " |"
        )  # fmt: skip
    return "\n".join(lines)


def several() -> set[str]:
    """Return the networks for more than one animal."""
    return {name for name, recipe in RECIPES.items() if recipe.animals > 1}


def chosen(details: dict[str, Any]) -> str:
    """Return in words what posedrop chose."""
    tuning, precision = details["tuning"] or {}, details["precision"] or {}
    words = [precision.get("used", "?"), tuning.get("convolutions", ""), details["batch_size"]]
    return " ".join(str(word) for word in words if word)


def again(details: dict[str, Any]) -> str:
    """Return the share of frames that was computed again."""
    share = (details["precision"] or {}).get("share_repeated")
    return "" if share is None else f"{share:.1%}"


def verdict(cells: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """Return in words which cells are slower, and whether none is."""
    good = [cell for cell in cells.values() if "error" not in cell]
    bad = [name for name, cell in cells.items() if "error" in cell or is_slower(cell)]
    if not good:
        return "nothing was measured", False
    mean = statistics.geometric_mean(cell["median"] for cell in good)
    words = f"geometric mean {mean:.2f} of {len(good)} cells, least "
    words += f"{min(cell['median'] for cell in good):.2f}"
    return words + (f"; slower or failed: {', '.join(bad)}" if bad else ""), not bad


def is_slower(cell: dict[str, Any]) -> bool:
    """Tell whether posedrop is slower than stock, by more than noise."""
    return bool(cell["median"] < NOISE or max(cell["ratios"]) < SLOWER)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--project", type=Path, help="a project's folder instead")
    parser.add_argument("--bodyparts", type=int, help="of the networks that are made")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"that they learn ({STEPS})")
    parser.add_argument("--sizes", default=",".join(SIZES), help="WIDTHxHEIGHT,...")
    parser.add_argument("--pairs", type=int, default=3, help="paired runs (3)")
    parser.add_argument("--seconds-a-run", type=float, default=12.0, help="of stock (12)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    given = parser.parse_args()
    names = [given.project.resolve().name] if given.project else given.models.split(",")
    if not given.project and (unknown := set(names) - set(RECIPES)):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    many = f"_{given.bodyparts}" if given.bodyparts else ""
    wanted = {
        f"{name}{many} {size}": (name, size) for name in names for size in given.sizes.split(",")
    }
    known: dict[str, dict[str, Any]] = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    missing = [cell for cell in wanted if given.fresh or "error" in known.get(cell, {"error": ""})]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides: list[Alive] = []
        for number, cell in enumerate([] if given.table else missing):
            name, size = wanted[cell]
            started = time.perf_counter()
            for side in sides if len(sides) < 2 or number % 5 == 0 else []:
                side.close()
            if len(sides) < 2 or number % 5 == 0:
                sides = [
                    Alive(function, BUILD / "grid.log")
                    for function in (stock_inference, our_inference)
                ]
            try:
                known[cell] = measured(given, name, size, folder / str(number), sides)
            except Exception as error:  # the next one may do
                known[cell] = {"error": f"{type(error).__name__}: {error}"[:300].replace("|", "/")}
                for side in sides:
                    side.close()
                sides = []
            known[cell]["minutes"] = round((time.perf_counter() - started) / 60, 1)
            known[cell]["commit"] = commit()
            OUT.write_text(json.dumps(known, indent=1))
            print(table({cell: known[cell]}).splitlines()[-1], flush=True)
        for side in sides:
            side.close()
    cells = {cell: known[cell] for cell in wanted if cell in known}
    words, good = verdict(cells)
    print(f"\n{table(cells)}\n\n{words}")
    sys.exit(0 if good else 1)


def measured(
    given: argparse.Namespace, name: str, size: str, folder: Path, sides: list[Alive]
) -> dict[str, Any]:
    """Measure a cell."""
    width, height = map(int, size.split("x"))
    if given.project:
        source, animals = given.project, animals_of(given.project)
    else:
        source, animals = made(name, FIRST, given.bodyparts, given.steps), RECIPES[name].animals
    folder.mkdir()
    project = folder / "project"  # stock writes into it
    shutil.copytree(source, project, copy_function=shutil.copyfile)
    for path in (project, *project.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    whole = min(MOST, PIXELS // (width * height))
    # A detector scales what it gets, and so does what cuts out its boxes.
    scaled = given.project or RECIPES[name].detector is not None
    film = (film_of if scaled else placed_film_of)((width, height), whole, animals)
    try:
        cell = Cell(folder, project, film, given.seconds_a_run, sides[0], sides[1])
        return cell.measure(given.pairs, (width, height))
    finally:
        shutil.rmtree(folder)


def animals_of(project: Path) -> int:
    """Return how many animals a project is for."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    return len(config["individuals"]) if config.get("multianimalproject") else 1


def commit() -> str:
    """Return what is measured."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip()


if __name__ == "__main__":
    main()
