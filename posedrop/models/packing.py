"""What of a trained model is pushed: of a DeepLabCut project, an export, or weights of the zoo.

No torch, but to look into an export. The digest is made of the files alone, so the same model
pushed from two machines is one: what a project says of the laboratory's own paths is wiped before.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posedrop.buckets.records.models import Model, ModelFile
from posedrop.errors import BadRequestError, ModelError
from posedrop.hashing import sha256_of
from posedrop.models import zoo
from posedrop.models.catalog import NAME, digest_of
from posedrop.models.conditions import CODE, find_conditions, is_conditional, pushed_conditions
from posedrop.models.projects import (
    CONFIG,
    PYTORCH_CONFIG,
    check_parts,
    chosen_detector,
    chosen_snapshots,
    dumped,
    exported_pcutoff,
    many,
    mapping,
    number,
    read_yaml,
    shuffle_folder,
    stays_inside,
    what_is_set,
    wiped_model_config,
    wiped_project_config,
    without_paths,
)

_EXPORT = re.compile(r"DLC_(?P<task>.+)_iteration-\d+_shuffle-\d+_.*(?P<snapshot>snapshot-[^_]+)")

#: Where a file's bytes come from: the file itself, or a copy without the laboratory's paths.
Source = Path | bytes


def plan_push(
    path: Path, name: str, *, shuffle: int | None = None, snapshot: str | None = None
) -> tuple[Model, list[tuple[Source, str]]]:
    """Find out what of a trained model inference needs; nothing is written.

    Args:
        path: a DeepLabCut 3 (PyTorch) project, its config.yaml, a ``.pt`` of
            ``deeplabcut.export_model``, or a folder with weights of DeepLabCut's model zoo.
        name: what it will be called: letters, digits, ``.``, ``_``, ``-``, at most 64.
        shuffle: None: 1, or the only one there is. With a conditional top-down model goes the
            bottom-up shuffle that its config names.
        snapshot: a snapshot's name (``snapshot-best-120``), or ``all``; None: the one that the
            config's ``snapshotindex`` names, the last (best) one if that says ``all``.

    Returns:
        The record to be written, and the files with their paths inside the model's folder.

    Raises:
        BadRequestError: the name can't be used (``field`` is ``name``).
        ModelError: there is no model that can be used; the message says what is missing.
    """
    if NAME.fullmatch(name) is None:
        raise BadRequestError(
            f"{name[:80]!r} can't be a model's name: letters, digits, '.', '_' and '-', at most 64",
            code="bad_name",
            field="name",
        )
    if path.name == CONFIG:
        path = path.parent
    if path.suffix == ".pt":
        return _plan_export(path, name)
    if name in zoo.ZOO or (path.is_dir() and zoo.kind_of(path)):
        return _plan_zoo(path, name)
    return _plan_project(path, name, shuffle, snapshot)


def _plan_project(
    project: Path, name: str, shuffle: int | None, snapshot: str | None
) -> tuple[Model, list[tuple[Source, str]]]:
    if not (project / CONFIG).is_file():
        raise ModelError(f"{project} is no DeepLabCut project: there is no {CONFIG} in it")

    whole_config = read_yaml(stays_inside(project, project / CONFIG))
    config = what_is_set(whole_config)
    folder = shuffle_folder(project, config, shuffle)
    pytorch_config = read_yaml(stays_inside(project, folder / "train" / PYTORCH_CONFIG))
    snapshots = chosen_snapshots(folder / "train", config, snapshot)
    files = _project_files(project, whole_config, folder, pytorch_config, snapshots)
    metadata = mapping(pytorch_config.get("metadata"))
    model_files = _described(files, project)
    # Tracks are called as config.yaml has it, where it was edited since the training too.
    own, trained = many(config, "individuals"), metadata.get("individuals")
    several = bool(config.get("multianimalproject"))
    return (
        Model(
            name=name,
            digest=digest_of(model_files),
            kind="project",
            task=str(config.get("Task", "")),
            scorer=str(config.get("scorer", "")),
            bodyparts=_texts(metadata.get("bodyparts") or config.get("bodyparts")),
            individuals=_texts((own or trained) if several else (trained or own)),
            skeleton=[_texts(bone) for bone in many(config, "skeleton")],
            multianimal=several,
            net_type=str(pytorch_config.get("net_type", "")),
            pcutoff=number(config.get("pcutoff", 0.6), "pcutoff"),
            snapshots=[file.stem for file in snapshots],
            files=model_files,
            created_at=datetime.now(UTC),
        ),
        files,
    )


def _project_files(
    project: Path,
    whole_config: Mapping[str, Any],
    folder: Path,
    pytorch_config: dict[str, Any],
    snapshots: Sequence[Path],
) -> list[tuple[Source, str]]:
    """Return the files that inference needs of the shuffle in ``folder``, without paths."""

    def read(file: Path) -> dict[str, Any]:
        return read_yaml(stays_inside(project, file))

    def inside(file: Path) -> str:
        return file.relative_to(project).as_posix()

    wiped = wiped_model_config(pytorch_config)
    files: list[tuple[Source, str]] = [
        (_dumped(wiped_project_config(whole_config)), CONFIG),
        *((file, inside(file)) for file in snapshots),
    ]
    if is_conditional(pytorch_config):
        conditions = find_conditions(project, what_is_set(whole_config), folder)
        theirs = conditions.folder / "train" / PYTORCH_CONFIG
        files.append((_dumped(wiped_model_config(read(theirs))), inside(theirs)))
        files.append((conditions.snapshot, inside(conditions.snapshot)))
        named = {"conditions": pushed_conditions(project, conditions)}
        wiped["inference"] = {**mapping(wiped.get("inference")), **named}
    files.append((_dumped(wiped), inside(folder / "train" / PYTORCH_CONFIG)))
    if str(pytorch_config.get("method", "bu")).lower() == "td":
        detector = chosen_detector(folder / "train", what_is_set(whole_config))
        files.append((detector, inside(detector)))
    for part in ("pose_cfg.yaml", "inference_cfg.yaml"):  # the second for several animals
        if (folder / "test" / part).is_file():
            content = _dumped(without_paths(read(folder / "test" / part)))
            files.append((content, inside(folder / "test" / part)))
    return files


def _plan_export(path: Path, name: str) -> tuple[Model, list[tuple[Source, str]]]:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    content = _read_export(path)
    config = mapping(content["config"])
    if is_conditional(config):
        raise ModelError(
            f"{path.name} is of a conditional top-down model, and an export lacks the bottom-up "
            "model whose poses it improves: push the project, by which both go up",
            code=CODE,
        )
    source = _wiped_export(path, content)
    files: list[tuple[Source, str]] = [(source, re.sub(r"[^A-Za-z0-9._-]", "_", path.name))]
    # The one file that somebody names is followed where it leads.
    model_files = _described(files, path.resolve().parent)
    metadata = mapping(config.get("metadata"))
    net_type = str(config.get("net_type", ""))
    match = _EXPORT.fullmatch(path.stem)
    individuals = _texts(metadata.get("individuals"))
    return (
        Model(
            name=name,
            digest=digest_of(model_files),
            kind="export",
            task=match["task"].removesuffix(f"_{net_type}") if match else path.stem,
            scorer="",
            bodyparts=_texts(metadata.get("bodyparts")),
            individuals=individuals,
            multianimal=len(individuals) > 1,
            net_type=net_type,
            pcutoff=exported_pcutoff(config),
            snapshots=[match["snapshot"] if match else path.stem],
            files=model_files,
            created_at=datetime.now(UTC),
        ),
        files,
    )


def _wiped_export(path: Path, content: Mapping[str, Any]) -> Source:
    """Return an export without the laboratory's paths: the file itself where it has none."""
    config = mapping(content["config"])
    wiped = wiped_model_config(config)
    if wiped == config:
        return path
    buffer = io.BytesIO()
    _torch(path).save({**content, "config": wiped}, buffer)
    return buffer.getvalue()


