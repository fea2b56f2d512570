"""``every_field``: an analysis with an argument of each kind that a JSON Schema can have."""

from __future__ import annotations

from datetime import date
from enum import Enum
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from posedrop.analyses import Analysis, Args, Job

HOSTILE = "<img src=x onerror=alert(1)>"


class Side(Enum):
    """A side of the arena."""

    LEFT = "left"
    RIGHT = "right"


class Point(Args):
    """A point of the frame."""

    x: float = Field(ge=0, description="pixels")
    y: float = Field(default=3.5, ge=0)


class Zone(Args):
    """A zone of the arena."""

    name: str = Field(min_length=2)
    corners: list[Point] = Field(default_factory=list, max_length=4)
    inner: Zone | None = None


class Box(Args):
    """A rectangle."""

    x1: int = Field(ge=0)
    x2: int = Field(ge=1)
    y1: int = Field(ge=0)
    y2: int = Field(ge=1)

    @model_validator(mode="after")
    def _has_an_area(self) -> Box:
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError("a box needs x1 < x2 and y1 < y2")
        return self


class EveryArgs(Args):
    """The arguments of ``every_field``."""

    model_config = ConfigDict(extra="forbid", frozen=True, title=HOSTILE)

    needed: str = Field(pattern="^[a-z]+$", description=f"small letters {HOSTILE}")
    text: str = "plain"
    maybe_text: str | None = "set"
    whole: int = Field(default=7, ge=1, le=9)
    share: float = Field(default=0.25, gt=0, lt=1)
    maybe_number: float | None = Field(default=None, ge=-5)
    flag: bool = True
    maybe_flag: bool | None = None
    word: Literal["a", "b", HOSTILE] = "a"  # type: ignore[valid-type]
    number_word: Literal[1, 2, 4] | None = 2
    side: Side = Side.LEFT
    fixed: Literal["v1"] = "v1"
    day: date | None = None
    names: list[str] = ["one", "two"]  # noqa: RUF012
    maybe_counts: list[int] | None = None
    sides: list[Side] = Field(default_factory=list)
    pair: tuple[float, float] = (1.0, 2.0)
    crop: Box | None = None
    point: Point = Point(x=1, y=2)
    zone: Zone | None = Field(default=None, json_schema_extra={"group": "arena"})
    mixed: int | Literal["auto"] = "auto"
    table: dict[str, int] = Field(default_factory=dict, json_schema_extra={"group": "arena"})
    anything: Any = None


def run(job: Job) -> dict[str, Any]:
    """Leave the arguments."""
    (job.out / "args.txt").write_text(repr(job.args))
    return {
        "frames_expected": 0,
        "frames_decoded": 0,
        "rows": 0,
        "missing": [],
        "timings": {},
        "versions": {},
        "details": {},
    }


every_field = Analysis(
    name="every_field",
    version="1",
    args=EveryArgs,
    run="tests.support.every_field:run",
    summary=f"An argument of each kind. {HOSTILE}",
    renders=False,
)
