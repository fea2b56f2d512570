"""video.nvenc: a card encodes pose.mp4 where it can, and x264 where it can't, or no longer."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import pytest

from tests.support import videos
from tests.unit.test_draw import drawn, frames_of, poses, times, walk
from worker.video import canvas, nvenc

#: When the film's frames are shown, in ms.
TIMES = [40 * number + 7 * (number % 3) for number in range(30)]


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    nvenc._tried.clear()
    yield
    nvenc._tried.clear()


class Pretended:
    """A card's encoder: x264, which fails at a frame, or gives something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **faults: Any) -> None:
        self.opened = 0
        self.sides: list[int] = []
        self.fails_at: int | None = faults.get("fails_at")
        self.lacks: int | None = faults.get("lacks")
        self.smallest: int = faults.get("smallest", 0)
        self._real = canvas._h264
        monkeypatch.setattr(canvas, "_h264", self._h264)

    def _h264(self, container: Any, first: Any, encoder: str, options: dict[str, str]) -> Any:
        if encoder == canvas.X264:
            return self._real(container, first, encoder, options)
        assert options["gpu"] == "1"
        self.opened += 1
        of_x264 = canvas._options(canvas.X264, 23, 0, None)
        stream = self._real(container, first, canvas.X264, of_x264)
        return _Stream(self, stream)


class _Stream:
    def __init__(self, card: Pretended, stream: Any) -> None:
        self._card = card
        self._stream = stream
        self._number = 0

    def encode(self, frame: Any = None) -> Any:
        card, number = self._card, self._number
        self._number += 1
        is_film = self._stream.width != nvenc._SIDE
        if card.smallest > self._stream.width or (is_film and number == card.fails_at):
            raise av.error.ExternalError(-542398533, "Generic error in an external library")
        if number == card.lacks:
            return []
        return self._stream.encode(frame)


def film(tmp_path: Path, **encode: str) -> dict[str, Any]:
    source = videos.video(tmp_path / "film", count=30, times=TIMES)
    table = poses(tmp_path / "poses.h5", walk(30))
    return drawn(tmp_path, source, table, **{"device": "cuda:1", **encode})


def whole(tmp_path: Path, expected: list[Fraction]) -> None:
    assert times(tmp_path / "pose.mp4") == expected
    assert len(frames_of(tmp_path)) == len(expected)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_card_encodes_and_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the frames and the times that x264's has."""
    assert film(tmp_path)["encode"]["used"] == "libx264"
    expected = times(tmp_path / "pose.mp4")
    card = Pretended(monkeypatch)
    for _ in range(2):
        assert film(tmp_path, encode="auto")["encode"] == {
            "used": "h264_nvenc", "why": "a card encodes"
        }  # fmt: skip
        whole(tmp_path, expected)
    assert card.opened == 3
    film(tmp_path, encode="cpu")
    film(tmp_path, encode="auto", device="cpu")  # networks are kept from cards
    assert card.opened == 3


@pytest.mark.parametrize("frame", [0, 1, 17, 29, 30])
def test_a_film_that_the_card_fails_at_is_encoded_by_x264(
    frame: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first frame (all its sessions are taken), amid it, or at its end: it is whole."""
    film(tmp_path)
    expected = times(tmp_path / "pose.mp4")
    Pretended(monkeypatch, fails_at=frame)
    told = film(tmp_path, encode="cuda")
    assert told["frames"] == 30
    assert told["encode"]["used"] == "libx264"
    assert "external library" in told["encode"]["why"]
    whole(tmp_path, expected)


def test_a_card_that_loses_a_frame_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames that it is tried with have to come back, when they are to be shown."""
    Pretended(monkeypatch, lacks=4)
    told = film(tmp_path, encode="auto")["encode"]
    assert told["used"] == "libx264"
    assert told["why"].startswith("a card's encoding is of no use: frames are shown at")


def test_a_machine_without_a_card_says_so_and_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions may have been taken when it was tried."""
    told = film(tmp_path, encode="cuda")["encode"]
    assert told["used"] == "libx264"
    assert told["why"].startswith("no card can encode here: ")
    assert "preset" not in told["why"]
    card = Pretended(monkeypatch)
    assert film(tmp_path, encode="cuda")["encode"] == told
    assert card.opened == 0
    monkeypatch.setattr(nvenc, "AGAIN_SECONDS", 0.0)
    assert film(tmp_path, encode="cuda")["encode"]["used"] == "h264_nvenc"
