"""Bad input and what it gets: a clear typed error or the right result, and the next video runs."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.e2e.test_way import put
from tests.support.lab import Lab
from tests.support.samples import Sample


def film(
    path: Path,
    *,
    frames: int = 10,
    size: tuple[int, int] = (160, 120),
    pixel_format: str = "yuv420p",
    times: list[int] | None = None,
) -> Path:
    """Draw a small film; ``times`` are presentation times in 1/1000 s."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            image = np.full((size[1], size[0], 3), 20 * (number % 10), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    """Write a file with sound and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 44100), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def refused(folder: Path, name: str) -> Path:
    """Write the bad file called ``name``."""
    path = folder / f"{name}.mp4"
    match name:
        case "text":
            path.write_text("this is a protocol, not a film\n" * 100)
        case "empty":
            path.write_bytes(b"")
        case "cut_off":
            path.write_bytes(film(folder / "whole.mp4", frames=90).read_bytes()[:3000])
        case "sound_only":
            sound(path)
        case "playlist":
            path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
        case "picture":
            import cv2

            cv2.imwrite(str(path.with_suffix(".png")), np.zeros((64, 64, 3), np.uint8))
            path.with_suffix(".png").rename(path)
        case "html":
            path.write_bytes(b"<html><script>alert(1)</script>")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text", "not_a_video"),
        ("empty", "empty"),
        ("cut_off", "truncated"),
        ("sound_only", "no_video_stream"),
        ("playlist", "not_a_video"),
        ("picture", "not_a_video"),
        ("html", "not_a_video"),
    ],
)
def test_what_is_no_video_is_refused_with_its_reason(
    lab: Lab, tmp_path: Path, name: str, reason: str
) -> None:
    """A file that can't be analysed is `refused`, says why, and an analysis of it is a 422."""
    key = f"bad/{name}.mp4"
    lab.s3().upload_file(str(refused(tmp_path, name)), "videos", key)
    file = lab.file(key)
    assert (file["state"], file["refusal"]["reason"]) == ("refused", reason)
    assert len(file["refusal"]["message"]) > 20
    answer = lab.ask(file["file_id"], "dummy", {"seconds": 0})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "refused")


def test_a_refused_film_is_looked_at_anew_when_somebody_asks(lab: Lab, tmp_path: Path) -> None:
    """`posedrop reingest` takes the refusal back and tells what came of it; others are left."""
    s3 = lab.s3()
    s3.upload_file(str(refused(tmp_path, "text")), "videos", "anew/text.mp4")
    s3.upload_file(str(film(tmp_path / "fine.mp4")), "videos", "anew/fine.mp4")
    before = lab.file("anew/text.mp4")
    assert (before["state"], lab.file("anew/fine.mp4")["state"]) == ("refused", "ready")

    def written() -> datetime:
        found: datetime = s3.head_object(Bucket="results", Key="anew/text.mp4/video.json")[
            "LastModified"
        ]
        return found

    first = written()
    lab.until(lambda: datetime.now(UTC) - first > timedelta(seconds=1), "another second to begin")
    told = lab.posedrop("reingest", "anew/").stdout
    assert "looked at anew: 1" in told
    assert "anew/text.mp4: refused, not_a_video" in told
    assert written() > first
    assert lab.file("anew/text.mp4")["refusal"] == before["refusal"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one_frame", {"frames": 1}),
        ("odd_sized", {"size": (161, 121), "pixel_format": "yuv444p"}),
        ("ten_bit", {"pixel_format": "yuv420p10le"}),
        ("variable_rate", {"times": [0, 33, 66, 200, 233, 500, 533, 566, 600, 1000]}),
    ],
)
def test_unusual_videos_get_the_right_result(
    lab: Lab, tmp_path: Path, model: str, name: str, options: dict[str, Any]
) -> None:
    """Odd films are analysed: as many rows as frames, and a labelled video of them."""
    path = film(tmp_path / f"{name}.mp4", **options)
    file_id = put(lab, path, analysis="deeplabcut_2d", args={"model": model})
    over = lab.over(lab.run_of(file_id))
    assert over["status"] == "succeeded", over["error"]
    assert over["result"]["rows"] == options.get("frames", 10)
    assert over["video_file"] is not None
    probe = lab.get(f"/upload/{file_id}")["probe"]
    assert probe["variable_frame_rate"] == (name == "variable_rate")


