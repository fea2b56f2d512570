"""Films, rules, questions and deletions in any order, with events lost, doubled or cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from handlers.runs import pending, results
from posedrop.buckets import layout
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World

FOLDERS = ["", "a/", "a/b/", "a/b/c/"]
KEYS = ["1.mp4", "a/2.mp4", "a/3.mp4", "a/b/4.mp4", "a/b/c/5.mp4", "d/6.mp4"]
SAYS = ["right", "right", "new ones", "nothing", "wrong"]


@dataclass
class Film:
    """What a person may expect of a film: its runs, and what it waits for."""

    put_at: int
    runs: list[float] = field(default_factory=list)
    decided: bool = False
    was_open: bool = False
    waits_for: str | None = None


@dataclass
class Rule:
    """A posedrop.json as it was put."""

    says: str
    seconds: float
    put_at: int


class Lab:
    """A world, and beside it what each film is to have in the end: said in a few lines."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, default_analysis=None, default_args={})
        self.films: dict[str, Film] = {}
        self.rules: dict[str, Rule] = {}
        #: Runs on what a film has replaced.
        self.former: dict[str, list[float]] = {}
        self.step = 0

    def _begin(self) -> float:
        self.step += 1
        self.world.clock.pass_(1)
        return float(self.step)

    # -- what people do

    def put(self, key: str) -> None:
        """A film is uploaded, or replaced."""
        step = self._begin()
        self._forget(key)
        self.films[key] = Film(self.step)
        self.world.storage.put(VIDEOS, key, b"film %d" % step)

    def remove(self, key: str) -> None:
        """A film is removed; its results stay."""
        self._begin()
        self._forget(key)
        self.world.storage.remove(VIDEOS, key)

    def _forget(self, key: str) -> None:
        if (film := self.films.pop(key, None)) is not None:
            self.former.setdefault(key, []).extend(film.runs)

    def set_rule(self, folder: str, says: str) -> None:
        """A rule comes, is changed, mended or spoilt."""
        seconds = self._begin()
        self.rules[folder] = Rule(says, seconds, self.step)
        body: dict[str, Any] = {"analysis": "dummy", "args": {"seconds": seconds}}
        body |= {"existing": False} if says == "new ones" else {}
        body |= {"analysis": None, "args": {}} if says == "nothing" else {}
        data = json.dumps(body)[: 20 if says == "wrong" else None].encode()
        self.world.storage.put(VIDEOS, f"{folder}posedrop.json", data)

    def remove_rule(self, folder: str) -> None:
        """A rule is removed."""
        self._begin()
        self.rules.pop(folder, None)
        self.world.storage.remove(VIDEOS, f"{folder}posedrop.json")

    def ask(self, key: str) -> None:
        """Somebody asks for an analysis of a film that was looked at."""
        seconds = self._begin()
        if (film := self.films.get(key)) is not None:
            file_id = layout.file_id_of(VIDEOS, key)
            pending.ask(self.world.context, file_id, "dummy", {"seconds": seconds}, force=False)
            film.runs.append(seconds)
            film.decided, film.waits_for = True, None

    def delete_runs(self, key: str) -> None:
        """Somebody deletes all results of a film: they stay deleted."""
        self._begin()
        for row in self.world.context.index.analyses(limit=1000).rows:
            if row.key == key:
                deleted = results.cancel_or_delete(self.world.context, row.analysis_id)
                assert deleted == "deleted"
        self.former.pop(key, None)
        if key in self.films:
            self.films[key].runs.clear()

    # -- what happens by itself

    def settle(self, how: str, at: int | None, lost: bool) -> None:
        """Events are told or not, handlers are killed and come back, and all comes to rest."""
        events, self.world.storage.events = self.world.storage.events, []
        told = {
            "in order": events,
            "reversed": events[::-1],
            "some": events[::2],
            "twice": [*events, *events],
            "none": [],
        }[how]
        self.world.tell(told, Gate(at) if at is not None else None)
        for message in self.world.messages():
            self.world.work(message)
        events, self.world.storage.events = self.world.storage.events, []
        self.world.tell(events if how != "none" else [], Gate(at) if at is not None else None)
        # Who waits for a wrong rule is known by the index alone. It matters if that is lost before
        # one is mended that passes by what was there: then they are passed by, too.
        waited = [self.rules[f.waits_for] for f in self.films.values() if f.waits_for in self.rules]
        if lost and not any(found.says == "new ones" for found in waited):
            self.world.lose_index()
        self.world.settle()
        self.world.storage.events.clear()
        self._decide()

    def _decide(self) -> None:
        """Say what is to have come of each film by now."""
        for key, film in self.films.items():
            if film.decided:
                continue
            folder, found = self._nearest(key)
            was_there = film.was_open or (
                found is not None and film.put_at < found.put_at and film.waits_for != folder
            )
            film.waits_for = None
            if found is None or (found.says == "new ones" and was_there):
                film.was_open = True
            elif found.says == "wrong":
                film.waits_for = folder
            else:
                film.decided = True
                film.runs += [found.seconds] if found.says != "nothing" else []

    def _nearest(self, key: str) -> tuple[str, Rule | None]:
        folders = [folder for folder in FOLDERS if key.startswith(folder) and folder in self.rules]
        nearest = max(folders, key=len, default="")
        return nearest, self.rules.get(nearest)

    def check(self) -> None:
        """Each film has the runs that it is to have, and no other."""
        stored = self.world.storage.buckets[RESULTS]
        expected: dict[str, list[float]] = {}
        for key in KEYS:
            film = self.films.get(key)
            runs = sorted([*self.former.get(key, []), *(film.runs if film else [])])
            if runs:
                expected[key] = runs
        found: dict[str, list[float]] = {}
        for name, each in stored.items():
            if name.endswith("/request.json"):
                request = json.loads(each.data)
                found.setdefault(request["video"]["key"], []).append(request["args"]["seconds"])
        assert {key: sorted(runs) for key, runs in found.items()} == expected
        told = {
            json.loads(stored[n].data)["key"] for n in stored if n.startswith("_posedrop/rules/")
        }
        assert told == {f"{f}posedrop.json" for f, r in self.rules.items() if r.says == "wrong"}
        decided = {key for key, film in self.films.items() if film.decided}
        waiting = {
            row.key: row.waits_for
            for row in self.world.context.index.files(limit=100).rows
            if row.waits_for and row.key not in decided
        }
        assert waiting == {
            key: f"{film.waits_for}posedrop.json"
            for key, film in self.films.items()
            if film.waits_for is not None
        }


