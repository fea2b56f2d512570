"""What of a trained model is pushed: of a project, or of an export."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posedrop.errors import BadRequestError, ModelError
from posedrop.models import packing, projects
from tests.support.projects import SHUFFLE, make_project, write_yaml


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "reach-Ada-2026-10-30")


def test_plan_takes_what_inference_needs(project: Path) -> None:
    """The configs and the snapshot that snapshotindex names (the best counts as the last)."""
    model, files = packing.plan_push(project, "reach")
    assert sorted(path for _, path in files) == [
        "config.yaml",
        f"{SHUFFLE}/test/pose_cfg.yaml",
        f"{SHUFFLE}/train/pytorch_config.yaml",
        f"{SHUFFLE}/train/snapshot-best-090.pt",
    ]
    assert model.model_dump(exclude={"digest", "files", "created_at"}) == {
        "schema_version": 1,
        "name": "reach",
        "kind": "project",
        "task": "reach",
        "scorer": "Ada",
        "bodyparts": ["hand", "elbow"],
        "individuals": ["individual_1"],
        "skeleton": [["hand", "elbow"]],
        "multianimal": False,
        "net_type": "resnet_50",
        "pcutoff": 0.4,
        "snapshots": ["snapshot-best-090"],
    }


def test_plan_describes_the_files(project: Path) -> None:
    """Each file's size and SHA-256 are in the record, and the digest is made of them."""
    model, files = packing.plan_push(project, "reach")
    described = {file.path: (file.size, file.sha256) for file in model.files}
    actual = {}
    for source, path in files:
        data = source if isinstance(source, bytes) else source.read_bytes()
        actual[path] = (len(data), hashlib.sha256(data).hexdigest())
    lines = "".join(f"{path}\0{sha256}\n" for path, (_, sha256) in sorted(actual.items()))
    assert described == actual
    assert model.digest == hashlib.sha256(lines.encode()).hexdigest()


def test_no_path_of_the_laboratory_leaves_it(project: Path) -> None:
    """Neither the project's path nor its videos' are in any byte that is uploaded."""
    _, files = packing.plan_push(project, "reach")
    data = b"".join(s if isinstance(s, bytes) else s.read_bytes() for s, _ in files)
    assert [
        word for word in (str(project), "videos/a.mp4", "secret") if word.encode() in data
    ] == []


def test_config_yaml_is_a_way_to_name_a_project(project: Path) -> None:
    """DeepLabCut's users hand around the path of config.yaml: it means its folder."""
    by_folder, _ = packing.plan_push(project, "reach")
    by_config, _ = packing.plan_push(project / "config.yaml", "reach")
    assert by_folder.digest == by_config.digest


def test_digest_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """One project at two places is one model; other weights are another."""
    one = make_project(tmp_path / "one")
    two = make_project(tmp_path / "elsewhere" / "two")
    assert packing.plan_push(one, "a")[0].digest == packing.plan_push(two, "b")[0].digest
    (two / SHUFFLE / "train" / "snapshot-best-090.pt").write_bytes(b"trained on")
    assert packing.plan_push(one, "a")[0].digest != packing.plan_push(two, "b")[0].digest


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        ("snapshot-050", ["snapshot-050"]),
        ("snapshot-100.pt", ["snapshot-100"]),
        ("all", ["snapshot-050", "snapshot-100", "snapshot-best-090"]),
    ],
)
def test_snapshots_of_choice(project: Path, snapshot: str, expected: list[str]) -> None:
    """One by its name, or all, in DeepLabCut's order: by epochs, the best one last."""
    assert packing.plan_push(project, "reach", snapshot=snapshot)[0].snapshots == expected


