"""For each reason of a refusal there is a film, and docs/api.md has all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from posedrop.errors import RefusedVideoError
from tests.support import videos
from tests.support.samples import REPOSITORY
from worker.video import preflight

#: What ingest itself refuses: test_ingest.py, test_not_given.py and test_disk.py of tests/faults
#: have films for it.
BY_INGEST = {"decoder_failed", "no_room", "not_given", "too_many_bytes"}


def unknown_codec(path: Path) -> Path:
    """Write an MP4 whose codec nobody has heard of."""
    film = videos.video(path).read_bytes()
    assert film.count(b"avc1") == 2
    brand, _, sample = film.partition(b"avc1")[2].partition(b"avc1")
    path.write_bytes(film.partition(b"avc1")[0] + b"avc1" + brand + b"zzz9" + sample)
    return path


def tiny(path: Path) -> Path:
    """Write frames of 8 x 8 pixels."""
    return videos.video(path, size=(8, 8), codec="mpeg4")


def long(path: Path) -> Path:
    """Write more frames than may be."""
    return videos.video(path, size=(16, 16), count=120)


def wide(path: Path) -> Path:
    """Write frames of more pixels than may be."""
    return videos.video(path, size=(640, 480), count=1)


FILMS: dict[Callable[[Path], Path], str] = {
    **videos.REFUSED,
    unknown_codec: "unsupported_codec",
    tiny: "bad_size",
    long: "too_many_frames",
    wide: "too_many_pixels",
}


@pytest.mark.parametrize(
    ("write", "code"), FILMS.items(), ids=lambda each: getattr(each, "__name__", each)
)
def test_a_film_is_refused_for_its_reason(
    write: Callable[[Path], Path], code: str, tmp_path: Path
) -> None:
    """The reason is the one documented, and the message says more than that."""
    path = write(tmp_path / "film")
    with pytest.raises(RefusedVideoError) as caught:
        preflight.examine(path, max_pixels=200 * 200, max_frames=100)
    assert caught.value.code == code
    assert len(caught.value.message) > 20
    assert str(tmp_path) not in caught.value.message


def test_the_reasons_that_are_documented() -> None:
    """docs/api.md lists those that there are, and no others."""
    table = (REPOSITORY / "docs/api.md").read_text().partition("| reason |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(rows) == set(FILMS.values()) | BY_INGEST
