"""A trained model on a disk, uploaded into the models bucket."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from posedrop.buckets.records.models import Model, ModelFile
from posedrop.buckets.storage import Storage
from posedrop.models.catalog import MODEL_RECORD
from posedrop.models.packing import plan_push


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
