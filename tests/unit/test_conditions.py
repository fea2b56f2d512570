"""Conditional top-down models: pushed with the bottom-up shuffle they begin with, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from posedrop.errors import ModelError
from posedrop.models import packing
from posedrop.models.conditions import CODE, find_conditions
from tests.support.projects import SHUFFLE, make_project, write_yaml

SECOND = SHUFFLE.replace("shuffle1", "shuffle2")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a bottom-up shuffle 1 and a conditional shuffle 2."""
    root = make_project(tmp_path / "reach-Ada-2026-10-30")
    shutil.copytree(root / SHUFFLE, root / SECOND)
    conditioned(root, {"shuffle": 1})
    return root


def conditioned(root: Path, conditions: Any, shuffle: str = SECOND, **config: Any) -> None:
    path = root / shuffle / "train" / "pytorch_config.yaml"
    content = yaml.safe_load(path.read_text())
    named = {"inference": {"conditions": conditions, "autocast": {"enabled": False}}}
    write_yaml(path, {**content, "method": "ctd", "net_type": "ctd_coam_w32", **named, **config})


def pushed(project: Path, target: Path) -> Path:
    """Return a folder with what is pushed of shuffle 2, as a worker has it."""
    _, files = packing.plan_push(project, "reach", shuffle=2)
    for source, path in files:
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    return target


FORMS: list[tuple[Any, str]] = [
    ({"shuffle": 1}, "snapshot-best-090"),
    ({"source": "shuffle", "shuffle": "1", "snapshot_index": 0}, "snapshot-050"),
    ({"shuffle": 1, "snapshot": "snapshot-100.pt", "snapshot_index": 0}, "snapshot-100"),
    ({"shuffle": 1, "config": "{lab}/config.yaml", "trainset_index": 0}, "snapshot-best-090"),
    (
        {
            "config_path": f"{{lab}}/{SHUFFLE}/train/pytorch_config.yaml",
            "snapshot_path": f"{{lab}}/{SHUFFLE}/train/snapshot-050.pt",
            "scorer": "DLC_x",
        },
        "snapshot-050",
    ),
    (
        {
            "config_path": f"C:\\lab\\reach\\{SHUFFLE}\\train\\pytorch_config.yaml",
            "snapshot_path": f"C:/lab/reach/{SHUFFLE}/train/snapshot-100.pt",
        },
        "snapshot-100",
    ),
]


@pytest.mark.parametrize(("conditions", "snapshot"), FORMS)
def test_both_shuffles_go_up(
    project: Path, tmp_path: Path, conditions: dict[str, Any], snapshot: str
) -> None:
    """In each form that DeepLabCut knows; the worker finds the same shuffle in what was pushed."""
    if "C:" in str(conditions):
        config = yaml.safe_load((project / "config.yaml").read_text())
        write_yaml(project / "config.yaml", {**config, "project_path": "C:\\lab\\reach"})
    lab = {
        key: value.replace("{lab}", str(project)) if isinstance(value, str) else value
        for key, value in conditions.items()
    }
    conditioned(project, lab)
    model, files = packing.plan_push(project, "reach", shuffle=2)
    assert {path for _, path in files} == {
        "config.yaml",
        f"{SHUFFLE}/train/pytorch_config.yaml",
        f"{SHUFFLE}/train/{snapshot}.pt",
        f"{SECOND}/train/pytorch_config.yaml",
        f"{SECOND}/train/snapshot-best-090.pt",
        f"{SECOND}/test/pose_cfg.yaml",
    }
    assert (model.net_type, model.snapshots) == ("ctd_coam_w32", ["snapshot-best-090"])
    data = b"".join(s if isinstance(s, bytes) else s.read_bytes() for s, _ in files)
    assert str(project).encode() not in data
    at_worker = pushed(project, tmp_path / "worker")
    config = yaml.safe_load((at_worker / "config.yaml").read_text())
    found = find_conditions(at_worker, config, at_worker / SECOND)
    assert found.folder == at_worker / SHUFFLE
    assert found.snapshot.stem == snapshot


def test_the_digest_covers_both(project: Path) -> None:
    """Other weights of either are another model; what has one shuffle alone is as it was."""
    first, alone = (packing.plan_push(project, "r", shuffle=n)[0].digest for n in (2, 1))
    weights = project / SHUFFLE / "train/snapshot-best-090.pt"
    kept = weights.read_bytes()
    weights.write_bytes(b"trained on")
    assert packing.plan_push(project, "r", shuffle=2)[0].digest != first
    weights.write_bytes(kept)
    (project / SECOND / "train/snapshot-best-090.pt").write_bytes(b"trained on")
    assert packing.plan_push(project, "r", shuffle=2)[0].digest != first
    assert packing.plan_push(project, "r", shuffle=1)[0].digest == alone


def made_conditional(project: Path) -> None:
    conditioned(project, {"shuffle": 2}, SHUFFLE)


def made_top_down(project: Path) -> None:
    path = project / SHUFFLE / "train/pytorch_config.yaml"
    write_yaml(path, {**yaml.safe_load(path.read_text()), "method": "td"})


def made_tensorflow(project: Path) -> None:
    (project / "dlc-models/iteration-0").mkdir(parents=True)
    (project / SHUFFLE).rename(project / SHUFFLE.replace("dlc-models-pytorch", "dlc-models"))


def lost(project: Path) -> None:
    shutil.rmtree(project / SHUFFLE)


def untrained(project: Path) -> None:
    for file in (project / SHUFFLE / "train").glob("*.pt"):
        file.unlink()


