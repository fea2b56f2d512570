"""Several animals, top-down models, dynamic crops and the model zoo: as DeepLabCut has them."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.config.pose import PoseConfig
from deeplabcut.pose_estimation_pytorch.data import DLCLoader
from torchvision.models import get_model_weights

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import DeepLabCut2D, deeplabcut_2d
from posedrop.analyses.superanimal import SuperAnimalArgs, check, superanimal
from posedrop.errors import AnalysisError, ModelError
from posedrop.models import packing
from posedrop.models.projects import read_yaml
from posedrop.models.zoo import TORCHVISION, ZOO
from tests.support.animals import (
    BATCH,
    CORNER,
    FRAMES,
    HIDDEN,
    SPOTS,
    centres,
    make_project,
    two_animal_film,
    zoo_weights,
)
from tests.support.samples import Sample, sample
from worker.engine import inference, network, zoo
from worker.engine.state import ENGINE
from worker.poses import tables, tracking
from worker.video import decode
from worker.video.draw import render

#: Stock DeepLabCut and posedrop must agree to this, in pixels.
TOLERANCE = 0.01
CROP = {"x1": 2, "x2": 126, "y1": 6, "y2": 94}
#: With its thread for decoding, stock loses a frame's result now and then.
ONE_THREAD = {"multithreading": {"enabled": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("animals")


@pytest.fixture(scope="module")
def film(folder: Path) -> Path:
    return two_animal_film(folder / "herd.mp4", range(FRAMES))


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    return make_project(folder / "project", unique=["corner"])


# -- the two sides ----


class Stock(NamedTuple):
    """What DeepLabCut itself made."""

    scorer: str
    out: Path
    poses: pd.DataFrame


def analysed(film: Path, model: Path, out: Path, suffix: str = "_el", **options: Any) -> Stock:
    import deeplabcut

    out.mkdir(exist_ok=True)
    scorer = deeplabcut.analyze_videos(
        str(model / "config.yaml"),
        [str(film)],
        device="cpu",
        destfolder=str(out),
        inference_cfg=ONE_THREAD,
        **{"batch_size": BATCH, **options},
    )
    poses = pd.read_hdf(out / f"{film.stem}{scorer}{suffix}.h5")
    assert isinstance(poses, pd.DataFrame)
    return Stock(scorer, out, poses)


class Ours(NamedTuple):
    """What posedrop made."""

    out: Path
    answer: dict[str, Any]
    poses: pd.DataFrame


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ours]:
    def runs(film: Path, model: Path, **args: Any) -> Ours:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        whole = deeplabcut_2d.normalise({"model": "herd", "batch_size": BATCH, **args})
        job = Job(film, out, whole, model, None, lambda *_: None, device="cpu")
        inference.run(job)
        answer = tables.finish(job)
        poses = pd.read_hdf(out / "poses.h5")
        assert isinstance(poses, pd.DataFrame)
        return Ours(out, answer, poses)

    return runs


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """No test sees another's models."""
    ENGINE.models.clear()
    yield
    ENGINE.models.clear()


def same(ours: pd.DataFrame, stock: pd.DataFrame, *, ties: float = 0.0) -> None:
    """Assert the same table; a row that stock leaves out after its last track is empty.

    Args:
        ties: the share of numbers that may be a quarter of a cell apart, which is less than 0.1
            pixels: without training, which neighbour of a peak is the higher one is a matter of
            the last bit, and so of the processor.
    """
    assert ours.columns.equals(stock.columns)
    whole = stock.set_axis(ours.index[: len(stock)], axis="index").reindex(ours.index).to_numpy()
    apart = np.abs(ours.to_numpy() - whole) > TOLERANCE
    assert apart.mean() <= ties
    np.testing.assert_allclose(
        ours.to_numpy(), whole, rtol=0, atol=0.1 if ties else TOLERANCE, equal_nan=True
    )


# -- several animals ----


