"""The models bucket: what a model is called there, and that only the same comes back."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from posedrop.buckets.records import Model, ModelFile, ModelRef
from posedrop.buckets.storage import Storage
from posedrop.errors import BadRequestError, ModelError
from posedrop.models import catalog, packing
from tests.unit.bucket import BUCKET, FakeStorage
from tests.unit.projects import make_project


@pytest.fixture
def fake() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def storage(fake: FakeStorage) -> Storage:
    return cast(Storage, fake)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "reach-Ada-2026-10-30")


def test_push_writes_the_record_last(project: Path, storage: Storage, fake: FakeStorage) -> None:
    """Whoever sees model.json can have all that it lists."""
    model = catalog.push(storage, BUCKET, project, "reach")
    prefix = f"reach/{model.digest}"
    assert fake.written[-1] == f"{prefix}/model.json"
    assert sorted(fake.content) == sorted(
        [f"{prefix}/model.json", *(f"{prefix}/{file.path}" for file in model.files)]
    )


def test_push_again_is_no_work(project: Path, storage: Storage, fake: FakeStorage) -> None:
    """The same model again uploads nothing and keeps its record."""
    first = catalog.push(storage, BUCKET, project, "reach")
    fake.written.clear()
    assert (catalog.push(storage, BUCKET, project, "reach"), fake.written) == (first, [])


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
    assert catalog.resolve(storage, BUCKET, "reach") == new
    assert catalog.resolve(storage, BUCKET, f"reach@{old.digest[:6]}") == old
    assert catalog.resolve(storage, BUCKET, f"reach@{old.digest}") == old


@pytest.mark.parametrize("wanted", ["lift", "reach@000000", "../reach", "", "reach@xyz", "r\neach"])
def test_resolve_unknown(storage: Storage, fake: FakeStorage, wanted: str) -> None:
    """An unknown model is the request's mistake, and the answer lists what there is."""
    model = put_model(fake, "reach", b"old", 1)
    with pytest.raises(BadRequestError, match=f"there are: reach@{model.digest[:12]}") as caught:
        catalog.resolve(storage, BUCKET, wanted)
    assert (caught.value.code, caught.value.field) == ("no_such_model", "args.model")


def test_list_leaves_out_what_is_no_model(storage: Storage, fake: FakeStorage) -> None:
    """Damaged records, records at another's place and strange objects don't hide the models."""
    old = put_model(fake, "b", b"old", 2)
    new = put_model(fake, "b", b"new", 1)
    other = put_model(fake, "a", b"other", 3)
    fake.content[f"c/{'0' * 64}/model.json"] = b"{}"
    fake.content[f"d/{'0' * 64}/model.json"] = old.to_json()
    fake.content["model.json"] = old.to_json()
    assert catalog.list_models(storage, BUCKET) == [other, new, old]


# -- at a worker ----


def ref(model: Model) -> ModelRef:
    return ModelRef(name=model.name, digest=model.digest)


def test_fetch_gives_the_same_files(
    project: Path, storage: Storage, fake: FakeStorage, tmp_path: Path
) -> None:
    """What was pushed is what the worker has; fetched again, nothing is asked of the store."""
    model = catalog.push(storage, BUCKET, project, "reach")
    folder = tmp_path / "cache"
    folder.mkdir()
    found = catalog.fetch(storage, BUCKET, ref(model), folder)
    assert found == folder / model.digest
    assert {
        file.path: hashlib.sha256((found / file.path).read_bytes()).hexdigest()
        for file in model.files
    } == {file.path: file.sha256 for file in model.files}
    fake.content.clear()
    assert catalog.fetch(storage, BUCKET, ref(model), folder) == found
    assert [path.name for path in folder.iterdir()] == [model.digest]


def test_fetch_mends_what_was_tidied_up(
    storage: Storage, fake: FakeStorage, tmp_path: Path
) -> None:
    """A file that something removed from the cache is fetched again."""
    model = put_model(fake, "reach", b"weights", 1)
    found = catalog.fetch(storage, BUCKET, ref(model), tmp_path)
    (found / "w.pt").unlink()
    assert (
        catalog.fetch(storage, BUCKET, ref(model), tmp_path) / "w.pt"
    ).read_bytes() == b"weights"


@pytest.mark.parametrize("again", [False, True])
def test_fetch_does_not_believe_what_was_changed(
    storage: Storage, fake: FakeStorage, tmp_path: Path, again: bool
) -> None:
    """A kept file of the same size with other content, or with its record too, is fetched again."""
    model = put_model(fake, "reach", b"weights", 1)
    found = catalog.fetch(storage, BUCKET, ref(model), tmp_path)
    if again:  # found whole before
        catalog.fetch(storage, BUCKET, ref(model), tmp_path)
    (found / "w.pt").write_bytes(b"WEIGHTS")
    record = found / catalog.MODEL_RECORD
    wrong = hashlib.sha256(b"WEIGHTS").hexdigest()
    if again:
        record.write_text(record.read_text().replace(model.files[0].sha256, wrong))
    assert (
        catalog.fetch(storage, BUCKET, ref(model), tmp_path) / "w.pt"
    ).read_bytes() == b"weights"


def test_fetch_missing(storage: Storage, tmp_path: Path) -> None:
    """A model that is no longer in the bucket is an error that says so."""
    with pytest.raises(ModelError) as caught:
        catalog.fetch(storage, BUCKET, ModelRef(name="reach", digest="0" * 64), tmp_path)
    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(("name", "digest"), [("../x", "0" * 64), ("x", "../../etc"), ("x", "")])
def test_fetch_of_a_name_that_leads_away(
    storage: Storage, tmp_path: Path, name: str, digest: str
) -> None:
    """Neither name nor digest of a request can lead out of the cache."""
    with pytest.raises(ModelError) as caught:
        catalog.fetch(storage, BUCKET, ModelRef(name=name, digest=digest), tmp_path)
    assert caught.value.code == "model_missing"


def test_fetch_of_other_content(storage: Storage, fake: FakeStorage, tmp_path: Path) -> None:
    """A file that changed or went since it was pushed is never used, and nothing is left behind."""
    model = put_model(fake, "reach", b"weights", 1)
    key = f"reach/{model.digest}/w.pt"
    fake.content[key] = b"tampered"
    with pytest.raises(ModelError, match="other content") as changed:
        catalog.fetch(storage, BUCKET, ref(model), tmp_path)
    del fake.content[key]
    with pytest.raises(ModelError, match="gone") as gone:
        catalog.fetch(storage, BUCKET, ref(model), tmp_path)
    assert (changed.value.code, gone.value.code) == ("model_damaged", "model_damaged")
    assert list(tmp_path.iterdir()) == []


def test_fetch_of_another_record(storage: Storage, fake: FakeStorage, tmp_path: Path) -> None:
    """A model.json whose list of files does not make the digest is refused."""
    model = put_model(fake, "reach", b"weights", 1)
    record = json.loads(model.to_json())
    record["files"][0]["sha256"] = "0" * 64
    fake.content[f"reach/{model.digest}/model.json"] = json.dumps(record).encode()
    with pytest.raises(ModelError, match="not the one that was pushed"):
        catalog.fetch(storage, BUCKET, ref(model), tmp_path)


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
        catalog.fetch(storage, BUCKET, ref(evil), folder)
    assert caught.value.code == "model_damaged"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
