"""One video after the other: models that stay loaded, and work that goes on where it was."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from posedrop.buckets.records.attempts import Progress
from tests.support.analysed import (
    TOLERANCE,
    Ours,
    furthest,
    read,
)
from tests.support.samples import Sample, sample
from worker import hardware
from worker.child import pool
from worker.engine import inference, network, passes
from worker.engine.state import ENGINE
from worker.memory import is_out_of_memory
from worker.poses import tables
from worker.precision import guard, tuning, variants


def beside(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Pretend, in a child, that there is an accelerator."""
    return {"accelerated": True}


def test_two_at_once_are_as_each_alone(
    long: Sample, short: Sample, run: Callable[..., Ours], tmp_path: Path
) -> None:
    """The second is decoded ahead in a child of its own, and has the network after the first."""
    expected = {sample.film: run(sample.film, sample.model) for sample in (long, short)}
    both = pool.ChildPool(
        "gpu", tmp_path, warm=["worker.engine.inference"], begins_with=f"{__name__}:beside"
    )
    both.start()
    begun = threading.Event()

    def analyse(sample: Sample) -> Ours:
        job = tmp_path / f"job-{sample.film.stem}"
        out = job / "out"
        out.mkdir(parents=True)
        shutil.copyfile(sample.film, job / "video")
        shutil.copytree(sample.model, job / "model")
        payload = {
            "analysis": "deeplabcut_2d",
            "video": str(job / "video"),
            "out": str(out),
            "args": deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32"}),
            "model": str(job / "model"),
            "model_digest": "d" * 64,
            "device": "cpu",
        }

        def on_progress(progress: Progress) -> None:
            if progress.stage == "infer":
                begun.set()

        both.call(
            "run_analysis",
            payload,
            makes_ready=True,
            on_progress=on_progress,
            should_stop=lambda: False,
            wall_seconds=600,
            folder=job,
            log=job / "run.log",
        )
        done = Job(sample.film, out, payload["args"], None, None, lambda *_: None)
        return read(out, tables.finish(done))

    try:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(analyse, long)
            assert begun.wait(300)
            second = threads.submit(analyse, short)
            one, two = first.result(), second.result()
    finally:
        both.close()
    for ours, its in ((one, long), (two, short)):
        assert furthest(ours.poses, expected[its.film].poses) == 0
    last, following = one.answer["details"], two.answer["details"]
    assert last["inference_ended_at"] <= following["inference_began_at"]


# -- models that stay loaded ----


