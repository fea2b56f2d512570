"""Models: what of a project is pushed, what it is called, and that only the same comes back."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, cast

import pytest
import yaml

from posedrop import models, packing, zoo
from posedrop.errors import BadRequestError, ModelError, ObjectChangedError, StorageError
from posedrop.records import Model, ModelFile, ModelRef
from posedrop.storage import ObjectInfo, Storage
from worker.analyses import superanimal
from worker.analyses.deeplabcut_2d import DeepLabCut2D, check
from worker.analyses.superanimal import SuperAnimalArgs

BUCKET = "models"
SHUFFLE = "dlc-models-pytorch/iteration-0/reachOct30-trainset95shuffle1"


class FakeStorage:
    """A bucket in a dictionary, with the part of Storage that models use."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.written: list[str] = []

    def objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectInfo]:
        assert bucket == BUCKET
        for key in sorted(self.content):
            if key.startswith(prefix):
                yield ObjectInfo(key, "etag", len(self.content[key]), datetime.now(UTC))

    def read_record(self, bucket: str, key: str, kind: type[Model]) -> Model | None:
        assert bucket == BUCKET
        if key not in self.content:
            return None
        try:
            return kind.model_validate_json(self.content[key])
        except ValueError as error:
            raise StorageError("no such record", code="damaged_record") from error

    def upload(self, bucket: str, key: str, source: Path | IO[bytes], content_type: str) -> None:
        assert (bucket, content_type) == (BUCKET, "application/octet-stream")
        self.content[key] = source.read_bytes() if isinstance(source, Path) else source.read()
        self.written.append(key)

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        assert bucket == BUCKET
        self.content.setdefault(key, data)
        self.written.append(key)
        return self.content[key] == data

    def download(self, bucket: str, key: str, path: Path) -> dict[str, str]:
        assert bucket == BUCKET
        if key not in self.content:
            raise ObjectChangedError(f"{key} is gone")
        path.write_bytes(self.content[key])
        return {"sha256": hashlib.sha256(self.content[key]).hexdigest()}


@pytest.fixture
def fake() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def storage(fake: FakeStorage) -> Storage:
    return cast(Storage, fake)


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


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "reach-Ada-2026-10-30")


# -- what of a project is pushed ----


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


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-a", "a@b", "ä", "x" * 65])
def test_names_that_can_not_be(project: Path, name: str) -> None:
    """A name becomes part of a key, a path and a command line: letters, digits and ._- only."""
    with pytest.raises(BadRequestError) as caught:
        packing.plan_push(project, name)
    assert caught.value.field == "name"


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


# -- in the bucket ----


def test_push_writes_the_record_last(project: Path, storage: Storage, fake: FakeStorage) -> None:
    """Whoever sees model.json can have all that it lists."""
    model = models.push(storage, BUCKET, project, "reach")
    prefix = f"reach/{model.digest}"
    assert fake.written[-1] == f"{prefix}/model.json"
    assert sorted(fake.content) == sorted(
        [f"{prefix}/model.json", *(f"{prefix}/{file.path}" for file in model.files)]
    )


def test_push_again_is_no_work(project: Path, storage: Storage, fake: FakeStorage) -> None:
    """The same model again uploads nothing and keeps its record."""
    first = models.push(storage, BUCKET, project, "reach")
    fake.written.clear()
    assert (models.push(storage, BUCKET, project, "reach"), fake.written) == (first, [])


