"""Each name of a content has its own results: whichever goes, the others keep theirs."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from handlers import upload
from handlers.events.follow import EMPTY_SECONDS
from handlers.runs import copies, pending, results
from handlers.runs.results import GoneError
from posedrop.buckets import layout
from posedrop.buckets.names import stem_of
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.errors import AnalysisError, BadRequestError, NotFoundError
from tests.faults.test_kept import FILE_ID, NETWORK, TABLES, Lab, installed, lab
from tests.faults.test_kept import FILM as FIRST
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import World

ALICE, BOB, CAROL = "alice/day1.mp4", "bob/copy.mp4", "carol/again.mp4"
FILM = b"the same film"
DAY = 24 * 3600.0

__all__ = ["installed", "lab"]


def id_of(key: str) -> str:
    return layout.file_id_of(VIDEOS, key)


def runs_below(world: World, key: str) -> list[str]:
    """Return the folders of a film's runs that are over, each whole, and the film's own.

    What of it has a long name is called by the film.
    """
    objects = world.storage.buckets[RESULTS]
    prefix = layout.video_prefix(VIDEOS, key)
    over = []
    for name in sorted(objects):
        match layout.parse_result_key(name):
            case layout.RunObject(video=mine, run=run, name=layout.RESULT) if mine == prefix:
                result = Result.model_validate_json(objects[name].data)
                request = Request.model_validate_json(objects[f"{run}/request.json"].data)
                assert result.video == request.video
                assert (result.video.key, request.analysis_id) == (key, result.analysis_id)
                for artefact in result.artefacts:
                    data = objects[f"{run}/{artefact.object_name}"].data
                    assert hashlib.sha256(data).hexdigest() == artefact.sha256
                    if artefact.name != artefact.plain_name:
                        assert artefact.name.startswith(f"{stem_of(key)}DLC_fake")
                over.append(run)
    return over


def result_of(world: World, run: str) -> Result:
    return Result.model_validate_json(world.storage.buckets[RESULTS][f"{run}/result.json"].data)


def whole(world: World, key: str) -> bool:
    """Tell whether a film has one run that succeeded, with all its files, below its own name."""
    (run,) = runs_below(world, key)
    result = result_of(world, run)
    return result.state == "succeeded" and {a.plain_name for a in result.artefacts} >= {"poses.csv"}


def computed(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each use of the network."""
    calls: list[str] = []
    call = world.child.call

    def counted(task: str, payload: dict[str, object], **more: object) -> dict[str, object]:
        if task in {"run_analysis", "finish_analysis"}:
            calls.append(task)
        return call(task, payload, **more)

    monkeypatch.setattr(world.child, "call", counted)
    return calls


def put(world: World, *keys: str) -> None:
    """Put the same film under these names, one after the other, each until all is over."""
    for key in keys:
        world.storage.put(VIDEOS, key, FILM)
        world.settle()


def test_retention_takes_the_first_and_its_duplicate_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of day 0 and the same of day 89: on day 91 the second is ready, with its results."""
    world = World(tmp_path, retention_days=90)
    calls = computed(world, monkeypatch)
    put(world, ALICE)
    world.clock.pass_(89 * DAY)
    for number in range(40):  # a sweep that takes a large share of all films asks first
        world.storage.put(VIDEOS, f"others/{number}.mp4", b"bad film %d" % number)
    put(world, BOB)
    world.clock.pass_(2 * DAY)
    world.settle()
    assert world.context.index.file(id_of(ALICE)) is None
    assert not any(key.startswith("alice/") for key in world.storage.buckets[RESULTS])
    bob = upload.describe(world.context, id_of(BOB))
    (run,) = bob.analyses
    assert (bob.state, run.status) == ("ready", "succeeded")
    assert results.read(world.context, run.analysis_id).status == "succeeded"
    assert whole(world, BOB)
    world.lose_index()
    world.settle()
    assert results.read(world.context, run.analysis_id).file_id == id_of(BOB)
    assert len(calls) == 1
    world.end()


def test_deleting_the_first_leaves_its_duplicates_their_results(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DELETE /upload takes one name; the last one that goes takes all that is left."""
    calls = computed(world, monkeypatch)
    put(world, ALICE, BOB, CAROL)
    (row,) = world.context.index.analyses().rows
    assert row.key == ALICE
    for key, left in ((ALICE, [BOB, CAROL]), (CAROL, [BOB])):
        upload.delete(world.context, id_of(key))
        world.settle()
        assert not any(name.startswith(key) for name in world.storage.buckets[RESULTS])
        for each in left:
            assert whole(world, each)
            listed = world.context.index.analyses(file_id=id_of(each)).rows
            assert [run.analysis_id for run in listed] == [row.analysis_id]
            answer = pending.ask(world.context, id_of(each), "dummy", {"seconds": 0}, force=False)
            assert answer == (row.analysis_id, "succeeded", True)
        answer = results.read(world.context, row.analysis_id)
        assert (answer.status, answer.file_id) == ("succeeded", id_of(BOB))
        for file in answer.files:
            assert results.download_url(world.context, row.analysis_id, file.name)
    assert len(calls) == 1
    upload.delete(world.context, id_of(BOB))
    world.settle()
    assert list(world.storage.buckets[RESULTS]) == []
    with pytest.raises(GoneError):
        results.read(world.context, row.analysis_id)


