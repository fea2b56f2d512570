"""Building networks without the ones that others trained.

Imported in the child process only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchvision.models import WeightsEnum, get_model


@contextmanager
def nothing_downloaded() -> Iterator[None]:
    """Let torchvision build its detectors with random weights where it would fetch ImageNet's.

    DeepLabCut builds some (fasterrcnn_mobilenet_v3_large_fpn) around a backbone that torchvision
    downloads, only to load the snapshot's own weights over it. Told to leave that out, torchvision
    builds another network, with other norms; so it gets weights, but ones made here.
    """
    fetch = WeightsEnum.get_state_dict

    def untrained(self: WeightsEnum, *_: Any, **__: Any) -> dict[str, Any]:
        name = type(self).__name__.removesuffix("_Weights").lower()
        return dict(get_model(name, weights=None).state_dict())

    WeightsEnum.get_state_dict = untrained
    try:
        yield
    finally:
        WeightsEnum.get_state_dict = fetch
