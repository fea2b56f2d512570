"""Two runs compared: asked for, made once, kept with the first, and gone with either."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from handlers import app, context, upload
from handlers.runs import compare, pending, results
from handlers.runs.derived import BeingMadeError
from handlers.runs.results import GoneError
from posedrop import analyses
from posedrop.analyses import Args
from posedrop.api.runs import ComparisonAnswer
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.buckets.records.derived import DERIVED_VERSION, Derived, DerivedRequest
from posedrop.cli import options
from posedrop.client import Client, client
from posedrop.errors import BadRequestError, NotFoundError
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import Child, World
from tests.unit.test_cli import call
from tests.unit.test_compare import write
from worker.child.tasks import function

FILM, SAME, OTHER = "day1/a.mp4", "day2/same.mp4", "day1/other.mp4"
#: A comparison calls the store some twenty times.
CALLS = 24


class Lab(World):
    """A world with a film under two names and another one, and two runs of the first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for key, film in ((FILM, b"a film"), (OTHER, b"another"), (SAME, b"a film")):
            self.storage.put(VIDEOS, key, film)
            self.settle()
        self.a = self.run_of(FILM, 0)
        self.b = self.run_of(SAME, 1)
        self.other = self.run_of(OTHER, 0)

    def run_of(self, key: str, seconds: float) -> str:
        """Return the id of a run of a film that is over."""
        file_id = layout.file_id_of(VIDEOS, key)
        handle = pending.ask(self.context, file_id, "dummy", {"seconds": seconds}, force=False)
        self.settle()
        return handle.analysis_id

    def ask(self, a: str, b: str) -> ComparisonAnswer | None:
        """Ask as GET /compare does; None: it is being made."""
        try:
            return compare.read(self.context, a, b)
        except BeingMadeError:
            return None

    def where(self, analysis_id: str) -> Run:
        """Return the folder of a run."""
        return Run(results.row_to_read(self.context, analysis_id).run)

    def kept(self) -> list[str]:
        """Return the keys of all that is kept of comparisons."""
        found = self.storage.objects(RESULTS)
        return sorted(each.key for each in found if "/derived/compare-with-" in each.key)

    def fails(self, a: str, b: str, version: int = DERIVED_VERSION) -> None:
        """Leave what a posedrop of some version leaves that could not compare two runs."""
        run, what = self.where(a), layout.comparison(b)
        now = self.clock()
        asked = DerivedRequest(what=what, asked_at=now, other=self.where(b).prefix, version=version)
        error = {"code": "damaged_poses", "message": "its poses.csv can't be read"}
        made = Derived(what=what, version=version, error=error, made_at=now)
        self.storage.put(RESULTS, run.derived_request(what), asked.to_json())
        self.storage.put(RESULTS, run.derived_record(what), made.to_json())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two runs of one film, and one of another."""
    return Lab(tmp_path)


def test_two_runs_are_compared_once_and_the_answer_is_kept(lab: Lab) -> None:
    """However often it is asked, one message is sent; a reindex changes nothing; the other order
    is another comparison, as the animals are named after the first run; one with itself works."""
    assert [lab.ask(lab.a, lab.b) for _ in range(3)] == [None] * 3
    (message,) = lab.messages()
    lab.work(message)
    lab.work(message)
    answer = lab.ask(lab.a, lab.b)
    assert answer is not None
    assert (answer.a.analysis_id, answer.b.analysis_id) == (lab.a, lab.b)
    folder = lab.where(lab.a).derived_attempts(layout.comparison(lab.b))
    names = ["/1.json", "/asked.json", "/made.json"]
    assert lab.kept() == sorted([f"{folder}.json", *(f"{folder}{name}" for name in names)])
    lab.lose_index()
    lab.settle()
    assert lab.ask(lab.a, lab.b) == answer
    for pair in ((lab.b, lab.a), (lab.a, lab.a)):
        assert lab.ask(*pair) is None
        lab.settle()
        found = lab.ask(*pair)
        assert found is not None
        assert (found.a.analysis_id, found.b.analysis_id) == pair


def test_it_is_made_whatever_is_killed_where(tmp_path: Path) -> None:
    """Whichever call of the worker's is its last, or whose message was lost."""
    lab = Lab(tmp_path)
    for cut in range(CALLS):
        run, other = lab.where(lab.a), lab.b
        assert lab.ask(lab.a, other) is None
        for message in lab.messages():
            if cut:
                lab.work(message, Gate(cut))
        lab.settle()
        assert lab.ask(lab.a, other) is not None
        lab.storage.delete(RESULTS, [key for key in lab.kept() if key.startswith(run.derived)])


