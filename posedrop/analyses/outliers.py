"""``outliers``: the frames of a film that are worth correcting, by the poses of another run.

This is the light half, which the API imports; ``worker.jobs.outliers`` does it, without a network.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from posedrop.analyses import Analysis, Args

#: Frames that are made ready for correction at once, and bytes of their pixels, uncompressed.
MOST_FRAMES, MOST_PIXEL_BYTES = 1000, 3 << 29
#: What is left for a person: machine labels for DeepLabCut, a package for SLEAP, COCO's keypoints.
LABELED_DATA, SLEAP_PACKAGE, COCO = "labeled-data.zip", "frames.pkg.slp", "coco.zip"


class OutlierArgs(Args):
    """The arguments of ``outliers``: as DeepLabCut's ``extract_outlier_frames`` calls them."""

    run: str | None = Field(
        default=None,
        pattern=r"^[a-z2-7]{16}$",
        description="the analysis_id of the run whose poses count; null: the film's newest one "
        "that is over and has poses",
    )
    n: int = Field(
        default=20,
        ge=1,
        le=MOST_FRAMES,
        description="how many frames, at most (numframes2pick); of a list, all",
    )
    by: Literal["uncertain", "jump", "fitting", "list"] = Field(
        default="uncertain",
        description="which frames: uncertain: with a likelihood below p_bound; jump: a bodypart is "
        "further than epsilon from where it was in the frame before; fitting: the poses are "
        "further than epsilon from what an ARIMA model makes of them, which takes minutes; list: "
        "those of `frames`",
    )
    frames: list[int] | None = Field(
        default=None, max_length=MOST_FRAMES, description="list: numbers of frames, from 0"
    )
    spread: Literal["kmeans", "uniform"] = Field(
        default="kmeans",
        description="which of these: kmeans: such as look different from each other; uniform: any",
    )
    bodyparts: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="which bodyparts are looked at (comparisonbodyparts); null: all",
    )
    p_bound: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="uncertain: a likelihood below this is an outlier; fitting: such positions are "
        "left out of the fit",
    )
    epsilon: float = Field(default=20, gt=0, le=1e6, description="jump, fitting: in pixels")
    arima_ar_degree: int = Field(
        default=3, ge=0, le=20, description="fitting: degree of the autoregressive part"
    )
    arima_ma_degree: int = Field(
        default=1, ge=0, le=20, description="fitting: degree of the moving-average part"
    )

    @field_validator("frames")
    @classmethod
    def _are_numbers_of_frames(cls, value: list[int] | None) -> list[int] | None:
        if value is None:
            return None
        if not value or min(value) < 0 or max(value) >= 1 << 53:
            raise ValueError("frames are counted from 0, and one is needed at least")
        return sorted(set(value))

    @model_validator(mode="after")
    def _has_its_list(self) -> OutlierArgs:
        if (self.frames is not None) != (self.by == "list"):
            raise ValueError("`frames` and by=list go together")
        return self

    @property
    def most(self) -> int:
        """How many frames will be chosen at most."""
        return len(self.frames) if self.frames is not None else self.n


outliers = Analysis(
    name="outliers",
    version="1",
    args=OutlierArgs,
    run="worker.poses.outliers:pick",
    takes_poses=True,
    renders=False,
    artefacts=(LABELED_DATA, SLEAP_PACKAGE, COCO),
    summary="The frames worth correcting, of the poses that a run has found: machine labels for "
    "napari-deeplabcut, a package for SLEAP, and COCO. Needs no network.",
)
