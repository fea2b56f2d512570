"""Further ways to compute a network: plug-ins, by entry points ``posedrop.networks``.

For instance by TensorRT, which is no part of posedrop. A plug-in is a function
``make(model, dtype)``: given DeepLabCut's ``PoseModel`` (fp32, on its device, not to be changed)
and ``torch.float16`` or ``torch.bfloat16``, it returns a function of pictures (n, 3, height,
width), fp32 and normalised, that returns what the model returns. It raises where it can't.

With ``precision: auto`` it is one more way in these numbers (``precision.tuning``): timed beside
the others, taken if it is the fastest, and watched as they are (``precision.watch``). So it need
not be right to the bit: a picture in which it could move a keypoint is computed again in fp32.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn

from worker.memory import is_out_of_memory

log = logging.getLogger(__name__)

GROUP = "posedrop.networks"
Make = Callable[[Any, torch.dtype], Callable[[Tensor], Any]]
#: What a way may be called: it stands in what is remembered of timings.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


@functools.cache
def installed() -> dict[str, Make]:
    """Return the plug-ins that can be loaded, by name."""
    found: dict[str, Make] = {}
    for entry in entry_points(group=GROUP):
        if not _NAME.fullmatch(entry.name):
            log.warning("%r can be no way to compute a network: use a-z, 0-9 and _", entry.name)
            continue
        try:
            found[entry.name] = entry.load()
        except Exception:  # anybody's code
            log.warning(
                "%s, a way to compute a network, can't be loaded", entry.name, exc_info=True
            )
    return dict(sorted(found.items()))


class Other(nn.Module):
    """A network by a plug-in; where that fails, the form that would be without it."""

    def __init__(self, name: str, model: Any, dtype: torch.dtype, otherwise: nn.Module) -> None:
        """Have ``model`` made into another by the plug-in of this name."""
        super().__init__()
        self._name = name
        self._otherwise = otherwise
        self._made: Callable[[Tensor], Any] | None = None
        self._try(lambda: installed()[name](model, dtype), self._become)

    @property
    def works(self) -> bool:
        """Whether the plug-in still computes, and has not failed."""
        return self._made is not None

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns."""
        made = self._made
        found: list[Any] = []
        if made is not None:
            self._try(lambda: made(x), found.append)
        return found[0] if found else self._otherwise(x)

    def _become(self, made: Callable[[Tensor], Any]) -> None:
        self._made = made

    def _try(self, call: Callable[[], Any], take: Callable[[Any], None]) -> None:
        try:
            take(call())
        except Exception as error:  # anybody's code
            if is_out_of_memory(error):
                raise
            log.warning("%s computes no more: %s: %s", self._name, type(error).__name__, error)
            self._made = None
