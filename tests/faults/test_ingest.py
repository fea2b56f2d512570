"""Whatever a decoder does with a film, its ingest ends; what the machine does is not counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers import upload
from handlers.runs import pending, results
from handlers.upkeep import reingest
from posedrop.api.files import ReingestRequest
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Attempt
from posedrop.buckets.records.videos import VideoRecord
from posedrop.errors import (
    AnalysisError,
    ChildDiedError,
    ObjectChangedError,
    RefusedVideoError,
    StorageError,
)
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.world import PROBE, Child, World
from worker.jobs.ingest import MAX_DIED


class Decoder(Child):
    """The child: of a film that begins with ``poison`` it does as it is told."""

    def __init__(self, does: Callable[[Path], Any]) -> None:
        self.does = does
        self.decodes: list[bytes] = []

    def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        if task != "probe":
            return super().call(task, payload, **more)
        path = Path(payload["video"])
        film = path.read_bytes()
        self.decodes.append(film)
        if film.startswith(b"poison"):
            answer: dict[str, Any] = self.does(path)
            return answer
        return super().call(task, payload, **more)


def raising(error: BaseException) -> Callable[[Path], Any]:
    """Return what raises an error."""

    def does(_: Path) -> Any:
        raise error

    return does


def poisoned(world: World, does: Callable[[Path], Any], key: str = "poison.mp4") -> Decoder:
    """Put a film of which the decoder does so, and have it noticed."""
    world.child = decoder = Decoder(does)
    world.storage.put(VIDEOS, key, b"poison")
    world.reconciler.round()
    return decoder


def record(world: World, key: str = "poison.mp4") -> VideoRecord | None:
    """Return the video.json of a film."""
    found = world.storage.buckets[RESULTS].get(f"{layout.video_prefix(VIDEOS, key)}/video.json")
    return VideoRecord.model_validate_json(found.data) if found else None


def attempts(world: World, key: str = "poison.mp4") -> list[Attempt]:
    """Return the attempts to ingest what lies under a key."""
    there = world.storage.buckets[VIDEOS][key]
    folder = layout.ingest(layout.file_id_of(VIDEOS, key), there.info.etag)
    records = world.storage.buckets[RESULTS]
    keys = [name for name in records if name.startswith(f"{folder}/")]
    return [Attempt.model_validate_json(records[name].data) for name in sorted(keys, key=len)]


def reason(world: World, key: str = "poison.mp4") -> str | None:
    """Return why a film was refused, None if it was not."""
    found = record(world, key)
    return found.refusal.reason if found is not None and found.refusal is not None else None


def probes() -> Iterator[dict[str, Any]]:
    """Yield what can't be a probe, each wrong in one place."""
    yield {}
    yield {"probe": None}
    yield {"probe": [1, 2]}
    for name, value in [
        ("fps", float("nan")),
        ("fps", float("inf")),
        ("fps", 0.0),
        ("duration", -1.0),
        ("duration", float("inf")),
        ("frames", 0),
        ("frames", 2**63),
        ("width", 0),
        ("width", 2**40),
        ("rotation", 10**9),
        ("codec", "x" * 10_000),
        ("pixel_format", None),
    ]:
        yield {"probe": {**PROBE, name: value}}


FAULTS: list[Callable[[Path], Any]] = [
    raising(AnalysisError("AttributeError: no codec_tag", code="internal")),
    raising(RefusedVideoError("its decoder failed", code="decoder_failed")),
    raising(AnalysisError("MemoryError: 2^31 entries", code="out_of_memory")),
    raising(ChildDiedError("cpu: the child process was ended by SIGSEGV")),
    raising(ChildDiedError("cpu: no answer within 180 s, killed", code="timeout")),
    raising(RecursionError("an answer nested too deep")),
    raising(OSError(5, "what the container raised")),
    *(lambda _, answer=answer: answer for answer in probes()),
]


@pytest.mark.parametrize("does", FAULTS)
def test_a_film_of_which_the_decoder_fails_is_refused_after_three_decodes(
    world: World, does: Callable[[Path], Any]
) -> None:
    """Three attempts, each recorded before its decode; downloaded once; then words, for good."""
    world.cache_bytes = 2**20
    decoder = poisoned(world, does)
    for _ in range(5):
        for message in world.messages():
            world.work(message)
    assert decoder.decodes == [b"poison"] * 3
    assert [(a.number, a.outcome, a.task) for a in attempts(world)] == [
        (number, "failed", "ingest") for number in (1, 2, 3)
    ]
    found = record(world)
    assert found is not None
    assert found.refusal is not None
    assert found.refusal.reason == "decoder_failed"
    assert "failed 3 times" in found.refusal.message
    last = attempts(world)[-1].error
    assert last is not None
    assert last.message[:1000] in found.refusal.message
    assert len(found.refusal.message) < 2000
    assert (found.video.size, found.sha256) == (6, attempts(world)[0].sha256)
    # Kept between the attempts, and no longer.
    assert world.storage.downloads == [("videos", "poison.mp4")]
    assert not list((world.settings.scratch_dir / "cache/videos").iterdir())
    world.settle()
    row = world.context.index.file(found.video.file_id)
    assert row is not None
    assert (row.state, row.refusal_reason) == ("refused", "decoder_failed")
    assert len(decoder.decodes) == 3


