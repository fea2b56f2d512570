"""What the page of a run shows: made when it is opened, whatever is lost, killed or removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.runs import viewer
from posedrop.api.viewer import View
from posedrop.buckets import layout
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import FrameRange
from tests.support.memory_storage import RESULTS, VIDEOS, Gate
from tests.support.world import World

FILM = "day1/a.mp4"
#: Making one of them calls the store some fifteen times.
CALLS = 16


class Lab(World):
    """A world with one run that is over, of a film that is told to play in browsers, or not to."""

    def __init__(self, folder: Path, browser: str | None) -> None:
        super().__init__(folder)
        self.child.browser = browser
        self.storage.put(VIDEOS, FILM, b"a film")
        self.settle()
        (row,) = self.context.index.analyses().rows
        self.id, self.run = row.analysis_id, layout.Run(row.run)

    def view(self, **more: Any) -> View:
        """Return what the page shows."""
        return viewer.describe(self.context, self.id, **more)

    def change(self, **changes: Any) -> None:
        """Have the run's result say something else."""
        result = self.storage.read_record(RESULTS, self.run.result, Result)
        assert result is not None
        changed = result.model_copy(update=changes)
        self.storage.put(RESULTS, self.run.result, changed.to_json())
        self.settle()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A run of a film that browsers don't play, or not right."""
    return Lab(tmp_path, "its frames are turned")


def test_poses_and_a_copy_are_made_when_the_page_is_opened(tmp_path: Path) -> None:
    """Whichever call of the worker's is its last, or whose message was lost: both are made."""
    for cut in range(CALLS):
        lab = Lab(tmp_path / str(cut), None)
        view = lab.view()
        assert (view.film.state, view.poses.state) == ("making", "making")
        assert view.poses.message is not None
        for message in lab.messages():
            if cut:
                lab.work(message, Gate(cut))
        lab.settle()
        view = lab.view()
        assert (view.film.state, view.poses.state) == ("there", "there")
        assert view.film.is_copy
        assert view.film.url is not None
        assert "view.mp4" in view.film.url
        lab.end()


def test_a_film_that_browsers_play_is_shown_itself(tmp_path: Path) -> None:
    """A copy of it is made for a browser that asks for one."""
    lab = Lab(tmp_path, "video/mp4")
    film = lab.view().film
    assert film.state == "there"
    assert not film.is_copy
    assert film.url is not None
    assert "a.mp4" in film.url
    assert lab.view(copy=True).film.state == "making"


@pytest.mark.parametrize(
    "changes",
    [
        {"missing": [FrameRange(first=1, last=1)]},
        {"cut": True},
        {"concealed": 1},
        {"timestamps": "interpolated"},
        {"args": {"stride": 5}},
        {"rows": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_film_of_other_frames_than_the_run_is_copied(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """However well browsers play it: they would show what has no row, or at another time."""
    lab = Lab(tmp_path, "video/mp4")
    lab.change(**changes)
    assert lab.view().film.state == "making"


def test_what_is_not_there_is_said_in_words(lab: Lab) -> None:
    """A film that was removed, or replaced by another one, is not shown with these poses."""
    lab.view()
    lab.storage.put(VIDEOS, FILM, b"another film")
    lab.settle()
    words = lab.view().film.message
    assert words is not None
    assert "replaced" in words
    lab.storage.remove(VIDEOS, FILM)
    lab.settle()
    words = lab.view().film.message
    assert words is not None
    assert "removed" in words
