"""video.decode, video.canvas: films as labs have them give DeepLabCut's rows and pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import av.error
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from posedrop.demo import mouse
from posedrop.errors import AnalysisError, RefusedVideoError
from tests.support import films, videos
from tests.support.films import Film
from tests.support.samples import SHARED, has_real_mouse
from worker.video import canvas, decode, numbering, preflight
from worker.video.times import Clock


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(film=films.films())
def test_any_film_is_read_as_opencv_reads_it(film: Film) -> None:
    """Any codec, container and times: as many frames, in the same order, of the same pixels."""
    with TemporaryDirectory() as folder:
        try:
            path = films.make(Path(folder) / "film", film)
        except (av.error.FFmpegError, OverflowError):
            assume(False)
        assume(films.is_read(path))
        films.check(path, film)


def test_frames_on_the_way_to_those_wanted_are_told_of(tmp_path: Path) -> None:
    """Who waits for a long film's later frames hears that it goes on, in the network and drawn."""
    path = films.make(tmp_path / "film", Film("libx264", (), "mp4", 200, 16, Fraction(30)))
    heard: list[int] = []
    reading = numbering.Reading(passed=heard.append)
    assert [number for number, _ in decode.frames(path, start=198, reading=reading)] == [198, 199]
    assert heard == [0, 64, 128, 192]
    drawn = canvas.open_canvases(path, start=198, passed=heard.append)
    assert [each.index for each in drawn] == [198, 199]
    assert heard == 2 * [0, 64, 128, 192]


X264 = (("bf", "3"), ("b-pyramid", "normal"))
GOP = Film("libx264", X264, "mp4", 40, 20, Fraction(15))


def _like(**changes: object) -> Callable[[Path], Path]:
    film = Film(**{**GOP.__dict__, **changes})  # type: ignore[arg-type]
    return lambda path: films.make(path, film)


