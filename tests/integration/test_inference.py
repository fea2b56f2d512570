"""DeepLabCut in posedrop gives what DeepLabCut gives, and a model can't do more than that."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

from posedrop import packing
from posedrop.analyses import Job
from posedrop.errors import AnalysisError, ModelError
from posedrop.records import Progress
from tests.samples import Sample, sample
from worker.analyses.deeplabcut_2d import DeepLabCut2D, deeplabcut_2d
from worker.child import Child

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch

from worker import arithmetic, feed, hardware, inference, network, pair, tables, video

#: Stock DeepLabCut and posedrop must agree to this in fp32, in pixels.
TOLERANCE = 0.01
BATCH = 8
CROP = {"x1": 64, "x2": 576, "y1": 48, "y2": 432}


class Stock(NamedTuple):
    """What DeepLabCut itself made of the same film with the same model."""

    config: Path
    film: Path
    out: Path
    scorer: str
    poses: pd.DataFrame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inference")


@pytest.fixture(scope="module")
def long(folder: Path) -> Sample:
    return sample(folder, 60)


@pytest.fixture(scope="module")
def short(folder: Path) -> Sample:
    return sample(folder, 12)


@pytest.fixture(scope="module")
def project(folder: Path, long: Sample) -> Path:
    """A copy of the model that may be written to, as DeepLabCut wants it."""
    return copied(long.model, folder / "project")


def copied(model: Path, target: Path) -> Path:
    shutil.copytree(model, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def analysed(film: Path, config: Path, out: Path, **options: Any) -> Stock:
    import deeplabcut

    scorer = deeplabcut.analyze_videos(
        str(config),
        [str(film)],
        batch_size=BATCH,
        device="cpu",
        destfolder=str(out),
        save_as_csv=True,
        # With its thread for decoding, stock loses a frame's result now and then.
        inference_cfg={"multithreading": {"enabled": False}},
        **options,
    )
    poses = pd.read_hdf(out / f"{film.stem}{scorer}.h5")
    assert isinstance(poses, pd.DataFrame)
    return Stock(config, film, out, scorer, poses)


@pytest.fixture(scope="module")
def stock(long: Sample, project: Path, folder: Path) -> Stock:
    return analysed(long.film, project / "config.yaml", folder / "stock")


class Ours(NamedTuple):
    """What posedrop made."""

    out: Path
    answer: dict[str, Any]
    poses: pd.DataFrame


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ours]:
    """Run the analysis in this process: ``run(film, model, **args)``."""

    def runs(
        film: Path,
        model: Path,
        digest: str | None = "d" * 64,
        model_bytes: int = 2**30,
        **args: Any,
    ) -> Ours:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        whole = deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32", **args})
        job = Job(film, out, whole, model, digest, lambda *_: None, "cpu", model_bytes=model_bytes)
        return read(out, tables.finish(job, inference.run(job)))

    return runs


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """No test sees another's models, nor what was learnt of them."""
    known: tuple[Any, ...] = (inference._warm, feed._best, feed._most)
    for each in known:
        each.clear()
    yield
    for each in known:
        each.clear()


def read(out: Path, answer: dict[str, Any]) -> Ours:
    poses = pd.read_hdf(out / "poses.h5")
    assert isinstance(poses, pd.DataFrame)
    return Ours(out, answer, poses)


def furthest(one: pd.DataFrame, two: pd.DataFrame) -> float:
    return float(np.abs(one.to_numpy() - two.to_numpy()).max())


# -- the same as stock ----