@pytest.mark.parametrize(
    ("config", "args", "suffix"),
    [
        ({"unique": ["corner"]}, {}, "_el"),
        ({"unique": ["corner"], "default_track_method": "box"}, {}, "_bx"),
        # DeepLabCut's skeleton tracker can't do with unique bodyparts.
        ({"default_track_method": "skeleton"}, {}, "_sk"),
        ({"identity": True}, {}, "_el"),
        ({"identity": True, "unique": ["corner"]}, {"identity_only": True}, "_el"),
    ],
)
def test_tracks_are_those_of_analyze_videos(
    film: Path,
    run: Callable[..., Ours],
    tmp_path: Path,
    config: dict[str, Any],
    args: dict[str, Any],
    suffix: str,
) -> None:
    """Assemblies, tracklets and stitched tracks, by each of DeepLabCut's trackers."""
    model = make_project(tmp_path / "model", **config)
    stock = analysed(film, model, tmp_path / "stock", suffix, **args)
    ours = run(film, model, **args)
    same(ours.poses, stock.poses)
    details = ours.answer["details"]
    assert details["scorer"] == stock.scorer
    assert details["track_method"] == config.get("default_track_method", "ellipse")
    assert (ours.answer["rows"], details["tracks"], details["tracklets"]) == (FRAMES, 2, 3)


def test_tracks_follow_the_animals(film: Path, project: Path, run: Callable[..., Ours]) -> None:
    """Each animal keeps its own columns, over the gap as well; the corner is nobody's."""
    poses = run(film, project, filter="none").poses[deeplabcut_scorer(project)]
    for frame in range(FRAMES):
        if frame == HIDDEN.stop:  # the tracker follows a new animal from its second frame on
            continue
        found = sorted(
            (float(poses.loc[frame, (name, "snout", "y")]) for name in ("ada", "bob")),
            key=lambda y: (np.isnan(y), y),
        )
        expected = [y for _, y in centres(frame)]
        assert found[: len(expected)] == pytest.approx(expected, abs=1)
        assert np.isnan(found[len(expected) :]).all()
        corner = poses.loc[frame, "single"]["corner"][["x", "y"]]
        assert corner.tolist() == pytest.approx(CORNER, abs=1)
    for name in ("ada", "bob"):
        assert poses[name]["snout"]["y"].std() < 1


def deeplabcut_scorer(project: Path) -> str:
    return network.load(project, None, "cpu").scorer


