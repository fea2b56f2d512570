"""The rule of a folder: its posedrop.json, as the API shows and changes it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from posedrop.api.answer import Answer, example


class WrongRule(Answer):
    """A rule that can't be followed: the videos below it wait until it is mended."""

    rule: str = Field(description="the key of the posedrop.json, or the setting's name")
    code: str
    message: str
    since: datetime


class FolderRule(Answer):
    """What the posedrop.json of one folder says, and which videos wait for one there."""

    rule: str = Field(description="its key in the videos bucket, whether or not it is there")
    etag: str | None = Field(description="null: there is none")
    analysis: str | None
    args: dict[str, Any]
    existing: bool
    problem: str | None = Field(description="why it can't be followed")
    waiting: int = Field(
        description="how many videos are there that followed no rule, and would follow this one"
    )
    more: bool = Field(description="true: they were not all counted")
    films: list[str] = Field(description="the first keys of them")


class FolderRuleRequest(BaseModel):
    """What PUT /rule is asked to say in a folder's posedrop.json; what else it says stays."""

    model_config = example(analysis="deeplabcut_2d", args={"model": "openfield"})

    analysis: str
    args: dict[str, Any] = Field(default_factory=dict)
    existing: bool = Field(
        default=True, description="also for videos that were there before and followed no rule"
    )
