"""Conditional top-down models, as they are pushed: the poses and tracks of analyze_videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.models.modules import StackedKeypointEncoder
from deeplabcut.pose_estimation_pytorch.runners.inference import CTDInferenceRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from posedrop.errors import AnalysisError, ModelError
from posedrop.models import packing
from tests.integration.engine.test_animals import Stock, analysed, same
from tests.support.analysed import Ours, read
from tests.support.animals import (
    BATCH,
    FRAMES,
    HEIGHT,
    WIDTH,
    add_conditional,
    make_project,
    two_animal_film,
)
from worker.engine import inference, network
from worker.engine.conditional import ConditionalPredictor, DrawnConditions
from worker.engine.predictors import PredictedBatch, Predictor
from worker.engine.state import ENGINE
from worker.poses import tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conditional")


@pytest.fixture(scope="module")
def film(folder: Path) -> Path:
    return two_animal_film(folder / "herd.mp4", range(FRAMES))


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    return add_conditional(make_project(folder / "project"), {"shuffle": 1})


@pytest.fixture(scope="module")
def model(project: Path, folder: Path) -> Path:
    return pushed(project, folder / "model")


@pytest.fixture(scope="module")
def stock(film: Path, project: Path, folder: Path) -> Stock:
    return analysed(film, project, folder / "stock", "_el", shuffle=2)


def pushed(project: Path, target: Path) -> Path:
    """Return a folder with what one command pushes, as a worker has it."""
    _, files = packing.plan_push(project, "herd", shuffle=2)
    for source, path in files:
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    return target


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ours]:
    def runs(film: Path, model: Path, parts: Path | None = None, **args: Any) -> Ours:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        whole = deeplabcut_2d.normalise({"model": "herd", "batch_size": BATCH, **args})
        job = Job(
            film, out, whole, model, str(model), lambda *_: None, device="cpu",
            parts=parts, part_seconds=0.0,
        )  # fmt: skip
        inference.run(job)
        return read(out, tables.finish(job))

    return runs


def test_tracks_are_those_of_analyze_videos(
    film: Path, model: Path, stock: Stock, run: Callable[..., Ours]
) -> None:
    """Conditions in batches or one by one, with the second animal hidden for a while."""
    for batch in (1, BATCH, None):
        ours = run(film, model, batch_size=batch)
        same(ours.poses, stock.poses)
    details = ours.answer["details"]
    assert (details["scorer"], details["track_method"]) == (stock.scorer, "ellipse")
    assert details["net_type"] == "ctd_coam_w32"


def test_a_conditional_model_follows_the_animals_itself(
    film: Path, project: Path, model: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """``track_method: ctd`` is ``ctd_tracking``: another table than by conditions a frame."""
    stock = analysed(film, project, tmp_path / "stock", "_ctd", shuffle=2, ctd_tracking=True)
    ours = run(film, model, track_method="ctd")
    same(ours.poses, stock.poses)
    assert ours.answer["details"]["track_method"] == "ctd"
    again = run(film, model, track_method="ctd")  # nothing is left of the film before
    pd.testing.assert_frame_equal(again.poses, ours.poses)
    with pytest.raises(AnalysisError, match="animals is what the project has: 2") as caught:
        run(film, model, track_method="ctd", animals=3)
    assert caught.value.field == "args.animals"


def test_one_animal(film: Path, run: Callable[..., Ours], tmp_path: Path) -> None:
    """Followed by itself or not, it has the poses of analyze_videos; in a crop they are moved."""
    project = make_project(tmp_path / "project", individuals=["ada"])
    model = pushed(add_conditional(project, {"shuffle": 1, "snapshot_index": 0}), tmp_path / "m")
    out = tmp_path / "stock"
    stock = analysed(film, project, out, "", shuffle=2, ctd_tracking=True)
    same(run(film, model, track_method="ctd").poses, stock.poses)
    crop = {"x1": 2, "x2": 126, "y1": 6, "y2": 94}
    stock = analysed(film, project, tmp_path / "crop", "", shuffle=2, cropping=list(crop.values()))
    stock.poses.loc[:, (slice(None), slice(None), "x")] += crop["x1"]
    stock.poses.loc[:, (slice(None), slice(None), "y")] += crop["y1"]
    same(run(film, model, crop=crop).poses, stock.poses)


def test_frames_without_conditions(model: Path, run: Callable[..., Ours], tmp_path: Path) -> None:
    """Where the bottom-up network finds nothing, there is nothing to improve: in words."""
    empty = two_animal_film(tmp_path / "empty.mp4", range(12), animals=False)
    with pytest.raises(AnalysisError, match="no animal in any frame") as caught:
        run(empty, model)
    assert caught.value.code == "no_detections"
    ours = run(empty, model, track_method="ctd")
    assert (ours.poses.xs("likelihood", axis=1, level="coords") <= 0).all().all()


@pytest.mark.parametrize("args", [{}, {"track_method": "ctd"}])
def test_a_takeover_ends_with_the_same_bytes(
    film: Path, model: Path, run: Callable[..., Ours], tmp_path: Path, args: dict[str, Any]
) -> None:
    """A checkpoint holds what was found, and what is known of the frame before."""
    whole = run(film, model, **args)
    parts = tmp_path / "parts"
    parts.mkdir()
    run(film, model, parts, **args)
    kept = sorted(parts.iterdir())
    assert len(kept) > 3
    for file in kept[len(kept) // 2 :]:
        file.unlink()
    ENGINE.models.clear()
    ours = run(film, model, parts, **args)
    pd.testing.assert_frame_equal(ours.poses, whole.poses, rtol=0, atol=0)


def test_out_of_memory(
    film: Path,
    model: Path,
    stock: Stock,
    run: Callable[..., Ours],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Crops are halved until memory suffices, and none gets lost."""
    sizes: list[int] = []
    predict = CTDInferenceRunner.predict

    def small(self: Any, inputs: Any, **named: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, inputs, **named)

    monkeypatch.setattr(CTDInferenceRunner, "predict", small)
    same(run(film, model).poses, stock.poses)
    assert max(sizes) == BATCH
    assert sizes.count(BATCH) == 1