def wait_to_be_copied(world: World) -> None:
    """Have a second name of a film that is over ingested and planned, and nothing copied yet."""
    put(world, ALICE)
    world.storage.put(VIDEOS, BOB, FILM)
    world.storage.events.clear()
    world.context.index.reset()
    world.reconciler.round()
    for message in world.messages():
        world.work(message)
    world.tell(world.storage.events)
    assert runs_below(world, BOB) == []


@pytest.mark.parametrize("again", [False, True])
def test_a_deletion_killed_after_any_step_loses_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Whether somebody deletes once more or not, and what was not copied yet is copied first."""
    at = 0
    over = False
    while not over:
        at += 1
        world = World(tmp_path / f"{at}")
        calls = computed(world, monkeypatch)
        wait_to_be_copied(world)
        over = True
        with world.storage.gate(Gate(at, after=True)):
            try:
                upload.delete(world.context, id_of(ALICE))
            except Crash:
                over = False
        if again:
            with contextlib.suppress(NotFoundError):
                upload.delete(world.context, id_of(ALICE))
        if at % 2:
            world.lose_index()
        world.settle()
        assert whole(world, BOB)
        assert len(calls) == 1
        if again or over:
            left = {name.split("/")[0] for name in world.storage.buckets[RESULTS]}
            assert left <= {"bob", "_content", "_planned", "_posedrop", "_poses"}
        world.end()
    assert at > 20


def test_a_copy_killed_after_any_step_is_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result comes last, so nobody takes what is half copied for a result."""
    at = 0
    over = False
    while not over:
        at += 1
        world = World(tmp_path / f"{at}")
        calls = computed(world, monkeypatch)
        wait_to_be_copied(world)
        over = True
        with world.storage.gate(Gate(at, after=True)):
            try:
                copies.go_on(world.context)
            except Crash:
                over = False
        assert len(runs_below(world, BOB)) <= 1
        if at % 2:
            world.lose_index()
        world.settle()
        assert whole(world, ALICE)
        assert whole(world, BOB)
        assert len(calls) == 1
        world.end()
    assert at > 8


def advance(lab: Lab, stage: str) -> None:
    """Bring the run of a film to a stage: queued, inferred, over, failed or cancelled."""
    if stage == "failed":
        lab.poser.fails[TABLES] = ("track", AnalysisError("this can't be done", code="no_tracks"))
    analysis_id = lab.ask().analysis_id
    if stage == "cancelled":
        results.cancel_or_delete(lab.context, analysis_id)
    for _ in {"inferred": "i", "over": "ir", "failed": "i"}.get(stage, ""):
        (message,) = lab.messages()
        lab.work(message)
    lab.poser.fails.clear()


@pytest.mark.parametrize("stage", ["queued", "inferred", "over", "failed", "cancelled"])
@pytest.mark.parametrize("goes", ["nobody", "first", "tool", "second"])
def test_a_second_name_comes_at_any_stage_of_a_run(lab: Lab, stage: str, goes: str) -> None:
    """It gets what the first has, once that is over; if one of the two goes, the other has it.

    The network is never asked again (the child sees to it).
    """
    first, second = FILE_ID, id_of(BOB)
    advance(lab, stage)
    lab.storage.put(VIDEOS, BOB, b"a film")
    lab.tell(lab.storage.events)
    for message in lab.messages():
        lab.work(message) if message.actor_name == "ingest" else lab.put_back([message])
    lab.tell(lab.storage.events)
    answer = pending.ask(lab.context, second, "dummy", {"seconds": 0}, force=False, retry=False)
    (row,) = lab.context.index.analyses().rows
    assert answer.analysis_id == row.analysis_id
    left = {FIRST: first, BOB: second}
    if goes == "tool":
        lab.storage.remove(VIDEOS, FIRST)
        lab.tell(lab.storage.events)
    elif goes != "nobody":
        gone = FIRST if goes == "first" else BOB
        upload.delete(lab.context, left.pop(gone))
    lab.settle()
    passes = goes == "tool" and stage in {"queued", "inferred"}
    state = {"failed": "failed", "cancelled": "cancelled"}.get(stage, "succeeded")
    for key in left:
        if passes and key == FIRST:
            assert runs_below(lab, key) == []  # it has passed to the other
            continue
        (run,) = runs_below(lab, key)
        assert result_of(lab, run).state == state
    over = lab.over(row.analysis_id)
    assert over.status == state
    assert over.file_id == (second if passes or goes == "first" else first)
    assert lab.poser.calls.count(NETWORK) == (0 if stage == "cancelled" else 1)
    lab.lose_index()
    lab.settle()
    assert lab.over(row.analysis_id) == over