def test_second_video_finds_the_model_loaded(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One digest is loaded once, whatever the batch size; no digest, no trust in the folder."""
    loads: list[Path] = []
    load = network.load

    def counted(folder: Path, snapshot: str | None, device: str) -> network.Network:
        loads.append(folder)
        return load(folder, snapshot, device)

    monkeypatch.setattr(network, "load", counted)
    first = run(short.film, short.model, stop=4)
    second = run(short.film, short.model, stop=4, batch_size=4)
    assert len(loads) == 1
    assert furthest(first.poses, second.poses) <= TOLERANCE
    run(short.film, short.model, digest=None, stop=1)
    assert len(loads) == 2


def test_models_stay_loaded_within_a_bound(short: Sample, run: Callable[..., Ours]) -> None:
    """All copies of the weights count; the least recently used goes, never the one in use."""

    def digests() -> list[Any]:
        return [key[0] for key in ENGINE.models]

    run(short.film, short.model, digest="a", stop=1)
    [loaded] = ENGINE.models.models()
    exact = loaded.bytes
    weights = network.load(short.model, None, "cpu").pose.model.state_dict().values()
    whole = sum(value.numel() * value.element_size() for value in weights)
    # As they are and, of nearly all, four times as many for tiles.
    assert 4.5 * whole <= exact <= 5.02 * whole
    loaded.variants.form("bf16", "direct")
    assert exact + 0.4 * whole <= loaded.bytes <= exact + 0.6 * whole
    bound = 2 * exact + whole  # a third one fits as it is loaded, not as it runs
    run(short.film, short.model, digest="b", stop=1, model_bytes=bound)
    assert digests() == ["a", "b"]
    run(short.film, short.model, digest="a", stop=1, model_bytes=bound)
    run(short.film, short.model, digest="c", stop=1, model_bytes=bound)
    assert digests() == ["a", "c"]
    run(short.film, short.model, digest="b", stop=1, model_bytes=0)
    assert digests() == ["b"]


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([(6, 1)], "cpu"), ([(6, 1), (8, 9)], "cuda:1"), ([(7, 5)], "auto"), ([(12, 1)], "auto"),
        ([(9, 1)], "cpu"), ([], "auto"),
    ],
)  # fmt: skip
def test_auto_passes_over_cards_that_torch_has_no_kernels_for(
    cards: list[tuple[int, int]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees such a card all the same, and fails at the first kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: cards[number])
    names = ["sm_75", "sm_80", "sm_86", "sm_90a", "compute_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: names)
    assert network.device_of("auto") == expected
    assert hardware.accelerates("auto") == (bool(cards) and expected != "cpu")


def test_films_of_many_lengths_leave_little_behind(short: Sample, run: Callable[..., Ours]) -> None:
    """The last batch of each film has a size of its own, for which weights are laid out."""
    small = {"x1": 120, "x2": 184, "y1": 80, "y2": 144}
    found = []
    for stop in (8, 9, 10, 11, 12):
        run(short.film, short.model, stop=stop, batch_size=8, crop=small)
        [loaded] = ENGINE.models.models()
        found.append(loaded.bytes)
    one = found[1] - found[0]
    assert one > 0
    assert max(found) <= found[0] + 2 * one


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch, "empty"),  # asks whether there is the device
        (torch, "load"),
        (network, "get_pose_inference_runner"),
        (variants, "_conditions_of"),  # tries a form of the network
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")], ids=repr
)
def test_model_that_has_no_room_is_loaded_in_its_turn(
    short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch, module: Any,
    name: str, error: Exception,
) -> None:  # fmt: skip
    """What another video takes of an accelerator's memory fails no job that waits for it."""
    usual, full = getattr(module, name), [error]

    def crowded(*args: Any, **options: Any) -> Any:
        if full:
            raise full.pop()
        return usual(*args, **options)

    monkeypatch.setattr(module, name, crowded)
    assert len(run(short.film, short.model, stop=1).poses) == 1
    assert not full
    [loaded] = ENGINE.models.models()
    assert loaded.variants.exact is not loaded.variants.plain  # what was full is not remembered


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1.2 GB)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_memory_that_does_not_suffice_is_known_by_its_words(text: str) -> None:
    """Few of torch's errors of this kind have a class of their own."""
    assert is_out_of_memory(RuntimeError(text))


# -- checkpoints ----