@pytest.mark.parametrize(
    "key",
    [
        "keys/with space.mp4",
        "keys/a+b&c=d?e#f.mp4",
        "keys/50%2Foff%00.mp4",
        "keys/Mäuse/日本語/🐭.mp4",
        "-rf.mp4",
        "keys/$(touch pwned);`id`|x.mp4",
        "keys/<img src=x onerror=alert(1)>.mp4",
        "/".join(["k" * 90] * 11) + ".mp4",
    ],
)
def test_hostile_keys_are_only_names(lab: Lab, clip: Path, key: str) -> None:
    """Whatever a key holds, its video is ingested and analysed under exactly that name."""
    s3 = lab.s3()
    s3.upload_file(
        str(clip),
        "videos",
        key,
        ExtraArgs={"Metadata": {"analysis": "dummy", "args": f'{{"seconds": 0.{len(key)}}}'}},
    )
    file = lab.file(key)
    assert file["state"] == "ready", file["refusal"]
    assert lab.over(lab.run_of(file["file_id"]))["result"]["video"]["key"] == key


@pytest.mark.parametrize(
    ("analysis", "args", "field"),
    [
        ("nonsense", {}, "analysis"),
        ("dummy", {"seconds": "long"}, "args.seconds"),
        ("dummy", {"minutes": 1}, "args.minutes"),
        ("deeplabcut_2d", {}, "args.model"),
        ("deeplabcut_2d", {"model": "no-such-model"}, "args.model"),
        ("deeplabcut_2d", {"model": "../../etc"}, "args.model"),
    ],
)
def test_a_wrong_request_names_its_field(
    lab: Lab, clip: Path, analysis: str, args: dict[str, Any], field: str
) -> None:
    """What can't be done is a 422 that names the field, before anything is queued."""
    file_id = put(lab, clip)
    answer = lab.ask(file_id, analysis, args)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    asked_with_upload = lab.http.post(
        "/upload", json={"filename": "x.mp4", "analysis": analysis, "args": args}
    )
    assert asked_with_upload.status_code == 422


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({"analysis": "nonsense"}, "unknown_analysis"),
        ({"analysis": "dummy", "args": "{not json"}, "bad_args"),
        ({"analysis": "dummy", "args": '{"seconds": -1}'}, "bad_args"),
        ({"analysis": "deeplabcut_2d", "args": '{"model": "missing"}'}, "no_such_model"),
    ],
)
def test_wrong_metadata_leaves_a_failed_result_beside_the_video(
    lab: Lab, clip: Path, metadata: dict[str, str], code: str
) -> None:
    """Nobody stands at an API to read a 422: the folder of the results says what was wrong."""
    key = f"wrong/{code}-{len(str(metadata))}.mp4"
    s3 = lab.s3()
    s3.upload_file(str(clip), "videos", key, ExtraArgs={"Metadata": metadata})
    lab.file(key)

    def result() -> dict[str, Any] | None:
        listed = s3.list_objects_v2(Bucket="results", Prefix=f"{key}/rejected-")
        names = [o["Key"] for o in listed.get("Contents", []) if o["Key"].endswith("result.json")]
        body = s3.get_object(Bucket="results", Key=names[0])["Body"].read() if names else None
        return json.loads(body) if body else None

    found = lab.until(result, "a rejected result")
    assert (found["state"], found["error"]["code"]) == ("failed", code)


def test_a_damaged_model_fails_its_run_and_the_next_one_runs(
    lab: Lab, mouse: Sample, clip: Path, tmp_path: Path
) -> None:
    """A model whose files are damaged is a typed error in result.json; the worker goes on."""
    folder = tmp_path / "project"
    shutil.copytree(mouse.model, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    snapshot = next(folder.rglob("snapshot*.pt"))
    snapshot.write_bytes(snapshot.read_bytes()[:20_000])
    lab.posedrop("models", "push", str(folder), "--name", "damaged")
    file_id = put(lab, clip, analysis="deeplabcut_2d", args={"model": "damaged"})
    over = lab.over(lab.run_of(file_id))
    assert (over["status"], over["error"]["code"]) == ("failed", "model_damaged")
    nearby = lab.ask(file_id, "dummy", {"seconds": 0.05}).json()["analysis_id"]
    assert lab.over(nearby)["status"] == "succeeded"


def test_a_tensorflow_model_is_refused_when_pushed(lab: Lab, tmp_path: Path) -> None:
    """A project of DeepLabCut 2's TensorFlow engine is told what to do, before any upload."""
    (tmp_path / "dlc-models/iteration-0").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(
        "Task: reach\nscorer: me\ndate: Jan1\nengine: tensorflow\niteration: 0\n"
        "bodyparts: [a]\nTrainingFraction: [0.95]\n"
    )
    answer = lab.posedrop("models", "push", str(tmp_path), "--name", "old", check=False)
    assert answer.returncode == 1
    assert "TensorFlow" in answer.stderr
