"""Frames with their machine labels, packed as other tools take them for correction.

napari-deeplabcut takes the folder of a DeepLabCut project, SLEAP a package with embedded images,
others COCO's keypoints beside images. All is made of numbers: pixels, and a table of poses.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import sleap_io

from posedrop.analyses.outliers import COCO, LABELED_DATA, SLEAP_PACKAGE
from posedrop.buckets.layout import safe_filename
from posedrop.buckets.names import stem_of
from posedrop.errors import AnalysisError
from worker.child.messages import PackFrames
from worker.poses import formats, table
from worker.poses.outliers import as_frame
from worker.poses.table import PoseTable


@dataclass(frozen=True)
class _Packed:
    """What is packed: frames, their pixels and poses; and a folder for files on the way."""

    poses: PoseTable
    """Of the frames alone; NaN where there is none."""
    pixels: npt.NDArray[np.uint8]
    """RGB (frames, height, width, 3)."""
    task: PackFrames
    folder: Path

    @property
    def stem(self) -> str:
        """The film's name without its suffix, as DeepLabCut names a folder by it."""
        return safe_filename(stem_of(self.task.video))

    @property
    def length(self) -> int:
        """How many frames the film has, at least."""
        return max(self.task.film_frames, self.task.frames[-1] + 1)

    @property
    def images(self) -> list[str]:
        """The images' names, as DeepLabCut gives them: as many digits as the film's length has."""
        digits = int(np.ceil(np.log10(max(1, self.task.film_frames))))
        return [f"img{number:0{digits}d}.png" for number in self.task.frames]

    @property
    def paths(self) -> list[Path]:
        """The images' files, below :attr:`folder`."""
        return [self.folder / name for name in self.images]


def pack(payload: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Write the frames, with what a run has found in them, for three kinds of tools.

    Args:
        payload: :class:`worker.child.messages.PackFrames` as JSON.
        report: tells the parent how many frames are done.

    Returns:
        :class:`worker.child.messages.PackOutput` as JSON.

    Raises:
        AnalysisError: code ``damaged_poses``: the run's table can't be read; ``bad_answer``: the
            pixels are not those of the frames.
    """
    task = PackFrames.model_validate(payload)
    out = Path(task.out)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        poses = _of_frames(table.read(Path(task.poses)), task.frames)
        packed = _Packed(poses, _read_pixels(task), task, Path(folder))
        total = len(task.frames)
        for done, (path, image) in enumerate(zip(packed.paths, packed.pixels, strict=True), 1):
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            report("write", done, total)
        _write_labeled_data(packed, out / LABELED_DATA)
        labelled = _labels(packed)
        found = formats.coco(labelled, [f"images/{name}" for name in packed.images])
        files = zip((f"images/{name}" for name in packed.images), packed.paths, strict=True)
        _zip(out / COCO, [("annotations.json", json.dumps(found).encode()), *files])
        _write_package(packed, labelled, out / SLEAP_PACKAGE)
        report("write", total, total)
    return {"versions": {name: version(name) for name in ("pandas", "sleap-io", "tables")}}


def _of_frames(poses: PoseTable, frames: list[int]) -> PoseTable:
    """Return the rows of these frames."""
    rows = np.flatnonzero(np.isin(poses.frames, frames))
    if poses.frames[rows].tolist() != frames:
        raise AnalysisError("frames were picked that the run does not have", code="bad_answer")
    return replace(poses, frames=poses.frames[rows], values=poses.values[rows])


def _read_pixels(task: PackFrames) -> npt.NDArray[np.uint8]:
    """Return the pixels, which stay on the disk.

    Raises:
        AnalysisError: the child that has the film has left something else.
    """
    try:
        pixels: Any = np.load(task.pixels, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise AnalysisError(
            f"the pixels can't be read: {error}"[:500], code="bad_answer"
        ) from error
    is_good = getattr(pixels, "dtype", None) == np.uint8 and pixels.ndim == 4
    if not is_good or len(pixels) != len(task.frames) or pixels.shape[3] != 3:
        raise AnalysisError("the pixels are not those of the frames", code="bad_answer")
    return pixels  # type: ignore[no-any-return]


# -- DeepLabCut ------------------------------------------------------------------------------------


def _write_labeled_data(packed: _Packed, out: Path) -> None:
    """Write what DeepLabCut's ``extract_outlier_frames`` leaves in a project's ``labeled-data``."""
    below, iteration = f"labeled-data/{packed.stem}", packed.task.iteration
    labels = as_frame(packed.poses)
    labels.index = pd.MultiIndex.from_tuples(
        [("labeled-data", packed.stem, name) for name in packed.images]
    )
    path = packed.folder / "labels.h5"
    labels.to_hdf(path, key="df_with_missing", mode="w")
    _zip(
        out,
        [
            (f"{below}/machinelabels-iter{iteration}.h5", path),
            (f"{below}/machinelabels.csv", labels.to_csv().encode()),
            *((f"{below}/{image.name}", image) for image in packed.paths),
        ],
    )


def _zip(out: Path, files: Iterable[tuple[str, Path | bytes]]) -> None:
    """Write an archive; its entries tell no time, so the same content is the same file."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            if not name.endswith(".png"):  # those are packed already
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content if isinstance(content, bytes) else content.read_bytes())


# -- SLEAP -----------------------------------------------------------------------------------------


def _labels(packed: _Packed) -> Any:
    """Return sleap-io's labels of the frames, by their numbers in the film."""
    # A film as a list of images, of which those are read that are labelled. As three channels,
    # whatever the colours are: what comes back is what the decoder gave.
    images = dict(zip(packed.task.frames, map(str, packed.paths), strict=True))
    anything = str(packed.paths[0])
    listed = [images.get(number, anything) for number in range(packed.length)]
    video = sleap_io.Video.from_filename(listed, grayscale=False)
    edges = formats.edges_of(packed.task.skeleton, packed.poses.bodyparts)
    return formats.labels(packed.poses, edges, video, empty=True)


def _write_package(packed: _Packed, labelled: Any, out: Path) -> None:
    """Write labels with their images in it, and the film as what these come from.

    Written once, sleap-io would say that they come from the list of images.
    """
    task, (height, width) = packed.task, packed.pixels.shape[1:3]
    film = task.video.rpartition("/")[2]
    told = {
        "type": "MediaVideo",
        "shape": [packed.length, height, width, 3],
        "filename": film,
        "grayscale": False,
        "bgr": True,
        "dataset": "",
        "input_format": "",
        "fps": task.fps,
    }
    first = str(packed.folder / SLEAP_PACKAGE)
    labelled.save(first, embed=True, embed_inplace=True, verbose=False)
    labelled.video.source_video = sleap_io.Video(
        filename=film, open_backend=False, backend_metadata=told
    )
    with chdir(out.parent):  # else the package has this machine's path in it
        labelled.save(out.name, embed=None, verbose=False)