def test_a_film_and_one_in_a_folder_of_its_name_are_two(world: World) -> None:
    """Stores of objects let both be: deleting the one takes its own, and nothing of the other."""
    keys = ("day1", "day1/a.mp4", "day1/b/c.mp4", "day1.mp4", "day10/a.mp4")
    for key in keys:
        world.storage.put(VIDEOS, key, key.encode())
    world.storage.put(RESULTS, "day1/notes.txt", b"a person's own")
    world.settle()
    upload.delete(world.context, id_of("day1"))
    world.settle()
    left = world.storage.buckets[RESULTS]
    assert not {"day1/video.json", "day1/thumbnail.jpg"} & set(left)
    assert runs_below(world, "day1") == []
    assert "day1/notes.txt" in left
    for key in keys[1:]:
        assert whole(world, key)
    upload.delete(world.context, id_of("day1/a.mp4"))
    world.settle()
    assert not any(name.startswith("day1/a.mp4") for name in left)
    for key in keys[2:]:
        assert whole(world, key)


def test_results_of_a_film_that_a_tool_removed_stay_and_are_listed(world: World) -> None:
    """Until somebody deletes them; a film that comes back is one again, with what its rule says."""
    put(world, ALICE)
    world.storage.put(VIDEOS, "bad.mp4", b"bad film")
    world.settle()
    for tell in (True, False):
        world.storage.remove(VIDEOS, ALICE)
        world.storage.remove(VIDEOS, "bad.mp4")
        if tell:
            world.tell(world.storage.events)
        else:
            world.lose_index()
        world.settle()
        for _ in range(2):
            (row,) = world.context.index.files().rows
            assert (row.key, row.state) == (ALICE, "film gone")
            assert whole(world, ALICE)
            (run,) = upload.describe(world.context, row.file_id).analyses
            answer = results.read(world.context, run.analysis_id)
            for file in answer.files:
                assert results.download_url(world.context, run.analysis_id, file.name)
            with pytest.raises(BadRequestError, match="upload it again"):
                pending.ask(world.context, row.file_id, "dummy", {"seconds": 3}, force=False)
            world.lose_index()
            world.settle()
        world.storage.events.clear()
        put(world, ALICE)
        world.tell(world.storage.events)
        (row,) = world.context.index.files().rows
        assert (row.state, row.planned) == ("ready", True)
        assert whole(world, ALICE)
        world.storage.put(VIDEOS, "bad.mp4", b"bad film")
    world.storage.remove(VIDEOS, ALICE)
    world.storage.remove(VIDEOS, "bad.mp4")
    world.settle()
    upload.delete(world.context, id_of(ALICE))
    world.settle()
    assert world.context.index.files().rows == []
    assert not any(name.startswith("alice/") for name in world.storage.buckets[RESULTS])


@pytest.mark.parametrize("orphans", ["keep", "delete"])
def test_a_wrong_mount_wipes_no_results(tmp_path: Path, orphans: str) -> None:
    """With POSEDROP_ORPHANS=delete they go, but never more than a share of all at once."""
    world = World(tmp_path, orphans=orphans)
    for number in range(8):
        world.storage.put(VIDEOS, f"{number}.mp4", b"film %d" % number)
    world.settle()

    def left() -> int:
        return sum(key.endswith("/result.json") for key in world.storage.buckets[RESULTS])

    world.storage.remove(VIDEOS, "0.mp4")
    world.settle()
    assert left() == (7 if orphans == "delete" else 8)
    films = dict(world.storage.buckets[VIDEOS])
    for key in films:
        world.storage.remove(VIDEOS, key)
    for _ in range(2):
        world.settle()
        assert left() == (7 if orphans == "delete" else 8)
        world.lose_index()
    for key, stored in films.items():
        world.storage.put(VIDEOS, key, stored.data)
    world.settle()
    ready = [row.key for row in world.context.index.files(state="ready").rows]
    assert sorted(ready) == sorted(films)
    world.end()


