"""Models: DeepLabCut's projects, exports and zoo -> the models bucket -> a worker's folder.

No torch. A model is ``<name>/<digest>/`` with the files that inference needs and ``model.json``,
written last. The digest is made of the files alone, so the same model pushed from two machines is
one: what a project says of the laboratory's own paths is wiped before.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import yaml

from posedrop import zoo
from posedrop.errors import BadRequestError, ModelError, ObjectChangedError, StorageError
from posedrop.records import Model, ModelFile, ModelRef
from posedrop.storage import Storage

MODEL_RECORD = "model.json"
CONFIG = "config.yaml"
PYTORCH_CONFIG = "pytorch_config.yaml"
MODEL_FOLDERS = "dlc-models-pytorch"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WANTED = re.compile(rf"(?P<name>{_NAME.pattern})(@(?P<digest>[0-9a-f]{{6,64}}))?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORD_KEY = re.compile(rf"{_NAME.pattern}/[0-9a-f]{{64}}/{re.escape(MODEL_RECORD)}")
_SHUFFLE = re.compile(r".*-trainset(?P<percent>\d+)shuffle(?P<shuffle>\d+)")
_SNAPSHOT = re.compile(r"snapshot(?P<best>-best)?-(?P<epochs>\d+)\.pt")
_DETECTOR = re.compile(r"snapshot-detector(?P<best>-best)?-(?P<epochs>\d+)\.pt")
_EXPORT = re.compile(r"DLC_(?P<task>.+)_iteration-\d+_shuffle-\d+_.*(?P<snapshot>snapshot-[^_]+)")
_CHUNK = 1 << 20

#: Where a file's bytes come from: the file itself, or a copy without the laboratory's paths.
Source = Path | bytes


# -- a model on somebody's disk --------------------------------------------------------------------


def plan_push(
    path: Path, name: str, *, shuffle: int | None = None, snapshot: str | None = None
) -> tuple[Model, list[tuple[Source, str]]]:
    """Find out what of a trained model inference needs; nothing is written.

    Args:
        path: a DeepLabCut 3 (PyTorch) project, its config.yaml, a ``.pt`` of
            ``deeplabcut.export_model``, or a folder with weights of DeepLabCut's model zoo.
        name: what it will be called: letters, digits, ``.``, ``_``, ``-``, at most 64.
        shuffle: None: 1, or the only one there is.
        snapshot: a snapshot's name (``snapshot-best-120``), or ``all``; None: the one that the
            config's ``snapshotindex`` names, the last (best) one if that says ``all``.

    Returns:
        The record to be written, and the files with their paths inside the model's folder.

    Raises:
        BadRequestError: the name can't be used (``field`` is ``name``).
        ModelError: there is no model that can be used; the message says what is missing.
    """
    if _NAME.fullmatch(name) is None:
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
    config = read_yaml(project / CONFIG)
    folder = _shuffle_folder(project, config, shuffle)
    pytorch_config = read_yaml(folder / "train" / PYTORCH_CONFIG)
    snapshots = _chosen_snapshots(folder / "train", config, snapshot)

    def inside(file: Path) -> str:
        return file.relative_to(project).as_posix()

    files: list[tuple[Source, str]] = [
        (_dumped(_wiped_project_config(config)), CONFIG),
        (
            _dumped(wiped_model_config(pytorch_config)),
            inside(folder / "train" / PYTORCH_CONFIG),
        ),
        *((file, inside(file)) for file in snapshots),
    ]
    if str(pytorch_config.get("method", "bu")).lower() == "td":
        detector = _chosen_detector(folder / "train", config)
        files.append((detector, inside(detector)))
    for part in ("pose_cfg.yaml", "inference_cfg.yaml"):  # the second for several animals
        if (folder / "test" / part).is_file():
            content = _dumped(_without_paths(read_yaml(folder / "test" / part)))
            files.append((content, inside(folder / "test" / part)))
    metadata = _mapping(pytorch_config.get("metadata"))
    model_files = _described(files)
    return (
        Model(
            name=name,
            digest=digest_of(model_files),
            kind="project",
            task=str(config.get("Task", "")),
            scorer=str(config.get("scorer", "")),
            bodyparts=_texts(metadata.get("bodyparts") or config.get("bodyparts")),
            individuals=_texts(metadata.get("individuals") or config.get("individuals")),
            skeleton=[_texts(bone) for bone in config.get("skeleton") or []],
            multianimal=bool(config.get("multianimalproject")),
            net_type=str(pytorch_config.get("net_type", "")),
            pcutoff=float(config.get("pcutoff", 0.6)),
            snapshots=[file.stem for file in snapshots],
            files=model_files,
            created_at=datetime.now(UTC),
        ),
        files,
    )


def _shuffle_folder(project: Path, config: Mapping[str, Any], shuffle: int | None) -> Path:
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


def _chosen_snapshots(train: Path, config: Mapping[str, Any], wanted: str | None) -> list[Path]:
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


def _chosen_detector(train: Path, config: Mapping[str, Any]) -> Path:
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


def _plan_export(path: Path, name: str) -> tuple[Model, list[tuple[Source, str]]]:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    content = _read_export(path)
    config = _mapping(content["config"])
    wiped = wiped_model_config(config)
    source: Source = path
    if wiped != config:
        buffer = io.BytesIO()
        importlib.import_module("torch").save({**content, "config": wiped}, buffer)
        source = buffer.getvalue()
    files: list[tuple[Source, str]] = [(source, re.sub(r"[^A-Za-z0-9._-]", "_", path.name))]
    model_files = _described(files)
    metadata = _mapping(config.get("metadata"))
    net_type = str(config.get("net_type", ""))
    match = _EXPORT.fullmatch(path.stem)
    evaluation = _mapping(_mapping(config.get("inference")).get("eval"))
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
            pcutoff=float(evaluation.get("pcutoff", 0.6)),
            snapshots=[match["snapshot"] if match else path.stem],
            files=model_files,
            created_at=datetime.now(UTC),
        ),
        files,
    )


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
    model_files = _described(files)
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


def _read_export(path: Path) -> dict[str, Any]:
    # By name, because the API imports this module and must need no torch.
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ModelError(
            f"torch is needed to look into {path.name}: pip install 'posedrop[worker]'",
            code="needs_torch",
        ) from error
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
    return content


def wiped_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pytorch_config.yaml without paths, and without what only training needs of them."""
    wiped = _mapping(_without_paths(config))
    for part in (wiped, _mapping(wiped.get("detector"))):
        _clear(part, "resume_training_from", "logger")
        _clear(_mapping(part.get("train_settings")), "weight_init")
    _clear(_mapping(wiped.get("metadata")), "pose_config_path")
    return wiped