def of_other_bodyparts(project: Path) -> None:
    path = project / SHUFFLE / "train/pytorch_config.yaml"
    content = yaml.safe_load(path.read_text())
    write_yaml(path, {**content, "metadata": {"bodyparts": ["hand"]}})


def unharmed(project: Path) -> None:
    pass


OUTSIDE = "/etc/lab/dlc-models-pytorch/iteration-0/x-trainset95shuffle1/train"


@pytest.mark.parametrize(
    ("damage", "conditions", "words"),
    [
        (unharmed, None, "none are named.*here is 1"),
        (unharmed, "/lab/predictions.h5", "a file of predictions"),
        (unharmed, {"filepath": "../../predictions.json"}, "a file of predictions"),
        (unharmed, {"source": "file", "shuffle": 1}, "a file of predictions"),
        (unharmed, {"shuffle": 17}, "shuffle 17 is not there.*here is 1"),
        (unharmed, {"shuffle": 2}, "from itself"),
        (unharmed, {"shuffle": None}, "no whole number"),
        (unharmed, {"shuffle": "../../1"}, "no whole number"),
        (unharmed, {"shuffle": True}, "no whole number"),
        (unharmed, {"shuffle": float("nan")}, "no whole number"),
        (unharmed, {"shuffle": 1, "snapshot": "snapshot-7.pt"}, "no snapshot 'snapshot-7.pt'"),
        (unharmed, {"shuffle": 1, "snapshot": "all"}, "no snapshot 'all'"),
        (unharmed, {"shuffle": 1, "snapshot": "../../secret.pt"}, "no snapshot"),
        (unharmed, {"shuffle": 1, "snapshot_index": 9}, "snapshot_index is 9"),
        (unharmed, {"shuffle": 1, "trainset_index": 4}, "shuffle 1 is not there"),
        (unharmed, {"shuffle": 1, "modelprefix": "../other"}, "modelprefix"),
        (unharmed, {"shuffle": 1, "config": "/other/config.yaml"}, "of another project"),
        (unharmed, {"shuffle": 1, "config": "../other/config.yaml"}, "of another project"),
        (
            unharmed,
            {"config_path": f"{OUTSIDE}/pytorch_config.yaml", "snapshot_path": "x.pt"},
            "config_path leads out",
        ),
        (
            unharmed,
            {
                "config_path": f"{SHUFFLE}/train/pytorch_config.yaml",
                "snapshot_path": f"{SHUFFLE}/train/../../../../../x.pt",
            },
            "snapshot_path leads out",
        ),
        (
            unharmed,
            {"config_path": "config.yaml", "snapshot_path": "config.yaml"},
            "there is no pytorch_config.yaml",
        ),
        (
            unharmed,
            {
                "config_path": f"{SHUFFLE}/train/pytorch_config.yaml",
                "snapshot_path": f"{SECOND}/train/snapshot-050.pt",
            },
            "of two shuffles",
        ),
        (unharmed, {"config_path": ["a"], "snapshot_path": {}}, "there is no pytorch_config.yaml"),
        (unharmed, [1], "none of the forms"),
        (unharmed, {"source": "elsewhere"}, "none of the forms"),
        (made_conditional, {"shuffle": 1}, "is a conditional model"),
        (made_top_down, {"shuffle": 1}, "is a top-down model"),
        (made_tensorflow, {"shuffle": 1}, "TensorFlow engine.*here is none"),
        (lost, {"shuffle": 1}, "shuffle 1 is not there"),
        (untrained, {"shuffle": 1}, "has no snapshot"),
        (of_other_bodyparts, {"shuffle": 1}, "finds 1 bodyparts, this one needs 2"),
    ],
)
def test_conditions_that_can_not_be_used(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    conditions: Any,
    words: str,
) -> None:
    """Refused before a push, and by a worker; nothing outside of the project is opened."""
    damage(project)
    conditioned(project, conditions)
    with only_inside(project, monkeypatch):
        with pytest.raises(ModelError, match=f"(?s){words}.*models push .* --shuffle 2") as caught:
            packing.plan_push(project, "reach", shuffle=2)
        assert caught.value.code == CODE
        config = yaml.safe_load((project / "config.yaml").read_text())
        with pytest.raises(ModelError, match=f"(?s){words}"):
            find_conditions(project, config, project / SECOND)


@contextmanager
def only_inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where a file or folder is opened that is not the project's."""
    whole = (Path.read_bytes, Path.open, Path.iterdir, Path.is_file, Path.is_dir, Path.glob)
    with monkeypatch.context() as patch:
        for method in whole:

            def checked(path: Path, *args: Any, _method: Any = method, **options: Any) -> Any:
                assert ".." not in path.parts
                assert path.is_relative_to(project)
                return _method(path, *args, **options)

            patch.setattr(Path, method.__name__, checked)
        yield


def test_iteration_that_leads_out(project: Path) -> None:
    """A config's iteration is no path."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    write_yaml(project / "config.yaml", {**config, "iteration": "0/../../../../etc"})
    with pytest.raises(ModelError, match="iteration"):
        packing.plan_push(project, "reach")


def test_export_of_a_conditional_model(tmp_path: Path) -> None:
    """It lacks the bottom-up model, whatever its conditions say."""
    import torch

    path = tmp_path / "DLC_reach_ctd_coam_w32_iteration-0_shuffle-2_snapshot-best-90.pt"
    torch.save({"config": {"method": "ctd", "metadata": {}}, "pose": {}}, path)
    with pytest.raises(ModelError, match="push the project") as caught:
        packing.plan_push(path, "reach")
    assert caught.value.code == CODE
