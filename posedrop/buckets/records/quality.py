"""How good the poses of a run are."""

from __future__ import annotations

from pydantic import Field

from posedrop.buckets.records.fields import Count, Duration, Finite, Share, Words
from posedrop.buckets.records.record import Record

#: Bodyparts, and bones, of a record of quality.
MOST_QUALITIES = 1000


class Stretches(Record):
    """Frames with one defect, and the longest stretch of them."""

    frames: Count
    stretches: Count = Field(description="how often they follow each other without a break")
    longest_seconds: Duration
    first_frame: Count | None = Field(default=None, description="of the longest stretch")


class BodypartQuality(Record):
    """What is wrong with one bodypart, over all animals that have it."""

    name: Words
    below_cutoff: Share = Field(description="of its positions, in frames that were decoded")
    longest_gap_seconds: Duration = Field(description="without a position above the cutoff")
    jumps: Count | None = Field(description="null: the animals are not followed")
    outside: Count | None = Field(description="positions out of the frame; null: size not known")


class BoneQuality(Record):
    """How often the length of a bone of the skeleton is unlikely."""

    bodyparts: tuple[Words, Words]
    outliers: Count


class Quality(Record):
    """How good the poses of a run are; docs/quality.md says how each number is found."""

    version: Count = Field(description="of the formula")
    score: float = Field(ge=0, le=100)
    reasons: list[Words] = Field(max_length=3, description="the worst first")
    pcutoff: Finite
    bodyparts: list[BodypartQuality] = Field(max_length=MOST_QUALITIES)
    missing: Stretches
    black: Stretches | None = Field(description="null: the brightness is not known")
    frozen: Stretches | None = Field(description="null: the brightness is not known")
    odd_timestamps: Count
    bones: list[BoneQuality] = Field(max_length=MOST_QUALITIES)
    fewer_animals: Count | None = Field(description="frames; null: one animal, or any number")
    suspected_swaps: Count | None = Field(description="null: one animal, or none is followed")
