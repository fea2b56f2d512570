"""Folders and files of one person: what somebody else has put there is refused."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from posedrop.client import tokens
from posedrop.embedded.keyring import Secrets
from posedrop.errors import ConfigurationError
from posedrop.folders import FolderLock, own_folder
from posedrop.settings import load
from worker.context import Context, free_scratch


def belongs_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be another user than whoever has made what is there; no test can give a file away."""
    another = os.getuid() + 4711
    monkeypatch.setattr(os, "getuid", lambda: another)


def test_a_scratch_folder_that_anybody_may_have_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link, to where a start would remove things; a file; another user's folder."""
    kept = tmp_path / "home" / "worker-of-a-person"
    kept.mkdir(parents=True)
    links = {"to a folder": tmp_path / "home", "to nothing": tmp_path / "nothing"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file").touch()
    for name in (*links, "file"):
        with pytest.raises(ConfigurationError, match=name):
            Context(load(tmp_path, {"scratch_dir": tmp_path / name}), None)  # type: ignore[arg-type]
    assert kept.is_dir()
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "theirs").mkdir()
    belongs_to_another(monkeypatch)
    with pytest.raises(ConfigurationError, match="theirs belongs to another user"):
        own_folder(tmp_path / "theirs")


def test_an_own_folder_is_closed_to_the_writing_of_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("open", "parent/new"):
        own_folder(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o022 == 0


def test_keys_and_addresses_of_another_user_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has put secrets.json there knows the keys; who has put posedrop.env there gets films."""
    Secrets.of(tmp_path)
    (tmp_path / "posedrop.env").write_text("POSEDROP_URL=http://127.0.0.1:6666\n")
    (tmp_path / "posedrop.env").chmod(0o644)
    if os.getuid() == 0:  # root's are taken by everybody
        for name in ("secrets.json", "posedrop.env"):
            os.chown(tmp_path / name, 4242, -1)
    belongs_to_another(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"secrets\.json belongs to another user"):
        Secrets.of(tmp_path)
    with pytest.raises(ConfigurationError, match=r"posedrop\.env belongs to another user"):
        load(tmp_path)


def test_tokens_are_kept_by_url_for_one_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each server has its own; a server that stops takes only its own away; none is a problem."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tokens.latest() is None
    tokens.keep("http://127.0.0.1:1", "one")
    tokens.keep("http://[::1]:2/", "two")
    assert (tokens.of("http://127.0.0.1:1/"), tokens.of("http://[::1]:2")) == ("one", "two")
    assert tokens.of("http://localhost:1") is None
    assert tokens.latest() == "http://[::1]:2"
    tokens.keep("http://127.0.0.1:1", "new")
    tokens.forget("http://127.0.0.1:1", "one")
    assert tokens.of("http://127.0.0.1:1") == "new"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tokens.folder().iterdir()}
    assert modes == {0o600}
    tokens.forget("http://127.0.0.1:1", "new")
    assert tokens.of("http://127.0.0.1:1") is None
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    tokens.keep("http://127.0.0.1:1", "one")  # as it can't be kept, only a warning
    assert tokens.of("http://127.0.0.1:1") is None


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process takes a byte within the block, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_killed_workers_left_on_a_full_disk_is_removed(tmp_path: Path) -> None:
    """With its lock, or without one where its removal was cut short; nothing of who lives is."""
    scratch = tmp_path / "scratch"
    killed, lives, cut, begun = (scratch / f"worker-{name}" for name in ("k", "l", "c", "b"))
    for folder in (killed, lives, cut, begun):
        (folder / "job-1").mkdir(parents=True)
    locks = [FolderLock(folder, ".lock") for folder in (killed, lives)]
    for lock in locks:
        lock.acquire()
    locks[0].release()
    os.utime(cut, (0, 0))
    with full_disk():
        free_scratch(scratch)
        context = Context(load(tmp_path, {"scratch_dir": scratch}), None)  # type: ignore[arg-type]
    assert {folder for folder in (killed, lives, cut, begun) if folder.exists()} == {lives, begun}
    with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}"):
        FolderLock(lives, ".lock").acquire()
    context.close()
    locks[1].release()
