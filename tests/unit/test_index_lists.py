"""Lists of files and runs: pages, filters, and words that anybody may ask for."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posedrop.buckets.records.batches import BatchFilm, BatchFilms
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.videos import VideoRef
from posedrop.errors import BadRequestError
from posedrop.index import pages as pages_module
from posedrop.index import search
from posedrop.index.index import Index
from posedrop.index.listing import Order, to_cursor
from tests.support.index_rows import (
    BUCKET,
    NOW,
    judged,
    receive,
    request_of,
    result_of,
    run_of,
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


def test_runs_of_a_batch(index: Index) -> None:
    """A batch has the runs that it made or found, whatever else is asked of them at once."""
    for number in range(8):
        index.file_ingested(video_record(number))
        index.analysis_requested(request_of(number), run_of(number))
    for number in (2, 3):
        index.analysis_finished(result_of(number, "failed"), run_of(number))
    films = [
        BatchFilm(file_id="f", key="k", run_id=request_of(number).analysis_id)
        for number in (1, 2, 3, 5)
    ]
    films += [BatchFilm(file_id="f", key="k", run_id=None), films[0]]
    index.batch_films_added("mine", 0, BatchFilms(films=films, after=None))

    def numbers(**asked: Any) -> list[int]:
        found: list[str] = []
        page = index.analyses(batch="mine", limit=2, **asked)
        while True:
            found += [row.analysis_id for row in page.rows]
            if page.cursor is None:
                return [int(name.removeprefix("run")) for name in found]
            page = index.analyses(batch="mine", limit=2, cursor=page.cursor, **asked)

    assert numbers() == [5, 3, 2, 1]
    assert numbers(order="name") == [1, 2, 3, 5]
    assert sorted(numbers(order="quality")) == [1, 2, 3, 5]
    assert numbers(state="failed") == [3, 2]
    assert numbers(state="failed", prefix="day1/mouse_3") == numbers(query="mouse_3") == [3]
    assert index.analyses(batch="another").rows == []


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
        index.analysis_finished(result_of(number), run_of(number))
    rare = index.files(prefix="day1/mouse_1", limit=5)
    runs = [index.analyses(prefix="day1/mouse_1", order=order) for order in get_args(Order)]
    keys = {row.key for row in index.analyses().rows if row.key.startswith("day1/mouse_1")}
    assert {row.key for row in runs[0].rows} == keys
    assert 0 < len(keys) < 20
    monkeypatch.setattr(pages_module, "_FEW", 1)
    assert rare == index.files(prefix="day1/mouse_1", limit=5)
    assert runs == [index.analyses(prefix="day1/mouse_1", order=o) for o in get_args(Order)]


def name(index: Index, *keys: str) -> None:
    """Tell an index of files with these keys and no others."""
    for row in index.files(limit=1000).rows:
        index.file_removed(row.file_id)
    for number, key in enumerate(keys):
        video = VideoRef(file_id=f"f{number}", bucket=BUCKET, key=key, etag="e", size=1)
        receive(index, video_record(number).model_copy(update={"video": video}))


@pytest.mark.parametrize(
    ("key", "queries"),
    [
        (
            "Café/mouse_3-day1.mp4",
            "mouse|MOUSE|mou|ous|use_3-d|mouse_3|3-day1.mp4|day1 mouse|cafe|afé/|m 3 mp|é/m",
        ),
        ("実験マウス01.mp4", "マウス|実験|験マ|ス01|ﾏｳｽ|ス|\uff10\uff11|01 マウス|MP4"),
        ("小鼠视频/第2天.mp4", "小鼠|鼠视|第2|2天|天.m|频/第"),
        (unicodedata.normalize("NFD", "쥐실험_가방.avi"), "쥐|실험|쥐실|험_가|가방"),
        ("M12cam2.mp4", "cam2|12c|m2.|m12 cam2|CAM"),
        (unicodedata.normalize("NFD", "Müller/Maße.mp4"), "müll|üll|MÜLLER|ulle|masse|aße"),
        ("DIŞ_\u0131ş\u0131k.mp4", "d\u0131ş|DIŞ|\u0131ş\u0131|IŞIK"),
        ("мышь_Опыт.mkv", "МЫШЬ|ышь|пыт|опыт мышь"),
        ("หนูทดลอง.mp4", "ทดล|ลอง|หนู"),
        ("تجربة الفأر.mp4", "جرب|الفأر|ربة ال"),
        ("चूहा प्रयोग.mp4", "चूह|योग"),
        ("🐁🐀 in the maze!!.mp4", "🐀|🐁🐀|e ma|maz|!!.|aze!"),
        ("\uff23\uff21\uff2d\uff12 ｶﾞﾗｽ.mp4", "cam2|ガラス|ラス|ｶﾞﾗ"),
        ('a"b*c.mp4', 'a"b|"b*|b*c'),
    ],
)
def test_search_finds_what_is_inside_of_names(index: Index, key: str, queries: str) -> None:
    """Any three characters, two of scripts without spaces; in any case, width and Unicode form."""
    name(index, "nothing/like_it.txt", key)
    for query in queries.split("|"):
        assert [row.key for row in index.files(query=query).rows] == [key], query
    for query in ("mouse rat", "猫", "ネズミ", "cam3", "zzz"):
        assert index.files(query=query).rows == []


_NAMES = st.text(
    st.one_of(
        st.sampled_from("aBz019_-/. äßİｶﾞマ実験쥐мฟูع🐁é"),
        st.characters(exclude_categories=["Cs", "Cc", "Cf", "Mn", "Mc", "Me"]),
    ),
    min_size=3,
    max_size=40,
).filter(lambda key: not key.isspace())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=_NAMES, data=st.data())
def test_any_part_of_any_name_finds_it(index: Index, key: str, data: st.DataObject) -> None:
    """Three characters that stand side by side, whichever; two where they are dense."""
    name(index, key, "other")
    begin = data.draw(st.integers(0, len(key) - 3))
    part = key[begin : data.draw(st.integers(begin + 3, len(key)))]
    if not search.asked(part):
        assert len("".join(search.spelled(part).split())) < 3  # spaces, and what is not seen
        return
    assert key in [row.key for row in index.files(query=part).rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("鼠実験マウスかな쥐실험한글", min_size=2, max_size=2), st.text(max_size=9))
def test_any_two_dense_characters_find_a_name(index: Index, two: str, around: str) -> None:
    """Whatever stands beside them."""
    name(index, f"x{around}{two}{around}")
    assert len(index.files(query=two).rows) == 1


def test_a_search_of_many_names_goes_on_by_its_cursor(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page looks at so many names that are likely; those after it are found with its cursor."""
    monkeypatch.setattr(pages_module, "MAX_LOOKED_AT", 4)
    name(index, "abcd", *["abc-bcd"] * 10, "abcd", *["abc-bcd"] * 3)
    pages = [index.files(query="abcd")]
    while pages[-1].cursor is not None:
        pages.append(index.files(query="abcd", cursor=pages[-1].cursor))
    assert [[row.file_id for row in page.rows] for page in pages] == [["f11"], [], [], ["f0"]]


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


