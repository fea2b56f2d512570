"""What stock DeepLabCut and posedrop make of the same film."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

#: Stock DeepLabCut and posedrop must agree to this in fp32, in pixels.
TOLERANCE = 0.01
BATCH = 8
#: Within the frames of the real mouse and of the made one.
CROP = {"x1": 32, "x2": 288, "y1": 24, "y2": 216}


class Stock(NamedTuple):
    """What DeepLabCut itself made of the same film with the same model."""

    config: Path
    film: Path
    out: Path
    scorer: str
    poses: pd.DataFrame


def copied(model: Path, target: Path) -> Path:
    shutil.copytree(model, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def analysed(film: Path, config: Path, out: Path, **options: Any) -> Stock:
    import deeplabcut

    scorer = deeplabcut.analyze_videos(
        str(config),
        [str(film)],
        batch_size=BATCH,
        device="cpu",
        destfolder=str(out),
        save_as_csv=True,
        # With its thread for decoding, stock loses a frame's result now and then.
        inference_cfg={"multithreading": {"enabled": False}},
        **options,
    )
    poses = pd.read_hdf(out / f"{film.stem}{scorer}.h5")
    assert isinstance(poses, pd.DataFrame)
    return Stock(config, film, out, scorer, poses)


class Ours(NamedTuple):
    """What posedrop made."""

    out: Path
    answer: dict[str, Any]
    poses: pd.DataFrame


def read(out: Path, answer: dict[str, Any]) -> Ours:
    poses = pd.read_hdf(out / "poses.h5")
    assert isinstance(poses, pd.DataFrame)
    return Ours(out, answer, poses)


def furthest(one: pd.DataFrame, two: pd.DataFrame) -> float:
    return float(np.abs(one.to_numpy() - two.to_numpy()).max())


def edit(path: Path, **values: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))
