"""The answer to every request that fails."""

from __future__ import annotations

from pydantic import Field

from posedrop.api.answer import Answer


class WrongField(Answer):
    """A part of the request that is wrong."""

    loc: list[str | int] = Field(description='where it stands, like ["args", "crop", "x1"]')
    message: str


class Problem(Answer):
    """What is wrong, for a program and for a person."""

    code: str
    message: str
    field: str | None = Field(default=None, description="the part of the request that is wrong")
    errors: list[WrongField] = Field(
        default_factory=list, description="all parts that are wrong, as far as they are known"
    )


class ErrorAnswer(Answer):
    """Every answer from 400 on."""

    error: Problem