def put_model(fake: FakeStorage, name: str, content: bytes, age_days: float) -> Model:
    """Put a model of one file into the bucket."""
    file = ModelFile(path="w.pt", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    model = Model(
        name=name,
        digest=packing.digest_of([file]),
        kind="export",
        task="t",
        scorer="",
        bodyparts=["hand"],
        individuals=["individual_1"],
        multianimal=False,
        net_type="resnet_50",
        pcutoff=0.6,
        snapshots=["s"],
        files=[file],
        created_at=datetime.now(UTC) - timedelta(days=age_days),
    )
    fake.content[f"{name}/{model.digest}/w.pt"] = content
    fake.content[f"{name}/{model.digest}/model.json"] = model.to_json()
    return model


def test_resolve(storage: Storage, fake: FakeStorage) -> None:
    """A name means its newest model; name@digest means that one; a longer name is another."""
    old = put_model(fake, "reach", b"old", 2)
    new = put_model(fake, "reach", b"new", 1)
    put_model(fake, "reach-2", b"newest", 0)
    assert models.resolve(storage, BUCKET, "reach") == new
    assert models.resolve(storage, BUCKET, f"reach@{old.digest[:6]}") == old
    assert models.resolve(storage, BUCKET, f"reach@{old.digest}") == old


@pytest.mark.parametrize("wanted", ["lift", "reach@000000", "../reach", "", "reach@xyz", "r\neach"])
def test_resolve_unknown(storage: Storage, fake: FakeStorage, wanted: str) -> None:
    """An unknown model is the request's mistake, and the answer lists what there is."""
    model = put_model(fake, "reach", b"old", 1)
    with pytest.raises(BadRequestError, match=f"there are: reach@{model.digest[:12]}") as caught:
        models.resolve(storage, BUCKET, wanted)
    assert (caught.value.code, caught.value.field) == ("no_such_model", "args.model")


def test_list_leaves_out_what_is_no_model(storage: Storage, fake: FakeStorage) -> None:
    """Damaged records, records at another's place and strange objects don't hide the models."""
    old = put_model(fake, "b", b"old", 2)
    new = put_model(fake, "b", b"new", 1)
    other = put_model(fake, "a", b"other", 3)
    fake.content[f"c/{'0' * 64}/model.json"] = b"{}"
    fake.content[f"d/{'0' * 64}/model.json"] = old.to_json()
    fake.content["model.json"] = old.to_json()
    assert models.list_models(storage, BUCKET) == [other, new, old]


# -- at a worker ----


def ref(model: Model) -> ModelRef:
    return ModelRef(name=model.name, digest=model.digest)


def test_fetch_gives_the_same_files(
    project: Path, storage: Storage, fake: FakeStorage, tmp_path: Path
) -> None:
    """What was pushed is what the worker has; fetched again, nothing is asked of the store."""
    model = models.push(storage, BUCKET, project, "reach")
    folder = tmp_path / "cache"
    folder.mkdir()
    found = models.fetch(storage, BUCKET, ref(model), folder)
    assert found == folder / model.digest
    assert {
        file.path: hashlib.sha256((found / file.path).read_bytes()).hexdigest()
        for file in model.files
    } == {file.path: file.sha256 for file in model.files}
    fake.content.clear()
    assert models.fetch(storage, BUCKET, ref(model), folder) == found
    assert [path.name for path in folder.iterdir()] == [model.digest]


def test_fetch_mends_what_was_tidied_up(
    storage: Storage, fake: FakeStorage, tmp_path: Path
) -> None:
    """A file that something removed from the cache is fetched again."""
    model = put_model(fake, "reach", b"weights", 1)
    found = models.fetch(storage, BUCKET, ref(model), tmp_path)
    (found / "w.pt").unlink()
    assert (models.fetch(storage, BUCKET, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("again", [False, True])
def test_fetch_does_not_believe_what_was_changed(
    storage: Storage, fake: FakeStorage, tmp_path: Path, again: bool
) -> None:
    """A kept file of the same size with other content, or with its record too, is fetched again."""
    model = put_model(fake, "reach", b"weights", 1)
    found = models.fetch(storage, BUCKET, ref(model), tmp_path)
    if again:  # found whole before
        models.fetch(storage, BUCKET, ref(model), tmp_path)
    (found / "w.pt").write_bytes(b"WEIGHTS")
    record = found / models.MODEL_RECORD
    wrong = hashlib.sha256(b"WEIGHTS").hexdigest()
    if again:
        record.write_text(record.read_text().replace(model.files[0].sha256, wrong))
    assert (models.fetch(storage, BUCKET, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"


def test_fetch_missing(storage: Storage, tmp_path: Path) -> None:
    """A model that is no longer in the bucket is an error that says so."""
    with pytest.raises(ModelError) as caught:
        models.fetch(storage, BUCKET, ModelRef(name="reach", digest="0" * 64), tmp_path)
    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(("name", "digest"), [("../x", "0" * 64), ("x", "../../etc"), ("x", "")])
def test_fetch_of_a_name_that_leads_away(
    storage: Storage, tmp_path: Path, name: str, digest: str
) -> None:
    """Neither name nor digest of a request can lead out of the cache."""
    with pytest.raises(ModelError) as caught:
        models.fetch(storage, BUCKET, ModelRef(name=name, digest=digest), tmp_path)
    assert caught.value.code == "model_missing"


def test_fetch_of_other_content(storage: Storage, fake: FakeStorage, tmp_path: Path) -> None:
    """A file that changed or went since it was pushed is never used, and nothing is left behind."""
    model = put_model(fake, "reach", b"weights", 1)
    key = f"reach/{model.digest}/w.pt"
    fake.content[key] = b"tampered"
    with pytest.raises(ModelError, match="other content") as changed:
        models.fetch(storage, BUCKET, ref(model), tmp_path)
    del fake.content[key]
    with pytest.raises(ModelError, match="gone") as gone:
        models.fetch(storage, BUCKET, ref(model), tmp_path)
    assert (changed.value.code, gone.value.code) == ("model_damaged", "model_damaged")
    assert list(tmp_path.iterdir()) == []


def test_fetch_of_another_record(storage: Storage, fake: FakeStorage, tmp_path: Path) -> None:
    """A model.json whose list of files does not make the digest is refused."""
    model = put_model(fake, "reach", b"weights", 1)
    record = json.loads(model.to_json())
    record["files"][0]["sha256"] = "0" * 64
    fake.content[f"reach/{model.digest}/model.json"] = json.dumps(record).encode()
    with pytest.raises(ModelError, match="not the one that was pushed"):
        models.fetch(storage, BUCKET, ref(model), tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../w.pt", "/tmp/w.pt", "a/../../w.pt", "a//b", "./w", "a\\..\\b", "", "model.json", "a\0b"],
)
def test_fetch_of_files_that_lead_away(
    storage: Storage, fake: FakeStorage, tmp_path: Path, path: str
) -> None:
    """A file's path in model.json can't lead out of the model's folder, nor replace the record."""
    file = ModelFile(path=path, size=1, sha256=hashlib.sha256(b"x").hexdigest())
    good = put_model(fake, "reach", b"weights", 1)
    evil = good.model_copy(update={"files": [file], "digest": packing.digest_of([file])})
    fake.content[f"reach/{evil.digest}/{path}"] = b"x"
    fake.content[f"reach/{evil.digest}/model.json"] = evil.to_json()
    folder = tmp_path / "a" / "cache"
    folder.mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        models.fetch(storage, BUCKET, ref(evil), folder)
    assert caught.value.code == "model_damaged"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


# -- the model zoo ----

MOUSE = "superanimal_topviewmouse"
HRNET, RCNN = f"{MOUSE}_hrnet_w32.pt", f"{MOUSE}_fasterrcnn_resnet50_fpn_v2.pt"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as somebody has it who downloaded two files."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name in (HRNET, RCNN, "README.md"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_zoo_is_pushed_as_a_folder_of_weights(storage: Storage, weights: Path) -> None:
    """One model a SuperAnimal, with the weights that are in the folder and nothing else."""
    model = models.push(storage, BUCKET, weights, MOUSE)
    assert [file.path for file in model.files] == sorted([HRNET, RCNN])
    assert (model.kind, models.resolve(storage, BUCKET, MOUSE)) == ("zoo", model)
    superanimal.check(SuperAnimalArgs(model=MOUSE), model)


@pytest.mark.parametrize(
    ("name", "folder", "error"),
    [("mice", "zoo", BadRequestError), ("superanimal_bird", "zoo", ModelError)],
)
def test_zoo_has_its_own_names(
    weights: Path, name: str, folder: str, error: type[Exception]
) -> None:
    """Weights are pushed by the name that `superanimal` finds them by, which is theirs alone."""
    with pytest.raises(error, match="--name superanimal_"):
        packing.plan_push(weights.parent / folder, name)


def test_weights_that_are_not_there(storage: Storage, weights: Path) -> None:
    """Whoever asks for a SuperAnimal hears which file to download where, and how to push it."""
    push = f"posedrop models push FOLDER --name {MOUSE}"
    with pytest.raises(BadRequestError, match=push) as caught:
        models.resolve(storage, BUCKET, MOUSE)
    assert (caught.value.code, caught.value.field) == ("weights_missing", "args.model")
    (weights / RCNN).unlink()
    model = models.push(storage, BUCKET, weights, MOUSE)
    with pytest.raises(BadRequestError, match=f"download {RCNN} from https://.*{push}") as caught:
        superanimal.check(SuperAnimalArgs(model=MOUSE), model)
    assert (caught.value.code, caught.value.field) == ("weights_missing", "args.model")


def test_superanimal_asked_by_name_is_complete() -> None:
    """Networks that aren't named are the SuperAnimal's first; unknown ones are refused."""
    analysis = superanimal.superanimal
    plain = analysis.normalise({"model": MOUSE})
    named = {"model_name": "hrnet_w32", "detector_name": "fasterrcnn_resnet50_fpn_v2"}
    assert plain == analysis.normalise({"model": MOUSE, **named})
    for wrong in ({"model": MOUSE, "model_name": "dlcrnet"}, {"model": "openfield"}, {}):
        with pytest.raises(BadRequestError):
            analysis.normalise(wrong)


def test_zoo_is_that_of_deeplabcut() -> None:
    """Names and addresses are those that DeepLabCut downloads from."""
    import dlclibrary

    urls = Path(dlclibrary.__file__).parent / "dlcmodelzoo/modelzoo_urls_pytorch.yaml"
    theirs = {
        f"{animal}/{network}": url
        for animal, kinds in yaml.safe_load(urls.read_text()).items()
        for networks in kinds.values()
        for network, url in networks.items()
        if animal in zoo.ZOO
    }
    ours = {
        f"{animal.name}/{network}": f"{animal.repository}/{animal.file(network)}"
        for animal in zoo.ZOO.values()
        for network in (*animal.pose_models, *animal.detectors)
    }
    assert ours == theirs


def test_single_animal_model_is_not_tracked(tmp_path: Path) -> None:
    """What is for several animals is refused where there is one; zoo models have an analysis."""
    model, _ = packing.plan_push(make_project(tmp_path / "reach"), "reach")
    for name, value in (("animals", 3), ("track_method", "box"), ("identity_only", True)):
        with pytest.raises(BadRequestError) as caught:
            check(DeepLabCut2D.model_validate({"model": "reach", name: value}), model)
        assert (caught.value.code, caught.value.field) == ("single_animal", f"args.{name}")
    several = model.model_copy(update={"multianimal": True})
    check(DeepLabCut2D(model="reach", animals=3), several)
    with pytest.raises(BadRequestError) as caught:
        check(DeepLabCut2D(model="reach"), model.model_copy(update={"kind": "zoo"}))
    assert caught.value.code == "zoo_model"


def test_settings_of_tracking_are_pushed(tmp_path: Path) -> None:
    """What somebody set for tracking in the project counts at the worker, too."""
    project = make_project(tmp_path / "reach", multianimalproject=True)
    write_yaml(project / SHUFFLE / "test" / "inference_cfg.yaml", {"pcutoff": 0.3})
    model, _ = packing.plan_push(project, "reach")
    assert f"{SHUFFLE}/test/inference_cfg.yaml" in {file.path for file in model.files}
