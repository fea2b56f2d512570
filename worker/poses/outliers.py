"""Frames worth correcting: chosen by DeepLabCut's own functions, with the pixels of our decoder.

What is an outlier, ``extract_outlier_frames`` says; which of them look different,
``frameselectiontools``. Both are DeepLabCut's as they are. But they read a project, open the film
with a reader of their own, and have the system's shell look for its length. So they are called with
other hands: the table and a few settings in the place of the project, and our decoder.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from posedrop.analyses.outliers import OutlierArgs
from posedrop.errors import AnalysisError
from worker.child.messages import PickFrames
from worker.poses import table
from worker.poses.table import PoseTable
from worker.video import decode

#: Frames that are compared by what they look like, at most: of more, evenly spread ones.
MOST_COMPARED = 10_000
#: To how many pixels of width DeepLabCut scales a frame down before it compares it.
_WIDTH = 30
_SEED = 20

Rows = npt.NDArray[np.int64]


def pick(payload: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Choose frames of a film, and write their pixels.

    Args:
        payload: :class:`worker.child.messages.PickFrames` as JSON.
        report: tells the parent how many frames are done.

    Returns:
        :class:`worker.child.messages.PickOutput` as JSON.

    Raises:
        AnalysisError: codes ``damaged_poses``, ``no_such_bodypart``, ``no_outliers``: nothing can
            be chosen; the message says why, and what to ask for instead.
        RefusedVideoError: the film can't be read.
    """
    task = PickFrames.model_validate(payload)
    args = OutlierArgs.model_validate(task.args)
    poses = table.read(Path(task.poses))
    report("pick")
    rows, words = _candidates(poses, args)
    frames = np.unique(poses.frames[rows])
    if not len(frames):
        raise AnalysisError(_nothing(args, words), code="no_outliers")
    if len(frames) < args.n and args.by != "list":
        words.append(f"only {len(frames)} frames are outliers, fewer than the {args.n} asked for")
    chosen = frames
    if len(frames) > args.most:
        chosen = _spread(Path(task.video), frames, args, (task.width, task.height), report)
    kept = _write_pixels(Path(task.video), chosen, Path(task.pixels), report)
    if len(kept) < len(chosen):
        words.append(f"{len(chosen) - len(kept)} of the frames can't be decoded: left out")
    if not len(kept):
        raise AnalysisError("none of the frames can be decoded", code="no_outliers")
    return {
        "frames": kept.tolist(),
        "candidates": len(frames),
        "words": words,
        "versions": {name: version(name) for name in ("deeplabcut", "scikit-learn", "statsmodels")},
    }


def _nothing(args: OutlierArgs, words: list[str]) -> str:
    why = {
        "uncertain": f"no position has a likelihood below {args.p_bound}: raise p_bound, or ask by "
        "jump",
        "jump": f"no bodypart moves more than {args.epsilon} pixels from one frame to the next: "
        "lower epsilon, or ask by uncertain",
        "fitting": "no bodypart has more than 10 positions with a likelihood of at least "
        f"{args.p_bound}, too few for a fit: lower p_bound, or ask by uncertain",
        "list": "the run has none of the frames that were listed",
    }
    return "; ".join([why[args.by], *words])


# -- which frames are outliers ---------------------------------------------------------------------


def _candidates(poses: PoseTable, args: OutlierArgs) -> tuple[Rows, list[str]]:
    """Return the rows that are outliers, ascending, and words about what could not be."""
    unknown = sorted({*(args.bodyparts or [])} - {*poses.bodyparts})
    if unknown:
        words = f"the run has no bodypart {unknown[0][:60]!r}; it has: "
        words += ", ".join(poses.bodyparts)
        raise AnalysisError(words[:1000], code="no_such_bodypart")
    if args.frames is not None:
        rows = np.flatnonzero(np.isin(poses.frames, args.frames))
        lack = sorted({*args.frames} - {*poses.frames.tolist()})
        more = f" and {len(lack) - 5} more" if len(lack) > 5 else ""
        listed = ", ".join(map(str, lack[:5]))
        told = [f"the run has no poses of frame {listed}{more}: left out"] if lack else []
        return rows.astype(np.int64), told
    found = _ask_deeplabcut(poses, args) if len(poses.frames) else []
    return np.unique(np.asarray(found, np.int64)), []


