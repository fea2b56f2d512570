"""precision.paf: frames of several animals that noise could change are known, and no others suffer.

The maps are made, not a network's, so that the noise is of a known size; what is found in them is
DeepLabCut's own predictor's and assembler's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from deeplabcut.pose_estimation_pytorch.models.predictors import PartAffinityFieldPredictor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.analysed import Ours
from tests.support.animals import make_project, two_animal_film
from worker import hardware
from worker.precision import guard, paf, variants
from worker.precision.paf import PafWatch

STRIDE, MAX_SPREAD = 8.0, 0.4
ROWS, COLUMNS = 24, 32
FRAMES = 12
#: Frames of the film.
FILM = 24
#: As much as leaves some of them clear.
NOISE = 0.03


@dataclass(frozen=True)
class Scene:
    """What kind of frames to make."""

    animals: int
    """That the predictor may find; there are up to one more."""
    bodyparts: int
    clear: bool = False
    """Each animal is whole, sure and by itself."""

    @property
    def limbs(self) -> list[tuple[int, int]]:
        return list(combinations(range(self.bodyparts), 2))

    def predictor(self, **other: Any) -> PartAffinityFieldPredictor:
        return PartAffinityFieldPredictor(
            **{
                "num_animals": self.animals,
                "num_multibodyparts": self.bodyparts,
                "num_uniquebodyparts": 0,
                "graph": self.limbs,
                "edges_to_keep": list(range(len(self.limbs))),
                "locref_stdev": 7.2801,
                "nms_radius": 5,
                "sigma": 1,
                "min_affinity": 0.05,
                **other,
            }
        )

    def frames(self, rng: np.random.Generator) -> dict[str, Tensor]:
        made = [self._frame(rng) for _ in range(FRAMES)]
        stacked = (np.stack(maps) for maps in zip(*made, strict=True))
        names = ("heatmap", "locref", "paf")
        return {n: torch.from_numpy(m).float() for n, m in zip(names, stacked, strict=True)}

    def _frame(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
        parts, size = self.bodyparts, (ROWS, COLUMNS)
        rows, columns = np.mgrid[:ROWS, :COLUMNS]
        heat = -5 + rng.normal(0, 0.3, (parts, *size))
        refined, field = (np.zeros((2 * n, *size)) for n in (parts, len(self.limbs)))
        field += rng.normal(0, 0.02, field.shape)
        shape = rng.uniform(-6, 6, (parts, 2))
        if self.clear:
            angles = np.arange(parts) * 2 * np.pi / parts + 0.3
            shape = 4 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        nearest = np.full((parts, *size), np.inf)
        for animal in range(self.animals if self.clear else rng.integers(1, self.animals + 2)):
            centre = rng.uniform((5, 5), (ROWS - 5, COLUMNS - 5))
            if self.clear:
                centre = np.array([ROWS / 2, (animal + 0.5) * COLUMNS / self.animals])
            turn = rng.uniform(0, 2 * np.pi)
            turned = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
            places = centre + shape @ np.array(turned)
            seen = np.full(parts, True) if self.clear else rng.random(parts) > 0.1
            strength = 0.9 - 0.2 * animal if self.clear else rng.uniform(0.2, 1.0)
            for part in np.flatnonzero(seen):
                row, column = places[part]
                far = (rows - row) ** 2 + (columns - column) ** 2
                height = 9.0 if self.clear or rng.random() < 0.6 else rng.uniform(1, 8)
                bump = height * np.exp(-far / (2 * rng.uniform(1, 2.2) ** 2))
                heat[part] = np.maximum(heat[part], bump - 5)
                near = far < nearest[part]
                nearest[part][near] = far[near]
                for axis, there in enumerate((column - columns, row - rows)):
                    refined[2 * part + axis][near] = STRIDE / 7.2801 * there[near]
            for limb, (start, end) in enumerate(self.limbs):
                if not (seen[start] and seen[end]):
                    continue
                way = places[end] - places[start]
                length = float(np.linalg.norm(way)) + 1e-6
                down, right = way / length
                away = (rows - places[start][0], columns - places[start][1])
                along = away[0] * down + away[1] * right
                across = np.abs(away[1] * down - away[0] * right)
                on = (along >= -0.5) & (along <= length + 0.5) & (across < 2.5)
                field[2 * limb][on] += right * strength * (1 - across[on] / 2.5)
                field[2 * limb + 1][on] += down * strength * (1 - across[on] / 2.5)
        return heat, refined, field


def watch_of(predictor: PartAffinityFieldPredictor) -> PafWatch:
    head = SimpleNamespace(predictor=predictor)
    model = SimpleNamespace(heads={"bodypart": head}, get_stride=lambda _: STRIDE)
    assert PafWatch.knows(predictor)
    return PafWatch(model, "bodypart", 0.1)


def noisy(
    outputs: dict[str, Tensor], noise: float, kind: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return maps that differ by ``noise`` at most before the sigmoid, affinities by its share."""
    found = dict(outputs)
    for name, most in (("heatmap", noise), ("paf", paf.SHARE * noise)):
        maps = outputs[name]
        change = torch.rand(maps.shape, generator=generator) * 2 - 1
        if kind == "signs":
            change = change.sign()
        elif kind == "maps":  # each as a whole
            change = change[..., :1, :1].sign().expand_as(maps)
        elif kind == "against":  # what is high goes down, what is beside it up
            top = torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1) == maps
            change = torch.where(top, -1.0, 1.0) if name == "heatmap" else -maps.sign()
        found[name] = maps + most * change
    return found