@pytest.mark.timeout(900)
def test_poses_are_those_of_analyze_videos(stock: Stock, long: Sample, tmp_path: Path) -> None:
    """In the child as it is used: same scorer, columns, index, types, file format, and numbers."""
    out = tmp_path / "out"
    out.mkdir()
    stages: list[str] = []
    payload = {
        "analysis": "deeplabcut_2d",
        "video": str(long.film),
        "out": str(out),
        "args": deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32"}),
        "model": str(long.model),
        "model_digest": "d" * 64,
        "device": "cpu",
    }
    child = Child("inference", tmp_path, warm=["worker.inference"])

    def call(task: str, payload: dict[str, Any]) -> dict[str, Any]:
        return child.call(
            f"worker.engine:{task}",
            payload,
            on_progress=lambda progress: stages.append(progress.stage),
            should_stop=lambda: False,
            wall_seconds=600,
            log=tmp_path / "run.log",
        )

    try:
        answer = call("run_analysis", payload)
        answer = call("finish_analysis", {**payload, "answer": answer})
    finally:
        child.close()
    ours = read(out, answer)
    deviation = furthest(ours.poses, stock.poses)
    print(f"largest difference to analyze_videos: {deviation} px in {len(ours.poses)} frames")
    assert ours.poses.columns.equals(stock.poses.columns)
    assert ours.poses.index.equals(stock.poses.index)
    assert ours.poses.dtypes.equals(stock.poses.dtypes)
    assert deviation <= TOLERANCE
    assert (answer["frames_expected"], answer["frames_decoded"], answer["rows"]) == (60, 60, 60)
    assert answer["missing"] == []
    assert answer["details"]["scorer"] == stock.scorer
    assert answer["details"]["bodyparts"] == long.bodyparts
    assert list(dict.fromkeys(stages)) == ["load", "infer", "write"]


def test_csv_is_that_of_analyze_videos(
    stock: Stock, long: Sample, run: Callable[..., Ours]
) -> None:
    """poses.csv reads as DeepLabCut's own csv does."""
    ours = run(long.film, long.model, stop=BATCH)
    shape: dict[str, Any] = {"header": [0, 1, 2], "index_col": 0}
    expected = pd.read_csv(stock.out / f"{long.film.stem}{stock.scorer}.csv", **shape)[:BATCH]
    actual = pd.read_csv(ours.out / "poses.csv", **shape)
    assert actual.columns.equals(expected.columns)
    assert furthest(actual, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({"filter": "median"}, {"filtertype": "median"}),
        ({"filter": "median", "filter_window": 9}, {"filtertype": "median", "windowlength": 9}),
        (
            {"filter": "arima", "arima_ar_degree": 1, "arima_p_bound": 0.2},
            {"filtertype": "arima", "ARdegree": 1, "p_bound": 0.2},
        ),
    ],
)
def test_filter_is_that_of_filterpredictions(
    stock: Stock, tmp_path: Path, args: dict[str, Any], options: dict[str, Any]
) -> None:
    """On the same poses both give the same numbers, bit by bit."""
    import deeplabcut

    name = f"{stock.film.stem}{stock.scorer}"
    for suffix in (".h5", "_meta.pickle"):
        shutil.copy(stock.out / f"{name}{suffix}", tmp_path)
    deeplabcut.filterpredictions(
        str(stock.config), [str(stock.film)], destfolder=str(tmp_path), **options
    )
    expected = pd.read_hdf(tmp_path / f"{name}_filtered.h5")
    assert isinstance(expected, pd.DataFrame)
    whole = DeepLabCut2D.model_validate({"model": "mouse", **args})
    pd.testing.assert_frame_equal(tables.filtered(stock.poses, whole), expected, rtol=0, atol=0)


