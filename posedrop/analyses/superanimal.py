"""``superanimal``: poses of animals that nobody has to label, by DeepLabCut's model zoo.

This is the light half, which the API imports; ``worker.engine.zoo`` is the heavy one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posedrop.analyses import POSES, Analysis, Args
from posedrop.analyses.deeplabcut_2d import (
    ANIMALS,
    NETWORK,
    SMOOTHING,
    PoseArgs,
    for_network,
)
from posedrop.buckets.records.models import Model
from posedrop.errors import BadRequestError
from posedrop.models.zoo import ZOO

#: How many animals a frame has at most, where nobody says.
MOST = 10


class SuperAnimalArgs(PoseArgs):
    """The arguments of ``superanimal``."""

    model: str = Field(
        pattern=rf"^({'|'.join(ZOO)})(@[0-9a-f]{{6,64}})?$",
        description="which SuperAnimal: superanimal_quadruped, superanimal_topviewmouse, "
        "superanimal_bird or superanimal_humanbody; its weights have to be in the models bucket",
    )
    model_name: str = Field(
        json_schema_extra=NETWORK,
        default="",
        max_length=60,
        description="the network that finds the keypoints; empty: the SuperAnimal's first, e.g. "
        "hrnet_w32",
    )
    detector_name: str = Field(
        json_schema_extra=NETWORK,
        default="",
        max_length=60,
        description="the network that finds the animals; empty: the SuperAnimal's first, e.g. "
        "fasterrcnn_resnet50_fpn_v2",
    )
    max_individuals: int = Field(
        json_schema_extra=ANIMALS,
        default=MOST,
        ge=1,
        le=100,
        description="how many animals there are at most in a frame. They are not followed: animal0 "
        "of a frame need not be animal0 of the next",
    )
    filter: Literal["none", "median", "arima"] = Field(
        json_schema_extra=SMOOTHING,
        default="median",
        description="how poses_filtered is smoothed over time, with max_individuals of 1; several "
        "animals are not followed, so that none of them can be smoothed: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        # Written out, so that the same request has the same id, asked by name or not.
        animal = ZOO.get(str(value.get("model")).partition("@")[0]) if _is_mapping(value) else None
        if animal is None:
            return value
        return {
            **value,
            "model_name": value.get("model_name") or animal.pose_models[0],
            "detector_name": value.get("detector_name") or animal.detectors[0],
            **_unsmoothed(value),
        }

    @model_validator(mode="after")
    def _are_of_the_zoo(self) -> Self:
        animal = ZOO[self.superanimal]
        for name, known in (
            (self.model_name, animal.pose_models),
            (self.detector_name, animal.detectors),
        ):
            if name not in known:
                raise ValueError(f"{animal.name} has no {name!r}; it has: {', '.join(known)}")
        return self

    @property
    def superanimal(self) -> str:
        """The SuperAnimal's name, without a digest."""
        return self.model.partition("@")[0]

    @property
    def files(self) -> list[str]:
        """The names of the files of weights that are needed."""
        animal = ZOO[self.superanimal]
        return [animal.file(self.model_name), animal.file(self.detector_name)]


def _unsmoothed(value: Mapping[str, Any]) -> dict[str, str]:
    """Return ``filter`` as it has to be where animal0 of two frames may be two animals."""
    may_be_several = value.get("max_individuals", MOST) not in (1, "1")
    is_smoothed = value.get("filter", "median") in ("median", "arima")
    return {"filter": "none"} if may_be_several and is_smoothed else {}


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def check(args: Args, model: Model) -> None:
    """Refuse what the model in the bucket has no weights for.

    Raises:
        BadRequestError: code ``weights_missing``; the message says what to download.
    """
    wanted = SuperAnimalArgs.model_validate(args.model_dump())
    there = {file.path for file in model.files} if model.kind == "zoo" else set()
    missing = [file for file in wanted.files if file not in there]
    if missing:
        animal = ZOO[wanted.superanimal]
        raise BadRequestError(
            f"the models bucket lacks weights of {animal.name}: {animal.how_to_get(missing)}",
            code="weights_missing",
            field="args.model",
        )


superanimal = Analysis(
    name="superanimal",
    version="2",  # 2: as deeplabcut_2d's 3
    args=SuperAnimalArgs,
    run="worker.engine.zoo:run",
    finish="worker.poses.tables:finish_superanimal",
    artefacts=POSES,
    makes_ready=True,
    drawn=frozenset({"style"}),
    for_network=for_network,
    summary="Keypoints of quadrupeds, mice from above, birds or people, by DeepLabCut's model "
    "zoo: no labelling, no training.",
    needs_model=True,
    wall_seconds=None,
    # A detector and a network for each animal that it finds: far slower than one of one's own.
    slowest_frame=30.0,
    check=check,
)
