"""Trains the demo model: a small DeepLabCut 3 network that finds the drawn mouse of mouse.py.

    python demo/train.py

draws a project of labelled images, trains on them from random weights (nothing is downloaded),
keeps in `posedrop/demo/model` what inference needs of the project, and measures the result as a
user would: by `deeplabcut.analyze_videos` on a film that no training image came from.
"""

import argparse
import pickle
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import deeplabcut
import numpy as np
import pandas as pd
import torch
import yaml
from deeplabcut.pose_estimation_pytorch import DLCLoader
from deeplabcut.pose_estimation_pytorch.models import PoseModel
from deeplabcut.pose_estimation_pytorch.utils import fix_seeds
from deeplabcut.utils import auxiliaryfunctions

from posedrop.demo import MODEL, mouse

TASK = "mouse"
SCORER = "posedrop"
DATE = "Jan1"  # fixed, as DeepLabCut puts it into file names: they should not change by the day
FILM = "arena"  # the folder of the labelled images
NET = "cspnext_s"  # DeepLabCut's template; SETTINGS make it a quarter as wide as the original

SEEDS = range(100, 150)  # of the training images
TEST_SEED = 7  # of the film that the model is measured on
PER_SEED = 5
APART = 60  # frames between two images of one seed: they would show the same pose otherwise
SPLIT_SEED = 1

BATCH = 8
FEATURES = 256  # channels of the backbone's last stage
HIDDEN = 48  # channels between the two layers of the head

SETTINGS: dict[str, Any] = {
    "model.backbone.widen_factor": 0.25,
    "model.backbone.deepen_factor": 0.33,
    "model.backbone.norm_layer": "BN",  # SyncBN, the default, is for several GPUs
    "model.backbone_output_channels": FEATURES,
    # The template's tiny weights are for a pretrained backbone: through two layers next to
    # nothing would reach this untrained one.
    "model.heads.bodypart.weight_init": None,
    # From stride 32 to 8: coarse enough to be fast, as the offsets do the rest.
    "model.heads.bodypart.heatmap_config.channels": [FEATURES, HIDDEN, len(mouse.BODYPARTS)],
    "model.heads.bodypart.heatmap_config.kernel_size": [3, 3],
    "model.heads.bodypart.heatmap_config.strides": [2, 2],
    "model.heads.bodypart.locref_config.channels": [FEATURES, HIDDEN, 2 * len(mouse.BODYPARTS)],
    "model.heads.bodypart.locref_config.kernel_size": [3, 3],
    "model.heads.bodypart.locref_config.strides": [2, 2],
    "data.train.affine": {"p": 0.9, "rotation": 180, "scaling": [0.9, 1.1], "translation": 0},
    "data.train.motion_blur": False,
    "data.train.gaussian_noise": 5.0,
    "runner.scheduler.type": "CosineAnnealingLR",
    "runner.snapshots.max_snapshots": 1,
    "runner.snapshots.save_optimizer_state": False,
    "train_settings.batch_size": BATCH,
    "train_settings.display_iters": 1000,
    "train_settings.seed": 42,
}


@dataclass(frozen=True)
class Stage:
    """One run of training: how long, how fast, and on crops of `crop` pixels or whole images."""

    epochs: int
    rate: float
    crop: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the stage changes in the configuration of the model."""
        crop = None
        if self.crop is not None:
            crop = {"width": self.crop, "height": self.crop, "max_shift": 0.3, "method": "hybrid"}
        return {
            "data.train.crop_sampling": crop,
            "runner.optimizer.params.lr": self.rate,
            "runner.scheduler.params": {"T_max": self.epochs, "eta_min": self.rate / 50},
            # Not before the end: measuring is done on a film, and what is kept is the last
            # snapshot.
            "runner.eval_interval": self.epochs + 1,
            "runner.snapshots.save_epochs": self.epochs,
            "train_settings.epochs": self.epochs,
        }


# Most of the picture is floor, so crops round the mouse teach as much in a fraction of the time.
# Whole images come last, as the network's attention and its norms depend on how much floor it sees.
STAGES = (Stage(epochs=40, rate=2e-3, crop=128), Stage(epochs=3, rate=5e-4, crop=None))


@dataclass(frozen=True)
class Score:
    """How well the model does: errors in pixels, and the share of likelihoods above 0.6."""

    mean: float
    worst: float
    sure: float
    by_part: dict[str, float]


def create_project(folder: Path) -> Path:
    """Create a DeepLabCut project of drawn images and their labels; return its config.yaml."""
    sample = folder / f"{FILM}.mp4"
    mouse.film(sample, 2, SEEDS[0])  # no project without a film, but nothing reads this one
    config = Path(
        deeplabcut.create_new_project(
            TASK, SCORER, [str(sample)], working_directory=str(folder), copy_videos=True
        )
    )
    auxiliaryfunctions.edit_config(
        str(config),
        {
            "date": DATE,
            "engine": "pytorch",
            "bodyparts": list(mouse.BODYPARTS),
            "skeleton": [
                ["snout", "leftear"],
                ["snout", "rightear"],
                ["leftear", "centre"],
                ["rightear", "centre"],
                ["centre", "tailbase"],
            ],
            "default_net_type": NET,
            "dotsize": 4,
        },
    )
    _label(config.parent / "labeled-data" / FILM)
    count = len(SEEDS) * PER_SEED
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    train = int(0.95 * count)  # the share that DeepLabCut's TrainingFraction names
    deeplabcut.create_training_dataset(
        str(config),
        Shuffles=[1],
        userfeedback=False,
        trainIndices=[sorted(order[:train].tolist())],
        testIndices=[sorted(order[train:].tolist())],
        net_type=NET,
    )
    return config


def train(config: Path) -> float:
    """Train the project's first shuffle on the CPU; return how long it took, in seconds."""
    begin = time.monotonic()
    loader = DLCLoader(config, shuffle=1)
    _configure(loader, SETTINGS)
    # Without a snapshot to start from, DeepLabCut would fetch pretrained weights.
    fix_seeds(SETTINGS["train_settings.seed"])
    model = PoseModel.build(loader.model_cfg["model"], pretrained_backbone=False)
    weights = model.state_dict()
    for stage in STAGES:
        _configure(loader, stage.settings)
        for old in loader.model_folder.glob("snapshot-*.pt"):
            old.unlink()
        start = config.parent / "start.pt"
        torch.save({"model": weights, "metadata": {"epoch": 0}}, start)
        deeplabcut.train_network(str(config), shuffle=1, device="cpu", snapshot_path=str(start))
        (snapshot,) = loader.model_folder.glob("snapshot-*.pt")
        weights = torch.load(snapshot, map_location="cpu", weights_only=True)["model"]
    return time.monotonic() - begin


