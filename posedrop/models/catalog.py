"""The models bucket: models pushed, listed, found by name, and fetched into a worker's folder.

A model is ``<name>/<digest>/`` with the files that inference needs and ``model.json``, written
last.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from posedrop.buckets.records import Model, ModelFile, ModelRef
from posedrop.buckets.storage import Storage
from posedrop.errors import BadRequestError, ModelError, ObjectChangedError, RecordError
from posedrop.models import zoo
from posedrop.models.packing import NAME, digest_of, plan_push

MODEL_RECORD = "model.json"

_WANTED = re.compile(rf"(?P<name>{NAME.pattern})(@(?P<digest>[0-9a-f]{{6,64}}))?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORD_KEY = re.compile(rf"{NAME.pattern}/[0-9a-f]{{64}}/{re.escape(MODEL_RECORD)}")


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
    """Upload a model and return its record; the same one again is no work.

    What is a model, and what its arguments mean, says :func:`posedrop.models.packing.plan_push`.

    Args:
        on_file: called before each file goes up.

    Raises:
        BadRequestError, ModelError: like :func:`posedrop.models.packing.plan_push`.
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
        except RecordError as error:
            storage.report(error)
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
    if NAME.fullmatch(ref.name) is None or _DIGEST.fullmatch(ref.digest) is None:
        raise ModelError(f"{ref.name[:80]!r} can't be a model's name", code="model_missing")
    target = folder / ref.digest
    if _is_whole(target):
        return target
    prefix = f"{ref.name}/{ref.digest}"
    try:
        model = storage.read_record(bucket, f"{prefix}/{MODEL_RECORD}", Model)
    except RecordError as error:
        if error.code == "newer_record":
            raise ModelError(error.message, code=error.code) from error
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
