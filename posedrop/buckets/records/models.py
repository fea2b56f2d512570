"""The record of a model: what it finds, and its files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Count, Finite, Moment
from posedrop.buckets.records.record import Record, Versioned


class ModelRef(Record):
    """A model, by name and by the digest of its files."""

    name: str
    digest: str


class ModelFile(Record):
    """One file of a model, by its path inside the model's folder."""

    path: str
    size: Count
    sha256: str


class Model(Versioned):
    """``models/<name>/<digest>/model.json``: written last, after the files that it lists."""

    name: str
    digest: str
    kind: Literal["project", "export", "zoo"]
    task: str = Field(description="the DeepLabCut project's Task")
    scorer: str
    bodyparts: list[str]
    individuals: list[str]
    skeleton: list[list[str]] = Field(default_factory=list)
    multianimal: bool
    net_type: str
    pcutoff: Finite
    snapshots: list[str]
    files: list[ModelFile]
    created_at: Moment
