"""The record of a video: which bytes it is, and what ingest found out about them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets import layout
from posedrop.buckets.records.fields import Count, Finite, Moment, Pixels, Seconds
from posedrop.buckets.records.record import Record, Versioned

#: ``film gone``: an S3 tool has removed the film, and its results are there.
FileState = Literal["expected", "received", "ready", "refused", "film gone"]
#: What video.json says of a video is looked at anew where an older ingest refused it; raised when
#: a later posedrop reads what an earlier one could not.
INGEST_VERSION = 2


class VideoRef(Record):
    """Which bytes: an object under its name, and the ETag that they had."""

    file_id: str
    bucket: str
    key: str
    etag: str
    size: Count = Field(description="bytes")


class Probe(Record):
    """What a video is, as decoded."""

    codec: str
    pixel_format: str
    width: Pixels = Field(description="pixels, as DeepLabCut sees the frame: after rotation")
    height: Pixels = Field(description="pixels, as DeepLabCut sees the frame: after rotation")
    fps: Finite = Field(description="average frames per second")
    frames: Count
    frames_counted: bool = Field(description="True: each was seen; False: the container says so")
    duration: Seconds
    rotation: int = Field(
        gt=-360, lt=360, description="degrees, clockwise, that the container asks for"
    )
    variable_frame_rate: bool
    browser: str | None = Field(
        default=None,
        max_length=100,
        description="the type as which browsers play it, each frame at its time (video/mp4), or "
        "why they can't; null: an older posedrop looked at it",
    )


class Refusal(Record):
    """Why a video will not be analysed; final, but for ``posedrop reingest``."""

    reason: str = Field(description="machine-readable: not_a_video, empty, truncated, ...")
    message: str


class Duplicate(Record):
    """The first file that had the same content."""

    file_id: str
    key: str


class VideoRecord(Versioned):
    """``video.json``: what ingest found out about a video."""

    video: VideoRef
    last_modified: Moment
    ingested_at: Moment
    ingest_version: Count = Field(default=1, description="of the posedrop that looked at it")
    sha256: str | None = None
    sha1: str | None = None
    probe: Probe | None = None
    duplicate_of: Duplicate | None = None
    refusal: Refusal | None = None
    metadata: dict[str, str] = Field(
        default_factory=dict, description="analysis and args asked for"
    )

    @property
    def has_its_id(self) -> bool:
        """Whether its file_id is its film's; else somebody has written over it: it says nothing."""
        return layout.may_be_id_of(self.video.file_id, self.video.bucket, self.video.key)
