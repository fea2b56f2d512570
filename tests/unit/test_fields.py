"""Films of which a packet is one field: they are counted, timed and numbered by their frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import field_coded, videos
from worker.video import containers, decode, fields, numbering, preflight

MIXED = "ppffpfppffffpppfppffpfpfpppfffpppppfpfpf"
#: Fields without their other half, among pairs and whole frames.
ALONE = "bppppppptppfppbfpptbppfpppt"


@pytest.mark.parametrize("container", ["raw", "mpegts", "matroska", "mp4"])
@pytest.mark.parametrize("pictures", ["p" * 40, MIXED, "f" * 40, ALONE])
def test_two_fields_are_one_frame(
    pictures: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded or counted, once, as OpenCV counts; a field alone shows nothing."""
    frames = pictures.count("p") + pictures.count("f")
    film = _film(tmp_path, pictures, container)
    monkeypatch.setattr(numbering, "_passage", _only_once(numbering._passage))
    reading = numbering.Reading()
    assert [number for number, _ in decode.frames(film, reading=reading)] == list(range(frames))
    assert (reading.end, len(reading.lost), reading.cut) == (frames, 0, False)
    assert frames == _opencv_count(film)
    assert containers.count(film) == frames
    decoded = preflight.examine(film, max_pixels=10**6, max_frames=frames)
    monkeypatch.setattr(preflight, "DECODE_ALL_PIXELS", 1)
    counted = preflight.examine(film, max_pixels=10**6, max_frames=frames)
    for found in (decoded, counted):
        assert found.frames == frames
    if pictures != ALONE:
        assert (counted.fps, counted.duration) == pytest.approx((25, 1.6), rel=1e-3)
        assert (decoded.fps, decoded.duration) == pytest.approx((25, 1.6), rel=1e-3)
        assert not counted.variable_frame_rate


@pytest.mark.parametrize("container", ["raw", "mpegts"])
def test_a_frame_of_which_both_fields_are_damaged_is_one_that_is_lost(
    container: str, tmp_path: Path
) -> None:
    """It has one number, so that no row behind it is shifted."""
    film = _film(tmp_path, "p" * 20, container)
    content = bytearray(film.read_bytes())
    begins = [found.end() for found in re.finditer(b"\0\0\0\1[\x61\x65]", content)]
    for begin in begins[20:22]:  # a quantiser that there is none of
        content[begin + 2 : begin + 4] = content[begin + 2] & 0xF0, 1
    film.write_bytes(content)
    reading = numbering.Reading()
    assert len(list(decode.frames(film, reading=reading))) == 19
    assert (list(reading.lost), reading.end) == ([10], 20)
    assert containers.count(film) == 20


def _film(folder: Path, pictures: str, container: str) -> Path:
    path = folder / "film"
    if container == "raw":
        return field_coded.raw(path, pictures)
    return field_coded.contained(path, pictures, container)


def _opencv_count(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count


def _only_once(passage: Any) -> Any:
    def first(path: Path, reading: numbering.Reading, exact: bool, *rest: Any) -> Iterator[Any]:
        # Both are made, and only begun where they are needed.
        assert not exact, "it is decoded once more"
        yield from passage(path, reading, exact, *rest)

    return first


def _parts(path: Path) -> Counter[str]:
    with containers.opened(path) as (container, stream):
        told = fields.Fields(stream)
        return Counter(told.part(packet) for packet in containers.packets(container, stream))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "h264", "avi"])
@pytest.mark.parametrize(
    ("pixel_format", "options"),
    [
        ("yuv420p", {"profile": "baseline"}),
        ("yuv420p", {"x264-params": "cqm=jvt:pulldown=32:bframes=3"}),
        ("yuv420p", {"x264-params": "interlaced=1:cqm=jvt:bframes=3:b-pyramid=normal"}),
        ("yuv420p", {"x264-params": "fake-interlaced=1:pulldown=double"}),
        ("yuv422p10le", {"x264-params": "interlaced=1"}),
        ("yuv444p", {"x264-params": "interlaced=1:cqm=jvt:slices=4"}),
        ("gray", {"x264-params": "interlaced=1:repeat-headers=1:keyint=1"}),
    ],
)
def test_a_frame_coded_as_a_whole_is_no_field(
    pixel_format: str, options: dict[str, str], container: str, tmp_path: Path
) -> None:
    """Interlaced, pulled down, with scaling matrices, of any colours, in several slices."""
    film = videos.video(
        tmp_path / "film", pixel_format=pixel_format, options=options, container=container
    )
    assert _parts(film) == {"frame": 30}


def test_both_fields_in_one_packet_are_a_frame(tmp_path: Path) -> None:
    """As an AVI or a Matroska has them that was not copied from a transport stream."""
    one, joined = field_coded.contained(tmp_path / "one", "p" * 9, "matroska"), tmp_path / "joined"
    assert _parts(one) == {"first": 9, "second": 9}
    assert _parts(field_coded.contained(joined, "p" * 9, "matroska", joined=True)) == {"frame": 9}
    assert containers.count(joined) == 9


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\0\0\1", b"\x67", b"\x68", b"\x61"])))
def test_what_is_no_h264_is_taken_for_frames(pieces: list[bytes]) -> None:
    """Damage, or a file that was made to be read wrong, raises nothing."""
    sets = fields._ParameterSets()
    for length in (0, 1, 4):
        fields._only_field(memoryview(b"".join(pieces)), length, sets)
