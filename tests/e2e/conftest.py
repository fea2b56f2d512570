"""One lab for all end-to-end tests that leave it running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab
from tests.samples import Sample, free_box, sample


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running ``posedrop up``."""
    lab = Lab(tmp_path_factory.mktemp("lab") / "data").start()
    yield lab
    assert lab.stop() == 0


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for films that tests cut and draw."""
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="session")
def mouse(films: Path) -> Sample:
    """100 frames of a mouse and a model that knows it."""
    return sample(films, 100)


@pytest.fixture
def clip(films: Path, tmp_path: Path) -> Path:
    """A short film that no other test has: equal content would be the same analyses."""
    path = tmp_path / "clip.mp4"
    plain = sample(films, 12).film.read_bytes()
    path.write_bytes(plain + free_box(64, os.urandom(56)))
    return path


@pytest.fixture(scope="session")
def model(lab: Lab, mouse: Sample) -> str:
    """The name of the mouse's model, pushed as a user pushes it."""
    lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
    return "mouse"
