"""What posedrop asks of a store, answered the same by each: in memory, moto, SeaweedFS, MinIO."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from posedrop.buckets import storage as storage_module
from posedrop.buckets.names import Naming, stem_of
from posedrop.buckets.presigned import content_disposition
from posedrop.buckets.records.videos import Duplicate
from posedrop.buckets.storage import Storage
from posedrop.embedded.weed import Weed
from posedrop.embedded.weed_config import Identity
from posedrop.errors import ObjectChangedError, StorageError
from posedrop.settings import load
from tests.support import memory_storage
from tests.support.memory_storage import Clock, MemoryStorage
from tests.support.minio_server import ROOT_ACCESS_KEY, ROOT_SECRET_KEY, MinioServer

KEEPER = Identity("keeper", "AKKEEPER", "SKKEEPER12345", ("Admin", "Read", "Write", "List"))


def _storage(folder: Path, endpoint: str, access_key: str, secret_key: str) -> Storage:
    keys = {"s3_access_key": access_key, "s3_secret_key": secret_key}
    return Storage(load(folder, {"s3_endpoint": endpoint, **keys}))


@pytest.fixture(scope="module", params=["memory", "moto", "weed", "minio"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storage]:
    """Each of the stores."""
    folder = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "memory":
            yield MemoryStorage(Clock())
        case "moto":
            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            moto.start()
            host, port = moto.get_host_and_port()
            yield _storage(folder, f"http://{host}:{port}", "test", "test-secret")
            moto.stop()
        case "weed":
            log = folder / "weed.log"
            weed = Weed(folder / "weed", log, s3_port=0, identities=(KEEPER,))
            weed.start()
            yield _storage(folder, weed.endpoint, KEEPER.access_key, KEEPER.secret_key)
            weed.stop()
        case "minio":
            minio = MinioServer(folder, "http://127.0.0.1:9/events").start()
            yield _storage(folder, minio.endpoint, ROOT_ACCESS_KEY, ROOT_SECRET_KEY)
            minio.stop()


@pytest.fixture
def bucket(store: Storage, request: pytest.FixtureRequest) -> str:
    """An empty bucket that no other test uses."""
    name = f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    store.create_bucket(name)
    return name


def test_create_has_one_winner(store: Storage, bucket: str) -> None:
    """Of many that create the same object, exactly one is told that it did."""
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create(bucket, "k", b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert store.read(bucket, "k") == b"%d" % won.index(True)


def test_replace_replaces_what_was_seen(store: Storage, bucket: str) -> None:
    """What was changed, removed or never there is not written over, and the caller is told."""
    store.write(bucket, "k", b"1")
    first = store.head(bucket, "k")
    assert first is not None
    assert store.replace(bucket, "k", b"2", first.etag)
    assert not store.replace(bucket, "k", b"3", first.etag)
    assert store.read(bucket, "k") == b"2"
    store.delete(bucket, ["k"])
    assert not store.replace(bucket, "k", b"4", first.etag)
    assert store.read(bucket, "k") is None


def test_what_is_not_there_is_none(store: Storage, bucket: str) -> None:
    """Reading what is not there is an answer, not an error; so is removing it."""
    assert store.head(bucket, "no") is None
    assert store.read(bucket, "no") is None
    assert store.read_record(bucket, "no", Duplicate) is None
    assert list(store.objects(bucket, "no")) == []
    store.delete(bucket, ["no", "no"])


def test_download_hashes_what_it_wrote(store: Storage, bucket: str, tmp_path: Path) -> None:
    """A download gives both hashes of the bytes on disk."""
    data = b"mouse" * 500_000
    store.write(bucket, "film", data, "video/mp4")
    target = tmp_path / "film"
    assert store.download(bucket, "film", target) == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
    }
    assert target.read_bytes() == data


@pytest.mark.parametrize("replace", [True, False])
def test_a_replaced_or_removed_object_is_not_read_as_the_planned_one(
    store: Storage, bucket: str, tmp_path: Path, replace: bool
) -> None:
    """With the ETag that was planned, other bytes are never taken for the planned ones."""
    store.write(bucket, "film", b"planned")
    planned = store.head(bucket, "film")
    assert planned is not None
    assert store.read(bucket, "film", planned.etag) == b"planned"
    if replace:
        store.write(bucket, "film", b"replaced")
        with pytest.raises(ObjectChangedError):
            store.read(bucket, "film", planned.etag)
    else:
        store.delete(bucket, ["film"])
        assert store.read(bucket, "film", planned.etag) is None
    with pytest.raises(ObjectChangedError):
        store.download(bucket, "film", tmp_path / "film", planned.etag)


def test_a_file_is_uploaded_once(store: Storage, bucket: str, tmp_path: Path) -> None:
    """A second file under the same name is not taken, and the first stays."""
    for data, taken in ((b"first", True), (b"second", False)):
        path = tmp_path / data.decode()
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        assert store.upload_new(bucket, "poses.h5", path, "application/x-hdf5", digest) is taken
    assert store.read(bucket, "poses.h5") == b"first"


def test_metadata_stays_with_its_object_alone(store: Storage, bucket: str) -> None:
    """A film keeps what asks for its analysis; another film written over it has none of that."""
    asks = {"analysis": "dummy", "args": '{"seconds": 1}'}
    store.upload(bucket, "film.mp4", io.BytesIO(b"mouse"), "video/mp4", asks)
    found = store.head(bucket, "film.mp4")
    assert found is not None
    assert (found.size, dict(found.metadata)) == (5, asks)
    store.write(bucket, "film.mp4", b"another")
    found = store.head(bucket, "film.mp4")
    assert found is not None
    assert (found.size, dict(found.metadata)) == (7, {})


# moto copies whatever it is told of the source's ETag.
@pytest.mark.parametrize("store", ["memory", "weed", "minio"], indirect=True)
def test_a_copy_is_of_the_listed_bytes_or_none(store: Storage, bucket: str) -> None:
    """A copy has the bytes; of an object that was replaced, or is gone, none is made."""
    store.write(bucket, "from/bob's ü/a+b.png", b"plot", "image/png")
    (source,) = store.objects(bucket, "from/")
    assert store.copy(bucket, source, "to", "image/png")
    assert store.read(bucket, "to") == b"plot"
    for other in (replace(source, etag="0" * 32), replace(source, key="from/gone")):
        assert not store.copy(bucket, other, "none", "image/png")
    assert store.head(bucket, "none") is None


@pytest.mark.parametrize("key", ["a b/ü+&%.mp4", "x/film (1).mp4", "日本/мышь.mp4", "k" * 200])
def test_a_key_is_listed_as_it_was_written(store: Storage, bucket: str, key: str) -> None:
    """Under whatever name an object was written, it is found, listed and removed."""
    store.write(bucket, key, b"mouse")
    assert [(each.key, each.size) for each in store.objects(bucket)] == [(key, 5)]
    found = store.head(bucket, key)
    assert found is not None
    assert [each.etag for each in store.objects(bucket, key[:3])] == [found.etag]
    store.delete(bucket, [key])
    assert list(store.objects(bucket)) == []


def test_listing_tells_the_stores_time(store: Storage, bucket: str) -> None:
    """A listing has the objects below a prefix in order; its time, in whole seconds, is after."""
    for key in ("run/b", "run/a", "other/c", "runs/d"):
        store.write(bucket, key, b"")
    listing = store.listing(bucket, "run/")
    assert [found.key for found in listing.objects] == ["run/a", "run/b"]
    written = [found.last_modified.replace(microsecond=0) for found in listing.objects]
    assert max(written) <= listing.now
    assert listing.is_timed
    assert store.time(bucket) >= listing.now


def test_a_damaged_record_is_a_typed_error(store: Storage, bucket: str) -> None:
    """What stands under a record's key and is none of posedrop's is named, not raised as JSON."""
    store.write(bucket, "r", b'{"file_id": 3')
    with pytest.raises(StorageError, match="is not a Duplicate"):
        store.read_record(bucket, "r", Duplicate)


def test_a_record_that_is_none_is_not_read(
    store: Storage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is larger than any record is damaged, and not taken into memory."""
    for module in (storage_module, memory_storage):
        monkeypatch.setattr(module, "MAX_READ_BYTES", 10)
    store.write(bucket, "small", bytes(10))
    store.write(bucket, "large", bytes(11))
    assert store.read(bucket, "small") == bytes(10)
    with pytest.raises(StorageError) as caught:
        store.read(bucket, "large")
    assert caught.value.code == "damaged_record"


