"""Stopping, killing and starting again: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from tests.support.lab import POSEDROP, Embedded
from tests.support.labs import cold
from tests.support.samples import sample


def test_a_killed_stack_goes_on_where_it_was(tmp_path: Path) -> None:
    """After kill -9 and a new start, the interrupted run and the queued one both succeed."""
    clip = sample(tmp_path, 12).film
    lab = cold(Embedded(tmp_path / "data")).start()
    try:
        lab.s3().upload_file(str(clip), "videos", "a.mp4")
        file_id = lab.file("a.mp4")["file_id"]
        running = lab.ask(file_id, "dummy", {"seconds": 5}).json()["analysis_id"]
        queued = lab.ask(file_id, "dummy", {"seconds": 0.1}).json()["analysis_id"]
        lab.until(lambda: lab.get(f"/results/{running}")["status"] == "running", "the run to begin")
        lab.kill()
        lab.start()
        over = lab.over(running)
        assert (over["status"], over["result"]["attempts"]) == ("succeeded", 2)
        assert lab.over(queued)["status"] == "succeeded"
        assert lab.stop() == 0
        (lab.data_dir / "index.sqlite").unlink()
        lab.start()
        lab.until(
            lambda: lab.http.get(f"/results/{running}").status_code == 200, "the index to come back"
        )
    finally:
        lab.kill()


def test_a_stopped_stack_hands_its_run_back(tmp_path: Path) -> None:
    """SIGTERM ends within seconds and leaves nothing running; the next start goes on."""
    clip = sample(tmp_path, 12).film
    lab = Embedded(tmp_path / "data").start()
    try:
        lab.s3().upload_file(str(clip), "videos", "a.mp4")
        file_id = lab.file("a.mp4")["file_id"]
        running = lab.ask(file_id, "dummy", {"seconds": 4}).json()["analysis_id"]
        lab.until(lambda: lab.get(f"/results/{running}")["status"] == "running", "the run to begin")
        assert lab.stop() == 0
        look = ["pgrep", "-f", str(lab.data_dir)]
        # A child that is killed while it imports may take a moment on a busy machine to be gone.
        lab.until(lambda: subprocess.run(look, check=False).returncode == 1, "all to be gone")
        cold(lab).start()
        assert lab.over(running)["status"] == "succeeded"
    finally:
        lab.kill()


def test_one_directory_serves_one_posedrop(tmp_path: Path, free_port: int) -> None:
    """A directory or a port in use is one clear line, not a traceback."""
    lab = cold(Embedded(tmp_path / "data")).start()
    try:
        same_folder = lab.posedrop("up", "--port", str(free_port), check=False)
        other_folder = subprocess.run(
            [POSEDROP, "--data-dir", str(tmp_path / "other"), "up", "--port", str(lab.port)],
            capture_output=True,
            text=True,
            check=False,
        )
        for answer in (same_folder, other_folder):
            assert answer.returncode == 1
            assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
        assert str(lab.data_dir) in same_folder.stderr
        assert str(lab.port) in other_folder.stderr
    finally:
        assert lab.stop() == 0


def test_old_videos_are_cleaned_up(tmp_path: Path) -> None:
    """With a retention set, videos past it go with all their results; without, nothing goes."""
    clip = sample(tmp_path, 12).film
    lab = cold(Embedded(tmp_path / "data", retention_days="0.00005", reconcile_seconds="1")).start()
    try:
        s3 = lab.s3()
        s3.upload_file(str(clip), "videos", "old.mp4")
        lab.until(
            lambda: (
                not any(
                    not found["Key"].startswith("_posedrop/workers/")
                    for bucket in ("videos", "results")
                    for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])
                )
            ),
            "the old video to be gone",
        )
        # The index follows the bucket, a moment later.
        lab.until(lambda: lab.get("/files")["items"] == [], "the index to forget it")
    finally:
        assert lab.stop() == 0


def way_of(over: dict[str, Any]) -> tuple[str, int]:
    """Return how a run computed: by which convolutions, and how many frames at once."""
    tuning = over["result"]["details"]["tuning"]
    return tuning["convolutions"], tuning["batch_size"]


def test_a_killed_inference_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The next attempt takes up the last part; its poses are those of one go, bit by bit."""
    mouse = sample(tmp_path, 60)
    lab = Embedded(tmp_path / "data", checkpoint_seconds="0.2").start()
    try:
        lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
        lab.s3().upload_file(str(mouse.film), "videos", "a.mp4")
        file_id = lab.file("a.mp4")["file_id"]
        args = {"model": "mouse", "precision": "fp32", "batch_size": 2, "stop": 30}
        killed = lab.ask(file_id, "deeplabcut_2d", args).json()["analysis_id"]
        parts = lab.until(lambda: parts_of(lab), "a checkpoint", 300)
        network = subprocess.run(
            ["pgrep", "-P", str(lab.pid), "-f", "worker.engine.inference"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(network.stdout), signal.SIGKILL)
        over = lab.over(killed, seconds=400)
        # Two for the poses, the first of which died, and one for the drawing.
        assert (over["status"], over["result"]["attempts"]) == ("succeeded", 3)
        assert parts
        assert parts_of(lab) == []
        args["style"] = {"video": False}
        whole = lab.ask(file_id, "deeplabcut_2d", args, force=True).json()["analysis_id"]
        again = lab.over(whole, seconds=400)
        assert again["status"] == "succeeded"
        # So few frames are not timed: each run computes in the same way, to the last bit.
        assert way_of(again) == way_of(over)
        tables = []
        for analysis_id in (killed, whole):
            lab.posedrop("download", analysis_id, "--to", str(tmp_path / analysis_id))
            found = sorted((tmp_path / analysis_id).glob("*.h5"), key=lambda path: len(path.name))
            tables.append(pd.read_hdf(found[0]))
        assert tables[0].to_numpy().tobytes() == tables[1].to_numpy().tobytes()
        log = next((tmp_path / killed).rglob("run.log")).read_text()
        assert "goes on from frame" in log
    finally:
        lab.kill()


def parts_of(lab: Embedded) -> list[str]:
    """Return the checkpoints in the results bucket."""
    found = lab.s3().list_objects_v2(Bucket="results").get("Contents", [])
    return [entry["Key"] for entry in found if "/parts/" in entry["Key"]]
