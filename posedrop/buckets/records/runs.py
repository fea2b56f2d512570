"""What several records of a run share: its states, its error, its files."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from posedrop.buckets import names
from posedrop.buckets.records.fields import Count
from posedrop.buckets.records.record import Record

RunState = Literal["waiting", "queued", "running", "succeeded", "partial", "failed", "cancelled"]
FinalState = Literal["succeeded", "partial", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset(get_args(FinalState))
Task = Literal["ingest", "infer", "render", "derive"]


class RunRef(Record):
    """Another run, by its id and its folder of the results bucket."""

    analysis_id: str
    run: str


class RunError(Record):
    """Why a run failed, for a person and for a program."""

    code: str
    message: str
    stage: str | None = None
    field: str | None = None
    log_tail: str | None = None


class FrameRange(Record):
    """Frames ``first`` to ``last``, both included, counted from 0."""

    first: Count
    last: Count


class Artefact(Record):
    """One file of a result."""

    name: str
    size: Count = Field(description="bytes")
    sha256: str
    content_type: str
    place: str | None = Field(
        default=None,
        description="the object's name below the run's folder, where it is not ``name``: "
        "an earlier attempt, dead or late, has left something under that",
    )
    role: str | None = Field(
        default=None, max_length=40, description="what it is: poses, labelled_video, ..."
    )

    @property
    def plain_name(self) -> str:
        """The name by which posedrop itself knows it, such as ``poses.h5``."""
        return names.plain_name(self)

    @property
    def object_name(self) -> str:
        """The name of its object, below the run's folder."""
        return self.place or self.name
