"""DeepLabCut itself: a model's folder and a video -> poses.h5, as ``analyze_videos`` writes it.

Imported in the child process only: it brings torch and DeepLabCut along. The network, what comes
before it and what comes after it are DeepLabCut's own runners; what is done here is decoding, the
feeding of them, and the writing. A model is somebody else's file: its pickles are never opened,
its folder is never written to, and no path or switch of its config is followed that training needs.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.apis.utils import (
    get_detector_inference_runner,
    get_pose_inference_runner,
)
from deeplabcut.pose_estimation_pytorch.config import PoseConfig
from deeplabcut.pose_estimation_pytorch.data import DLCLoader
from deeplabcut.pose_estimation_pytorch.runners import DynamicCropper
from deeplabcut.pose_estimation_pytorch.task import Task
from deeplabcut.refine_training_dataset.outlier_frames import FitSARIMAXModel
from scipy import signal

from posedrop.analyses import Job
from posedrop.errors import AnalysisError, ModelError
from posedrop.models import (
    CONFIG,
    MODEL_FOLDERS,
    PYTORCH_CONFIG,
    list_snapshots,
    read_yaml,
    wiped_model_config,
)
from worker import tracking, video
from worker.analyses.deeplabcut_2d import Crop, DeepLabCut2D, PoseArgs
from worker.detectors import nothing_downloaded

Frame = npt.NDArray[np.uint8]
Poses = npt.NDArray[Any]

#: Models that stay loaded, the last used.
WARM_MODELS = 2
#: Batches decoded ahead of the network.
AHEAD = 2


@dataclass(frozen=True)
class Network:
    """A model, loaded."""

    pose: Any
    """DeepLabCut's PoseInferenceRunner."""
    detector: Any
    """DeepLabCut's DetectorInferenceRunner for top-down models, else None."""
    scorer: str
    snapshot: str
    net_type: str
    bodyparts: list[str]
    skeleton: list[list[str]]
    pcutoff: float
    crop: Crop | None
    """The project's own, which ``analyze_videos`` applies too."""
    device: str
    individuals: list[str] = field(default_factory=list)
    """Of a model for several animals."""
    herd: tracking.Herd | None = None
    """What tracking has to know; None where animals are not followed."""


_warm: OrderedDict[tuple[str, str | None, str], Network] = OrderedDict()


def run(job: Job) -> dict[str, Any]:
    """Make the poses of a video: ``poses.h5``, ``poses.csv``, and ``poses_filtered`` of both kinds.

    The tables are DeepLabCut's own (key ``df_with_missing``; columns scorer, bodyparts, coords; x
    and y in pixels of the whole frame, whatever the crop). Their index is the frame's number in
    the video, counted from 0; a frame that can't be decoded has no row.

    Raises:
        ModelError: the model is damaged, unsafe, of another engine, or has no such snapshot.
        AnalysisError: codes ``no_frames``, ``bad_crop``, ``no_such_device``.
        RefusedVideoError: the video can't be decoded.
    """
    args = DeepLabCut2D.model_validate(job.args)
    return analyse(job, args, lambda: _network(job, args.snapshot))


def analyse(job: Job, args: PoseArgs, load_network: Callable[[], Network]) -> dict[str, Any]:
    """Do what :func:`run` does with whatever network ``load_network`` returns."""
    started = time.monotonic()
    job.report("load", 0, None)
    network = load_network()
    _prepare(network, args)
    crop = args.crop or network.crop
    loaded = time.monotonic()
    frames = video.count(job.video)
    indexes, predictions = infer(job, args, network, crop, len(_selected(args, frames)))
    inferred = time.monotonic()
    job.report("write", len(indexes), len(indexes))
    table, tracks = tabulate(indexes, predictions, network, args, crop)
    _write(table, job.out / "poses")
    if args.filter != "none":
        _write(filtered(table, args), job.out / "poses_filtered")
    # What came out counts where it is more than the container promises.
    expected = _selected(args, max(frames, int(indexes[-1]) + 1))
    return {
        "frames_expected": len(expected),
        "frames_decoded": len(indexes),
        "rows": len(table),
        "missing": _missing(expected, indexes, args.stride),
        "timings": {
            "load": round(loaded - started, 3),
            "inference": round(inferred - loaded, 3),
            "write": round(time.monotonic() - inferred, 3),
        },
        "versions": {name: version(name) for name in ("deeplabcut", "torch", "numpy", "av")},
        "details": {
            "model": args.model,
            "scorer": network.scorer,
            "snapshot": network.snapshot,
            "net_type": network.net_type,
            "device": network.device,
            "batch_size": args.batch_size,
            "bodyparts": network.bodyparts,
            "skeleton": network.skeleton,
            "pcutoff": network.pcutoff if args.pcutoff is None else args.pcutoff,
            "crop": crop.model_dump() if crop else None,
            "filter": args.filter,
            **tracks,
        },
    }


