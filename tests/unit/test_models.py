"""The models bucket: what a model is called there, and that only the same comes back."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from posedrop.buckets.records.models import Model, ModelFile, ModelRef
from posedrop.errors import BadRequestError, ModelError
from posedrop.models import catalog, packing
from posedrop.models.fetch import fetch
from posedrop.models.push import push
from tests.support.memory_storage import MODELS, MemoryStorage
from tests.support.projects import make_project


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "reach-Ada-2026-10-30")


def test_push_writes_the_record_last(project: Path, storage: MemoryStorage) -> None:
    """Whoever sees model.json can have all that it lists."""
    model = push(storage, MODELS, project, "reach")
    prefix = f"reach/{model.digest}"
    written = [each["s3"]["object"]["key"] for each in storage.events]
    assert written[-1] == quote(f"{prefix}/model.json")
    assert sorted(storage.buckets[MODELS]) == sorted(
        [f"{prefix}/model.json", *(f"{prefix}/{file.path}" for file in model.files)]
    )


def test_push_again_is_no_work(project: Path, storage: MemoryStorage) -> None:
    """The same model again uploads nothing and keeps its record."""
    first = push(storage, MODELS, project, "reach")
    storage.events.clear()
    assert (push(storage, MODELS, project, "reach"), storage.events) == (first, [])


def put_model(storage: MemoryStorage, name: str, content: bytes, age_days: float) -> Model:
    """Put a model of one file into the bucket."""
    file = ModelFile(path="w.pt", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    model = Model(
        name=name,
        digest=catalog.digest_of([file]),
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
    storage.put(MODELS, f"{name}/{model.digest}/w.pt", content)
    storage.put(MODELS, f"{name}/{model.digest}/model.json", model.to_json())
    return model


def test_resolve(storage: MemoryStorage) -> None:
    """A name means its newest model; name@digest means that one; a longer name is another."""
    old = put_model(storage, "reach", b"old", 2)
    new = put_model(storage, "reach", b"new", 1)
    put_model(storage, "reach-2", b"newest", 0)
    assert catalog.resolve(storage, MODELS, "reach") == new
    assert catalog.resolve(storage, MODELS, f"reach@{old.digest[:6]}") == old
    assert catalog.resolve(storage, MODELS, f"reach@{old.digest}") == old


@pytest.mark.parametrize("wanted", ["lift", "reach@000000", "../reach", "", "reach@xyz", "r\neach"])
def test_resolve_unknown(storage: MemoryStorage, wanted: str) -> None:
    """An unknown model is the request's mistake, and the answer lists what there is."""
    model = put_model(storage, "reach", b"old", 1)
    with pytest.raises(BadRequestError, match=f"there are: reach@{model.digest[:12]}") as caught:
        catalog.resolve(storage, MODELS, wanted)
    assert (caught.value.code, caught.value.field) == ("no_such_model", "args.model")


def test_list_leaves_out_what_is_no_model(storage: MemoryStorage) -> None:
    """Damaged records, records at another's place and strange objects don't hide the models."""
    old = put_model(storage, "b", b"old", 2)
    new = put_model(storage, "b", b"new", 1)
    other = put_model(storage, "a", b"other", 3)
    storage.put(MODELS, f"c/{'0' * 64}/model.json", b"{}")
    storage.put(MODELS, f"d/{'0' * 64}/model.json", old.to_json())
    storage.put(MODELS, "model.json", old.to_json())
    assert catalog.list_models(storage, MODELS) == [other, new, old]


# -- at a worker ----


def ref(model: Model) -> ModelRef:
    return ModelRef(name=model.name, digest=model.digest)


def test_fetch_gives_the_same_files(project: Path, storage: MemoryStorage, tmp_path: Path) -> None:
    """What was pushed is what the worker has; fetched again, nothing is asked of the store."""
    model = push(storage, MODELS, project, "reach")
    folder = tmp_path / "cache"
    folder.mkdir()
    found = fetch(storage, MODELS, ref(model), folder)
    assert found == folder / model.digest
    assert {
        file.path: hashlib.sha256((found / file.path).read_bytes()).hexdigest()
        for file in model.files
    } == {file.path: file.sha256 for file in model.files}
    storage.buckets[MODELS].clear()
    assert fetch(storage, MODELS, ref(model), folder) == found
    assert [path.name for path in folder.iterdir()] == [model.digest]


