"""What a child is asked for by name is there: tasks, warm modules, and the analyses' functions."""

from __future__ import annotations

import pytest

from posedrop import analyses
from worker.child import messages, tasks

ANALYSES = [
    path for each in analyses.installed().values() for path in (each.run, each.finish) if path
]


@pytest.mark.parametrize("name", [*tasks.TASKS, *ANALYSES])
def test_each_name_is_a_function(name: str) -> None:
    """A name that is misspelt, or was moved, is found here and not by the first film."""
    assert callable(tasks.function(name))


def test_each_message_has_its_task_and_each_child_its_modules() -> None:
    """The table has neither more nor less than what parents ask for."""
    asked = (
        messages.Begin,
        messages.ProbeVideo,
        messages.RunAnalysis,
        messages.FinishAnalysis,
        messages.RenderVideo,
        messages.ExportPoses,
        messages.ComparePoses,
        messages.CopyFilm,
        messages.PickFrames,
        messages.PackFrames,
    )
    assert {task.NAME for task in asked} == set(tasks.TASKS)
    for module in sum(tasks.WARM.values(), ()):
        assert tasks.imported(module).__name__ == module
