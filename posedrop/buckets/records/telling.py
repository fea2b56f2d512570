"""Notices that runs are over: to whom, and whether they were taken."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Alias, Count, Moment
from posedrop.buckets.records.record import Versioned


class Told(Versioned):
    """``_posedrop/told/<id>.json``: an alias is told of the end of a run, or of a batch.

    Created before the first try, and rewritten by the handlers alone, after each.
    """

    told_id: str = Field(max_length=40)
    alias: Alias
    event: Literal["run.over", "batch.over"]
    subject: str = Field(max_length=1024, description="analysis_id or batch_id")
    digest: str | None = Field(
        default=None, max_length=40, description="the notice that tells of several runs at once"
    )
    state: Literal["due", "sent", "given_up"] = "due"
    tries: Count = Field(default=0, description="that failed")
    error: str | None = Field(default=None, max_length=300, description="of the last try")
    changed_at: Moment


class Digest(Versioned):
    """``_posedrop/digests/<id>.json``: the runs of which one notice tells; created once."""

    digest_id: str = Field(max_length=40)
    alias: Alias
    runs: list[str] = Field(max_length=1000, description="their analysis_ids")
    created_at: Moment
