"""``predictions.npz``: what a network found in each frame of a film, before anything is made of it.

Tables, filters, tracks and drawings are made of this file, now or again later, without the network.
docs/results.md says what is in it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posedrop.errors import AnalysisError
from worker.parts import Values, write_arrays

#: Raised when a reader of this number could misread the file; arrays may be added without.
FORMAT = 1
#: Those of the network, by DeepLabCut's names; a row a frame.
NETWORK = ("bodyparts", "unique_bodyparts", "identity_scores")
#: What ``about`` has at least.
ABOUT = {"video_sha256", "model_digest", "scorer", "bodyparts", "individuals", "crop", "herd"}
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network found; every array has a row for each frame that was asked for."""

    frames: npt.NDArray[np.int64]
    """Frame numbers, counted from 0, ascending; (n,)."""
    seconds: npt.NDArray[np.float64]
    """When each is shown; the film's first frame at 0; (n,)."""
    decoded: npt.NDArray[np.bool_]
    """Whether there was a picture; where not, the values are NaN; (n,)."""
    values: Values
    """By the names of :data:`NETWORK`, each (n, ...): pixels of what the network was shown."""
    about: dict[str, Any]
    """JSON types: film, model, scorer, names, crop, set-up, and ``answer``, the analysis' own."""
    brightness: npt.NDArray[np.float32] | None = None
    """Mean and standard deviation of each whole frame's brightness, 0 to 255; (n, 2). None: an
    older posedrop made the file."""

    def seen(self) -> Values:
        """Return the values of the frames that there was a picture of."""
        if self.decoded.all():
            return self.values
        return {name: rows[self.decoded] for name, rows in self.values.items()}


def spread(values: Values, rows: npt.NDArray[np.bool_]) -> Values:
    """Return ``values`` with a row for each of ``rows``: the next one where True, else NaN."""
    if rows.all():
        return values
    whole = {}
    for name, value in values.items():
        whole[name] = np.full((len(rows), *value.shape[1:]), np.nan, value.dtype)
        whole[name][rows] = value
    return whole


def write(path: Path, predictions: Predictions) -> None:
    """Write predictions.npz, whole or not at all; doubles that are floats take a float's room."""
    dtypes = {name: str(value.dtype) for name, value in predictions.values.items()}
    about = {"format": FORMAT, **predictions.about, "dtypes": dtypes}
    arrays = {
        "format": np.array(FORMAT),
        "frames": predictions.frames.astype(np.int64),
        "seconds": predictions.seconds.astype(np.float64),
        "decoded": predictions.decoded,
        **{name: _small(value) for name, value in predictions.values.items()},
        **_brightnesses(predictions.brightness),
        "about": np.array(json.dumps(about)),
    }
    write_arrays(path, arrays)


def _brightnesses(values: npt.NDArray[np.float32] | None) -> Values:
    if values is None:
        return {}
    return {"brightness_mean": values[:, 0], "brightness_std": values[:, 1]}


def _small(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if value.dtype != np.float64:
        return value
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    return single if np.array_equal(single, value, equal_nan=True) else value


def read(path: Path) -> Predictions:
    """Read predictions.npz; the values have the types that they had when it was written.

    Raises:
        AnalysisError: code ``damaged_predictions``: it is no such file, or one of a newer posedrop.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _parsed(file)
    except _UNREADABLE as error:
        raise AnalysisError(
            f"predictions.npz can't be read ({error}); ask with --force (API: "
            '"force": true), and the network finds the poses anew',
            code="damaged_predictions",
        ) from error


def _parsed(file: Any) -> Predictions:
    if int(file["format"]) != FORMAT:
        raise ValueError(f"its format is {int(file['format'])}, not {FORMAT}")
    about = json.loads(str(file["about"]))
    if lacking := {*ABOUT, "answer", "dtypes"} - about.keys():
        raise ValueError(f"it does not say {', '.join(sorted(lacking))}")
    frames, seconds, decoded = file["frames"], file["seconds"], file["decoded"]
    values = {
        name: file[name].astype(about["dtypes"][name], copy=False)
        for name in NETWORK
        if name in file.files
    }
    brightness = None
    if "brightness_mean" in file.files:
        brightness = np.stack([file["brightness_mean"], file["brightness_std"]], axis=1)
    rows = (
        frames,
        seconds,
        decoded,
        *values.values(),
        *([] if brightness is None else [brightness]),
    )
    sizes = {len(each) for each in rows}
    if len(sizes) != 1 or "bodyparts" not in values:
        raise ValueError("it is not complete")
    return Predictions(frames, seconds, decoded.astype(bool), values, about, brightness)
