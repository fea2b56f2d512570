"""A DeepLabCut model of somebody else's, loaded: its configs tamed, its pickles never opened.

Imported in the child process only: it brings torch and DeepLabCut along. A model's folder is only
read, and no path or switch of its config is followed that training needs.
"""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from deeplabcut.pose_estimation_pytorch.apis.utils import (
    get_detector_inference_runner,
    get_filtered_coco_detector_inference_runner,
    get_pose_inference_runner,
)
from deeplabcut.pose_estimation_pytorch.config import PoseConfig
from deeplabcut.pose_estimation_pytorch.data import DLCLoader
from deeplabcut.pose_estimation_pytorch.modelzoo.utils import COCO_PERSON_CATEGORY_ID
from deeplabcut.pose_estimation_pytorch.task import Task

from posedrop.analyses.deeplabcut_2d import Crop
from posedrop.errors import AnalysisError, ModelError
from posedrop.models.conditions import CODE, find_conditions, is_conditional
from posedrop.models.projects import (
    CONFIG,
    MODEL_FOLDERS,
    PYTORCH_CONFIG,
    check_parts,
    dumped,
    exported_pcutoff,
    list_snapshots,
    read_yaml,
    what_is_set,
    wiped_model_config,
)
from worker import hardware
from worker.engine.detectors import nothing_downloaded
from worker.memory import is_out_of_memory
from worker.poses.animals import INFERENCE_CONFIG, MultiAnimalConfig, multi_animal_config


@dataclass(frozen=True)
class Network:
    """A model, loaded."""

    pose: Any
    """DeepLabCut's PoseInferenceRunner; of conditional top-down models its CTDInferenceRunner."""
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
    multi_animal: MultiAnimalConfig | None = None
    """What tracking has to know; None where animals are not followed."""
    batch_size: int | None = None
    """The project's own, of frames or crops; and the detector's, of frames."""
    detector_batch_size: int | None = None
    conditions: Network | None = None
    """Of a conditional top-down model: the bottom-up one whose poses it improves."""
    identity: bool = False
    """Whether it tells animals apart by what they look like."""


def device_of(wanted: str) -> str:
    """Return a device as it was asked for, if this machine has it."""
    if wanted == "auto":
        found = hardware.automatic()
        if found != "auto":
            print(f"{found}: the first card is none that this torch has kernels for")
        return found
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):  # it is there, and full
            raise
        why = str(error).partition("\n")[0][:200]
        raise AnalysisError(
            f"this worker has no device {wanted!r} (POSEDROP_DEVICE): {why}", code="no_such_device"
        ) from error
    return wanted


