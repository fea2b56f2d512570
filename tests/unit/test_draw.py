"""worker.video.draw: the labelled video and the plots."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest

from posedrop.errors import AnalysisError
from tests.support import videos
from worker.video import decode, draw, preflight

PARTS = ["snout", "tail$base"]


def poses(
    path: Path,
    values: np.ndarray,
    *,
    parts: Sequence[str] = PARTS,
    individuals: Sequence[str] = (),
    index: Sequence[int] | None = None,
) -> Path:
    """Write a DeepLabCut table; values are (frames, [individuals x] parts, 3)."""
    levels = [["scorer"], *([list(individuals)] if individuals else []), list(parts)]
    names = ["scorer", *(["individuals"] if individuals else []), "bodyparts", "coords"]
    columns = pd.MultiIndex.from_product([*levels, ["x", "y", "likelihood"]], names=names)
    flat = values.reshape(len(values), -1)
    table = pd.DataFrame(flat, columns=columns, index=index)
    table.to_hdf(path, key="df_with_missing", format="table", mode="w")
    return path


def walk(frames: int, keypoints: int = 2) -> np.ndarray:
    """Return keypoints that move right, 30 pixels below one another, all of likelihood 0.9."""
    values = np.full((frames, keypoints, 3), 0.9)
    for keypoint in range(keypoints):
        values[:, keypoint, 0] = 30 + np.arange(frames)
        values[:, keypoint, 1] = 30 + 30 * keypoint
    return values


def drawn(
    tmp_path: Path, source: Path, table: Path, *, plots: bool = False, **changes: Any
) -> dict[str, Any]:
    """Draw the film; the plots, which take longer than that, where the test is about them."""
    style = {"dotsize": 4, "trail": 0, "skeleton": False, "colormap": "rainbow"}
    payload = {
        "video": str(source),
        "poses": str(table),
        "out": str(tmp_path),
        "pcutoff": 0.6,
        "style": {**style, **changes.pop("style", {})},
        "skeleton": [PARTS],
        "start": 0,
        "stop": None,
        "stride": 1,
        **changes,
    }
    with pytest.MonkeyPatch.context() as patch:
        if not plots:
            patch.setattr(draw, "plot_trajectory", lambda *_: None)
            patch.setattr(draw, "plot_likelihood", lambda *_: None)
        return draw.render(payload, lambda *_: None)


def frames_of(tmp_path: Path) -> list[np.ndarray]:
    return [frame for _, frame in decode.frames(tmp_path / "pose.mp4")]


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def is_coloured(frame: np.ndarray, x: int, y: int, colour: Sequence[float]) -> bool:
    """Return whether a pixel has this colour (0 to 1 each), as far as H.264 keeps it.

    x264 with threads is off by over 40 levels at times, and not the same ones in every run. The
    gradient under the dots differs from any colour that is asked for by more than the 90 allowed.
    """
    return bool(np.abs(frame[y, x].astype(int) - np.multiply(colour, 255)).max() < 90)


def rainbow(number: int) -> tuple[float, ...]:
    return matplotlib.colormaps["rainbow"]([0.0, 1.0])[number][:3]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return videos.video(tmp_path / "video")


@pytest.mark.parametrize("name", videos.READ)
def test_pose_video_plays_in_a_browser_with_the_sources_size_and_timing(
    name: str, tmp_path: Path
) -> None:
    """H.264, 4:2:0, its index in front; as many frames, of the same size, at the same times."""
    source = videos.READ[name](tmp_path / "video")
    before = preflight.examine(source, max_pixels=10**6, max_frames=100)
    answer = drawn(tmp_path, source, poses(tmp_path / "poses.h5", walk(before.frames)))
    out = tmp_path / "pose.mp4"
    after = preflight.examine(out, max_pixels=10**6, max_frames=100)
    assert answer["frames"] == after.frames == before.frames
    assert (after.codec, after.pixel_format, after.rotation) == ("h264", "yuv420p", 0)
    assert (after.width, after.height) == (
        before.width + before.width % 2,
        before.height + before.height % 2,
    )
    assert after.fps == pytest.approx(before.fps, rel=0.02)
    content = out.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    if name != "raw_h264":  # it has no times to keep
        begin, *_ = source_times = times(source)
        assert times(out) == [moment - begin for moment in source_times]


def test_ffprobe_agrees(tmp_path: Path) -> None:
    """The times of an uneven video are those that another reader sees, in both files."""
    source = videos.READ["variable_frame_rate"](tmp_path / "video")
    drawn(tmp_path, source, poses(tmp_path / "poses.h5", walk(12)))
    command = ["ffprobe", "-v", "error", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
    seen = [
        subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout
        for path in (source, tmp_path / "pose.mp4")
    ]
    assert seen[0] == seen[1]
    assert len(seen[0].split()) == 12


@pytest.mark.parametrize("rotate", [0, 90])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_a_dot_is_at_its_keypoint_in_its_colour(
    rotate: int, pixel_format: str, tmp_path: Path
) -> None:
    """In coordinates of the upright frame, in the colour that the map gives the bodypart."""
    source = videos.video(tmp_path / "video", rotate=rotate, pixel_format=pixel_format)
    drawn(tmp_path, source, poses(tmp_path / "poses.h5", walk(30)))
    for index, frame in enumerate(frames_of(tmp_path)):
        assert is_coloured(frame, 30 + index, 30, rainbow(0))
        assert is_coloured(frame, 30 + index, 60, rainbow(1))


def test_what_is_not_drawn_on_stays_as_it_was(plain: Path, tmp_path: Path) -> None:
    """Apart from the dots, the picture is the source's, as far as the encoder keeps it."""
    drawn(tmp_path, plain, poses(tmp_path / "poses.h5", walk(30)))
    for (_, before), after in zip(decode.frames(plain), frames_of(tmp_path), strict=True):
        difference = np.abs(before[80:].astype(int) - after[80:])
        assert difference.mean() < 6


