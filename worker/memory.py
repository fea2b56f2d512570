"""Whether a failure means that memory did not suffice. No torch."""

from __future__ import annotations

_WORDS = (
    "out of memory",  # CUDA and MPS, where it is not their allocator that says so
    "alloc_failed",  # cuDNN, cuBLAS
    "can't allocate memory",
    "can't start new thread",  # no room for its stack
    "not enough memory",
    "insufficient memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, of the machine or of an accelerator."""
    # By name, because torch is not ours to import; its allocator on the CPU has no class for it.
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return (
        bool(names & {"MemoryError", "OutOfMemoryError"})
        or any(words in text for words in _WORDS)
        # DeepLabCut's runners raise a RuntimeError from it, with a hint at another cause.
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )
