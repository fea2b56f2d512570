"""Worker processes that live: their jobs, and how fast they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.fields import Count, Moment, Pixels
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.record import Record, Versioned
from posedrop.buckets.records.runs import Task


class WorkerJob(Record):
    """The job that a worker is at."""

    task: Task
    key: str = Field(max_length=1024, description="of the video")
    run: str | None = Field(default=None, max_length=1024, description="null: an ingest")
    attempt: Count
    started_at: Moment
    progress: Progress


#: The steps of a run that take long: tables by any filter but arima, and those by arima.
Step = Literal["network", "tables", "arima", "drawing"]


class Speed(Record):
    """How fast a step of an analysis was on the last film of one size."""

    analysis: str = Field(max_length=100)
    model: ModelRef | None = None
    width: Pixels
    height: Pixels
    step: Step = "network"
    frames_per_second: float = Field(gt=0, allow_inf_nan=False)
    frames: Count = Field(description="of the film, or of what was left of it")
    measured_at: Moment


class WorkerRecord(Versioned):
    """``_posedrop/workers/<id>.json``: a worker process that lives, rewritten as its heartbeat.

    It goes when the worker ends; of one that was killed, after some minutes of silence.
    """

    worker_id: str = Field(max_length=40)
    name: str = Field(max_length=300, description="as the attempts name it: host and process")
    started_at: Moment
    beat: Count = Field(default=0, description="how often it was written")
    queues: list[str] = Field(max_length=10)
    device: str = Field(max_length=200, description="where its networks run, as far as it is known")
    jobs: list[WorkerJob] = Field(default_factory=list, max_length=1000)
    speeds: list[Speed] = Field(default_factory=list, max_length=64, description="newest last")
    versions: dict[str, str] = Field(default_factory=dict, max_length=100)
    log_tail: str = Field(default="", max_length=8000, description="its last lines")
