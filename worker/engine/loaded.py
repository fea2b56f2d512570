"""Models that stay loaded between videos, within a bound of bytes.

Imported in the child process only: it brings torch along.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker import hardware
from worker.cpu import fused
from worker.engine.detection import Detector
from worker.engine.network import Network
from worker.engine.padding import Padding
from worker.precision.variants import ModelVariants


@dataclass(frozen=True)
class LoadedModel:
    """A model, loaded and ready to run."""

    network: Network
    variants: ModelVariants
    padding: Padding | None
    """How a picture, or what is cut out for a top-down model, is padded, if that and normalising is
    all that DeepLabCut does to it before the network; else None."""
    detector: Detector | None = None
    """Of a top-down model."""
    conditions: LoadedModel | None = None
    """Of a conditional top-down model: the bottom-up one."""

    @property
    def bytes(self) -> int:
        """Bytes that the model takes now: all its weights, the detector's, and recordings."""
        modules = [*self.variants.forms(), *(self.detector.modules() if self.detector else [])]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for module in modules
            for tensor in _tensors(module)
        }
        packed = sum(fused.packed_bytes(module) for module in modules)
        beside = self.conditions.bytes if self.conditions is not None else 0
        return sum(storages.values()) + packed + self.variants.graphs.bytes + beside


class ModelCache:
    """The loaded models of a process, by name; the least recently used one is dropped first."""

    def __init__(self) -> None:
        """Begin without any model."""
        self._models: OrderedDict[Hashable, LoadedModel] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], LoadedModel], most: int) -> LoadedModel:
        """Return a model, which is loaded if it is not there, and kept.

        Args:
            most: bytes of all models, from when the next one is loaded. Until then this one is in
                use, and may be larger alone.
        """
        if key not in self._models:
            self.trim(most)  # reduced weights are made after a model was put here
            self._models[key] = load()
        self._models.move_to_end(key)
        self.trim(most)
        return self._models[key]

    def trim(self, most: int) -> None:
        """Drop the least recently used models, until all take ``most`` bytes, or one is left."""
        size = sum(model.bytes for model in self._models.values())
        while size > most and len(self._models) > 1:
            size -= self._models.popitem(last=False)[1].bytes
            hardware.released()

    def rest(self, most: int) -> None:
        """Drop recordings until all takes ``most`` bytes: another process will use the card."""
        size = sum(model.bytes for model in self._models.values())
        for model in self.models():
            if size > most:
                size -= model.variants.graphs.bytes
                model.variants.graphs.clear()

    def clear(self) -> None:
        """Drop all models."""
        self._models.clear()
        hardware.released()

    def models(self) -> list[LoadedModel]:
        """Return the models that are there, the least recently used first."""
        return list(self._models.values())

    def __iter__(self) -> Iterator[Hashable]:
        """Return the names of the models that are there, the least recently used first."""
        return iter(self._models)


def is_short(device: torch.device) -> bool:
    """Tell whether less than half of a device's memory is free: others may want what is kept."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return bool(free < total / 2)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