def load(folder: Path, snapshot: str | None, device: str) -> Network:
    """Load a model from its folder, which is only read.

    Args:
        folder: a DeepLabCut project cut down to one shuffle (of a conditional top-down model, and
            the one that finds its conditions), or one file of ``export_model``.
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
    project = what_is_set(read_yaml(folder / CONFIG))
    config = _own_config(folder, project)
    train = config.parent
    weights = _snapshot(train, snapshot)
    try:
        loader = _loader(project, config)
        detector = None
        if loader.pose_task == Task.TOP_DOWN:
            detector = _snapshot(train, None, detector=True)
        scorer: str = loader.scorer(weights, detector)
    except ModelError:
        raise
    except Exception as error:  # a config of any shape: DeepLabCut raises whatever it runs into
        raise _bad_config(error) from error
    conditions = None
    if loader.pose_task == Task.COND_TOP_DOWN:
        animals = len(loader.model_cfg["metadata"]["individuals"])
        conditions = _load_conditions(folder, project, train.parent, animals, device)
    network = build(
        loader.model_cfg,
        weights_of(weights, "model"),
        weights_of(detector, "model") if detector else None,
        _count(project.get("detector_batch_size")) or 1,
        device,
        conditions=conditions,
    )
    multi_animal = _multi_animal(project, train.parent, loader.model_cfg["metadata"], scorer)
    return replace(
        network,
        individuals=multi_animal.individuals if multi_animal else [],
        multi_animal=multi_animal,
        scorer=scorer,
        snapshot=weights.stem,
        skeleton=[[str(end) for end in bone] for bone in project.get("skeleton") or []],
        pcutoff=float(project.get("pcutoff", 0.6)),
        batch_size=_count(project.get("batch_size")),
        detector_batch_size=_count(project.get("detector_batch_size")),
        crop=_project_crop(project),
    )


def _multi_animal(
    project: dict[str, Any], shuffle: Path, metadata: Any, scorer: str
) -> MultiAnimalConfig | None:
    if not project.get("multianimalproject"):
        return None
    own = shuffle / "test" / INFERENCE_CONFIG
    settings = read_yaml(own) if own.is_file() else None
    return multi_animal_config(metadata, scorer, project, settings)


def _own_config(folder: Path, project: dict[str, Any]) -> Path:
    """Return the config of what was pushed: not that of the shuffle that its conditions need."""
    configs = sorted((folder / MODEL_FOLDERS).glob(f"iteration-*/*/train/{PYTORCH_CONFIG}"))
    if not configs:
        if project.get("engine") == "tensorflow" or (folder / "dlc-models").is_dir():
            raise ModelError(
                "the model is of DeepLabCut's TensorFlow engine; posedrop runs PyTorch models",
                code="tensorflow_model",
            )
        raise ModelError(f"the model has no {PYTORCH_CONFIG}", code="model_damaged")
    if len(configs) > 1:
        conditional = [path for path in configs if is_conditional(read_yaml(path))]
        if len(conditional) == 1:
            return conditional[0]
    return configs[0]


def _load_conditions(
    folder: Path, project: dict[str, Any], shuffle: Path, animals: int, device: str
) -> Network:
    """Load the bottom-up model of a conditional one; it finds as many animals as that has."""
    found = find_conditions(folder, project, shuffle)
    try:
        loader = _loader(project, found.folder / "train" / PYTORCH_CONFIG)
    except ModelError:
        raise
    except Exception as error:  # like above
        raise _bad_config(error) from error
    weights = weights_of(found.snapshot, "model")
    network = build(loader.model_cfg, weights, None, 1, device, animals=animals)
    return replace(network, snapshot=found.snapshot.stem)


def _load_export(path: Path, snapshot: str | None, device: str) -> Network:
    content = _read_weights(path)
    if not isinstance(content, dict) or not {"config", "pose"} <= content.keys():
        raise ModelError(f"{path.name} is no export of DeepLabCut", code="model_damaged")
    check_parts(content["config"], f"the config in {path.name}")
    name = f"snapshot-{path.stem.rpartition('snapshot-')[2]}" if "snapshot-" in path.stem else None
    if snapshot not in {None, name, path.stem}:
        raise ModelError(f"the model has no snapshot {snapshot!r}", code="no_such_snapshot")
    try:
        config = PoseConfig.from_any(tamed(content["config"]))
    except Exception as error:  # like above
        raise _bad_config(error) from error
    network = build(config, content["pose"], content.get("detector"), 1, device)
    multi_animal = None
    if len(config["metadata"]["individuals"]) > 1:
        multi_animal = multi_animal_config(config["metadata"], path.stem, {})
    individuals = multi_animal.individuals if multi_animal else []
    return replace(
        network,
        individuals=individuals,
        multi_animal=multi_animal,
        scorer=path.stem,
        snapshot=name or path.stem,
        pcutoff=exported_pcutoff(content["config"]),
    )


def _loader(project: dict[str, Any], config: Path) -> Any:
    """Return DeepLabCut's loader, for what it knows of a project: task, config and scorer.

    It gets what it needs of the two configs in a folder of their own, and no weights.
    """
    shuffle_folder = config.parent.parent
    percent, _, shuffle = shuffle_folder.name.rpartition("-trainset")[2].partition("shuffle")
    named = {part: str(project.get(part, "")) for part in ("Task", "scorer", "date")}
    copied = {
        **named,
        "project_path": ".",
        "engine": "pytorch",
        "multianimalproject": bool(project.get("multianimalproject")),
        "iteration": int(shuffle_folder.parent.name.removeprefix("iteration-")),
        # What was pushed is one shuffle: its fraction is the only one, so that DeepLabCut, which
        # cuts off what is behind the per cent, comes to the folder's name again.
        "TrainingFraction": [min(1.0, (int(percent) + 0.5) / 100)],
    }
    name = f"{named['Task']}{named['date']}-trainset{percent}shuffle{shuffle}"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = root / MODEL_FOLDERS / shuffle_folder.parent.name / name / "train"
        train.mkdir(parents=True)
        (root / CONFIG).write_text(dumped(copied), encoding="utf-8")
        own = dumped(tamed(read_yaml(config)))
        (train / PYTORCH_CONFIG).write_text(own, encoding="utf-8")
        return DLCLoader(root / CONFIG, trainset_index=0, shuffle=int(shuffle))


def tamed(config: Any) -> dict[str, Any]:
    """Return a model's config with the switches set that are not the model's to set."""
    if not isinstance(config, dict):
        raise ModelError("the model's config is not a mapping", code="model_damaged")
    made = wiped_model_config(config)
    made["device"] = "auto"
    for part in (made, made.get("detector")):
        if isinstance(part, dict):
            part["device"] = "auto"
            part["runner"] = {**(part.get("runner") or {}), "load_weights_only": True}
    inference = dict(made.get("inference") or {})
    # DeepLabCut's own thread for decoding shares lists with the network's without a lock, by which
    # a frame's result can get lost; frames are decoded ahead here instead.
    inference["multithreading"] = {"enabled": False}
    inference["compile"] = {"enabled": False}  # would start a compiler
    inference["autocast"] = {"enabled": False}  # the caller's ``precision`` says what to compute in
    inference["conditions"] = None  # ``find_conditions`` reads them, and follows none outside
    made["inference"] = inference
    for part in (made, made.get("detector")):
        if isinstance(part, dict) and "data" in part:
            part["data"] = _padded_the_same_way(part.get("data"))
    detector = made.get("detector")
    if isinstance(detector, dict) and isinstance(detector.get("model"), dict):
        # Only where it is there: not every kind of detector knows it.
        off = {name: False for name in detector["model"] if name.startswith("pretrained")}
        detector["model"] = {**detector["model"], **off}
    return made


def _padded_the_same_way(data: Any) -> Any:
    """Return a config's ``data``, by which pictures are not padded by lot.

    DeepLabCut draws for each picture anew on which sides it is padded for an HRNet, unless the
    config says where it is to lie: its keypoints differ a little from run to run. Here such a
    picture lies at the top left, one of the places that are drawn; so the same film has the same
    poses, and an attempt that takes over has those of one go.
    """
    inference = data.get("inference") if isinstance(data, dict) else None
    if not isinstance(inference, dict):
        return data
    padding = inference.get("auto_padding")
    if not isinstance(padding, dict) or padding.get("position", "random") != "random":
        return data
    steady = {**padding, "position": "top_left"}
    return {**data, "inference": {**inference, "auto_padding": steady}}


def build(
    config: Any,
    pose_weights: dict[str, Any],
    detector_weights: dict[str, Any] | None,
    detector_batch: int,
    device: str,
    *,
    people: str | None = None,
    animals: int | None = None,
    conditions: Network | None = None,
) -> Network:
    """Build a network of a tamed config, and give it its weights.

    Args:
        people: torchvision's name of a detector of people, instead of one of the config.
        animals: how many it finds at most; None: the config's individuals.
        conditions: what finds the poses that a conditional top-down model begins with.

    Raises:
        ModelError: it can't be built, or the weights are another network's.
    """
    task = Task(config["method"])
    _check_is_whole(config, task, detector_weights, conditions)
    chosen = None if device == "auto" else device
    try:
        # No snapshot path: the weights come from our own, careful reading.
        pose = get_pose_inference_runner(
            config, snapshot_path="", device=chosen, max_individuals=animals
        )
        pose.model.load_state_dict(pose_weights)
        detector = None
        if task == Task.TOP_DOWN:
            detector = _detector(config, detector_batch, chosen, people)
            whole = detector.model if people is None else detector.model.base_model
            whole.load_state_dict(detector_weights)
    except Exception as error:  # a network of any description: torch raises whatever it runs into
        if is_out_of_memory(error):
            raise
        raise _bad_config(error) from error
    return Network(
        pose=pose,
        detector=detector,
        scorer="",
        snapshot="",
        net_type=_net_type(config),
        bodyparts=[str(name) for name in config["metadata"]["bodyparts"]],
        skeleton=[],
        pcutoff=0.6,
        crop=None,
        device=str(pose.device),
        conditions=conditions,
        # DeepLabCut gives identities with the poses of bottom-up models alone.
        identity=task == Task.BOTTOM_UP and bool(config["metadata"]["with_identity"]),
    )


def _check_is_whole(
    config: Any,
    task: Task,
    detector_weights: dict[str, Any] | None,
    conditions: Network | None,
) -> None:
    """Refuse a model of two networks of which the first is missing."""
    if task == Task.COND_TOP_DOWN and conditions is None:
        raise ModelError(
            f"{_net_type(config)} is a conditional top-down model, and an export lacks the "
            "bottom-up model whose poses it improves: push the project, by which both go up",
            code=CODE,
        )
    if task == Task.TOP_DOWN and detector_weights is None:
        raise ModelError("a top-down model needs its detector's weights", code="no_detector")


def _detector(config: Any, batch: int, device: str | None, people: str | None) -> Any:
    """Return DeepLabCut's DetectorInferenceRunner, with random weights."""
    with nothing_downloaded():
        if people is None:
            return get_detector_inference_runner(
                config, snapshot_path="", batch_size=batch, device=device
            )
        return get_filtered_coco_detector_inference_runner(
            people, COCO_PERSON_CATEGORY_ID, batch_size=batch, device=device, model_config=config
        )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _net_type(config: Any) -> str:
    return str(getattr(config["net_type"], "value", config["net_type"]))


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


def weights_of(path: Path, part: str | None) -> dict[str, Any]:
    """Return the weights of a snapshot; nothing else in it is opened.

    Args:
        part: what holds them; None: the file is nothing but weights, as torchvision's are.

    Raises:
        ModelError: codes ``model_damaged``, ``unsafe_model``.
    """
    content = _read_weights(path)
    if part is None:
        content = {part: content}
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
        if is_out_of_memory(error):
            raise
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