def test_others_go_first(world: World) -> None:
    """Of thirty bad films and one good one, the good one is behind one attempt each, not three."""
    for number in range(30):
        poisoned(world, FAULTS[0], f"{number}.mp4")
    world.child = decoder = Decoder(FAULTS[0])
    world.storage.put(VIDEOS, "z.mp4", b"a good film")
    world.reconciler.round()
    waiting = world.messages()
    for message in waiting:
        world.work(message)
    assert len(decoder.decodes) == 31
    found = record(world, "z.mp4")
    assert found is not None
    assert found.probe is not None


def test_a_film_that_was_replaced_leaves_no_thumbnail(world: World) -> None:
    """Its probe ends after the new one's ingest: the picture is that of the film that is there."""

    class Drawing(Child):
        def call(self, task: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
            if task == "probe":
                film = Path(payload["video"]).read_bytes()
                if film == b"the old film":
                    world.storage.put(VIDEOS, "a.mp4", b"the new film")
                    world.settle()
                Path(payload["thumbnail"]).write_bytes(b"\xff\xd8\xff" + film)
            return super().call(task, payload, **more)

    world.child = Drawing()
    world.storage.put(VIDEOS, "a.mp4", b"the old film")
    world.settle()
    found = record(world, "a.mp4")
    assert found is not None
    assert found.video.etag == world.storage.buckets[VIDEOS]["a.mp4"].info.etag
    picture = layout.thumbnail(layout.video_prefix(VIDEOS, "a.mp4"))
    assert world.storage.buckets[RESULTS][picture].data.endswith(b"the new film")


def test_a_refusal_is_no_failure(world: World) -> None:
    """What the decoder refuses itself is decoded once, and keeps its own reason."""
    world.cache_bytes = 2**20
    decoder = poisoned(world, raising(RefusedVideoError("it is text", code="not_a_video")))
    world.settle()
    assert (reason(world), len(decoder.decodes)) == ("not_a_video", 1)
    assert not list((world.settings.scratch_dir / "cache/videos").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        StorageError("is the disk full?", code="scratch_unwritable"),
        ChildDiedError("cpu: the child process did not start", code="not_started"),
    ],
)
def test_what_the_machine_does_counts_as_no_attempt(world: World, error: Exception) -> None:
    """Twenty times without room or child, and then with: the film is ready."""
    left = [error] * 20

    def does(_: Path) -> dict[str, Any]:
        if left:
            raise left.pop()
        return {"probe": PROBE}

    poisoned(world, does)
    for _ in range(30):
        world.clock.pass_(1000)
        for message in world.messages():
            try:
                world.work(message)
            except ChildDiedError:  # for Dramatiq, which comes again
                world.put_back([message])
        world.reconciler.round()
    assert record(world) is not None
    assert reason(world) is None
    assert {a.outcome for a in attempts(world)} == {"handed_back", "done"}


def test_a_film_whose_file_can_not_be_read_is_not_to_blame(world: World) -> None:
    """A decoder that fails of a file that went from the disk says nothing about the film."""
    left = [1] * 5

    def does(path: Path) -> dict[str, Any]:
        if left:
            left.pop()
            path.unlink()
            raise AnalysisError("no such file", code="internal")
        return {"probe": PROBE}

    poisoned(world, does)
    world.settle()
    assert record(world) is not None
    assert reason(world) is None


def test_a_film_that_takes_its_machine_down_each_time_ends(world: World) -> None:
    """Attempts without a word are a killed worker's, and no fault, up to a bound."""
    decoder = poisoned(world, raising(Crash()))
    world.settle()
    assert reason(world) == "decoder_failed"
    assert len(decoder.decodes) == MAX_DIED
    assert {attempt.outcome for attempt in attempts(world)} == {None}
    words = record(world).refusal.message  # type: ignore[union-attr]
    assert "its worker was killed" in words


#: An ingest makes a dozen calls to the store. For each there is a film that is named like it.
CALLS = range(1, 14)