def _ask_deeplabcut(poses: PoseTable, args: OutlierArgs) -> list[int]:
    """Return the rows that DeepLabCut's ``extract_outlier_frames`` would extract from.

    It is the same code; but the names that it looks up are ours where they read or write files.
    """
    os.environ.setdefault("DLClight", "True")
    from deeplabcut.refine_training_dataset import outlier_frames

    bodyparts = args.bodyparts or poses.bodyparts
    config = {"numframes2pick": args.n, "start": 0, "stop": 1, "video_sets": {}}
    config["TrainingFraction"] = [0.95]
    found: list[int] = []
    poor: list[int] = []

    def deviations(*given: Any, **more: Any) -> Any:
        # Of frames without a position there is no distance: DeepLabCut would sort them first.
        far, significant = outlier_frames.compute_deviations(*given, **more)
        poor.extend(np.flatnonzero(np.isnan(far)).tolist())
        return np.where(np.isnan(far), -1.0, far), significant

    hands = {
        "auxiliaryfunctions": SimpleNamespace(
            read_config=lambda _: config,
            intersection_of_body_parts_and_ones_given_by_user=lambda *_: bodyparts,
            get_scorer_name=lambda *_, **__: (poses.scorer, poses.scorer),
            load_analyzed_data=lambda *_, **__: (_as_deeplabcuts(poses), "", "", ""),
            load_video_metadata=lambda *_, **__: {},
        ),
        "auxfun_multianimal": SimpleNamespace(get_track_method=lambda *_, **__: ""),
        "collect_video_paths": lambda videos, **_: videos,
        "compute_deviations": deviations,
        "ExtractFramesbasedonPreselection": lambda rows, *_, **__: found.extend(map(int, rows)),
    }
    own = inspect.unwrap(outlier_frames.extract_outlier_frames)
    extract = FunctionType(
        own.__code__, {**vars(outlier_frames), **hands}, own.__name__, own.__defaults__
    )
    try:
        with np.errstate(all="ignore"):
            extract(
                config,
                ["film"],
                outlieralgorithm=args.by,
                comparisonbodyparts=bodyparts,
                epsilon=args.epsilon,
                p_bound=args.p_bound,
                ARdegree=args.arima_ar_degree,
                MAdegree=args.arima_ma_degree,
                automatic=True,
            )
    except (ValueError, np.linalg.LinAlgError, ArithmeticError) as error:
        if args.by != "fitting":
            raise
        words = f"the ARIMA model can't be fitted to these poses ({error}): lower its degrees, or "
        raise AnalysisError(f"{words}ask by jump"[:1000], code="no_outliers") from error
    return sorted({*found} - {*poor})


def _as_deeplabcuts(poses: PoseTable) -> pd.DataFrame:
    """Return the table as DeepLabCut has it, its rows counted from 0 whatever frames they are."""
    return as_frame(poses).reset_index(drop=True)


def as_frame(poses: PoseTable) -> pd.DataFrame:
    """Return the table as DeepLabCut has it; the index is the frame's number in the film."""
    animals, parts = np.nonzero(poses.tracked)
    levels = [[poses.scorer] * len(animals), [poses.individuals[each] for each in animals]]
    names = ["scorer", "individuals", "bodyparts", "coords"]
    levels.append([poses.bodyparts[each] for each in parts])
    if poses.individuals == [table.UNNAMED]:
        del levels[1], names[1]
    coords = ("x", "y", "likelihood")
    columns = pd.MultiIndex.from_arrays(
        [*(np.repeat(level, 3) for level in levels), np.tile(coords, len(animals))], names=names
    )
    values = poses.values[:, animals, parts].reshape(len(poses.frames), -1)
    return pd.DataFrame(values, index=poses.frames, columns=columns)


# -- which of them are chosen ----------------------------------------------------------------------


