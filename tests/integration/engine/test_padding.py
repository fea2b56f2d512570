"""Pictures that a project's config has padded before its network sees them, as HRNets need it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.data.transforms import build_auto_padding
from hypothesis import given
from hypothesis import strategies as st

from posedrop.errors import ModelError
from tests.integration.engine.test_animals import analysed as animals_analysed
from tests.integration.engine.test_animals import same
from tests.support.analysed import TOLERANCE, Ours, analysed, copied, furthest
from tests.support.animals import make_project, two_animal_film
from tests.support.samples import sample
from worker.engine.padding import Padding

PLACES = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
#: 320x240 and 640x480 are no multiple of either.
UNEVEN = {"pad_width_divisor": 96, "pad_height_divisor": 100}


@st.composite
def steps(draw: st.DrawFn) -> Any:
    """Draw a padding as a config may have it."""
    asked: dict[str, Any] = {"position": draw(st.sampled_from(PLACES))}
    for side in ("height", "width"):
        least = draw(st.one_of(st.none(), st.integers(1, 60)))
        divisor = None if least is not None else draw(st.integers(1, 40))
        asked |= {f"min_{side}": least, f"pad_{side}_divisor": divisor}
    if draw(st.booleans()):
        colours = st.lists(st.integers(0, 255), min_size=3, max_size=3)
        value = draw(st.one_of(st.none(), st.integers(0, 255), colours))
        asked |= {"border_mode": "constant", "border_value": value}
    return build_auto_padding(**asked)


@given(step=steps(), height=st.integers(1, 70), width=st.integers(1, 70))
def test_pictures_are_padded_as_by_deeplabcuts_own_step(step: Any, height: int, width: int) -> None:
    """Whatever the config says, and however small a picture is beside what is put around it."""
    bgr = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    expected = [step(image=cv2.cvtColor(one, cv2.COLOR_BGR2RGB))["image"] for one in bgr]
    padding = Padding(step)
    found = padding.padded(torch.from_numpy(bgr)).numpy()
    assert np.array_equal(found[..., ::-1], np.stack(expected))
    assert padding.padded_size((height, width)) == found.shape[1:3]


@pytest.mark.parametrize(
    "asked",
    [
        UNEVEN,
        {**UNEVEN, "position": "center"},
        {**UNEVEN, "position": "bottom_right", "border_mode": "constant", "border_value": 200},
    ],
)
def test_poses_in_padded_frames_are_those_of_analyze_videos(
    folder: Path, run: Callable[..., Ours], tmp_path: Path, asked: dict[str, Any]
) -> None:
    """In pixels of the film; where DeepLabCut would draw lots, the frame lies at the top left."""
    drawn = "position" not in asked
    mouse = sample(folder, 4)
    theirs = copied(mouse.model, tmp_path / "theirs")
    pad(theirs, {**asked, "position": "top_left"} if drawn else asked)
    expected = analysed(mouse.film, theirs / "config.yaml", tmp_path / "stock")
    mine = copied(mouse.model, tmp_path / "mine")
    pad(mine, asked)
    ours = run(mouse.film, mine)
    assert furthest(ours.poses, expected.poses) <= TOLERANCE
    # By the way that is timed and watched, not a frame after the other by DeepLabCut's.
    assert ours.answer["details"]["tuning"] is not None


def test_crops_of_a_top_down_model_are_padded(run: Callable[..., Ours], tmp_path: Path) -> None:
    """As SuperAnimal's HRNets have it in their config; poses are in pixels of the film."""
    model = make_project(tmp_path / "model", individuals=["ada"], detector="ssdlite")
    pad(model, {"pad_width_divisor": 100, "pad_height_divisor": 60, "position": "center"})
    film = two_animal_film(tmp_path / "film.mp4", range(6))
    expected = animals_analysed(film, model, tmp_path / "stock", "")
    ours = run(film, model)
    same(ours.poses, expected.poses)
    assert ours.answer["details"]["detector"]["used"]


@pytest.mark.parametrize("divisor", [0, 10**9, "many"])
def test_what_can_not_be_padded_is_said(
    folder: Path, run: Callable[..., Ours], tmp_path: Path, divisor: Any
) -> None:
    """A config of a stranger's, whatever it asks for."""
    mouse = sample(folder, 4)
    model = copied(mouse.model, tmp_path / "model")
    pad(model, {"pad_width_divisor": divisor, "pad_height_divisor": 32})
    with pytest.raises(ModelError, match="auto_padding") as refusal:
        run(mouse.film, model)
    assert refusal.value.code == "model_damaged"


def pad(model: Path, asked: dict[str, Any]) -> None:
    """Have a project pad its pictures."""
    [path] = model.rglob("pytorch_config.yaml")
    config = yaml.safe_load(path.read_text())
    config["data"]["inference"]["auto_padding"] = asked
    path.write_text(yaml.safe_dump(config, sort_keys=False))
