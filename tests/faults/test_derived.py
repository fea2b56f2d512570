"""Other formats of a run's poses: made when asked for, once, whatever is lost or killed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from handlers import upload
from handlers.runs import results
from handlers.runs.derived import BeingMadeError
from posedrop.buckets import layout, names
from posedrop.buckets.records.derived import EXPORTS, Derived
from posedrop.buckets.records.rules import FolderRules
from posedrop.errors import BadRequestError, NotFoundError
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World
from worker.jobs.claim import MAX_UNLUCKY

FILM = "day1/a.mp4"
#: An export calls the store some fifteen times.
CALLS = 16


class Lab(World):
    """A world with one run that is over, and has a table."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.storage.put(VIDEOS, FILM, b"a film")
        self.settle()
        (row,) = self.context.index.analyses().rows
        self.id, self.run = row.analysis_id, layout.Run(row.run)

    def ask(self, name: str = "poses.nwb") -> str | None:
        """Ask for a file as GET /download does; return its URL, None: it is being made."""
        try:
            return results.download_url(self.context, self.id, name)
        except BeingMadeError:
            return None

    def below(self) -> list[str]:
        """Return what lies in the run's ``derived/``."""
        found = self.storage.objects(RESULTS, self.run.derived)
        return sorted(each.key.removeprefix(self.run.derived) for each in found)

    def check_made(self, what: str) -> None:
        """Hold the record to the object that it names, and to what GET /results lists."""
        record = self.storage.read_record(RESULTS, self.run.derived_record(what), Derived)
        assert record is not None
        assert record.artefact is not None
        data = self.storage.read(RESULTS, self.run.key(record.artefact.object_name))
        assert data is not None
        assert hashlib.sha256(data).hexdigest() == record.artefact.sha256
        files = {file.name: file for file in results.read(self.context, self.id).files}
        assert files[EXPORTS[what]].sha256 == record.artefact.sha256
        assert files[EXPORTS[what]].size == len(data)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A run that is over."""
    return Lab(tmp_path)


def test_a_format_is_made_when_first_asked_for_and_kept(lab: Lab) -> None:
    """However often it is asked for, one message is sent; then it is served, and listed."""
    assert [lab.ask() for _ in range(5)] == [None] * 5
    (message,) = lab.messages()
    assert message.kwargs == {"run": lab.run.prefix, "what": "nwb"}
    lab.work(message)
    assert lab.ask() is not None
    lab.work(message)  # it comes twice: nothing is made again
    assert lab.below() == ["nwb/1.json", "nwb/asked.json", "nwb/made.json", "poses.nwb"]
    lab.check_made("nwb")
    with pytest.raises(NotFoundError, match=r"no file 'poses\.xlsx'"):
        lab.ask("poses.xlsx")


def test_each_format_is_made_whatever_is_killed_where(tmp_path: Path) -> None:
    """Whichever call of the worker's is its last, or whose message was lost: it is made."""
    for cut in range(CALLS):
        lab = Lab(tmp_path / str(cut))
        what, name = list(EXPORTS.items())[cut % len(EXPORTS)]
        assert lab.ask(name) is None
        for message in lab.messages():
            if cut:
                lab.work(message, Gate(cut))
        lab.settle()
        assert lab.ask(name) is not None
        lab.check_made(what)
        lab.end()


def test_a_lost_message_goes_again_to_who_asks_again_however_long_the_queue_is(lab: Lab) -> None:
    """Once a lease, not with every answer: something always waits where films come all day."""
    lab.ask()
    (lost,) = lab.messages()
    queue.send(lab.broker, "ingest", bucket=VIDEOS, key="day1/b.mp4")
    for _ in range(2):
        assert lab.ask() is None
        lab.clock.pass_(lab.settings.lease_seconds + 1)
        lab.reconciler.round()
        for _ in range(3):
            assert lab.ask() is None
        *again, ingest = lab.messages()
        assert [(each.actor_name, each.kwargs) for each in again] == [("derive", lost.kwargs)]
        lab.put_back([ingest])
    lab.work(again[0])
    assert lab.ask() is not None


def test_a_worker_that_wakes_up_late_replaces_nothing(lab: Lab) -> None:
    """Frozen at each of its calls while another one makes it: what the record names stays."""
    for at, name in zip((7, 9, 12, 14, 16), EXPORTS.values(), strict=True):
        lab.ask(name)
        (message,) = lab.messages()
        frozen = lab.freeze(message, at)
        lab.settle()
        lab.check_made(message.kwargs["what"])
        if frozen is not None:
            frozen.wake()
        lab.check_made(message.kwargs["what"])


