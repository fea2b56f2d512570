"""Conditional top-down models (DeepLabCut's BUCTD): the bottom-up shuffle that each begins with.

A conditional model (``net_type: ctd_...``) improves poses, its *conditions*, that a bottom-up model
of its project has found; its pytorch_config.yaml names that one in ``inference.conditions``. No
torch. The paths in there are a stranger's: none is followed that leads out of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from posedrop.errors import ModelError
from posedrop.models.projects import (
    CONFIG,
    MODEL_FOLDERS,
    PYTORCH_CONFIG,
    SHUFFLE,
    indexed_snapshot,
    iteration_folder,
    list_snapshots,
    mapping,
    read_yaml,
    shuffle_folder,
    stays_inside,
)

#: The code of what is wrong with a model's conditions.
CODE = "conditional_top_down"


class Conditions(NamedTuple):
    """The bottom-up model that finds a conditional model's conditions."""

    folder: Path
    """Of its shuffle."""
    snapshot: Path


def is_conditional(pytorch_config: Mapping[str, Any]) -> bool:
    """Tell whether a pytorch_config.yaml is a conditional top-down model's."""
    return _method(pytorch_config) == "ctd"


def find_conditions(project: Path, config: Mapping[str, Any], folder: Path) -> Conditions:
    """Return the bottom-up shuffle and snapshot that a conditional model's config names.

    Args:
        project: the folder of a DeepLabCut project, or of what was pushed of one.
        config: its config.yaml.
        folder: of the conditional model's shuffle, inside of ``project``.

    Raises:
        ModelError: code ``conditional_top_down``: it names none that could be used; the message
            says why, and what to set. ``model_damaged``: a config can't be read.
    """
    own = read_yaml(folder / "train" / PYTORCH_CONFIG)
    named = mapping(own.get("inference")).get("conditions")
    try:
        return _checked(project, _named(project, config, named), folder, own)
    except _UnusableError as error:
        number = SHUFFLE.fullmatch(folder.name)
        raise ModelError(
            f"{folder.name} is a conditional top-down model: it improves the poses that a "
            f"bottom-up shuffle of its project has found (inference.conditions in its "
            f"{PYTORCH_CONFIG}), and {error}. Name a trained bottom-up shuffle there "
            f"(`inference: {{conditions: {{shuffle: N}}}}`; here {_bottom_ups(project, config)}), "
            "then push the model again: `posedrop models push PROJECT --name NAME --shuffle "
            f"{number['shuffle'] if number else 'N'}` takes both shuffles",
            code=CODE,
        ) from error


def pushed_conditions(project: Path, conditions: Conditions) -> dict[str, str]:
    """Return what a pushed model's config names in place of what the laboratory's does.

    Both are paths inside of the model's folder, so that no number or index is to be looked up.
    """
    train = conditions.folder / "train"
    return {
        "source": "model",
        "config_path": (train / PYTORCH_CONFIG).relative_to(project).as_posix(),
        "snapshot_path": conditions.snapshot.relative_to(project).as_posix(),
    }


class _UnusableError(Exception):
    """Why conditions can't be used, as the second half of a sentence."""


def _checked(project: Path, found: Conditions, folder: Path, own: Mapping[str, Any]) -> Conditions:
    if found.folder == folder:
        raise _UnusableError("they are to come from itself")
    other = read_yaml(stays_inside(project, found.folder / "train" / PYTORCH_CONFIG))
    if _method(other) != "bu":
        kind = {"ctd": "conditional", "td": "top-down"}.get(_method(other), "other")
        raise _UnusableError(f"{found.folder.name} is a {kind} model, and no bottom-up one")
    needed, there = _bodyparts(own), _bodyparts(other)
    if needed != there:
        raise _UnusableError(
            f"{found.folder.name} finds {there} bodyparts, this one needs {needed}"
        )
    return found


def _named(project: Path, config: Mapping[str, Any], named: Any) -> Conditions:
    """Return what conditions name, in the forms of DeepLabCut's ``ConditionsConfig.build``."""
    if named is None or named in ("", {}):
        raise _UnusableError("none are named")
    if isinstance(named, str) or _is_of(named, "file", "filepath"):
        raise _UnusableError(
            "they are a file of predictions, which knows the labelled pictures but not your videos"
        )
    if _is_of(named, "shuffle", "shuffle"):
        return _by_shuffle(project, config, named)
    if _is_of(named, "model", "config_path", "snapshot_path"):
        return _by_path(project, config, named)
    raise _UnusableError(f"{str(named)[:100]!r} is none of the forms that DeepLabCut knows")