def put_for_each_call(world: World, film: bytes) -> Decoder:
    """Put a film for each call at which something is to happen."""
    world.child = decoder = Decoder(FAULTS[0])
    for at in CALLS:
        world.storage.put(VIDEOS, f"{at}.mp4", film + str(at).encode())
    world.reconciler.round()
    return decoder


def call_of(message: Any) -> int:
    """Return the call at which something is to happen to an ingest."""
    return int(message.kwargs["key"].partition(".")[0])


@pytest.mark.parametrize("film", [b"poison", b"fine"])
@pytest.mark.parametrize(
    "options", [{}, {"after": True}, {"raises": StorageError}], ids=["cut", "cut after", "away"]
)
def test_a_worker_killed_or_a_store_away_at_any_call(
    world: World, film: bytes, options: dict[str, Any]
) -> None:
    """In each of four attempts, at each step: the end is the same, and no decode too many."""
    decoder = put_for_each_call(world, film)
    for _ in range(4):
        for message in world.messages():
            if message.actor_name == "ingest":
                world.work(message, Gate(call_of(message), **options))
        world.clock.pass_(1000)
        world.reconciler.round()
    world.settle()
    for at in CALLS:
        key, mine = f"{at}.mp4", film + str(at).encode()
        assert record(world, key) is not None
        assert reason(world, key) == ("decoder_failed" if film == b"poison" else None)
        failed = [attempt for attempt in attempts(world, key) if attempt.outcome == "failed"]
        assert len(failed) == (3 if film == b"poison" else 0)
        # One more at most for each time that it was cut short.
        assert decoder.decodes.count(mine) <= 4 + (3 if film == b"poison" else 1)


@pytest.mark.parametrize("film", [b"poison", b"fine"])
def test_two_workers_at_one_ingest(world: World, film: bytes) -> None:
    """One is stopped anywhere, another comes for the same, then the first goes on: one end."""
    decoder = put_for_each_call(world, film)
    messages = [m for m in world.messages() if m.actor_name == "ingest"]
    frozen = [world.freeze(message, call_of(message)) for message in messages]
    for message in messages:
        world.work(message)  # within the lease
    for at in CALLS:
        assert decoder.decodes.count(film + str(at).encode()) <= 2
    world.clock.pass_(1000)
    world.settle()
    for each in frozen:
        if each is not None:
            each.wake()
    world.settle()
    for at in CALLS:
        key, mine = f"{at}.mp4", film + str(at).encode()
        assert reason(world, key) == ("decoder_failed" if film == b"poison" else None)
        row = world.context.index.file(layout.file_id_of(VIDEOS, key))
        assert row is not None
        assert row.state == ("refused" if film == b"poison" else "ready")
        assert decoder.decodes.count(mine) <= (5 if film == b"poison" else 2)


def test_records_that_can_not_be_read_hold_nothing_up(world: World) -> None:
    """A damaged attempt counts as failed, a damaged video.json is written anew."""
    poisoned(world, FAULTS[0])
    world.storage.put(RESULTS, "poison.mp4/video.json", b"{")
    for number in range(1, 3):
        file_id = layout.file_id_of(VIDEOS, "poison.mp4")
        etag = world.storage.buckets[VIDEOS]["poison.mp4"].info.etag
        world.storage.put(RESULTS, f"{layout.ingest(file_id, etag)}/{number}.json", b"{")
    for message in world.messages():
        world.work(message)
    assert reason(world) == "decoder_failed"


def test_a_deleted_film_takes_its_attempts_along(world: World) -> None:
    """By DELETE /upload, or by an S3 tool: the same film, put again, has all its attempts."""
    for remove in (
        lambda: upload.delete(world.context, layout.file_id_of(VIDEOS, "poison.mp4")),
        lambda: world.storage.remove(VIDEOS, "poison.mp4"),
    ):
        decoder = poisoned(world, FAULTS[0])
        world.settle()
        assert (reason(world), len(decoder.decodes)) == ("decoder_failed", 3)
        remove()
        world.settle()
        assert not [key for key in world.storage.buckets[RESULTS] if key.startswith("_posedrop/")]
        world.storage.remove(RESULTS, "poison.mp4/video.json")


