"""video.cuda_decode: a card's frames are the CPU's, or the CPU decodes and it is told why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame

from tests.support import videos
from tests.support.pretended_cards import Fault, PretendedCard
from worker.video import cuda_decode, decode, numbering
from worker.video.cuda_decode import Card, DecodedOtherwiseError

Make = Callable[[Path], Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "video"


def card(
    fault: Fault | None = None,
    wanted: str = "cuda",
    device: str = "cuda:0",
    speeds: cuda_decode.DecodeSpeeds | None = None,
) -> Card:
    made = PretendedCard(wanted, device, speeds)
    if fault is not None:
        made.fault = fault
    return made


def read(
    path: Path, by: Card | None, stop: int | None = None
) -> tuple[dict[int, str], numbering.Reading]:
    """Return the hash of each frame's pixels by its number, and what was found out."""
    reading = numbering.Reading()
    shown = decode.frames(path, stop=stop, reading=reading, card=by)
    found = {number: hashlib.sha256(image).hexdigest() for number, image in shown}
    if by is not None:
        by.confirm(path)
    return found, reading


def same(path: Path, by: Card, stop: int | None = None) -> None:
    """A card in between changes no frame, no number, no time and nothing that is told of them."""
    (frames, reading), (expected, usual) = read(path, by, stop), read(path, None, stop)
    assert frames == expected
    if stop is None:
        assert reading == usual


def long(path: Path, count: int = 90, **options: object) -> Path:
    return videos.video(path, count=count, size=(64, 48), **options)  # type: ignore[arg-type]


# -- what it decodes -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", videos.READ.values(), ids=videos.READ)
def test_whatever_film_comes_its_frames_are_the_cpus(make: Make, path: Path) -> None:
    """Codecs, containers, rotations, odd sizes, damage: with a card it reads as without."""
    made = make(path)
    by = card()
    same(made, by)
    assert by.used == "cuda" or len(by.why) > 10
    same(made, card(), stop=5)


@pytest.mark.parametrize(
    ("made", "used"),
    [
        ({}, "cuda"),
        ({"options": {"bf": "3"}}, "cuda"),
        ({"pixel_format": "yuvj420p"}, "cuda"),
        ({"container": "matroska"}, "cuda"),
        ({"options": {"x264-params": "tff=1:bframes=3"}}, "cuda"),
        ({"codec": "libvpx", "container": "webm"}, "cuda"),
        ({"container": "mpegts"}, "cuda"),
        ({"options": {"g": "1000", "bf": "2"}, "container": "avi"}, "cuda"),
        ({"pixel_format": "yuv444p"}, "cpu"),
        ({"pixel_format": "yuv420p10le"}, "cpu"),
        ({"codec": "mpeg4", "container": "avi"}, "cpu"),
        ({"codec": "ffv1", "container": "matroska"}, "cpu"),
        ({"container": "h264"}, "cpu"),
    ],
    ids=str,
)
def test_a_card_decodes_what_a_standard_defines_to_the_bit(
    made: dict[str, object], used: str, path: Path
) -> None:
    """8 bits of 4:2:0 in H.264 (HEVC, VP8, VP9), with times; the rest is the CPU's, in words."""
    by = card()
    same(long(path, **made), by)
    assert (by.used, by.frames) == (used, 90 if used == "cuda" else 0)
    assert used == "cuda" or "processor" in by.why or "frames" in by.why


# -- what goes wrong with it -----------------------------------------------------------------------


def changed(frame: VideoFrame) -> VideoFrame:
    plane = np.frombuffer(frame.planes[0], np.uint8)  # type: ignore[call-overload]
    plane[frame.planes[0].line_size * 20 + 30] ^= 1
    return frame


def at(where: int, what: Callable[[VideoFrame], list[VideoFrame]]) -> Fault:
    return lambda number, frame: what(frame) if number == where else [frame]


def stops(frame: VideoFrame) -> list[VideoFrame]:  # noqa: ARG001
    raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")


def test_a_wrong_first_frame_leaves_the_film_to_the_cpu(path: Path) -> None:
    """One bit of one pixel is enough."""
    by = card(at(0, lambda frame: [changed(frame)]))
    same(long(path), by)
    assert (by.used, by.frames) == ("cpu", 0)
    assert "first frame" in by.why


@pytest.mark.parametrize("where", [1, 40, 88, 89])
def test_a_card_that_stops_leaves_the_film_to_the_cpu(where: int, path: Path) -> None:
    """Wherever it does: no frame twice, none left out, and the frames before count if they may."""
    by = card(at(where, stops))
    same(long(path), by)
    assert by.used == "cpu"
    assert by.frames in (where, where - 1)  # the last two come at once
    assert f"after {by.frames} frames: CUDA_ERROR" in by.why


