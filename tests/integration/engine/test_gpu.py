"""The way of a film on a GPU, on a pretended one: counted is what it would be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from tests.support import pretended_cards
from tests.support.analysed import Ours, furthest, read
from tests.support.pretended_gpu import Cuda, Device
from tests.support.samples import Sample
from worker.cpu import fused
from worker.engine import inference, passes
from worker.engine.state import ENGINE
from worker.gpu.graphs import PROOFS, SEEN
from worker.poses import tables
from worker.precision import guard, variants
from worker.video import cuda_decode

BATCH = 4
#: Small pictures: a processor has to do it all.
CROP = {"x1": 120, "x2": 184, "y1": 80, "y2": 144}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures of this size are not worth two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Gpu:
    """A pretended GPU: what it recorded, what was sent to it, how much it had at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forget()
        monkeypatch.setattr(variants, "recorder_of", lambda _: self.recorder)
        monkeypatch.setattr(passes, "device_of", lambda _: self.cuda)
        monkeypatch.setattr(passes, "accelerated", lambda _: True)
        # What runs on a CPU alone is not there.
        monkeypatch.setattr(fused, "fuse", lambda _: 0)
        launch, collect = guard.PrecisionGuard.launch, guard.PrecisionGuard.collect

        def launched(its: Any, pixels: torch.Tensor, count: int) -> Any:
            self.shapes.append(tuple(pixels.shape))
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
            return launch(its, pixels, count)

        def collected(its: Any, batch: Any) -> Any:
            self.flying -= 1
            return collect(its, batch)

        monkeypatch.setattr(guard.PrecisionGuard, "launch", launched)
        monkeypatch.setattr(guard.PrecisionGuard, "collect", collected)

    def forget(self) -> None:
        self.recorder, self.cuda = Device(), Cuda()
        self.shapes: list[tuple[int, ...]] = []
        self.flying = self.most_flying = 0


