"""What an older posedrop left of films whose folder's rule was wrong, in the hands of today's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handlers import upload
from handlers.runs import results
from posedrop.buckets import layout
from tests.faults.test_rules import lose, rule, set_rule, tell
from tests.support.memory_storage import RESULTS, VIDEOS
from tests.support.old_buckets import OldBuckets
from tests.support.world import World

OLD = OldBuckets("cf9bc21")
KEY = "day3/misspelt.mp4"


def done_with(world: World) -> list[str]:
    """Return the runs of the film that are over, by the analysis that their folders name."""
    keys = sorted(world.storage.buckets[RESULTS])
    over = [key for key in keys if key.startswith(f"{KEY}/") and key.endswith("/result.json")]
    return [key.split("/")[-2].split("-")[0] for key in over]


@pytest.mark.parametrize("mend", [tell, lose])
def test_a_film_that_was_rejected_for_its_rule_waits_until_it_is_mended(
    world: World, mend: Callable[[World], None]
) -> None:
    """Mended, the rule reaches it, whether told or found; the failed run of then stays there."""
    for bucket, key in OLD.objects:
        if key.startswith(("day3/", "_planned/")):
            world.storage.put(bucket, key, OLD.read(bucket, key))
    lose(world)
    file_id = layout.file_id_of(VIDEOS, KEY)
    assert upload.describe(world.context, file_id).waiting is not None
    assert done_with(world) == ["rejected"]
    set_rule(world, "day3/", rule(3))
    mend(world)
    assert upload.describe(world.context, file_id).waiting is None
    assert done_with(world) == ["dummy", "rejected"]
    world.lose_index()
    lose(world)
    assert done_with(world) == ["dummy", "rejected"]


def test_a_copy_of_then_gets_results_of_its_own(world: World) -> None:
    """What lies beside the first alone is copied to the second name, once; the first may go."""
    first, second = "day1/mouse.mp4", "day1/copy.mp4"
    for bucket, key in OLD.objects:
        if key.startswith((first, second, "_planned/", "_content/", "_poses/")):
            world.storage.put(bucket, key, OLD.read(bucket, key))
    lose(world)
    (run,) = (run for run in OLD.runs if run.startswith(f"{first}/"))
    copied = run.replace(first, second)
    lists = {a["name"] for a in OLD.runs[run]["artefacts"]}  # type: ignore[index]
    there = world.storage.buckets[RESULTS]
    for name in (*lists, layout.INFERENCE, "attempts/1/run.log"):
        assert there[f"{copied}/{name}"].data == OLD.read(RESULTS, f"{run}/{name}")
    assert results.read(world.context, run[-16:]).file_id == layout.file_id_of(VIDEOS, first)
    upload.delete(world.context, layout.file_id_of(VIDEOS, first))
    lose(world)
    answer = results.read(world.context, run[-16:])
    assert (answer.status, {file.name for file in answer.files}) == ("succeeded", lists)
    # Cleared away, they do not come back.
    for key in [key for key in there if key.startswith(copied)]:
        world.storage.remove(RESULTS, key)
    for _ in range(2):
        lose(world)
        assert not any(key.startswith(copied) for key in there)
        world.lose_index()


def test_an_upload_keeps_the_id_that_was_chosen_for_it_then(world: World) -> None:
    """With and without the index; a folder of a person's that looks like an id is none."""
    (key,) = (key for bucket, key in OLD.objects if bucket == VIDEOS and key.startswith("uploads/"))
    former = key.split("/")[1]
    for bucket, each in OLD.objects:
        if each.startswith((key, "_planned/", "_content/", "_poses/")):
            world.storage.put(bucket, each, OLD.read(bucket, each))
    folder = ["uploads/openfieldsession/one.mp4", "uploads/openfieldsession/two.mp4"]
    for each in folder:
        world.storage.put(VIDEOS, each, b"film " + each.encode())
    # What an older posedrop expected there before it was upgraded.
    world.context.index.expect_file("openfieldsession", VIDEOS, folder[0], world.clock())
    for _ in range(2):
        lose(world)
        rows = {row.key: row for row in world.context.index.files().rows}
        assert rows.keys() == {key, *folder}
        assert rows[key].file_id == former
        assert {rows[each].file_id for each in folder} == {
            layout.make_id(VIDEOS, each) for each in folder
        }
        assert {rows[each].state for each in folder} == {"ready"}
        assert upload.describe(world.context, former).analyses
    upload.delete(world.context, former)
    lose(world)
    assert {row.key for row in world.context.index.files().rows} == set(folder)
