"""Follow-ups: what is to be done, outside of the index, after an object came or went.

Data alone. handlers/events/follow.py does it, once for all events of a batch that ask for the same.
"""

from __future__ import annotations

from typing import NamedTuple

from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.storage import ObjectInfo
from posedrop.index.rows import AnalysisRow


class Ingest(NamedTuple):
    """Follow-up: have a video ingested."""

    file_id: str
    etag: str
    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one message."""
        return self.key, self.etag


class PlanRuns(NamedTuple):
    """Follow-up: plan the runs of a video, which is named by its folder in the results bucket."""

    prefix: str
    video: VideoRecord | None

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one planning."""
        return self.prefix, ""


class PlanAnew(NamedTuple):
    """Follow-up: plan a video that was put again as it is, with metadata that ask for a run."""

    file_id: str
    key: str
    found: ObjectInfo

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one planning."""
        return self.file_id, "anew"


class ForgetPlan(NamedTuple):
    """Follow-up of a video that is gone: if the same comes again, its rules are followed again."""

    file_id: str
    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one removal."""
        return self.file_id, "gone"


class CheckRule(NamedTuple):
    """Follow-up: look at a rule that has come, was replaced or is gone."""

    key: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one look."""
        return self.key, "rule"


class MoveRun(NamedTuple):
    """Follow-up: have a run made under another name of its content from now on.

    Its folder ``before`` is gone, or its film was.
    """

    row: AnalysisRow
    before: str

    @property
    def name(self) -> tuple[str, str]:
        """What two events have in common that need one message."""
        return self.row.run, "moved"


FollowUp = Ingest | PlanRuns | PlanAnew | ForgetPlan | CheckRule | MoveRun
