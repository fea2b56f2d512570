"""video.planes, gpu.staging: what a device makes of planes has OpenCV's pixels, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import films, videos
from tests.support.samples import Sample
from worker.engine import passes
from worker.gpu import staging
from worker.gpu.streams import Upload
from worker.video import decode, numbering
from worker.video.planes import Colours, Planes, planes_of, tables_of

CPU = torch.device("cpu")
#: Codec, container, pixel format, and by how many pixels a size may differ.
KINDS = [
    ("ffv1", "matroska", "yuv420p", 1),
    ("ffv1", "matroska", "gray", 1),
    ("ffv1", "matroska", "yuv422p", 1),
    ("mjpeg", "mov", "yuvj420p", 1),
    ("mpeg4", "mov", "yuv420p", 1),
    ("libx264", "mp4", "yuv420p", 2),
    ("libx264", "mp4", "yuvj420p", 2),
    ("libx264", "mp4", "gray", 1),
    ("libx264", "mp4", "nv12", 2),
    ("libx264", "mp4", "yuv420p10le", 2),
    ("rawvideo", "nut", "nv12", 1),
]


@dataclass(frozen=True)
class Noise:
    """How a film of noise is made."""

    kind: tuple[str, str, str, int]
    width: int
    height: int
    matrix: int
    full: bool
    rotate: int


@st.composite
def noises(draw: st.DrawFn) -> Noise:
    kind = draw(st.sampled_from(KINDS))
    width, height = (draw(st.integers(16, 90)) // kind[3] * kind[3] for _ in range(2))
    if draw(st.booleans()):
        height -= height % 2
    rotate = draw(st.sampled_from([0, 90, 180, 270])) if kind[1] in ("mp4", "mov") else 0
    matrix = draw(st.sampled_from([1, 2, 5, 6, 7, 9]))
    return Noise(kind, width, height, matrix, draw(st.booleans()), rotate)


def made(path: Path, film: Noise) -> Path:
    """Write two frames whose planes are noise of all levels."""
    codec, container, pixel_format, _ = film.kind
    chance = np.random.default_rng(film.width)
    with av.open(str(path), "w", format=container) as output:
        options = {"crf": "4"} if codec == "libx264" else {}
        stream = output.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = film.width, film.height, pixel_format
        context = stream.codec_context
        context.colorspace, context.color_range = film.matrix, 2 if film.full else 1
        context.qmin, context.qmax = (1, 3) if codec in ("mjpeg", "mpeg4") else (-1, 69)
        if film.rotate:
            stream.set_display_rotation(film.rotate)
        for _ in range(2):
            frame = av.VideoFrame(film.width, film.height, pixel_format)
            frame.colorspace, frame.color_range = film.matrix, 2 if film.full else 1
            for plane in frame.planes:
                if pixel_format.endswith("10le"):
                    values = chance.integers(0, 1024, plane.buffer_size // 2, np.uint16)
                else:
                    values = chance.integers(0, 256, plane.buffer_size, np.uint8)
                plane.update(values.tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
@given(film=noises(), data=st.data())
def test_a_device_makes_opencvs_pixels_of_planes(film: Noise, data: st.DataObject) -> None:
    """Odd sizes, matrices, ranges, turns: 0 levels of difference, and so for every crop."""
    with TemporaryDirectory() as folder:
        path = made(Path(folder) / "film", film)
        ours = [frame for _, frame in decode.frames(path, order="planes", threads=2)]
        theirs = list(films.opencv_frames(path))
        pixels = [frame for _, frame in decode.frames(path, order="bgr")]
    assert len(ours) == len(theirs) == 2
    for found, expected, converted in zip(ours, theirs, pixels, strict=True):
        assert found.shape == expected.shape
        height, width, _ = expected.shape
        if not isinstance(found, Planes):
            odd = (width if film.rotate in (90, 270) else height) % 2
            assert odd or film.kind[2] not in ("yuv420p", "yuvj420p", "gray")
            np.testing.assert_array_equal(found, converted)
            continue
        np.testing.assert_array_equal(staging.bgr(found, CPU), converted)
        np.testing.assert_array_equal(staging.bgr(found, CPU), expected)
        x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x2 = data.draw(st.integers(x1 + 1, width))
        y2 = data.draw(st.integers(y1 + 1, height))
        part = found.cropped(x1, y1, x2, y2)
        assert part.shape == (y2 - y1, x2 - x1, 3)
        np.testing.assert_array_equal(staging.bgr(part, CPU), expected[y1:y2, x1:x2])
        # A crop of a crop, as who crops twice would ask for it.
        x3, y3 = data.draw(st.integers(0, x2 - x1 - 1)), data.draw(st.integers(0, y2 - y1 - 1))
        again = part.cropped(x3, y3, x2 - x1, y2 - y1)
        np.testing.assert_array_equal(staging.bgr(again, CPU), expected[y1 + y3 : y2, x1 + x3 : x2])


@pytest.mark.parametrize("name", ["rotated_90", "ten_bit", "b_frames", "odd_size_subsampled"])
def test_films_as_they_come_have_the_same_pixels_as_planes(name: str, tmp_path: Path) -> None:
    """B-frames, rotations, 10 bits, odd heights: as by libswscale, in the same order."""
    path = videos.READ[name](tmp_path / "film")
    ours = decode.frames(path, order="planes", threads=2)
    for one, other in zip_longest(ours, decode.frames(path, order="bgr")):
        pixels = staging.bgr(one[1], CPU) if isinstance(one[1], Planes) else one[1]
        assert one[0] == other[0]
        np.testing.assert_array_equal(pixels, other[1])


def test_interlaced_films_and_wide_colours_are_left_to_libswscale(tmp_path: Path) -> None:
    """Their colours are computed between rows, or mapped to another screen's."""
    options = {"flags": "+ilme+ildct", "x264-params": "tff=1"}
    paths = [
        videos.video(tmp_path / "interlaced", count=4, options=options),
        videos.coloured(tmp_path / "wide", *videos.MAPPED["DCI P3"]),  # type: ignore[arg-type]
    ]
    for path in paths:
        for _, frame in decode.frames(path, order="planes"):
            assert not isinstance(frame, Planes)


