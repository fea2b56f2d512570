"""A child that a film has taken over, and records of anybody: nothing that they say is believed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.names import Naming
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import ChildDiedError, StorageError
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.world import DETAILS, Child, World
from worker.jobs import artefacts
from worker.jobs.checkpoints import Checkpoints
from worker.jobs.claim import MAX_UNLUCKY

LIAR, HONEST = "liar.mp4", "honest.mp4"
SECRET = b"a secret of the parent's"
RUN, FINISH = "run_analysis", "finish_analysis"
RENDER = "render"


class Liar(Child):
    """A child that does its work, and then what a film makes it do, if the film is of that kind."""

    def __init__(self, does: Callable[[Path], object], at: str = RUN) -> None:
        self.does, self.at = does, at
        self.asked = 0
        self._lies = False

    def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = super().call(task, payload, **more)
        if "out" not in payload:
            return answer
        if "video" in payload:  # where the tables are made there is none
            self._lies = Path(payload["video"]).read_bytes() == LIAR.encode()
        self.asked += self._lies and task == RUN
        if self._lies and task == self.at:
            told = self.does(Path(payload["out"]))
            return {**answer, **told} if isinstance(told, dict) else answer
        return answer


def stands(name: str, data: bytes = b"x,y\n") -> Callable[[Path], object]:
    return lambda out: (out / name).write_bytes(data)


def _another_folder(out: Path) -> None:
    shutil.rmtree(out)
    secrets = out.with_name("secrets")
    secrets.mkdir()
    for name in ("poses.csv", "secret.csv", "poses.h5", "pose.mp4", "predictions.npz"):
        (secrets / name).write_bytes(SECRET)
    out.symlink_to(secrets)


def _sparse(name: str) -> Callable[[Path], object]:
    def does(out: Path) -> None:
        with (out / name).open("wb") as file:
            file.truncate(1 << 33)

    return does


def _linked(name: str, *, hard: bool) -> Callable[[Path], object]:
    def does(out: Path) -> None:
        secret = out.parent / "secret"
        secret.write_bytes(SECRET)
        (out / name).unlink(missing_ok=True)
        how = (out / name).hardlink_to if hard else (out / name).symlink_to
        how(secret)

    return does


def _log(how: Callable[[Path], object]) -> Callable[[Path], object]:
    def does(out: Path) -> None:
        log = out.parent / "run.log"
        log.unlink()
        how(log)

    return does


def _secretly_linked(log: Path) -> None:
    secret = log.with_name("secret")
    secret.write_bytes(SECRET)
    log.symlink_to(secret)


FILES: dict[str, Callable[[Path], object]] = {
    **{
        name: stands(name, b"{}")
        for name in ("result.json", "request.json", "inference.json", "video.json", "cancel")
    },
    "a result": stands("result.json", b'{"schema": 1, "rows": 1' + b"0" * 30 + b"}"),
    "another case": stands("Result.JSON", b"{}"),
    "no UTF-8": lambda out: open(os.fsencode(out) + b"/\xff.csv", "wb").close(),  # noqa: PTH123
    "a line break": stands("a\nb.csv"),
    "too long": stands("x" * 250 + ".csv"),
    "hidden": stands(".csv"),
    "pickles": stands("poses.h5"),
    "a program": stands("index.html"),
    "a link": _linked("secret.csv", hard=False),
    "a hard link": _linked("secret.csv", hard=True),
    "a pipe": lambda out: os.mkfifo(out / "pipe.csv"),
    "a folder": lambda out: (out / "folder.csv" / "deep").mkdir(parents=True),
    "holes": _sparse("giant.csv"),
    "many": lambda out: [stands(f"{n}.csv")(out) for n in range(2000)],
    "another folder": _another_folder,
    "no folder": shutil.rmtree,
    "a file for a folder": lambda out: (shutil.rmtree(out), out.write_bytes(SECRET)),
    "a log that is a pipe": _log(os.mkfifo),
    "a log that is a folder": _log(os.mkdir),
    "a log that is a link": _log(_secretly_linked),
    "a log without end": _log(lambda log: log.write_bytes(b"y" * (20 << 20))),
}


@pytest.mark.parametrize("does", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("at", [RUN, FINISH, RENDER])
def test_what_a_child_leaves_is_taken_by_name_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str, does: Callable[[Path], object]
) -> None:
    """The run ends in a result of its own, after one inference; no secret and no record leaks."""
    dummy = analyses.get("dummy")
    if at != RUN:
        dummy = replace(dummy, renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": dummy})
    liar = world.child = Liar(does, at)
    for key in (LIAR, HONEST):
        world.storage.put(VIDEOS, key, key.encode())
    world.settle()
    rows = {row.key: row for row in world.context.index.analyses().rows}
    assert rows[HONEST].state == "succeeded"
    assert rows[LIAR].state in {"succeeded", "failed"}
    assert liar.asked == 1
    wanted = {"poses.csv"} if at == RUN else {"predictions.npz", "poses.h5", "pose.mp4"}
    wanted |= {f"{n}.csv" for n in range(2000)} if at == RUN else set()
    long = Naming.of(LIAR, DETAILS)
    assert long is not None
    wanted |= {long.name(plain) for plain in wanted}
    stored = world.storage.buckets[RESULTS]
    run = f"{rows[LIAR].run}/"
    for key in (key.removeprefix(run) for key in stored if key.startswith(run)):
        assert key.rpartition("/")[2] in wanted | {
            "request.json", "result.json", "inference.json", "run.log", "1.json", "2.json"
        }  # fmt: skip
    assert not [key for key, found in stored.items() if SECRET in found.data]
    assert max(len(found.data) for found in stored.values()) < 10 << 20
    result = Result.model_validate_json(stored[f"{run}{layout.RESULT}"].data)
    assert len(result.artefacts) <= artefacts.MAX_FILES + 1


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("table.csv", True), ("predictions.npz", False), ("poses.h5", False), ("x.pickle", False)],
)
def test_an_analysis_names_what_it_leaves(name: str, is_taken: bool) -> None:
    """But no name that has a meaning, and with a film at hand no pickles."""
    plugin = replace(analyses.get("dummy"), artefacts=("table.*", name, name.upper()))
    names = artefacts.names_of(plugin, opens_film=True)
    assert artefacts.is_allowed(name, names) is is_taken
    after = artefacts.names_of(replace(plugin, finish="x:y"), opens_film=False)
    assert artefacts.is_allowed(name, after) is (name != layout.PREDICTIONS)


def test_a_film_that_its_child_replaced_holds_up_nobody(world: World) -> None:
    """A pipe in its place is not waited for, by this job or by the next with this content."""

    class Replacing(Child):
        def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
            answer = super().call(task, payload, **more)
            if task == "probe":
                Path(payload["video"]).unlink()
                os.mkfifo(payload["video"])
                Path(payload["thumbnail"]).symlink_to(payload["video"])
            return answer

    world.child, world.cache_bytes = Replacing(), 1 << 20
    for key in (LIAR, HONEST):
        world.storage.put(VIDEOS, key, b"the same")
    world.settle()
    assert {row.state for row in world.context.index.files().rows} == {"ready"}
    assert "succeeded" in {row.state for row in world.context.index.analyses().rows}


def test_checkpoints_are_files_of_numbers(world: World, tmp_path: Path) -> None:
    """Nothing else is sent; a folder that became a link is not entered."""
    parts = Checkpoints(world.storage, RESULTS, layout.Run("run"), tmp_path / "parts")
    secret = tmp_path / "000001.npz"
    secret.write_bytes(SECRET)
    (parts.folder / "000002.npz").write_bytes(b"a part")
    os.mkfifo(parts.folder / "000003.npz")
    (parts.folder / "000004.npz").symlink_to(secret)
    os.link(secret, parts.folder / "000005.npz")
    (parts.folder / "other.npz").write_bytes(b"a part")
    (parts.folder / "000006.npz").mkdir()
    parts.send()
    assert {key: found.data for key, found in world.storage.buckets[RESULTS].items()} == {
        "run/parts/000002.npz": b"a part"
    }
    shutil.rmtree(parts.folder)
    parts.folder.symlink_to(tmp_path)
    parts.send()
    assert len(world.storage.buckets[RESULTS]) == 1


def test_what_the_store_does_not_take_is_not_computed_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes claims and no artefacts: the run ends, and says what the store said."""
    liar = world.child = Liar(lambda _: None)

    def refuses(*_: Any) -> bool:
        raise StorageError("upload: EntityTooLarge")

    monkeypatch.setattr(world.storage, "upload_new", refuses)
    world.storage.put(VIDEOS, LIAR, LIAR.encode())
    world.settle()
    (row,) = world.context.index.analyses().rows
    assert row.state == "failed"
    assert row.error is not None
    assert "EntityTooLarge" in row.error.message
    assert liar.asked == MAX_UNLUCKY


