"""The posedrop.json of a folder, and why one can't be followed."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from posedrop.buckets.records.derived import EXPORTS, ExportFormat
from posedrop.buckets.records.fields import Aliases, Json, Moment
from posedrop.buckets.records.record import Versioned


class FolderRules(Versioned):
    """``posedrop.json`` in a folder of the videos bucket: what to do with the videos below it."""

    analysis: str | None = Field(default=None, description="null: nothing, stop looking further up")
    args: Json = Field(default_factory=dict)
    existing: bool = Field(
        default=True, description="also for videos that were there before and followed no rule"
    )
    exports: list[ExportFormat] = Field(
        default_factory=list,
        max_length=len(EXPORTS),
        description="formats in which the poses are to be had once a run is over",
    )
    notify: Aliases = Field(
        default_factory=list, description="aliases of the server, told when runs are over"
    )
    keep: bool | list[str] | None = Field(
        default=None,
        description="the videos below that posedrop never removes by itself: all of them, or those "
        "of these names; false: none, whatever the folders above say; null: as those say",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _keeps(cls, value: Any) -> Any:
        # As text, "no" or a file's name would be taken for something else than was meant.
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if value is None or isinstance(value, bool) or names:
            return value
        raise PydanticCustomError(
            "keep", 'it is true, false, or a list of names, like ["mouse3.mp4", "day2/"]'
        )

    @property
    def is_silent(self) -> bool:
        """Whether the rule names no analysis, only what is kept: the next rule up is followed."""
        return self.keep is not None and "analysis" not in self.model_fields_set


class WrongRule(Versioned):
    """``_posedrop/rules/<id>.json``: why videos wait; gone once the rule is mended or removed."""

    key: str = Field(description="of the posedrop.json, or the setting of the server's default")
    etag: str
    code: str
    message: str
    since: Moment
