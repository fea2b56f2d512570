"""Fewer bits, smaller batches: the same keypoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deeplabcut.pose_estimation_pytorch.models.predictors import HeatmapPredictor
from hypothesis import given
from hypothesis import strategies as st

from tests.support.analysed import (
    TOLERANCE,
    Ours,
    Stock,
    furthest,
)
from tests.support.samples import Sample
from worker import hardware
from worker.engine import passes
from worker.precision import guard, tuning, variants
from worker.precision import watch as watch_module
from worker.precision.heads import watches_of
from worker.precision.watch import Watch


def test_auto_moves_no_keypoint(
    stock: Stock, long: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fewer bits, where the processor has them, keypoints above pcutoff stay within 0.5 px."""
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # however little faster they are here
    native = hardware.native_dtype(torch.device("cpu"))
    ours = run(long.film, long.model, precision="auto")
    told = ours.answer["details"]["precision"]
    poses, expected = (table.to_numpy().reshape(60, -1, 3) for table in (ours.poses, stock.poses))
    kept = expected[..., 2] >= ours.answer["details"]["pcutoff"]
    moved = np.hypot(*np.moveaxis(poses - expected, -1, 0)[:2])
    assert kept.any()
    assert moved[kept].max() <= 0.5
    assert told["asked"] == "auto"
    assert told["used"] == {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[native]


@pytest.mark.parametrize("dynamic", [None, {"threshold": 0.5, "margin": 100}])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fewer_bits_throughout(
    short: Sample, run: Callable[..., Ours], precision: str, dynamic: dict[str, Any] | None
) -> None:
    """Asked for, they are used for every frame, on DeepLabCut's own way too, and hardly differ."""
    expected = run(short.film, short.model, dynamic=dynamic, stop=2)
    ours = run(short.film, short.model, precision=precision, dynamic=dynamic, stop=2)
    assert ours.answer["details"]["precision"]["used"] == precision
    poses, true = (t.poses.to_numpy().reshape(2, -1, 3) for t in (ours, expected))
    kept = true[..., 2] >= expected.answer["details"]["pcutoff"]
    moved = np.hypot(*np.moveaxis(poses - true, -1, 0)[:2])[kept]
    assert moved.max() > 0
    assert np.median(moved) <= 0.5


def test_nearly_tied_peaks_are_computed_again(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However coarse the fast arithmetic, ``auto`` gives what fp32 gives, or goes back to it."""
    expected = run(short.film, short.model)

    def coarse(self: variants.ModelVariants, *_: Any) -> Any:
        model = copy.deepcopy(self.plain)
        forward = model.heads["bodypart"].heatmap_head.forward
        # Steps so wide that many cells share the highest one, the first of which is taken.
        monkeypatch.setattr(
            model.heads["bodypart"].heatmap_head,
            "forward",
            lambda x: (forward(x) * 8).round() / 8,
        )
        return model

    monkeypatch.setattr(variants.ModelVariants, "fast", coarse)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    ours = run(short.film, short.model, precision="auto")
    told = ours.answer["details"]["precision"]
    assert told["used"] == "bf16"
    assert told["frames_repeated_in_fp32"] == 12 - guard.SAMPLES
    confident = expected.poses.to_numpy().reshape(12, -1, 3)[..., 2] >= 0.4
    moved = np.abs(ours.poses.to_numpy() - expected.poses.to_numpy()).reshape(12, -1, 3)
    assert moved[confident][:, :2].max() <= TOLERANCE


@pytest.mark.parametrize("found_by", ["samples", "a check"])
def test_unnoticed_change_ends_the_fast_arithmetic(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    """A keypoint that moved in the first frames, or in a later one that is checked: fp32."""
    expected = run(short.film, short.model)
    if found_by == "a check":
        monkeypatch.setattr(guard.PrecisionGuard, "_has_moved", lambda *_: False)

    def shifted(self: variants.ModelVariants, *_: Any) -> Any:
        model = copy.deepcopy(self.plain)
        forward = model.heads["bodypart"].locref_head.forward
        monkeypatch.setattr(
            model.heads["bodypart"].locref_head, "forward", lambda x: forward(x) + 1
        )
        return model

    monkeypatch.setattr(variants.ModelVariants, "fast", shifted)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    monkeypatch.setattr(guard, "CHECK_EVERY", 10)
    monkeypatch.setattr(guard, "EARLY", 0)
    ours = run(short.film, short.model, precision="auto")
    assert ours.answer["details"]["precision"]["used"] == "fp32"
    assert furthest(ours.poses, expected.poses) == 0.0


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
def test_numbers_that_overflow_end_the_fast_arithmetic(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, wild: float
) -> None:
    """One of the first frames overflows in fewer bits: what its noise is, nobody can tell."""
    expected = run(short.film, short.model)
    called = []

    def overflowing(self: variants.ModelVariants, *_: Any) -> Any:
        model = copy.deepcopy(self.plain)
        head = model.heads["bodypart"].heatmap_head
        forward = head.forward

        def wildly(x: torch.Tensor) -> torch.Tensor:
            heat: torch.Tensor = forward(x)
            heat[-1, 0].flatten()[heat[-1, 0].argmax()] = wild
            called.append(len(x))
            return heat

        monkeypatch.setattr(head, "forward", wildly)
        return model

    monkeypatch.setattr(variants.ModelVariants, "fast", overflowing)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    ours = run(short.film, short.model, precision="auto")
    assert called
    told = ours.answer["details"]["precision"]
    assert (told["used"], told["heatmap_noise"]) == ("fp32", 0)
    assert furthest(ours.poses, expected.poses) <= TOLERANCE


def heatmaps(apply_sigmoid: bool, values: list[float]) -> tuple[Watch, dict[str, torch.Tensor]]:
    """Return the watch over a head, and its heatmap of cells that are far apart."""
    predictor = HeatmapPredictor(apply_sigmoid=apply_sigmoid, location_refinement=False)
    head = SimpleNamespace(predictor=predictor)
    model: Any = SimpleNamespace(heads={"bodypart": head}, get_stride=lambda _: 8)
    watches = watches_of(model, 0.3)
    assert watches is not None
    heat = torch.full((1, 1, 9, 9), -20.0)
    for place, value in enumerate(values):
        heat[0, 0, 8 * place, 8 * place] = value
    return watches["bodypart"], {"heatmap": heat}


def test_cells_whose_sigmoids_tie_are_rivals() -> None:
    """DeepLabCut takes the first of them, whatever went into the sigmoids: noise may decide."""
    for apply_sigmoid, values, unsure in (
        (True, [12.0, 12.003], True), (True, [2.0, 2.003], False), (False, [12.0, 12.003], False),
    ):  # fmt: skip
        watch, outputs = heatmaps(apply_sigmoid, values)
        assert bool(watch.unsure(outputs, 2.4e-4, 0.4)) == unsure


@pytest.mark.parametrize("wild", [torch.nan, torch.inf, -torch.inf])
def test_what_overflowed_is_unsure(wild: float) -> None:
    """However clear the highest number is, it may not be the one that it would have been."""
    watch, outputs = heatmaps(False, [0.9])
    assert not watch.unsure(outputs, 1e-4, 0.4).any()
    outputs["heatmap"][0, 0, 4, 4] = wild
    assert watch.unsure(outputs, 1e-4, 0.4).all()


def test_noise_counts_below_one_half_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into a sigmoid is negative there."""
    monkeypatch.setattr(watch_module, "TYPICAL", 0)
    watch, exact = heatmaps(True, [-0.5, -0.52])
    fast = {"heatmap": exact["heatmap"].clone()}
    fast["heatmap"][0, 0, 8, 8] += 0.01
    assert watch.noise(exact, fast) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("apply_sigmoid", [True, False])
def test_noise_is_known_where_peaks_are_steep(apply_sigmoid: bool) -> None:
    """Frames without a rival to their peaks come first in many films: they tell of it, too."""
    likelihoods = torch.tensor([0.8, 0.5, 0.3, 0.1])
    values = (likelihoods.logit() if apply_sigmoid else likelihoods).tolist()
    for place in range(4):
        watch, exact = heatmaps(apply_sigmoid, values[:2])
        exact["heatmap"][0, 0, 4, :2] = torch.tensor(values[2:])
        fast = {"heatmap": exact["heatmap"].clone()}
        fast["heatmap"][exact["heatmap"] == values[place]] += 0.01
        found = watch.noise(exact, fast)
        assert found > 0.01 if place < 3 else found == 0  # the last one is unlikely


def test_few_cells_that_err_by_little_by_chance_hide_no_noise() -> None:
    """What all cells about a peak err by is the least that its nearest rivals may err by."""
    watch, exact = heatmaps(False, [0.8])
    chance = torch.Generator().manual_seed(0)
    exact["heatmap"][0, 0, 2:7, 2:7] = 0.5
    fast = {"heatmap": exact["heatmap"] + 0.01 * torch.randn(9, 9, generator=chance)}
    for place in range(4):  # these err by nothing
        exact["heatmap"][0, 0, 0, place] = fast["heatmap"][0, 0, 0, place] = 0.8 - place / 100
    assert watch.noise(exact, fast) > 0.02


class Drawn(torch.nn.Module):
    """A network whose heatmaps are what its pictures show: one of red, one of green."""

    def __init__(self) -> None:
        super().__init__()
        head = torch.nn.Module()
        head.predictor = HeatmapPredictor(apply_sigmoid=False, location_refinement=False)
        self.backbone = torch.nn.Identity()
        self.heads = torch.nn.ModuleDict({"bodypart": head})
        self.errs = 0.0
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        values = x[:, :2] * torch.tensor([0.229, 0.224]).view(1, 2, 1, 1)
        heat = (values + torch.tensor([0.485, 0.456]).view(1, 2, 1, 1)).clone()
        heat[:, 1, 8, 8] += self.errs
        return {"bodypart": {"heatmap": heat}}

    def get_stride(self, _: str) -> int:
        return 8

    def get_predictions(self, outputs: Any) -> Any:
        predict: Any = self.heads["bodypart"].predictor
        return {"bodypart": predict(8, outputs["bodypart"])}


@pytest.mark.parametrize("memory", ["suffices", "runs out"])
def test_the_noise_of_what_comes_into_the_film_later_is_known_at_once(
    monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """Landmarks first, then an animal, whose outputs err by more: none of its keypoints moves.

    Nor is what is checked behind the animal's first picture taken for unnoticed.
    """

    def frame(*values: int) -> Any:
        picture = np.zeros((9, 9, 3), np.uint8)  # BGR
        picture[4, 4, 2] = 250  # the landmark
        picture[0, 0, 1], picture[8, 8, 1] = values  # the animal, and what nearly is one
        return picture

    def erring(self: variants.ModelVariants, *_: Any) -> Any:
        model = copy.deepcopy(self.plain)
        model.errs = 0.02
        return model

    frames = [frame(0, 0)] * 9 + [frame(200, 198)] * 6
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(variants.ModelVariants, "fast", erring)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    loaded: Any = SimpleNamespace(
        network=SimpleNamespace(device="cpu"),
        variants=variants.ModelVariants(Drawn().eval(), "cpu"),
        padding=SimpleNamespace(padded=lambda x: x, padded_size=lambda size: size),
    )
    monkeypatch.setattr(guard, "CHECK_EARLY", 5)
    settle, full = guard.PrecisionGuard.settle, [memory == "runs out"]

    def settled(self: Any, doubts: Any, size: int) -> Any:
        if any(doubt.first for doubt in doubts) and full and full.pop():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return settle(self, doubts, size)

    monkeypatch.setattr(guard.PrecisionGuard, "settle", settled)
    work = passes.Pass(loaded, 4, "auto", 0.6)
    found = [one["bodypart"]["poses"][0, 1] for one in work.outputs(iter(frames))]
    assert work.summary()["precision"]["used"] == "bf16"
    assert len(found) == len(frames)
    assert [list(pose[:2]) for pose in found[9:]] == [[4.0, 4.0]] * 6


@given(st.data())
def test_what_new_keypoints_tell_of_the_noise_is_the_same_after_an_interruption(
    data: st.DataObject,
) -> None:
    """A run that goes back some pictures finds the same ones new, and knows the same noise."""
    length = data.draw(st.integers(1, 30))
    shown = data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=length))
    noises = data.draw(st.lists(st.floats(0, 9), min_size=len(shown), max_size=len(shown)))
    begin = data.draw(st.integers(0, len(shown)))
    end = data.draw(st.integers(begin, len(shown)))

    def went(state: guard.PrecisionStats, rows: range) -> list[tuple[int, bool, float]]:
        told = []
        for row in rows:
            new = state.meet("head", row, shown[row])
            if new:
                state.learn(row, noises[row], first=True)
                assert state.noise_for(row) >= noises[row]
            told.append((row, new, state.noise_for(row)))
        return told

    whole = went(guard.PrecisionStats("bf16"), range(len(shown)))
    state = guard.PrecisionStats("bf16")
    went(state, range(end))
    state = guard.PrecisionStats.parse(json.loads(json.dumps(asdict(state))))
    assert went(state, range(begin, len(shown))) == whole[begin:]


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_saving_multiplications_is_given_up_where_it_does_not_pay(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Where all frames have to be computed again with all of them, they soon are at once.

    In auto too, of a film that shows nothing, all of which is computed in fp32.
    """
    expected = run(short.film, short.model, stop=4)
    monkeypatch.setattr(guard, "TILED_NOISE", 1.0)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(variants.ModelVariants, "fast", lambda self, *_: self.plain)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    monkeypatch.setattr(
        watch_module.HeatmapWatch, "shown", lambda _, found: found["poses"][:, 0, :, 2] > 1
    )
    ours = run(short.film, short.model, batch_size=2, precision=precision)
    told = ours.answer["details"]
    assert told["precision"]["frames_repeated_untiled"] == passes.LOOK_EVERY
    assert told["tuning"]["convolutions_fp32"] == "direct"
    assert len(ours.poses) == 12
    assert furthest(ours.poses[:4], expected.poses) <= TOLERANCE


def test_a_first_frame_with_a_tie_does_not_decide_for_the_film(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving multiplications is timed without what is computed again of that one frame."""
    timed: list[tuning.Way] = []
    again: list[int] = []
    timing, put = passes.Pass._timed, guard._put

    def counted(its: passes.Pass, way: tuning.Way, picture: Any) -> float:
        before = len(again)
        took = timing(its, way, picture)
        assert len(again) == before, way
        timed.append(way)
        return took

    def repeated(target: Any, rows: list[int], values: Any) -> Any:
        again.extend(rows)
        return put(target, rows, values)

    monkeypatch.setattr(passes.Pass, "_timed", counted)
    monkeypatch.setattr(guard, "_put", repeated)
    monkeypatch.setattr(guard, "_unsure", lambda *_: {0, 1})
    monkeypatch.setattr(tuning, "_allowed", lambda _: float("inf"))
    for share in ("FIRST_SHARE", "FIRST_ALONE"):
        monkeypatch.setattr(tuning, share, 100.0)
    small = {"x1": 120, "x2": 184, "y1": 80, "y2": 144}
    run(short.film, short.model, batch_size=2, stop=4, crop=small)
    assert "winograd" in {way.kind for way in timed}


# -- memory ----


@pytest.mark.parametrize("moment", ["launch", "collect"])
def test_batch_is_halved_when_memory_runs_out(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """No job fails for want of memory that a smaller batch would have run; every frame is there."""
    expected = run(short.film, short.model)
    whole = getattr(guard.PrecisionGuard, moment)

    def small(self: guard.PrecisionGuard, batch: Any, *rest: Any) -> Any:
        if len(batch if moment == "launch" else batch.x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch, *rest)

    monkeypatch.setattr(guard.PrecisionGuard, moment, small)
    ours = run(short.film, short.model, batch_size=8)
    assert ours.answer["details"]["batch_size"] == 2
    assert list(ours.poses.index) == list(range(12))
    assert furthest(ours.poses, expected.poses) <= TOLERANCE


def test_an_accelerators_way_gives_the_same(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches in flight: every frame is there, in its place."""
    expected = run(short.film, short.model)
    monkeypatch.setattr(passes, "accelerated", lambda _: True)
    monkeypatch.setattr(tuning, "FIRST_BATCH", 4)
    ours = run(short.film, short.model)
    assert ours.answer["details"]["batch_size"] == 4
    assert list(ours.poses.index) == list(range(12))
    assert furthest(ours.poses, expected.poses) <= TOLERANCE
