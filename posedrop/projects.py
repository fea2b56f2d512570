"""A DeepLabCut 3 project on a disk: its shuffles, snapshots and configs. No torch.

A laboratory has all of it; a worker has what was pushed, laid out the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from posedrop.errors import ModelError

CONFIG = "config.yaml"
PYTORCH_CONFIG = "pytorch_config.yaml"
MODEL_FOLDERS = "dlc-models-pytorch"

_SHUFFLE = re.compile(r".*-trainset(?P<percent>\d+)shuffle(?P<shuffle>\d+)")
_SNAPSHOT = re.compile(r"snapshot(?P<best>-best)?-(?P<epochs>\d+)\.pt")
_DETECTOR = re.compile(r"snapshot-detector(?P<best>-best)?-(?P<epochs>\d+)\.pt")


def shuffle_folder(project: Path, config: Mapping[str, Any], shuffle: int | None) -> Path:
    """Return the folder of a trained shuffle; None: 1, or the only one there is.

    Raises:
        ModelError: there is none, or it is TensorFlow's; the message says what there is.
    """
    iteration = project / MODEL_FOLDERS / f"iteration-{config.get('iteration', 0)}"
    found: dict[int, list[tuple[int, Path]]] = {}
    for folder in sorted(iteration.iterdir()) if iteration.is_dir() else []:
        match = _SHUFFLE.fullmatch(folder.name)
        if match and (folder / "train" / PYTORCH_CONFIG).is_file():
            found.setdefault(int(match["shuffle"]), []).append((int(match["percent"]), folder))
    if not found:
        raise _no_pytorch_model(project, config, iteration)
    if shuffle is None:
        shuffle = next(iter(found)) if len(found) == 1 else 1
    if shuffle not in found:
        there = ", ".join(map(str, sorted(found)))
        raise ModelError(f"{project} has no shuffle {shuffle}; it has: {there}")
    # Like DeepLabCut's trainingsetindex=0: the first training fraction of the config counts.
    fractions = [int(100 * float(part)) for part in config.get("TrainingFraction") or []]
    return min(
        found[shuffle],
        key=lambda one: fractions.index(one[0]) if one[0] in fractions else len(fractions),
    )[1]


def _no_pytorch_model(project: Path, config: Mapping[str, Any], iteration: Path) -> ModelError:
    if config.get("engine") == "tensorflow" or (project / "dlc-models").is_dir():
        return ModelError(
            f"{project} was trained with DeepLabCut's TensorFlow engine; posedrop runs PyTorch "
            "models: train a shuffle with engine=deeplabcut.Engine.PYTORCH",
            code="tensorflow_model",
        )
    return ModelError(
        f"{project} has no trained shuffle: no {PYTORCH_CONFIG} below "
        f"{iteration.relative_to(project)}"
    )


def list_snapshots(train: Path, *, detector: bool = False) -> list[Path]:
    """Return a training folder's snapshots in DeepLabCut's order: by epochs, the best one last."""
    pattern = _DETECTOR if detector else _SNAPSHOT
    found = []
    for file in train.iterdir():
        if match := pattern.fullmatch(file.name):
            found.append((match["best"] is not None, int(match["epochs"]), file))
    return [file for _, _, file in sorted(found)]


def chosen_snapshots(train: Path, config: Mapping[str, Any], wanted: str | None) -> list[Path]:
    """Return the snapshots of a name, or of ``all``; None: the one of the config's snapshotindex.

    Raises:
        ModelError: there is none; the message says what there is.
    """
    there = list_snapshots(train)
    if not there:
        raise ModelError(f"there is no snapshot in {train}: train the model first")
    if wanted == "all":
        return there
    if wanted is None:
        return [_indexed(there, config.get("snapshotindex", -1), "snapshotindex")]
    named = [file for file in there if file.stem == wanted.removesuffix(".pt")]
    if not named:
        names = ", ".join(file.stem for file in there)
        raise ModelError(f"there is no snapshot {wanted!r} in {train}; there are: {names}")
    return named


def chosen_detector(train: Path, config: Mapping[str, Any]) -> Path:
    """Return the detector's snapshot that the config's detector_snapshotindex names.

    Raises:
        ModelError: there is none.
    """
    there = list_snapshots(train, detector=True)
    if not there:
        raise ModelError(f"a top-down model needs a detector, and {train} has no snapshot of one")
    return _indexed(there, config.get("detector_snapshotindex", -1), "detector_snapshotindex")


def _indexed(files: Sequence[Path], index: Any, what: str) -> Path:
    if index is None or index == "all":  # DeepLabCut analyses with the last one then
        index = -1
    try:
        return files[int(index)]
    except (IndexError, TypeError, ValueError) as error:
        names = ", ".join(file.stem for file in files)
        raise ModelError(
            f"the config's {what} is {index!r}, and there are only: {names}"
        ) from error


# -- configs -------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file of a model.

    Raises:
        ModelError: code ``model_damaged``: it is missing or not what it should be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"{path.name} can't be read: {error}", code="model_damaged") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is not a mapping", code="model_damaged")
    return content


def wiped_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pytorch_config.yaml without paths, and without what only training needs of them."""
    wiped = mapping(without_paths(config))
    for part in (wiped, mapping(wiped.get("detector"))):
        _clear(part, "resume_training_from", "logger")
        _clear(mapping(part.get("train_settings")), "weight_init")
    _clear(mapping(wiped.get("metadata")), "pose_config_path")
    return wiped


def _clear(part: dict[str, Any], *names: str) -> None:
    part.update({name: None for name in names if name in part})


def wiped_project_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.yaml without paths and without the names of the project's videos."""
    wiped = {name: value for name, value in config.items() if name != "video_sets_original"}
    return {**mapping(without_paths(wiped)), "project_path": ".", "video_sets": {}}


def without_paths(value: Any) -> Any:
    """Return ``value`` with ``.`` in place of every text that is an absolute path."""
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and (
        PurePosixPath(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value.startswith("~")
    ):
        return "."
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Return a part of a config; an empty one where it is none."""
    return value if isinstance(value, dict) else {}
