"""Tuned again: what differs behind the network alone is made of the predictions that are there."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from handlers import gpu_queue, upload
from handlers.runs import pending, results, start
from posedrop import analyses
from posedrop.analyses import Analysis, Args, deeplabcut_2d
from posedrop.api.runs import Cost, RunAnswer
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.workers import Speed, WorkerRecord
from posedrop.errors import AnalysisError, ChildDiedError
from posedrop.transport import queue
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import DETAILS, Child, World

FILM = "day1/a.mp4"
FILE_ID = layout.file_id_of(VIDEOS, FILM)
NETWORK, TABLES, DRAWING = "run_analysis", "finish_analysis", "render"
#: The calls of a run to its children, with the network and without.
WHOLE, RETUNED = [NETWORK, TABLES, DRAWING], [TABLES, DRAWING]
#: An attempt that makes tables of another run's predictions calls the store so often, or less.
CALLS = 32


class Tuned(Args):
    """Arguments, most of which only the tables go by."""

    crop: int = 0
    filter: Literal["none", "median", "arima"] = "median"
    filter_window: int = 5
    pcutoff: float | None = None
    track_method: Literal["ellipse", "box", "ctd"] | None = None
    animals: int | None = None
    style: deeplabcut_2d.Style = Field(default_factory=deeplabcut_2d.Style)


class Poser(Child):
    """A child whose network finds something else each time, and whose tables say of what."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}
        #: What of it works when it is tried again.
        self.once: set[str] = set()
        #: What the network says of its arithmetic.
        self.precision: dict[str, Any] = {"used": "fp32"}
        self._numbers = itertools.count()

    def call(self, task: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        if task == "probe":
            return super().call(task, payload, **options)
        self.calls.append(task)
        out = Path(payload["out"])
        (out.parent / "run.log").write_text(f"log of {task}")
        details = {**DETAILS, "precision": self.precision}
        if task == NETWORK:
            found = {"number": next(self._numbers), "film": payload["sha256"], "details": details}
            (out / layout.PREDICTIONS).write_text(json.dumps(found))
        elif task == TABLES:
            details = self._tabulate(out, payload)
        if task in self.fails:
            options["on_progress"](Progress(stage="track"))
            raise self.fails.pop(task) if task in self.once else self.fails[task]
        if task == DRAWING:
            names = ["trajectory.png", *(["pose.mp4"] if payload["video"] else [])]
            for name in names:
                (out / name).write_text("drawn")
            return {"timings": {}}
        counts = {"frames_expected": 2, "frames_decoded": 2, "rows": 2}
        return {**counts, "missing": [], "timings": {}, "versions": {}, "details": details}

    def _tabulate(self, out: Path, payload: dict[str, Any]) -> dict[str, Any]:
        """Do as ``worker.poses.tables`` does with predictions that are not good."""
        try:
            found = json.loads((out / layout.PREDICTIONS).read_bytes())
            details: dict[str, Any] = found["details"]
        except ValueError as error:
            raise AnalysisError("odd bytes", code="damaged_predictions") from error
        if found["film"] != payload["sha256"]:
            raise AnalysisError("of another film", code="damaged_predictions")
        asked = payload["args"].get("pcutoff")
        if not payload["is_own"] and not analyses.is_covered(details, asked, 0.6):
            raise AnalysisError("fewer bits", code="not_covered")
        (out / "poses.h5").write_text(json.dumps([found["number"], payload["args"]["filter"]]))
        return details


class Lab(World):
    """A world with one film, on which nothing was run yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, default_analysis=None)
        self.poser = Poser()
        self.child = self.poser
        self.storage.put(VIDEOS, FILM, b"a film")
        self.settle()

    def ask(self, file_id: str = FILE_ID, *, force: bool = False, **args: Any) -> start.RunHandle:
        """POST /analyse."""
        return pending.ask(self.context, file_id, "dummy", args, force=force)

    def cost(self, *, force: bool = False, **args: Any) -> Cost | None:
        """POST /analyse, with ``dry_run``."""
        return pending.preview(self.context, FILE_ID, "dummy", args, force=force)[1]

    def made(self, *, force: bool = False, **args: Any) -> RunAnswer:
        """Ask for a run, and return it once all is done."""
        return self.over(self.ask(force=force, **args).analysis_id)

    def over(self, analysis_id: str) -> RunAnswer:
        self.settle()
        return results.read(self.context, analysis_id)

    def calls(self) -> list[str]:
        """Return what the children were asked for since the last time."""
        found, self.poser.calls[:] = list(self.poser.calls), []
        return found

    def request(self, analysis_id: str) -> Request:
        row = self.context.index.analysis(analysis_id)
        assert row is not None
        found = self.storage.read_record(RESULTS, layout.Run(row.run).request, Request)
        assert found is not None
        return found

    def key(self, answer: RunAnswer, name: str) -> str:
        row = self.context.index.analysis(answer.analysis_id)
        assert row is not None
        file = next(file for file in answer.files if file.plain_name == name)
        return f"{row.run}/{file.name}"

    def data(self, answer: RunAnswer, name: str) -> bytes:
        return self.storage.buckets[RESULTS][self.key(answer, name)].data


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Analysis]:
    """An analysis with predictions, tables and drawings, by the name of one that is light."""
    tuned = replace(
        analyses.get("dummy"),
        args=Tuned,
        wall_seconds=lambda *_: 60.0,
        finish="x:y",
        artefacts=analyses.POSES,
        renders=True,
        drawn=frozenset({"style"}),
        for_network=deeplabcut_2d.for_network,
    )
    found = {"dummy": tuned}
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: found)
    return found


@pytest.fixture
def lab(tmp_path: Path, installed: dict[str, Analysis]) -> Iterator[Lab]:  # noqa: ARG001
    lab = Lab(tmp_path)
    yield lab
    lab.end()


@pytest.mark.parametrize(
    ("args", "calls"),
    [
        ({"filter": "none"}, RETUNED),
        ({"filter": "arima"}, RETUNED),
        ({"filter_window": 9}, RETUNED),
        ({"track_method": "box", "animals": 3}, RETUNED),
        ({"pcutoff": 0.1, "filter": "none"}, RETUNED),  # all was computed in fp32
        ({"style": {"trail": 5}}, [DRAWING]),
        ({"style": {"video": False}, "filter": "none"}, RETUNED),
        ({"track_method": "ctd"}, WHOLE),  # by the network itself
        ({"crop": 7, "filter": "none"}, WHOLE),
    ],
)
@pytest.mark.parametrize("is_reindexed", [False, True])
def test_what_the_network_does_not_see_needs_none(
    lab: Lab, args: dict[str, Any], calls: list[str], is_reindexed: bool
) -> None:
    """Tables are made of the first run's own predictions, which the second has too; after a reindex
    as before it. Said beforehand: whether the network is needed."""
    first = lab.made()
    assert lab.calls() == WHOLE
    if is_reindexed:
        lab.lose_index()
        lab.settle()
    cost = lab.cost(**args)
    assert (cost is not None, cost and cost.network) == (True, calls == WHOLE)
    second = lab.made(**args)
    assert (second.status, lab.calls()) == ("succeeded", calls)
    is_same = lab.data(second, layout.PREDICTIONS) == lab.data(first, layout.PREDICTIONS)
    assert is_same == (calls != WHOLE)
    assert json.loads(lab.data(second, "poses.h5"))[1] == args.get("filter", "median")
    assert ("pose.mp4" in {file.plain_name for file in second.files}) == (
        args.get("style", {}).get("video", True)
    )
    assert lab.cost(**args) == Cost(network=False, seconds=0)  # it is there


def test_it_waits_for_no_network(lab: Lab) -> None:
    """Thirty films wait for the network, which is at one for hours: none of them is touched."""
    lab.made()
    lab.calls()
    for number in range(30):
        lab.storage.put(VIDEOS, f"day2/{number}.mp4", b"film %d" % number)
    lab.settle()
    for number in range(30):
        lab.ask(layout.file_id_of(VIDEOS, f"day2/{number}.mp4"))
    asked = lab.ask(filter="none")
    while messages := [message for message in lab.messages() if message.queue_name == queue.CPU]:
        for message in messages:
            lab.work(message)
    assert lab.calls() == RETUNED
    assert results.read(lab.context, asked.analysis_id).status == "succeeded"
    assert lab.context.index.gpu_taken() == gpu_queue.A_WORKER


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_anywhere_makes_it_without_the_network(tmp_path: Path, after: bool) -> None:
    """Killed at any of its calls to the store, then once more, its message and the index lost."""
    for at in range(1, CALLS + 1, 1 + after):
        lab = Lab(tmp_path / f"{at}")
        first = lab.made()
        lab.calls()
        answer = lab.ask(filter="none")
        for gate in (Gate(at, after=after), Gate(1 + at * 7 % CALLS, after=not after)):
            for message in lab.messages():
                lab.work(message, gate)
            if at % 3 == 0:
                lab.lose_index()
            lab.clock.pass_(lab.settings.lease_seconds + 1)
            lab.reconciler.round()
        over = lab.over(answer.analysis_id)
        assert (over.status, NETWORK in lab.calls()) == ("succeeded", False)
        assert lab.data(over, layout.PREDICTIONS) == lab.data(first, layout.PREDICTIONS)
        lab.end()


def damaged(lab: Lab, first: RunAnswer) -> None:
    lab.storage.put(RESULTS, lab.key(first, layout.PREDICTIONS), b"rubbish")


def missing(lab: Lab, first: RunAnswer) -> None:
    lab.storage.remove(RESULTS, lab.key(first, layout.PREDICTIONS))


def foreign(lab: Lab, first: RunAnswer) -> None:
    """Put predictions of another film in the place of these, and have the result say so too."""
    key = lab.key(first, layout.PREDICTIONS)
    before = lab.storage.buckets[RESULTS][key].data
    other = json.dumps({**json.loads(before), "film": "f" * 64}).encode()
    lab.storage.put(RESULTS, key, other)
    result = f"{key.rpartition('/')[0]}/{layout.RESULT}"
    told = lab.storage.buckets[RESULTS][result].data.decode()
    told = told.replace(hashlib.sha256(before).hexdigest(), hashlib.sha256(other).hexdigest())
    lab.storage.put(RESULTS, result, told.encode())


def deleted(lab: Lab, first: RunAnswer) -> None:
    results.cancel_or_delete(lab.context, first.analysis_id)


def other_request(lab: Lab, first: RunAnswer) -> None:
    """Have the run be one of another crop, as its request says."""
    key = f"{lab.key(first, layout.PREDICTIONS).rpartition('/')[0]}/{layout.REQUEST}"
    told = json.loads(lab.storage.buckets[RESULTS][key].data)
    told["args"]["crop"] = 99
    lab.storage.put(RESULTS, key, json.dumps(told).encode())


@pytest.mark.parametrize("harm", [damaged, missing, foreign, deleted, other_request])
@pytest.mark.parametrize("is_asked_before", [True, False])
def test_predictions_that_are_no_good_are_found_anew(
    lab: Lab, harm: Callable[[Lab, RunAnswer], None], is_asked_before: bool
) -> None:
    """Whatever became of the first run's, when it was asked or since: the network, and words."""
    first = lab.made()
    lab.calls()
    asked = lab.ask(filter="none") if is_asked_before else None
    if asked is not None:
        assert lab.request(asked.analysis_id).needs_network is False
    harm(lab, first)
    if asked is None:
        asked = lab.ask(filter="none")
    over = lab.over(asked.analysis_id)
    assert over.status == "succeeded"
    assert lab.calls()[-3:] == WHOLE
    assert json.loads(lab.data(over, "poses.h5"))[0] == 1
    assert over.result is not None
    if lab.request(asked.analysis_id).earlier:
        assert any(first.analysis_id in words for words in over.result.details["not_taken"])
    # A later one takes those of the second, which are good.
    assert lab.made(filter="arima").status == "succeeded"
    assert lab.calls()[-2:] == RETUNED


def test_the_next_best_run_has_them_too(lab: Lab) -> None:
    """The first is deleted, those of the second are damaged: the third's are taken."""
    first, second, third = lab.made(), lab.made(filter="none"), lab.made(filter_window=3)
    assert lab.calls().count(NETWORK) == 1
    asked = lab.ask(filter="arima")
    deleted(lab, first)
    damaged(lab, third)
    over = lab.over(asked.analysis_id)
    assert (over.status, NETWORK in lab.calls()) == ("succeeded", False)
    assert over.result is not None
    assert over.result.details["predictions_of"] == second.analysis_id


def test_many_asked_at_once_need_no_network(lab: Lab) -> None:
    """However many of them wait: the run that is over is not lost sight of among those."""
    lab.made()
    lab.calls()
    asked = [lab.ask(filter_window=3 + 2 * number) for number in range(12) if number != 1]
    sent = lab.messages()
    assert {message.queue_name for message in sent} == {queue.CPU}
    lab.put_back(reversed(sent))
    assert {lab.over(each.analysis_id).status for each in asked} == {"succeeded"}
    assert NETWORK not in lab.calls()


def test_predictions_beside_damaged_ones_are_taken(lab: Lab) -> None:
    """Found anew, they lie below their attempt's number: the result says where."""
    first = lab.made()
    asked = lab.ask(filter="none")
    damaged(lab, first)
    again = lab.over(asked.analysis_id)
    run = lab.context.index.analysis(again.analysis_id)
    assert run is not None
    lab.storage.put(RESULTS, f"{run.run}/{layout.PREDICTIONS}", b"rubbish")
    lab.calls()
    later = lab.made(filter="arima")
    assert (later.status, lab.calls()[-2:]) == ("succeeded", RETUNED)


def test_with_force_the_network_runs(lab: Lab) -> None:
    """Said so beforehand; the forced run then serves others."""
    lab.made()
    lab.calls()
    cost = lab.cost(force=True, filter="none")
    assert cost is not None
    assert cost.network
    forced = lab.made(force=True, filter="none")
    assert lab.calls() == WHOLE
    newest = lab.made(filter="arima")
    assert lab.calls() == RETUNED
    assert lab.data(newest, layout.PREDICTIONS) == lab.data(forced, layout.PREDICTIONS)


@pytest.mark.parametrize(
    ("precision", "before", "now", "is_taken"),
    [
        ({"used": "bf16", "pcutoff": 0.6}, None, 0.8, True),
        ({"used": "bf16", "pcutoff": 0.6}, None, 0.6, True),
        ({"used": "bf16", "pcutoff": 0.6}, None, 0.5, False),
        ({"used": "bf16", "pcutoff": 0.3}, 0.3, 0.4, True),
        ({"used": "bf16", "pcutoff": 0.3}, 0.3, 0.2, False),
        ({"used": "bf16", "pcutoff": 0.3}, 0.3, None, True),  # dummy has no model: not known
        ({"used": "fp32", "frames_checked_in_fp32": 0}, None, 0.1, True),
        ({"used": "fp32", "frames_checked_in_fp32": 6}, None, 0.1, False),  # given up half-way
        ({}, 0.5, 0.4, False),
    ],
)
def test_fewer_bits_serve_no_lower_cutoff(
    lab: Lab, precision: dict[str, Any], before: float | None, now: float | None, is_taken: bool
) -> None:
    """No keypoint above the cutoff was moved by them: below it, nobody has looked."""
    lab.poser.precision = precision
    lab.made(pcutoff=before)
    lab.calls()
    over = lab.made(pcutoff=now, filter="none")
    assert over.status == "succeeded"
    assert (NETWORK not in lab.calls()) == is_taken
    # Whoever asks for the next one is told of the arithmetic of then.
    assert over.result is not None
    assert over.result.details["precision"] == precision


@pytest.mark.parametrize("is_sent_anew", [False, True])
def test_what_does_not_serve_is_never_taken_for_its_own(lab: Lab, is_sent_anew: bool) -> None:
    """The network died, once, of the run that refused another's: it is asked again, by whoever is
    sent the run next."""
    lab.poser.precision = {"used": "bf16", "pcutoff": 0.6}
    first = lab.made()
    lab.poser.fails[NETWORK] = ChildDiedError("gone")
    lab.poser.once = {NETWORK}
    lab.calls()
    asked = lab.ask(pcutoff=0.1).analysis_id
    (message,) = lab.messages()
    lab.work(message)
    assert lab.calls() == [TABLES, NETWORK]
    if is_sent_anew:
        lab.messages()
        lab.lose_index()
    over = lab.over(asked)
    assert lab.calls() == [TABLES, *WHOLE]
    assert lab.data(over, layout.PREDICTIONS) != lab.data(first, layout.PREDICTIONS)
    assert json.loads(lab.data(over, "poses.h5"))[0] == 2  # the first, the one that died, this


def test_a_failure_of_borrowed_predictions_lists_them_apart(lab: Lab) -> None:
    """They may not be good for the run that failed: none of its attempts finds them as its own."""
    first = lab.made()
    lab.poser.fails[TABLES] = AnalysisError("no", code="no_tracks")
    failed = lab.made(filter="none")
    assert failed.status == "failed"
    assert failed.result is not None
    (found,) = [file for file in failed.result.artefacts if file.name == layout.PREDICTIONS]
    assert found.place == f"attempts/1/{layout.PREDICTIONS}"
    deleted(lab, first)
    lab.poser.fails.clear()
    lab.calls()
    assert (lab.made(filter="arima").status, lab.calls()) == ("succeeded", RETUNED)


@pytest.mark.parametrize("error", [AnalysisError("no", code="no_tracks"), ChildDiedError("gone")])
def test_tracks_that_failed_are_tried_again_in_seconds(lab: Lab, error: Exception) -> None:
    """The retry, and other arguments that the message advises, both without the network."""
    lab.poser.fails[TABLES] = error
    failed = lab.made(track_method="ellipse")
    assert failed.status == "failed"
    assert lab.calls().count(NETWORK) == 1
    lab.poser.fails.clear()
    for args in ({"track_method": "ellipse"}, {"track_method": "box"}, {"animals": 2}):
        cost = lab.cost(**args)
        assert cost is not None
        assert not cost.network
        asked = lab.ask(**args)
        sent = lab.messages()
        assert [message.queue_name for message in sent] == [queue.CPU]
        lab.put_back(sent)
        assert lab.over(asked.analysis_id).status == "succeeded"
        assert lab.calls() == RETUNED


def test_tables_that_died_are_made_again_beside_the_network(lab: Lab) -> None:
    """An attempt whose predictions are there goes on in the cpu queue, be it killed or not."""
    lab.poser.fails[TABLES] = ChildDiedError("gone")
    lab.ask()
    (message,) = lab.messages()
    assert message.queue_name == queue.GPU
    lab.work(message)
    (message,) = lab.messages()
    assert message.queue_name == queue.CPU
    lab.poser.fails[TABLES] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        lab.work(message)
    lab.clock.pass_(lab.settings.lease_seconds + 1)
    lab.reconciler.round()
    assert [message.queue_name for message in lab.messages()] == [queue.CPU]


def test_the_same_film_under_another_name_counts(lab: Lab) -> None:
    """Its runs have folders of their own, and the predictions of the first; each its own result."""
    first = lab.made()
    lab.calls()
    lab.storage.put(VIDEOS, "day9/b.mp4", b"a film")
    lab.settle()
    other = lab.over(lab.ask(layout.file_id_of(VIDEOS, "day9/b.mp4"), filter="none").analysis_id)
    assert (other.status, lab.calls()) == ("succeeded", RETUNED)
    upload.delete(lab.context, FILE_ID)
    lab.settle()
    last = lab.over(lab.ask(layout.file_id_of(VIDEOS, "day9/b.mp4"), filter="arima").analysis_id)
    assert (last.status, lab.calls()) == ("succeeded", RETUNED)
    assert lab.data(last, layout.PREDICTIONS) == lab.data(other, layout.PREDICTIONS)
    assert first.status == "succeeded"


def test_whoever_asks_is_served_without_the_network(lab: Lab) -> None:
    """Before the same film is even ingested again, by its folder's rule, by its own metadata, and
    once more after it was cancelled in the queue."""
    lab.made()
    lab.calls()
    film = "day2/b.mp4"
    lab.storage.put(VIDEOS, film, b"a film")
    events, lab.storage.events = lab.storage.events, []
    lab.tell(events)
    pending_id = lab.ask(layout.file_id_of(VIDEOS, film), filter="none").analysis_id
    rule = {"analysis": "dummy", "args": {"filter_window": 9}}
    lab.storage.put(VIDEOS, "day3/posedrop.json", json.dumps(rule).encode())
    lab.storage.put(VIDEOS, "day3/c.mp4", b"a film")
    own = {"analysis": "dummy", "args": json.dumps({"filter_window": 11})}
    lab.storage.put(VIDEOS, "day4/d.mp4", b"a film", own)
    assert lab.over(pending_id).status == "succeeded"
    assert sorted(lab.calls()) == sorted(3 * RETUNED)
    first = lab.ask(filter="arima").analysis_id
    assert results.cancel_or_delete(lab.context, first) == "cancelled"
    again = lab.ask(filter="arima")
    assert (again.analysis_id != first, lab.over(again.analysis_id).status) == (True, "succeeded")
    assert lab.calls() == RETUNED


def test_two_asked_at_once_use_the_network_once(lab: Lab) -> None:
    """The second waits for the network, and by its turn there is no need."""
    one, two = lab.ask(), lab.ask(filter="none")
    assert lab.request(two.analysis_id).needs_network
    assert (lab.over(one.analysis_id).status, lab.over(two.analysis_id).status) == (
        "succeeded",
        "succeeded",
    )
    assert lab.calls().count(NETWORK) == 1


def test_tables_are_served_while_the_video_is_drawn(lab: Lab) -> None:
    """They are listed, and can be had, before the run is over."""
    lab.made()
    asked = lab.ask(filter="none").analysis_id
    (message,) = lab.messages()
    lab.work(message)
    answer = results.read(lab.context, asked)
    assert answer.status == "running"
    assert {file.plain_name for file in answer.files} == {"poses.h5", layout.PREDICTIONS}
    for file in answer.files:
        assert results.download_url(lab.context, asked, file.plain_name)


def test_what_it_costs_goes_by_what_the_workers_told(lab: Lab) -> None:
    """Frames by frames a second of each step, of this model and size of frames; else it is null."""

    def tell(**changes: Any) -> None:
        rates = {"network": 0.5, "tables": 2.0, "drawing": 1.0, **changes}
        speeds = [
            Speed(
                analysis="dummy",
                width=64,
                height=64,
                step=step,  # type: ignore[arg-type]
                frames_per_second=rate,
                frames=9,
                measured_at=lab.clock(),
            )
            for step, rate in rates.items()
        ]
        record = WorkerRecord(
            worker_id="w" * 16,
            name="w",
            started_at=lab.clock(),
            queues=[queue.GPU],
            device="cpu",
            speeds=speeds,
        )
        lab.clock.pass_(10)
        lab.storage.put(RESULTS, layout.worker(record.worker_id), record.to_json())

    assert lab.cost() == Cost(network=True, seconds=None)
    tell()
    assert lab.cost() == Cost(network=True, seconds=4 + 1 + 2)
    lab.made()
    tell()
    assert lab.cost(filter="none") == Cost(network=False, seconds=1 + 2)
    assert lab.cost(filter="none", style={"video": False}) == Cost(network=False, seconds=1)
    assert lab.cost(filter="arima") == Cost(network=False, seconds=None)
    tell(arima=0.1)
    assert lab.cost(filter="arima") == Cost(network=False, seconds=20 + 2)
    before = len(lab.storage.buckets[RESULTS])
    lab.settle()
    assert len(lab.storage.buckets[RESULTS]) == before  # nothing was started by asking
