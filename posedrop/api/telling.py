"""Who is told that runs are over."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from posedrop.api.answer import Answer, example


class NotifyAlias(Answer):
    """Who can be told that runs are over."""

    alias: str
    kind: Literal["webhook", "message"] = Field(
        description="webhook: a program, told of each run; message: people, by mail or chat"
    )
    given_up: int = Field(description="notices that could not be sent")


class NotifyProblem(Answer):
    """Why somebody will not be told, found before there is anything to tell."""

    alias: str
    rule: str | None = Field(description="the posedrop.json that names it; null: the setting")
    message: str


class NotifyChecked(Answer):
    """What is wrong with the aliases, and with the rules that name some."""

    items: list[NotifyProblem]
    aliases: int
    rules: int = Field(description="that were looked at; at most 1,000")


class NotifyRequest(BaseModel):
    """What POST /notify/test and /notify/again are asked."""

    model_config = example(alias="lab")

    alias: str = Field(max_length=40)


class NotifyTested(Answer):
    """Whether a notice was taken."""

    taken: bool
    error: str | None = None


class NotifyAgain(Answer):
    """How many notices that were given up are sent again."""

    due: int