def _clear(part: dict[str, Any], *names: str) -> None:
    part.update({name: None for name in names if name in part})


def _wiped_project_config(config: Mapping[str, Any]) -> dict[str, Any]:
    wiped = {name: value for name, value in config.items() if name != "video_sets_original"}
    return {**_mapping(_without_paths(wiped)), "project_path": ".", "video_sets": {}}


def _without_paths(value: Any) -> Any:
    """Return ``value`` with ``.`` in place of every text that is an absolute path."""
    if isinstance(value, Mapping):
        return {_without_paths(name): _without_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    if isinstance(value, str) and (
        PurePosixPath(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value.startswith("~")
    ):
        return "."
    return value


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


def _dumped(content: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True).encode()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


class _Hashed(NamedTuple):
    size: int
    sha256: str


def _hashed(source: Source) -> _Hashed:
    if isinstance(source, bytes):
        return _Hashed(len(source), hashlib.sha256(source).hexdigest())
    size, sha256 = 0, hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            sha256.update(chunk)
    return _Hashed(size, sha256.hexdigest())


def _described(files: Iterable[tuple[Source, str]]) -> list[ModelFile]:
    found = []
    for source, path in files:
        hashed = _hashed(source)
        found.append(ModelFile(path=path, size=hashed.size, sha256=hashed.sha256))
    return sorted(found, key=lambda file: file.path)


def digest_of(files: Iterable[ModelFile]) -> str:
    """Return the hexadecimal SHA-256 over the sorted lines ``path NUL sha256``."""
    lines = sorted(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# -- a model in the bucket -------------------------------------------------------------------------


def push(
    storage: Storage,
    bucket: str,
    path: Path,
    name: str,
    *,
    shuffle: int | None = None,
    snapshot: str | None = None,
    on_file: Callable[[ModelFile], None] | None = None,
) -> Model:
    """Upload a model (see :func:`plan_push`) and return its record; the same one again is no work.

    Args:
        on_file: called before each file goes up.

    Raises:
        BadRequestError, ModelError: like :func:`plan_push`.
        StorageError: the store did not take it.
    """
    model, files = plan_push(path, name, shuffle=shuffle, snapshot=snapshot)
    prefix = f"{model.name}/{model.digest}"
    existing = storage.read_record(bucket, f"{prefix}/{MODEL_RECORD}", Model)
    if existing is not None:
        return existing
    described = {file.path: file for file in model.files}
    for source, inside in files:
        if on_file is not None:
            on_file(described[inside])
        body = io.BytesIO(source) if isinstance(source, bytes) else source
        storage.upload(bucket, f"{prefix}/{inside}", body, "application/octet-stream")
    # Last, so that whoever sees the record can have the files; whoever else pushed the same one
    # at the same time wrote the same.
    storage.create(bucket, f"{prefix}/{MODEL_RECORD}", model.to_json())
    return model


def list_models(storage: Storage, bucket: str) -> list[Model]:
    """Return the models of the bucket, by name, the newest first; damaged records are left out."""
    return _listed(storage, bucket, "")


def _listed(storage: Storage, bucket: str, prefix: str) -> list[Model]:
    found = []
    for item in storage.objects(bucket, prefix):
        if _RECORD_KEY.fullmatch(item.key) is None:
            continue
        try:
            model = storage.read_record(bucket, item.key, Model)
        except StorageError as error:
            if error.code != "damaged_record":
                raise
            continue
        # What a record says of itself counts only where it stands.
        if model is not None and item.key == f"{model.name}/{model.digest}/{MODEL_RECORD}":
            found.append(model)
    return sorted(found, key=lambda model: (model.name, -model.created_at.timestamp()))


def resolve(storage: Storage, bucket: str, wanted: str) -> Model:
    """Return the newest model called ``name``, or the one of ``name@<start of its digest>``.

    Raises:
        BadRequestError: code ``no_such_model``, field ``args.model``; the message lists what there
            is. ``weights_missing``: it is of DeepLabCut's model zoo; the message says how to get
            it.
        StorageError: the store did not answer.
    """
    match = _WANTED.fullmatch(wanted)
    for model in _listed(storage, bucket, f"{match['name']}/") if match else []:
        if model.digest.startswith((match and match["digest"]) or ""):
            return model
    animal = zoo.ZOO.get(match["name"]) if match else None
    if animal is not None and match and not match["digest"]:
        files = f"e.g. {animal.file(animal.pose_models[0])}", animal.file(animal.detectors[0])
        raise BadRequestError(
            f"the models bucket has no weights of {animal.name}: {animal.how_to_get(files)}",
            code="weights_missing",
            field="args.model",
        )
    names = [f"{model.name}@{model.digest[:12]}" for model in list_models(storage, bucket)]
    there = ", ".join(names) if names else "none; push one with `posedrop models push`"
    raise BadRequestError(
        f"there is no model {wanted[:140]!r}; there are: {there}",
        code="no_such_model",
        field="args.model",
    )


# -- a model at a worker ---------------------------------------------------------------------------


def fetch(storage: Storage, bucket: str, ref: ModelRef, folder: Path) -> Path:
    """Return ``folder/<digest>`` with the model's files, downloaded unless they are there whole.

    Raises:
        ModelError: code ``model_missing``, or ``model_damaged`` where a file is gone, has other
            content than its record says, or has a name that leads out of the folder.
        StorageError: the store did not answer.
    """
    if _NAME.fullmatch(ref.name) is None or _DIGEST.fullmatch(ref.digest) is None:
        raise ModelError(f"{ref.name[:80]!r} can't be a model's name", code="model_missing")
    target = folder / ref.digest
    if _is_whole(target):
        return target
    prefix = f"{ref.name}/{ref.digest}"
    try:
        model = storage.read_record(bucket, f"{prefix}/{MODEL_RECORD}", Model)
    except StorageError as error:
        if error.code != "damaged_record":
            raise
        raise _damaged(ref, f"its {MODEL_RECORD} can't be read") from error
    if model is None:
        raise ModelError(
            f"model {ref.name}@{ref.digest[:12]} is no longer in {bucket}", code="model_missing"
        )
    if digest_of(model.files) != ref.digest or not all(_stays_inside(f.path) for f in model.files):
        raise _damaged(ref, f"its {MODEL_RECORD} is not the one that was pushed")
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        for file in model.files:
            _download(storage, bucket, prefix, file, partial, ref)
        (partial / MODEL_RECORD).write_bytes(model.to_json())
        _put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(
    storage: Storage, bucket: str, prefix: str, file: ModelFile, partial: Path, ref: ModelRef
) -> None:
    path = partial / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        hashes = storage.download(bucket, f"{prefix}/{file.path}", path)
    except ObjectChangedError as error:
        raise _damaged(ref, f"{file.path} is gone") from error
    if hashes["sha256"] != file.sha256:
        raise _damaged(ref, f"{file.path} has other content than was pushed")


def _put_in_place(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if _is_whole(target):  # another worker of this machine was faster
            return
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def _is_whole(folder: Path) -> bool:
    try:
        model = Model.model_validate_json((folder / MODEL_RECORD).read_bytes())
        return digest_of(model.files) == folder.name and all(
            _is_whole_file(folder / file.path, file) for file in model.files
        )
    except (OSError, ValueError):
        return False


#: Files that were found whole: when they were last changed, and which ones they are.
_whole: dict[Path, tuple[int, int]] = {}


def _is_whole_file(path: Path, file: ModelFile) -> bool:
    # Hashed once in the life of this process, and again when it was touched: all children of a
    # host can write here. A file's ctime is the kernel's, nobody else sets it.
    stat = path.stat()
    mark = (stat.st_ctime_ns, stat.st_ino)
    if _whole.get(path) == mark:
        return True
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
            return False
    _whole[path] = mark
    return True


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return (
        path.isprintable()
        and "\\" not in path
        and not pure.is_absolute()
        and pure.as_posix() == path
        and not {"..", "."} & set(pure.parts)
        and path not in {"", MODEL_RECORD}
    )


def _damaged(ref: ModelRef, why: str) -> ModelError:
    return ModelError(f"model {ref.name}@{ref.digest[:12]}: {why}", code="model_damaged")
