"""Batches: one request for many films, which films it has, how it ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Aliases, Count, Json, Moment
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.record import Record, Versioned
from posedrop.buckets.records.runs import RunError

#: Which a batch does with each film, or run.
BatchKind = Literal["analyse", "cancel", "retry"]
#: So many films stand in one record of a batch.
BATCH_FILMS = 100


class BatchRequest(Versioned):
    """``_posedrop/batches/<id>/batch.json``: what is to be done with many films; created once."""

    batch_id: str = Field(max_length=40)
    kind: BatchKind
    prefix: str | None = Field(default=None, max_length=1024, description="of the films' keys")
    file_ids: list[str] = Field(default_factory=list, max_length=10_000)
    of_batch: str | None = Field(default=None, max_length=40, description="to cancel, to retry")
    analysis: str | None = None
    args: Json = Field(default_factory=dict, description="normalised")
    model: ModelRef | None = Field(default=None, description="whatever is pushed meanwhile")
    force: bool = False
    token: str | None = Field(
        default=None, max_length=40, description="of forced runs; null: the batch's id"
    )
    retry: bool = True
    cancelled: bool = Field(default=False, description="retry what was cancelled, too")
    notify: Aliases = Field(default_factory=list)
    films_until: Moment = Field(description="later films are none of its, by the store's clock")
    created_at: Moment

    @property
    def run_token(self) -> str | None:
        """What makes its runs others than those that are there; None: they may be the same."""
        return f"batch:{self.token or self.batch_id}" if self.force else None


class BatchFilm(Record):
    """One film of a batch, and what was begun with it."""

    file_id: str
    key: str
    run_id: str | None = Field(description="of the run, or of the pending request; null: see error")
    existed: bool = Field(default=False, description="the run was there before")
    error: RunError | None = None


class BatchFilms(Versioned):
    """``films/N.json`` of a batch: the next of its films; created once, one after the other."""

    films: list[BatchFilm] = Field(max_length=BATCH_FILMS)
    after: str | None = Field(description="where the next ones begin; null: these were the last")


class BatchWhy(Record):
    """A reason why films of a batch failed."""

    code: str
    message: str
    count: Count
    keys: list[str] = Field(max_length=10, description="of some of the films")


class BatchOver(Versioned):
    """``over.json`` of a batch: how it ended; created once, when the last of its runs was over."""

    films: Count
    counts: dict[str, Count] = Field(description="films by their run's state")
    existed: Count = 0
    why: list[BatchWhy] = Field(default_factory=list, max_length=20)
    finished_at: Moment