@pytest.mark.parametrize("store", ["moto", "weed", "minio"], indirect=True)
@pytest.mark.parametrize(
    "film",
    [
        "a b .mp4", "50%25+x&y=#1.mov", "ü日本🐭.mkv", "e\u0301.avi", "-rf", ".mp4", "a..b.c.mp4",
        "a\"b'c;d.mp4", "*?<>|:~.mp4", "m" * 190 + ".mp4",
    ],
)  # fmt: skip
def test_a_result_is_saved_under_its_long_name(store: Storage, bucket: str, film: str) -> None:
    """Whatever the film is called, its table is stored, found and named by a browser as one is."""
    run = f"day 1/{film}/deeplabcut_2d-aaaabbbbccccdddd"
    name = Naming(f"day 1/{film}", "DLC_Resnet18_mouseOct30shuffle1_snapshot_010").name(
        "poses.h5", run
    )
    assert name.startswith(stem_of(film) + "DLC")
    store.write(bucket, f"{run}/{name}", film.encode(), "application/x-hdf5")
    url = store.presign_get(
        bucket, f"{run}/{name}", content_type="application/x-hdf5", filename=name
    )
    answer = httpx.get(url)
    assert answer.content == film.encode()
    assert answer.headers["Content-Disposition"] == content_disposition(name)
    assert f"{run}/{name}" in {found.key for found in store.objects(bucket, f"{run}/")}
