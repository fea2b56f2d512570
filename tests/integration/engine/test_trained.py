"""A trained model can be anything, and can do no more than give poses."""

from __future__ import annotations

import hashlib
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.data import DLCLoader

from posedrop.errors import ModelError
from posedrop.models import packing
from tests.support.analysed import (
    TOLERANCE,
    Ours,
    copied,
    edit,
    furthest,
)
from tests.support.samples import Sample
from worker.engine import network


def only(model: Path, pattern: str) -> Path:
    [found] = model.rglob(pattern)
    return found


def break_snapshot(model: Path) -> None:
    path = only(model, "snapshot-*.pt")
    path.write_bytes(path.read_bytes()[:100_000])


def break_weights(model: Path) -> None:

    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, only(model, "snapshot-*.pt"))


def break_content(model: Path) -> None:

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


def test_a_config_as_another_machine_wrote_it(short: Sample, tmp_path: Path) -> None:
    """In Windows' encoding, with empty values: the scorer is DeepLabCut's, and so are the defaults.

    The folder's name is as a Mac writes it, in other characters than the config's.
    """
    model = copied(short.model, tmp_path / "model")
    trained = only(model, "*-trainset*")
    task = str(yaml.safe_load((model / "config.yaml").read_text())["Task"])
    named = trained.rename(trained.with_name(trained.name.replace(task, "Mäuse", 1)))
    empty = dict.fromkeys(("pcutoff", "iteration", "snapshotindex", "cropping", "skeleton"))
    edit(model / "config.yaml", Task="Mäuse", scorer="Müller", **empty)
    config = yaml.safe_load((model / "config.yaml").read_text())
    stock = DLCLoader({**config, "iteration": 0, "project_path": str(model)}, shuffle=1)
    expected = stock.scorer(only(model, "snapshot-*.pt"))
    text = yaml.safe_dump(config, allow_unicode=True).replace(": null", ":")
    (model / "config.yaml").write_bytes(text.encode("cp1252"))
    named.rename(named.with_name(unicodedata.normalize("NFD", named.name)))
    _, files = packing.plan_push(model, "mouse")
    for source, path in files:
        target = tmp_path / "pushed" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    ours = network.load(tmp_path / "pushed", None, "cpu")
    assert (ours.scorer, ours.bodyparts) == (expected, short.bodyparts)
    assert (ours.pcutoff, ours.crop, ours.skeleton) == (0.6, None, [])


def test_the_cutoff_of_an_export_is_one(short: Sample, tmp_path: Path) -> None:
    """The network has the one that the pushed model has: tables and video go by the same."""
    config = yaml.safe_load(only(short.model, "pytorch_config.yaml").read_text())
    config["inference"] = {**(config.get("inference") or {}), "eval": {"pcutoff": 0.7}}
    weights = torch.load(only(short.model, "snapshot-*.pt"), weights_only=True)["model"]
    export = tmp_path / "DLC_mouse_resnet_50_iteration-0_shuffle-1_snapshot-10.pt"
    torch.save({"config": config, "pose": weights}, export)
    model, _ = packing.plan_push(export, "mouse")
    assert network.load(tmp_path, None, "cpu").pcutoff == model.pcutoff == 0.7


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
