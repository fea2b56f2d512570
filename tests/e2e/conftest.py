"""One lab for all end-to-end tests that leave it running; it ends with the last of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import RabbitMQ, Redis
from tests.support.lab import Embedded, Lab, Servers
from tests.support.samples import Sample, free_box, sample


@pytest.fixture(scope="package", params=["embedded", "minio-redis"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running posedrop, on each of the stacks."""
    data = tmp_path_factory.mktemp("lab") / "data"
    lab: Lab
    match request.param:
        case "embedded":
            lab = Embedded(data).start()
        case "minio-redis":
            lab = Servers(data, Redis(data.with_name("redis"))).start()
        case "minio-rabbitmq":
            lab = Servers(data, RabbitMQ(data.with_name("rabbitmq"))).start()
    yield lab
    assert lab.stop() == 0


@pytest.fixture(scope="package")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for films that tests cut and draw."""
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="package")
def mouse(films: Path) -> Sample:
    """60 frames of a mouse and a model that knows it."""
    return sample(films, 60)


@pytest.fixture
def clip(films: Path, tmp_path: Path) -> Path:
    """A short film that no other test has: equal content would be the same analyses."""
    path = tmp_path / "clip.mp4"
    plain = sample(films, 12).film.read_bytes()
    path.write_bytes(plain + free_box(64, os.urandom(56)))
    return path


@pytest.fixture(scope="package")
def model(lab: Lab, mouse: Sample) -> str:
    """The name of the mouse's model, pushed as a user pushes it."""
    lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
    return "mouse"
