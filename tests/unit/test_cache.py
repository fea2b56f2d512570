"""What a worker keeps on its disk."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

import worker.cache
from posedrop.buckets.records.models import Model, ModelFile
from posedrop.errors import ModelError
from worker import room
from worker.cache import Cache


def kept(cache: Cache, folder: Path, content: bytes) -> str:
    source = folder / f"source{len(list(folder.iterdir()))}"
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    cache.keep_video(sha256, source)
    return sha256


def test_a_video_that_is_kept_is_handed_out(tmp_path: Path) -> None:
    """By its content's hash; what isn't there is not, and makes no file."""
    cache = Cache(tmp_path / "cache", 1000)
    sha256 = kept(cache, tmp_path, b"film")
    assert cache.link_video(sha256, tmp_path / "job")
    assert (tmp_path / "job").read_bytes() == b"film"
    assert not cache.link_video("0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_has_changed_on_disk_is_not_believed(tmp_path: Path) -> None:
    """A kept file with another content is dropped, and fetched again by who wants it."""
    cache = Cache(tmp_path / "cache", 1000)
    sha256 = kept(cache, tmp_path, b"film")
    (tmp_path / "cache/videos" / sha256).write_bytes(b"evil")
    assert not cache.link_video(sha256, tmp_path / "job")
    assert not (tmp_path / "job").exists()
    assert not (tmp_path / "cache/videos" / sha256).exists()


def test_what_the_disk_can_not_read_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector costs the kept file, not the run."""
    cache = Cache(tmp_path / "cache", 1000)
    sha256 = kept(cache, tmp_path, b"film")

    def fails(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(worker.cache, "sha256_of", fails)
    assert not cache.link_video(sha256, tmp_path / "job")
    assert not (tmp_path / "job").exists()
    assert cache.videos() == []


def test_the_oldest_make_room_and_stay_in_the_hands_of_their_jobs(tmp_path: Path) -> None:
    """The bound holds; a job that has a file goes on having it."""
    cache = Cache(tmp_path / "cache", 10)
    first, second = kept(cache, tmp_path, b"1111"), kept(cache, tmp_path, b"2222")
    for age, sha256 in ((200, first), (100, second)):
        path = tmp_path / "cache/videos" / sha256
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert cache.link_video(first, tmp_path / "job")  # used: now the second is the oldest
    third = kept(cache, tmp_path, b"3333")
    there = {path.name for path in (tmp_path / "cache/videos").iterdir()}
    assert there == {first, third}
    assert (tmp_path / "job").read_bytes() == b"1111"


def test_a_video_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    """Nor does it drive the others out."""
    cache = Cache(tmp_path / "cache", 10)
    small = kept(cache, tmp_path, b"film")
    kept(cache, tmp_path, b"a film of eleven")
    assert [path.name for path in (tmp_path / "cache/videos").iterdir()] == [small]


def test_models_in_use_stay(tmp_path: Path) -> None:
    """A model that was just fetched is somebody's, however large; an old one goes."""
    cache = Cache(tmp_path / "cache", 10)
    for name, age in (("old", 10_000), ("new", 0)):
        folder = cache.models / name
        folder.mkdir()
        (folder / "weights.pt").write_bytes(bytes(100))
        stat = folder.stat()
        os.utime(folder, (stat.st_atime, stat.st_mtime - age))
    cache.trim_models()
    assert [path.name for path in cache.models.iterdir()] == ["new"]


def test_a_full_disk_drops_what_no_job_needs(tmp_path: Path) -> None:
    """Videos at once, and models that were not used for an hour, though within their bound."""
    cache = Cache(tmp_path / "cache", 1000)
    kept(cache, tmp_path, b"film")
    for path in tmp_path.glob("source*"):
        path.unlink()
    for name, age in (("old", 10_000), ("new", 0)):
        folder = cache.models / name
        folder.mkdir()
        (folder / "weights.pt").write_bytes(bytes(100))
        stat = folder.stat()
        os.utime(folder, (stat.st_atime, stat.st_mtime - age))
    assert cache.give_way() == 104
    assert [path.name for path in cache.models.iterdir()] == ["new"]
    assert list((tmp_path / "cache/videos").iterdir()) == []


def test_a_model_that_no_disk_here_holds_ends_its_run(tmp_path: Path) -> None:
    """It would be fetched for ever; one that fits is let pass."""
    file = ModelFile(path="snapshot.pt", size=1 << 20, sha256="")
    room.check_model_fits(Model.model_construct(name="small", files=[file]), tmp_path)
    large = file.model_copy(update={"size": 1 << 60})
    with pytest.raises(ModelError, match="POSEDROP_SCRATCH_DIR") as final:
        room.check_model_fits(Model.model_construct(name="large", files=[large]), tmp_path)
    assert final.value.code == "no_room"
