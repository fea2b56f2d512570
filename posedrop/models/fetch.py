"""A model of the models bucket, downloaded into a worker's folder and checked, file by file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath

from posedrop.buckets.records.models import Model, ModelFile, ModelRef
from posedrop.buckets.storage import Storage
from posedrop.errors import ModelError, ObjectChangedError, RecordError
from posedrop.hashing import sha256_of
from posedrop.models.catalog import DIGEST, MODEL_RECORD, NAME, digest_of


def fetch(storage: Storage, bucket: str, ref: ModelRef, folder: Path) -> Path:
    """Return ``folder/<digest>`` with the model's files, downloaded unless they are there whole.

    Raises:
        ModelError: code ``model_missing``, or ``model_damaged`` where a file is gone, has other
            content than its record says, or has a name that leads out of the folder.
        StorageError: the store did not answer.
    """
    if NAME.fullmatch(ref.name) is None or DIGEST.fullmatch(ref.digest) is None:
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
    for _ in range(2):  # once may be the network's fault
        try:
            hashes = storage.download(bucket, f"{prefix}/{file.path}", path)
        except ObjectChangedError as error:
            raise _damaged(ref, f"{file.path} is gone") from error
        if hashes["sha256"] == file.sha256:
            return
    raise _damaged(ref, f"{file.path} has other content than was pushed")


def _put_in_place(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if _is_whole(target):  # another worker of this machine was faster
            return
        shutil.rmtree(target, ignore_errors=True)
        if not target.is_dir():
            target.unlink(missing_ok=True)  # a file or a link of that name is nobody's
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
    if sha256_of(path) != file.sha256:
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
