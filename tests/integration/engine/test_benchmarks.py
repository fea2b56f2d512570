"""Benchmarks that put something else in the place of a part of the engine still fit it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.alone import alone, our_inference
from tests.support.samples import sample


@pytest.mark.parametrize("beside", [False, True], ids=["processor", "pretended accelerator"])
def test_a_film_goes_through_a_network_that_is_a_constant(tmp_path: Path, beside: bool) -> None:
    made = sample(tmp_path, 20)
    found = alone(
        our_inference, model=str(made.model), film=str(made.film), out=str(tmp_path),
        precision="fp32", constant=True, beside=beside,
    )  # fmt: skip
    assert found["frames"] == 20
