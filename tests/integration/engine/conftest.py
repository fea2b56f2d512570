"""Films and models to analyse, and stock DeepLabCut's own answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from tests.support.analysed import Ours, Stock, analysed, copied, read
from tests.support.samples import Sample, sample

# Read by DeepLabCut when it is imported; this file is, before any of the tests.
os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from worker.engine import inference
from worker.engine.state import ENGINE
from worker.poses import tables


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inference")


@pytest.fixture(scope="session")
def long(folder: Path) -> Sample:
    return sample(folder, 60)


@pytest.fixture(scope="session")
def short(folder: Path) -> Sample:
    return sample(folder, 12)


@pytest.fixture(scope="session")
def project(folder: Path, long: Sample) -> Path:
    """A copy of the model that may be written to, as DeepLabCut wants it."""
    return copied(long.model, folder / "project")


@pytest.fixture(scope="session")
def stock(long: Sample, project: Path, folder: Path) -> Stock:
    return analysed(long.film, project / "config.yaml", folder / "stock")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ours]:
    """Run the analysis in this process: ``run(film, model, **args)``."""

    def runs(
        film: Path,
        model: Path,
        digest: str | None = "d" * 64,
        model_bytes: int = 2**30,
        **args: Any,
    ) -> Ours:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        whole = deeplabcut_2d.normalise({"model": "mouse", "precision": "fp32", **args})
        job = Job(film, out, whole, model, digest, lambda *_: None, "cpu", model_bytes=model_bytes)
        inference.run(job)
        return read(out, tables.finish(job))

    return runs


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """No test sees another's models."""
    ENGINE.models.clear()
    yield
    ENGINE.models.clear()
