"""Requests: what to do with a video, now or once it is ingested."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.derived import ExportFormat
from posedrop.buckets.records.fields import Aliases, Json, Moment
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.record import Versioned
from posedrop.buckets.records.runs import RunRef
from posedrop.buckets.records.videos import Probe, VideoRef

#: Who asked for a run: a caller of the API, the film's metadata, its folder, the server's default.
AskedBy = Literal["api", "metadata", "folder", "default"]
#: Runs that a request names, whose predictions it may take.
MOST_EARLIER = 8


class Request(Versioned):
    """``request.json``: what to do with a video, complete, so that a worker needs nothing else."""

    analysis_id: str
    analysis: str
    analysis_version: str
    args: Json = Field(description="normalised: every argument, defaults filled in")
    video: VideoRef
    sha256: str
    probe: Probe
    model: ModelRef | None = None
    asked_by: AskedBy
    created_at: Moment
    force: str | None = Field(default=None, description="made unique by a run that was forced")
    shared: bool = Field(
        default=False,
        description="nobody asked for it here: the same content has it under another name",
    )
    retry_of: RunRef | None = Field(
        default=None, description="the run that failed or was cancelled, and is made anew by this"
    )
    exports: list[ExportFormat] = Field(
        default_factory=list, description="made as soon as the run is over"
    )
    batch: str | None = Field(default=None, description="the batch in which it was asked for")
    notify: Aliases = Field(default_factory=list, description="told when the run is over")
    earlier: list[RunRef] = Field(
        default_factory=list,
        max_length=MOST_EARLIER,
        description="runs of the same content whose predictions may be taken, the best first",
    )
    needs_network: bool = Field(
        default=True, description="false: one of those has them, or had when this was asked for"
    )
    poses_of: RunRef | None = Field(
        default=None, description="the run whose poses it is made of, as `args.run` says"
    )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height, in pixels, of what goes through the network."""
        crop = self.args.get("crop")
        told = crop if isinstance(crop, dict) else {}
        sides = [
            side for name in ("x1", "x2", "y1", "y2") if isinstance(side := told.get(name), int)
        ]
        if len(sides) == 4:
            x1, x2, y1, y2 = sides
            return x2 - x1, y2 - y1
        return self.probe.width, self.probe.height  # a plug-in's own kind of crop, or none


class PendingRequest(Versioned):
    """``asked/<id>.json``: an analysis asked for before its video was ingested."""

    pending_id: str
    file_id: str
    key: str
    analysis: str
    args: Json
    created_at: Moment
    force: str | None = None
    batch: str | None = None
    notify: Aliases = Field(default_factory=list)