@pytest.mark.parametrize(
    "bad",
    [
        (np.nan, np.nan, 0.9),
        (np.nan, 30, np.nan),
        (40, 30, 0.6),
        (40, 30, 0.1),
        (-500, 30, 0.9),
        (1e30, -1e30, 0.9),
        (np.inf, 30, 0.9),
        (-1, -1, -1),
    ],
)
def test_keypoints_that_are_unsure_or_nowhere_are_not_drawn(
    bad: tuple[float, float, float], plain: Path, tmp_path: Path
) -> None:
    """Below or at pcutoff, not finite, far outside: no dot, no trail, no bone, and no crash."""
    values = walk(30)
    values[:, 0] = bad
    style = {"trail": 10, "skeleton": True}
    answer = drawn(tmp_path, plain, poses(tmp_path / "poses.h5", values), plots=True, style=style)
    assert answer["frames"] == 30
    for index, frame in enumerate(frames_of(tmp_path)):
        assert not is_coloured(frame, 40, 30, rainbow(0))
        assert is_coloured(frame, 30 + index, 60, rainbow(1))


def test_trail_and_skeleton(plain: Path, tmp_path: Path) -> None:
    """A trail runs through the last frames' places, a bone between the two keypoints."""
    table = poses(tmp_path / "poses.h5", walk(30))
    drawn(tmp_path, plain, table, style={"trail": 15, "skeleton": True, "dotsize": 12})
    frame = frames_of(tmp_path)[25]
    assert is_coloured(frame, 41, 60, rainbow(1))
    assert not is_coloured(frame, 34, 60, rainbow(1))
    assert is_coloured(frame, 55, 45, draw.BONE)


def test_only_the_analysed_frames_are_in_the_video(plain: Path, tmp_path: Path) -> None:
    """start, stop and stride select frames, which keep their distance in time and their poses."""
    index = range(3, 20, 4)
    table = poses(tmp_path / "poses.h5", walk(30)[3:20:4], index=index)
    answer = drawn(tmp_path, plain, table, start=3, stop=20, stride=4)
    assert answer["frames"] == len(index)
    frames = frames_of(tmp_path)
    for number, frame in zip(index, frames, strict=True):
        assert is_coloured(frame, 30 + number, 30, rainbow(0))
    assert times(tmp_path / "pose.mp4") == [Fraction(4 * n, 30) for n in range(len(index))]