@pytest.mark.parametrize("film", [b"poison", b"bad", b"fine"])
@pytest.mark.parametrize("at", range(5, 13))
def test_a_film_that_is_deleted_during_its_ingest_leaves_nothing(
    world: World, film: bytes, at: int
) -> None:
    """No attempt and no thumbnail, whatever its worker was about to write then."""
    world.child = Decoder(FAULTS[0])
    world.storage.put(VIDEOS, "a.mp4", film)
    world.reconciler.round()
    (message,) = world.messages()
    frozen = world.freeze(message, at)
    upload.delete(world.context, layout.file_id_of(VIDEOS, "a.mp4"))
    if frozen is not None:
        frozen.wake()
    world.settle()
    left = list(world.storage.buckets[RESULTS])
    assert not [name for name in left if name.startswith("_posedrop/") or name.endswith(".jpg")]


# -- looking anew ----------------------------------------------------------------------------------


def refused_of_old(world: World, *keys: str) -> None:
    """Have films that an older posedrop refused, and that are fine now."""
    world.child = Decoder(raising(RefusedVideoError("not today", code="not_a_video")))
    for key in keys:
        world.storage.put(VIDEOS, key, f"poison {key}".encode())
    world.reconciler._old_refusals.go_on()
    world.settle()
    for key in keys:
        assert reason(world, key) == "not_a_video"
        name = f"{key}/video.json"
        old = json.loads(world.storage.buckets[RESULTS][name].data)
        del old["ingest_version"]
        world.storage.put(RESULTS, name, json.dumps(old).encode())
    world.close()
    world.open()
    world.child = Decoder(lambda _: {"probe": PROBE})


def test_what_an_older_posedrop_refused_is_looked_at_anew_once(world: World) -> None:
    """A few a round; what is fine now follows its rules; a refusal of today is not sent again."""
    keys = [f"{number:02}.mp4" for number in range(2 * reingest.SENT)]
    refused_of_old(world, *keys)
    assert world.reconciler.round().ingests_sent == reingest.SENT
    # While others wait, one at a time.
    assert world.reconciler.round().ingests_sent == 1
    world.settle()
    for key in keys:
        row = world.context.index.file_by_key(VIDEOS, key)
        assert row is not None
        assert (row.state, row.planned) == ("ready", True)
    runs = world.context.index.analyses(limit=100).rows
    assert [run.state for run in runs] == ["succeeded"] * len(keys)


def test_what_is_refused_again_is_not_looked_at_a_third_time(world: World) -> None:
    """Its record says that this posedrop saw it, whatever is started again."""
    refused_of_old(world, "a.mp4")
    world.child = decoder = Decoder(raising(RefusedVideoError("never", code="not_a_video")))
    for _ in range(3):
        world.settle()
        world.lose_index()
    assert len(decoder.decodes) == 1


@pytest.mark.parametrize("after", [False, True])
def test_looking_anew_may_be_cut_short(world: World, after: bool) -> None:
    """A process that is killed at it leaves a refusal, or what will be ingested."""
    keys = [f"{at}.mp4" for at in range(1, 6)]
    refused_of_old(world, *keys)
    for at, key in enumerate(keys, 1):
        with world.storage.gate(Gate(at, after=after)), contextlib.suppress(Crash):
            reingest.reingest(world.context, ReingestRequest(prefix=key))
    world.messages()  # are lost
    world.close()
    world.open()
    world.settle()
    for key in keys:
        row = world.context.index.file_by_key(VIDEOS, key)
        assert row is not None
        assert (row.state, row.planned) == ("ready", True)


