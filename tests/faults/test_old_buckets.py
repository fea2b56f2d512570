"""What an older posedrop left of films whose folder's rule was wrong, in the hands of today's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handlers import upload
from posedrop import layout
from tests.faults.test_rules import lose, rule, set_rule, tell
from tests.faults.world import RESULTS, VIDEOS, World
from tests.old_buckets import OldBuckets

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