def pass_on(lab: Lab, how: str, at: int) -> bool:
    """Have a film go whose run was inferred, killed after a step; False: it was over before."""
    advance(lab, "inferred")
    lab.storage.put(VIDEOS, BOB, b"a film")
    lab.tell(lab.storage.events)
    for message in lab.messages():
        lab.work(message) if message.actor_name == "ingest" else lab.put_back([message])
    lab.tell(lab.storage.events)
    pending.ask(lab.context, id_of(BOB), "dummy", {"seconds": 0}, force=False, retry=False)
    lab.storage.events.clear()
    gate = Gate(at, after=True)
    if how == "tool":
        lab.storage.remove(VIDEOS, FIRST)
        lab.tell(lab.storage.events, gate)
    else:
        with lab.storage.gate(gate), contextlib.suppress(Crash):
            upload.delete(lab.context, FILE_ID)
    return gate.left <= 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("how", ["DELETE", "tool"])
def test_a_run_passes_to_another_name_though_killed_after_any_step(
    tmp_path: Path, how: str
) -> None:
    """What the network has found is never found again, wherever the handlers died."""
    at, was_killed = 0, True
    while was_killed:
        at += 1
        lab = Lab(tmp_path / f"{at}")
        was_killed = pass_on(lab, how, at)
        if at % 2:
            lab.lose_index()
        lab.settle()
        (run,) = runs_below(lab, BOB)
        assert result_of(lab, run).state == "succeeded"
        assert lab.poser.calls.count(NETWORK) == 1
        lab.end()
    assert at > 15


def test_a_run_asked_for_anew_is_whole_wherever_its_deletion_was_killed(tmp_path: Path) -> None:
    """Beside each name of the content: what the deletion left is no part of the new run."""
    at = 0
    over = False
    while not over:
        at += 1
        world = World(tmp_path / f"{at}")
        put(world, ALICE, BOB)
        copies.go_on(world.context)
        (row,) = world.context.index.analyses().rows
        world.storage.events.clear()
        over = True
        with world.storage.gate(Gate(at, after=True)):
            try:
                results.cancel_or_delete(world.context, row.analysis_id)
            except Crash:
                over = False
        world.tell(world.storage.events)
        for key in (ALICE, BOB):
            pending.ask(world.context, id_of(key), "dummy", {"seconds": 0}, force=False)
        world.settle()
        assert whole(world, ALICE)
        assert whole(world, BOB)
        answer = results.read(world.context, row.analysis_id)
        assert answer.status == "succeeded"
        for file in answer.files:
            assert results.download_url(world.context, row.analysis_id, file.name)
        world.end()
    assert at > 12


def test_a_film_whose_key_ends_like_a_folder_is_a_film(world: World) -> None:
    """``upload_file("a.mp4", "videos", "day1/")`` puts one; what is empty there is a folder."""
    keys = ("day1/", "day1/a.mp4/", "day1/a.mp4")
    for told in (True, False):
        for key in keys:
            world.storage.put(VIDEOS, key, key.encode())
        world.storage.put(VIDEOS, "day2/", b"")
        if told:
            world.storage.forge(VIDEOS, "day2/")  # by what the store says now it is a folder
            world.tell(world.storage.events)
            world.clock.pass_(EMPTY_SECONDS)
            world.tell([])
            assert {row.key for row in world.context.index.files().rows} == set(keys)
        world.storage.events.clear()
        world.settle()
        rows = {row.key: row for row in world.context.index.files().rows}
        assert {key: row.state for key, row in rows.items()} == dict.fromkeys(keys, "ready")
        assert [rows[key].filename for key in keys] == ["day1", "a.mp4", "a.mp4"]
        for key in keys:
            assert whole(world, key)
            (run,) = upload.describe(world.context, id_of(key)).analyses
            for file in results.read(world.context, run.analysis_id).files:
                assert results.download_url(world.context, run.analysis_id, file.name)
        world.storage.remove(VIDEOS, keys[1])
        if told:
            world.tell(world.storage.events)
        world.settle()
        gone = world.context.index.file(id_of(keys[1]))
        assert gone is not None
        assert gone.state == "film gone"
        for key in keys:
            upload.delete(world.context, id_of(key))
        world.settle()
        assert set(world.storage.buckets[VIDEOS]) == {"day2/"}
        assert list(world.storage.buckets[RESULTS]) == []
