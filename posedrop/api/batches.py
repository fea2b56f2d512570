"""Batches: one request for many videos, and how far it is."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from posedrop.api.answer import Answer, example
from posedrop.buckets.records.batches import BatchKind

#: Of a batch: films are still being asked for; all were, and runs go on; all of them are over.
BatchStatus = Literal["starting", "running", "over"]


class CancelRequest(BaseModel):
    """What POST /cancel is asked: stop the runs below a prefix, or those of a batch."""

    model_config = example(prefix="day1/")

    prefix: str | None = Field(
        default=None, max_length=1024, description="of the videos' keys; empty: all"
    )
    batch_id: str | None = Field(default=None, max_length=40)
    dry_run: bool = Field(default=False, description="say how many that is, and do nothing")


class RetryRequest(BaseModel):
    """What POST /retry is asked: make anew what failed below a prefix, or in a batch."""

    model_config = example(prefix="day1/", cancelled=True)

    prefix: str | None = Field(
        default=None, max_length=1024, description="of the videos' keys; empty: all"
    )
    batch_id: str | None = Field(default=None, max_length=40)
    cancelled: bool = Field(default=False, description="what was cancelled, too")
    dry_run: bool = Field(default=False, description="say how many that is, and do nothing")
    notify: list[str] | None = Field(
        default=None,
        max_length=20,
        description="aliases of the server that are told when it is done; null: POSEDROP_NOTIFY",
    )


class BatchStarted(Answer):
    """The id under which GET /batches answers; ``existed``: the same batch was asked for before."""

    batch_id: str
    existed: bool


class DryRunFilm(Answer):
    """One film of a dry run, and what would become of it."""

    file_id: str
    key: str
    outcome: Literal["run", "again", "exists", "not_ready", "refused", "unknown", "stop"]


class DryRun(Answer):
    """What a batch would do: how many films, by what would become of each."""

    films: int = Field(description="all that were looked at; the other counts add up to it")
    run: int = Field(default=0, description="have no such run yet")
    again: int = Field(default=0, description="their run failed or was cancelled: made anew")
    exists: int = Field(default=0, description="have it, or it goes on")
    not_ready: int = Field(default=0, description="run as soon as they were looked at")
    refused: int = 0
    unknown: int = Field(default=0, description="of file_ids: there is no such file")
    stop: int = Field(default=0, description="POST /cancel: runs that would be stopped")
    runs: int = Field(
        default=0, description="to be made: films of one content share one run; of those ready"
    )
    frames: int = Field(default=0, description="of those runs' films together")
    seconds: float | None = Field(
        default=None, description="that the runs take, one after the other; null: not known"
    )
    sample: list[DryRunFilm] = Field(default_factory=list, description="the first of them")
    more: bool = Field(default=False, description="there are more films than were looked at")


class Why(Answer):
    """A reason why films of a batch failed or were refused, and how many did."""

    code: str
    message: str = Field(description="of one of them")
    count: int
    keys: list[str] = Field(description="of some of the films")


class Batch(Answer):
    """A batch: what was asked for, and how far it is."""

    batch_id: str
    kind: BatchKind
    status: BatchStatus
    prefix: str | None = None
    of_batch: str | None = Field(default=None, description="the batch that it cancels or retries")
    analysis: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
    finished_at: datetime | None = None
    films: int = Field(description="that it has so far; the counts add up to it")
    counts: dict[str, int] = Field(
        description="films by their run's state: waiting, queued, running, succeeded, partial, "
        "failed, cancelled, refused, gone; of a batch that cancels: cancelled"
    )
    existed: int = Field(default=0, description="of the films, how many had the run before")
    why: list[Why] = Field(
        default_factory=list, description="the failed and refused ones failed; the commonest first"
    )
    line: str = Field(description="all that in one line")

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status == "over"


class BatchesPage(Answer):
    """A page of batches, the newest first; ``next`` is the cursor of the next one."""

    items: list[Batch]
    next: str | None
