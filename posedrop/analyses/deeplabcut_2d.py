"""``deeplabcut_2d``: poses of one animal or several by a DeepLabCut 3 model of the models bucket.

This is the light half, which the API imports; ``worker.engine.inference`` is the heavy one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict

from posedrop.analyses import POSES, Analysis, Args
from posedrop.buckets.records.models import Model
from posedrop.errors import BadRequestError

#: Groups of arguments, as a form of them has them.
NETWORK: Final[JsonDict] = {"group": "network"}
FRAMES: Final[JsonDict] = {"group": "frames"}
SMOOTHING: Final[JsonDict] = {"group": "smoothing"}
DRAWING: Final[JsonDict] = {"group": "drawing"}
ANIMALS: Final[JsonDict] = {"group": "animals"}

Colormap = Literal[
    "rainbow", "jet", "hsv", "viridis", "plasma", "inferno", "magma", "cividis", "turbo", "cool",
    "spring", "summer", "autumn", "winter", "tab10", "tab20", "Set1", "Set2", "Set3",
]  # fmt: skip


class Crop(Args):
    """A rectangle of the frame: columns ``x1`` to ``x2``, rows ``y1`` to ``y2``, in pixels."""

    x1: int = Field(ge=0, description="first column, in pixels from the left")
    x2: int = Field(ge=1, description="the column after the last, in pixels from the left")
    y1: int = Field(ge=0, description="first row, in pixels from the top")
    y2: int = Field(ge=1, description="the row after the last, in pixels from the top")

    @model_validator(mode="after")
    def _has_an_area(self) -> Crop:
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError("a crop needs x1 < x2 and y1 < y2")
        return self


class Style(Args):
    """What the labelled video looks like."""

    dotsize: int | None = Field(
        default=None, ge=1, le=100, description="radius of a dot in pixels; null: by the frame size"
    )
    trail: int = Field(
        default=0, ge=0, le=500, description="how many frames back a keypoint's path is drawn"
    )
    skeleton: bool = Field(
        default=False, description="draw the model's skeleton between the keypoints"
    )
    colormap: Colormap = Field(
        default="rainbow", description="matplotlib colour map, from the first keypoint to the last"
    )
    video: bool = Field(
        default=True,
        # Else each run that an older posedrop made would have another id now.
        exclude_if=lambda value: value is True,
        description="false: no labelled video is drawn, only the plots, which takes a second",
    )


class Dynamic(Args):
    """DeepLabCut's dynamic cropping: the network sees the surroundings of the last pose alone."""

    threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the animal counts as found where a keypoint has this likelihood; else the "
        "next frame is looked at as a whole",
    )
    margin: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="how much is added around the keypoints, in pixels: more than the animal moves "
        "from one frame to the next",
    )


