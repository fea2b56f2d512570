"""A plug-in of pytest for `make unit`: torch and DeepLabCut can't be imported, installed or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Absent(MetaPathFinder):
    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if name in {"torch", "deeplabcut"}:
            raise ModuleNotFoundError(f"{name} is not for tests of `make unit`", name=name)
        return None


sys.meta_path.insert(0, _Absent())