def _prepare(network: Network, args: PoseArgs) -> None:
    """Set what a request can choose of a network that may have served another one before."""
    dynamic = None
    if isinstance(args, DeepLabCut2D) and args.dynamic is not None:
        if network.detector is not None:
            raise AnalysisError(
                "dynamic cropping is not for top-down models: their detector finds the animals",
                code="bad_dynamic",
                field="args.dynamic",
            )
        dynamic = DynamicCropper(args.dynamic.threshold, args.dynamic.margin)
    network.pose.dynamic = dynamic
    network.pose.batch_size = 1 if dynamic else args.batch_size


# -- the model -------------------------------------------------------------------------------------


def _network(job: Job, snapshot: str | None) -> Network:
    if job.model is None:
        raise ModelError("deeplabcut_2d needs a model")
    folder = job.model
    return kept(job, snapshot, lambda device: load(folder, snapshot, device))


def kept(job: Job, part: str | None, load_on: Callable[[str], Network]) -> Network:
    """Return the network that a job needs: the one that is loaded still, else ``load_on(device)``.

    Args:
        job: the same model and device is the same network,
        part: if it is the same part of the model.
        load_on: loads it.
    """
    device = _device(job.device)
    if job.model_digest is None:  # nothing says that the same folder holds the same files
        return load_on(device)
    key = (job.model_digest, part, device)
    if key not in _warm:
        while len(_warm) >= WARM_MODELS:  # before the next one is loaded: memory is for one more
            _warm.popitem(last=False)
        _warm[key] = load_on(device)
    _warm.move_to_end(key)
    return _warm[key]


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "auto"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise AnalysisError(
            f"this worker has no device {wanted!r} (POSEDROP_DEVICE)", code="no_such_device"
        ) from error
    return wanted


def load(folder: Path, snapshot: str | None, device: str) -> Network:
    """Load a model from its folder, which is only read.

    Args:
        folder: a DeepLabCut project cut down to one shuffle, or one file of ``export_model``.
        snapshot: its name without ``.pt``; None: the last in DeepLabCut's order.
        device: ``auto``, or as torch names it.

    Raises:
        ModelError: it can't be used; the message says why.
    """
    if (folder / CONFIG).is_file():
        return _load_project(folder, snapshot, device)
    exports = sorted(folder.glob("*.pt"))
    if len(exports) != 1:
        raise ModelError(f"the model holds neither a {CONFIG} nor an export", code="model_damaged")
    return _load_export(exports[0], snapshot, device)


def _load_project(folder: Path, snapshot: str | None, device: str) -> Network:
    project = read_yaml(folder / CONFIG)
    configs = sorted((folder / MODEL_FOLDERS).glob(f"iteration-*/*/train/{PYTORCH_CONFIG}"))
    if not configs:
        if project.get("engine") == "tensorflow" or (folder / "dlc-models").is_dir():
            raise ModelError(
                "the model is of DeepLabCut's TensorFlow engine; posedrop runs PyTorch models",
                code="tensorflow_model",
            )
        raise ModelError(f"the model has no {PYTORCH_CONFIG}", code="model_damaged")
    train = configs[0].parent
    weights = _snapshot(train, snapshot)
    try:
        loader = _loader(project, configs[0])
        detector = None
        if loader.pose_task == Task.TOP_DOWN:
            detector = _snapshot(train, None, detector=True)
        scorer: str = loader.scorer(weights, detector)
    except ModelError:
        raise
    except Exception as error:  # a config of any shape: DeepLabCut raises whatever it runs into
        raise _bad_config(error) from error
    network = build(
        loader.model_cfg,
        weights_of(weights, "model"),
        weights_of(detector, "model") if detector else None,
        int(project.get("detector_batch_size") or 1),
        device,
    )
    herd = None
    if project.get("multianimalproject"):
        own = train.parent / "test" / tracking.INFERENCE_CONFIG
        settings = read_yaml(own) if own.is_file() else None
        herd = tracking.herd(loader.model_cfg["metadata"], scorer, project, settings)
    return replace(
        network,
        individuals=herd.individuals if herd else [],
        herd=herd,
        scorer=scorer,
        snapshot=weights.stem,
        skeleton=[[str(end) for end in bone] for bone in project.get("skeleton") or []],
        pcutoff=float(project.get("pcutoff", 0.6)),
        crop=_project_crop(project),
    )