class PoseArgs(Args):
    """What all analyses have that send frames through a network of DeepLabCut."""

    model: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[0-9a-f]{6,64})?$",
        description="a model of the models bucket: its name (the newest of that name), "
        "or name@digest (the first 6 or more characters of the digest)",
    )
    batch_size: int | None = Field(
        json_schema_extra=NETWORK,
        default=None,
        ge=1,
        le=512,
        description="frames that go through the network at once; null: as many as are fastest",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        json_schema_extra=NETWORK,
        default="auto",
        description="arithmetic of the network. auto: fewer bits where the hardware is faster with "
        "them, and fp32 for each frame in which they could move a keypoint above pcutoff; "
        "bf16, fp16: throughout, unchecked",
    )
    crop: Crop | None = Field(
        json_schema_extra=FRAMES,
        default=None,
        description="analyse only this rectangle; coordinates are still those of the whole frame. "
        "null: as the project's config.yaml says",
    )
    start: int = Field(
        json_schema_extra=FRAMES, default=0, ge=0, description="first frame, counted from 0"
    )
    stop: int | None = Field(
        json_schema_extra=FRAMES,
        default=None,
        ge=1,
        description="the frame after the last; null: to the end",
    )
    stride: int = Field(
        json_schema_extra=FRAMES,
        default=1,
        ge=1,
        description="analyse every n-th frame from start on",
    )
    pcutoff: float | None = Field(
        json_schema_extra=DRAWING,
        default=None,
        ge=0,
        le=1,
        description="keypoints below this likelihood are not drawn; null: the project's pcutoff. "
        "The tables always hold them all",
    )
    filter: Literal["none", "median", "arima"] = Field(
        json_schema_extra=SMOOTHING,
        default="median",
        description="how poses_filtered is smoothed over time, as DeepLabCut's filterpredictions "
        "does; poses itself never is. arima takes minutes",
    )
    filter_window: int = Field(
        json_schema_extra=SMOOTHING,
        default=5,
        ge=1,
        le=1001,
        description="median: length of the window in frames, odd",
    )
    arima_p_bound: float = Field(
        json_schema_extra=SMOOTHING,
        default=0.001,
        ge=0,
        le=1,
        description="arima: below this likelihood a point is missing",
    )
    arima_ar_degree: int = Field(
        json_schema_extra=SMOOTHING,
        default=3,
        ge=0,
        le=20,
        description="arima: degree of the autoregressive part",
    )
    arima_ma_degree: int = Field(
        json_schema_extra=SMOOTHING,
        default=1,
        ge=0,
        le=20,
        description="arima: degree of the moving-average part",
    )
    arima_alpha: float = Field(
        json_schema_extra=SMOOTHING,
        default=0.01,
        gt=0,
        lt=1,
        description="arima: significance level of the fit's interval",
    )
    style: Style = Field(
        json_schema_extra=DRAWING,
        default_factory=Style,
        description="what the labelled video looks like",
    )

    @field_validator("filter_window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("a median window has an odd length")
        return value

    @model_validator(mode="after")
    def _selects_frames(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError("stop must be greater than start")
        return self


class DeepLabCut2D(PoseArgs):
    """The arguments of ``deeplabcut_2d``."""

    snapshot: str | None = Field(
        json_schema_extra=NETWORK,
        default=None,
        max_length=200,
        description="which of the model's snapshots, by name; null: its last (the best, if it has "
        "one marked so)",
    )
    dynamic: Dynamic | None = Field(
        json_schema_extra=NETWORK,
        default=None,
        description="look for the animal only where it was in the frame before, which is faster; "
        "frames then go through the network one by one. Not for top-down models",
    )
    track_method: Literal["ellipse", "box", "skeleton", "ctd"] | None = Field(
        json_schema_extra=ANIMALS,
        default=None,
        description="several animals: how DeepLabCut follows each from frame to frame; null: as "
        "the project's config.yaml says (default_track_method), else ellipse. ctd: by a "
        "conditional top-down model itself (DeepLabCut's ctd_tracking), of one animal too",
    )
    animals: int | None = Field(
        json_schema_extra=ANIMALS,
        default=None,
        ge=1,
        le=100,
        description="several animals: how many tracks to make; null: as many as the project has "
        "individuals",
    )
    identity_only: bool = Field(
        json_schema_extra=ANIMALS,
        default=False,
        description="several animals: follow them by what they look like alone, for a project "
        "with `identity: true`",
    )
    min_tracklet: int = Field(
        json_schema_extra=ANIMALS,
        default=10,
        ge=3,
        le=10_000,
        description="several animals: pieces of a track that are shorter, in frames, are added "
        "only after the longer ones were put together",
    )


#: Arguments that only the tables go by, or the drawing.
_OF_TABLES = frozenset(
    {
        "filter", "filter_window", "arima_p_bound", "arima_ar_degree", "arima_ma_degree",
        "arima_alpha", "pcutoff",
    }
)  # fmt: skip
#: Those that only the tracks go by, where no network makes them.
_OF_TRACKS = frozenset({"track_method", "animals", "identity_only", "min_tracklet"})


def for_network(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the network goes by, of an analysis with :class:`PoseArgs`."""
    tracks = frozenset[str]() if args.get("track_method") == "ctd" else _OF_TRACKS
    without = _OF_TABLES | tracks
    return {name: value for name, value in args.items() if name not in without}


def check(args: Args, model: Model) -> None:
    """Refuse arguments that don't fit the model.

    Raises:
        BadRequestError: codes ``zoo_model``, ``single_animal``, ``bad_track_method``,
            ``no_such_snapshot``.
    """
    wanted = DeepLabCut2D.model_validate(args.model_dump())
    if model.kind == "zoo":
        raise BadRequestError(
            f"{model.name} is of DeepLabCut's model zoo: ask for the analysis `superanimal`",
            code="zoo_model",
            field="args.model",
        )
    for name in () if model.multianimal else ("track_method", "animals", "identity_only"):
        if getattr(wanted, name) not in {None, False, "ctd"}:
            raise BadRequestError(
                f"{model.name} is a model for one animal: {name} is for multi-animal projects",
                code="single_animal",
                field=f"args.{name}",
            )
    if wanted.track_method == "ctd" and not model.net_type.startswith("ctd"):
        raise BadRequestError(
            f"track_method ctd is for conditional top-down models, and {model.name} is "
            f"{model.net_type or 'another'}: use ellipse, box or skeleton",
            code="bad_track_method",
            field="args.track_method",
        )
    snapshot = wanted.snapshot
    if snapshot is not None and snapshot not in model.snapshots:
        raise BadRequestError(
            f"{model.name} has no snapshot {snapshot[:60]!r}; it has: {', '.join(model.snapshots)}",
            code="no_such_snapshot",
            field="args.snapshot",
        )


deeplabcut_2d = Analysis(
    name="deeplabcut_2d",
    # 2: other arithmetic, by which coordinates differ in their last digits.
    # 3: frames are numbered, and have their colours, as OpenCV's; a lost one has a row of NaN.
    version="3",
    args=DeepLabCut2D,
    run="worker.engine.inference:run",
    finish="worker.poses.tables:finish",
    artefacts=POSES,
    makes_ready=True,
    wall_seconds=None,
    drawn=frozenset({"style"}),
    for_network=for_network,
    summary="Keypoints of one animal or several in every frame, by a DeepLabCut 3 (PyTorch) model "
    "of yours.",
    needs_model=True,
    check=check,
)
