"""The tasks of child processes: the one table that says which function does each of them.

The functions lie in modules that only a child imports: decoders, torch, DeepLabCut. Nothing else is
imported by its name but what a plug-in's :class:`posedrop.analyses.Analysis` names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

#: Task name -> ``package.module:function``, called as ``function(payload, report)``.
TASKS = {
    "begin": "worker.engine.inference:begin",
    "probe": "worker.video.preflight:probe",
    "run_analysis": "worker.child.analysis:run_analysis",
    "finish_analysis": "worker.child.analysis:finish_analysis",
    "render": "worker.video.draw:render",
    "export": "worker.poses.formats:export",
    "pick_frames": "worker.poses.outliers:pick",
    "pack_frames": "worker.poses.frames:pack",
    "compare": "worker.poses.compare:compare",
    "copy_film": "worker.video.draw:copy_film",
}
#: Child -> modules that it imports while it waits for its first call.
WARM = {
    "cpu": ("worker.video.preflight", "worker.video.draw"),
    "gpu": ("worker.engine.inference",),
    "tables": ("worker.poses.tables",),
}


class Reporter(Protocol):
    """What a task tells its parent by."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Tell how many frames of a stage are done, of how many; call it as often as you like."""

    def permit(self) -> AbstractContextManager[None]:
        """Wait for the accelerator, and have it for oneself within a ``with`` block."""


def function(name: str) -> Callable[..., Any]:
    """Return the function of a task, or that ``package.module:function`` names.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such function.
    """
    module, _, attribute = TASKS.get(name, name).partition(":")
    found: Callable[..., Any] = getattr(imported(module), attribute)
    return found


def imported(module: str) -> ModuleType:
    """Import a module by its name."""
    return importlib.import_module(module)