def test_a_frame_without_poses_stays_bare(plain: Path, tmp_path: Path) -> None:
    """Rows may be missing, and rows of frames that don't exist do no harm."""
    table = poses(tmp_path / "poses.h5", walk(4), index=[0, 1, 5, 99])
    drawn(tmp_path, plain, table)
    frames = frames_of(tmp_path)
    assert len(frames) == 30
    assert is_coloured(frames[5], 32, 30, rainbow(0))
    assert not is_coloured(frames[3], 33, 30, rainbow(0))


def test_a_jump_of_one_frame_is_drawn(plain: Path, tmp_path: Path) -> None:
    """The plain table is drawn, though the filtered one, in which the jump is gone, is there."""
    jumps = walk(30)
    jumps[12, 0, :2] += 40
    table = poses(tmp_path / "poses.h5", jumps)
    filtered = poses(tmp_path / "poses_filtered.h5", walk(30))
    drawn(tmp_path, plain, table, poses_filtered=str(filtered))
    frame = frames_of(tmp_path)[12]
    assert is_coloured(frame, 82, 70, rainbow(0))
    assert not is_coloured(frame, 42, 30, rainbow(0))


def test_several_animals(plain: Path, tmp_path: Path) -> None:
    """Each animal's keypoints are drawn, coloured by bodypart; bones stay within an animal."""
    table = poses(tmp_path / "poses.h5", walk(30, 4), individuals=["one", "two"])
    # Large dots have thick bones: a line of one pixel is the encoder's to blur.
    style = {"skeleton": True, "dotsize": 9}
    answer = drawn(tmp_path, plain, table, plots=True, style=style)
    assert answer["frames"] == 30
    frame = frames_of(tmp_path)[10]
    assert is_coloured(frame, 40, 30, rainbow(0))
    assert is_coloured(frame, 40, 60, rainbow(1))
    assert is_coloured(frame, 40, 90, rainbow(0))
    assert is_coloured(frame, 40, 45, draw.BONE)
    assert not is_coloured(frame, 40, 75, draw.BONE)


def test_plots_are_pictures_with_every_colour(plain: Path, tmp_path: Path) -> None:
    """Both PNGs show each keypoint in its colour; names that look like formulas do no harm."""
    parts = ["_a", "$\\frac{", "ear\u00e9", "<b>"]
    table = poses(tmp_path / "poses.h5", walk(30, 4), parts=parts)
    drawn(tmp_path, plain, table, plots=True, skeleton=[])
    colours = np.rint(matplotlib.colormaps["rainbow"](np.linspace(0, 1, 4))[:, :3] * 255)
    for name in ("trajectory.png", "likelihood.png"):
        picture = cv2.imread(str(tmp_path / name))[..., ::-1].reshape(-1, 3).astype(int)
        for colour in colours:
            assert (np.abs(picture - colour).max(axis=1) < 12).any(), (name, colour)


def test_progress_is_reported(plain: Path, tmp_path: Path) -> None:
    """Every frame counts, up to the total."""
    reports: list[tuple[str, int, int | None]] = []
    table = poses(tmp_path / "poses.h5", walk(30))
    payload = {
        "video": str(plain),
        "poses": str(table),
        "out": str(tmp_path),
        "pcutoff": 0.6,
        "style": {},
        "skeleton": [],
        "start": 0,
        "stop": None,
        "stride": 1,
    }
    answer = draw.render(payload, lambda *report: reports.append(report))
    assert reports[-1] == ("render", 30, 30)
    assert [done for _, done, _ in reports] == list(range(1, 31))
    assert set(answer["timings"]) == {"video", "plots"}


def test_a_range_beyond_the_end_says_so(plain: Path, tmp_path: Path) -> None:
    """No frame, no video: an error with a code."""
    with pytest.raises(AnalysisError) as error:
        drawn(tmp_path, plain, poses(tmp_path / "poses.h5", walk(3)), start=500)
    assert error.value.code == "no_frames"
    assert not (tmp_path / "pose.mp4").exists()
