"""``predictions.npz``: what a network found in each frame of a film, before anything is made of it.

Tables, filters, tracks and drawings are made of this file, now or again later, without the network.
docs/results.md says what is in it.

A child that a film has taken over may have written it, and what is made of it, HDF5 with pickles
in it by nature, is opened on scientists' machines. So what is read are arrays of numbers, of the
shapes that they have to have, and names: nothing else of the file reaches a table.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from pydantic import Field

from posedrop.buckets.records.fields import Details
from posedrop.buckets.records.record import Record
from posedrop.errors import AnalysisError
from worker.poses.checkpoint import Values, write_arrays

#: Raised when a reader of this number could misread the file; arrays may be added without.
FORMAT = 1
#: Those of the network, by DeepLabCut's names; a row a frame.
NETWORK = ("bodyparts", "unique_bodyparts", "identity_scores")
#: Arrays of a file, bytes of ``about``, and frames, beyond which something is wrong.
_MAX_ARRAYS, _MAX_ABOUT_BYTES, _MAX_FRAME = 64, 64 << 20, 2**53

Name = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
Names = Annotated[list[Name], Field(max_length=10_000)]


class MultiAnimalAbout(Record):
    """What tracking has to know of a model, as :class:`~worker.poses.animals.MultiAnimalConfig`."""

    scorer: Name
    bodyparts: Names
    unique_bodyparts: Names
    individuals: Names
    track_method: Name
    settings: dict[str, Any]
    named: Names = Field(default_factory=list, description="none: an older posedrop wrote it")


class Answer(Record):
    """What the analysis itself will answer; all of it is checked by who gets it."""

    timings: dict[Name, float]
    details: Details


class About(Record):
    """``about``: film, model, names and set-up."""

    video_sha256: Name | None
    model_digest: Name | None
    scorer: Name
    bodyparts: Annotated[Names, Field(min_length=1)]
    individuals: Names
    crop: dict[Literal["x1", "x2", "y1", "y2"], Annotated[int, Field(ge=0, lt=2**31)]] | None
    herd: MultiAnimalAbout | None
    answer: Details
    pcutoff: float | None = Field(
        default=None, ge=0, le=1, description="the model's own; null: not known"
    )
    dtypes: dict[str, Literal["float16", "float32", "float64"]]


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
    """JSON types: film, model, scorer, names, crop, set-up, and ``answer``, the analysis' own; of
    what was read, what :class:`About` has."""
    brightness: npt.NDArray[np.float32] | None = None
    """Mean and standard deviation of each whole frame's brightness, 0 to 255; (n, 2). None: an
    older posedrop made the file."""

    def seen(self) -> Values:
        """Return the values of the frames that there was a picture of."""
        if self.decoded.all():
            return self.values
        return {name: rows[self.decoded] for name, rows in self.values.items()}


def with_missing_rows(values: Values, rows: npt.NDArray[np.bool_]) -> Values:
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
        _check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            return _parsed(file)
    except MemoryError:
        raise
    except Exception as error:  # of NumPy, zipfile and what they parse by
        raise AnalysisError(
            f"predictions.npz can't be read ({str(error)[:500]}); ask with --force (API: "
            '"force": true), and the network finds the poses anew',
            code="damaged_predictions",
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive in which there is more than its file has bytes, before any is allocated."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MAX_ARRAYS or len({each.filename for each in members}) < len(members):
            raise ValueError("it has too many arrays, or two of one name")
        if any(each.compress_type != zipfile.ZIP_STORED for each in members):
            raise ValueError("it is compressed")
        if sum(each.file_size for each in members) > path.stat().st_size:
            raise ValueError("it has more in it than bytes")
        for each in members:
            with archive.open(each) as file:
                _check_array(file, each)


def _check_array(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = read[npy.read_magic(file)](file)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if dtype.kind not in "biuUf" or size != member.file_size - file.tell():
        raise ValueError(f"{ascii(member.filename)[:60]} is no array of numbers, or not whole")
    if member.filename == "about.npy" and (shape != () or size > _MAX_ABOUT_BYTES):
        raise ValueError("about is too long")


def _parsed(file: Any) -> Predictions:
    if int(file["format"]) != FORMAT:
        raise ValueError(f"its format is {int(file['format'])}, not {FORMAT}")
    about = About.model_validate_json(str(file["about"]))
    Answer.model_validate(about.answer)
    frames, seconds, decoded = file["frames"], file["seconds"], file["decoded"]
    values = {
        name: file[name].astype(about.dtypes[name], copy=False)
        for name in NETWORK
        if name in file.files
    }
    brightness = None
    if "brightness_mean" in file.files:
        brightness = np.stack([file["brightness_mean"], file["brightness_std"]], axis=1)
    rows = {
        "frames": (frames, "i", 1),
        "seconds": (seconds, "f", 1),
        "decoded": (decoded, "b", 1),
        **{name: (value, "f", 4) for name, value in values.items()},
        **({} if brightness is None else {"brightness": (brightness, "f", 2)}),
    }
    for name, (value, kind, dimensions) in rows.items():
        if value.dtype.kind != kind or value.ndim != dimensions or len(value) != len(frames):
            raise ValueError(f"{name} is not an array of its kind, with a row for each frame")
    if np.any(np.diff(frames) <= 0) or np.any(frames < 0) or np.any(frames >= _MAX_FRAME):
        raise ValueError("its frames are not numbers that ascend")
    _, animals, bodyparts, numbers = values["bodyparts"].shape
    if (
        bodyparts != len(about.bodyparts)
        or animals < (1 if about.herd is not None else max(1, len(about.individuals)))
        or numbers < len(("x", "y", "likelihood"))
    ):
        raise ValueError("its bodyparts are not those that it names")
    return Predictions(
        frames.astype(np.int64), seconds, decoded, values, about.model_dump(), brightness
    )