_key = st.sampled_from(KEYS)
_folder = st.sampled_from(FOLDERS)
_now = st.one_of(
    st.tuples(st.just(Lab.put), _key),
    st.tuples(st.just(Lab.put), _key),
    st.tuples(st.just(Lab.remove), _key),
    st.tuples(st.just(Lab.set_rule), _folder, st.sampled_from(SAYS)),
    st.tuples(st.just(Lab.set_rule), _folder, st.sampled_from(SAYS)),
    st.tuples(st.just(Lab.set_rule), _folder, st.sampled_from(SAYS)),
    st.tuples(st.just(Lab.remove_rule), _folder),
)
#: Only of films that were looked at; else they are other tests'.
_at_rest = st.tuples(st.sampled_from([Lab.ask, Lab.delete_runs]), _key)
_settle = st.tuples(
    st.sampled_from(["in order", "reversed", "some", "twice", "none"]),
    st.none() | st.integers(1, 60),
    st.booleans(),
)
_round = st.tuples(st.lists(_at_rest, max_size=1), st.lists(_now, min_size=1, max_size=3), _settle)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(
    first=st.lists(_key, min_size=2, max_size=6), rounds=st.lists(_round, min_size=2, max_size=8)
)
def test_each_film_has_the_runs_that_it_is_to_have(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], rounds: list[Any]
) -> None:
    """After each round, and with the index made anew in the end."""
    lab = Lab(tmp_path_factory.mktemp("rules"))
    try:
        for key in first:
            lab.put(key)
        calm: Any = ([], [], ("none", None, True))
        for at_rest, now, settle in [calm, *rounds, calm]:
            for do, *args in [*at_rest, *now]:
                do(lab, *args)
            lab.settle(*settle)
            lab.check()
    finally:
        lab.world.end()
