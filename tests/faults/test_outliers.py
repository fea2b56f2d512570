"""The frames worth correcting: asked for by the run that has the poses, made without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.runs import pending, results
from handlers.runs.poses_of import UnfinishedRunError
from posedrop.buckets import layout
from posedrop.errors import BadRequestError
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World

FILM, OTHER = "day1/a.mp4", "day2/b.mp4"
FILES = ["labeled-data.zip", "frames.pkg.slp", "coco.zip"]
#: A run calls the store some forty times.
CALLS = 48


class Lab(World):
    """A world with a film whose poses were found."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.storage.put(VIDEOS, FILM, b"a film")
        self.settle()
        (row,) = self.context.index.analyses().rows
        self.poses = row.analysis_id

    def ask(self, key: str = FILM, *, force: bool = False, **args: Any) -> str:
        """Ask for the frames worth correcting of a film; return the id of the run."""
        file_id = layout.file_id_of(VIDEOS, key)
        return pending.ask(self.context, file_id, "outliers", args, force=force).analysis_id

    def check_over(self, analysis_id: str) -> None:
        """Hold a run to its end: succeeded, with its three files."""
        answer = results.read(self.context, analysis_id)
        assert answer.status == "succeeded"
        assert {*FILES} <= {file.name for file in answer.files}
        assert answer.result is not None
        assert answer.result.details["poses_of"] == self.poses

    def fill_the_gpu_queue(self) -> None:
        """Have more films than there are places for in the gpu queue, and no worker."""
        for number in range(5):
            self.storage.put(VIDEOS, f"day3/{number}.mp4", f"film {number}".encode())
        self.tell_all()
        for _ in range(3):
            self.reconciler.round()
            for message in self.messages():
                if message.actor_name == "ingest":
                    self.work(message)

    def tell_all(self) -> None:
        """Have the reconciler find what no event told of."""
        self.clock.pass_(self.settings.lease_seconds + 1)
        self.reconciler.round()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A film with poses."""
    return Lab(tmp_path)


def test_the_newest_run_with_poses_counts_and_its_name_is_settled(lab: Lab) -> None:
    """Asked with its id or without, it is one request, on the cpu queue, and made once."""
    run = lab.ask()
    assert lab.ask(run=lab.poses) == run
    (message,) = lab.messages()
    assert (message.actor_name, message.queue_name) == ("finish", queue.CPU)
    lab.work(message)
    lab.check_over(run)
    assert lab.ask() == run, "a run of outliers is taken for one with poses"
    assert not lab.messages()


def test_it_neither_waits_for_a_network_nor_holds_up_one(lab: Lab) -> None:
    """With all places of the gpu workers taken, it is sent at once, and takes none of them."""
    lab.fill_the_gpu_queue()
    taken = lab.context.index.gpu_taken()
    run = lab.ask()
    (message,) = (m for m in lab.messages() if m.actor_name == "finish")
    assert lab.context.index.gpu_taken() == taken
    lab.work(message)
    lab.check_over(run)


def test_each_ends_whatever_is_killed_where(tmp_path: Path) -> None:
    """Whichever call of the worker's is its last, or whose message was lost with the index."""
    for cut in (*range(0, CALLS, 3), CALLS):
        lab = Lab(tmp_path / str(cut))
        run = lab.ask(n=cut + 1)
        for message in lab.messages():
            if cut:
                lab.work(message, Gate(cut))
        if not cut:
            lab.lose_index()
            lab.settle()
            assert lab.context.index.gpu_taken() == 0
        lab.settle()
        lab.check_over(run)
        lab.end()


def test_what_can_not_be_is_said_when_it_is_asked_for(lab: Lab) -> None:
    """Runs that are none, gone, of another film or without poses; frames that are not there."""
    lab.storage.put(VIDEOS, OTHER, b"another film")
    lab.settle()
    other = next(r.analysis_id for r in lab.context.index.analyses().rows if r.key == OTHER)
    outliers = lab.ask()
    lab.settle()
    gone = lab.ask(n=3)
    lab.settle()
    results.cancel_or_delete(lab.context, gone)
    lab.settle()
    for args, code, field in (
        ({"run": "a" * 16}, "no_such_run", "args.run"),
        ({"run": gone}, "run_gone", "args.run"),
        ({"run": other}, "other_film", "args.run"),
        ({"run": outliers}, "no_poses", "args.run"),
        ({"run": "../../etc"}, "bad_args", "args.run"),
        ({"n": 0}, "bad_args", "args.n"),
        ({"n": 10**9}, "bad_args", "args.n"),
        ({"by": "list"}, "bad_args", "args"),
        ({"frames": [1]}, "bad_args", "args"),
        ({"by": "list", "frames": []}, "bad_args", "args.frames"),
        ({"by": "list", "frames": [-1]}, "bad_args", "args.frames"),
        ({"by": "list", "frames": [2]}, "no_such_frame", "args.frames"),
        ({"bodyparts": []}, "bad_args", "args.bodyparts"),
        ({"epsilon": float("nan")}, "bad_args", "args.epsilon"),
    ):
        with pytest.raises(BadRequestError) as refused:
            lab.ask(**args)
        assert (refused.value.code, refused.value.field) == (code, field), args
    assert not lab.messages()


def test_a_run_that_is_not_over_is_worth_asking_again(tmp_path: Path) -> None:
    """By its id or not, before its film is ingested or while it waits: nothing is kept of it."""
    world = World(tmp_path)
    file_id = layout.file_id_of(VIDEOS, FILM)

    def ask(**args: Any) -> None:
        with pytest.raises(UnfinishedRunError, match="ask again when it"):
            pending.ask(world.context, file_id, "outliers", args, force=False)

    world.storage.put(VIDEOS, FILM, b"a film")
    world.clock.pass_(world.settings.lease_seconds + 1)
    world.reconciler.round()
    ask()
    for _ in range(2):
        for message in world.messages():
            if message.actor_name == "ingest":
                world.work(message)
        world.reconciler.round()
    (row,) = world.context.index.analyses().rows
    ask()
    ask(run=row.analysis_id)
    assert not list(world.context.index.pending_open())


def test_poses_that_are_deleted_or_changed_meanwhile_end_it_in_words(lab: Lab) -> None:
    """Between request and worker: it fails, says why, and is made anew when asked again."""
    run = lab.ask()
    row = lab.context.index.analysis(lab.poses)
    assert row is not None
    (table,) = (a for a in row.artefacts if a.name.endswith(".csv"))
    key = layout.Run(row.run).key(table.object_name)
    before = lab.storage.read(RESULTS, key)
    assert before is not None
    lab.storage.put(RESULTS, key, b"somebody's")
    lab.settle()
    answer = results.read(lab.context, run)
    assert answer.error is not None
    assert (answer.status, answer.error.code) == ("failed", "damaged_poses")
    lab.storage.put(RESULTS, key, before)
    again = lab.ask()
    assert again != run
    results.cancel_or_delete(lab.context, lab.poses)
    lab.settle()
    answer = results.read(lab.context, again)
    assert answer.error is not None
    assert (answer.status, answer.error.code) == ("failed", "no_poses")


def test_a_folders_rule_can_not_ask_for_it(tmp_path: Path) -> None:
    """A film that has just come has no poses: the rule is wrong, and says what to do."""
    world = World(tmp_path, default_analysis=None)
    rule = json.dumps({"analysis": "outliers"}).encode()
    world.storage.put(VIDEOS, "day1/posedrop.json", rule)
    world.storage.put(VIDEOS, FILM, b"a film")
    world.settle()
    (row,) = world.context.index.files().rows
    assert row.waits_for == "day1/posedrop.json"
    assert not world.context.index.analyses().rows
