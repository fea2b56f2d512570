"""Checkpoints: what an interrupted inference had found, for the next attempt to go on from.

Each part holds the predictions of the frames since the part before it. The parent keeps them in the
run's folder of the results bucket while it lasts (``worker.jobs.checkpoints``).
"""

from __future__ import annotations

import json
import time
import zipfile
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posedrop.analyses import UNFINISHED

Values = dict[str, npt.NDArray[Any]]

#: Frames whose rows are stacked together.
CHUNK = 1024


class PredictionBuffer:
    """The predictions so far: frame numbers, ascending, and arrays with a row a frame."""

    def __init__(self) -> None:
        self.indexes = array("q")
        self._chunks: list[Values] = []
        self._open: dict[str, list[npt.NDArray[Any]]] = {}

    def add(self, number: int, prediction: dict[str, npt.NDArray[Any]]) -> None:
        """Append a frame's predictions."""
        self.indexes.append(number)
        for name, value in prediction.items():
            self._open.setdefault(name, []).append(value)
        if len(self.indexes) % CHUNK == 0:
            self._close()

    def arrays(self, first: int = 0) -> Values:
        """Return all from the ``first``-th frame on as arrays, the frame numbers as ``indexes``."""
        self._close()
        taken, before = [], 0
        for chunk in self._chunks:
            size = len(next(iter(chunk.values())))
            if before + size > first:
                taken.append({name: rows[max(0, first - before) :] for name, rows in chunk.items()})
            before += size
        names = taken[0] if taken else {}
        values = {name: np.concatenate([chunk[name] for chunk in taken]) for name in names}
        return {"indexes": np.array(self.indexes[first:], np.int64), **values}

    def extend(self, values: Values) -> None:
        """Append what :meth:`arrays` returned."""
        self._close()
        self.indexes.extend(values["indexes"].tolist())
        self._chunks.append({name: rows for name, rows in values.items() if name != "indexes"})

    def _close(self) -> None:
        # A row of its own for each frame would take ten times the memory of its numbers.
        if self._open:
            self._chunks.append({name: np.stack(rows) for name, rows in self._open.items()})
            self._open = {}


class Checkpoint:
    """The checkpoint of one run: parts in a folder; without a folder none is made."""

    def __init__(self, folder: Path | None, seconds: float) -> None:
        """Use ``folder``; a part is due after ``seconds`` of work."""
        self._folder = folder
        self._seconds = seconds
        self._number = 0
        """Of the last part there is, of use or not."""
        self._kept = 0
        self._since = time.monotonic()

    def load(self, setup: dict[str, Any]) -> tuple[PredictionBuffer, dict[str, Any] | None]:
        """Return what the parts hold that follow one another and were made with this setup.

        Those that are damaged, of another setup or of a worker that was taken for dead are passed
        over. None is ever replaced: what begins anew goes on behind the last one's number.

        Args:
            setup: JSON types; what was made with another one is of no use.

        Returns:
            The frames, and the ``state`` that the last part was kept with.
        """
        found, state = PredictionBuffer(), None
        for path in sorted(self._folder.glob("*.npz")) if self._folder is not None else ():
            self._number = int(path.stem)
            content = _read(path)
            if content is None:
                continue
            values, meta = content
            if meta["setup"] != setup or meta["after"] not in {0, len(found.indexes)}:
                continue
            if meta["after"] == 0:
                found = PredictionBuffer()
            found.extend(values)
            state = meta["state"]
        self._kept = len(found.indexes)
        return found, state

    def due(self, found: PredictionBuffer) -> bool:
        """Tell whether enough was worked since the last part to write one."""
        if self._folder is None or len(found.indexes) == self._kept:
            return False
        return time.monotonic() - self._since >= self._seconds

    def keep(self, found: PredictionBuffer, setup: dict[str, Any], state: dict[str, Any]) -> None:
        """Write a part: all frames since the last."""
        self._number += 1
        meta = {"setup": setup, "state": state, "after": self._kept}
        path = self._path(self._number)
        values = found.arrays(self._kept)
        write_arrays(path, {**values, "meta": np.array(json.dumps(meta))})
        self._kept = len(found.indexes)
        self._since = time.monotonic()

    def _path(self, number: int) -> Path:
        assert self._folder is not None  # noqa: S101  # the callers have looked
        return self._folder / f"{number:06}.npz"


def write_arrays(path: Path, values: Values) -> None:
    """Write arrays as ``.npz``, whole or not at all."""
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("wb") as file:
        np.savez(file, **values)  # type: ignore[arg-type]  # none is called allow_pickle
    unfinished.rename(path)


def _read(path: Path) -> tuple[Values, dict[str, Any]] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        meta = json.loads(str(values.pop("meta")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not {"setup", "state", "after"} <= meta.keys() or "indexes" not in values:
        return None
    return values, meta