def test_crop_gives_coordinates_of_the_whole_frame(
    short: Sample, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """The network sees the crop alone, as with DeepLabCut, whose coordinates are relative to it."""
    sides = [CROP["x1"], CROP["x2"], CROP["y1"], CROP["y2"]]
    expected = analysed(short.film, project / "config.yaml", tmp_path / "stock", cropping=sides)
    shifted = expected.poses.copy()
    for name, offset in (("x", CROP["x1"]), ("y", CROP["y1"])):
        shifted.loc[:, shifted.columns.get_level_values("coords") == name] += offset
    ours = run(short.film, short.model, crop=CROP)
    assert furthest(ours.poses, shifted) <= TOLERANCE
    assert ours.answer["details"]["crop"] == CROP


def test_crop_of_the_project(short: Sample, run: Callable[..., Ours], tmp_path: Path) -> None:
    """A project that says ``cropping: true`` is cropped so, as with analyze_videos."""
    model = copied(short.model, tmp_path / "model")
    edit(model / "config.yaml", cropping=True, **CROP)
    ours = run(short.film, model, stop=2)
    assert ours.answer["details"]["crop"] == CROP


def test_selection_of_frames(short: Sample, run: Callable[..., Ours]) -> None:
    """start, stop and stride select; the index is the frame's number in the video."""
    whole = run(short.film, short.model)
    part = run(short.film, short.model, start=2, stop=11, stride=3)
    assert list(part.poses.index) == [2, 5, 8]
    # Another composition of batches: equal up to the arithmetic of a convolution.
    assert furthest(part.poses, whole.poses.loc[[2, 5, 8]]) <= TOLERANCE
    assert (part.answer["frames_expected"], part.answer["rows"]) == (3, 3)


def test_filter_none_writes_no_filtered_tables(short: Sample, run: Callable[..., Ours]) -> None:
    """``filter: none`` leaves the plain tables alone in the folder."""
    ours = run(short.film, short.model, stop=2, filter="none")
    assert sorted(path.name for path in ours.out.iterdir()) == ["poses.csv", "poses.h5"]


def test_frames_that_do_not_decode_are_told(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames without a picture have no row, keep the others' numbers, and are listed."""
    decode = video.frames
    lost = {3, 4, 7}
    monkeypatch.setattr(
        video, "frames", lambda *a, **k: (one for one in decode(*a, **k) if one[0] not in lost)
    )
    ours = run(short.film, short.model)
    assert list(ours.poses.index) == [0, 1, 2, 5, 6, 8, 9, 10, 11]
    assert ours.answer["missing"] == [{"first": 3, "last": 4}, {"first": 7, "last": 7}]
    assert (ours.answer["frames_expected"], ours.answer["frames_decoded"]) == (12, 9)


# -- one after the other ----


def test_two_at_once_are_as_each_alone(
    long: Sample, short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """The second is decoded ahead in a child of its own, and has the network after the first."""
    expected = {sample.film: run(sample.film, sample.model) for sample in (long, short)}
    both = pair.Pair("gpu", tmp_path, warm=["worker.inference"])
    both.start(all_of_them=True)
    begun = threading.Event()

    def analyse(sample: Sample) -> Ours:
        out = tmp_path / sample.film.stem
        out.mkdir()
        payload = {
            "analysis": "deeplabcut_2d",
            "video": str(sample.film),
            "out": str(out),
            "args": deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32"}),
            "model": str(sample.model),
            "model_digest": "d" * 64,
            "device": "cpu",
        }

        def on_progress(progress: Progress) -> None:
            if progress.stage == "infer":
                begun.set()

        answer = both.call(
            "worker.engine:run_analysis",
            payload,
            makes_ready=True,
            on_progress=on_progress,
            should_stop=lambda: False,
            wall_seconds=600,
            log=tmp_path / f"{sample.film.stem}.log",
        )
        job = Job(sample.film, out, payload["args"], None, None, lambda *_: None)
        return read(out, tables.finish(job, answer))

    try:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(analyse, long)
            assert begun.wait(300)
            second = threads.submit(analyse, short)
            one, two = first.result(), second.result()
    finally:
        both.close()
    for ours, its in ((one, long), (two, short)):
        assert furthest(ours.poses, expected[its.film].poses) == 0
    last, following = one.answer["details"], two.answer["details"]
    assert last["inference_ended_at"] <= following["inference_began_at"]


# -- warm ----


def test_second_video_finds_the_model_loaded(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One digest is loaded once, whatever the batch size; no digest, no trust in the folder."""
    loads: list[Path] = []
    load = network.load

    def counted(folder: Path, snapshot: str | None, device: str) -> network.Network:
        loads.append(folder)
        return load(folder, snapshot, device)

    monkeypatch.setattr(network, "load", counted)
    first = run(short.film, short.model, stop=4)
    second = run(short.film, short.model, stop=4, batch_size=4)
    assert len(loads) == 1
    assert furthest(first.poses, second.poses) <= TOLERANCE
    run(short.film, short.model, digest=None, stop=1)
    assert len(loads) == 2


def test_models_stay_loaded_within_a_bound(short: Sample, run: Callable[..., Ours]) -> None:
    """All copies of the weights count; the least recently used goes, never the one in use."""

    def digests() -> list[Any]:
        return [key[0] for key in inference._warm]

    run(short.film, short.model, digest="a", stop=1)
    [warm] = inference._warm.models()
    exact = warm.bytes
    weights = network.load(short.model, None, "cpu").pose.model.state_dict().values()
    whole = sum(value.numel() * value.element_size() for value in weights)
    # As they are, and as oneDNN wants them.
    assert exact == pytest.approx(2 * whole, rel=0.02)
    warm.machine.fast(torch.bfloat16)
    assert warm.bytes == pytest.approx(1.25 * exact, rel=0.02)
    bound = 3 * exact
    run(short.film, short.model, digest="b", stop=1, model_bytes=bound)
    assert digests() == ["a", "b"]
    run(short.film, short.model, digest="a", stop=1, model_bytes=bound)
    run(short.film, short.model, digest="c", stop=1, model_bytes=bound)
    assert digests() == ["a", "c"]
    run(short.film, short.model, digest="b", stop=1, model_bytes=0)
    assert digests() == ["b"]


def test_model_that_has_no_room_is_loaded_in_its_turn(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another video takes of an accelerator's memory fails no job that waits for it."""
    load, full = network.load, ["full"]

    def crowded(folder: Path, snapshot: str | None, device: str) -> network.Network:
        if full:
            raise torch.OutOfMemoryError(full.pop())
        return load(folder, snapshot, device)

    monkeypatch.setattr(network, "load", crowded)
    assert len(run(short.film, short.model, stop=1).poses) == 1
    assert not full


# -- what can't be done ----


def test_nothing_selected(short: Sample, run: Callable[..., Ours]) -> None:
    """A start beyond the end is an error of its own, not an empty table."""
    with pytest.raises(AnalysisError) as caught:
        run(short.film, short.model, start=1000)
    assert (caught.value.code, caught.value.field) == ("no_frames", "args.start")


def test_crop_beyond_the_frame(short: Sample, run: Callable[..., Ours]) -> None:
    """A crop that is larger than the frame is refused, where DeepLabCut would clip it silently."""
    with pytest.raises(AnalysisError) as caught:
        run(short.film, short.model, crop={"x1": 0, "x2": 5000, "y1": 0, "y2": 100})
    assert (caught.value.code, caught.value.field) == ("bad_crop", "args.crop")


def edit(path: Path, **values: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def only(model: Path, pattern: str) -> Path:
    [found] = model.rglob(pattern)
    return found


def break_snapshot(model: Path) -> None:
    path = only(model, "snapshot-*.pt")
    path.write_bytes(path.read_bytes()[:100_000])


def break_weights(model: Path) -> None:
    import torch

    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, only(model, "snapshot-*.pt"))


def break_content(model: Path) -> None:
    import torch

    torch.save([1, 2], only(model, "snapshot-*.pt"))


def break_network(model: Path) -> None:
    edit(only(model, "pytorch_config.yaml"), model={"backbone": {"type": "NoSuchNet"}})


def break_config(model: Path) -> None:
    only(model, "pytorch_config.yaml").write_text("{unclosed")


def drop_snapshot(model: Path) -> None:
    only(model, "snapshot-*.pt").unlink()


def drop_everything(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def make_tensorflow(model: Path) -> None:
    shutil.rmtree(model / "dlc-models-pytorch")
    edit(model / "config.yaml", engine="tensorflow")


def make_conditional(model: Path) -> None:
    conditions = {"conditions": {"shuffle": 17}}
    edit(only(model, "pytorch_config.yaml"), method="ctd", inference=conditions)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (break_snapshot, "model_damaged"),
        (break_weights, "model_damaged"),
        (break_content, "model_damaged"),
        (break_network, "model_damaged"),
        (break_config, "model_damaged"),
        (drop_snapshot, "no_such_snapshot"),
        (drop_everything, "model_damaged"),
        (make_tensorflow, "tensorflow_model"),
        (make_conditional, "conditional_top_down"),
    ],
)
def test_model_that_can_not_be_used(
    short: Sample,
    run: Callable[..., Ours],
    tmp_path: Path,
    damage: Callable[[Path], None],
    code: str,
) -> None:
    """Each kind of unusable model is a ModelError with a code of its own."""
    model = copied(short.model, tmp_path / "model")
    damage(model)
    with pytest.raises(ModelError) as caught:
        run(short.film, model)
    assert caught.value.code == code


def test_snapshot_that_is_not_there(short: Sample, run: Callable[..., Ours]) -> None:
    """A snapshot of another name is refused with the names that there are."""
    with pytest.raises(ModelError, match="there are: snapshot-") as caught:
        run(short.film, short.model, snapshot="snapshot-7")
    assert caught.value.code == "no_such_snapshot"


# -- a model is somebody else's file ----


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def unsafe(config: Path) -> None:
    """Let a model's config ask for pickles, in every place where it can."""
    content = yaml.safe_load(config.read_text())
    runner = {**(content.get("runner") or {}), "load_weights_only": False}
    edit(config, runner=runner)


@pytest.mark.parametrize("kind", ["project", "export"])
def test_hostile_snapshot_runs_nothing(
    short: Sample, run: Callable[..., Ours], tmp_path: Path, kind: str
) -> None:
    """A snapshot with code in it is refused unopened, whatever the model's config says."""
    import torch

    proof = tmp_path / "proof"
    if kind == "project":
        model = copied(short.model, tmp_path / "model")
        unsafe(only(model, "pytorch_config.yaml"))
        torch.save({"model": Hostile(proof)}, only(model, "snapshot-*.pt"))
    else:
        model = tmp_path / "model"
        model.mkdir()
        torch.save({"config": Hostile(proof), "pose": {}}, model / "DLC_a_snapshot-1.pt")
    with pytest.raises(ModelError) as caught:
        run(short.film, model)
    assert caught.value.code == "unsafe_model"
    assert not proof.exists()


def test_pickles_beside_the_snapshot_are_not_opened(
    short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """What DeepLabCut keeps in pickles for training is never looked at."""
    import pickle

    model = copied(short.model, tmp_path / "model")
    proof = tmp_path / "proof"
    for folder in (model, only(model, "pytorch_config.yaml").parent):
        (folder / "metadata.pickle").write_bytes(pickle.dumps(Hostile(proof)))
    for documentation in model.rglob("Documentation*.pickle"):
        documentation.write_bytes(pickle.dumps(Hostile(proof)))
    assert len(run(short.film, model, stop=1).poses) == 1
    assert not proof.exists()


def test_model_folder_is_left_as_it_was(
    short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """Nothing is written into the model's folder: many jobs share it."""

    def state(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    model = copied(short.model, tmp_path / "model")
    before = state(model)
    run(short.film, model, stop=1)
    assert state(model) == before


def test_export_of_the_same_model(
    short: Sample, project: Path, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """A file of export_model gives the poses of its project; its name is the scorer."""
    import deeplabcut

    source = copied(project, tmp_path / "source")
    deeplabcut.export_model(str(source / "config.yaml"), shuffle=1)
    export = only(source / "exported-models-pytorch", "*.pt")
    record, [(content, name)] = packing.plan_push(export, "mouse")
    model = tmp_path / "export"
    model.mkdir()
    assert isinstance(content, bytes)  # not the file itself: the project's path was in it
    (model / name).write_bytes(content)
    expected = run(short.film, short.model, stop=4)
    ours = run(short.film, model, digest="e" * 64, stop=4)
    assert furthest(ours.poses, expected.poses) <= TOLERANCE
    assert ours.answer["details"]["scorer"] == export.stem
    assert [ours.answer["details"]["snapshot"]] == record.snapshots


# -- arithmetic ----


def test_auto_moves_no_keypoint(stock: Stock, long: Sample, run: Callable[..., Ours]) -> None:
    """Where fewer bits are used, every keypoint above pcutoff stays within half a pixel."""
    ours = run(long.film, long.model, precision="auto")
    told = ours.answer["details"]["precision"]
    poses, expected = (table.to_numpy().reshape(60, -1, 3) for table in (ours.poses, stock.poses))
    kept = expected[..., 2] >= ours.answer["details"]["pcutoff"]
    moved = np.hypot(*np.moveaxis(poses - expected, -1, 0)[:2])
    print(f"largest difference of a confident keypoint: {moved[kept].max()} px; {told}")
    assert kept.any()
    assert moved[kept].max() <= 0.5
    assert told["asked"] == "auto"
    assert told["used"] in {"fp32", "bf16", "fp16"}


def test_nearly_tied_peaks_are_computed_again(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However coarse the fast arithmetic, ``auto`` gives what fp32 gives, or goes back to it."""
    expected = run(short.film, short.model)

    def coarse(self: arithmetic.Machine, _: torch.dtype) -> Any:
        model = copy.deepcopy(self.plain)
        forward = model.heads["bodypart"].heatmap_head.forward
        # Steps so wide that many cells share the highest one, the first of which is taken.
        monkeypatch.setattr(
            model.heads["bodypart"].heatmap_head,
            "forward",
            lambda x: (forward(x) * 8).round() / 8,
        )
        return model

    monkeypatch.setattr(arithmetic.Machine, "fast", coarse)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(arithmetic, "WORTH", 0.0)
    ours = run(short.film, short.model, precision="auto")
    told = ours.answer["details"]["precision"]
    assert told["used"] == "bf16"
    assert told["frames_repeated_in_fp32"] == 12 - arithmetic.SAMPLES
    confident = expected.poses.to_numpy().reshape(12, -1, 3)[..., 2] >= 0.4
    moved = np.abs(ours.poses.to_numpy() - expected.poses.to_numpy()).reshape(12, -1, 3)
    assert moved[confident][:, :2].max() <= TOLERANCE


def test_unnoticed_change_ends_the_fast_arithmetic(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that finds a keypoint moved begins the video again in fp32."""
    expected = run(short.film, short.model)

    def shifted(self: arithmetic.Machine, _: torch.dtype) -> Any:
        model = copy.deepcopy(self.plain)
        forward = model.heads["bodypart"].locref_head.forward
        monkeypatch.setattr(
            model.heads["bodypart"].locref_head, "forward", lambda x: forward(x) + 1
        )
        return model

    monkeypatch.setattr(arithmetic.Machine, "fast", shifted)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(arithmetic, "WORTH", 0.0)
    monkeypatch.setattr(arithmetic, "CHECK_EVERY", 10)
    ours = run(short.film, short.model, precision="auto")
    assert ours.answer["details"]["precision"]["used"] == "fp32"
    assert furthest(ours.poses, expected.poses) == 0.0


# -- memory ----


@pytest.mark.parametrize("moment", ["launch", "collect"])
def test_batch_is_halved_when_memory_runs_out(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """No job fails for want of memory that a smaller batch would have run; every frame is there."""
    expected = run(short.film, short.model)
    whole = getattr(arithmetic.Arithmetic, moment)

    def small(self: arithmetic.Arithmetic, batch: Any) -> Any:
        if len(batch if moment == "launch" else batch.x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch)

    monkeypatch.setattr(arithmetic.Arithmetic, moment, small)
    ours = run(short.film, short.model, batch_size=8)
    assert ours.answer["details"]["batch_size"] == 2
    assert list(ours.poses.index) == list(range(12))
    assert furthest(ours.poses, expected.poses) <= TOLERANCE


def test_an_accelerators_way_gives_the_same(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches in flight and a batch that grows: every frame is there, in its place."""
    expected = run(short.film, short.model)
    monkeypatch.setattr(feed, "accelerated", lambda _: True)
    monkeypatch.setattr(feed, "FIRST_BATCH", 2)
    monkeypatch.setattr(feed, "GROWTH", 0.0)
    ours = run(short.film, short.model)
    assert ours.answer["details"]["batch_size"] > 2
    assert list(ours.poses.index) == list(range(12))
    assert furthest(ours.poses, expected.poses) <= TOLERANCE


# -- checkpoints ----


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_interrupted_inference_goes_on(
    short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The next attempt decodes from the last part on; its poses are those of one go, bit by bit."""
    monkeypatch.setattr(arithmetic, "SAMPLES", 2)
    monkeypatch.setattr(arithmetic, "WORTH", 0.0)  # whether it is depends on what else runs
    args = deeplabcut_2d.normalise({"model": "mouse", "precision": precision})

    def job(name: str, report: Callable[..., None] = lambda *_: None) -> Job:
        out = tmp_path / name
        out.mkdir()
        parts = tmp_path / "parts"
        parts.mkdir(exist_ok=True)
        return Job(
            short.film, out, args, short.model, "d" * 64, report, "cpu",
            parts=None if name == "whole" else parts, part_seconds=0.0,
        )  # fmt: skip

    def die(stage: str, done: int, _: int | None) -> None:
        if stage == "infer" and done == 7:
            raise KeyboardInterrupt

    whole = job("whole")
    expected = read(whole.out, tables.finish(whole, inference.run(whole)))
    with pytest.raises(KeyboardInterrupt):
        inference.run(job("first", die))
    (tmp_path / "parts/000007.npz").write_bytes(b"half a file")
    inference._warm.clear()
    reported: list[tuple[str, int, int | None]] = []
    second = job("second", lambda *told: reported.append(told))
    ours = read(second.out, tables.finish(second, inference.run(second)))
    assert reported[:2] == [("load", 0, None), ("infer", 6, 12)]
    assert ours.poses.to_numpy().tobytes() == expected.poses.to_numpy().tobytes()
    for told in (ours.answer["details"], expected.answer["details"]):
        del told["inference_began_at"], told["inference_ended_at"]
    assert ours.answer["details"] == expected.answer["details"]
