"""What is due to be removed by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from posedrop.api.answer import Answer, example

#: How many of what is due GET /expire lists.
DUE_SHOWN = 1000
#: Why something goes, and what of it: ``limit`` and ``age`` a film and all that was made of it,
#: ``space`` the film alone, ``results`` one run of a film that is gone, ``orphan`` all its results.
DueKind = Literal["limit", "age", "space", "results", "orphan"]


class Due(Answer):
    """Something that is to go, and why."""

    kind: DueKind = Field(
        description="age, limit: the film with its results; space: the film; results: one run; "
        "orphan: all results of a film that is gone"
    )
    id: str = Field(description="the file's, or the run's")
    key: str
    size: int = Field(description="bytes")
    why: str


class Expiry(Answer):
    """What would be removed by itself now."""

    due: int = Field(description="how many films and runs")
    size: int = Field(description="bytes")
    films: int = Field(description="how many films there are")
    kept: int = Field(description="how many would be due, and are pinned")
    held: bool = Field(
        description="true: that is more than POSEDROP_EXPIRE_SHARE, and a person has to say so"
    )
    items: list[Due] = Field(description=f"the first {DUE_SHOWN} of them")


class ExpireRequest(BaseModel):
    """What POST /expire is asked."""

    model_config = example(due=12)

    due: int = Field(
        strict=True, ge=0, lt=2**63, description="as GET /expire said: no more than so many go"
    )


class Expired(Answer):
    """What POST /expire did."""

    expired: int
    undeletable: int