@given(
    poses=arrays(
        np.float64,
        (2, 3, 3),
        elements=st.one_of(
            st.floats(-3, 70), st.integers(-1, 66).map(float), st.just(float("nan"))
        ),
    ),
    kernel=st.sampled_from([(15, 15), (7, 21), (3, 3)]),
)
@settings(deadline=None, max_examples=300)
def test_conditions_are_drawn_as_deeplabcut_draws_them(
    poses: npt.NDArray[np.float64], kernel: tuple[int, int]
) -> None:
    """At the edges, beyond them, at no place at all: the same bits for the network."""
    theirs = StackedKeypointEncoder(num_joints=3, kernel_size=kernel, img_size=(48, 64))
    wanted = theirs(poses, (48, 64)).astype(np.float32)
    np.testing.assert_array_equal(DrawnConditions(theirs)(poses, (48, 64)), wanted)


def test_a_box_without_a_row(model: Path) -> None:
    """Conditions at the picture's edge: DeepLabCut divides by zero, here they are left out."""
    loaded = inference._prepared(network.load(model, None, "cpu"))
    predictor = ConditionalPredictor(loaded, _At([0.2, 0.4, 0.3]), BATCH, "fp32", as_stock=False)
    frames = [(number, np.zeros((HEIGHT, WIDTH, 3), np.uint8)) for number in range(3)]
    batches = list(predictor.predictions(iter(frames)))
    assert [number for batch in batches for number, _ in batch.frames] == [0, 1, 2]


class _At(Predictor):
    """Conditions of one animal, below the picture, but for a sliver of its box."""

    def __init__(self, depths: list[float]) -> None:
        self._depths = depths
        self.setup = {}

    def summary(self) -> dict[str, Any]:
        return {}

    def predictions(self, frames: Any) -> Any:
        for (number, _), depth in zip(frames, self._depths, strict=True):
            y = HEIGHT + 20 - depth  # DeepLabCut adds 20 pixels around
            poses = np.array([[[40.0, y, 0.9], [60.0, y + 9, 0.9], [50.0, y + 5, 0.9]]])
            yield PredictedBatch([(number, {"bodyparts": poses})])


# -- what can't be used ----


def test_a_model_of_one_shuffle(film: Path, model: Path, run: Callable[..., Ours]) -> None:
    """As an older posedrop pushed it: the words say to push it again."""
    old = model.with_name("old")
    shutil.copytree(model, old)
    [first] = old.glob("dlc-models-pytorch/*/*shuffle1")
    shutil.rmtree(first)
    with pytest.raises(ModelError, match=r"push the model again: .*--shuffle 2") as caught:
        run(film, old)
    assert caught.value.code == "conditional_top_down"
    [config] = old.glob("dlc-models-pytorch/*/*shuffle2/train/pytorch_config.yaml")
    content = yaml.safe_load(config.read_text())
    content["inference"]["conditions"] = "/lab/predictions.h5"
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="a file of predictions"):
        run(film, old)


def test_following_by_ctd_needs_a_conditional_model(
    film: Path, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """Of another model it is refused in words, and so is what such a model can't do."""
    first = make_project(tmp_path / "first")
    with pytest.raises(AnalysisError, match="ellipse, box or skeleton") as caught:
        run(film, first, track_method="ctd")
    assert (caught.value.code, caught.value.field) == ("bad_track_method", "args.track_method")
    with pytest.raises(AnalysisError) as caught:
        run(film, project, dynamic={})
    assert caught.value.code == "bad_dynamic"
