"""Dead letters: messages that could not be followed."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field, StrictInt

from posedrop.api.answer import Answer, example


class DeadLetter(Answer):
    """A dead letter: what it said, the first 64,000 characters, and why it is one."""

    id: int
    received_at: datetime
    reason: str
    body: str


class DeadLettersPage(Answer):
    """A page of dead letters, the newest first; ``next`` is the cursor of the next one."""

    items: list[DeadLetter]
    next: int | None


class ReplayRequest(BaseModel):
    """Which dead letters are to be followed again."""

    model_config = example(ids=[17, 18])

    ids: list[StrictInt] | None = Field(
        default=None, max_length=10_000, description="null: all of them"
    )


class Replayed(Answer):
    """How many dead letters are followed again, and how many are kept, as they can't be read."""

    replayed: int
    kept: int