@pytest.mark.parametrize("times", [MAX_UNLUCKY - 1, 100])
def test_a_machine_that_starts_no_child_is_no_fault_of_a_run(world: World, times: int) -> None:
    """It has its result from a machine that does, or, where none ever does, an end in words."""
    left = [1] * times

    class Unstarted(Child):
        def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
            if left and task == RUN:
                left.pop()
                raise ChildDiedError("gpu: the child process did not start", code="not_started")
            return super().call(task, payload, **more)

    world.child = Unstarted()
    world.storage.put(VIDEOS, HONEST, HONEST.encode())
    for _ in range(2 * MAX_UNLUCKY):
        try:
            world.settle()
        except ChildDiedError:  # for Dramatiq, which comes again
            world.clock.pass_(600)
            world.reconciler.round()
    (row,) = world.context.index.analyses().rows
    assert row.state == ("succeeded" if times < MAX_UNLUCKY else "failed")
    assert times < MAX_UNLUCKY or "did not start" in str(row.error)


def test_a_machine_out_of_threads_fails_and_refuses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats that can't begin, of ingest, infer and render: what has to be done is done later.

    Each half of the run has a few, and the ingest more than a film has attempts.
    """
    dummy = replace(analyses.get("dummy"), renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": dummy})
    tried: Counter[str] = Counter()
    start = threading.Thread.start

    def starts(thread: threading.Thread) -> None:
        if thread.name.startswith("heartbeat"):
            tried[thread.name] += 1
            if tried[thread.name] % 5:  # infer and render share a name
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts)
    world.storage.put(VIDEOS, HONEST, HONEST.encode())
    for _ in range(20):
        try:
            world.settle()
        except ChildDiedError:  # for Dramatiq, which comes again
            world.clock.pass_(1000)
            world.reconciler.round()
    (film,), (row,) = world.context.index.files().rows, world.context.index.analyses().rows
    assert (film.state, row.state) == ("ready", "succeeded")
    assert sorted(tried.values()) == [5, 10]


def test_a_store_that_goes_away_in_the_middle_counts_as_no_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times it takes no file, and for a while no word either: the run succeeds."""
    outages, silent, write = [1] * 5, 0, world.storage.write
    upload = world.storage.upload_new

    def uploads(*args: Any) -> bool:
        nonlocal silent
        if outages:
            outages.pop()
            silent = 3
            raise StorageError("the store is away")
        return upload(*args)

    def writes(bucket: str, key: str, data: bytes, *args: Any, **more: Any) -> Any:
        nonlocal silent
        if silent and "/attempts/" in key:
            silent -= 1
            raise StorageError("the store is away")
        return write(bucket, key, data, *args, **more)

    monkeypatch.setattr(world.storage, "upload_new", uploads)
    monkeypatch.setattr(world.storage, "write", writes)
    world.storage.put(VIDEOS, HONEST, HONEST.encode())
    world.settle()
    (row,) = world.context.index.analyses().rows
    assert row.state == "succeeded"
    assert not outages