def test_a_worker_of_an_older_posedrop_has_it_only_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refuses again, as it did before, is not sent round after round."""
    keys = [f"{at}.mp4" for at in range(reingest.SENT + 1)]
    refused_of_old(world, *keys)
    monkeypatch.setattr("worker.jobs.ingest.INGEST_VERSION", 1)
    world.child = decoder = Decoder(raising(RefusedVideoError("not yet", code="not_a_video")))
    world.settle()
    assert len(decoder.decodes) == len(keys)


def test_a_question_that_was_refused_is_asked_again(world: World) -> None:
    """Under the id that it has: what was asked before the ingest is run when the film is fine."""
    world.storage.put(VIDEOS, "a.mp4", b"poison a")
    world.tell(world.storage.events)
    row = world.context.index.file_by_key(VIDEOS, "a.mp4")
    assert row is not None
    asked = pending.ask(world.context, row.file_id, "dummy", {"seconds": 0}, force=False)
    refused_of_old(world, "a.mp4")
    assert results.read(world.context, asked.analysis_id).status == "failed"
    world.settle()
    assert results.read(world.context, asked.analysis_id).status == "succeeded"
    world.lose_index()
    world.settle()
    assert results.read(world.context, asked.analysis_id).status == "succeeded"
    assert len(world.context.index.analyses().rows) == 1


def test_asking_for_it(world: World) -> None:
    """Below a prefix, also what this posedrop refused, with all its attempts; the others stay."""
    for key in ("day1/a.mp4", "day1/b.mp4", "day2/a.mp4"):
        poisoned(world, FAULTS[0], key)
    world.storage.put(VIDEOS, "day1/fine.mp4", b"fine")
    world.settle()
    world.child = decoder = Decoder(FAULTS[0])
    answer = reingest.reingest(world.context, ReingestRequest(prefix="day1/"))
    assert {item.key for item in answer.items} == {"day1/a.mp4", "day1/b.mp4"}
    assert answer.next is None
    row = world.context.index.file_by_key(VIDEOS, "day1/a.mp4")
    assert row is not None
    assert (row.state, row.refusal_reason) == ("received", None)
    world.settle()
    assert len(decoder.decodes) == 6
    assert reason(world, "day1/a.mp4") == reason(world, "day2/a.mp4") == "decoder_failed"


# -- where results lie -----------------------------------------------------------------------------


def test_results_that_lie_below_the_name_that_is_reserved_now_are_found(world: World) -> None:
    """What an older posedrop made of `_posedrop/a.mp4` is listed, served, used and deleted."""
    key = "_posedrop/a.mp4"
    world.storage.put(VIDEOS, "a.mp4", b"a film")
    world.settle()
    world.storage.put(VIDEOS, key, b"a film")
    file_id = layout.file_id_of(VIDEOS, "a.mp4")
    for name, stored in list(world.storage.buckets[RESULTS].items()):
        if name.startswith("a.mp4/"):
            data = stored.data.replace(b'"a.mp4"', f'"{key}"'.encode())
            data = data.replace(file_id.encode(), layout.file_id_of(VIDEOS, key).encode())
            world.storage.put(RESULTS, f"_posedrop/{name}", data)
    upload.delete(world.context, file_id)
    world.lose_index()
    world.child = decoder = Decoder(raising(ObjectChangedError("unreachable")))
    world.settle()
    row = world.context.index.file_by_key(VIDEOS, key)
    assert row is not None
    assert row.state == "ready"
    assert decoder.decodes == []
    (run,) = world.context.index.analyses().rows
    assert (run.state, run.run.startswith(f"{key}/dummy-")) == ("succeeded", True)
    # What comes after is beside it, and all of it goes together.
    pending.ask(world.context, row.file_id, "dummy", {"seconds": 1}, force=False)
    world.settle()
    runs = world.context.index.analyses().rows
    assert {r.run.rsplit("/", 1)[0] for r in runs} == {key}
    upload.delete(world.context, row.file_id)
    left = [name for name in world.storage.buckets[RESULTS] if name.startswith("_posedrop/")]
    assert left == []
    # A new one lies where nothing of posedrop's own is.
    world.storage.put(VIDEOS, key, b"another film")
    world.settle()
    assert record(world, key) is not None
    assert layout.video_prefix(VIDEOS, key).startswith("_keys/")


def test_what_is_too_large_is_not_downloaded(world: World) -> None:
    """An upload that did not say its size has none bound: the limit holds before a byte is read."""
    world.settings = world.settings.model_copy(update={"max_video_bytes": 100})
    world.close()
    world.open()
    world.storage.put(VIDEOS, f"uploads/{layout.new_file_id('a' * 12)}/large.mp4", bytes(101))
    world.settle()
    (row,) = world.context.index.files().rows
    assert (row.state, row.refusal_reason) == ("refused", "too_many_bytes")
    assert world.storage.downloads == []


@pytest.mark.parametrize("cut", [0, *range(1, 12)])
def test_a_film_put_again_with_metadata_runs_as_they_ask(tmp_path: Path, cut: int) -> None:
    """The same bytes, which nobody looks at again; whatever is killed on the way."""
    world = World(tmp_path, default_analysis=None)
    world.storage.put(VIDEOS, "again.mp4", b"again")
    world.tell(world.storage.events)
    world.settle()
    assert world.context.index.analyses(limit=9).rows == []
    world.clock.pass_(2)
    metadata = {"analysis": "dummy", "args": '{"seconds": 0.25}'}
    world.storage.put(VIDEOS, "again.mp4", b"again", metadata=metadata)
    gate = Gate(cut) if cut else None
    for _ in range(2):
        world.tell(world.storage.events[-1:], gate)
        gate = None
    world.settle()
    (run,) = world.context.index.analyses(limit=9).rows
    assert (run.state, run.args["seconds"], run.asked_by) == ("succeeded", 0.25, "metadata")
    world.lose_index()
    world.settle()
    (same,) = world.context.index.analyses(limit=9).rows
    assert same.analysis_id == run.analysis_id
