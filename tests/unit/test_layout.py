"""Object keys: made, parsed, refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posedrop.buckets import layout

KEYS = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "x" * 1000,
        "_keys/a",
        "_planned/a.json",
        "_posedrop/a.mp4",
        "_posedrop/ingest",
        "a/video.json/b",
        "day1/a.mp4",
    ]
)
ID = layout.make_id("an analysis")


@given(KEYS)
def test_a_run_is_parsed_as_it_was_made(key: str) -> None:
    """Whatever the video is called, a run's objects lead back to its folder and its id."""
    prefix = layout.video_prefix("videos", key)
    run = layout.run_prefix(prefix, "deeplabcut_2d", ID)
    keys = layout.Run(run)
    found = layout.parse_result_key(keys.result)
    assert found == layout.RunObject(run, prefix, "deeplabcut_2d", ID, "result.json")
    for key in (keys.request, keys.predictions, keys.needs_newer, keys.hand_back(12)):
        assert layout.parse_result_key(key) == found._replace(name=keys.name(key))
        assert key.startswith(keys.folder)
    assert layout.attempt_number(keys.name(keys.attempt(12))) == 12
    assert layout.parse_result_key(layout.video_record(prefix)) == layout.VideoObject(
        prefix, "video.json"
    )
    question, answer = layout.pending_request(prefix, ID), layout.pending_outcome(prefix, ID)
    assert layout.parse_result_key(question) == layout.PendingRequestObject(prefix, ID)
    assert layout.parse_result_key(answer) == layout.PendingOutcomeObject(prefix, ID)
    assert question < answer


@given(KEYS)
def test_results_stay_within_what_stores_take(key: str) -> None:
    """No key of a result is longer than S3's 1,024 bytes, or has a segment that a path can't."""
    prefix = layout.video_prefix("videos", key)
    longest = f"{layout.run_prefix(prefix, 'a' * 40, ID)}/poses_filtered.csv"
    assert len(longest.encode(errors="replace")) <= 1024
    assert not {"", ".", ".."} & set(longest.split("/"))


@given(KEYS, KEYS)
def test_two_videos_never_share_a_folder(one: str, other: str) -> None:
    """Different keys have different folders, and none lies where another's records are."""
    first, second = (layout.video_prefix("videos", key) for key in (one, other))
    assert (first == second) == (one == other)


@given(KEYS, st.text(min_size=1, max_size=100))
def test_attempts_of_an_ingest_are_apart(key: str, etag: str) -> None:
    """Whatever a store's ETags look like, they name no run and leave no folder."""
    file_id = layout.file_id_of("videos", key)
    folder = layout.ingest(file_id, etag)
    assert folder.split("/")[:3] == ["_posedrop", "ingest", file_id]
    assert len(folder.split("/")) == 4
    assert not {"", ".", ".."} & set(folder.split("/"))
    assert layout.parse_result_key(f"{folder}/1.json") is None
    assert layout.number_of(f"{folder}/12.json", folder) == 12
    assert not layout.video_prefix("videos", key).startswith("_posedrop/")


def test_an_etag_like_a_run_names_none() -> None:
    """Nothing says what an ETag is made of."""
    etag = f"etag-{ID}"
    assert layout.parse_result_key(f"{layout.ingest(ID, etag)}/1.json") is None
    assert layout.parse_result_key("_posedrop/ingest/a.mp4/video.json") is not None
    assert layout.former_prefix("_posedrop/a.mp4") == "_posedrop/a.mp4"
    assert layout.former_prefix("_posedrop/../a.mp4") is None
    assert layout.former_prefix("day1/a.mp4") is None


@given(st.text(max_size=400))
def test_a_file_name_is_only_a_name(name: str) -> None:
    """What a client calls its file can't leave the upload's folder nor fill it."""
    safe = layout.safe_filename(name)
    assert "/" not in safe
    assert "\\" not in safe
    assert safe not in {"", ".", ".."}
    assert len(safe.encode()) <= 200
    file_id = layout.new_file_id(layout.make_id(name))
    assert layout.file_id_of("videos", layout.upload_key(file_id, name)) == file_id


_ID_LIKE = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16)


@given(_ID_LIKE | st.just("openfieldsession"), _ID_LIKE, KEYS)
def test_a_folder_named_like_a_file_id_is_none(folder: str, unique: str, name: str) -> None:
    """Two films below it have two ids, unless the name checks itself; those of letters never do."""
    own = layout.new_file_id(unique)
    assert layout.new_file_id(own) == own
    assert layout.is_id(own)
    assert not own.isalpha()
    for key in (f"uploads/{folder}/x.mp4", f"{folder}/{name}", f"a/uploads/{own}/x.mp4"):
        if layout.new_file_id(folder) == folder:
            return  # one in a million
        assert layout.file_id_of("videos", key) == layout.make_id("videos", key)
    assert layout.file_id_of("videos", f"uploads/{own}/x.mp4") == own
    assert layout.former_file_id(f"uploads/{own}/x.mp4") is None
    assert layout.former_file_id(f"uploads/{folder}/x.mp4") == folder


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        ("a.mp4", ["posedrop.json"]),
        (
            f"x/{'y/' * 505}a.mp4",
            [f"x/{'y/' * n}posedrop.json" for n in range(31, -1, -1)] + ["posedrop.json"],
        ),
        ("x/y/a.mp4", ["x/y/posedrop.json", "x/posedrop.json", "posedrop.json"]),
    ],
)
def test_the_nearest_rule_comes_first(key: str, rules: list[str]) -> None:
    """Rules are looked for from the video's own folder up to the bucket."""
    assert layout.folder_rules(key) == rules


def test_ids_are_the_same_everywhere() -> None:
    """An id is made of its parts alone: these are fixed for ever."""
    assert layout.file_id_of("videos", "day1/mouse.mp4") == "so5baj6ir6zwlk5w"
