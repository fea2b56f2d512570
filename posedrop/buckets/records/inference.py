"""What is handed from the step that finds poses to the one that draws them."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from posedrop.buckets.records.fields import Count, Details, Seconds
from posedrop.buckets.records.quality import Quality
from posedrop.buckets.records.record import Record, Versioned
from posedrop.buckets.records.runs import Artefact, FrameRange


class Inference(Versioned):
    """``inference.json``: what infer hands to render; poses.h5 stands beside it."""

    analysis_id: str
    frames_expected: Count
    frames_decoded: Count
    rows: Count
    missing: list[FrameRange] = Field(default_factory=list)
    timings: dict[str, Seconds] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    details: Details = Field(default_factory=dict, description="scorer, snapshot, device, ...")
    artefacts: list[Artefact] = Field(default_factory=list)
    analysis_version: str = Field(default="", description="of what found the poses")
    cut: bool = Field(default=False, description="the film's end is missing")
    concealed: Count = Field(default=0, description="frames that the decoder gave, flagged corrupt")
    timestamps: str | None = Field(default=None, description="where timestamps.csv has its times")
    quality: Quality | None = Field(default=None, description="null: it was not looked at")


def with_files_of(inference: Inference | None, left: Iterable[Artefact]) -> list[Artefact]:
    """Return the files of a run's poses, and those that its last attempt left, one of a name."""
    drawn_from = inference.artefacts if inference is not None else []
    found = {artefact.plain_name: artefact for artefact in (*drawn_from, *left)}
    return [found[name] for name in sorted(found)]


class Encoded(Record):
    """The encoder of pose.mp4: ``libx264`` or ``h264_nvenc``, and why that one."""

    used: str = Field(max_length=40)
    why: str = Field(max_length=500)