@settings(max_examples=90, deadline=None)
@given(
    animals=st.integers(2, 4),
    bodyparts=st.integers(2, 6),
    noise=st.floats(-3, -0.3).map(lambda power: 10**power),
    kind=st.sampled_from(["uniform", "signs", "maps", "against"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_frame_that_noise_changed_goes_unmarked(
    animals: int, bodyparts: int, noise: float, kind: str, seed: int
) -> None:
    """Whatever noise of a size does to who is found, and where, the watch had said it could."""
    scene = Scene(animals, bodyparts)
    predictor = scene.predictor()
    watch = watch_of(predictor)
    exact = scene.frames(np.random.default_rng(seed))
    fast = noisy(exact, noise, kind, torch.Generator().manual_seed(seed))
    moved = watch.moved(predictor(STRIDE, exact), predictor(STRIDE, fast))
    # Where all limbs of an animal err the same way, by chance too, it measures more than what each
    # errs by.
    measured = watch.noise(exact, fast)
    unsure = watch.unsure(fast, max(noise, measured), MAX_SPREAD)
    assert moved.shape == unsure.shape == (FRAMES,)
    assert not ((moved > MAX_SPREAD) & ~unsure).any()
    if kind == "uniform":
        assert measured <= noise * max(math.exp(noise), 1 / paf.EVEN) * 1.01 + 0.03


def test_clear_frames_are_not_computed_again() -> None:
    """Animals that are whole and apart are sure at twice bfloat16's noise, though not at any.

    Where each is as sure as the other, which comes first is not, so one is surer here.
    """
    scene = Scene(2, 5, clear=True)
    predictor = scene.predictor()
    watch = watch_of(predictor)
    outputs = scene.frames(np.random.default_rng(0))
    found = predictor(STRIDE, outputs)["poses"]
    assert (found[..., 2] > 0.1).all()
    assert watch.shown({"poses": found}).all()
    assert not watch.unsure(outputs, 0.1, MAX_SPREAD).any()
    assert not watch.unsure(outputs, torch.full((FRAMES,), 1e-5), 0.005).any()
    assert watch.unsure(outputs, 5.0, MAX_SPREAD).all()


def test_what_is_not_a_number_is_unsure() -> None:
    """A frame whose maps overflowed is computed again, and the frames beside it are not."""
    scene = Scene(2, 4, clear=True)
    watch = watch_of(scene.predictor())
    outputs = scene.frames(np.random.default_rng(1))
    assert not watch.unsure(outputs, 1e-4, MAX_SPREAD).any()
    for frame, name in enumerate(outputs):
        outputs[name][frame] = math.nan
    outputs["heatmap"][3] *= math.inf
    assert watch.unsure(outputs, 1e-4, MAX_SPREAD).tolist() == [True] * 4 + [False] * (FRAMES - 4)
    assert watch.unsure(
        {n: torch.zeros_like(m) for n, m in outputs.items()}, 1e-4, MAX_SPREAD
    ).all()


def test_other_animals_are_infinitely_far() -> None:
    """Keypoints that belong to somebody else count as moved out of sight; small steps by pixels."""
    watch = watch_of(Scene(2, 3).predictor())
    true = torch.rand(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)) + 10
    true[0, 1] = -1  # one animal alone
    true[1, 0, 2] = math.nan  # without one bodypart
    near = true.clone()
    near[2, 1, 1, 0] += 0.25
    assert watch.moved({"poses": true}, {"poses": near}).tolist() == [0, 0, 0.25, 0]
    other = true.clone()
    other[0, 1] = true[0, 0]
    other[1, 0, 2] = 5
    other[3] = -1
    assert watch.moved({"poses": true}, {"poses": other}).tolist() == [
        math.inf,
        math.inf,
        0,
        math.inf,
    ]


@pytest.mark.parametrize(
    "other",
    [{"num_animals": 1}, {"add_discarded": True}, {"force_fusion": True}, {"nms_radius": 4}],
)
def test_other_ways_to_join_are_not_known(other: dict[str, Any]) -> None:
    """A predictor that decides by something else has no watch, and runs exactly."""
    assert not PafWatch.knows(Scene(2, 3).predictor(**other))


def test_tracks_are_those_of_fp32(
    tmp_path: Path, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of two animals and a corner that is nobody's, by an arithmetic that errs."""
    film = two_animal_film(tmp_path / "herd.mp4", range(FILM))
    model = make_project(tmp_path / "model", unique=["corner"], default_track_method="box")
    expected = run(film, model)
    generator = torch.Generator().manual_seed(0)

    def erring(self: variants.ModelVariants, *_: Any) -> Any:
        network = copy.deepcopy(self.plain)
        forward = network.heads["bodypart"].forward
        monkeypatch.setattr(
            network.heads["bodypart"],
            "forward",
            lambda x: noisy(forward(x), NOISE, "uniform", generator),
        )
        return network

    monkeypatch.setattr(variants.ModelVariants, "fast", erring)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr("worker.precision.tuning.is_worth", lambda *_: True)  # short as it is
    monkeypatch.setattr("worker.precision.paf.PafWatch.again", 0.0)
    ours = run(film, model, precision="auto")
    told = ours.answer["details"]["precision"]
    assert told["used"] == "bf16"
    assert 0 < told["frames_repeated_in_fp32"] < FILM - guard.SAMPLES
    pd.testing.assert_index_equal(ours.poses.columns, expected.poses.columns)
    np.testing.assert_allclose(
        places(ours.poses), places(expected.poses), rtol=0, atol=guard.TOLERANCE
    )


def places(poses: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return x and y alone: likelihoods are as near as the arithmetic is."""
    likely = poses.columns.get_level_values("coords") == "likelihood"
    return poses.loc[:, ~likely].to_numpy()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 3, 30, 30))),
    power=st.floats(0.2, 40),
    steps=st.sampled_from([0, 2, 6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_peaks_are_deeplabcuts(shape: tuple[int, ...], power: float, steps: int, seed: int) -> None:
    """The same cells in the same order, where cells tie and where there are none."""
    heat = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** power
    if steps:
        heat = (heat * steps).round() / steps
    wanted = PartAffinityFieldPredictor.find_local_peak_indices_maxpool_nms(heat, 5, 0.01)
    found = paf.peaks(heat, 5, 0.01)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
