"""The machine: what a worker needs to decode and infer, room on the disk, a whole index."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posedrop.doctor.finding import FAIL, HTTP_SECONDS, OK, WARN, Finding
from posedrop.settings import ENV_FILE, Settings, stack_scratch

MIN_FREE_BYTES = 10 * 10**9
_PROBE_SECONDS = 180.0

#: What to do about a wall that does not stand.
_ADVICE = {
    "network": "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or AppArmor's "
    "switch), or give the worker's container a network that reaches store and broker only",
    "files": "a kernel of 5.13 or newer with Landlock among its security modules (lsm=...,landlock)"
    "; in a container, a runtime whose seccomp profile knows it",
    "tcp": "a kernel of 6.7 or newer",
    "processes": "for a worker with a card, a system that lets a user mount /proc in namespaces of "
    "his own (AppArmor's switch, as above; containers seldom do)",
    "signals": "a kernel of 6.12 or newer",
}


def worker(settings: Settings) -> Iterator[Finding]:
    """Check that this machine can decode, draw and infer videos, and shut a child in."""
    if find_spec("av") is None or find_spec("torch") is None:
        yield Finding("worker", OK, "not installed here (pip install 'posedrop[worker]')")
        return
    yield _codecs()
    yield _device(settings.device)
    yield _card(settings)
    yield _isolation(settings.device)


def _probe(check: str, *arguments: str) -> dict[str, Any] | str:
    """Return what one of worker.checks finds, or why it could not: libraries may crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.checks", check, *arguments],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PROBE_SECONDS:.0f} s"
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with {done.returncode}"
    return found


def _codecs() -> Finding:
    found = _probe("codecs")
    todo = "pip install --force-reinstall av (its wheels bring FFmpeg with libx264)"
    if isinstance(found, str):
        return Finding("codecs", FAIL, f"PyAV can't be loaded: {found}", todo)
    lacking = [
        what
        for name, what in (("libx264", "encode H.264 (libx264)"), ("h264", "decode H.264"))
        if not found[name]
    ]
    if lacking:
        message = f"PyAV {found['version']} can't {' or '.join(lacking)}"
        return Finding("codecs", FAIL, message, todo)
    return Finding("codecs", OK, f"PyAV {found['version']} reads and writes H.264")


def _device(wanted: str) -> Finding:
    found = _probe("devices")
    if isinstance(found, str):
        todo = "install torch again: pip install --force-reinstall torch"
        return Finding("device", FAIL, f"torch can't be loaded: {found}", todo)
    there = found["devices"]
    how = "; ".join(f"{name} ({what})" for name, what in there.items())
    message = f"torch {found['version']} has {how}"
    if lost := _out_of_reach(there, wanted):
        so_far = "posedrop computes on the processor" if wanted == "auto" else "runs fail"
        todo = (
            f"until then {so_far}: take the driver that NVIDIA gives for the card, and tell us its "
            "version (nvidia-smi) with these lines"
        )
        return Finding("device", FAIL, f"{message}, but {lost}", todo)
    if wanted == "auto":
        return Finding("device", OK, f"{message}; POSEDROP_DEVICE=auto")
    if wanted in there or (wanted == "cuda" and "cuda:0" in there):
        return Finding("device", OK, f"{message}; POSEDROP_DEVICE={wanted}")
    return Finding(
        "device",
        FAIL,
        f"{message}, but POSEDROP_DEVICE={wanted}",
        "install the driver and a torch that fits it, or set POSEDROP_DEVICE=auto",
    )


def _out_of_reach(there: dict[str, Any], wanted: str) -> str:
    """Return what keeps the processes that compute from a card which others reach, empty: none."""
    cards = {name for name in there if name.startswith("cuda")}
    if wanted != "auto":
        cards &= {"cuda:0" if wanted == "cuda" else wanted}
    if not cards:
        return ""
    found = _probe("devices", "walls")
    if isinstance(found, str):
        return f"behind the walls around a child torch fails: {found}"
    lost = ", ".join(sorted(cards - found["devices"].keys()))
    return f"behind the walls around a child there is no {lost}" if lost else ""


def _card(settings: Settings) -> Finding:
    """Check that the decoder and encoder that are set are the ones that work here."""
    found = _probe("card", settings.device)
    if isinstance(found, str):
        return Finding("card", WARN, f"it can't be told what a card can do: {found}")
    parts = []
    for what, wanted in (("decode", settings.decode), ("encode", settings.encode)):
        how = f"POSEDROP_{what.upper()}={wanted}"
        lacks = found[what]
        parts.append(
            f"{what}: the processor ({lacks}; {how})" if lacks else f"{what}: a card ({how})"
        )
    lacking = [
        what for what in ("decode", "encode") if getattr(settings, what) == "cuda" and found[what]
    ]
    if lacking:
        todo = (
            "install the driver with its video libraries (libnvcuvid, libnvidia-encode; in a "
            "container NVIDIA_DRIVER_CAPABILITIES=compute,utility,video), or set "
            + " and ".join(f"POSEDROP_{what.upper()}=auto" for what in lacking)
        )
        return Finding("card", WARN, "; ".join(parts), todo)
    return Finding("card", OK, "; ".join(parts))


def _isolation(device: str) -> Finding:
    if not sys.platform.startswith("linux"):
        todo = "on Linux, the children that open videos have no network"
        return Finding("isolation", WARN, "children keep the network on this system", todo)
    found = _probe("walls", device)
    if isinstance(found, str):
        return Finding("isolation", WARN, f"it can't be told which walls stand: {found}")
    stand = f"walls around what opens videos: {', '.join(found['stand']) or 'none'}"
    if not set(found["lack"]) - set(found["by_leave"]):
        return Finding("isolation", OK, stand)
    lack = "; ".join(
        f"{name} ({found['means'][name]}): {why}" for name, why in found["lack"].items()
    )
    todo = ". ".join(advice for name, advice in _ADVICE.items() if name in found["lack"])
    return Finding("isolation", WARN, f"{stand}; lacking: {lack}", todo)


def disk(settings: Settings) -> Iterator[Finding]:
    """Check that the scratch folder has room for videos."""
    embedded = (settings.data_dir / ENV_FILE).is_file()
    wanted = (stack_scratch(settings) if embedded else settings.scratch_dir).absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    message = f"{free / 1e9:.1f} GB free for {wanted}"
    if not os.access(folder, os.W_OK):
        todo = "set POSEDROP_SCRATCH_DIR to a folder that this user can write to"
        yield Finding("scratch", WARN, f"{folder} can't be written to", todo)
    elif free < MIN_FREE_BYTES:
        todo = "free some, or set POSEDROP_SCRATCH_DIR: a worker holds a whole video there"
        yield Finding("scratch", WARN, message, todo)
    else:
        yield Finding("scratch", OK, message)


def index(settings: Settings) -> Iterator[Finding]:
    """Check that the index is whole."""
    path = settings.index_file
    if not path.is_file():
        yield Finding("index", OK, f"none here ({path}); only handlers have one")
        return
    answer = _quick_check(path)
    if answer == "ok":
        yield Finding("index", OK, f"{path} is whole")
    else:
        yield Finding(
            "index",
            FAIL,
            f"{path}: {answer}",
            "stop the handlers, remove it and start them: it comes back from the buckets",
        )


def _quick_check(path: Path) -> str:
    # Read-only, and on a connection of its own, so that handlers at work are not held up.
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=HTTP_SECONDS)
        try:
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
