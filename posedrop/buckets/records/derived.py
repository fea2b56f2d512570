"""Files that are made of a run's poses on request: other formats, and what the run's page shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets import layout
from posedrop.buckets.records.fields import Count, Moment
from posedrop.buckets.records.record import Versioned
from posedrop.buckets.records.runs import Artefact, RunError

#: Formats in which a run's poses can be had, beside DeepLabCut's own.
ExportFormat = Literal["nwb", "slp", "nc", "parquet", "coco"]
#: The file of each format.
EXPORTS: dict[str, str] = {
    "nwb": "poses.nwb",
    "slp": "poses.slp",
    "nc": "poses.nc",
    "parquet": "poses.parquet",
    "coco": "coco.json",
}
#: What is made for the page of a run: its poses, and a copy of a film that browsers don't play.
VIEWS = {"viewer": "viewer.bin", "view": "view.mp4"}
#: All that is made of a run that is over, by what it is asked for as.
DERIVED = {**EXPORTS, **VIEWS}


def derived_name(what: str) -> str | None:
    """Return the name of the file that is made of a run's poses, None: nothing is called so."""
    return DERIVED.get(what) or (f"{what}.json" if layout.compared_with(what) else None)


#: Raised when what is made of poses changes, or what could not be made may be: it is tried again.
DERIVED_VERSION = 2


class DerivedRequest(Versioned):
    """``derived/<what>/asked.json``: somebody wants this made of the poses."""

    what: str = Field(max_length=40)
    asked_at: Moment
    other: str | None = Field(
        default=None, max_length=1024, description="the folder of the run that it is compared with"
    )
    version: Count = Field(default=0, description="of the posedrop that asked: DERIVED_VERSION")
    after: Count = Field(
        default=0, description="asked again: the attempts up to this one count no more"
    )


class Derived(Versioned):
    """``derived/<what>/made.json``: what was made of the poses, or why it can't be; created once.

    ``artefact`` is null where ``error`` is not.
    """

    what: str = Field(max_length=40)
    version: Count = Field(description="of the posedrop that made it: DERIVED_VERSION")
    artefact: Artefact | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries")
    error: RunError | None = None
    made_at: Moment