def test_where_libswscale_does_otherwise_there_are_no_planes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A processor whose code isn't such a function is found out, and converts as before."""
    from worker.video import planes

    true = planes.converted

    def between_rows(frame: Any, *args: Any, **kwargs: Any) -> Any:
        found = true(frame, *args, **kwargs).copy()
        if frame.height == 98:  # the picture that tables are tried on
            found[50, 100] ^= 1
        return found

    monkeypatch.setattr(planes, "converted", between_rows)
    tables_of.cache_clear()
    try:
        assert tables_of(Colours("yuv420p", 1, 1)) is None
        assert planes_of(av.VideoFrame(32, 32, "yuv420p")) is None
    finally:
        tables_of.cache_clear()


def test_a_batch_of_several_kinds_is_put_together() -> None:
    """A film may change on the way: planes of two matrices and pixels, all of one size."""
    chance = np.random.default_rng(0)
    frames: list[Any] = [chance.integers(0, 256, (32, 48, 3), np.uint8)]
    for matrix in (1, 5, 5):
        frame = av.VideoFrame(48, 32, "yuv420p")
        for plane in frame.planes:
            plane.update(chance.bytes(plane.buffer_size))
        frame.colorspace = matrix
        frames.append(planes_of(frame))
    expected = [frames[0], *(np.asarray(staging.bgr(one, CPU)) for one in frames[1:])]
    upload = Upload(CPU, None)
    for _ in range(4):
        for some in (slice(0, 4), slice(1, 4), slice(2, 4), slice(0, 1)):
            np.testing.assert_array_equal(
                staging.pixels(frames[some], upload), np.stack(expected[some])
            )


@pytest.mark.parametrize(
    "kind",
    [
        ("ffv1", "yuv420p", False), ("ffv1", "yuv444p", True), ("mjpeg", "yuvj420p", True),
        ("ffv1", "gray", False), ("ffv1", "bgr0", False), ("ffv1", "yuv420p10le", False),
        ("rawvideo", "nv12", False),
    ],
)  # fmt: skip
def test_black_is_0_and_white_is_255(kind: tuple[str, str, bool], tmp_path: Path) -> None:
    """Brightness of frames of every sort of storage, and how far it spreads."""
    codec, pixel_format, full = kind
    container = "nut" if codec == "rawvideo" else "matroska"  # that tells the range
    with av.open(str(tmp_path / "film"), "w", format=container) as output:
        stream = output.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.color_range = 2 if full else 1
        for dark, light in ((0, 0), (255, 255), (0, 255), (102, 102)):
            array = np.full((48, 64, 3), dark, np.uint8)
            array[:, 32:] = light
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            ranges = {"src_color_range": 2, "dst_color_range": 2 if full else 1}
            output.mux(stream.encode(frame.reformat(format=pixel_format, **ranges)))
        output.mux(stream.encode())
    for order in ("planes", "rgb"):
        reading = numbering.Reading(brightness={})
        for _ in decode.frames(tmp_path / "film", order=order, reading=reading, threads=2):
            pass
        assert reading.brightness is not None
        found = [reading.brightness[number] for number in range(4)]
        expected = [(0, 0), (255, 0), (127.5, 127.5), (102, 0)]
        np.testing.assert_allclose(found, expected, atol=1.5, err_msg=order)


def test_an_accelerator_is_sent_half_the_bytes(
    run: Any, short: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretended one a cropped run sends planes, and finds the same poses."""
    sent: list[int] = []
    true = Upload.filled

    def counted(self: Upload, shape: tuple[int, ...], fill: Any) -> torch.Tensor:
        sent.append(int(np.prod(shape[1:])))
        return true(self, shape, fill)

    monkeypatch.setattr(Upload, "filled", counted)
    height, width, _ = next(decode.frames(short.film))[1].shape
    crop = {"x1": 11, "x2": width - 8, "y1": 7, "y2": height - 1}
    args = {"precision": "fp32", "batch_size": 4, "crop": crop}
    expected = run(short.film, short.model, **args)
    sent.clear()
    monkeypatch.setattr(passes, "accelerated", lambda _: True)
    found = run(short.film, short.model, **args)
    assert found.poses.equals(expected.poses)
    # From row 6 and column 10 on, for the colours' sake, to an even number of them.
    assert set(sent) == {(height - 6) * (width - 18) * 3 // 2}
