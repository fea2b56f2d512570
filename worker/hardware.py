"""What the devices of a machine are good at. No DeepLabCut: ``posedrop doctor`` asks too."""

from __future__ import annotations

from typing import Any

import torch


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


def accelerates(wanted: str) -> bool:
    """Tell whether networks have a device of their own: ``wanted``, or any if that is ``auto``."""
    if wanted == "auto":
        return torch.cuda.is_available() or torch.backends.mps.is_available()
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
        devices[name] = ", ".join(part for part in (where, numbers) if part)
    return {"version": torch.__version__, "devices": devices}