def test_a_film_is_sent_recorded_and_replayed(
    long: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many transfers as batches, in few pinned buffers; two at work; the same poses by bits."""
    gpu = Gpu(monkeypatch)
    with monkeypatch.context() as without:
        without.setattr(variants, "recorder_of", lambda _: None)
        expected = run(long.film, long.model, crop=CROP, batch_size=BATCH)
    ENGINE.models.clear()
    gpu.forget()
    ours = run(long.film, long.model, crop=CROP, batch_size=BATCH)
    batches = ceil(60 / BATCH)
    assert furthest(ours.poses, expected.poses) == 0
    timed = len(gpu.shapes) - batches
    assert gpu.cuda.sent_count == batches + timed
    assert {shape[0] for shape in gpu.shapes} == {BATCH}
    assert len(gpu.cuda.pinned_sizes) == 3
    assert gpu.cuda.beside_count == batches
    assert gpu.most_flying == 2
    assert [shape[0] for shape in gpu.recorder.recorded] == [BATCH]
    replays = ours.answer["details"]["graphs"]["replays"]
    assert replays == gpu.recorder.replays
    assert batches - SEEN <= replays <= batches
    assert replays > PROOFS
    [loaded] = ENGINE.models.models()
    assert loaded.variants.graphs.bytes > 0
    # Recordings stay for the next film within the bound, and where the device has room beyond.
    run(long.film, long.model, crop=CROP, batch_size=BATCH, stop=8)
    assert len(gpu.recorder.recorded) == 1
    with monkeypatch.context() as roomy:
        roomy.setattr(inference, "is_short", lambda _: False)
        run(long.film, long.model, crop=CROP, batch_size=BATCH, stop=8, model_bytes=0)
    assert gpu.recorder.held == 1
    run(long.film, long.model, crop=CROP, batch_size=BATCH, stop=8, model_bytes=0)
    assert (gpu.recorder.held, loaded.variants.graphs.bytes) == (0, 0)


def test_memory_that_runs_out_is_freed_of_recordings(
    long: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is halved, what was recorded for it is let go, and the poses are the same."""
    gpu = Gpu(monkeypatch)
    expected = run(long.film, long.model, crop=CROP, batch_size=BATCH // 2)
    ENGINE.models.clear()
    gpu.forget()
    launch, full = guard.PrecisionGuard.launch, [True]

    def crowded(its: Any, pixels: torch.Tensor, count: int) -> Any:
        if full and len(pixels) == BATCH and gpu.recorder.replays > PROOFS:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launch(its, pixels, count)

    monkeypatch.setattr(guard.PrecisionGuard, "launch", crowded)
    ours = run(long.film, long.model, crop=CROP, batch_size=BATCH)
    assert not full
    assert furthest(ours.poses, expected.poses) == pytest.approx(0, abs=1e-3)
    assert ours.answer["details"]["batch_size"] == BATCH // 2
    assert [shape[0] for shape in gpu.recorder.recorded] == [BATCH, BATCH // 2]
    assert gpu.recorder.most_held == 1


@pytest.mark.parametrize("fault", ["none", "wrong last"])
def test_a_card_that_decodes_is_believed_or_not(
    fault: str, short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are the network's, and result.json says so; or all is done again without it."""

    class Card(pretended_cards.PretendedCard):
        def fault(self, number: int, frame: Any) -> list[Any]:  # type: ignore[override]
            if fault == "wrong last" and number == 11:
                frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            return [frame]

    film = tmp_path / "film.mp4"
    _in_420(short.film, film)
    poses = []
    for name, decode in (("whole", "cpu"), ("card", "cuda")):
        monkeypatch.setattr(inference, "Card", Card)
        out, parts = tmp_path / name, tmp_path / f"{name}-parts"
        out.mkdir()
        parts.mkdir()
        args = deeplabcut_2d.normalise({"model": "m", "precision": "fp32", "crop": CROP})
        job = Job(film, out, args, short.model, "d" * 64, lambda *_: None, "cpu", parts=parts)
        job = replace(job, decode=decode, part_seconds=0.0)
        inference.run(job)
        poses.append(read(out, tables.finish(job)))
    whole, ours = poses
    assert furthest(ours.poses, whole.poses) == 0
    assert whole.answer["details"]["decode"]["used"] == "cpu"
    told = ours.answer["details"]["decode"]
    if fault == "none":
        assert told == {
            "asked": "cuda",
            "used": "cuda",
            "why": "POSEDROP_DECODE=cuda",
            "by_card": 12,
        }
    else:
        assert (told["used"], told["by_card"]) == ("cpu", 0)
        assert "not the processor's" in told["why"]


@pytest.mark.parametrize("fault", ["none", "lacks one"])
def test_what_a_card_decoded_before_a_kill_is_kept_if_it_is_the_cpus(
    fault: str, long: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt asks no card: it goes on from a part, or finds that its frames differ."""

    class Card(pretended_cards.PretendedCard):
        def fault(self, number: int, frame: Any) -> list[Any]:  # type: ignore[override]
            return [] if fault == "lacks one" and number == 2 else [frame]

    monkeypatch.setattr(inference, "Card", Card)
    film, parts = tmp_path / "film.mp4", tmp_path / "parts"
    _in_420(long.film, film)
    parts.mkdir()
    given = {"model": "m", "precision": "fp32", "crop": CROP, "batch_size": 4}
    args = deeplabcut_2d.normalise(given)
    begun: list[int] = []

    def job(name: str, decode: str, report: Callable[..., None]) -> Job:
        out = tmp_path / name
        out.mkdir()
        made = Job(film, out, args, long.model, "d" * 64, report, "cpu", part_seconds=0.0)
        return replace(made, decode=decode, parts=None if name == "whole" else parts)

    def die(stage: str, done: int, _: int | None) -> None:
        if stage == "infer" and done == 7:
            raise KeyboardInterrupt

    def note(stage: str, done: int, _: int | None) -> None:
        if stage == "infer":
            begun.append(done)

    whole = job("whole", "cpu", lambda *_: None)
    inference.run(whole)
    expected = read(whole.out, tables.finish(whole))
    with pytest.raises(KeyboardInterrupt):
        inference.run(job("first", "cuda", die))
    second = job("second", "cpu", note)
    inference.run(second)
    ours = read(second.out, tables.finish(second))
    assert begun[0] > 0  # it went on
    assert (0 in begun) == (fault == "lacks one")  # and began anew where it was wrong to
    assert ours.poses.to_numpy().tobytes() == expected.poses.to_numpy().tobytes()
    assert ours.answer["details"]["decode"]["by_card"] == 0


def test_a_card_is_seldom_asked_for_what_it_can_not_confirm(
    long: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film with one key frame is not decoded from there again after each batch, for nothing."""
    asked: list[int] = []
    near = cuda_decode.Card._is_seen_near

    def counted(its: cuda_decode.Card, path: Path, last: Any) -> bool:
        asked.append(last.index)
        return near(its, path, last)

    monkeypatch.setattr(cuda_decode, "NEAR", 1)
    monkeypatch.setattr(cuda_decode.Card, "_is_seen_near", counted)
    monkeypatch.setattr(inference, "Card", pretended_cards.PretendedCard)
    film, parts = tmp_path / "film.mp4", tmp_path / "parts"
    _in_420(long.film, film)
    parts.mkdir()
    given = {"model": "m", "precision": "fp32", "crop": CROP, "batch_size": 1}
    args = deeplabcut_2d.normalise(given)
    job = Job(film, tmp_path, args, long.model, "d" * 64, lambda *_: None, "cpu", parts=parts)
    inference.run(replace(job, decode="cuda", part_seconds=0.0))
    *parts_of_it, end = asked
    assert end == 59
    most = cuda_decode.SELDOM * cuda_decode.NEAR
    assert all(after > before + min(before, most) for before, after in pairwise(parts_of_it))
    assert not list(parts.iterdir())


def _in_420(film: Path, target: Path) -> None:
    """Encode a film as a card can decode it."""
    import av

    with av.open(str(film)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height = source.streams.video[0].width, source.streams.video[0].height
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            plain = frame.reformat(format="yuv420p")
            plain.pts = number
            plain.time_base = Fraction(1, 30)
            out.mux(stream.encode(plain))
        out.mux(stream.encode())


def test_fp32_is_all_of_it_unless_nothing_is_held_to_it(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same bits each time; DeepLabCut's own way goes in auto as DeepLabCut goes it."""
    Gpu(monkeypatch)
    cudnn: Any = torch.backends.cudnn
    forward = torch.nn.Conv2d.forward
    seen: set[tuple[bool, bool]] = set()

    def watched(its: Any, x: torch.Tensor) -> torch.Tensor:
        seen.add(now())
        return forward(its, x)

    def now() -> tuple[bool, bool]:
        return cudnn.allow_tf32, cudnn.deterministic

    before = now()
    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    run(short.film, short.model, crop=CROP, stop=4)
    assert seen == {(False, True)}
    dynamic = {"threshold": 0.5, "margin": 30}
    for precision, expected in (("auto", (True, False)), ("fp32", (False, True))):
        seen.clear()
        run(short.film, short.model, dynamic=dynamic, stop=2, precision=precision)
        assert seen == {expected}
    assert now() == before
