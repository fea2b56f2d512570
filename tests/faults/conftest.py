"""The two stacks, each started once for the tests of this folder that leave it running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import labs
from tests.support.lab import Embedded, Lab, Servers
from tests.support.world import World


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """MinIO and Redis, with a second gpu worker to take over from the first."""
    lab = labs.servers(tmp_path_factory.mktemp("faults") / "data", index_timeout_seconds="1")
    lab.start()
    lab.start_worker("worker-gpu")
    yield lab
    assert lab.stop() == 0


@pytest.fixture(scope="package")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """``posedrop up``."""
    lab = labs.embedded(tmp_path_factory.mktemp("faults") / "data", index_timeout_seconds="1")
    lab.start()
    yield lab
    assert lab.stop() == 0


@pytest.fixture(params=["embedded", "servers"])
def lab(request: pytest.FixtureRequest) -> Lab:
    """Each of the stacks."""
    found: Lab = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """posedrop in this thread, on a store in memory."""
    world = World(tmp_path)
    yield world
    world.end()
