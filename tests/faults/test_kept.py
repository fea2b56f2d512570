"""What was computed is not thrown away: predictions, tables, and asking again for what failed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from handlers import upload
from handlers.runs import pending, results, start
from posedrop import analyses
from posedrop.analyses import Analysis
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.results import Result
from posedrop.errors import AnalysisError, ChildDiedError, PosedropError, StorageError
from tests.support.index_rows import judged, result_of
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import DETAILS, PROBE, Child, World

FILM = "day1/a.mp4"
FILE_ID = layout.file_id_of(VIDEOS, FILM)
#: An attempt that infers and makes tables calls the store some twenty times.
CALLS = 28
NETWORK, TABLES, DRAWING = (
    "run_analysis",
    "finish_analysis",
    "render",
)


class Poser(Child):
    """A child that finds poses, makes tables of them and draws them, and fails when told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[str] = []
        #: What a task raises, and in which stage; the other tasks work.
        self.fails: dict[str, tuple[str, Exception]] = {}
        #: What it says of its tables.
        self.quality: dict[str, Any] | None = None
        self._numbers = itertools.count()

    def call(self, task: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        if task == "probe":
            return super().call(task, payload, **options)
        self.calls.append(task)
        out = Path(payload["out"])
        (out.parent / "run.log").write_text(f"log of {task}")
        if task == NETWORK:
            # Nobody has the network do again what it did.
            assert not self.world.stored(layout.PREDICTIONS)
            (out / layout.PREDICTIONS).write_text(f"found {next(self._numbers)}")
        elif task == TABLES:
            found = (out / layout.PREDICTIONS).read_text()
            (out / "poses.h5").write_text(f"poses of what was {found}")
            (out / "poses_filtered.unfinished").write_text("half a file")
        if task in self.fails:
            stage, error = self.fails[task]
            options["on_progress"](Progress(stage=stage))
            raise error
        if task == DRAWING:
            (out / "pose.mp4").write_text("drawn")
            return {"timings": {}}
        (out / "poses_filtered.unfinished").unlink(missing_ok=True)
        counts = {"frames_expected": 2, "frames_decoded": 2, "rows": 2}
        told = {**counts, "missing": [], "timings": {}, "versions": {}, "details": DETAILS}
        if task == TABLES and self.quality is not None:
            assert payload["frame_size"] == [PROBE["width"], PROBE["height"]]
            told["quality"] = self.quality
        return told


class Lab(World):
    """A world with one film, which is looked at and not analysed yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, default_analysis=None)
        self.poser = Poser(self)
        self.child = self.poser
        self.storage.put(VIDEOS, FILM, b"a film")
        self.settle()

    def stored(self, name: str) -> list[str]:
        """Return the keys of the results bucket that end so."""
        return [key for key in self.storage.buckets[RESULTS] if key.endswith(f"/{name}")]

    def ask(self) -> start.RunHandle:
        """POST /analyse."""
        return pending.ask(self.context, FILE_ID, "dummy", {"seconds": 0}, force=False)

    def over(self, analysis_id: str) -> results.ResultAnswer:
        """GET /results, once all is done; each file that it lists is what it says."""
        self.settle()
        answer = results.read(self.context, analysis_id)
        assert answer.result is not None
        row = self.context.index.analysis(analysis_id)
        assert row is not None
        for artefact in answer.result.artefacts:
            data = self.storage.buckets[RESULTS][f"{row.run}/{artefact.object_name}"].data
            assert hashlib.sha256(data).hexdigest() == artefact.sha256
        return answer


def names(answer: results.ResultAnswer) -> set[str]:
    return {file.plain_name for file in answer.files}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Analysis]:
    """An analysis with predictions, tables and drawings, by the name of one that is light."""
    both = replace(
        analyses.get("dummy"), version="2", finish="x:y", artefacts=analyses.POSES, renders=True
    )
    found = {"dummy": both}
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: found)
    return found


@pytest.fixture
def lab(tmp_path: Path, installed: dict[str, Analysis]) -> Iterator[Lab]:  # noqa: ARG001
    lab = Lab(tmp_path)
    yield lab
    lab.end()


WHOLE = {layout.PREDICTIONS, "poses.h5", "pose.mp4", "run.log"}
DIED = ChildDiedError("the child process was ended by SIGSEGV")
WRONG = AnalysisError("this can't be done", code="no_tracks")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_anywhere_loses_no_predictions(tmp_path: Path, after: bool) -> None:
    """Killed at any of its calls to the store, then once more: one result, one use of the network.

    (The child's own assertion is that predictions which were published are never found again.)
    """
    used = set()
    for at in range(1, CALLS + 1):
        lab = Lab(tmp_path / f"{at}")
        answer = lab.ask()
        for gate in (Gate(at, after=after), Gate(1 + at * 7 % CALLS, after=not after)):
            for message in lab.messages():
                lab.work(message, gate)
            lab.clock.pass_(lab.settings.lease_seconds + 1)
            lab.reconciler.round()
        over = lab.over(answer.analysis_id)
        assert (over.status, names(over)) == ("succeeded", WHOLE)
        assert len(lab.stored(layout.RESULT)) == 1
        used.add(lab.poser.calls.count(NETWORK))
        lab.end()
    assert used <= {1, 2, 3}
    assert 1 in used


@pytest.mark.parametrize(
    ("task", "stage", "error", "attempts", "kept"),
    [
        (NETWORK, "infer", WRONG, 1, {"run.log"}),
        (TABLES, "track", WRONG, 1, {layout.PREDICTIONS, "poses.h5", "run.log"}),
        (TABLES, "filter", DIED, 3, {layout.PREDICTIONS, "poses.h5", "run.log"}),
        (DRAWING, "render", WRONG, 2, {layout.PREDICTIONS, "poses.h5", "run.log"}),
        (DRAWING, "render", DIED, 4, {layout.PREDICTIONS, "poses.h5", "run.log"}),
    ],
)
def test_a_run_that_fails_serves_what_there_is_and_is_made_anew(
    lab: Lab, task: str, stage: str, error: Exception, attempts: int, kept: set[str]
) -> None:
    """The failure names its stage and lists whole files; asked again, only what lacks is done."""
    lab.poser.fails[task] = (stage, error)
    first = lab.ask().analysis_id
    failed = lab.over(first)
    assert (failed.status, names(failed)) == ("failed", kept)
    assert failed.error is not None
    assert failed.error.stage == stage
    assert failed.result is not None
    assert failed.result.attempts == attempts
    for name in kept:
        assert results.download_url(lab.context, first, name)
    assert lab.poser.calls.count(NETWORK) == 1
    lab.poser.fails.clear()
    before = len(lab.poser.calls)
    again = lab.ask()
    assert (again.existed, again.status) == (False, "queued")
    done = lab.over(again.analysis_id)
    assert (done.status, names(done)) == ("succeeded", WHOLE)
    steps = [NETWORK, TABLES, DRAWING]
    assert lab.poser.calls[before:] == steps[steps.index(task) :]
    # Whatever is asked from now on is answered with the success, though the index be lost.
    assert lab.ask() == (again.analysis_id, "succeeded", True)
    for _ in range(2):
        assert lab.over(first).retried_by == again.analysis_id
        assert lab.over(again.analysis_id).retry_of == first
        lab.lose_index()
    lab.settle()
    assert lab.ask() == (again.analysis_id, "succeeded", True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("half", ["infer", "render"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
def test_a_run_that_is_deleted_while_it_is_made_leaves_nothing(
    tmp_path: Path, half: str, again: bool
) -> None:
    """Its worker is frozen at each of its calls, and goes on when all is deleted: the same film
    under the same key is computed, and has nothing of what was, be it there again by then."""
    for at in itertools.count(1):
        lab = Lab(tmp_path / f"{at}")
        lab.ask()
        (message,) = lab.messages()
        if half == "render":
            lab.work(message)
            (message,) = lab.messages()
        frozen = lab.freeze(message, at)
        if frozen is None:
            lab.end()
            break
        upload.delete(lab.context, FILE_ID)
        if again:
            lab.clock.pass_(1)
            lab.storage.put(VIDEOS, FILM, b"a film")
            lab.reconciler.round()
            for message in lab.messages():
                if message.actor_name == "ingest":
                    lab.work(message)
            lab.reconciler.round()
            lab.ask()
        lab.poser.calls.clear()
        frozen.wake()
        if not again:
            lab.settle()
            assert not [key for key in lab.storage.buckets[RESULTS] if key.startswith(FILM)], at
            lab.storage.put(VIDEOS, FILM, b"a film")
        lab.settle()
        done = lab.over(lab.ask().analysis_id)
        assert (done.status, names(done)) == ("succeeded", WHOLE)
        lab.end()
    assert at > 10


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("half", ["infer", "render"])
def test_a_run_that_is_deleted_while_its_store_is_away_leaves_nothing(
    tmp_path: Path, half: str
) -> None:
    """Its worker is frozen at each of its calls; all is deleted, and one of the next calls fails.

    Whatever it writes down of that is gone when its message has come again.
    """
    for at in itertools.count(1):
        lab = Lab(tmp_path / f"{at}")
        lab.ask()
        (message,) = lab.messages()
        if half == "render":
            lab.work(message)
            (message,) = lab.messages()
        frozen = lab.freeze(message, at)
        if frozen is None:
            lab.end()
            break
        upload.delete(lab.context, FILE_ID)
        gate = frozen.gate
        gate.left, gate.freeze, gate.raises = 1 + at % 4, False, StorageError
        frozen.wake()
        lab.messages()
        lab.work(message)  # as Dramatiq has it
        left = [key for key in lab.storage.buckets[RESULTS] if key.startswith(FILM)]
        assert left == [], at
        lab.storage.put(VIDEOS, FILM, b"a film")
        lab.settle()
        done = lab.over(lab.ask().analysis_id)
        assert (done.status, names(done)) == ("succeeded", WHOLE)
        lab.end()
    assert at > 10


@pytest.mark.parametrize(("error", "attempts"), [(WRONG, 1), (DIED, 3)])
def test_a_failure_that_is_long_in_publishing_is_not_taken_for_dead(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: PosedropError, attempts: int
) -> None:
    """Its upload takes longer than a lease, and its message comes a second time meanwhile."""
    lab.settings = lab.settings.model_copy(update={"heartbeat_seconds": 0.005})
    upload_new = lab.storage.upload_new

    def slow(bucket: str, key: str, path: Path, *more: str) -> bool:
        if path.name == "poses.h5":
            monkeypatch.setattr(lab.storage, "upload_new", upload_new)
            lab.clock.pass_(100)
            claim = f"{key.rpartition('/')[0]}/attempts/{attempts}.json"
            for _ in range(400):
                if lab.storage.buckets[RESULTS][claim].info.last_modified == lab.clock():
                    break
                time.sleep(0.005)
            lab.reconciler.round()
            for message in [*lab.messages(), sent]:
                lab.work(message)
        return upload_new(bucket, key, path, *more)

    monkeypatch.setattr(lab.storage, "upload_new", slow)
    lab.poser.fails[TABLES] = ("track", error)
    first = lab.ask().analysis_id
    (sent,) = lab.messages()
    lab.put_back([sent])
    failed = lab.over(first)
    assert failed.error is not None
    assert failed.result is not None
    assert (failed.error.code, failed.result.attempts) == (error.code, attempts)
    assert "poses.h5" in names(failed)


@pytest.mark.parametrize("drawn_now", [True, False], ids=["drawn now", "handed back"])
def test_a_run_that_is_cancelled_behind_its_poses_keeps_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, drawn_now: bool
) -> None:
    """Be it cancelled while it is drawn, or while it waits to be drawn once more."""
    answer = lab.ask()
    call = lab.poser.call

    def cancelled(task: str, *payload: Any, **options: Any) -> dict[str, Any]:
        if task == DRAWING:
            results.cancel_or_delete(lab.context, answer.analysis_id, only_cancel=True)
        return call(task, *payload, **options)

    if drawn_now:
        monkeypatch.setattr(lab.poser, "call", cancelled)
    else:
        lab.poser.fails[DRAWING] = ("render", StorageError("it is away"))
        for _ in ("infer", "render"):
            (message,) = lab.messages()
            lab.work(message)
        results.cancel_or_delete(lab.context, answer.analysis_id, only_cancel=True)
    over = lab.over(answer.analysis_id)
    assert over.status == "cancelled"
    assert names(over) >= {layout.PREDICTIONS, "poses.h5"}


def test_a_run_is_cancelled_though_its_poses_are_a_newer_workers(lab: Lab) -> None:
    """After an upgrade that was taken back, cancelling is the way out."""
    answer = lab.ask()
    lab.poser.fails[DRAWING] = ("render", StorageError("it is away"))
    for _ in ("infer", "render"):
        (message,) = lab.messages()
        lab.work(message)
    row = lab.context.index.analysis(answer.analysis_id)
    assert row is not None
    key = layout.Run(row.run).inference
    record = json.loads(lab.storage.buckets[RESULTS][key].data)
    record["schema"] = 999
    lab.storage.put(RESULTS, key, json.dumps(record).encode())
    results.cancel_or_delete(lab.context, answer.analysis_id, only_cancel=True)
    assert lab.over(answer.analysis_id).status == "cancelled"


def test_a_checkpoint_that_goes_while_it_is_fetched_ends_no_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was listed, and is gone when its turn comes; the one behind it is fetched."""
    first = lab.ask().analysis_id
    row = lab.context.index.analysis(first)
    assert row is not None
    gone, left = (f"{layout.Run(row.run).parts}{number:06}.npz" for number in (1, 2))
    for key in (gone, left):
        lab.storage.put(RESULTS, key, b"a part")
    download = lab.storage.download

    def late(bucket: str, key: str, *more: Any) -> dict[str, str]:
        if key == gone:
            lab.storage.remove(bucket, key)
        return download(bucket, key, *more)

    monkeypatch.setattr(lab.storage, "download", late)
    done = lab.over(first)
    assert done.result is not None
    assert (done.status, done.result.attempts) == ("succeeded", 2)
    assert (RESULTS, left) in lab.storage.downloads


def test_an_infer_that_is_delivered_twice_makes_no_tables_twice(lab: Lab) -> None:
    """Its poses are there, and waited for the drawing: that is what is asked for again."""
    answer = lab.ask()
    (message,) = lab.messages()
    for _ in range(2):
        lab.work(message)
        assert [each.actor_name for each in lab.messages()] == ["render"]
    assert lab.poser.calls == [NETWORK, TABLES]
    assert lab.over(answer.analysis_id).status == "succeeded"


def test_files_are_served_before_their_event(lab: Lab) -> None:
    """What GET /results tells of can be downloaded, though the index has heard of nothing."""
    first = lab.ask().analysis_id
    for _ in ("infer", "render"):
        (message,) = lab.messages()
        lab.work(message)
    for name in names(results.read(lab.context, first)):
        assert results.download_url(lab.context, first, name)


def test_three_workers_killed_at_the_tables_leave_predictions(lab: Lab) -> None:
    """Nobody was left to tell of them: they are found where they lie."""
    answer = lab.ask()
    for _ in range(lab.settings.max_attempts):
        for message in lab.messages():
            lab.poser.fails[TABLES] = ("write", KeyboardInterrupt())  # type: ignore[dict-item]
            with pytest.raises(KeyboardInterrupt):
                lab.work(message)
        lab.clock.pass_(lab.settings.lease_seconds + 1)
        lab.reconciler.round()
    over = lab.over(answer.analysis_id)
    assert (over.status, names(over)) == ("failed", {layout.PREDICTIONS})
    assert over.error is not None
    # Their last heartbeats told of steps of the worker, which are no stages of a run.
    assert (over.error.code, over.error.stage) == ("worker_died", "infer")
    assert lab.poser.calls.count(NETWORK) == 1


def test_a_cancelled_run_is_made_anew_from_what_it_had(lab: Lab) -> None:
    """Cancelled after the network, before any worker or by one: asking again goes on from there."""
    lab.poser.fails[TABLES] = ("write", DIED)
    first = lab.ask().analysis_id
    (message,) = lab.messages()
    lab.work(message)
    assert results.cancel_or_delete(lab.context, first) == "cancelled"
    lab.poser.fails.clear()
    assert names(lab.over(first)) == {layout.PREDICTIONS}
    second = lab.ask().analysis_id
    assert results.cancel_or_delete(lab.context, second) == "cancelled"
    third = lab.ask().analysis_id
    assert len({first, second, third}) == 3
    done = lab.over(third)
    assert (done.status, done.retry_of, names(done)) == ("succeeded", second, WHOLE)
    assert lab.poser.calls.count(NETWORK) == 1


def test_who_asks_again_at_once_gets_one_run(lab: Lab) -> None:
    """One new run for all who ask while it waits or runs; by another index of the API too."""
    lab.poser.fails[TABLES] = ("track", WRONG)
    first = lab.ask().analysis_id
    lab.over(first)
    again = lab.ask()
    assert lab.ask() == (again.analysis_id, "queued", True)
    lab.lose_index()
    lab.reconciler.round()
    assert lab.ask().analysis_id == again.analysis_id
    # What fails anew is the next one's; each asking is one run, and there is an end to them.
    seen = {first}
    for _ in range(start.MAX_RETRIES + 3):
        answer = lab.ask()
        assert lab.over(answer.analysis_id).status == "failed"
        seen.add(answer.analysis_id)
    assert len(seen) == len(lab.stored(layout.RESULT)) == start.MAX_RETRIES + 1
    assert lab.poser.calls.count(NETWORK) == 1


def test_a_failure_that_was_deleted_is_made_anew_all_the_same(lab: Lab) -> None:
    """Its successor does without its predictions, and is the answer for who asks later."""
    lab.poser.fails[TABLES] = ("track", WRONG)
    first = lab.ask().analysis_id
    lab.over(first)
    again = lab.ask().analysis_id
    assert results.cancel_or_delete(lab.context, first) == "deleted"
    lab.poser.fails.clear()
    assert lab.over(again).status == "succeeded"
    assert lab.poser.calls.count(NETWORK) == 2
    assert lab.ask() == (again, "succeeded", True)


@pytest.mark.parametrize("retry", [True, False])
def test_a_run_that_failed_since_the_upload_is_its_answer(lab: Lab, retry: bool) -> None:
    """``posedrop upload --wait`` asks for the id of its run: that starts no second one."""
    lab.poser.fails[TABLES] = ("track", WRONG)
    first = lab.ask().analysis_id
    lab.over(first)
    answer = pending.ask(lab.context, FILE_ID, "dummy", {"seconds": 0}, force=False, retry=retry)
    assert (answer.analysis_id != first) == retry
    # Uploaded once more, the failure is from before.
    lab.clock.time = datetime.now(UTC) + timedelta(hours=1)  # a worker's clock is the machine's
    lab.storage.put(VIDEOS, "again.mp4", b"a film")
    lab.settle()
    other = layout.file_id_of(VIDEOS, "again.mp4")
    later = pending.ask(lab.context, other, "dummy", {"seconds": 0}, force=False, retry=False)
    assert later.analysis_id != first


@pytest.mark.usefixtures("installed")
def test_asking_again_is_killed_anywhere(tmp_path: Path) -> None:
    """The API killed while it makes a run anew, asked once more, and its worker killed: one run."""
    for at in range(1, CALLS + 1, 2):
        lab = Lab(tmp_path / f"{at}")
        lab.poser.fails[TABLES] = ("track", WRONG)
        first = lab.ask().analysis_id
        lab.over(first)
        lab.poser.fails.clear()
        with lab.storage.gate(Gate(1 + at % 4)), contextlib.suppress(Crash):
            lab.ask()
        again = lab.ask()
        for message in lab.messages():
            lab.work(message, Gate(at))
        done = lab.over(again.analysis_id)
        assert (done.status, done.retry_of, names(done)) == ("succeeded", first, WHOLE)
        assert len(lab.stored(layout.RESULT)) == 2
        assert lab.poser.calls.count(NETWORK) == 1
        lab.end()


def test_a_run_of_a_newer_analysis_waits_for_a_newer_worker(
    lab: Lab, installed: dict[str, Analysis]
) -> None:
    """An older worker takes no attempt of it, and says so; it never fails of that."""
    answer = lab.ask()
    newer = installed["dummy"]
    installed["dummy"] = replace(newer, version="1")
    for _ in range(lab.settings.max_attempts + 2):
        messages = lab.messages()
        assert len(messages) == 1
        lab.work(messages[0])
        assert lab.messages() == []
        lab.clock.pass_(lab.settings.lease_seconds + 1)
        lab.reconciler.round()
    waits = results.read(lab.context, answer.analysis_id)
    assert waits.status == "queued"
    assert waits.progress is not None
    assert waits.progress.stage == "waiting for a worker with dummy version 2"
    assert lab.poser.calls == []
    installed["dummy"] = newer
    done = lab.over(answer.analysis_id)
    assert done.result is not None
    assert (done.status, done.result.attempts) == ("succeeded", 2)
    assert done.result.analysis_version == "2"


def test_an_older_run_is_finished_by_a_newer_worker(
    lab: Lab, installed: dict[str, Analysis]
) -> None:
    """The result names the version that found the poses, whatever was asked for."""
    answer = lab.ask()
    installed["dummy"] = replace(installed["dummy"], version="3")
    done = lab.over(answer.analysis_id)
    assert done.result is not None
    assert (done.status, done.result.analysis_version) == ("succeeded", "3")


def test_poses_of_another_style_bring_their_predictions(
    lab: Lab, installed: dict[str, Analysis]
) -> None:
    """What differs in the drawing alone is drawn of the same files, without the network."""
    installed["dummy"] = replace(installed["dummy"], drawn=frozenset({"seconds"}))
    first = lab.over(lab.ask().analysis_id)
    answer = pending.ask(lab.context, FILE_ID, "dummy", {"seconds": 1}, force=False)
    other = lab.over(answer.analysis_id)
    assert names(other) == WHOLE
    assert lab.poser.calls == [NETWORK, TABLES, DRAWING, DRAWING]

    def found(answer: results.ResultAnswer) -> dict[str, str]:
        return {file.name: file.sha256 for file in answer.files if file.role != "log"}

    assert found(first) == found(other)


def test_predictions_that_cannot_be_read_are_found_anew(lab: Lab) -> None:
    """Somebody has damaged what lay in the bucket: the network is asked once more."""
    lab.poser.fails[TABLES] = ("write", AnalysisError("odd bytes", code="damaged_predictions"))
    first = lab.ask()
    run = lab.context.index.analysis(first.analysis_id)
    assert run is not None
    lab.storage.put(RESULTS, f"{run.run}/{layout.PREDICTIONS}", b"rubbish")

    class Once(Poser):
        def call(self, task: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
            if task == NETWORK:
                self.fails.clear()
                self.world = World.__new__(Lab)  # it may well be there already
                self.world.storage = type("", (), {"buckets": {RESULTS: {}}})()
            return super().call(task, payload, **options)

    lab.child = Once(lab)
    lab.child.fails = lab.poser.fails
    done = lab.over(first.analysis_id)
    assert (done.status, names(done)) == ("succeeded", WHOLE)
    assert isinstance(done.result, Result)
    (found,) = [a for a in done.result.artefacts if a.name == layout.PREDICTIONS]
    assert found.place == f"attempts/1/{layout.PREDICTIONS}"


def test_the_quality_of_poses_is_kept_with_them(lab: Lab) -> None:
    """In every result of a content, in lists, after a lost index, and where drawing failed."""
    quality = judged(result_of(), 61.3).quality
    assert quality is not None
    lab.poser.quality = quality.model_dump(mode="json")
    lab.poser.fails[DRAWING] = ("render", WRONG)
    failed = lab.ask().analysis_id
    assert lab.over(failed).result.quality == quality  # type: ignore[union-attr]
    lab.poser.fails.clear()
    done = lab.ask().analysis_id
    lab.poser.quality = None
    plain = pending.ask(lab.context, FILE_ID, "dummy", {"seconds": 1}, force=False).analysis_id
    lab.storage.put(VIDEOS, "day2/copy.mp4", b"a film")
    for _ in range(2):
        for analysis_id, its in ((done, quality), (failed, quality), (plain, None)):
            assert lab.over(analysis_id).result.quality == its  # type: ignore[union-attr]
        listed = lab.context.index.analyses(order="quality").rows
        assert {row.analysis_id for row in listed[:2]} == {failed, done}
        assert [(row.analysis_id, row.quality) for row in listed[2:]] == [(plain, None)]
        assert listed[0].quality_reasons == ("it is dark",)
        lab.lose_index()
    copies = [
        Result.model_validate_json(lab.storage.buckets[RESULTS][key].data)
        for key in lab.stored(layout.RESULT)
    ]
    assert {(each.video.key, each.analysis_id) for each in copies if each.quality == quality} >= {
        (FILM, done),
        ("day2/copy.mp4", done),
    }


def test_a_quality_that_can_not_be_one_ends_the_run_in_words(lab: Lab) -> None:
    """A child that was taken over says what it likes; only what has its bounds is kept."""
    quality = judged(result_of(), 50).quality
    assert quality is not None
    lab.poser.quality = {**quality.model_dump(mode="json"), "score": 101}
    over = lab.over(lab.ask().analysis_id)
    assert over.status == "failed"
    assert over.error is not None
    assert "quality.score" in over.error.message