def test_checkpoints_of_an_infer_that_was_killed_at_its_end_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is over leaves none, whoever wrote them."""
    dummy = replace(analyses.get("dummy"), renders=True, finish="x:y", artefacts=analyses.POSES)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": dummy})

    class Late(Child):
        def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
            if task == RENDER:
                (inference,) = (
                    key for key in world.storage.buckets[RESULTS] if key.endswith("/inference.json")
                )
                part = inference.replace("inference.json", "parts/000001.npz")
                world.storage.put(RESULTS, part, b"a part")
            return super().call(task, payload, **more)

    world.child = Late()
    world.storage.put(VIDEOS, HONEST, HONEST.encode())
    world.settle()
    (row,) = world.context.index.analyses().rows
    assert row.state == "succeeded"
    assert not [key for key in world.storage.buckets[RESULTS] if "/parts/" in key]


# -- records of anybody ----------------------------------------------------------------------------

HOSTILE: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(10**30, -(10**30), 2**63, -1, 1e308, float("nan"), float("inf"), None, True),
        *("", "\0", "x" * 10_000, "\u202e", "../../x", "0001-01-01T00:00:00+14:00"),
        *("9999-12-31T23:59:59Z", "2105-01-01T00:00:00Z", [], {}, [[]], {"x": 10**40}),
    ]
)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = [(path, name, value) for name, value in items]
    below = (value for _, _, value in found)
    return [(*path, name) for path, name, _ in found] + [
        place
        for name, value in zip((name for _, name, _ in found), below, strict=True)
        if isinstance(value, dict | list)
        for place in _places(value, (*path, name))
    ]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_record_of_anybody_stops_a_round(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any value of any record may be anything, now and after the index was lost: others go on."""
    world = World(tmp_path_factory.mktemp("records"))
    try:
        world.storage.put(VIDEOS, LIAR, LIAR.encode())
        world.settle()
        records = [key for key in world.storage.buckets[RESULTS] if key.endswith(".json")]
        key = data.draw(st.sampled_from(sorted(records)))
        record = json.loads(world.storage.buckets[RESULTS][key].data)
        for place in data.draw(st.lists(st.sampled_from(_places(record)), min_size=1, max_size=2)):
            inner = record
            for name in place[:-1]:
                inner = inner[name]
                if not isinstance(inner, dict | list):
                    break
            else:
                inner[place[-1]] = data.draw(HOSTILE)
        world.storage.put(RESULTS, key, json.dumps(record).encode())
        world.tell(world.storage.events)
        world.settle()
        world.lose_index()
        world.storage.put(VIDEOS, HONEST, HONEST.encode())
        world.settle()
        rows = {row.key: row.state for row in world.context.index.analyses().rows}
        assert rows[HONEST] == "succeeded"
        world.context.index.files()
    finally:
        world.end()


@pytest.mark.parametrize(
    ("name", "value"), [("size", 10**30), ("file_id", ""), ("file_id", "f" * 32)]
)
def test_a_record_that_cannot_be_true_is_made_anew(world: World, name: str, value: object) -> None:
    """A video.json with a size that is no number of 64 bits, or another film's id, says nothing."""
    world.storage.put(VIDEOS, LIAR, LIAR.encode())
    world.settle()
    key = f"{LIAR}/{layout.VIDEO_RECORD}"
    record = json.loads(world.storage.buckets[RESULTS][key].data)
    true = record["video"][name]
    record["video"][name] = value
    world.storage.put(RESULTS, key, json.dumps(record).encode())
    world.lose_index()
    world.settle()
    made = VideoRecord.model_validate_json(world.storage.buckets[RESULTS][key].data)
    assert getattr(made.video, name) == true
