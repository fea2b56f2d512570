"""Small videos, whole and hostile, for tests: a function writes one file and returns its path."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

#: Presentation times in ticks of 1/1000 s: a camera that stutters.
UNEVEN_TIMES = (0, 33, 66, 133, 150, 300, 333, 366, 400, 700, 733, 766)


def pictures(count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Yield RGB frames (height, width, 3) with a disc that moves over a gradient and some noise."""
    noise = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(count):
        frame = np.stack([columns % 256, rows % 256, (rows + columns + 3 * index) % 256], axis=-1)
        frame = np.clip(frame + noise.integers(-8, 8, frame.shape), 0, 255).astype(np.uint8)
        centre = (width * (index + 1) // (count + 2), height // 2)
        cv2.circle(frame, centre, height // 6, (250, 40, 20), -1)
        yield frame


def video(
    path: Path,
    *,
    count: int = 30,
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    rotate: int = 0,
    container: str = "mp4",
    options: dict[str, str] | None = None,
    movflags: str | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a video of ``size`` (width, height).

    ``times`` are in ms, else 30 frames/s; ``rotate`` is in degrees, counterclockwise.
    """
    flags = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", format=container, options=flags) as output:
        stream = output.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotate:
            stream.set_display_rotation(rotate)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, array in enumerate(pictures(count, *size)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def empty(path: Path) -> Path:
    """Write a file of no bytes."""
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    """Write a text under a video's name."""
    path.write_text("frame,x,y\n" * 200)
    return path


def picture(path: Path) -> Path:
    """Write a PNG under a video's name."""
    return _image(path, ".png")


def jpeg(path: Path) -> Path:
    """Write a JPEG under a video's name."""
    return _image(path, ".jpg")


def _image(path: Path, kind: str) -> Path:
    path.write_bytes(cv2.imencode(kind, next(pictures(1, 160, 120)))[1].tobytes())
    return path


def cut_without_index(path: Path) -> Path:
    """Write the first half of an MP4 that has its index at the end."""
    return _cut(video(path))


def cut_behind_index(path: Path) -> Path:
    """Write the first half of an MP4 that has its index at the start."""
    return _cut(video(path, movflags="faststart"))


def cut_in_last_frame(path: Path) -> Path:
    """Write an MP4 with its index at the start that lacks the last 10 bytes."""
    whole = video(path, movflags="faststart").read_bytes()
    path.write_bytes(whole[:-10])
    return path


def _cut(path: Path) -> Path:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def sound(path: Path) -> Path:
    """Write an MP4 that holds a second of silence and no picture."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16_000)
        for _ in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16_000
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def playlist(path: Path) -> Path:
    """Write an HLS playlist that names a file beside it."""
    secret = video(path.with_name("secret.ts"), container="mpegts")
    path.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.resolve()}\n#EXT-X-ENDLIST\n"
    )
    return path


def concat(path: Path) -> Path:
    """Write a list of FFmpeg's concat demuxer that names a file beside it."""
    secret = video(path.with_name("secret.mp4"))
    path.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    return path


def dash(path: Path) -> Path:
    """Write a DASH manifest that names an address."""
    path.write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>http://127.0.0.1:9/x.mp4</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    return path


def damaged(path: Path) -> Path:
    """Write an MP4 of 60 frames with noise over the bytes of some in the middle."""
    content = bytearray(video(path, count=60, movflags="faststart").read_bytes())
    half = len(content) // 2
    content[half : half + 3000] = np.random.default_rng(1).bytes(3000)
    path.write_bytes(content)
    return path


def lying_header(path: Path) -> Path:
    """Write an AVI of 30 frames whose headers speak of 2^31."""
    content = bytearray(
        video(path, codec="mjpeg", pixel_format="yuvj420p", container="avi").read_bytes()
    )
    struct.pack_into("<I", content, content.index(b"strh") + 40, 2**31 - 1)
    struct.pack_into("<I", content, content.index(b"avih") + 24, 2**31 - 1)
    path.write_bytes(content)
    return path


def coloured(
    path: Path,
    codec: str,
    pixel_format: str,
    primaries: int = 2,
    transfer: int = 2,
    matrix: int = 2,
    full: bool = False,
    container: str = "matroska",
) -> Path:
    """Write six frames whose colours are stored so, numbered as FFmpeg numbers them."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=30)
        stream.width, stream.height = 160, 120
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.color_primaries, context.color_trc = primaries, transfer
        context.colorspace, context.color_range = matrix, 2 if full else 1
        for array in pictures(6, 160, 120):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixel_format)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            frame.color_primaries, frame.color_trc = primaries, transfer
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


#: Codec, pixel format, and then primaries, transfer function, matrix and range.
COLOURS: dict[str, tuple[object, ...]] = {
    "HLG of a phone": ("libx264", "yuv420p10le", 9, 18, 9),
    "PQ, P3": ("libx264", "yuv420p10le", 12, 16, 9),
    "BT.709": ("libx264", "yuv420p", 1, 1, 1),
    "BT.709, full range": ("libx264", "yuv420p", 1, 1, 1, True),
    "BT.601": ("libx264", "yuv420p", 6, 6, 6),
    "SMPTE 240M": ("libx264", "yuv420p", 7, 7, 7),
    "gray": ("ffv1", "gray"),
    "gray, 10 bits": ("ffv1", "gray10le"),
    "gray, 12 bits": ("ffv1", "gray12le"),
    "4:4:4, 12 bits": ("ffv1", "yuv444p12le", 1, 1, 1),
    "GBR": ("ffv1", "bgr0"),
    "GBR, 10 bits": ("ffv1", "gbrp10le", 1, 13, 0, True),
    "BGRA": ("ffv1", "bgra"),
    "RGB": ("rawvideo", "rgb24", 2, 2, 2, False, "nut"),
    "RGB, 8 bits in all": ("rawvideo", "bgr8", 2, 2, 2, False, "nut"),
    "ProRes with alpha": ("prores_ks", "yuva444p10le"),
    "y4m": ("wrapped_avframe", "yuv420p", 2, 2, 2, False, "yuv4mpegpipe"),
    "raw MJPEG": ("mjpeg", "yuvj422p", 2, 2, 2, True, "mjpeg"),
}

#: More of them that are mapped, which takes libswscale seconds each to prepare.
MAPPED: dict[str, tuple[object, ...]] = {
    "HLG, full range": ("libx264", "yuv420p10le", 9, 18, 9, True),
    "HLG, narrow primaries": ("libx264", "yuv420p10le", 1, 18, 1),
    "PQ": ("libx264", "yuv420p10le", 9, 16, 9),
    "PQ, 4:2:2": ("libx264", "yuv422p10le", 9, 16, 9),
    "BT.2020": ("libx264", "yuv420p10le", 9, 14, 9),
    "BT.2020, 8 bits": ("libx264", "yuv420p", 9, 1, 9),
    "P3, sRGB": ("libx264", "yuv444p", 12, 13, 1, True),
    "DCI P3": ("libx264", "yuv420p", 11, 1, 1),
}


def blank(path: Path) -> Path:
    """Write an MP4 whose index is whole, and whose frames are all zeros."""
    content = bytearray(video(path, movflags="faststart").read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin:] = bytes(len(content) - begin)
    path.write_bytes(content)
    return path


def bomb(path: Path) -> Path:
    """Write a small MJPEG AVI that claims 20,000 x 20,000 pixels, in all its headers."""
    content = video(
        path, count=2, codec="mjpeg", pixel_format="yuvj420p", container="avi"
    ).read_bytes()
    content = content.replace(struct.pack("<ii", 160, 120), struct.pack("<ii", 20_000, 20_000))
    content = content.replace(
        struct.pack(">BHH", 8, 120, 160), struct.pack(">BHH", 8, 20_000, 20_000)
    )
    path.write_bytes(content)
    return path


#: Files to be refused, and the code to refuse them with.
REFUSED: dict[Callable[[Path], Path], str] = {
    empty: "empty",
    text: "not_a_video",
    picture: "not_a_video",
    jpeg: "not_a_video",
    playlist: "not_a_video",
    concat: "not_a_video",
    dash: "not_a_video",
    cut_without_index: "truncated",
    cut_behind_index: "truncated",
    cut_in_last_frame: "truncated",
    sound: "no_video_stream",
    blank: "no_frames",
    bomb: "no_frames",
}


def _b_frames(path: Path) -> Path:
    return video(path, options={"bf": "3", "b-pyramid": "normal"})


def _edit_list(path: Path) -> Path:
    # Times that begin before zero: the container says to leave these frames out.
    return video(path, times=range(-200, 1000, 40)[:30])


#: Videos to be read, by what is particular about them.
READ: dict[str, Callable[[Path], Path]] = {
    "plain": video,
    "one_frame": lambda path: video(path, count=1),
    "odd_size": lambda path: video(path, size=(161, 121), pixel_format="yuv444p"),
    "odd_size_subsampled": lambda path: video(
        path, size=(161, 121), codec="mpeg4", container="avi"
    ),
    "rotated_90": lambda path: video(path, rotate=90),
    "rotated_180": lambda path: video(path, rotate=180),
    "rotated_270": lambda path: video(path, rotate=270),
    "variable_frame_rate": lambda path: video(path, count=len(UNEVEN_TIMES), times=UNEVEN_TIMES),
    "ten_bit": lambda path: video(path, pixel_format="yuv420p10le"),
    "b_frames": _b_frames,
    "edit_list": _edit_list,
    "full_range": lambda path: video(path, codec="mjpeg", pixel_format="yuvj420p", container="avi"),
    "matroska": lambda path: video(path, container="matroska"),
    "mpegts": lambda path: video(path, container="mpegts"),
    "raw_h264": lambda path: video(path, container="h264"),
}
