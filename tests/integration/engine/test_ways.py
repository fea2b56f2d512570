"""precision.ways: a network computed by a plug-in, timed and watched as every other way is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.analysed import Ours
from tests.support.samples import Sample
from worker import hardware
from worker.engine import passes
from worker.precision import tuning, ways

NATIVE = hardware.native_dtype


class Toy:
    """A plug-in: the network with its weights rounded, by far the fastest, they say."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.calls = 0

    def __call__(self, model: Any, dtype: torch.dtype) -> Callable[[Tensor], Any]:
        if self.fault == "can't":
            raise NotImplementedError("no such layer")
        own = copy.deepcopy(model)
        for value in own.parameters():
            value.data = value.data.to(dtype).float()

        def compute(x: Tensor) -> Any:
            self.calls += 1
            if self.fault == "stops" and self.calls > 8:
                raise RuntimeError("engine is gone")
            found = own(x)
            if self.fault == "wrong":
                for named in found.values():
                    named["heatmap"] = named["heatmap"].roll(7, 3)
            return found

        return compute


@pytest.fixture(autouse=True)
def a_processor_with_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever machine the tests run on; and nothing but what they say is fast is fast."""
    monkeypatch.setattr(hardware, "native_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(
        "worker.engine.passes.LOOK_EVERY", 1000
    )  # whether it is worth it is not asked
    real = passes.Pass._timed

    def timed(self: Any, way: Any, picture: Any) -> float:
        if way.kind != "toy":  # where the processor has no bf16, it takes seconds, or can't be had
            return 1e-3 if way.numbers == "fp32" else 1e-2
        return 1e-6 if real(self, way, picture) < float("inf") else float("inf")

    monkeypatch.setattr(passes.Pass, "_timed", timed)
    monkeypatch.setattr(tuning, "MOST_SHARE", 1e9)  # short as the film is
    monkeypatch.setattr(tuning, "FIRST_SHARE", 1e9)
    monkeypatch.setattr(tuning, "SECONDS", 1e9)
    monkeypatch.setattr(tuning, "TIMES", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("fault", ["", "stops", "can't", "wrong"])
def test_a_way_of_a_plug_in_moves_no_keypoint(
    fault: str, short: Sample, run: Callable[..., Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken where it is fastest; one that fails, or errs, costs time and no keypoint."""
    toy = Toy(fault)
    expected = run(short.film, short.model, batch_size=2)
    monkeypatch.setattr(ways, "installed", lambda: {"toy": toy})
    ours = run(short.film, short.model, precision="auto", batch_size=2)
    details = ours.answer["details"]
    taken = details["tuning"]["convolutions"] == "toy"
    assert taken == bool(toy.calls) == (fault != "can't")
    true, poses = (one.poses.to_numpy().reshape(12, -1, 3) for one in (expected, ours))
    sure = true[..., 2] >= expected.answer["details"]["pcutoff"]
    assert sure.any()
    assert np.hypot(*np.moveaxis(poses - true, -1, 0)[:2])[sure].max() <= 0.5
    told = details["precision"]
    if fault == "wrong":
        assert told["used"] == "fp32" or told["frames_repeated_in_fp32"] > 0
    elif taken:
        assert told["used"] == "bf16"
        assert told["frames_checked_in_fp32"] > 0
    if fault:
        return
    toy.calls = 0
    monkeypatch.setattr(hardware, "native_dtype", NATIVE)
    run(short.film, short.model, precision="bf16", batch_size=2, stop=2)
    assert toy.calls == 0  # without a watch, none of them
