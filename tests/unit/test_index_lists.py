"""Lists of files and runs: pages, filters, and words that anybody may ask for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posedrop import index as index_module
from posedrop.errors import BadRequestError
from posedrop.index import Index
from posedrop.records import (
    VideoRef,
)
from tests.unit.index_rows import (
    BUCKET,
    NOW,
    receive,
    video_record,
)


def test_pages_show_each_row_once_newest_first(index: Index) -> None:
    """All pages together are the list, also while new files arrive between two of them."""
    for number in range(25):
        index.file_ingested(video_record(number))
    seen: list[str] = []
    cursor = None
    for arriving in itertools.count(100):
        page = index.files(cursor=cursor, limit=4)
        seen += [row.file_id for row in page.rows]
        index.file_ingested(video_record(arriving))
        cursor = page.cursor
        if cursor is None:
            break
    expected = [video_record(number).video.file_id for number in reversed(range(25))]
    assert expected == seen


def test_many_files_of_one_moment_are_all_listed(index: Index) -> None:
    """Files that arrived in the same millisecond don't take each other's place."""
    for number in range(400):
        receive(index, video_record(number), last_modified=NOW)
    assert len(index.files(limit=1000).rows) == 400
    pages = [index.files(limit=150)]
    while pages[-1].cursor is not None:
        pages.append(index.files(limit=150, cursor=pages[-1].cursor))
    assert len({row.file_id for page in pages for row in page.rows}) == 400


def test_page_that_is_just_full_has_no_next(index: Index) -> None:
    """A cursor is given only where there is more."""
    for number in range(3):
        index.file_ingested(video_record(number))
    assert index.files(limit=3).cursor is None
    assert index.files(limit=2).cursor is not None
    assert len(index.files(limit=0).rows) == 1
    assert len(index.files(limit=10**9).rows) == 3


@pytest.mark.parametrize("cursor", ["", "x", "!!", "LTE", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"])
def test_broken_cursor_is_a_bad_request(index: Index, cursor: str) -> None:
    """A cursor that was never given out is refused by its name."""
    with pytest.raises(BadRequestError) as caught:
        index.files(cursor=cursor)
    assert caught.value.field == "cursor"


def test_filters(index: Index) -> None:
    """Files are filtered by state, prefix and words, all at once."""
    index.file_ingested(video_record(1))
    index.file_ingested(video_record(2, refused=True))
    receive(index, video_record(3))
    other = VideoRef(file_id="other", bucket=BUCKET, key="day1é/x.mp4", etag="e", size=1)
    receive(index, video_record(4).model_copy(update={"video": other}))
    assert [row.state for row in index.files(state="refused").rows] == ["refused"]
    assert [row.key for row in index.files(prefix="day1é").rows] == ["day1é/x.mp4"]
    assert [row.key for row in index.files(prefix="day1é", query="mouse").rows] == []
    assert [row.key for row in index.files(prefix="day1/", query="mouse 3").rows] == [
        "day1/mouse_3.mp4"
    ]
    assert index.files(prefix="day1/", query="mouse", state="expected").rows == []
    assert len(index.files(prefix="").rows) == 4


def test_common_prefix_lists_the_same_as_a_rare_one(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which index SQLite reads is a matter of speed only."""
    for number in range(20):
        index.file_ingested(video_record(number))
    rare = index.files(prefix="day1/mouse_1", limit=5)
    monkeypatch.setattr(index_module, "_FEW", 1)
    assert rare == index.files(prefix="day1/mouse_1", limit=5)


@pytest.mark.parametrize(
    "query",
    ["mouse", "MOUSE", "mou", "mouse_3", "mouse_3-day1", "3-day1.mp4", "day1 mouse", "cafe"],
)
def test_search_finds_names(index: Index, query: str) -> None:
    """Words and beginnings of words of a name find it, in any case and with or without accents."""
    video = VideoRef(file_id="f", bucket=BUCKET, key="Café/mouse_3-day1.mp4", etag="e", size=1)
    receive(index, video_record().model_copy(update={"video": video}))
    assert [row.file_id for row in index.files(query=query).rows] == ["f"]


@pytest.mark.parametrize(
    "query",
    [
        '"',
        '""',
        "mouse OR rat",
        "NOT mouse",
        "key:mouse",
        "mouse*rat",
        "^rat (",
        "NEAR(a b)",
        "'; DROP TABLE uploaded_file; --",
        "\0mouse\0rat",
        "\ud800",
        "%_",
        "-",
        "日" * 5000,
        "a " * 5000,
    ],
)
def test_hostile_queries_find_nothing_and_break_nothing(index: Index, query: str) -> None:
    """None of what a person types is taken for SQL or for FTS5's language."""
    index.file_ingested(video_record())
    assert index.files(query=query).rows == []
    assert index.analyses(query=query).rows == []
    assert len(index.files(query="mouse").rows) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(), prefix=st.text())
def test_any_query_and_prefix(index: Index, query: str, prefix: str) -> None:
    """Whatever is asked for, there is an answer; a key is found by itself and by its beginning."""
    index.files(query=query, prefix=prefix)
    index.analyses(query=query, file_id=prefix)
    assert index.file_by_key(query, prefix) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_key_is_found_by_prefix(index: Index, key: str) -> None:
    """Any key can be stored, and is listed under each of its beginnings, searched or not."""
    key += " mouse"
    video = VideoRef(file_id="f", bucket=BUCKET, key=key, etag="e", size=1)
    index.file_removed("f")
    receive(index, video_record().model_copy(update={"video": video}))
    for length in range(len(key) + 1):
        assert [row.key for row in index.files(prefix=key[:length]).rows] == [key]
        assert [row.key for row in index.files(prefix=key[:length], query="Mou").rows] == [key]
