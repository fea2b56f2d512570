"""benchmarks/gpu.py: what it can't run it says, and never does it pass for a figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import table
from tests.support.samples import REPOSITORY


def test_without_a_card_it_runs_pretended_alone(tmp_path: Path) -> None:
    """The processor's share is run, the card's is told as what could not be."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--frames", "12"]
    run = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": False}
    pretended = subprocess.run([*command, "--pretend", "--only", "decode", "encode"], **run)  # type: ignore[call-overload]
    assert pretended.returncode == 0, pretended.stderr
    found = json.loads((tmp_path / "gpu-pretended.json").read_text())
    assert found["pretended"]
    assert found["about"]["card"] is None
    assert set(found["decode"]["speeds"]) == {"cpu, threads", "cpu, one thread"}
    assert set(found["encode"]["found"]) == {"libx264"}
    told = (tmp_path / "gpu-pretended.md").read_text()
    assert "no figure" in told
    for name in ("h264_cuvid", "nvdec, one thread, frames stay", "posedrop's, by the card"):
        assert f"- decode: {name}: " in told
    assert "- encode: h264_nvenc: " in told


def test_a_table_has_what_was_found_and_what_was_not() -> None:
    """With a card's name; a model of which nothing could be run has a row of its own."""
    about = dict.fromkeys(("driver", "cuda", "cudnn", "torch", "av", "deeplabcut", "cores"), "1")
    card = {"gpu": 75.0, "mib": 2048.0}
    details = {"decode": {"used": "cuda"}, "precision": {"frames_repeated_in_fp32": 7}}
    found = {
        "pretended": False, "about": {**about, "card": "NVIDIA H100, 80 GiB"},
        "decode": {"speeds": {"cpu, threads": 2000.0}, "failed": {"h264_cuvid": "no library"}},
        "models": {
            "resnet50": {
                "stock": {"frames_per_second": [100.0, 300.0, 200.0], "card": card},
                "posedrop": {
                    "frames_per_second": [900.0, 1000.0, 1100.0], "card": {}, "details": details
                },
                "auto_to_fp32": {"largest_px": 0.25, "flipped": 0},
            },
            "resnet18": {},
        },
        "queue": {"idle_share": 0.012}, "could_not": {"resnet18: weights": "no room"},
    }  # fmt: skip
    lines = table(found).splitlines()
    assert lines[0] == "# NVIDIA H100, 80 GiB"
    rows = [line for line in lines if line.startswith("| resnet")]
    assert rows[0].split("|")[1:-1] == [
        f" {cell} " for cell in (
            "resnet50", "200", "1000", "5.00", "0.50", "cuda", "25 % / -", "2048 / -", "0.250", "0",
            "7",
        )
    ]  # fmt: skip
    assert rows[1].count("-") >= 9
    assert "- decode: h264_cuvid: no library" in lines
    assert "- resnet18: weights: no room" in lines
    assert any("1.2%" in line for line in lines)