def test_an_interrupted_run_repeats_the_same_frames(
    short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a check finds of the noise counts within a batch, too, with checkpoints and without."""

    def stretched(self: variants.ModelVariants, *_: Any) -> Any:
        model = copy.deepcopy(self.plain)
        head, times = model.heads["bodypart"].heatmap_head, iter([1.0001, 1.5, 1.0001])
        forward = head.forward

        # Of three batches; in the second one 6 is checked.
        monkeypatch.setattr(head, "forward", lambda x: forward(x) * next(times))
        return model

    def found(part_seconds: float | None) -> tuple[bytes, dict[str, Any]]:
        ENGINE.models.clear()
        out = tmp_path / f"{part_seconds}"
        (out / "parts").mkdir(parents=True)
        args = deeplabcut_2d.normalise({"model": "m", "batch_size": 4})
        job = Job(
            short.film, out, args, short.model, "d" * 64, lambda *_: None, "cpu",
            parts=None if part_seconds is None else out / "parts", part_seconds=part_seconds or 0.0,
        )  # fmt: skip
        answer = inference.run(job)
        with np.load(out / "predictions.npz") as content:
            return content["bodyparts"].tobytes(), answer["details"]["precision"]

    monkeypatch.setattr(variants.ModelVariants, "fast", stretched)
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    for name, value in {"SAMPLES": 1, "CHECK_EVERY": 3, "EARLY": 0, "WINDOW": 2}.items():
        monkeypatch.setattr(guard, name, value)
    monkeypatch.setattr(passes, "WINDOW", 2)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    whole, told = found(None)
    assert told["used"] == "bf16"
    assert told["frames_repeated_in_fp32"] >= 2  # 10 and 11, by what 6 has shown
    assert found(0.0) == (whole, told)


def test_nothing_tells_of_more_frames_than_there_are(tmp_path: Path) -> None:
    """Of a run that begins late: those that are passed over are as many as lie before it."""
    film = sample(tmp_path, 70)
    args = deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32", "start": 66})
    told: list[tuple[str, int, int | None]] = []
    out = tmp_path / "out"
    out.mkdir()
    inference.run(
        Job(film.film, out, args, film.model, "d" * 64, lambda *each: told.append(each), "cpu")
    )
    assert ("decode", 64, 66) in told
    assert all(total is None or done <= total for _, done, total in told)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_interrupted_inference_goes_on(
    short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, batch: int
) -> None:
    """The next attempt decodes from the last part on; its poses are those of one go, bit by bit."""
    monkeypatch.setattr(guard, "SAMPLES", 2)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)  # short as the film is
    monkeypatch.setattr(guard, "CHECK_EVERY", 3)
    monkeypatch.setattr(guard, "EARLY", 0)
    args = deeplabcut_2d.normalise({"model": "mouse", "precision": precision, "batch_size": batch})

    def job(name: str, report: Callable[..., None] = lambda *_: None) -> Job:
        out = tmp_path / name
        out.mkdir()
        parts = tmp_path / "parts"
        parts.mkdir(exist_ok=True)
        return Job(
            short.film, out, args, short.model, "d" * 64, report, "cpu",
            parts=None if name == "whole" else parts, part_seconds=0.0,
        )  # fmt: skip

    def die(stage: str, done: int, _: int | None) -> None:
        if stage == "infer" and done == 7:
            raise KeyboardInterrupt

    whole = job("whole")
    inference.run(whole)
    expected = read(whole.out, tables.finish(whole))
    with pytest.raises(KeyboardInterrupt):
        inference.run(job("first", die))
    (tmp_path / "parts/000007.npz").write_bytes(b"half a file")
    ENGINE.models.clear()
    # How the pictures are computed is part of the attempt that began.
    monkeypatch.setattr(tuning, "tune", None)
    reported: list[tuple[str, int, int | None]] = []
    second = job("second", lambda *told: reported.append(told))
    inference.run(second)
    ours = read(second.out, tables.finish(second))
    # Pictures that wait for others, to be computed again with them, hold a part back.
    assert reported[0] == ("load", 0, None)
    told = next(each for each in reported if each[0] == "infer")  # behind what is passed over
    assert told in {("infer", done, 12) for done in ((6,) if batch == 1 else (2, 4, 6))}
    assert ours.poses.to_numpy().tobytes() == expected.poses.to_numpy().tobytes()
    for details in (ours.answer["details"], expected.answer["details"]):
        del details["inference_began_at"], details["inference_ended_at"]
        if details["tuning"] is not None:
            del details["tuning"]["seconds"]  # until it was seen that the film is too short for it
    assert ours.answer["details"] == expected.answer["details"]


def test_another_kind_of_device_goes_on_in_numbers_of_its_own(
    short: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU had found stays; the CPU that takes over computes the rest as suits a CPU."""
    native: list[torch.dtype | None] = [torch.float16]
    monkeypatch.setattr(hardware, "native_dtype", lambda _: native[0])
    monkeypatch.setattr(variants.ModelVariants, "fast", lambda self, *_: self.plain)
    monkeypatch.setattr(tuning, "is_worth", lambda *_: True)
    small = {"x1": 120, "x2": 184, "y1": 80, "y2": 144}
    args = deeplabcut_2d.normalise({"model": "mouse", "batch_size": 2, "crop": small, "pcutoff": 0})
    parts = tmp_path / "parts"
    parts.mkdir()

    def job(name: str, report: Callable[..., None]) -> Job:
        out = tmp_path / name
        out.mkdir()
        made = Job(short.film, out, args, short.model, "d" * 64, report, "cpu", part_seconds=0.0)
        return replace(made, parts=parts)

    def die(stage: str, done: int, _: int | None) -> None:
        if stage == "infer" and done == 7:
            raise KeyboardInterrupt

    def computed(*how: Any) -> Any:
        pytest.fail(f"computed in {how[1:]}")

    with pytest.raises(KeyboardInterrupt):
        inference.run(job("first", die))
    ENGINE.models.clear()
    native[0] = None
    monkeypatch.setattr(variants.ModelVariants, "fast", computed)
    begun: list[int] = []
    second = job("second", lambda stage, done, _: begun.append(done) if stage == "infer" else None)
    answer = inference.run(second)
    assert begun[0] > 0
    assert answer["frames_decoded"] == 12
    assert answer["details"]["precision"]["used"] == "fp32"
    assert answer["details"]["precision"]["frames_checked_in_fp32"] >= guard.SAMPLES
