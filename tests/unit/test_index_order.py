"""The same rows in whatever order, from any number of threads and processes."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posedrop.index.index import Index, IndexBusyError
from posedrop.transport.events import ObjectCreated
from tests.support.index_rows import (
    BUCKET,
    ERROR,
    NOW,
    at,
    created,
    everything,
    pending_request,
    receive,
    request_of,
    result_of,
    run_of,
    video_record,
)

Telling = Callable[[Index], object]


def _tellings() -> list[Telling]:
    """Return all records of three videos with their runs, each told once."""
    tellings: list[Telling] = []
    for number in range(3):
        old, new = (
            video_record(number, version=0),
            video_record(number, version=1, refused=number == 2),
        )
        identity = request_of(number).analysis_id
        pending = pending_request(number).pending_id
        name = (old.video.file_id, BUCKET, old.video.key, at(-9))
        tellings += [
            methodcaller("expect_file", *name),
            partial(receive, video=old),
            methodcaller("file_ingested", old),
            partial(receive, video=new),
            methodcaller("analysis_requested", request_of(number), run_of(number)),
            methodcaller("analysis_running", identity),
            methodcaller("pending_added", pending_request(number)),
        ]
        if number:
            tellings += [
                methodcaller("file_ingested", new),
                methodcaller("analysis_finished", result_of(number, "failed"), run_of(number)),
                methodcaller("pending_resolved", pending, identity),
            ]
        else:
            tellings.append(methodcaller("pending_failed", pending, ERROR))
    return tellings


@pytest.fixture(scope="module")
def told_in_order(tmp_path_factory: pytest.TempPathFactory) -> object:
    index = Index(tmp_path_factory.mktemp("order") / "index.db")
    for tell in _tellings():
        tell(index)
    told = everything(index)
    index.close()
    return told


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(range(len(_tellings()))),
    again=st.lists(st.integers(0, len(_tellings()) - 1), max_size=12),
    seed=st.randoms(use_true_random=False),
)
def test_any_order_and_any_doubling_give_the_same_rows(
    index: Index, told_in_order: object, order: list[int], again: list[int], seed: random.Random
) -> None:
    """Events late, doubled and out of order change nothing but time."""
    index.reset()
    doubled = list(order)
    for number in again:
        doubled.insert(seed.randint(0, len(doubled)), number)
    tellings = _tellings()
    for number in doubled:
        tellings[number](index)
    assert told_in_order == everything(index)


def test_rebuilt_index_has_the_same_rows(index: Index, tmp_path: Path) -> None:
    """Emptied, or deleted and made anew, the index comes back as it was."""
    for tell in _tellings():
        tell(index)
    index.record_events([created(1)], NOW)
    index.dead_letter("odd", {}, NOW)
    before = everything(index)
    index.reset()
    assert index.files().rows == []
    assert index.analyses(query="deeplabcut").rows == []
    for tell in reversed(_tellings()):
        tell(index)
    assert before == everything(index)

    fresh = Index(tmp_path / "deep" / "er" / "fresh.db")
    for tell in _tellings():
        tell(fresh)
    assert index.files().rows == fresh.files().rows
    assert index.analyses().rows == fresh.analyses().rows
    fresh.close()


def test_eight_threads_write_and_read_at_once(index: Index) -> None:
    """Threads that tell the same things at once end with the rows of one that tells them alone."""
    tellings = _tellings()
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        order = list(range(len(tellings)))
        random.Random(seed).shuffle(order)
        barrier.wait()
        for number in order:
            tellings[number](index)
            index.record_events([created(number), created(seed * 100 + number)], NOW)
            index.files(query="mouse")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    states = {row.key: row.state for row in index.files().rows}
    assert states == {
        "day1/mouse_0.mp4": "received",
        "day1/mouse_1.mp4": "ready",
        "day1/mouse_2.mp4": "refused",
    }
    assert [row.state for row in index.analyses().rows] == ["failed", "failed", "running"]
    assert index.counts()["events"]["unhandled"] == 8 * len(tellings)


def test_planned_once_by_many_threads(index: Index) -> None:
    """Of many threads that plan the same run exactly one is told that it was the first."""
    with ThreadPoolExecutor(8) as pool:
        first = list(
            pool.map(lambda _: index.analysis_requested(request_of(), run_of()), range(64))
        )
    assert sum(first) == 1


def test_reader_does_not_wait_for_a_writer(index: Index, tmp_path: Path) -> None:
    """While somebody writes, readers see what was there before, at once."""
    index.file_ingested(video_record(1))
    writer = sqlite3.connect(tmp_path / "index.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM uploaded_file")
    impatient = Index(tmp_path / "index.db", timeout=0.01)
    assert len(impatient.files(query="mouse").rows) == 1
    with pytest.raises(IndexBusyError) as caught:
        impatient.file_ingested(video_record(2))
    assert caught.value.code == "index_busy"
    writer.execute("ROLLBACK")
    writer.close()
    impatient.file_ingested(video_record(2))
    assert len(index.files().rows) == 2
    impatient.close()


def test_writer_waits_for_its_turn(index: Index, tmp_path: Path) -> None:
    """A lock that is let go within the timeout is waited for."""
    writer = sqlite3.connect(tmp_path / "index.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, writer.execute, ["ROLLBACK"])
    timer.start()
    index.file_ingested(video_record())
    timer.join()
    writer.close()
    assert len(index.files().rows) == 1


def test_failed_write_leaves_nothing_behind(index: Index) -> None:
    """What was begun and not finished is undone, and the next write works."""
    torn = ObjectCreated(BUCKET, "k2", "e", 2**70, "s", NOW)
    with pytest.raises(OverflowError):
        index.record_events([created(1), torn], NOW)
    assert index.unhandled_events(10) == []
    assert index.record_events([created(1)], NOW) == 1


def _open_and_tell(path: Path, number: int) -> int:
    index = Index(path)
    index.file_ingested(video_record(number))
    count = len(index.files().rows)
    index.close()
    return count


def test_many_processes_open_a_new_index_at_once(tmp_path: Path) -> None:
    """Whoever comes first lays out the tables, the others wait and find them."""
    path = tmp_path / "index.db"
    with multiprocessing.get_context("fork").Pool(8) as pool:
        counts = pool.starmap(_open_and_tell, [(path, number) for number in range(8)])
    assert max(counts) == 8


def test_reopened_index_has_what_it_had(index: Index, tmp_path: Path) -> None:
    """A closed index opens again, without another migration, and has its rows."""
    index.file_ingested(video_record())
    index.close()
    again = Index(tmp_path / "index.db")
    assert [row.key for row in again.files(query="mouse").rows] == ["day1/mouse_0.mp4"]
    again.close()


def test_threads_that_end_leave_no_connection(index: Index) -> None:
    """A thread's connection ends with it, so that many short threads don't use up the files."""
    index.files()
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        thread = threading.Thread(target=index.files)
        thread.start()
        thread.join()
    assert len(list(descriptors.iterdir())) <= before + 2


def test_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    """A file that is no database is told as such, with the way out."""
    path = tmp_path / "index.db"
    path.write_bytes(b"this is not a database, " * 100)
    with pytest.raises(IndexBusyError, match="delete it") as caught:
        Index(path)
    assert caught.value.code == "index_damaged"


def test_index_that_can_not_be_written(tmp_path: Path) -> None:
    """A path that is no file, and a full disk, are told as unwritable."""
    with pytest.raises(IndexBusyError) as caught:
        Index(tmp_path)
    assert caught.value.code == "index_unwritable"


def _fill(index: Index) -> None:
    for number in range(1, 1000):
        index.file_ingested(video_record(number))


def test_full_disk(index: Index) -> None:
    """A disk that is full is told as such; what was there can be read, and goes on later."""
    index.file_ingested(video_record(0))
    connection = index._db.conn
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IndexBusyError) as caught:
        _fill(index)
    assert caught.value.code == "index_unwritable"
    assert index.file(video_record(0).video.file_id) is not None
    connection.execute("PRAGMA max_page_count = 1000000")
    index.file_ingested(video_record(1000))
    assert index.file(video_record(1000).video.file_id) is not None