@pytest.mark.parametrize(
    ("index", "expected"), [(0, "snapshot-050"), (-2, "snapshot-100"), ("all", "snapshot-best-090")]
)
def test_snapshotindex_of_the_config(tmp_path: Path, index: Any, expected: str) -> None:
    """Without a choice the config's snapshotindex counts; ``all`` means the last, as for DLC."""
    project = make_project(tmp_path / "project", snapshotindex=index)
    assert packing.plan_push(project, "reach")[0].snapshots == [expected]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pcutoff", "0,6", "pcutoff is '0,6', which is no number"),
        ("pcutoff", [0.6], r"pcutoff is \[0.6\], which is no number"),
        ("pcutoff", float("nan"), "pcutoff is nan, which is no number"),
        ("TrainingFraction", 0.95, "TrainingFraction is 0.95, which is no list"),
        ("TrainingFraction", ["95%"], "TrainingFraction is '95%', which is no number"),
        ("TrainingFraction", [float("inf")], "TrainingFraction is inf, which is no number"),
        ("skeleton", 3, "skeleton is 3, which is no list"),
        ("skeleton", "hand, elbow", "skeleton is 'hand, elbow', which is no list"),
    ],
)
def test_a_slip_in_the_config_is_said_in_words(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    """The message has the field and what stands there."""
    project = make_project(tmp_path / "project", **{name: value})
    with pytest.raises(ModelError, match=f"the config's {said}") as caught:
        packing.plan_push(project, "reach")
    assert caught.value.code == "model_damaged"


def test_top_down_models_bring_their_detector(project: Path) -> None:
    """A top-down model is pushed with the last snapshot of its detector."""
    train = project / SHUFFLE / "train"
    config = yaml.safe_load((train / "pytorch_config.yaml").read_text())
    write_yaml(train / "pytorch_config.yaml", {**config, "method": "td"})
    with pytest.raises(ModelError, match="needs a detector"):
        packing.plan_push(project, "reach")
    (train / "snapshot-detector-010.pt").write_bytes(b"10")
    (train / "snapshot-detector-best-007.pt").write_bytes(b"7")
    model, _ = packing.plan_push(project, "reach")
    names = {Path(file.path).name for file in model.files}
    assert names & {"snapshot-detector-010.pt", "snapshot-detector-best-007.pt"} == {
        "snapshot-detector-best-007.pt"
    }
    assert model.snapshots == ["snapshot-best-090"]


def test_shuffle_of_choice(project: Path) -> None:
    """Shuffle 1 unless asked otherwise; the only one there is needs no asking."""
    third = project / SHUFFLE.replace("shuffle1", "shuffle3")
    shutil.copytree(project / SHUFFLE, third)
    default, _ = packing.plan_push(project, "reach")
    chosen, _ = packing.plan_push(project, "reach", shuffle=3)
    shutil.rmtree(project / SHUFFLE)
    only, _ = packing.plan_push(project, "reach")
    assert [f"{SHUFFLE}/" in file.path for file in default.files[1:]] == [True] * 3
    assert chosen.digest == only.digest != default.digest


def break_nothing(project: Path) -> None:
    pass


def break_config(project: Path) -> None:
    (project / "config.yaml").unlink()


def break_yaml(project: Path) -> None:
    (project / "config.yaml").write_text("a: [unclosed")


def break_snapshots(project: Path) -> None:
    for file in (project / SHUFFLE / "train").glob("*.pt"):
        file.unlink()


def break_training(project: Path) -> None:
    shutil.rmtree(project / "dlc-models-pytorch")


def break_engine(project: Path) -> None:
    (project / "dlc-models-pytorch").rename(project / "dlc-models")


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (break_config, {}, "there is no config.yaml"),
        (break_yaml, {}, "config.yaml can't be read"),
        (break_snapshots, {}, "train the model first"),
        (break_training, {}, "no trained shuffle"),
        (break_engine, {}, "TensorFlow engine"),
        (break_nothing, {"shuffle": 2}, "no shuffle 2; it has: 1"),
        (break_nothing, {"snapshot": "snapshot-7"}, "there are: snapshot-050, snapshot-100"),
    ],
)
def test_what_can_not_be_pushed(
    project: Path, damage: Any, options: dict[str, Any], words: str
) -> None:
    """A project that can't be used is refused with what is missing."""
    damage(project)
    with pytest.raises(ModelError, match=words):
        packing.plan_push(project, "reach", **options)


@pytest.mark.parametrize(
    "config",
    [
        "metadata: &all {conditions: *all}",
        f"a: [{'1,' * 10_000}]",
        # Merged into itself twice, 28 times: PyYAML alone would need hours.
        "a0: &a0 {k: 1}\n"
        + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(28)),
        # Each list holds the one before eight times.
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{n}: &{n} [{', '.join(8 * [f'*{chr(ord(n) - 1)}'])}]\n" for n in "bcdefghi"),
    ],
)
def test_a_config_without_an_end(project: Path, config: str) -> None:
    """One that holds itself, or that a few aliases or merges make endless, is refused in words."""
    (project / SHUFFLE / "train/pytorch_config.yaml").write_text(config)
    with pytest.raises(ModelError, match="more than 10,000 values, or holds itself"):
        packing.plan_push(project, "reach")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (f"a: {'x' * 2**20}", "more than 1,048,576 bytes"),
        (f"iteration: 0x{'f' * 5000}", "5,002 digits"),
        (f"a: {'[' * 100}{']' * 100}", "nested too deeply"),
        ("a: " + "[" * 5000, "recursion"),
    ],
)
def test_a_config_that_is_dear_to_read(project: Path, config: str, says: str) -> None:
    """What is long, deep or a number of thousands of digits is refused in words."""
    (project / "config.yaml").write_text(config)
    with pytest.raises(ModelError, match=says):
        packing.plan_push(project, "reach")


