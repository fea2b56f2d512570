"""worker.video.decode: what a file is, and its frames as OpenCV sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from posedrop.buckets.records.videos import Probe
from posedrop.errors import RefusedVideoError
from tests.support import videos
from worker.video import canvas, containers, decode, numbering, preflight

Make = Callable[[Path], Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "video"


def probe(path: Path, max_pixels: int = 4096**2, max_frames: int = 10**6) -> Probe:
    return preflight.examine(path, max_pixels=max_pixels, max_frames=max_frames)


def opencv_frames(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, frame = capture.read()
        if not there:
            return found
        found.append(frame[..., ::-1])


@pytest.mark.parametrize("make", videos.REFUSED, ids=lambda make: make.__name__)
def test_what_is_not_a_whole_video_is_refused_with_its_reason(make: Make, path: Path) -> None:
    """Each kind of file that can't be analysed has a code and a message of its own."""
    with pytest.raises(RefusedVideoError) as refused:
        probe(make(path))
    assert refused.value.code == videos.REFUSED[make]
    assert len(refused.value.message) > 20


@pytest.mark.parametrize("make", [videos.playlist, videos.concat], ids=lambda make: make.__name__)
def test_no_frame_of_another_file_is_ever_read(make: Make, path: Path) -> None:
    """A playlist is refused by every way to open a video, not only by the probe."""
    make(path)
    for read in (decode.frames, canvas.open_canvases):
        with pytest.raises(RefusedVideoError):
            next(read(path))
    with pytest.raises(RefusedVideoError):
        preflight.thumbnail(path, path.with_suffix(".jpg"))


@pytest.mark.parametrize("make", videos.READ.values(), ids=videos.READ)
def test_frames_are_those_of_opencv(make: Make, path: Path) -> None:
    """Same count, same order, same size, and every pixel the same."""
    make(path)
    expected = opencv_frames(path)
    found = list(decode.frames(path))
    assert [index for index, _ in found] == list(range(len(expected)))
    assert expected
    for (_, frame), reference in zip(found, expected, strict=True):
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        np.testing.assert_array_equal(frame, reference)


@pytest.mark.parametrize("make", videos.READ.values(), ids=videos.READ)
def test_probe_says_what_the_frames_are(make: Make, path: Path) -> None:
    """Count and size are those of the decoded, rotated frames."""
    found = probe(make(path))
    frames = [frame for _, frame in decode.frames(path)]
    assert (found.height, found.width) == frames[0].shape[:2]
    assert found.frames == len(frames)
    assert found.frames_counted
    assert containers.count(path) == len(frames)
    assert found.fps > 0
    assert found.duration > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"codec": "h264", "pixel_format": "yuv420p", "fps": 30.0, "duration": 1.0}),
        ("plain", {"rotation": 0, "variable_frame_rate": False}),
        ("one_frame", {"frames": 1, "variable_frame_rate": False}),
        ("rotated_90", {"rotation": 270, "width": 120, "height": 160}),
        ("rotated_180", {"rotation": 180, "width": 160, "height": 120}),
        ("rotated_270", {"rotation": 90, "width": 120, "height": 160}),
        ("variable_frame_rate", {"variable_frame_rate": True, "frames": 12}),
        ("matroska", {"variable_frame_rate": False}),
        ("ten_bit", {"pixel_format": "yuv420p10le"}),
    ],
)
def test_probe_tells_the_particulars(name: str, expected: dict[str, object], path: Path) -> None:
    """Codec, rotation (clockwise) and an uneven frame rate are told apart from rounding."""
    found = probe(videos.READ[name](path)).model_dump()
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "size", "code"),
    [
        ({"max_pixels": 160 * 120 - 1}, (160, 120), "too_many_pixels"),
        ({"max_frames": 29}, (160, 120), "too_many_frames"),
        ({}, (160, 8), "bad_size"),
        ({"max_pixels": 160 * 120, "max_frames": 30}, (160, 120), None),
    ],
)
def test_limits_are_exact(
    limits: dict[str, int], size: tuple[int, int], code: str | None, path: Path
) -> None:
    """A video at a limit is taken, one beyond it is refused."""
    videos.video(path, size=size)
    if code is None:
        assert probe(path, **limits).frames == 30
        return
    with pytest.raises(RefusedVideoError) as refused:
        probe(path, **limits)
    assert refused.value.code == code


def test_a_long_video_is_counted_by_its_packets(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where decoding all frames takes too long, the count is still right."""
    videos.video(path, count=45)
    monkeypatch.setattr(preflight, "DECODE_ALL_PIXELS", 0)
    assert probe(path).frames == 45


def test_damage_in_the_middle_costs_only_the_frames_it_hit(path: Path) -> None:
    """What can't be decoded is left out; the frames before and behind it come, each as itself."""
    videos.damaged(path)
    whole = list(videos.pictures(60, 160, 120))
    reading = numbering.Reading()
    found = list(decode.frames(path, reading=reading))
    assert 30 <= len(found) < 60
    for number, frame in (found[0], found[-1]):
        assert np.abs(frame.astype(int) - whole[number]).mean() < 20
    numbers = [number for number, _ in found]
    assert (numbers[0], numbers[-1]) == (0, 59)
    assert sorted([*numbers, *reading.lost]) == list(range(60))
    assert (reading.end, reading.cut, probe(path).frames) == (60, False, 60)


@pytest.mark.parametrize(
    ("start", "stop", "stride"),
    [(0, None, 1), (7, None, 1), (3, 20, 4), (0, 1, 1), (29, 90, 1), (30, None, 1), (5, 5, 1)],
)
def test_a_range_selects_as_a_slice_does(
    start: int, stop: int | None, stride: int, path: Path
) -> None:
    """start, stop and stride mean what they mean for a list, and keep the frames' numbers."""
    videos.video(path)
    everything = list(decode.frames(path))
    found = list(decode.frames(path, start=start, stop=stop, stride=stride))
    assert [index for index, _ in found] == list(range(30))[start:stop:stride]
    for index, frame in found:
        np.testing.assert_array_equal(frame, everything[index][1])


def test_preflight_probes_and_draws_a_thumbnail(path: Path) -> None:
    """The child's answer is a Probe as JSON, and a JPEG of the asked-for width is written."""
    videos.video(path, rotate=90)
    thumbnail = path.with_name("thumbnail.jpg")
    payload = {
        "video": str(path),
        "thumbnail": str(thumbnail),
        "max_pixels": 10**6,
        "max_frames": 100,
    }
    answer = preflight.probe(payload, lambda *_: None)
    assert Probe.model_validate(answer["probe"]) == probe(path)
    assert cv2.imread(str(thumbnail)).shape == (427, 320, 3)
