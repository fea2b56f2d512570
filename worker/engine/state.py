"""What a child process keeps from one video to the next: models, and what it has measured.

Imported in the child process only: it brings torch along.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.loaded import ModelCache
from worker.video.cuda_decode import DecodeSpeeds


@dataclass
class EngineState:
    """All that a video leaves behind for the videos after it."""

    models: ModelCache = field(default_factory=ModelCache)
    """The loaded models; a detector's best batches are kept with its model."""
    decode_speeds: DecodeSpeeds = field(default_factory=dict)
    """Frames a second of processor and card, by kind of film."""


#: The one of this process: a child calls its tasks by name, with nothing to keep between two.
ENGINE = EngineState()
