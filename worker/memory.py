"""Whether a failure means that memory did not suffice, and how freed memory is kept. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: glibc's names of what ``mallopt`` sets: from which size on memory is mapped by itself, and how
#: much of the heap's end may be free.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_WORDS = (
    "unable to find an engine",  # cuDNN, where none has room for its workspace
    "status_not_initialized",  # cuDNN, cuBLAS: no room for their handle
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


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have memory that is freed stay with this process until the block ends, to be taken again.

    glibc gives back at once what is large, and the kernel fills each page of the next tensor with
    zeros: of a network's time on a processor, that took a tenth. Other C libraries do as they do.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # Older ones take half of a thread's heap at most.
        _ = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """Give the machine what this process has freed and kept."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
