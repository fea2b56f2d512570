"""Code that a processor runs on 16 numbers at once, on as many threads as torch has.

It is written for LLVM, which comes with numba, and numba with DeepLabCut: torch's operators go
through memory for each sum, and numba by itself does not find the vectors. No compiler is needed,
and nothing is kept on disk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

Array = np.ndarray[Any, Any]

#: Numbers, of channels that lie side by side, that are taken at once.
LANES = 16
FLOATS, _WORDS, _HALVES = (
    ir.VectorType(type_, LANES) for type_ in (ir.FloatType(), ir.IntType(32), ir.IntType(16))
)


class Numbers:
    """How LLVM reads and writes numbers of a type, ``LANES`` at once, as fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.bits, self.kind = {
            torch.float32: (32, types.float32), torch.bfloat16: (16, types.uint16)
        }[dtype]  # fmt: skip

    def load(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Return a vector of fp32."""
        if self.bits == 32:
            return builder.load(builder.inttoptr(address, FLOATS.as_pointer()), align=4)
        found = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
        high = builder.shl(builder.zext(found, _WORDS), splat(_WORDS, 16))
        return builder.bitcast(high, FLOATS)

    def store(self, builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
        """Write a vector of fp32, rounded to the nearest, of two to the even."""
        if self.bits == 16:
            word = builder.bitcast(value, _WORDS)
            even = builder.and_(builder.lshr(word, splat(_WORDS, 16)), splat(_WORDS, 1))
            word = builder.add(builder.add(word, splat(_WORDS, 0x7FFF)), even)
            value = builder.trunc(builder.lshr(word, splat(_WORDS, 16)), _HALVES)
        builder.store(
            value, builder.inttoptr(address, value.type.as_pointer()), align=self.bits // 8
        )


def splat(type_: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector of the same number."""
    return ir.Constant(type_, [value] * LANES)


def inlined(kinds: Sequence[Any], write: Callable[[ir.IRBuilder, Sequence[ir.Value]], None]) -> Any:
    """Return a function of numba's that takes these and returns nothing; ``write`` is its code."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        write(builder, arguments)
        return context.get_dummy_value()

    def typed(*_: Any) -> Any:
        return types.void(*kinds), generate

    # numba counts arguments by it; the first is its own.
    names = ["context", *(f"argument{number}" for number in range(len(kinds)))]
    one = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typed.__signature__ = inspect.Signature([inspect.Parameter(name, one) for name in names])  # type: ignore[attr-defined]
    return intrinsic(typed)


def array_of(x: Tensor) -> Array:
    """Return a tensor's memory; of bf16, the bits."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def run_on_threads(
    kernel: Callable[..., None],
    arguments: tuple[Any, ...],
    first: int,
    last: int,
    threads: int | None = None,
) -> None:
    """Call a kernel for rows from first to last, on threads.

    It gets ``arguments``, then ``first``, then the first and the last of a thread's own rows.

    Args:
        threads: at most; None: as many as torch has.
    """
    rows = last - first
    threads = min(torch.get_num_threads() if threads is None else threads, rows)
    edges = [first + rows * part // threads for part in range(threads + 1)]
    others = [
        _pool(max(1, torch.get_num_threads() - 1)).submit(kernel, *arguments, first, *part)
        for part in pairwise(edges[1:])
    ]
    kernel(*arguments, first, *edges[:2])
    for one in others:
        one.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads beside the caller's; few numbers of them come, as they never end."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lanes")
