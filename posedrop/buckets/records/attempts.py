"""Attempts: a worker's claim on a run, how far it is, and why it left the run to another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Count, Finite, Moment
from posedrop.buckets.records.record import Record, Versioned
from posedrop.buckets.records.runs import Artefact, RunError, Task

#: The code of an error that the store as a whole was to blame for: it took no word of it either.
STORE_AWAY = "store_away"
#: Codes of errors that come of no run: the store or the broker was away, or a record is for a newer
#: worker.
_OF_NO_RUN = frozenset({STORE_AWAY, "queue", "newer_record"})


class Progress(Record):
    """How far a run is."""

    stage: str = Field(description="fetch, wait (for the network), load, infer, render...")
    done: Count = Field(default=0, description="frames")
    total: Count | None = Field(default=None, description="frames")
    frames_per_second: Finite | None = None


class Attempt(Versioned):
    """``N.json``: the claim of one worker on one run or ingest, and its heartbeat."""

    number: Count
    task: Task
    worker: str
    started_at: Moment
    ended_at: Moment | None = Field(default=None, description="null: not known")
    beat: Count = Field(default=0, description="how often this worker has said that it lives")
    progress: Progress
    outcome: Literal["done", "handed_back", "failed"] | None = Field(
        default=None, description="null: at work, or dead if its heartbeat has stopped"
    )
    error: RunError | None = None
    sha256: str | None = Field(default=None, description="of an ingest: what was downloaded")
    sha1: str | None = None
    artefacts: list[Artefact] = Field(
        default_factory=list,
        description="what it has published: a run that fails lists it",
    )
    kept: Count = Field(default=0, description="checkpoints that it has put into the bucket")
    log_tail: str | None = Field(
        default=None, max_length=8000, description="the end of run.log, as it is now"
    )

    @property
    def was_of_use(self) -> bool:
        """Whether its worker died (unless it works) and left what the next one goes on with."""
        return self.outcome is None and self.kept > 0

    @property
    def is_unlucky(self) -> bool:
        """Whether the machine or the store cut the attempt short, and may do so again.

        The store did not give or take its files, the disk had no room for them, or no child process
        could be started. One that was given back for no error, by a worker that ends or gives way,
        is none.
        """
        if self.outcome != "handed_back" or self.error is None:
            return False
        # What the network found is at stake: that is not computed for ever, whatever is away.
        return self.progress.stage == "publish" or self.error.code not in _OF_NO_RUN


class NeedsNewer(Versioned):
    """``attempts/needs-newer.json``: a worker left a run to those that have a newer analysis."""

    worker: str
    analysis: str
    has: str = Field(description="the analysis version that this worker has")
    needs: str = Field(description="the one that was asked for")


class NeedsNetwork(Versioned):
    """``attempts/needs-network.json``: no predictions are left that the run could be made of."""

    worker: str
    why: str = Field(max_length=1000)
