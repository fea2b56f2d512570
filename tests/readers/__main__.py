"""keypoint-MoSeq, VAME, SimBA and movement on what ``posedrop download DIR --flat`` leaves.

Three films of one folder are run, and their results are downloaded into one directory, which each
reader is given as it is. It has to find three recordings, by the films' names, with the numbers of
our tables. ``make readers`` prints a line for each, and the table of docs/results.md.

Each reader has an environment of its own below ``build/readers/``, made the first time: some
gigabytes, so this is no part of ``make test``. What is there already is not made again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tests.support.lab import Embedded
from tests.support.samples import REPOSITORY, free_box, sample

BUILD = REPOSITORY / "build" / "readers"
HERE = Path(__file__).parent
FRAMES = 12
FILMS = ("mouse1.mp4", "mouse2.mp4", "Mäuse 3.mov")
#: Recording -> bodypart -> x in each frame.
Found = dict[str, dict[str, list[float]]]


class Reader(NamedTuple):
    """A program that reads tables, and what its environment needs beside it."""

    name: str
    package: str
    called: str
    installed: tuple[tuple[str, ...], ...]
    """What is installed, each by a pip of its own: the last one has the last word."""


#: PyArrow and OpenCV are such as take this NumPy.
SIMBAS = (
    "numpy==1.26.4",
    "pandas==2.2.2",
    "scipy==1.13.0",
    "matplotlib==3.8.4",
    "opencv-python-headless==4.8.1.78",
    "setuptools<81",
    "h5py==3.11.0",
    "numba==0.63.1",
    "scikit-learn==1.4.2",
    "joblib==1.4.2",
    "shapely==2.0.2",
    "Pillow==10.3.0",
    "psutil",
    "pyarrow==15.0.2",
    "tabulate==0.9.0",
    "trafaret==2.1.1",
    "pyglet==2.0.10",
)
READERS = {
    "keypoint_moseq": Reader(
        "keypoint-MoSeq",
        "keypoint-moseq",
        'load_keypoints("DIR/*[0-9].h5", "deeplabcut")',
        (("keypoint-moseq==0.8.1",),),
    ),
    "vame": Reader(
        "VAME",
        "vame-py",
        'init_new_project(poses_estimations=glob("DIR/*[0-9].h5"), ...)',
        # It asks for a Matplotlib that no longer has what it imports (matplotlib.cm.get_cmap).
        (("vame-py==0.13.0",), ("matplotlib==3.8.4",)),
    ),
    "simba": Reader(
        "SimBA",
        "simba-uw-tf-dev",
        "import_dlc_csv(config, DIR)",
        # Its own list has versions that no Python of today takes, and a browser: what its importer
        # imports, as near to that list as can be had.
        (("--no-deps", "simba-uw-tf-dev==5.6.1"), SIMBAS),
    ),
    "movement": Reader(
        "movement",
        "movement",
        'load_poses.from_dlc_file("...h5")',
        (),  # it is posedrop's own
    ),
}


def _flat() -> Path:
    """Return the directory that ``download --flat`` has made of three films' results."""
    flat = BUILD / "flat"
    if flat.is_dir():
        return flat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = Embedded(folder / "data").start()
        try:
            mouse = sample(folder, FRAMES)
            lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
            asked = {"analysis": "deeplabcut_2d", "args": json.dumps({"model": "mouse"})}
            for number, film in enumerate(FILMS):
                body = mouse.film.read_bytes() + free_box(64, bytes([number]))
                lab.s3().put_object(
                    Bucket="videos", Key=f"readers/{film}", Body=body, Metadata=asked
                )
            for film in FILMS:
                over = lab.over(lab.run_of(lab.file(f"readers/{film}")["file_id"]))
                assert over["status"] == "succeeded", over
            lab.posedrop("download", "readers/", "--flat", str(folder / "flat"))
        finally:
            lab.stop()
        shutil.move(folder / "flat", flat)
    return flat


def _python(key: str, reader: Reader) -> Path:
    """Return the Python of a reader's environment, which is made if it is not there."""
    if not reader.installed:
        return Path(sys.executable)
    place = BUILD / key
    python, ready = place / "bin" / "python", place / ".ready"
    wanted = json.dumps(reader.installed)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"{reader.name}: installing it into {place.relative_to(REPOSITORY)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        for each in reader.installed:
            subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *each], check=True
            )
        ready.write_text(wanted)
    return python


def _read(key: str, python: Path, flat: Path) -> tuple[str, Found]:
    """Return a reader's version, and what it finds in a directory."""
    program = str(HERE / f"{key}_reads.py")
    with tempfile.TemporaryDirectory() as cwd:
        done = subprocess.run(
            [str(python), program, str(flat)],
            capture_output=True,
            text=True,
            cwd=cwd,
            # SimBA compiles for minutes what is not needed to read a table.
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
            timeout=600,
            check=True,
        )
    asked = f"from importlib.metadata import version; print(version({READERS[key].package!r}))"
    told = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True)
    return told.stdout.strip(), json.loads(done.stdout.splitlines()[-1])


def _tables(flat: Path) -> dict[str, list[Found]]:
    """Return, by each film's stem, x of our own tables of it: the plain and the filtered one."""
    found: dict[str, list[Found]] = {}
    for film in FILMS:
        stem = Path(film).stem
        for path in flat.glob(f"{stem}DLC*.h5"):
            table = pd.read_hdf(path)
            table.columns = table.columns.droplevel("scorer")
            x = {part: table[part, "x"].tolist() for part, coord in table if coord == "x"}
            found.setdefault(stem, []).append(x)
    return found


def _fault(found: Found, tables: dict[str, list[Found]]) -> str | None:
    """Return in words what is not as it has to be; None: all of it is."""
    stems = [stem for stem in tables for name in found if name.startswith(stem)]
    if len(found) != len(FILMS) or sorted(stems) != sorted(tables):
        return f"found {sorted(found)}"
    for stem, ours in tables.items():
        (theirs,) = (read for name, read in found.items() if name.startswith(stem))
        if not any(_is_same(theirs, table) for table in ours):
            return f"other numbers, bodyparts or frames in {stem}"
    return None


def _is_same(read: dict[str, list[float]], table: dict[str, list[float]]) -> bool:
    return list(read) == list(table) and all(
        len(read[part]) == len(table[part]) and all(map(_is_close, read[part], table[part]))
        for part in table
    )


def _is_close(one: float, other: float) -> bool:
    # The numbers of the CSV are as exact as float32 is.
    return math.isclose(one, other, rel_tol=1e-6)


def main() -> None:
    """Print what each reader finds; the exit status is 1 if one does not find all of it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flat = _flat()
    tables = _tables(flat)
    rows = ["| reader | version | called | recordings have the names of the |", "|---|---|---|---|"]
    faults = 0
    for key, reader in READERS.items():
        try:
            told, found = _read(key, _python(key, reader), flat)
            fault = _fault(found, tables)
        except subprocess.CalledProcessError as error:
            told, found, fault = "?", {}, f"{error}\n{(error.stderr or '')[-2000:]}"
        faults += fault is not None
        parts = {part for read in found.values() for part in read}
        said = fault or f"{len(found)} recordings of {FRAMES} frames, {len(parts)} bodyparts"
        print(f"{reader.name} {told}: {said}", flush=True)
        if fault is None:
            named = "films" if set(found) == set(tables) else "tables"
            rows.append(f"| {reader.name} | {told} | `{reader.called}` | {named} |")
    print("", *rows, f"\nposedrop {version('posedrop')}", sep="\n")
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    main()