def test_what_can_not_be_compared_is_refused_in_words(lab: Lab) -> None:
    """Runs of different films, a run that is not over, one that never was, one that is gone."""
    with pytest.raises(BadRequestError, match="different films") as refused:
        lab.ask(lab.a, lab.other)
    assert refused.value.code == "different_films"
    started = pending.ask(
        lab.context, layout.file_id_of(VIDEOS, FILM), "dummy", {"seconds": 9}, force=False
    ).analysis_id
    with pytest.raises(BadRequestError, match="is queued: compare it once it is over"):
        lab.ask(lab.a, started)
    with pytest.raises(NotFoundError):
        lab.ask("nobodysnobodysno", lab.a)
    results.cancel_or_delete(lab.context, lab.b)
    with pytest.raises(GoneError):
        lab.ask(lab.a, lab.b)
    assert not [message for message in lab.messages() if message.actor_name == "derive"]


@pytest.mark.parametrize("gone", ["a", "b"])
@pytest.mark.parametrize("how", ["run", "while made", "s3 tool"])
def test_a_comparison_goes_with_either_run(lab: Lab, gone: str, how: str) -> None:
    """Deleted by the API, while it is being made, or by an S3 tool: nothing is left of it."""
    of = {"a": lab.a, "b": lab.b}[gone]
    lab.ask(lab.a, lab.b)
    if how == "while made":
        (message,) = lab.messages()
        frozen = lab.freeze(message, 14)
        assert frozen is not None
        results.cancel_or_delete(lab.context, of)
        frozen.wake()
        lab.work(message)
    else:
        lab.settle()
        assert lab.kept()
    if how == "run":
        results.cancel_or_delete(lab.context, of)
        assert lab.kept() == []
    if how == "s3 tool":
        places = {place.run for place in lab.context.index.places(of)}
        found = [each.key for each in lab.storage.objects(RESULTS)]
        below = [key for key in found if any(key.startswith(f"{run}/") for run in places)]
        lab.storage.delete(RESULTS, below)
    lab.settle()
    assert lab.kept() == []


def test_a_comparison_stays_answerable_when_a_name_of_the_film_goes(lab: Lab) -> None:
    """The film that the second run was made of is deleted: it is compared anew, or not at all."""
    lab.ask(lab.a, lab.b)
    upload.delete(lab.context, layout.file_id_of(VIDEOS, SAME))
    lab.settle()
    try:
        lab.ask(lab.a, lab.b)
    except GoneError:
        assert lab.kept() == []
        return
    lab.settle()
    assert lab.ask(lab.a, lab.b) is not None


def test_what_could_not_be_made_is_tried_again_when_asked_explicitly(lab: Lab) -> None:
    """Asked as usual, the reason is the answer; asked again, its attempts so far count no more."""
    lab.fails(lab.a, lab.b)
    with pytest.raises(BadRequestError, match="can't be read"):
        lab.ask(lab.a, lab.b)
    assert not lab.messages()
    assert compare.make_again(lab.context, lab.a, lab.b)
    assert lab.ask(lab.a, lab.b) is None
    lab.settle()
    assert lab.ask(lab.a, lab.b) is not None
    assert not compare.make_again(lab.context, lab.a, lab.b)
    assert not lab.messages()


def test_a_later_posedrop_tries_once_more(lab: Lab) -> None:
    """What an older one could not make is made by itself; what it can't make either, stays so."""
    lab.fails(lab.a, lab.b, DERIVED_VERSION - 1)
    assert lab.ask(lab.a, lab.b) is None
    lab.settle()
    assert lab.ask(lab.a, lab.b) is not None
    lab.fails(lab.b, lab.a, DERIVED_VERSION)
    with pytest.raises(BadRequestError):
        lab.ask(lab.b, lab.a)
    assert not lab.messages()


