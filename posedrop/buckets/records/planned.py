"""What became of a video, or of a pending request: the rule it followed, the run it has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Moment
from posedrop.buckets.records.record import Record, Versioned
from posedrop.buckets.records.runs import RunError


class Followed(Record):
    """What decided about a video: ``none`` is open to the rule of a folder that comes later."""

    kind: Literal["metadata", "question", "folder", "default", "none"]
    key: str | None = Field(default=None, description="folder: of the posedrop.json")
    etag: str | None = Field(default=None, description="folder: of the posedrop.json, as it was")


class Planned(Versioned):
    """What a video with these bytes was planned for, so that no reindex plans it anew.

    ``_planned/<file_id>.json``: which rule was followed; written by the handlers alone, again when
    the video is replaced, or when a rule reaches it that followed none.
    ``asked/<id>.planned.json``: what became of a pending request, whatever replaces the
    video later; created once.
    """

    file_id: str
    key: str
    etag: str
    sha256: str | None = None
    rule: Followed | None = Field(
        default=None, description="null: not known, an older posedrop wrote this"
    )
    analysis_id: str | None = Field(default=None, description="null: nothing is to be run")
    error: RunError | None = Field(default=None, description="why a request can't become a run")
    shared: bool = Field(
        default=False,
        description="the runs that its content had under other names then were shared with it; "
        "false: an older posedrop wrote this",
    )
    planned_at: Moment

    @property
    def is_open(self) -> bool:
        """Whether the rule of a folder that comes later reaches this video."""
        return self.rule is not None and self.rule.kind == "none"