SCORES = st.none() | st.sampled_from([0.0, 61.3, 100.0]) | st.floats(0, 100)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(SCORES, max_size=12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_runs_in_order_of_quality(
    index: Index, scores: list[float | None], limit: int, order: Random
) -> None:
    """The lowest score first, of one score the newest; last, whatever has none: page by page."""
    index.reset()
    numbers = list(range(len(scores)))
    order.shuffle(numbers)
    for number in numbers:
        index.analysis_requested(request_of(number), run_of(number))
        if scores[number] is not None or number % 2:
            index.analysis_finished(judged(result_of(number), scores[number]), run_of(number))
    # Two scores are one if what they lack of 100 is one number.
    badness = [-1 if score is None else 100 - score for score in scores]
    wanted = sorted(numbers, key=lambda number: (badness[number], number), reverse=True)
    for filters in ({}, {"query": "mouse"}, {"analysis": "deeplabcut_2d"}):
        seen, cursor = [], None
        while True:
            page = index.analyses(order="quality", limit=limit, cursor=cursor, **filters)
            seen += [row.run for row in page.rows]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [run_of(number) for number in wanted]
    for number in numbers:
        file_id = request_of(number).video.file_id
        assert len(index.analyses(order="quality", file_id=file_id).rows) == 1
        row = index.analysis(request_of(number).analysis_id)
        assert row is not None
        assert row.quality == scores[number]
        assert row.quality_reasons == (None if scores[number] is None else ("it is dark",))


def test_a_cursor_is_of_one_order(index: Index) -> None:
    """What one list has answered, another can't go on with; nor with what is no number."""
    for number in range(3):
        index.analysis_finished(judged(result_of(number), 50), run_of(number))
    newest = index.analyses(limit=1).cursor
    assert newest is not None
    for order, cursor in (
        ("quality", newest),
        ("newest", index.analyses(order="quality", limit=1).cursor),
        ("quality", to_cursor(float("nan"), 1)),
        ("quality", to_cursor(float("inf"), 1)),
        ("quality", to_cursor(1, 2, 3)),
        ("quality", to_cursor(50, 0.5)),
        ("quality", to_cursor(50, 10**400)),
        ("newest", to_cursor(10**400)),
    ):
        with pytest.raises(BadRequestError):
            index.analyses(order=order, cursor=cursor)


_FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["succeeded", "failed", "queued"]),
        "analysis": st.sampled_from(["deeplabcut_2d", "dummy"]),
        "model": st.sampled_from(["mice", "rats"]),
        "asked_by": st.sampled_from(["api", "folder"]),
        "prefix": st.sampled_from(["day", "day1/", "day1/mouse_1", "é"]),
    },
)


