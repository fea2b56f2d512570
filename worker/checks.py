"""What this machine can do for a worker, found by trying: ``python -m worker.checks codecs``.

``posedrop doctor`` runs each check in a process of its own, since libraries may crash or hang.
A check prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def codecs() -> dict[str, Any]:
    """Return PyAV's version, and whether it writes (``libx264``) and reads (``h264``) H.264."""
    import av

    def has(name: str, mode: Any) -> bool:
        try:
            av.codec.Codec(name, mode)
        except ValueError:
            return False
        return True

    return {
        "version": av.__version__,
        "libx264": has("libx264", "w"),
        "h264": has("h264", "r"),
    }


def devices(where: str = "") -> dict[str, Any]:
    """Return torch's version, and the devices that it finds; ``walls``: as a child finds them."""
    if where == "walls":
        from worker.child import walls

        walls.put_up(walls.Plan("/nowhere", cards=True), os.getppid(), ())
    from worker.hardware import described

    return described()


def card(device: str) -> dict[str, Any]:
    """Return why an NVIDIA card can't decode and encode films, or None where it can.

    Both are really done: the names of the codecs are in every PyAV.
    """
    from worker.video import cuda_decode, nvenc

    return {"decode": cuda_decode.lacking(device), "encode": nvenc.lacking_on(device)}


def walls(device: str = "cpu") -> dict[str, Any]:
    """Put up the walls of a child around this process; return which stand, and which can't.

    Args:
        device: what the child may compute on; a card needs gaps in them.
    """
    from worker import limits
    from worker.child import walls

    group = limits.new_group(2**30)
    plan = walls.Plan("/nowhere", group=group, cards=device != "cpu")
    found = walls.put_up(plan, os.getppid(), ())
    return {
        "stand": found.stand,
        "lack": found.lack,
        "means": walls.NAMES,
        "by_leave": list(walls.BY_LEAVE),
    }


CHECKS: dict[str, Callable[..., dict[str, Any]]] = {
    "codecs": codecs,
    "devices": devices,
    "card": card,
    "walls": walls,
}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(CHECKS[name](*arguments)), flush=True)
