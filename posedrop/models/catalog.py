"""The models bucket: what a model is called there, and how models are listed and found by name.

A model is ``<name>/<digest>/`` with the files that inference needs and ``model.json``, written
last.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from posedrop.buckets.records.models import Model, ModelFile
from posedrop.buckets.storage import Storage
from posedrop.errors import BadRequestError, RecordError
from posedrop.models import zoo

MODEL_RECORD = "model.json"
#: What a model can be called.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")

_WANTED = re.compile(rf"(?P<name>{NAME.pattern})(@(?P<digest>[0-9a-f]{{6,64}}))?")
_RECORD_KEY = re.compile(rf"{NAME.pattern}/[0-9a-f]{{64}}/{re.escape(MODEL_RECORD)}")


def digest_of(files: Iterable[ModelFile]) -> str:
    """Return the hexadecimal SHA-256 over the sorted lines ``path NUL sha256``."""
    lines = sorted(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
