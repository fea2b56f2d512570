"""How often fewer bits move a keypoint unnoticed: each frame of a film, computed both ways.

What ``auto`` would have done with films that begin at many places of it is worked out from that:
the noise that it would have known at each frame (worker/precision/guard.py), which frames it would
have computed again, and which of the others have a keypoint over pcutoff farther than half a pixel
from fp32's. Networks with heatmaps and one animal.

    python -m benchmarks.unnoticed PROJECT FILM               # as frames come
    python -m benchmarks.unnoticed PROJECT FILM --still 200   # first so often the same one
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from benchmarks.networks import be_a_worker

#: Frames of a simulated film, and how many begin in one film.
LENGTH, BEGINNINGS = 800, 75


class Frames(NamedTuple):
    """What is known of each frame of a film."""

    shown: npt.NDArray[np.bool_]
    """Which keypoints it shows over pcutoff; a row a frame."""
    noise: npt.NDArray[np.float64]
    """As the watch measures it."""
    moved: npt.NDArray[np.float64]
    """How far the keypoint over pcutoff that moved most is from fp32's, pixels."""
    fast: dict[str, Any]
    """The head's outputs in fewer bits, a row a frame."""


class Found(NamedTuple):
    """What came of one simulated film."""

    again: float
    """The share of frames that are computed again."""
    unnoticed: int
    """Frames with a keypoint that moved too far, and are not."""


def main() -> None:
    """Print a line for a film."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--frames", type=int, default=2000, help="of the film, at most (2000)")
    parser.add_argument("--batch", type=int, default=16, help="frames at once (16)")
    parser.add_argument(
        "--still", type=int, default=0, help="times that the first frame is repeated"
    )
    given = parser.parse_args()
    be_a_worker()
    watch, frames = computed(given.project, given.film, given.frames, given.batch)
    found = [
        simulated(watch, frames, places, given.batch)
        for places in beginnings(frames.shown.any(axis=1), given.still)
    ]
    far = (frames.moved > 0.5).sum()
    print(
        f"{given.project.name}, {given.film.name}: {len(frames.shown)} frames, of which "
        f"{frames.shown.any(axis=1).sum()} show a keypoint and {far} have one that moves by more "
        f"than 0.5 px ({frames.moved.max():.2f} at most). Of {len(found)} films "
        f"{sum(one.unnoticed > 0 for one in found)} have one unnoticed; "
        f"{np.mean([one.again for one in found]):.1%} of their frames are computed again."
    )


def computed(project: Path, film: Path, most: int, batch: int) -> tuple[Any, Frames]:
    """Compute a film's frames both ways; return the watch, and what is known of them."""
    import cv2
    import torch

    from worker.engine import network
    from worker.gpu.staging import normalised
    from worker.precision.heads import watches_of
    from worker.precision.variants import ModelVariants

    loaded = network.load(project, None, "cpu")
    model = loaded.pose.model
    [(name, watch)] = (watches_of(model, loaded.pcutoff) or {}).items()
    variants = ModelVariants(model, "cpu")
    fast, exact = variants.form("bf16", "direct"), variants.form("fp32", "direct")
    reader = cv2.VideoCapture(str(film))
    shown, noise, moved, kept = [], [], [], []
    with torch.inference_mode():
        while len(noise) < most:
            pictures = [read[1] for _ in range(batch) if (read := reader.read())[0]]
            if not pictures:
                break
            x = normalised(torch.from_numpy(np.stack(pictures)))
            true, quick = exact(x), fast(x)
            poses = [variants.exact.get_predictions(each)[name] for each in (true, quick)]
            shown += watch.shown(poses[0]).tolist()
            moved += watch.moved(*poses).tolist()
            for row in range(len(pictures)):
                one = (
                    {n: v[row : row + 1] for n, v in each[name].items()} for each in (true, quick)
                )
                noise.append(watch.noise(*one))
            kept.append(quick[name])
    outputs = {n: torch.cat([each[n] for each in kept]) for n in kept[0]}
    return watch, Frames(np.array(shown), np.array(noise), np.array(moved), outputs)


def beginnings(shown: npt.NDArray[np.bool_], still: int) -> Iterator[npt.NDArray[np.int_]]:
    """Yield the numbers of the frames of films that begin at many places."""
    for first in range(0, max(1, len(shown) - LENGTH // 2), max(1, len(shown) // BEGINNINGS)):
        if still and not shown[first]:
            continue
        rest = np.arange(first, min(len(shown), first + LENGTH))
        yield np.concatenate([np.full(still, first), rest])


def simulated(watch: Any, frames: Frames, places: npt.NDArray[np.int_], batch: int) -> Found:
    """Return what ``auto`` would have done with a film of these frames."""
    import torch

    from worker.precision import guard

    state = guard.PrecisionStats("bf16")
    shown, noise = frames.shown[places], frames.noise[places]
    some_shown = shown.any(axis=1)
    begin = 0
    while begin < len(places) and state.samples < guard.SAMPLES:  # whole batches, both ways
        rows = slice(begin, begin + batch)
        state.samples += int(some_shown[rows].sum())
        state.noise = max(state.noise, noise[rows][some_shown[rows]].max(initial=0))
        begin += batch
    for index in range(len(places)):
        first = state.meet("", index, shown[index].tolist())
        if index >= begin and (first or guard._is_checked(index)):
            state.learn(index, noise[index], first=first)
    rows = places[begin:]
    if not len(rows):
        return Found(0.0, 0)
    counts = [guard.SAFETY * state.noise_for(index) for index in range(begin, len(places))]
    some = {name: values[torch.from_numpy(rows)] for name, values in frames.fast.items()}
    unsure = watch.unsure(some, torch.tensor(counts), guard.MAX_SPREAD).numpy()
    unsure |= np.isin(np.arange(begin, len(places)), [at for at in state.met[""] if at is not None])
    far = frames.moved[rows] > guard.TOLERANCE
    return Found(float(unsure.sum() / len(places)), int((far & ~unsure).sum()))


if __name__ == "__main__":
    main()