def test_fetch_mends_what_was_tidied_up(storage: MemoryStorage, tmp_path: Path) -> None:
    """A file that something removed from the cache is fetched again."""
    model = put_model(storage, "reach", b"weights", 1)
    found = fetch(storage, MODELS, ref(model), tmp_path)
    (found / "w.pt").unlink()
    assert (fetch(storage, MODELS, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("again", [False, True])
def test_fetch_does_not_believe_what_was_changed(
    storage: MemoryStorage, tmp_path: Path, again: bool
) -> None:
    """A kept file of the same size with other content, or with its record too, is fetched again."""
    model = put_model(storage, "reach", b"weights", 1)
    found = fetch(storage, MODELS, ref(model), tmp_path)
    if again:  # found whole before
        fetch(storage, MODELS, ref(model), tmp_path)
    (found / "w.pt").write_bytes(b"WEIGHTS")
    record = found / catalog.MODEL_RECORD
    wrong = hashlib.sha256(b"WEIGHTS").hexdigest()
    if again:
        record.write_text(record.read_text().replace(model.files[0].sha256, wrong))
    assert (fetch(storage, MODELS, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"


def test_fetch_asks_once_more_for_what_came_wrong(
    storage: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the network has damaged on its way is no damaged model."""
    model = put_model(storage, "reach", b"weights", 1)
    whole, wrong = storage.download, [b"WEIGHTS"]

    def download(bucket: str, key: str, path: Path, *args: Any, **more: Any) -> Any:
        found = whole(bucket, key, path, *args, **more)
        return {**found, "sha256": hashlib.sha256(wrong.pop()).hexdigest()} if wrong else found

    monkeypatch.setattr(storage, "download", download)
    assert (fetch(storage, MODELS, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"
    assert not wrong


def test_fetch_puts_a_model_in_the_place_of_a_file(storage: MemoryStorage, tmp_path: Path) -> None:
    """Whatever lies under a model's name in the cache, it does not keep the model away."""
    model = put_model(storage, "reach", b"weights", 1)
    (tmp_path / model.digest).touch()
    assert (fetch(storage, MODELS, ref(model), tmp_path) / "w.pt").read_bytes() == b"weights"


def test_fetch_missing(storage: MemoryStorage, tmp_path: Path) -> None:
    """A model that is no longer in the bucket is an error that says so."""
    with pytest.raises(ModelError) as caught:
        fetch(storage, MODELS, ModelRef(name="reach", digest="0" * 64), tmp_path)
    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(("name", "digest"), [("../x", "0" * 64), ("x", "../../etc"), ("x", "")])
def test_fetch_of_a_name_that_leads_away(
    storage: MemoryStorage, tmp_path: Path, name: str, digest: str
) -> None:
    """Neither name nor digest of a request can lead out of the cache."""
    with pytest.raises(ModelError) as caught:
        fetch(storage, MODELS, ModelRef(name=name, digest=digest), tmp_path)
    assert caught.value.code == "model_missing"


def test_fetch_of_other_content(storage: MemoryStorage, tmp_path: Path) -> None:
    """A file that changed or went since it was pushed is never used, and nothing is left behind."""
    model = put_model(storage, "reach", b"weights", 1)
    key = f"reach/{model.digest}/w.pt"
    storage.put(MODELS, key, b"tampered")
    with pytest.raises(ModelError, match="other content") as changed:
        fetch(storage, MODELS, ref(model), tmp_path)
    storage.remove(MODELS, key)
    with pytest.raises(ModelError, match="gone") as gone:
        fetch(storage, MODELS, ref(model), tmp_path)
    assert (changed.value.code, gone.value.code) == ("model_damaged", "model_damaged")
    assert list(tmp_path.iterdir()) == []


def test_fetch_of_another_record(storage: MemoryStorage, tmp_path: Path) -> None:
    """A model.json whose list of files does not make the digest is refused."""
    model = put_model(storage, "reach", b"weights", 1)
    record = json.loads(model.to_json())
    record["files"][0]["sha256"] = "0" * 64
    storage.put(MODELS, f"reach/{model.digest}/model.json", json.dumps(record).encode())
    with pytest.raises(ModelError, match="not the one that was pushed"):
        fetch(storage, MODELS, ref(model), tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../w.pt", "/tmp/w.pt", "a/../../w.pt", "a//b", "./w", "a\\..\\b", "", "model.json", "a\0b"],
)
def test_fetch_of_files_that_lead_away(storage: MemoryStorage, tmp_path: Path, path: str) -> None:
    """A file's path in model.json can't lead out of the model's folder, nor replace the record."""
    file = ModelFile(path=path, size=1, sha256=hashlib.sha256(b"x").hexdigest())
    good = put_model(storage, "reach", b"weights", 1)
    evil = good.model_copy(update={"files": [file], "digest": packing.digest_of([file])})
    storage.put(MODELS, f"reach/{evil.digest}/{path}", b"x")
    storage.put(MODELS, f"reach/{evil.digest}/model.json", evil.to_json())
    folder = tmp_path / "a" / "cache"
    folder.mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        fetch(storage, MODELS, ref(evil), folder)
    assert caught.value.code == "model_damaged"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