#: What goes wrong with a film: how it is made, its frames, and how many seconds it lasts.
KINDS: dict[str, tuple[Callable[[Path], Path], int, float]] = {
    "one time is far off": (_like(container="matroska", change="far_off"), 40, 40 / 15),
    "B-frames in AVI": (_like(container="avi"), 40, 40 / 15),
    "the times are those of decoding": (
        _like(container="matroska", change="pts_is_dts"),
        40,
        40 / 15,
    ),
    "a clock was set by hours": (_like(change="hours", seed=3), 40, 40 / 15),
    "joined, with earlier times": (_like(container="mpegts", shape="joined"), 80, 80 / 15),
    "joined, from zero again": (_like(container="matroska", shape="joined"), 80, 80 / 15),
    "2,000 frames a second": (
        _like(container="matroska", rate=Fraction(2000), frames=200),
        200,
        0.1,
    ),
    "10,000 frames a second": (
        _like(codec="mjpeg", options=(), container="mov", rate=Fraction(10_000)),
        40,
        0.004,
    ),
    "hidden reference frames": (
        _like(codec="libvpx", options=tuple(films.CODECS["libvpx"][0].items()), container="webm"),
        40,
        40 / 15,
    ),
    "a header that lies": (videos.lying_header, 30, 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_strange_film_has_all_its_rows_and_its_length(kind: str, tmp_path: Path) -> None:
    """No frame is shifted, lost or called so; pose.mp4 and the probe last as long as the film."""
    make, frames, seconds = KINDS[kind]
    path = make(tmp_path / "film")
    reading = films.agree(path)
    assert (reading.end, len(reading.lost), reading.cut) == (frames, 0, False)
    found = preflight.examine(path, max_pixels=10**6, max_frames=1000)
    assert (found.frames, found.frames_counted) == (frames, True)
    assert found.duration == pytest.approx(seconds, rel=0.02)
    out = tmp_path / "pose.mp4"
    assert canvas.encode(out, canvas.open_canvases(path)) == frames
    assert _seconds(out) == pytest.approx(seconds, rel=0.02)


def _seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float(stream.duration * stream.time_base)


@pytest.mark.parametrize("name", videos.COLOURS)
def test_colours_are_those_of_opencv(name: str, tmp_path: Path) -> None:
    """Wide primaries, high dynamic range, other matrices and ranges, gray, palettes, alpha."""
    films.agree(videos.coloured(tmp_path / "film", *videos.COLOURS[name]))


def test_a_cut_fragmented_film_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Frames as OpenCV has them, and the word that the end is missing; whole, it is not said."""
    path = videos.video(tmp_path / "film", options={"g": "5"}, movflags="frag_keyframe+empty_moov")
    assert not films.agree(path).cut
    content = path.read_bytes()
    for share in (0.4, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        reading = films.agree(path)
        assert reading.cut
        assert 0 < reading.end < 30
        found = preflight.examine(path, max_pixels=10**6, max_frames=1000)
        assert found.frames == reading.end


@pytest.mark.parametrize("container", ["matroska", "avi", "asf"])
def test_a_cut_recording_says_so(container: str, tmp_path: Path) -> None:
    """A container whose sizes reach beyond the file's end is cut, wherever that is."""
    codec = "wmv2" if container == "asf" else "mpeg4"
    path = videos.video(tmp_path / "film", container=container, codec=codec)
    assert not films.agree(path).cut
    content = path.read_bytes()
    for share in (0.5, 0.8, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        reading = films.agree(path)
        assert (reading.cut, len(reading.lost)) == (True, 0)


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    """pose.mp4 has the sample aspect ratio of the film, turned with it."""
    for rotate, expected in ((0, Fraction(16, 15)), (90, Fraction(15, 16))):
        path = videos.video(tmp_path / "film", aspect=Fraction(16, 15), rotate=rotate)
        out = tmp_path / "pose.mp4"
        canvas.encode(out, canvas.open_canvases(path))
        with av.open(str(out)) as container:
            assert container.streams.video[0].sample_aspect_ratio == expected


def test_interlaced_films_are_not_black(tmp_path: Path) -> None:
    """OpenCV 5 shows nothing of them; what is shown here is the picture."""
    options = {"flags": "+ilme+ildct", "x264-params": "tff=1"}
    path = videos.video(tmp_path / "film", options=options)
    for (_, frame), picture in zip(decode.frames(path), videos.pictures(30, 160, 120), strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 20


def test_what_ffmpeg_raises_is_the_films_fault_if_the_file_can_be_read(tmp_path: Path) -> None:
    """EIO, EPERM and ENOMEM of damaged headers are refusals; a missing file is none."""
    path = videos.video(tmp_path / "film", container="matroska")
    content = path.read_bytes()
    for length in range(1, 500, 7):
        path.write_bytes(content[:length])
        with pytest.raises(RefusedVideoError):
            preflight.examine(path, max_pixels=10**6, max_frames=1000)
    videos.video(path, movflags="faststart")
    lying = bytearray(path.read_bytes())
    struct.pack_into(">I", lying, lying.index(b"stts") + 8, 2**31)
    path.write_bytes(lying)
    with pytest.raises(RefusedVideoError):
        preflight.examine(path, max_pixels=10**6, max_frames=1000)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        preflight.examine(path, max_pixels=10**6, max_frames=1000)


def test_no_decoder_is_said_without_its_name(tmp_path: Path) -> None:
    """A codec that nothing decodes is refused, and what FFmpeg calls it is not asked for."""
    path = videos.video(tmp_path / "film")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"qqqq"))
    with pytest.raises(RefusedVideoError) as refused:
        preflight.examine(path, max_pixels=10**6, max_frames=1000)
    assert refused.value.code == "unsupported_codec"


@pytest.mark.parametrize("size", [(16, 4000), (4000, 16), (160, 120)])
def test_a_thumbnail_is_bounded_on_both_sides(size: tuple[int, int], tmp_path: Path) -> None:
    """However tall or wide the film is."""
    path = videos.video(tmp_path / "film", count=2, size=size, codec="ffv1", container="matroska")
    out = tmp_path / "thumbnail.jpg"
    preflight.thumbnail(path, out)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.width <= 320
        assert stream.height <= 640


def test_a_thumbnail_is_what_the_film_shows_there(tmp_path: Path) -> None:
    """What an x264 of before build 151 coded in 4:4:4 (DeepLabCut's open-field film) is green where
    the decoder has not seen the first frame, in which the build is told.
    """
    path = SHARED / "data/openfield/m3v1.mp4"
    if not has_real_mouse():
        mouse.film(path := tmp_path / "mouse.mp4", frames=300, seed=7)
    preflight.thumbnail(path, tmp_path / "thumbnail.jpg")
    found = cv2.imread(str(tmp_path / "thumbnail.jpg")).astype(float)
    with av.open(str(path)) as film:
        shown = [
            cv2.resize(frame.to_ndarray(format="bgr24"), found.shape[1::-1])
            for frame in islice(film.decode(video=0), 300)
        ]
    assert min(float(np.abs(found - frame).mean()) for frame in shown) < 3


RAMP = list(range(20))


@pytest.mark.parametrize(
    ("ticks", "expected", "source"),
    [
        (RAMP, RAMP, "container"),
        ([tick + 7000 for tick in RAMP], RAMP, "container"),
        ([*RAMP[:9], 17, *RAMP[10:]], RAMP, "interpolated"),
        ([*RAMP[:9], -4000, *RAMP[10:]], RAMP, "interpolated"),
        ([500, *RAMP[1:]], RAMP, "interpolated"),
        ([*RAMP[:9], None, None, *RAMP[11:]], RAMP, "interpolated"),
        ([None, None, *RAMP[2:]], RAMP, "interpolated"),
        ([*RAMP, *RAMP], list(range(40)), "interpolated"),
        ([*RAMP, *(tick + 36_000 for tick in RAMP)], list(range(40)), "interpolated"),
        ([*RAMP[:9], *(tick + 30 for tick in RAMP[9:])], [*RAMP[:9], *range(39, 50)], "container"),
        ([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9], list(range(11)), "interpolated"),
        ([tick // 2 for tick in RAMP], [tick / 2 for tick in RAMP], "interpolated"),
        ([tick * 36_000 for tick in RAMP], [tick * 36_000 for tick in RAMP], "container"),
        ([tick * 10**8 for tick in RAMP], RAMP, "rate"),
        ([None] * 20, RAMP, "rate"),
        ([7], [0], "container"),
    ],
)
def test_times_are_mended(ticks: list[int | None], expected: list[float], source: str) -> None:
    """What is off is put between its neighbours, jumps go on by an interval, pauses stay."""
    clock = Clock(0.1, 0.1)
    found = [time for time, _ in clock.run((tick, None) for tick in ticks)]
    # The last two of an even run that stops have no time to lie before.
    assert found == pytest.approx([0.1 * tick for tick in expected], abs=0.051 + 1e-9)
    assert found[: len(found) - 2] == pytest.approx(
        [0.1 * tick for tick in expected][: len(found) - 2], abs=1e-6
    )
    assert clock.source == source


@pytest.mark.parametrize("interval", [1e-6, 120.0, 1e9])
def test_the_first_frames_tell_more_of_the_interval_than_a_header(interval: float) -> None:
    """A mean that counts an hour's jump, or that lies, is not how long a frame lasts."""
    clock = Clock(0.1, interval)
    ticks = [*RAMP, *(tick + 36_000 for tick in RAMP)]
    found = [time for time, _ in clock.run((tick, None) for tick in ticks)]
    assert found == pytest.approx([0.1 * number for number in range(40)])
    assert clock.interval == pytest.approx(0.1)


@pytest.mark.parametrize("size", [(64, 48), (160, 120), (641, 480)])
def test_jpegs_in_a_row_are_a_film_whatever_the_files_name(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """Plain, progressive or with restarts, of any size, with zeros between them or without."""
    film, jpegs = tmp_path / "film", list(_jpegs(*size))
    for gap in (b"", b"\0" * 7):
        film.write_bytes(gap.join(jpegs))
        assert sum(1 for _ in decode.frames(film)) == len(jpegs)


def test_a_photo_is_no_film(tmp_path: Path) -> None:
    """One JPEG, with a small one in its header, cut, or with a phone's second picture behind it."""
    film, (jpeg, small, *_) = tmp_path / "film", list(_jpegs(64, 48))
    with_small = jpeg[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + jpeg[2:]
    of_a_phone = jpeg[:2] + b"\xff\xe2\0\x08MPF\0\0\0" + jpeg[2:] + small
    for content in (
        jpeg,
        with_small,
        jpeg[:-9],
        of_a_phone,
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 99,
    ):
        film.write_bytes(content)
        with pytest.raises(RefusedVideoError) as refused:
            next(decode.frames(film))
        assert refused.value.code == "not_a_video"


def _jpegs(width: int, height: int) -> Iterator[bytes]:
    kinds = [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)]
    for kind, picture in zip(kinds, videos.pictures(3, width, height), strict=True):
        yield cv2.imencode(".jpg", picture, kind)[1].tobytes()


#: Films with seldom or odd ticks: suffix, codec, time base, and a film's times in its ticks.
_ODD_TICKS = {
    "of DirectShow, 30 a second": (".avi", "mjpeg", Fraction(333_333, 10**7), range(60)),
    "of DirectShow, 29.97": (".avi", "mjpeg", Fraction(333_667, 10**7), range(60)),
    "of DirectShow, 60": (".avi", "mjpeg", Fraction(166_667, 10**7), range(60)),
    "NTSC": (".avi", "mjpeg", Fraction(1001, 30_000), range(140)),
    "NTSC, 90 frames dropped": (
        ".avi", "mjpeg", Fraction(1001, 30_000), [*range(20), *range(110, 140)]
    ),
    "a measured rate": (".avi", "mjpeg", Fraction(1000, 24_999), range(140)),
    "raw": (".y4m", "wrapped_avframe", Fraction(1001, 30_000), range(70)),
    "milliseconds": (".mkv", "mpeg4", Fraction(1, 1000), range(0, 5600, 40)),
    "one frame a minute": (".mkv", "mpeg4", Fraction(1, 1000), range(0, 90 * 60_000, 60_000)),
    "one a minute, and a pause": (
        ".mkv", "mpeg4", Fraction(1, 1000),
        [*range(0, 20 * 60_000, 60_000), *range(4_200_000, 5_400_000, 60_000)],
    ),
    "an hour between two": (".mp4", "mpeg4", Fraction(1, 600), range(0, 600 * 36_000, 600 * 3600)),
    "ten a second, a pause": (
        ".mp4", "mpeg4", Fraction(1, 600), [*range(0, 1200, 60), *range(31_200, 32_400, 60)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("stride", [1, 7, 40, 65])
@pytest.mark.parametrize("kind", _ODD_TICKS)
def test_a_labelled_video_has_the_films_times(kind: str, stride: int, tmp_path: Path) -> None:
    """Whatever a container counts in, and however far what is drawn lies apart."""
    suffix, codec, base, ticks = _ODD_TICKS[kind]
    path = _ticking(tmp_path / f"film{suffix}", codec, base, list(ticks))
    reading = numbering.Reading()
    for _ in numbering.numbered(path, reading):
        pass
    shown, _ = reading.seconds(np.arange(0, reading.end, stride))
    assert reading.end >= len(list(ticks))
    out = tmp_path / "pose.mp4"
    assert canvas.encode(out, canvas.open_canvases(path, stride=stride)) == len(shown)
    atol = 2e-6 if stride == 1 and shown[1] < 1 else 1e-3
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        found = sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.size)
    np.testing.assert_allclose(np.array(found) - found[0], shown - shown[0], rtol=0, atol=atol)


def _ticking(path: Path, codec: str, base: Fraction, ticks: list[int]) -> Path:
    """Write a film of 64x48 whose frames are shown at these ticks."""
    with av.open(str(path), "w") as container:
        rate = 1 / base if base > Fraction(1, 600) else Fraction(25)
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        for number, tick in enumerate(ticks):
            level = np.full((48, 64, 3), 3 * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(level, "rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("size", [(16_400, 64), (64, 16_400)])
def test_what_is_too_large_for_h264_is_said_with_what_to_do(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """Poses are there by then: the words say how to have them without a video."""
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "gray"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros(size[::-1], np.uint8), "gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(AnalysisError, match=r'16,384.*"style": \{"video": false\}') as caught:
        canvas.encode(tmp_path / "pose.mp4", canvas.open_canvases(path))
    assert caught.value.code == "too_large_to_draw"