def _torch(path: Path) -> Any:
    """Return the module torch, which nothing but an export needs; it takes seconds to import."""
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            f"torch is needed to look into {path.name}: pip install 'posedrop[worker]'",
            code="needs_torch",
        ) from error
    return torch


def _read_export(path: Path) -> dict[str, Any]:
    torch = _torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or hostile file
        first = str(error).partition("\n")[0][:300]
        raise ModelError(f"{path.name} can't be read as weights only: {first}") from error
    if not isinstance(content, dict) or not {"config", "pose"} <= content.keys():
        raise ModelError(
            f"{path.name} is no export of deeplabcut.export_model (a snapshot? then push the "
            "project that it belongs to)"
        )
    check_parts(content["config"], f"the config in {path.name}")
    return content


def _plan_zoo(folder: Path, name: str) -> tuple[Model, list[tuple[Source, str]]]:
    kind = zoo.kind_of(folder) if folder.is_dir() else None
    if kind != name:
        if name in zoo.ZOO:
            animal = zoo.ZOO[name]
            first = [animal.file(part[0]) for part in (animal.pose_models, animal.detectors)]
            raise ModelError(
                f"{folder} holds no weights of {name}, whose name is kept for them: "
                f"{animal.how_to_get(first)}"
            )
        raise BadRequestError(
            f"{folder} holds weights of {kind}: push them with --name {kind}, by which the "
            "analysis superanimal finds them",
            code="bad_name",
            field="name",
        )
    weights = zoo.weights_in(folder, name)
    files: list[tuple[Source, str]] = [(file, file.name) for file in weights]
    model_files = _described(files, folder)
    return (
        Model(
            name=name,
            digest=digest_of(model_files),
            kind="zoo",
            task=name,
            scorer="",
            bodyparts=[],
            individuals=[],
            multianimal=True,
            net_type="",
            pcutoff=0.1,  # DeepLabCut's own for these
            snapshots=[file.stem for file in weights],
            files=model_files,
            created_at=datetime.now(UTC),
        ),
        files,
    )


def _dumped(content: Mapping[str, Any]) -> bytes:
    return dumped(content).encode()


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


def _described(files: Iterable[tuple[Source, str]], root: Path) -> list[ModelFile]:
    found = []
    for source, path in files:
        if isinstance(source, Path):
            stays_inside(root, source)
            size, sha256 = source.stat().st_size, sha256_of(source)
        else:
            size, sha256 = len(source), hashlib.sha256(source).hexdigest()
        found.append(ModelFile(path=path, size=size, sha256=sha256))
    return sorted(found, key=lambda file: file.path)