class Posing(Child):
    """A child whose poses are as many pixels to the right as an argument says."""

    def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        if task == "compare":
            found: dict[str, Any] = function(task)(payload, lambda *_, **__: None)
            return found
        answer = super().call(task, payload, **more)
        if task == "run_analysis":
            poses = np.full((2, 1, 4, 3), 0.9)
            poses[..., 0] += payload["args"]["shift"]
            write(Path(payload["out"]) / "poses.csv", poses)
        return answer


def test_two_models_are_compared_on_each_film_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest runs of both that are over, of each film, and of all together; a film whose
    content has another name elsewhere too. What lacks one of them is named, others are left."""

    class OfModel(Args):
        model: str
        shift: float
        pcutoff: float = 0.5

    of_model = replace(analyses.get("dummy"), args=OfModel, wall_seconds=lambda *_: 60.0)
    for module in (analyses, analyses.analysis):
        monkeypatch.setattr(module, "installed", lambda: {"dummy": of_model})
    world = World(tmp_path, default_analysis=None)
    world.child = Posing()
    films = {"day1/a.mp4": b"a", "day1/b.mp4": b"b", "day1/c.mp4": b"c", "day1/bad.mp4": b"bad"}
    films |= {"day1/none.mp4": b"n", "day10/d.mp4": b"d", "again/b.mp4": b"b"}
    for key in sorted(films):  # the one below again/ comes first: there its content is read
        world.storage.put(VIDEOS, key, films[key])
        world.settle()

    def run(key: str, model: str) -> None:
        file_id = layout.file_id_of(VIDEOS, key)
        asked = {"model": model, "shift": float(model[1])}
        pending.ask(world.context, file_id, "dummy", asked, force=False)
        world.settle()

    pairs = itertools.product(("day1/a.mp4", "again/b.mp4", "day10/d.mp4"), ("m1", "m4"))
    for key, model in (*pairs, ("day1/c.mp4", "m1"), ("day1/a.mp4", "m9"), ("day1/a.mp4", "m3@x")):
        run(key, model)
    for module in (app, context):
        monkeypatch.setattr(module, "Storage", lambda *_, **__: world.storage)
    served = TestClient(app.create_app(world.settings, world.broker), "http://127.0.0.1:8080")

    def ask(request: httpx.Request) -> httpx.Response:
        answer = served.request(request.method, str(request.url))
        return httpx.Response(answer.status_code, content=answer.content)

    transport = httpx.MockTransport(ask)
    monkeypatch.setattr(options, "Client", functools.partial(Client, transport=transport))
    monkeypatch.setattr(client.time, "sleep", lambda _: world.settle())

    def compare(prefix: str, *models: str) -> tuple[int, dict[str, Any]]:
        named = [f"--model-{each}={model}" for each, model in zip("ab", models, strict=True)]
        result = call(tmp_path, "compare", "--prefix", prefix, *named, "--json")
        return result.exit_code, json.loads(result.stdout) if result.stdout else {}

    status, found = compare("day1", "m1", "m4")
    assert (status, sorted(found["videos"])) == (1, ["day1/a.mp4", "day1/b.mp4"])
    assert found["left_out"] == {"day1/c.mp4": "no finished run of m4"}
    assert [each["total"]["median"] for each in found["videos"].values()] == [3.0, 3.0]
    total = found["total"]
    assert (total["positions"], total["within_2"], total["within_5"]) == (16, 0.0, 1.0)
    assert (total["median"], total["most"], total["disagree"]) == (3.0, 3.0, 0)
    status, found = compare("day1/a.mp4", "m3", "m9")  # a video by itself; a model by its name
    assert (status, found["total"]["median"], found["total"]["disagree"]) == (0, 6.0, 8)
    assert compare("day1/", "m7", "m8") == (1, {})
    assert compare("nothing/", "m1", "m4") == (1, {})
    world.end()
