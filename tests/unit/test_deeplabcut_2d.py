"""What deeplabcut_2d can be asked of which model."""

from __future__ import annotations

from pathlib import Path

import pytest

from posedrop.analyses.deeplabcut_2d import DeepLabCut2D, check
from posedrop.errors import BadRequestError
from posedrop.models import packing
from tests.support.projects import make_project


def test_single_animal_model_is_not_tracked(tmp_path: Path) -> None:
    """What is for several animals is refused where there is one; zoo models have an analysis."""
    model, _ = packing.plan_push(make_project(tmp_path / "reach"), "reach")
    for name, value in (("animals", 3), ("track_method", "box"), ("identity_only", True)):
        with pytest.raises(BadRequestError) as caught:
            check(DeepLabCut2D.model_validate({"model": "reach", name: value}), model)
        assert (caught.value.code, caught.value.field) == ("single_animal", f"args.{name}")
    several = model.model_copy(update={"multianimal": True})
    check(DeepLabCut2D(model="reach", animals=3), several)
    with pytest.raises(BadRequestError) as caught:
        check(DeepLabCut2D(model="reach"), model.model_copy(update={"kind": "zoo"}))
    assert caught.value.code == "zoo_model"


def test_following_by_ctd_is_for_conditional_models(tmp_path: Path) -> None:
    """Refused when it is asked for, not when it runs; such a model may be of one animal."""
    model, _ = packing.plan_push(make_project(tmp_path / "reach"), "reach")
    wanted = DeepLabCut2D(model="reach", track_method="ctd")
    with pytest.raises(BadRequestError, match="reach is resnet_50") as caught:
        check(wanted, model)
    assert (caught.value.code, caught.value.field) == ("bad_track_method", "args.track_method")
    check(wanted, model.model_copy(update={"net_type": "ctd_prenet_rtmpose_s"}))