def _is_of(named: Any, source: str, *keys: str) -> bool:
    if not isinstance(named, dict):
        return False
    return named.get("source") == source or (
        named.get("source") is None and any(key in named for key in keys)
    )


def _by_shuffle(project: Path, config: Mapping[str, Any], named: dict[str, Any]) -> Conditions:
    if named.get("modelprefix"):
        raise _UnusableError("they have a modelprefix, whose models posedrop does not push")
    elsewhere = named.get("config")
    if elsewhere and _inside(project, config, elsewhere) != PurePosixPath(CONFIG):
        raise _UnusableError(f"they are of another project ({str(elsewhere)[:200]})")
    shuffle = _whole(named.get("shuffle"), "shuffle")
    part = _whole(named.get("trainset_index") or 0, "trainset_index")
    try:
        folder = shuffle_folder(project, config, shuffle, part)
    except ModelError as error:
        tensorflow = (project / "dlc-models").glob(f"iteration-*/*-trainset*shuffle{shuffle}")
        if any(tensorflow):
            raise _UnusableError(
                f"shuffle {shuffle} was trained with DeepLabCut's TensorFlow engine, and "
                "posedrop runs PyTorch models"
            ) from error
        raise _UnusableError(f"shuffle {shuffle} is not there") from error
    return Conditions(folder, _snapshot(folder, named.get("snapshot"), named.get("snapshot_index")))


def _by_path(project: Path, config: Mapping[str, Any], named: dict[str, Any]) -> Conditions:
    found = []
    for key in ("config_path", "snapshot_path"):
        path = _inside(project, config, named.get(key) or "")
        if path is None:
            raise _UnusableError(f"{key} leads out of the project ({str(named[key])[:200]})")
        found.append(path)
    parts, snapshot = found[0].parts, found[1]
    if (
        len(parts) != 5
        or (parts[0], *parts[3:]) != (MODEL_FOLDERS, "train", PYTORCH_CONFIG)
        or not (project / found[0]).is_file()
    ):
        raise _UnusableError(
            f"there is no {PYTORCH_CONFIG} of a shuffle at {str(found[0])[:200]!r}"
        )
    if snapshot.parent != found[0].parent:
        raise _UnusableError("config_path and snapshot_path are of two shuffles")
    folder = project.joinpath(*parts[:3])
    return Conditions(folder, _snapshot(folder, snapshot.name, None))


def _inside(project: Path, config: Mapping[str, Any], value: Any) -> PurePosixPath | None:
    """Return a path as one inside of the project, else None; nothing is looked at.

    An absolute one may begin with where the project is, or was: its config.yaml says so.
    """
    text = str(value).replace("\\", "/")
    for root in (project.absolute(), project.resolve(), config.get("project_path") or "."):
        whole = str(root).replace("\\", "/").rstrip("/")
        if whole and text.startswith(f"{whole}/"):
            text = text[len(whole) + 1 :]
            break
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).drive or ".." in path.parts or text[:1] == "~":
        return None
    return path


def _snapshot(folder: Path, name: Any, index: Any) -> Path:
    there = list_snapshots(folder / "train")
    if not there:
        raise _UnusableError(f"{folder.name} has no snapshot")
    if name is None:
        try:
            return indexed_snapshot(there, index, "snapshot_index")
        except ModelError as error:
            raise _UnusableError(f"of {folder.name}, {error}") from error
    for file in there:
        if str(name) in {file.name, file.stem}:
            return file
    names = ", ".join(file.stem for file in there)
    raise _UnusableError(f"{folder.name} has no snapshot {str(name)[:100]!r}, but {names}")


def _bottom_ups(project: Path, config: Mapping[str, Any]) -> str:
    there = []
    for path in sorted(iteration_folder(project, config).glob(f"*/train/{PYTORCH_CONFIG}")):
        match = SHUFFLE.fullmatch(path.parts[-3])
        with suppress(ModelError):  # a damaged one is none to name
            if match and _method(read_yaml(stays_inside(project, path))) == "bu":
                there.append(match["shuffle"])
    return f"is {', '.join(there)}" if there else "is none"


def _method(pytorch_config: Mapping[str, Any]) -> str:
    return str(pytorch_config.get("method", "bu")).lower()


def _bodyparts(pytorch_config: Mapping[str, Any]) -> int:
    names = mapping(pytorch_config.get("metadata")).get("bodyparts")
    return len(names) if isinstance(names, list) else 0


def _whole(value: Any, what: str) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    raise _UnusableError(f"their {what} is {str(value)[:50]!r}, and no whole number")