def _load_export(path: Path, snapshot: str | None, device: str) -> Network:
    content = _read_weights(path)
    if not isinstance(content, dict) or not {"config", "pose"} <= content.keys():
        raise ModelError(f"{path.name} is no export of DeepLabCut", code="model_damaged")
    name = f"snapshot-{path.stem.rpartition('snapshot-')[2]}" if "snapshot-" in path.stem else None
    if snapshot not in {None, name, path.stem}:
        raise ModelError(f"the model has no snapshot {snapshot!r}", code="no_such_snapshot")
    try:
        config = PoseConfig.from_any(tamed(content["config"]))
    except Exception as error:  # like above
        raise _bad_config(error) from error
    network = build(config, content["pose"], content.get("detector"), 1, device)
    herd = None
    if len(config["metadata"]["individuals"]) > 1:
        herd = tracking.herd(config["metadata"], path.stem, {})
    return replace(network, herd=herd, scorer=path.stem, snapshot=name or path.stem)


def _loader(project: dict[str, Any], config: Path) -> Any:
    """Return DeepLabCut's loader, for what it knows of a project: task, config and scorer.

    It gets copies of the two configs in a folder of their own, and no weights.
    """
    shuffle_folder = config.parent.parent
    percent, _, shuffle = shuffle_folder.name.rpartition("-trainset")[2].partition("shuffle")
    fractions = [int(100 * float(part)) for part in project["TrainingFraction"]]
    copied = {**project, "project_path": ".", "video_sets": {}, "engine": "pytorch"}
    copied["iteration"] = int(shuffle_folder.parent.name.removeprefix("iteration-"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = root / MODEL_FOLDERS / shuffle_folder.parent.name / shuffle_folder.name / "train"
        train.mkdir(parents=True)
        (root / CONFIG).write_text(yaml.safe_dump(copied), encoding="utf-8")
        own = yaml.safe_dump(tamed(read_yaml(config)), sort_keys=False)
        (train / PYTORCH_CONFIG).write_text(own, encoding="utf-8")
        return DLCLoader(
            root / CONFIG, trainset_index=fractions.index(int(percent)), shuffle=int(shuffle)
        )


def tamed(config: Any) -> dict[str, Any]:
    """Return a model's config with the switches set that are not the model's to set."""
    if not isinstance(config, dict):
        raise ModelError("the model's config is not a mapping", code="model_damaged")
    tamed = wiped_model_config(config)
    tamed["device"] = "auto"
    for part in (tamed, tamed.get("detector")):
        if isinstance(part, dict):
            part["device"] = "auto"
            part["runner"] = {**(part.get("runner") or {}), "load_weights_only": True}
    inference = dict(tamed.get("inference") or {})
    # DeepLabCut's own thread for decoding shares lists with the network's without a lock, by which
    # a frame's result can get lost; frames are decoded ahead here instead.
    inference["multithreading"] = {"enabled": False}
    inference["compile"] = {"enabled": False}  # would start a compiler
    tamed["inference"] = inference
    detector = tamed.get("detector")
    if isinstance(detector, dict) and isinstance(detector.get("model"), dict):
        # Only where it is there: not every kind of detector knows it.
        off = {name: False for name in detector["model"] if name.startswith("pretrained")}
        detector["model"] = {**detector["model"], **off}
    return tamed


def build(
    config: Any,
    pose_weights: dict[str, Any],
    detector_weights: dict[str, Any] | None,
    detector_batch: int,
    device: str,
) -> Network:
    """Build a network of a tamed config, and give it its weights.

    Raises:
        ModelError: it can't be built, or the weights are another network's.
    """
    task = Task(config["method"])
    if task == Task.COND_TOP_DOWN:
        raise ModelError(
            "conditional top-down models need a second model; deeplabcut_2d takes bottom-up and "
            "top-down ones",
            code="conditional_top_down",
        )
    if task == Task.TOP_DOWN and detector_weights is None:
        raise ModelError("a top-down model needs its detector's weights", code="no_detector")
    chosen = None if device == "auto" else device
    try:
        # No snapshot path: the weights come from our own, careful reading.
        pose = get_pose_inference_runner(config, snapshot_path="", device=chosen)
        pose.model.load_state_dict(pose_weights)
        detector = None
        if task == Task.TOP_DOWN:
            with nothing_downloaded():
                detector = get_detector_inference_runner(
                    config, snapshot_path="", batch_size=detector_batch, device=chosen
                )
            detector.model.load_state_dict(detector_weights)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a network of any description: torch raises whatever it runs into
        raise _bad_config(error) from error
    return Network(
        pose=pose,
        detector=detector,
        scorer="",
        snapshot="",
        net_type=str(getattr(config["net_type"], "value", config["net_type"])),
        bodyparts=[str(name) for name in config["metadata"]["bodyparts"]],
        skeleton=[],
        pcutoff=0.6,
        crop=None,
        device=str(pose.device),
    )


def _bad_config(error: Exception) -> ModelError:
    text = f"{type(error).__name__}: {error}"[:500]
    return ModelError(f"DeepLabCut can't build this model: {text}", code="model_damaged")


def _snapshot(train: Path, wanted: str | None, *, detector: bool = False) -> Path:
    there = list_snapshots(train, detector=detector)
    found = [file for file in there if wanted in {None, file.stem}]
    if not found:
        what = "snapshot of a detector" if detector else f"snapshot {wanted or ''}".strip()
        names = ", ".join(file.stem for file in there) or "none"
        raise ModelError(f"the model has no {what}; there are: {names}", code="no_such_snapshot")
    return found[-1]


def weights_of(path: Path, part: str) -> dict[str, Any]:
    """Return the weights of a snapshot; nothing else in it is opened.

    Raises:
        ModelError: codes ``model_damaged``, ``unsafe_model``.
    """
    content = _read_weights(path)
    if not isinstance(content, dict) or not isinstance(content.get(part), dict):
        raise ModelError(f"{path.name} is no snapshot of DeepLabCut", code="model_damaged")
    weights: dict[str, Any] = content[part]
    return weights


def _read_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ModelError(
                f"{path.name} holds more than weights (it could run code when opened): refused",
                code="unsafe_model",
            ) from error
        raise ModelError(f"{path.name} is damaged", code="model_damaged") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        first = str(error).partition("\n")[0][:300]
        raise ModelError(f"{path.name} is damaged: {first}", code="model_damaged") from error


def _project_crop(project: dict[str, Any]) -> Crop | None:
    if not project.get("cropping"):
        return None
    try:
        return Crop.model_validate({side: project.get(side) for side in ("x1", "x2", "y1", "y2")})
    except ValueError as error:
        raise ModelError(
            f"the crop in the model's {CONFIG} makes no rectangle; give a crop of your own",
            code="bad_crop",
        ) from error


# -- frames through the network --------------------------------------------------------------------


def infer(
    job: Job, args: PoseArgs, network: Network, crop: Crop | None, total: int
) -> tuple[npt.NDArray[np.int64], list[tracking.Prediction]]:
    """Return frame numbers and what was found in each, in pixels of the crop."""
    job.report("infer", 0, total)
    indexes: list[int] = []
    found: list[tracking.Prediction] = []
    frames = video.frames(job.video, start=args.start, stop=args.stop, stride=args.stride)
    with closing(video.ahead(_batches(frames, args.batch_size, crop), AHEAD)) as batches:
        for numbers, images in batches:
            try:
                found += _predictions(network, images)
            except BaseException:
                # It may hold half a batch: the next video must not get it.
                _warm.clear()
                raise
            indexes += numbers
            job.report("infer", len(indexes), total)
    if not indexes:
        raise AnalysisError(
            f"there is no frame from {args.start} to {args.stop or 'the end'} in this video",
            code="no_frames",
            field="args.start",
        )
    return np.asarray(indexes, np.int64), found


def _poses_of_one(predictions: list[tracking.Prediction], crop: Crop | None) -> Poses:
    """Return poses (n, bodyparts, 3): x and y in pixels of the whole frame, likelihood."""
    found = np.stack([one["bodyparts"][0, :, :3] for one in predictions])
    if crop is not None:
        # DeepLabCut leaves them relative to the crop; keypoints it did not find are all -1.
        x_and_y = found[..., :2]
        x_and_y += np.where(found[..., 2:] < 0, 0, np.array([crop.x1, crop.y1], found.dtype))
    return found


def _predictions(network: Network, images: list[Frame]) -> list[tracking.Prediction]:
    fed: list[Any] = list(images)
    if network.detector is not None:
        fed = list(zip(images, network.detector.inference(images), strict=True))
    predictions = [tracking.slim(one) for one in network.pose.inference(fed)]
    if len(predictions) != len(images):
        raise AnalysisError(f"{len(images)} frames went in, {len(predictions)} poses came out")
    return predictions


def _batches(
    frames: Iterator[tuple[int, Frame]], size: int, crop: Crop | None
) -> Iterator[tuple[list[int], list[Frame]]]:
    numbers: list[int] = []
    images: list[Frame] = []
    for number, frame in frames:
        numbers.append(number)
        images.append(_cropped(frame, crop))
        if len(images) == size:
            yield numbers, images
            numbers, images = [], []
    if images:
        yield numbers, images


def _cropped(frame: Frame, crop: Crop | None) -> Frame:
    if crop is None:
        return frame
    height, width = frame.shape[:2]
    if crop.x2 > width or crop.y2 > height:
        raise AnalysisError(
            f"the crop reaches to ({crop.x2}, {crop.y2}), the frame only to ({width}, {height})",
            code="bad_crop",
            field="args.crop",
        )
    return np.ascontiguousarray(frame[crop.y1 : crop.y2, crop.x1 : crop.x2])


def _selected(args: PoseArgs, frames: int) -> range:
    return range(args.start, frames if args.stop is None else min(args.stop, frames), args.stride)


def _missing(expected: range, indexes: npt.NDArray[np.int64], stride: int) -> list[dict[str, int]]:
    gone = np.setdiff1d(np.asarray(expected, np.int64), indexes)
    if not len(gone):
        return []
    ranges = np.split(gone, np.flatnonzero(np.diff(gone) != stride) + 1)
    return [{"first": int(part[0]), "last": int(part[-1])} for part in ranges]


# -- the tables ------------------------------------------------------------------------------------


def tabulate(
    indexes: npt.NDArray[np.int64],
    predictions: list[tracking.Prediction],
    network: Network,
    args: PoseArgs,
    crop: Crop | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return DeepLabCut's table, and what result.json says of the animals in it."""
    if network.herd is not None and isinstance(args, DeepLabCut2D):
        with tempfile.TemporaryDirectory() as folder:
            tracked = tracking.track(predictions, indexes, network.herd, args, Path(folder))
        return tracking.shifted(tracked.table, crop), tracking.told(network.herd, tracked)
    if network.individuals:
        table = tracking.untracked(
            predictions, indexes, network.scorer, network.individuals, network.bodyparts
        )
        return tracking.shifted(table, crop), {"individuals": network.individuals}
    return _table(indexes, _poses_of_one(predictions, crop), network), {}


def _table(indexes: npt.NDArray[np.int64], poses: Poses, network: Network) -> pd.DataFrame:
    """Return DeepLabCut's table: its ``create_df_from_prediction``, but for the index."""
    columns = pd.MultiIndex.from_product(
        [[network.scorer], network.bodyparts, ["x", "y", "likelihood"]],
        names=["scorer", "bodyparts", "coords"],
    )
    return pd.DataFrame(poses.reshape((len(poses), -1)), columns=columns, index=indexes)


def filtered(table: pd.DataFrame, args: PoseArgs) -> pd.DataFrame:
    """Return ``table`` smoothed over time, as ``deeplabcut.filterpredictions`` does.

    The arithmetic is that function's (deeplabcut/post_processing/filtering.py), which itself reads
    and writes files of a project. Rows count as neighbours in time, whatever frames lack between.
    """
    if args.filter == "median":
        smooth = table.copy()
        mask = table.columns.get_level_values("coords") != "likelihood"
        smooth.loc[:, mask] = table.loc[:, mask].apply(
            signal.medfilt, args=(args.filter_window,), axis=0
        )
        return smooth
    values = table.to_numpy().reshape((len(table), -1, 3))
    smoothed = np.empty_like(values)
    for part in range(values.shape[1]):
        x, y, likelihood = values[:, part].T
        for column, coordinate in enumerate((x, y)):
            mean, _ = FitSARIMAXModel(
                coordinate,
                likelihood,
                args.arima_p_bound,
                args.arima_alpha,
                args.arima_ar_degree,
                args.arima_ma_degree,
                False,
            )
            mean[0] = coordinate[0]
            smoothed[:, part, column] = mean
        smoothed[:, part, 2] = likelihood
    return pd.DataFrame(
        smoothed.reshape((len(table), -1)), columns=table.columns, index=table.index
    )


def _write(table: pd.DataFrame, stem: Path) -> None:
    table.to_hdf(stem.with_suffix(".h5"), key="df_with_missing", format="table", mode="w")
    table.to_csv(stem.with_suffix(".csv"))
