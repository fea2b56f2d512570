"""Whether a failure means that memory did not suffice. No torch."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, of the machine or of an accelerator."""
    # By name, because torch is not ours to import; its allocator on the CPU has no class for it.
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    return (
        bool(names & {"MemoryError", "OutOfMemoryError"})
        or "can't allocate memory" in text
        or "can't start new thread" in text  # no room for its stack
        or "not enough memory" in text
        or "Insufficient memory" in text
        # DeepLabCut's runners raise a RuntimeError from it, with a hint at another cause.
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )
