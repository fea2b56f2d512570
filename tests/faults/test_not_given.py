"""A store that has an object and does not give it: an end in words. One that is away: none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.runs import pending
from handlers.upkeep import reingest
from posedrop import analyses
from posedrop.api.files import ReingestRequest
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.errors import RecordError, StorageError
from posedrop.index.index import AnalysisRow, FileRow
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import World
from worker.jobs.claim import MAX_UNLUCKY

FILM = "day1/a.mp4"


def begin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a film in the store whose poses are drawn."""
    dummy = replace(analyses.get("dummy"), renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": dummy})
    world.storage.put(VIDEOS, FILM, b"a film")


def work(world: World, *actors: str) -> None:
    """Have the messages of some actors done, one after the other."""
    for actor in actors:
        world.reconciler.round()
        for message in world.messages():
            assert message.actor_name == actor
            world.work(message)


def film(world: World) -> FileRow:
    """Return what the index has of the film."""
    (row,) = world.context.index.files().rows
    return row


def run(world: World) -> AnalysisRow:
    """Return what the index has of the newest run."""
    return world.context.index.analyses().rows[0]


def attempts(world: World, folder: str) -> int:
    """Return how many attempts lie in a folder."""
    numbers = (layout.number_of(key, folder) for key in world.storage.buckets[RESULTS])
    return sum(number is not None for number in numbers)


def ask(world: World) -> None:
    """Ask for the analysis again."""
    pending.ask(world.context, film(world).file_id, "dummy", {"seconds": 0}, force=False)


def test_a_film_that_is_not_given_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour of attempts, in words; once it is given, looking anew has its run made."""
    begin(world, monkeypatch)
    world.storage.unreadable.add((VIDEOS, FILM))
    world.settle()
    refused = film(world)
    assert (refused.state, refused.refusal_reason) == ("refused", "not_given")
    words = str(refused.refusal_message)
    assert f"{VIDEOS}/{FILM}: AccessDenied" in words
    assert "posedrop reingest" in words
    etag = world.storage.buckets[VIDEOS][FILM].info.etag
    assert MAX_UNLUCKY < attempts(world, layout.ingest(refused.file_id, etag)) < 100
    world.storage.unreadable.clear()
    reingest.reingest(world.context, ReingestRequest(prefix=FILM))
    world.settle()
    assert (film(world).state, run(world).state) == ("ready", "succeeded")


@pytest.mark.parametrize(
    ("done", "name"),
    [
        (["ingest"], None),
        (["ingest", "infer"], None),
        (["ingest", "infer"], "inference.json"),
        (["ingest", "infer"], "predictions.npz"),
    ],
    ids=["infer", "render", "render, record", "infer, predictions"],
)
def test_what_is_not_given_to_a_run_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, done: list[str], name: str | None
) -> None:
    """The film, or what the run has left: an hour of attempts, an end in words, then a new run."""
    begin(world, monkeypatch)
    work(world, *done)
    world.reconciler.round()
    folder = run(world).run
    if name == "predictions.npz":
        world.storage.remove(RESULTS, f"{folder}/inference.json")
        world.messages()  # render's
    before = attempts(world, Run(folder).attempts)
    lacks = (VIDEOS, FILM) if name is None else (RESULTS, f"{folder}/{name}")
    world.storage.unreadable.add(lacks)
    world.settle()
    failed = run(world)
    assert failed.state == "failed"
    assert "/".join(lacks) in str(failed.error)
    assert "mend that in the store" in str(failed.error)
    assert before + MAX_UNLUCKY < attempts(world, Run(folder).attempts) < 100
    world.storage.unreadable.clear()
    ask(world)
    world.settle()
    assert run(world).state == "succeeded"


def raises(error: StorageError) -> Callable[..., Any]:
    """Return a download that fails so."""

    def download(*_: Any) -> Any:
        raise error

    return download


def test_a_disk_without_room_for_the_film_ends_a_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour; what it is that lacks room is said. An ingest, which knows no run, waits."""
    begin(world, monkeypatch)
    full = StorageError("is the disk of POSEDROP_SCRATCH_DIR full?", code="scratch_unwritable")
    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "download", raises(full))
        for _ in range(2 * MAX_UNLUCKY):
            world.clock.pass_(1000)
            work(world, "ingest")
        assert film(world).state == "received"
    world.clock.pass_(1000)
    work(world, "ingest")
    monkeypatch.setattr(world.storage, "download", raises(full))
    world.settle()
    assert run(world).state == "failed"
    assert "POSEDROP_SCRATCH_DIR" in str(run(world).error)
    assert MAX_UNLUCKY < attempts(world, Run(run(world).run).attempts) < 100


def test_a_disk_that_has_room_after_minutes_ends_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many attempts there were."""
    begin(world, monkeypatch)
    work(world, "ingest")
    full = StorageError("is the disk of POSEDROP_SCRATCH_DIR full?", code="scratch_unwritable")
    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "download", raises(full))
        for _ in range(2 * MAX_UNLUCKY):
            world.clock.pass_(100)
            work(world, "infer")
    world.settle()
    assert run(world).state == "succeeded"


class Outages:
    """A store that is away from when a film is asked for, for some calls of any kind."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left, self._silent = times, 0
        self._call, self._download = world.storage._call, world.storage.download
        monkeypatch.setattr(world.storage, "_call", self.call)
        monkeypatch.setattr(world.storage, "download", self.download)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Fail, as any call does while the store is away."""
        if self._silent:
            self._silent -= 1
            raise StorageError("the store is away")
        with self._call():
            yield

    def download(self, bucket: str, key: str, path: Path, etag: str | None = None) -> Any:
        """Begin an outage, if one is left."""
        if self.left and bucket == VIDEOS:
            self.left -= 1
            self._silent = 3
        return self._download(bucket, key, path, etag)


@pytest.mark.parametrize("done", [[], ["ingest"], ["ingest", "infer"]])
def test_a_store_that_is_away_for_long_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    """Twenty times in the middle of an attempt, then for hours: what was put there has its run."""
    begin(world, monkeypatch)
    work(world, *done)
    outages = Outages(world, monkeypatch, 2 * MAX_UNLUCKY)
    world.settle()
    assert outages.left == 0
    assert (film(world).state, run(world).state) == ("ready", "succeeded")


@pytest.mark.parametrize("done", [[], ["ingest"], ["ingest", "infer"]])
def test_a_store_that_is_away_altogether_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    """A message that comes a hundred times meanwhile leaves no trace."""
    begin(world, monkeypatch)
    work(world, *done)
    world.reconciler.round()
    (message,) = world.messages()
    before = len(world.storage.buckets[RESULTS])
    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "_call", raises(StorageError("the store is away")))
        for _ in range(100):
            world.clock.pass_(1000)
            world.work(message)
    assert len(world.storage.buckets[RESULTS]) == before
    world.settle()
    assert (film(world).state, run(world).state) == ("ready", "succeeded")


def test_a_record_for_a_newer_worker_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one gives the run back for as long as nobody newer takes it."""
    begin(world, monkeypatch)
    work(world, "ingest")
    with monkeypatch.context() as patched:
        newer = RecordError("by a newer posedrop", code="newer_record")
        patched.setattr(world.storage, "download", raises(newer))
        for _ in range(2 * MAX_UNLUCKY):
            world.clock.pass_(1000)
            work(world, "infer")
    assert attempts(world, Run(run(world).run).attempts) == 2 * MAX_UNLUCKY
    world.settle()
    assert run(world).state == "succeeded"
