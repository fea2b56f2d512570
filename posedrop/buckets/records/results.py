"""The result of a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from posedrop.buckets.records.fields import Count, Details, Json, Moment, Seconds
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.quality import Quality
from posedrop.buckets.records.record import Versioned
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import Artefact, FinalState, FrameRange, RunError, RunRef
from posedrop.buckets.records.videos import VideoRef


class Result(Versioned):
    """``result.json``: written last; it exists if and only if the run is over."""

    analysis_id: str
    analysis: str
    state: FinalState
    video: VideoRef
    sha256: str | None = None
    args: Json
    model: ModelRef | None = None
    artefacts: list[Artefact] = Field(default_factory=list)
    frames_expected: Count | None = None
    frames_decoded: Count | None = None
    rows: Count | None = None
    missing: list[FrameRange] = Field(
        default_factory=list, description="frames that were lost: their rows are NaN"
    )
    cut: bool = Field(default=False, description="the film's end is missing, and has no rows")
    concealed: Count = Field(default=0, description="frames that the decoder gave, flagged corrupt")
    timestamps: str | None = Field(default=None, description="where timestamps.csv has its times")
    quality: Quality | None = Field(default=None, description="null: it was not looked at")
    timings: dict[str, Seconds] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    analysis_version: str = Field(default="", description="of what found the poses")
    details: Details = Field(default_factory=dict)
    attempts: Count = 0
    error: RunError | None = None
    retry_of: RunRef | None = Field(default=None, description="the run that this one was made for")
    created_at: Moment
    finished_at: Moment

    @classmethod
    def of(
        cls, request: Request, state: FinalState, *, finished_at: datetime, **more: Any
    ) -> Result:
        """Return the result of a run: what its request says, and ``more`` fields."""
        return cls(
            analysis_id=request.analysis_id,
            analysis=request.analysis,
            state=state,
            video=request.video,
            sha256=request.sha256,
            args=request.args,
            model=request.model,
            retry_of=request.retry_of,
            created_at=request.created_at,
            finished_at=finished_at,
            **more,
        )
