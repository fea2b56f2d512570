"""A trained DeepLabCut project, without weights in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SHUFFLE = "dlc-models-pytorch/iteration-0/reachOct30-trainset95shuffle1"


def make_project(root: Path, **config: Any) -> Path:
    """Write a trained project as DeepLabCut lays it out, with a laboratory's paths all over."""
    lab = str(root.resolve())
    train = root / SHUFFLE / "train"
    train.mkdir(parents=True)
    (root / SHUFFLE / "test").mkdir()
    write_yaml(
        root / "config.yaml",
        {
            "Task": "reach",
            "scorer": "Ada",
            "date": "Oct30",
            "multianimalproject": False,
            "project_path": lab,
            "engine": "pytorch",
            "video_sets": {f"{lab}/videos/a.mp4": {"crop": "0, 640, 0, 480"}},
            "bodyparts": ["hand", "elbow"],
            "individuals": ["individual_1"],
            "skeleton": [["hand", "elbow"]],
            "pcutoff": 0.4,
            "TrainingFraction": [0.95],
            "iteration": 0,
            "snapshotindex": -1,
            **config,
        },
    )
    write_yaml(
        train / "pytorch_config.yaml",
        {
            "method": "bu",
            "net_type": "resnet_50",
            "metadata": {
                "project_path": lab,
                "pose_config_path": f"{lab}/x.yaml",
                "bodyparts": ["hand", "elbow"],
                "individuals": ["individual_1"],
            },
            "resume_training_from": f"{lab}/old.pt",
            "train_settings": {"weight_init": {"snapshot_path": f"{lab}/init.pt"}, "epochs": 5},
            "logger": {"type": "WandbLogger", "project_name": "secret"},
        },
    )
    write_yaml(root / SHUFFLE / "test" / "pose_cfg.yaml", {"dataset": lab, "num_joints": 2})
    for name in ("snapshot-050", "snapshot-100", "snapshot-best-090"):
        (train / f"{name}.pt").write_bytes(name.encode())
    (train / "learning_stats.csv").write_text("not needed for inference")
    return root


def write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