@pytest.fixture(scope="module")
def various(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index of runs that differ in all that they can be filtered by."""
    index = Index(tmp_path_factory.mktemp("various") / "index.sqlite")
    random = Random(7)
    for number in range(60):
        request = request_of(number)
        model = ModelRef(name=random.choice(["mice", "rats"]), digest="d" * 16)
        key = f"day{number % 3}/mouse_{random.randrange(30)}.mp4"
        changes = {
            "analysis": random.choice(["deeplabcut_2d", "dummy"]),
            "video": request.video.model_copy(update={"key": key}),
            "model": model,
        }
        asked = random.choice(["api", "folder"])
        index.file_ingested(video_record(number).model_copy(update={"video": changes["video"]}))
        index.analysis_requested(request.model_copy(update={**changes, "asked_by": asked}), key)
        if number % 5:
            state = random.choice(["succeeded", "failed"])
            ended = judged(result_of(number, state), random.choice([None, 50, 70.5]))
            index.analysis_finished(ended.model_copy(update=changes), key)
    yield index
    index.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_FILTERS, st.sampled_from(get_args(Order)), st.integers(1, 9), st.integers(1, 70))
def test_any_filters_in_any_order_give_each_run_once(
    various: Index, filters: dict[str, str], order: Order, limit: int, walked: int
) -> None:
    """Page by page, however few rows a page looks at, and whether a prefix is rare or common."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages_module, "MAX_WALKED", walked)
        patch.setattr(pages_module, "_FEW", walked)
        seen, cursor = [], None
        while True:
            page = various.analyses(order=order, limit=limit, cursor=cursor, **filters)
            assert len(page.rows) <= limit
            seen += page.rows
            cursor = page.cursor
            if cursor is None:
                break
    prefix = filters.pop("prefix", "")
    wanted = [
        row
        for row in various.analyses(limit=1000).rows
        if row.key.startswith(prefix)
        and all(getattr(row, name) == value for name, value in filters.items())
    ]
    if order == "quality":
        wanted.sort(key=lambda row: -1 if row.quality is None else 100 - row.quality, reverse=True)
    elif order == "name":
        wanted.sort(key=lambda row: (row.key, row.created_at))
    assert [row.analysis_id for row in seen] == [row.analysis_id for row in wanted]


def test_files_by_name(index: Index) -> None:
    """As the store sorts keys, page by page, of one state or all."""
    for number in range(30):
        index.file_ingested(video_record(number, refused=number % 3 == 0))
    keys = sorted(row.key for row in index.files(limit=100).rows)
    for state, prefix in ((None, ""), (None, "day1/mouse_1"), ("refused", None)):
        seen, cursor = [], None
        while True:
            page = index.files(order="name", state=state, prefix=prefix, limit=4, cursor=cursor)
            seen += [row.key for row in page.rows]
            cursor = page.cursor
            if cursor is None:
                break
        refused = {video_record(n).video.key for n in range(0, 30, 3)}
        assert seen == [
            key
            for key in keys
            if key.startswith(prefix or "") and (state is None or key in refused)
        ]


def test_models_are_counted_by_their_runs(index: Index) -> None:
    """Runs count for the version that they used; a removed run does not, nor one without model."""
    for number, digest in enumerate(["old", "new", "new", None]):
        request = request_of(number)
        model = ModelRef(name="mice", digest=digest) if digest is not None else None
        index.analysis_requested(request.model_copy(update={"model": model}), f"runs/{number}")
    assert index.models_used() == {
        "old": (1, request_of(0).created_at),
        "new": (2, request_of(2).created_at),
    }
    index.analysis_removed(request_of(2).analysis_id)
    assert index.models_used()["new"] == (1, request_of(1).created_at)
