"""What the page of a run shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.api.answer import Answer
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.quality import Quality
from posedrop.buckets.records.runs import RunError


class ViewFile(Answer):
    """A file that the page of a run shows: where it is, or why there is none."""

    state: Literal["there", "making", "none"]
    url: str | None = Field(default=None, description="presigned")
    seconds: int | None = Field(default=None, description="how long the url is good")
    message: str | None = Field(default=None, description="why there is none, or none yet")
    progress: Progress | None = Field(default=None, description="of its making")
    is_copy: bool = Field(default=False, description="of a film that browsers don't play")


class View(Answer):
    """What the page of a run shows; docs/results.md has the format of the poses."""

    analysis_id: str
    file_id: str
    key: str | None
    analysis: str
    model: str | None
    status: str
    error: RunError | None
    film: ViewFile
    poses: ViewFile
    quality: Quality | None = None
