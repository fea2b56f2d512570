"""Files: what the index knows of the videos."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from posedrop.api.answer import Answer, Status, example
from posedrop.api.rules import WrongRule


def _as_dict(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


class Refusal(Answer):
    """Why a video will not be analysed."""

    reason: str
    message: str | None = None


class RunName(Answer):
    """A run, as a file lists it."""

    analysis_id: str
    analysis: str
    status: Status


class File(Answer):
    """A file, as the index knows it."""

    file_id: str
    bucket: str
    key: str
    filename: str
    state: str
    size: int | None
    etag: str | None
    sha256: str | None
    sha1: str | None
    probe: Annotated[dict[str, Any] | None, BeforeValidator(_as_dict)]
    duplicate_of: str | None
    refusal: Refusal | None
    waiting: WrongRule | None = Field(default=None, description="why nothing is run on it")
    planned: bool | None = Field(
        default=None,
        description="whether it is known what is run on it; false: a moment after it is ready",
    )
    created_at: datetime
    analyses: list[RunName] = Field(default_factory=list)


class FilesPage(Answer):
    """A page of files; ``next`` is the cursor of the next one."""

    items: list[File]
    next: str | None


class ReingestRequest(BaseModel):
    """What POST /reingest is asked."""

    model_config = example(prefix="day1/")

    prefix: str = Field(max_length=1024, description="of the videos' keys; empty: all refused ones")
    cursor: str | None = Field(default=None, description="`next` of the answer before")


class Reingested(Answer):
    """A video that is looked at anew."""

    file_id: str
    key: str


class ReingestedPage(Answer):
    """The refused videos that are looked at anew; ``next``: there are more."""

    items: list[Reingested]
    next: str | None