@pytest.mark.parametrize(
    "fault",
    [
        at(40, lambda _: []),
        at(40, lambda frame: [frame, frame]),
        at(89, lambda frame: [changed(frame)]),
        lambda number, frame: [changed(frame)] if number else [frame],
    ],
    ids=["lacks one", "one twice", "wrong last", "wrong from the second on"],
)
def test_frames_that_are_not_the_cpus_are_not_believed(fault: Fault, path: Path) -> None:
    """Found out at the end at the latest; then all is to be done again, by the CPU."""
    made = long(path, options={"g": "15"})
    by = card(fault)
    with pytest.raises(DecodedOtherwiseError) as found:
        read(made, by)
    again = by.distrusted(found.value)
    same(made, again)
    assert (again.used, again.why) == ("cpu", str(found.value))
    assert again.setup != by.setup  # no checkpoint of the one is the other's


@pytest.mark.parametrize("where", [2, 40])
def test_wrong_frames_before_a_card_stops_are_not_believed(where: int, path: Path) -> None:
    """The frames that it had given by then are in the result: they have to be the CPU's."""

    def fault(number: int, frame: VideoFrame) -> list[VideoFrame]:
        if number == where:
            return stops(frame)
        return [changed(frame)] if number else [frame]

    with pytest.raises(DecodedOtherwiseError):
        read(long(path), card(fault))


def test_a_last_frame_that_does_not_come_is_the_cpus(path: Path) -> None:
    """What the card has given is as it should be: it stays."""
    by = card(at(89, lambda _: []))
    same(long(path), by)
    assert by.used == "cpu"
    assert "missing" in by.why


def test_damage_is_the_cpus(path: Path) -> None:
    """What it conceals, loses and counts is as without a card."""
    by = card()
    same(videos.damaged(path), by)
    assert by.used == "cpu"
    assert "after" in by.why


def test_a_part_of_a_film_is_confirmed_by_its_own_last_frame(path: Path) -> None:
    """The end of the film is not decoded for it."""
    wrong = at(30, lambda frame: [changed(frame)])
    made = long(path)
    by = card(wrong)
    with pytest.raises(DecodedOtherwiseError):
        read(made, by, stop=30)
    same(made, card(at(80, stops)), stop=30)


# -- whether it does -------------------------------------------------------------------------------


def test_auto_takes_who_is_faster(path: Path) -> None:
    """It is tried once for a kind of film; who was asked by name is not tried at all."""
    made = long(path)
    kind = ("cuda:0", ("h264", 64, 48, "yuv420p"))
    for rates, used in (((100.0, 200.0), "cuda"), ((200.0, 100.0), "cpu")):
        by = card(wanted="auto", speeds={kind: rates})
        PretendedCard.opened = 0
        same(made, by)
        assert by.used == used
        assert bool(PretendedCard.opened) == (used == "cuda")  # it is not begun in vain
        assert "frames/s by the card" in by.why
    speeds: cuda_decode.DecodeSpeeds = {}
    same(made, card(wanted="auto", speeds=speeds))
    assert set(speeds) == {kind}
    assert all(rate > 0 for rate in speeds[kind])


def test_auto_leaves_short_films_and_other_devices_to_the_cpu(path: Path) -> None:
    """With too few frames to tell who is faster, and where the network itself is on a CPU."""
    by = card(wanted="auto")
    same(long(path, count=20), by)
    assert (by.used, "20" in by.why or "not" in by.why) == ("cpu", True)
    PretendedCard.opened = 0
    for wanted, device in (("auto", "cpu"), ("auto", "mps"), ("cpu", "cuda")):
        by = card(wanted=wanted, device=device)
        same(path, by)
        assert (by.summary()["used"], by.summary()["by_card"]) == ("cpu", 0)
    assert PretendedCard.opened == 0


def test_a_machine_without_a_card_says_so(path: Path) -> None:
    """Asked for by name, too: the film is decoded, and the reason told."""
    for wanted in ("auto", "cuda"):
        by = Card(wanted, "cuda:0")
        same(long(path), by)
        assert by.summary()["used"] == "cpu"
        assert by.why.startswith("there is no card that FFmpeg can reach")
    assert cuda_decode.lacking("cuda:0").startswith("there is no card that FFmpeg can reach")


def test_doctor_has_a_small_film_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That FFmpeg finds a card says little of what it decodes."""
    monkeypatch.setattr(cuda_decode, "Card", PretendedCard)
    assert cuda_decode.lacking("cuda:0") == ""