@pytest.mark.parametrize(
    "inside",
    [
        "config.yaml",
        f"{SHUFFLE}/train/pytorch_config.yaml",
        f"{SHUFFLE}/train/snapshot-best-090.pt",
        f"{SHUFFLE}/test/pose_cfg.yaml",
        f"{SHUFFLE}/train",
        "dlc-models-pytorch",
    ],
)
def test_no_link_is_followed_out_of_the_project(project: Path, tmp_path: Path, inside: str) -> None:
    """A project of somebody else's may link to what only its pusher can read: nothing goes up.

    A link to another place of the project is followed.
    """
    elsewhere, linked = tmp_path / "elsewhere", project / inside
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    with pytest.raises(ModelError, match="outside of") as caught:
        packing.plan_push(project, "reach")
    assert (caught.value.code, str(elsewhere) in caught.value.message) == ("link_outside", True)
    elsewhere.rename(project / "moved")
    linked.unlink()
    linked.symlink_to(project / "moved")
    assert packing.plan_push(project, "reach")[0].kind == "project"


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-a", "a@b", "ä", "x" * 65])
def test_names_that_can_not_be(project: Path, name: str) -> None:
    """A name becomes part of a key, a path and a command line: letters, digits and ._- only."""
    with pytest.raises(BadRequestError) as caught:
        packing.plan_push(project, name)
    assert caught.value.field == "name"


def test_settings_of_tracking_are_pushed(tmp_path: Path) -> None:
    """What somebody set for tracking in the project counts at the worker, too."""
    project = make_project(tmp_path / "reach", multianimalproject=True)
    write_yaml(project / SHUFFLE / "test" / "inference_cfg.yaml", {"pcutoff": 0.3})
    model, _ = packing.plan_push(project, "reach")
    assert f"{SHUFFLE}/test/inference_cfg.yaml" in {file.path for file in model.files}


# -- exports ----


@pytest.fixture
def export(tmp_path: Path) -> Path:
    import torch

    path = tmp_path / "DLC_reach_two_resnet_50_iteration-0_shuffle-1_snapshot-best-90.pt"
    config = {
        "method": "bu",
        "net_type": "resnet_50",
        "metadata": {
            "project_path": "/lab/reach",
            "bodyparts": ["hand"],
            "individuals": ["individual_1"],
        },
        "inference": {"eval": {"pcutoff": 0.7}},
    }
    torch.save({"config": config, "pose": {"weight": torch.zeros(2)}}, path)
    return path


def test_export(export: Path) -> None:
    """A file of export_model is a model, told by its own config and its name; its paths go."""
    model, files = packing.plan_push(export, "reach")
    assert (model.kind, model.task, model.snapshots, model.bodyparts, model.pcutoff) == (
        "export",
        "reach_two",
        ["snapshot-best-90"],
        ["hand"],
        0.7,
    )
    [(source, path)] = files
    assert path == export.name
    assert isinstance(source, bytes)
    assert b"/lab/reach" not in source


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(0.3, 0.3), (1, 1.0), ([0.6, 0.7], 0.6), ({"hand": 0.7}, 0.6), (None, 0.6), (7, 0.6)],
)
def test_the_cutoff_of_an_export(export: Path, cutoff: Any, expected: float) -> None:
    """A number of 0 to 1 counts; DeepLabCut takes one a bodypart there too."""
    import torch

    content = torch.load(export, weights_only=True)
    content["config"]["inference"]["eval"]["pcutoff"] = cutoff
    torch.save(content, export)
    model, _ = packing.plan_push(export, "reach")
    assert model.pcutoff == expected


def test_export_needs_torch(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the message says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"posedrop\[worker\]") as caught:
        packing.plan_push(export, "reach")
    assert caught.value.code == "needs_torch"


def test_export_that_is_none(tmp_path: Path) -> None:
    """A file that is no export, or is torn, is refused."""
    import torch

    torn, snapshot = tmp_path / "torn.pt", tmp_path / "snapshot-10.pt"
    torn.write_bytes(b"PK\x03\x04 torn")
    torch.save({"model": {}}, snapshot)
    with pytest.raises(ModelError, match="can't be read"):
        packing.plan_push(torn, "x")
    with pytest.raises(ModelError, match="push the project"):
        packing.plan_push(snapshot, "x")
    with pytest.raises(ModelError, match="there is no file"):
        packing.plan_push(tmp_path / "none.pt", "x")


