"""What the devices of a machine are good at. No DeepLabCut: ``posedrop doctor`` asks too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

#: A kind of card that torch was compiled for: machine code (sm) or an assembly that later ones
#: translate (compute), its version, and a letter where no other card may run it.
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def native_dtype(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit numbers that a device multiplies faster than fp32; None: none."""
    if device.type == "cuda":
        # Three bits more than bfloat16, and BatchNorm keeps a network's values within its range.
        return torch.float16
    if device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    ):
        return torch.bfloat16
    return None


def released() -> None:
    """Give back what torch keeps of an accelerator's memory for later: another process wants it."""
    if torch.cuda.is_available():
        # torch refuses for good after a recording that failed, in some of its versions.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Let convolutions of fp32 on a card drop 13 of a number's 23 bits, or not, during the block.

    Torch lets them, so DeepLabCut does: they take less than half the time, and on an H200 keypoints
    over the cutoff were found up to 400 pixels from where fp32 finds them. Where they may not, they
    are also to find the same bits each time, which a killed attempt is gone on with.
    """
    cudnn: Any = torch.backends.cudnn
    where, name = cudnn, "allow_tf32"
    numbers: tuple[Any, Any] = (False, True)
    try:
        before = cudnn.allow_tf32
    except RuntimeError:  # somebody has set it by the name that it has since torch 2.9
        where, name, numbers = cudnn.conv, "fp32_precision", ("ieee", "tf32")
        before = cudnn.conv.fp32_precision
    deterministic = cudnn.deterministic
    setattr(where, name, numbers[allowed])
    cudnn.deterministic = not allowed
    try:
        yield
    finally:
        setattr(where, name, before)
        cudnn.deterministic = deterministic


def has_kernels(number: int) -> bool:
    """Tell whether the installed torch was compiled for an NVIDIA card, or for all of its kind."""
    card = torch.cuda.get_device_capability(number)
    known = [_ARCHITECTURE.fullmatch(name) for name in torch.cuda.get_arch_list()]
    there = [(found[1], (int(found[2]), int(found[3])), found[4]) for found in known if found]
    return not there or any(  # AMD's have other names
        card == its if only else card >= its and (kind == "compute" or card[0] == its[0])
        for kind, its, only in there
    )


def automatic() -> str:
    """Return what ``auto`` means: torch's own choice, past cards that it has no kernels for."""
    if not torch.cuda.is_available() or has_kernels(0):
        return "auto"
    others = range(1, torch.cuda.device_count())
    return next((f"cuda:{number}" for number in others if has_kernels(number)), "cpu")


def accelerates(wanted: str) -> bool:
    """Tell whether networks have a device of their own: ``wanted``, or any if that is ``auto``."""
    if wanted == "auto":
        cards = torch.cuda.is_available() and automatic() != "cpu"
        return cards or torch.backends.mps.is_available()
    return not wanted.startswith("cpu")


def described() -> dict[str, Any]:
    """Return devices by torch's names, and how ``precision: auto`` uses each, for the doctor."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    devices = {}
    for name in names:
        fast = native_dtype(torch.device(name))
        numbers = "fp32" if fast is None else f"{str(fast).removeprefix('torch.')} checked by fp32"
        where = f"{torch.get_num_threads()} threads" if name == "cpu" else ""
        if name.startswith("cuda"):
            about = torch.cuda.get_device_properties(name)
            where = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
            if not has_kernels(int(name.partition(":")[2])):
                numbers = "passed over by auto: this torch has no kernels for it"
        devices[name] = ", ".join(part for part in (where, numbers) if part)
    return {"version": torch.__version__, "devices": devices}
