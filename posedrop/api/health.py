"""Whether the handlers do their work, and what a person is to see to."""

from __future__ import annotations

from typing import Literal

from posedrop.api.answer import Answer


class Notice(Answer):
    """Something that a person is to see to."""

    about: str
    message: str


class Ready(Answer):
    """Whether the handlers do their work: a part is ``ok``, or has the code of what is wrong."""

    status: Literal["ready", "not ready"]
    parts: dict[str, str]
