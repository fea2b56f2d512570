"""How far apart two runs of one film put their keypoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posedrop.buckets.records.fields import Count, Duration, Finite, Seconds, Share, Words
from posedrop.buckets.records.quality import MOST_QUALITIES
from posedrop.buckets.records.record import Record, Versioned

#: Keypoints (bodyparts of an animal) of a comparison, and its frames that differ most.
MOST_COMPARED = 10_000
WORST_FRAMES = 50
#: Pixels, null: there is no such position.
Distance = Duration | None


class Distances(Record):
    """How far apart, in pixels, two runs put keypoints: over the frames in which both have them.

    Percentiles and shares are null where there is no such frame.
    """

    positions: Count = Field(description="that both runs have, and that are compared")
    median: Distance = None
    p95: Distance = None
    p99: Distance = None
    most: Distance = None
    within_1: Share | None = Field(default=None, description="of the positions: 1 pixel at most")
    within_2: Share | None = None
    within_5: Share | None = None
    only_a: Count = Field(description="positions that the first run alone has")
    only_b: Count = Field(description="positions that the second run alone has")
    both_sure: Count = Field(description="positions whose likelihood is pcutoff or more in both")
    disagree: Count = Field(description="of those: they are more than 5 pixels apart")


class KeypointDistances(Distances):
    """How far apart two runs put a bodypart of an animal."""

    individual: Words = Field(description="as the first run names it")
    bodypart: Words


class WorstFrame(Record):
    """A frame in which two runs put a keypoint far apart, and the one that is farthest."""

    frame: Count = Field(description="its number in the film, from 0")
    seconds: Seconds = Field(description="when it is shown")
    individual: Words = Field(description="as the first run names it")
    bodypart: Words
    distance: Duration = Field(description="pixels")
    sure: bool = Field(description="the likelihood is pcutoff or more in both")


class ComparedRun(Record):
    """One of two runs that are compared."""

    analysis_id: str = Field(max_length=100)
    model: Words | None = None
    scorer: Words = ""
    pcutoff: Finite
    frames: Count = Field(description="that have a row")
    individuals: list[Words] = Field(max_length=MOST_QUALITIES)
    only: list[Words] = Field(
        max_length=MOST_QUALITIES, description="bodyparts that the other run does not have"
    )


class Comparison(Versioned):
    """``compare-with-<id>.json``: how far apart two runs of one film put their keypoints.

    Frames are matched by their number in the film, bodyparts by name.
    """

    a: ComparedRun
    b: ComparedRun
    frames: Count = Field(description="that have a row in both")
    matched: Literal["one", "names", "distance"] = Field(
        description="which animal is which: there is one; by their names, where both runs told "
        "them apart by identity; in each frame anew, so that they are as near as can be"
    )
    total: Distances
    keypoints: list[KeypointDistances] = Field(max_length=MOST_COMPARED)
    worst: list[WorstFrame] = Field(max_length=WORST_FRAMES, description="the farthest first")
    worst_sure: list[WorstFrame] = Field(
        max_length=WORST_FRAMES, description="by those keypoints alone that both runs are sure of"
    )
