"""Whatever happens in whatever order: nothing is lost, nothing is doubled, the index follows."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from posedrop.api.files import ReingestRequest
from posedrop.buckets import layout
from posedrop.buckets.records.planned import Planned
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import PosedropError
from posedrop.index.index import AnalysisRow, FileRow
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import Frozen, World

KEYS = st.sampled_from(["a.mp4", "b.mp4", "day1/a.mp4", "../odd.mp4"])
CONTENTS = st.sampled_from([b"one", b"two", b"three", b"bad", b"poison"])
#: A job makes some twenty calls to the store.
CALLS = st.integers(1, 24)


class Machine(RuleBasedStateMachine):
    """A world, what was put into it, and whose runs people have touched."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="posedrop-machine-"))
        self.world = World(self.folder)
        self.frozen: list[Frozen] = []
        self.told: list[dict[str, Any]] = []
        #: Contents whose runs may rightly have ended otherwise, or be gone.
        self.touched: set[bytes] = set()
        #: Runs that were deleted, and that nobody asked for since, by what they were made of.
        self.gone: set[tuple[bytes, float]] = set()

    # -- what people do

    @initialize(key=KEYS, content=CONTENTS)
    def begin(self, key: str, content: bytes) -> None:
        self.put(key, content)

    @rule(key=KEYS, content=CONTENTS)
    def put(self, key: str, content: bytes) -> None:
        """An S3 tool uploads, or replaces what is there."""
        self._touch(key)
        self.gone = {(made_of, seconds) for made_of, seconds in self.gone if made_of != content}
        self.world.clock.pass_(0.4)
        self.world.storage.put(VIDEOS, key, content)

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        """An S3 tool deletes a video; its results stay."""
        self._touch(key)
        self.world.storage.remove(VIDEOS, key)

    @rule(key=KEYS, at=st.none() | CALLS)
    def delete(self, key: str, at: int | None) -> None:
        """DELETE /upload takes a video with its results; cut short, somebody asks again."""
        from handlers import upload

        self._touch(key)
        file_id = layout.file_id_of(VIDEOS, key)
        self._call(lambda: upload.delete(self.world.context, file_id), at)
        if at is not None:
            self._call(lambda: upload.delete(self.world.context, file_id), None)

    @rule(data=st.data())
    def cancel_or_delete_a_run(self, data: st.DataObject) -> None:
        """DELETE /analyse."""
        from handlers.runs import results

        if (row := self._some_run(data)) is not None:
            was_over = f"{row.run}/result.json" in self.world.storage.buckets[RESULTS]
            self._call(lambda: results.cancel_or_delete(self.world.context, row.analysis_id), None)
            self._deleted(row, for_good=was_over)

    @rule(data=st.data())
    def remove_a_run(self, data: st.DataObject) -> None:
        """An S3 tool deletes a run."""
        if (row := self._some_run(data)) is not None:
            self._clear(f"{row.run}/")
            self._deleted(row, for_good=True)

    @rule(key=KEYS)
    def clear_away(self, key: str) -> None:
        """An S3 tool deletes all that was made of a video, and keeps the video."""
        self._touch(key)
        prefix = layout.video_prefix(VIDEOS, key)
        rows = self.world.context.index.analyses(limit=100).rows
        self._clear(f"{prefix}/")
        for row in rows:
            if row.run.startswith(f"{prefix}/"):
                self._deleted(row, for_good=True)

    @rule(key=KEYS, seconds=st.sampled_from([0, 1]), at=st.none() | CALLS)
    def ask(self, key: str, seconds: int, at: int | None) -> None:
        """POST /analyse."""
        from handlers.runs import pending

        file_id = layout.file_id_of(VIDEOS, key)
        args = {"seconds": seconds}
        self.gone = {(made_of, other) for made_of, other in self.gone if other != seconds}
        self._call(lambda: pending.ask(self.world.context, file_id, "dummy", args, force=False), at)

    @rule(key=KEYS, content=CONTENTS)
    def put_and_ask(self, key: str, content: bytes) -> None:
        """Somebody uploads and asks at once, before the video is ingested."""
        self.put(key, content)
        self.tell_all()
        self.ask(key, 1, None)

    @rule(key=KEYS, at=st.none() | CALLS)
    def look_anew(self, key: str, at: int | None) -> None:
        """POST /reingest, which may be cut short."""
        from handlers.upkeep import reingest

        wanted = ReingestRequest(prefix=key)
        self._call(lambda: reingest.reingest(self.world.context, wanted), at)

    # -- what happens by itself

    @precondition(lambda self: self.world.storage.events)
    @rule(data=st.data(), at=st.none() | CALLS)
    def tell_some(self, data: st.DataObject, at: int | None) -> None:
        """Some events arrive, in any order, some of them again, and the handlers may be killed."""
        events = self.world.storage.events
        some = data.draw(st.lists(st.sampled_from(range(len(events))), max_size=6))
        again = data.draw(st.integers(0, 2))
        told = [events[number] for number in some] + self.told[:again]
        self.world.tell(told, Gate(at) if at is not None else None)
        self.told = told

    @precondition(lambda self: self.world.storage.events)
    @rule()
    def tell_all(self) -> None:
        """All events arrive in their order."""
        events, self.world.storage.events = self.world.storage.events, []
        self.world.tell(events)

    @rule()
    def lose_events(self) -> None:
        """The store forgets what it had to tell."""
        self.world.storage.events.clear()

    @rule()
    def lose_messages(self) -> None:
        """The broker is flushed."""
        self.world.messages()

    @rule(how=st.sampled_from(["run", "cut", "cut after", "freeze"]), at=CALLS, data=st.data())
    def work(self, how: str, at: int, data: st.DataObject) -> None:
        """A worker takes any message; it may be killed or stopped anywhere, the message too."""
        messages = self.world.messages()
        if not messages:
            return
        message = messages.pop(data.draw(st.integers(0, len(messages) - 1)))
        self.world.put_back(messages)
        if data.draw(st.booleans()):
            self.world.put_back([message])
        if how == "freeze":
            frozen = self.world.freeze(message, at)
            self.frozen += [frozen] if frozen else []
        else:
            gates = {"run": None, "cut": Gate(at), "cut after": Gate(at, after=True)}
            self.world.work(message, gates[how])

    @rule()
    def work_all(self) -> None:
        """The workers have a good day."""
        for message in self.world.messages():
            self.world.work(message)

    @precondition(lambda self: self.frozen)
    @rule()
    def wake(self) -> None:
        """A worker that was stopped goes on where it was."""
        self.frozen.pop(0).wake()

    @rule(seconds=st.sampled_from([0.4, 1, 61]))
    def time_passes(self, seconds: float) -> None:
        """A little, or a lease."""
        self.world.clock.pass_(seconds)

    @rule(at=st.none() | st.integers(1, 60))
    def reconcile(self, at: int | None) -> None:
        """The reconciler makes a round, and may be killed in it."""
        self._call(self.world.reconciler.round, at)

    @rule(lost=st.booleans())
    def restart(self, lost: bool) -> None:
        """The handlers are started again, with the index or without."""
        if lost:
            self.world.lose_index()
        else:
            self.world.close()
            self.world.open()

    def _call(self, do: Any, at: int | None) -> None:
        with self.world.storage.gate(Gate(at) if at is not None else None):
            try:
                do()
            except (PosedropError, Crash):
                return

    def _some_run(self, data: st.DataObject) -> AnalysisRow | None:
        """Draw a run that somebody is about to change, None if there is none."""
        rows = self.world.context.index.analyses(limit=100).rows
        if not rows:
            return None
        row = data.draw(st.sampled_from(sorted(rows, key=lambda row: row.analysis_id)))
        self._touch(row.key)
        return row

    def _touch(self, key: str) -> None:
        there = self.world.storage.buckets[VIDEOS].get(key)
        if there is not None:
            self.touched.add(there.data)

    def _clear(self, prefix: str) -> None:
        """Remove all that lies there, as a recursive removal does."""
        for name in sorted(self.world.storage.buckets[RESULTS]):
            if name.startswith(prefix):
                self.world.storage.remove(RESULTS, name)

    def _deleted(self, row: AnalysisRow, *, for_good: bool) -> None:
        # Whoever clears a folder away has not cleared those beside the content's other names.
        objects = self.world.storage.buckets[RESULTS]
        for_good &= not any(key.endswith(f"{row.analysis_id}/request.json") for key in objects)
        for content in (b"one", b"two", b"three"):
            if _made_of(row, content):
                self.touched.add(content)
                if for_good and self._all_planned(content):
                    self.gone.add((content, row.args["seconds"]))

    def _all_planned(self, content: bytes) -> bool:
        """Tell whether nothing that is under way may still rightly start a run on a content."""
        results = self.world.storage.buckets[RESULTS]
        for key, stored in self.world.storage.buckets[VIDEOS].items():
            if stored.data == content:
                there = results.get(layout.planned(layout.file_id_of(VIDEOS, key)))
                if there is None:
                    return False
                if Planned.model_validate_json(there.data).etag != stored.info.etag:
                    return False
        asked = {n for n in results if "/asked/" in n and ".planned." not in n}
        return all(n.replace(".json", ".planned.json") in results for n in asked)

    # -- what must be true in the end

    def teardown(self) -> None:
        """Wake everybody, settle, and compare with what was put there."""
        try:
            for frozen in self.frozen:
                frozen.wake()
            self.world.settle()
            self._check_videos()
            self._check_runs()
            self._check_index()
            self._check_gone()
        finally:
            self.world.end()
            shutil.rmtree(self.folder)

    def _check_videos(self) -> None:
        index = self.world.context.index
        there = self.world.storage.buckets[VIDEOS]
        rows = index.files(limit=1000).rows
        assert {row.key for row in rows if row.state != "film gone"} == set(there)
        # Of a film that was removed, what was made of it is listed as long as it is there.
        records = self.world.storage.buckets[RESULTS].items()
        made = [s.data for key, s in records if key.endswith("/video.json")]
        films = [VideoRecord.model_validate_json(data) for data in made]
        left = {film.video.key for film in films if film.refusal is None} - set(there)
        assert {row.key for row in rows if row.state == "film gone"} == left
        for key, stored in there.items():
            row = index.file(layout.file_id_of(VIDEOS, key))
            assert row is not None
            refused = stored.data in {b"bad", b"poison"}
            assert row.state == ("refused" if refused else "ready"), row
            assert (row.etag, row.size) == (stored.info.etag, len(stored.data))
            if not refused and stored.data not in self.touched:
                runs = index.analyses(limit=1000).rows
                ends = {run.state for run in runs if _made_of(run, stored.data)}
                assert ends == {"succeeded"}, (key, runs)
                mine = index.places_of_file(row.file_id)
                assert {run.state for run in mine if _made_of(run, stored.data)} == {"succeeded"}

    def _check_runs(self) -> None:
        objects = self.world.storage.buckets[RESULTS]
        requests = {key.rsplit("/", 1)[0] for key in objects if key.endswith("/request.json")}
        ended = {key.rsplit("/", 1)[0] for key in objects if key.endswith("/result.json")}
        assert requests <= ended
        touched = {hashlib.sha256(content).hexdigest() for content in self.touched}
        made: dict[str, dict[str, str]] = {}
        for run in ended & requests:
            result = Result.model_validate_json(objects[f"{run}/result.json"].data)
            files = {artefact.plain_name: artefact.sha256 for artefact in result.artefacts}
            # The child makes other bytes each time: one that ran twice has two of them.
            assert made.setdefault(result.analysis_id, files) == files or result.sha256 in touched
            assert run.startswith(f"{layout.video_prefix(VIDEOS, result.video.key)}/")
            for artefact in result.artefacts:
                data = objects[f"{run}/{artefact.object_name}"].data
                assert hashlib.sha256(data).hexdigest() == artefact.sha256, (run, artefact)

    def _check_index(self) -> None:
        """An index made anew from the buckets has the same rows, whatever has become the rule."""
        before = self._rows()
        self.world.reconciler.reindex()
        # What people have cleared away is looked at anew.
        self.world.settle()
        assert self._rows() == before
        self.world.settings = self.world.settings.model_copy(
            update={"default_args": {"seconds": 9}}
        )
        self.world.lose_index()
        self.world.settle()
        assert self._rows() == before

    def _check_gone(self) -> None:
        """What was deleted stays deleted until somebody asks or uploads again."""
        runs = self.world.context.index.analyses(limit=1000).rows
        for content, seconds in self.gone:
            assert not any(_made_of(r, content) and r.args["seconds"] == seconds for r in runs)

    def _rows(self) -> dict[str, Any]:
        index = self.world.context.index
        files: list[FileRow] = index.files(limit=1000).rows
        runs: list[AnalysisRow] = index.analyses(limit=1000).rows
        states = {row.file_id: (row.key, row.etag, row.state, row.sha256) for row in files}
        # All that lists show of a run, but for when a message was sent last.
        return states | {row.analysis_id: replace(row, enqueued_at=None) for row in runs}


def _made_of(row: AnalysisRow, content: bytes) -> bool:
    from handlers.runs import validation
    from posedrop import analyses

    request = validation.ValidRequest(analyses.get(row.analysis), row.args, None)
    sha256 = hashlib.sha256(content).hexdigest()
    return validation.analysis_id_of(sha256, request, None) == row.analysis_id


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    # A failure is told as it was found: making it small can take minutes.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
