"""worker.gpu.streams on a pretended device: no pinned memory is written to that is still read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.pretended_gpu import Cuda
from worker.gpu import streams
from worker.gpu.streams import BUFFERS, Upload, device_of


@pytest.mark.parametrize("sizes", [[4] * 12, [8, 8, 8, 2, 8, 1, 1, 1, 16, 8, 16], [1]])
def test_memory_is_pinned_once_and_never_written_to_while_it_is_read(sizes: list[int]) -> None:
    """Whatever batches come; what was sent is what came, whenever the device looks at it."""
    cuda = Cuda(lazy=True)
    upload = Upload(torch.device("cpu"), cuda)
    came, sent = [], []
    for number, size in enumerate(sizes):
        arrays = [np.full((3, 5), 10 * number + row, np.uint8) for row in range(size)]
        came.append(np.stack(arrays))
        sent.append(upload(arrays))
    cuda.work()
    for one, other in zip(sent, came, strict=True):
        assert np.array_equal(one.numpy(), other)
    grows = sum(size > max(sizes[:place], default=0) for place, size in enumerate(sizes))
    assert len(cuda.pinned_sizes) <= BUFFERS * grows
    assert cuda.sent_count == len(sizes)


def test_a_cpu_has_pictures_as_they_are() -> None:
    """One is not copied."""
    picture = np.zeros((2, 2, 3), np.uint8)
    upload = Upload(torch.device("cpu"), device_of(torch.device("cpu")))
    picture[0, 0] = 7
    assert upload([picture])[0, 0, 0, 0] == 7
    assert upload([picture, picture]).shape == (2, 2, 2, 3)


class Stream:
    """One of a device's, which may have failed."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("broken", [False, True])
def test_a_block_that_fails_is_waited_for_and_tells_its_own_error(broken: bool) -> None:
    """Whoever has the device next does not share it with what is left of this one."""
    stream = Stream(broken=broken)
    with pytest.raises(ValueError, match="its own"), streams._done_at_its_end(stream):
        raise ValueError("its own")
    assert stream.waited == 1