def keep(config: Path, target: Path) -> None:
    """Copy to `target` what inference needs of a project, free of the paths of this machine."""
    project = config.parent
    (snapshot,) = project.glob("dlc-models-pytorch/**/snapshot-*.pt")
    (test,) = project.glob("dlc-models-pytorch/**/pose_cfg.yaml")
    (dataset,) = project.glob("training-datasets/iteration-0/*")
    shutil.rmtree(target, ignore_errors=True)
    for source in (
        config,
        snapshot.with_name("pytorch_config.yaml"),
        test,
        dataset / "metadata.yaml",
    ):
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        _place(target, project, source).write_text(
            yaml.safe_dump(_portable(content, project), sort_keys=False), encoding="utf-8"
        )
    for source in dataset.glob(f"CollectedData_{SCORER}.*"):
        shutil.copyfile(source, _place(target, project, source))
    (split,) = dataset.glob("Documentation_data-*.pickle")
    with split.open("rb") as file:
        documented = pickle.load(file)  # noqa: S301 - written by this program a moment ago
    with _place(target, project, split).open("wb") as file:
        pickle.dump(_portable(documented, project), file)
    state = torch.load(snapshot, map_location="cpu", weights_only=True)
    torch.save(
        {"model": state["model"], "metadata": state["metadata"]}, _place(target, project, snapshot)
    )


def measure(model: Path, folder: Path) -> Score:
    """Compare what a copy of `model` finds in a film of TEST_SEED with the truth."""
    copy = Path(shutil.copytree(model, folder / "copy"))
    path = folder / "test.mp4"
    truth = mouse.film(path, 300, TEST_SEED)
    deeplabcut.analyze_videos(
        str(copy / "config.yaml"), [str(path)], shuffle=1, device="cpu", destfolder=str(folder)
    )
    (table,) = folder.glob("test*.h5")
    found = pd.read_hdf(table).to_numpy().reshape(len(truth), len(mouse.BODYPARTS), 3)
    errors = np.linalg.norm(found[..., :2] - truth, axis=2)
    return Score(
        mean=float(errors.mean()),
        worst=float(errors.max()),
        sure=float((found[..., 2] > 0.6).mean()),
        by_part=dict(zip(mouse.BODYPARTS, errors.mean(axis=0).tolist(), strict=True)),
    )


def _configure(loader: DLCLoader, settings: dict[str, Any]) -> None:
    """Write settings into the project's pytorch_config.yaml."""
    for key, value in settings.items():
        loader.model_cfg.set_nested(key, value)
    loader.model_cfg.to_yaml(loader.model_config_path)


def _label(folder: Path) -> None:
    """Draw the training images into `folder`, and their labels as DeepLabCut stores them."""
    rows: list[mouse.Floats] = []
    names: list[tuple[str, str, str]] = []
    for seed in SEEDS:
        poses = mouse.trajectory(PER_SEED * APART, seed)
        for frame in range(0, len(poses), APART):
            name = f"img{len(names):04}.png"
            picture = mouse.draw(poses[frame], seed, frame)
            cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            rows.append(poses[frame].ravel())
            names.append(("labeled-data", FILM, name))
    columns = pd.MultiIndex.from_product(
        [[SCORER], mouse.BODYPARTS, ["x", "y"]], names=["scorer", "bodyparts", "coords"]
    )
    labels = pd.DataFrame(np.stack(rows), pd.MultiIndex.from_tuples(names), columns)
    labels.to_hdf(folder / f"CollectedData_{SCORER}.h5", key="df_with_missing", mode="w")
    labels.to_csv(folder / f"CollectedData_{SCORER}.csv")


def _place(target: Path, project: Path, source: Path) -> Path:
    """Where a file of `project` goes in `target`; its folder is made."""
    path = target / source.relative_to(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _portable(value: Any, project: Path) -> Any:
    """Return `value` with every path into `project` relative to it; `project` itself is `.`."""
    if isinstance(value, dict):
        return {_portable(key, project): _portable(item, project) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item, project) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(project):
        return Path(value).relative_to(project).as_posix()
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train, keep and measure."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--target", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=1, help="more is slower on a busy machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        config = create_project(folder)
        seconds = train(config)
        keep(config, options.target)
        score = measure(options.target, folder)
    size = sum(file.stat().st_size for file in options.target.rglob("*") if file.is_file())
    print(f"trained in {seconds:.0f} s, {size / 1e6:.2f} MB in {options.target.name}")
    print(f"error: mean {score.mean:.2f} px, worst {score.worst:.2f} px")
    for part, error in score.by_part.items():
        print(f"  {part}: {error:.2f} px")
    print(f"likelihood above 0.6: {score.sure:.1%}")


if __name__ == "__main__":
    main()