def test_crop_and_number_of_animals(
    film: Path, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """A crop's tracks are in coordinates of the whole frame; an animal too many has none."""
    sides = [CROP["x1"], CROP["x2"], CROP["y1"], CROP["y2"]]
    stock = analysed(film, project, tmp_path / "stock", cropping=sides, n_tracks=3)
    for name, offset in (("x", CROP["x1"]), ("y", CROP["y1"])):
        stock.poses.loc[:, stock.poses.columns.get_level_values("coords") == name] += offset
    ours = run(film, project, crop=CROP, animals=3)
    same(ours.poses, stock.poses)
    assert ours.answer["details"]["individuals"] == ["ind1", "ind2", "ind3"]
    assert ours.answer["details"]["tracks"] == 3 - int(
        ours.poses.isna().all().groupby("individuals").all().sum()
    )


@pytest.mark.parametrize("names", [["eve", "fay"], ["eve", "fay", "gil"]])
def test_individuals_edited_after_the_training(
    film: Path, run: Callable[..., Ours], tmp_path: Path, names: list[str]
) -> None:
    """Tracks are as many as config.yaml names, and called so, as stitch_tracklets has them."""
    model = make_project(tmp_path / "model")
    path = model / "config.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "individuals": names}))
    stock = analysed(film, model, tmp_path / "stock")
    ours = run(film, model)
    same(ours.poses, stock.poses)
    assert ours.answer["details"]["individuals"] == names
    assert packing.plan_push(model, "herd")[0].individuals == names
    assert network.load(model, None, "cpu").individuals == ["ada", "bob"]


def test_stride(film: Path, project: Path, run: Callable[..., Ours], tmp_path: Path) -> None:
    """Every second frame is what a film of these frames alone is; the index says which."""
    chosen = range(1, 29, 2)
    short = two_animal_film(tmp_path / "short.mp4", chosen)
    stock = analysed(short, project, tmp_path / "stock")
    ours = run(film, project, start=1, stop=29, stride=2)
    assert list(ours.poses.index) == list(chosen)
    same(ours.poses, stock.poses)


@pytest.mark.parametrize(
    ("projects", "asked"), [("ellipse", None), ("box", None), ("ellipse", "box")]
)
def test_one_bodypart_is_followed_by_a_box(
    project: Path, tmp_path: Path, projects: str, asked: str | None
) -> None:
    """An animal of a single point has no ellipse, and no box: DeepLabCut's trackers need one.

    Also where DeepLabCut has written `box` into the project, as it does when it has run once.
    """
    model = network.load(project, None, "cpu")
    assert model.multi_animal is not None
    settings = {**model.multi_animal.settings, "boundingboxslack": 0}
    point = replace(
        model.multi_animal,
        bodyparts=["snout"],
        unique_bodyparts=[],
        track_method=projects,
        settings=settings,
    )
    found = [
        {"bodyparts": np.array([[[x + frame, y, 0.9]] for x, y in centres(0)])}
        for frame in range(12)
    ]
    args = DeepLabCut2D.model_validate({"model": "herd", "track_method": asked})
    tracked = tracking.track(found, np.arange(12), point, args, tmp_path)
    assert (tracked.track_method, tracked.tracks) == ("box", 2)
    assert tracked.table.notna().all().all()


@pytest.mark.parametrize(
    ("frames", "animals", "args", "code", "words"),
    [
        (12, False, {}, "no_detections", "no animal in any frame"),
        (6, True, {}, "no_tracklets", "Analyse more frames"),
        (12, True, {"min_tracklet": 100}, "no_tracklets", "Analyse more frames"),
        (12, True, {"track_method": "skeleton"}, "bad_track_method", "corner"),
    ],
)
def test_no_tracks_to_be_had(
    project: Path,
    run: Callable[..., Ours],
    tmp_path: Path,
    frames: int,
    animals: bool,
    args: dict[str, Any],
    code: str,
    words: str,
) -> None:
    """What tracking can't do is said in words: what there was, and what to do."""
    film = two_animal_film(tmp_path / "film.mp4", range(frames), animals=animals)
    with pytest.raises(AnalysisError, match=words) as caught:
        run(film, project, **args)
    assert caught.value.code == code
    print(caught.value)


def test_names_of_digits_are_deeplabcuts(
    folder: Path, film: Path, run: Callable[..., Ours]
) -> None:
    """What a laboratory calls 0098, 08 and 09 is called so in the scorer and in the tables."""
    model = make_project(folder / "0098")
    [shuffle] = model.glob("dlc-models-pytorch/iteration-0/*")
    shuffle.rename(shuffle.with_name(shuffle.name.replace("herd", "0098")))
    for path in (model / "config.yaml", *model.rglob("pytorch_config.yaml")):
        content = read_yaml(path)
        named = content.get("metadata", content)
        named["individuals"] = ["08", "09"]
        if "Task" in content:
            content["Task"] = "0098"
        path.write_text(json.dumps(content))  # which is YAML, and has quotes
    [weights] = model.rglob("snapshot-0*.pt")
    expected = DLCLoader(model / "config.yaml", shuffle=1)
    _, files = packing.plan_push(model, "herd")
    pushed = folder / "0098-pushed"
    for source, name in files:
        target = pushed / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    ours = network.load(pushed, None, "cpu")
    assert "_0098Jan1shuffle1_" in ours.scorer
    assert ours.scorer == expected.scorer(weights)
    assert ours.individuals == expected.model_cfg["metadata"]["individuals"] == ["08", "09"]
    poses = run(film, pushed).poses
    assert poses.columns.get_level_values("individuals").unique().tolist() == ["08", "09"]


def test_identities_that_nobody_found_are_not_followed(
    film: Path, project: Path, run: Callable[..., Ours], tmp_path: Path, monkeypatch: Any
) -> None:
    """A model without an identity head can't follow by identity: it would swap animals at random.

    It is said before the network runs; and of predictions of another run behind it.
    """
    model = network.load(project, None, "cpu").multi_animal
    assert model is not None
    model = replace(model, unique_bodyparts=[])
    found = [{"bodyparts": np.array([[[x, y, 0.9]] * 3 for x, y in centres(0)])}] * 12
    args = DeepLabCut2D.model_validate({"model": "herd", "identity_only": True})
    with pytest.raises(AnalysisError) as caught:
        tracking.track(found, np.arange(12), model, args, tmp_path)
    assert (caught.value.code, caught.value.field) == ("no_identity", "args.identity_only")
    monkeypatch.setattr(inference.predictions, "write", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(AnalysisError, match="identity: true") as caught:
        run(film, project, identity_only=True)
    assert caught.value.code == "no_identity"


# -- other software opens it ----


def test_results_open_in_movement_pandas_and_deeplabcut(
    film: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """The tables are DeepLabCut's: its own tools and `movement` take them."""
    import deeplabcut
    from movement.io import load_poses

    model = make_project(tmp_path / "model")
    ours = run(film, model)
    for name in ("poses.h5", "poses.csv"):
        dataset = load_poses.from_dlc_file(ours.out / name, fps=30)
        assert list(dataset.individuals.values) == ["ada", "bob"]
        assert list(dataset.keypoints.values) == list(SPOTS)
        position = dataset.position.transpose("time", "individuals", "keypoints", "space")
        table = ours.poses.to_numpy().reshape((FRAMES, 2, len(SPOTS), 3))
        np.testing.assert_allclose(position.values, table[..., :2], rtol=1e-6)
    scorer = ours.answer["details"]["scorer"]
    named = tmp_path / "named"
    named.mkdir()
    shutil.copy(ours.out / "poses.h5", named / f"{film.stem}{scorer}_el.h5")
    options: dict[str, Any] = {"destfolder": str(named), "track_method": "ellipse"}
    config = str(model / "config.yaml")
    deeplabcut.filterpredictions(config, [str(film)], **options)
    expected = pd.read_hdf(named / f"{film.stem}{scorer}_el_filtered.h5")
    actual = pd.read_hdf(ours.out / "poses_filtered.h5")
    assert isinstance(expected, pd.DataFrame)
    assert isinstance(actual, pd.DataFrame)
    pd.testing.assert_frame_equal(actual, expected, rtol=0, atol=0)
    deeplabcut.plot_trajectories(config, [str(film)], filtered=True, **options)
    assert len(list(named.rglob("*.png"))) >= 3
    shape: dict[str, Any] = {"header": [0, 1, 2, 3], "index_col": 0}
    csv = pd.read_csv(ours.out / "poses.csv", **shape)
    np.testing.assert_allclose(csv.to_numpy(), ours.poses.to_numpy())


def test_each_animal_is_drawn(film: Path, run: Callable[..., Ours], tmp_path: Path) -> None:
    """The labelled video has all frames, where an animal is missing too, and unlike the film."""
    ours = run(film, make_project(tmp_path / "model", unique=["corner"]))
    out = tmp_path / "drawn"
    out.mkdir()
    answer = render(
        {
            "video": str(film),
            "poses": str(ours.out / "poses.h5"),
            "out": str(out),
            "pcutoff": 0.1,
            "style": {"skeleton": True, "trail": 5},
            "skeleton": [["snout", "tail"]],
            "start": 0,
            "stop": None,
            "stride": 1,
        },
        lambda *_: None,
    )
    assert answer["frames"] == FRAMES
    assert {path.name for path in out.iterdir()} == {
        "pose.mp4",
        "trajectory.png",
        "likelihood.png",
    }
    pairs = zip(decode.frames(film), decode.frames(out / "pose.mp4"), strict=True)
    changed = [np.abs(a.astype(int) - b).max() for (_, a), (_, b) in pairs]
    assert min(changed) > 60


# -- top-down ----


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stock DeepLabCut build detectors where nothing can be downloaded."""
    from torchvision.models import mobilenet_v3_large

    weights = mobilenet_v3_large(weights=None).state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights
    )


@pytest.mark.parametrize(
    ("detector", "individuals", "frames", "suffix"),
    [
        ("ssdlite", ["ada", "bob"], 12, "_el"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", ["ada"], 3, ""),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_top_down_is_that_of_analyze_videos(
    run: Callable[..., Ours],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    detector: str,
    individuals: list[str],
    frames: int,
    suffix: str,
) -> None:
    """A detector's boxes, poses in them, and tracks; and no detector needs a download."""
    model = make_project(tmp_path / "model", individuals=individuals, detector=detector)
    short = two_animal_film(tmp_path / "short.mp4", range(frames))
    stock = analysed(short, model, tmp_path / "stock", suffix)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    ours = run(short, model, precision="fp32")
    assert ours.answer["details"]["scorer"] == stock.scorer
    same(ours.poses, stock.poses)
    assert ours.poses.notna().all().all()


# -- dynamic cropping ----


def test_dynamic_crop_is_that_of_analyze_videos(
    folder: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """Each frame is cropped around the pose in the one before."""
    mouse: Sample = sample(folder, 12)
    model = tmp_path / "model"
    shutil.copytree(mouse.model, model, copy_function=shutil.copyfile)
    for path in (model, *model.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    options: dict[str, Any] = {"batch_size": 1, "dynamic": (True, 0.5, 30)}
    stock = analysed(mouse.film, model, tmp_path / "stock", suffix="", **options)
    ours = run(mouse.film, mouse.model, dynamic={"threshold": 0.5, "margin": 30})
    same(ours.poses, stock.poses)
    plain = run(mouse.film, mouse.model)
    assert not np.allclose(plain.poses.to_numpy(), ours.poses.to_numpy(), atol=TOLERANCE)


@pytest.mark.usefixtures("untrained")
def test_dynamic_crop_is_not_for_top_down(
    film: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """DeepLabCut would leave it out and say so in a log; here it is refused."""
    model = make_project(tmp_path / "model", individuals=["ada"], detector="ssdlite")
    with pytest.raises(AnalysisError) as caught:
        run(film, model, dynamic={})
    assert (caught.value.code, caught.value.field) == ("bad_dynamic", "args.dynamic")


# -- the model zoo ----


#: The default, fasterrcnn_resnet50_fpn_v2, is the same kind of network, but half a minute a frame.
RCNN = "fasterrcnn_mobilenet_v3_large_fpn"


@pytest.mark.parametrize(
    ("args", "frames"),
    [
        ({"model": "superanimal_bird", "detector_name": "ssdlite"}, 3),
        ({"model": "superanimal_topviewmouse", "detector_name": RCNN}, 2),
        ({"model": "superanimal_humanbody"}, 2),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_superanimal_is_that_of_video_inference_superanimal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], frames: int
) -> None:
    """Weights of the real architectures, pushed as a folder, give the table that stock gives."""
    import deeplabcut

    exactly = {"precision": "fp32", "batch_size": 1}
    whole = superanimal.normalise({**args, **exactly, "max_individuals": 2})
    wanted = SuperAnimalArgs.model_validate(whole)
    folder = zoo_weights(tmp_path / "weights", wanted)
    pose, detector = (folder / file for file in wanted.files)
    people = wanted.superanimal == "superanimal_humanbody"
    if people:  # whose detector stock has from torchvision, with its weights, by a download
        found = torch.load(detector, weights_only=True)
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: found
        )
    config = PoseConfig.build_for_superanimal_inference(
        wanted.superanimal,
        model_name=wanted.model_name,
        detector_name=None if people else wanted.detector_name,
        max_individuals=2,
        device="cpu",
    ).to_dict()
    config["inference"] = ONE_THREAD
    film = two_animal_film(tmp_path / "film.mp4", range(frames))
    # Under the name that stock gives what it downloads.
    kept = tmp_path / f"{wanted.superanimal}_{wanted.model_name}.pt"
    shutil.copy(pose, kept)
    results = deeplabcut.video_inference_superanimal(
        [str(film)],
        wanted.superanimal,
        wanted.model_name,
        wanted.detector_name,
        dest_folder=str(tmp_path / "stock"),
        customized_model_config=config,
        customized_pose_checkpoint=str(kept),
        customized_detector_checkpoint=None if people else str(detector),
        max_individuals=2,
        device="cpu",
        create_labeled_video=False,
    )
    out = tmp_path / "out"
    out.mkdir()
    record, _ = packing.plan_push(folder, wanted.superanimal)
    check(wanted, record)
    job = Job(film, out, whole, folder, None, lambda *_: None, device="cpu")
    zoo.run(job)
    answer = tables.finish_superanimal(job)
    ours = pd.read_hdf(out / "poses.h5")
    assert isinstance(ours, pd.DataFrame)
    [stock] = results.values()
    same(ours, stock, ties=0.02)
    assert (ours.xs("likelihood", axis=1, level="coords") > -1).any().any()
    assert (answer["rows"], answer["details"]["individuals"]) == (frames, ["animal0", "animal1"])


def test_detectors_of_people_are_torchvisions() -> None:
    """Their files are those that torchvision downloads, and DeepLabCut by it."""
    people = ZOO["superanimal_humanbody"]
    assert set(people.torchvision) == set(people.detectors)
    for name, file in people.torchvision.items():
        url = get_model_weights(name).DEFAULT.url
        assert url == f"{TORCHVISION}/{file}"
        assert f"download {file} from {TORCHVISION}" in people.how_to_get([file])


def test_superanimal_of_other_weights(film: Path, tmp_path: Path) -> None:
    """Weights that are another network's are refused, and so are those that aren't there."""
    args = {"model": "superanimal_bird", "detector_name": "ssdlite"}
    whole = superanimal.normalise(args)
    folder = tmp_path / "weights"
    folder.mkdir()
    job = Job(film, tmp_path, whole, folder, None, lambda *_: None, device="cpu")
    with pytest.raises(ModelError, match="posedrop models push") as caught:
        zoo.run(job)
    assert caught.value.code == "weights_missing"
    for file in SuperAnimalArgs.model_validate(whole).files:
        torch.save({"model": {"layer": torch.zeros(1)}}, folder / file)
    with pytest.raises(ModelError) as caught:
        zoo.run(job)
    assert caught.value.code == "model_damaged"


class Output(dict[str, Any]):
    """What DeepLabCut makes of a film's predictions, and it is seen whether it is there."""


def test_what_assemblies_are_made_of_is_in_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepLabCut reads it from a file: ours is gone by then."""
    made: list[weakref.ref[Output]] = []

    def output(*_: Any) -> Output:
        found = Output(frame0={})
        made.append(weakref.ref(found))
        return found

    def assembled(full: Path, target: Path, *_: Any) -> None:
        assert made[0]() is None
        shutil.copyfile(full, target)

    monkeypatch.setattr(tracking, "_generate_output_data", output)
    monkeypatch.setattr(tracking, "_generate_assemblies_file", assembled)
    animals: Any = SimpleNamespace(bodyparts=["snout"], unique_bodyparts=[])
    assert tracking._assemblies([], animals, tmp_path) == {"frame0": {}}