def test_what_kills_its_child_is_given_up_in_words(lab: Lab) -> None:
    """After as many attempts as a run has, the answer says why there is no such file."""
    lab.ask()
    # Of the same length and digest as far as the record goes: the table itself is the poison.
    result = results.read(lab.context, lab.id).result
    assert result is not None
    poison = b"poison"
    artefact = names.find(result.artefacts, "poses.csv")
    assert artefact is not None
    sha256 = hashlib.sha256(poison).hexdigest()
    changed = artefact.model_copy(update={"sha256": sha256, "size": len(poison)})
    others = [a for a in result.artefacts if a != artefact]
    record = result.model_copy(update={"artefacts": [*others, changed]})
    lab.storage.put(RESULTS, lab.run.key(artefact.object_name), poison)
    lab.storage.put(RESULTS, lab.run.result, record.to_json())
    lab.settle()
    with pytest.raises(BadRequestError, match=r"given up after 3 attempts.*killed"):
        lab.ask()
    assert not lab.messages()


def test_a_table_that_the_store_does_not_give_ends_in_words(lab: Lab) -> None:
    """After an hour of attempts; once it is given, it is made when asked for again."""
    lab.ask()
    result = results.read(lab.context, lab.id).result
    assert result is not None
    table = names.find(result.artefacts, "poses.csv")
    assert table is not None
    lab.storage.unreadable.add((RESULTS, lab.run.key(table.object_name)))
    lab.settle()
    with pytest.raises(BadRequestError, match=r"given up after \d+ attempts.*AccessDenied.*mend"):
        lab.ask()
    made = len([name for name in lab.below() if name.startswith("nwb/")])
    assert MAX_UNLUCKY + 2 < made < 100
    lab.storage.unreadable.clear()
    assert results.make_again(lab.context, lab.id, "poses.nwb")
    lab.settle()
    lab.check_made("nwb")


def test_a_table_that_was_changed_is_not_exported(lab: Lab) -> None:
    """What stands in the bucket is not what was published: that is said, and no child sees it."""
    result = results.read(lab.context, lab.id).result
    assert result is not None
    table = names.find(result.artefacts, "poses.csv")
    assert table is not None
    lab.storage.put(RESULTS, lab.run.key(table.object_name), b"somebody's")
    lab.ask()
    lab.settle()
    with pytest.raises(BadRequestError, match="not what was published") as refused:
        lab.ask()
    assert refused.value.code == "damaged_poses"


def test_a_run_that_is_deleted_takes_all_along(lab: Lab) -> None:
    """Before, while and after something is made of it: nothing is left, nothing comes back."""
    lab.ask("poses.slp")
    lab.settle()
    lab.ask()
    (message,) = lab.messages()
    frozen = lab.freeze(message, 12)
    assert frozen is not None
    results.cancel_or_delete(lab.context, lab.id)
    frozen.wake()
    lab.work(message)
    lab.settle()
    assert lab.below() == []


def test_the_name_that_is_left_has_the_format_made_anew(lab: Lab) -> None:
    """The film that a run was made of is deleted: its other name has a file of its own."""
    lab.storage.put(VIDEOS, "day2/b.mp4", b"a film")
    lab.settle()
    lab.ask()
    lab.settle()
    before = lab.ask()
    upload.delete(lab.context, layout.file_id_of(VIDEOS, FILM))
    lab.settle()
    assert lab.ask() is None
    lab.settle()
    after = lab.ask()
    assert after is not None
    assert after != before
    assert "day2/b.mp4" in after
    assert lab.below() == []


def test_a_folders_rule_names_formats_that_are_made_unasked(tmp_path: Path) -> None:
    """``"exports"`` of posedrop.json: there once the run is over, as if somebody had asked."""
    world = World(tmp_path, default_analysis=None)
    rule = FolderRules(analysis="dummy", args={"seconds": 0}, exports=["nwb", "parquet"])
    world.storage.put(VIDEOS, "day1/posedrop.json", rule.to_json())
    world.storage.put(VIDEOS, FILM, b"a film")
    world.settle()
    (row,) = world.context.index.analyses().rows
    files = {file.name for file in results.read(world.context, row.analysis_id).files}
    assert {"poses.nwb", "poses.parquet"} <= files
    assert "poses.slp" not in files
