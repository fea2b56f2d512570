"""For the processes of the fault tests: nobody infers there, so nobody waits for torch.

A warm module that can't be imported is a line in the child's idle log, and nothing else.
"""

from __future__ import annotations

import sys

sys.modules["worker.engine.inference"] = None  # type: ignore[assignment]
sys.modules["worker.video.draw"] = None  # type: ignore[assignment]