def _spread(
    film: Path,
    frames: Rows,
    args: OutlierArgs,
    size: tuple[int, int],
    report: Callable[..., None],
) -> Rows:
    """Return ``args.n`` of more frames: such as look different, or any, by DeepLabCut."""
    os.environ.setdefault("DLClight", "True")
    from deeplabcut.utils import frameselectiontools as tools

    if args.spread == "kmeans" and len(frames) > MOST_COMPARED:
        frames = frames[np.linspace(0, len(frames) - 1, MOST_COMPARED).round().astype(int)]
    with _Film(film, frames, size, report) as seen, _seeded():
        # DeepLabCut leaves out the first frame of its range: so theirs are counted from 1.
        numbers = frames + 1
        if args.spread == "kmeans":
            found = tools.KmeansbasedFrameselectioncv2(
                seen, args.n, 0, 1, numbers, resizewidth=seen.small_width
            )
        else:
            found = tools.UniformFramescv2(seen, args.n, 0, 1, numbers)
        left = np.setdiff1d(numbers, found)
        if lack := args.n - len(found):  # clusters without a frame
            found = [*found, *tools.UniformFramescv2(seen, lack, 0, 1, left)]
    return np.unique(np.asarray(found, np.int64)) - 1


@contextmanager
def _seeded() -> Iterator[None]:
    """Have NumPy draw the same numbers each time: the same request gives the same frames."""
    before = np.random.get_state()
    np.random.seed(_SEED)
    try:
        yield
    finally:
        np.random.set_state(before)


class _Film:
    """The frames of a film as DeepLabCut's reader would give them; decoded by ours, once."""

    def __init__(
        self, path: Path, frames: Rows, size: tuple[int, int], report: Callable[..., None]
    ) -> None:
        self.fps = 1.0
        self._last = int(frames[-1])
        self._order = iter(frames.tolist())
        self._report = report
        self._total, self._done = len(frames), 0
        self._shown = decode.frames(
            path, start=int(frames[0]), stop=self._last + 1, only={*frames.tolist()}
        )
        self._ahead = next(self._shown, None)
        height, width = self._ahead[1].shape[:2] if self._ahead is not None else size[::-1]
        self.dimensions = width, height

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def __len__(self) -> int:
        return self._last + 3

    @property
    def small_width(self) -> int:
        """To how many pixels of width a frame is scaled; one of height is left at least."""
        width, height = self.dimensions
        return min(width, max(_WIDTH, -(-width // height)))

    def set_to_frame(self, number: int) -> None:
        """Go to a frame: they are asked for in their order, so there is nothing to do."""

    def read_frame(self, *, crop: bool) -> npt.NDArray[np.uint8]:  # noqa: ARG002
        """Return the next frame of those that were given, black where it can't be decoded."""
        number = next(self._order)
        self._done += 1
        self._report("pick", self._done, self._total)
        if self._ahead is not None and self._ahead[0] == number:
            image: npt.NDArray[np.uint8] = self._ahead[1]
            self._ahead = next(self._shown, None)
            return image
        width, height = self.dimensions
        return np.zeros((height, width, 3), np.uint8)


def _write_pixels(film: Path, frames: Rows, out: Path, report: Callable[..., None]) -> Rows:
    """Write the frames' pixels; return the numbers of those that could be decoded."""
    if not len(frames):
        return frames
    wanted = {*frames.tolist()}
    shown = decode.frames(film, start=min(wanted), stop=max(wanted) + 1, only=wanted)
    kept: list[int] = []
    raw = out.with_suffix(".raw")
    shape: tuple[int, ...] = (0, 0, 3)
    with raw.open("wb") as file:
        for number, image in shown:
            file.write(image.tobytes())
            shape = image.shape
            kept.append(number)
            report("write", len(kept), len(wanted))
    with raw.open("rb") as file, out.open("wb") as target:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(kept), *shape)}
        np.lib.format.write_array_header_1_0(target, header)
        while chunk := file.read(1 << 20):
            target.write(chunk)
    raw.unlink()
    return np.asarray(kept, np.int64)