@pytest.mark.parametrize(
    ("scorer", "bodypart", "encoding"),
    [
        ("Müller", "Schwänzchen", "utf-8-sig"),
        ("Müller", "Schwänzchen", "utf-16"),
        ("Müller", "Schwänzchen", "cp1252"),
        ("François", "nez", "latin-1"),
        ("田中", "しっぽの先", "cp932"),
        ("王伟", "鼻子", "gbk"),
        ("김철수", "꼬리", "cp949"),
        ("Иванов", "хвост", "cp1251"),
        ("NO", "on", "ascii"),
    ],
)
def test_configs_of_another_machines_encoding(
    tmp_path: Path, scorer: str, bodypart: str, encoding: str
) -> None:
    """As Windows wrote them; what is pushed is in UTF-8, and a name is no number and no bool."""
    project = make_project(tmp_path / "project", scorer="SCORER", date="010")
    for path in (project / "config.yaml", project / SHUFFLE / "train/pytorch_config.yaml"):
        text = path.read_text().replace("elbow", bodypart).replace("SCORER", scorer)
        path.write_bytes(text.encode(encoding))
    model, files = packing.plan_push(project, "reach")
    assert (model.scorer, model.bodyparts) == (scorer, ["hand", bodypart])
    pushed = next(source for source, path in files if path == "config.yaml")
    assert isinstance(pushed, bytes)
    assert yaml.safe_load(pushed)["bodyparts"] == ["hand", bodypart]


#: Texts that some version of YAML takes for something else, where nothing quotes them.
ODD_NAMES = [
    "08", "0098", "-09", "1e3", "5e-3", "0o7", "+.5", "01", "0_8", "1_e3", "0x1F", "0b1", ".5_",
    "1:30", "NO", "on", "y", "true", "null", "~", "=", "<<", ".inf", ".nan", "2026-10-30",
    "", "mouse_1",
]  # fmt: skip


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    """A mouse called 08 is no number, to posedrop nor to DeepLabCut; and a number is no text."""
    from ruamel.yaml import YAML

    config = {
        "names": ODD_NAMES,
        "numbers": [8, 0.5, 1e-5, 1e20, True, None],
        **{"07": {"1e3": "x"}},
    }
    text = projects.dumped(config)
    (tmp_path / "config.yaml").write_text(text)
    assert projects.read_yaml(tmp_path / "config.yaml") == config
    assert YAML(typ="safe", pure=True).load(text) == config  # DeepLabCut's
    assert yaml.safe_load(text) == config
    plain = {
        "Task": "reach",
        "date": "Oct30",
        "mice": ["mouse_1", "2nd", "a-1", "1a"],
        "pcutoff": 0.6,
    }
    assert projects.dumped(plain) == yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def test_a_task_of_digits_is_pushed_as_it_is(tmp_path: Path) -> None:
    """What a laboratory quoted is quoted where it was pushed to."""
    project = make_project(tmp_path / "project", scorer="1e3", skeleton=[["08", "09"]])
    text = (project / "config.yaml").read_text()
    text = text.replace("Task: reach", "Task: '0098'").replace(": 1e3", ": '1e3'")
    (project / "config.yaml").write_text(text.replace("- 08", "- '08'").replace("- 09", "- '09'"))
    model, files = packing.plan_push(project, "reach")
    assert (model.task, model.scorer, model.skeleton) == ("0098", "1e3", [["08", "09"]])
    pushed = next(source for source, path in files if path == "config.yaml")
    assert isinstance(pushed, bytes)
    (tmp_path / "config.yaml").write_bytes(pushed)
    config = projects.read_yaml(tmp_path / "config.yaml")
    assert (config["Task"], config["scorer"], config["skeleton"]) == ("0098", "1e3", [["08", "09"]])


def test_what_is_left_empty_is_deeplabcuts_default(project: Path) -> None:
    """As its templates leave them: a key, a colon, and nothing, or an empty text."""
    path = project / "config.yaml"
    config = yaml.safe_load(path.read_text())
    empty = ("pcutoff", "iteration", "snapshotindex", "TrainingFraction", "cropping", "individuals")
    lines = "".join(f"{name}:\n" for name in empty) + "skeleton: ''\nmultianimalproject: no\n"
    kept = {
        name: value
        for name, value in config.items()
        if name not in (*empty, "skeleton", "multianimalproject")
    }
    path.write_text(yaml.safe_dump(kept) + lines)
    model, _ = packing.plan_push(project, "reach")
    assert (model.pcutoff, model.skeleton, model.multianimal) == (0.6, [], False)
    assert model.snapshots == ["snapshot-best-090"]
    path.write_text("Task: reach\n\tscorer: Ada\n")
    with pytest.raises(ModelError, match=r"config.yaml can't be read: (?s:.)*line 2"):
        packing.plan_push(project, "reach")
