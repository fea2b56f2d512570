"""S3 tools as people have them, each on real MinIO: upload, choose the analysis, fetch results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from minio import Minio

from tests.conftest import tool
from tests.e2e.lab import Lab, clean_environment

pytestmark = pytest.mark.parametrize("lab", ["minio-redis"], indirect=True)

ASKED = {"analysis": "dummy", "args": '{"seconds":0.1}'}
NAME = "Käfig 1+2 50%.mp4"


def run(*command: str, **more: Any) -> None:
    """Run a tool; what it says is shown when it fails."""
    given = {"env": clean_environment(), **more}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **given
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def minio_py(lab: Lab, film: Path, key: str) -> None:
    """Upload with MinIO's Python SDK."""
    env = lab.aws_environment()
    client = Minio(
        urlsplit(env["AWS_ENDPOINT_URL"]).netloc,
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
        secure=False,
    )
    client.fput_object("videos", key, str(film), content_type="video/mp4", metadata=dict(ASKED))


def rclone_flags(lab: Lab) -> list[str]:
    """Return the options with which rclone reaches the lab without a configuration file."""
    env = lab.aws_environment()
    options = {
        "provider": "Minio",
        "endpoint": env["AWS_ENDPOINT_URL"],
        "access-key-id": env["AWS_ACCESS_KEY_ID"],
        "secret-access-key": env["AWS_SECRET_ACCESS_KEY"],
        "no-check-bucket": "true",
    }
    return ["--config=", *(f"--s3-{name}={value}" for name, value in options.items())]


def rclone(lab: Lab, film: Path, key: str) -> None:
    """Upload with rclone."""
    metadata = [
        part for n, v in ASKED.items() for part in ("--header-upload", f"x-amz-meta-{n}: {v}")
    ]
    run(tool("rclone"), *rclone_flags(lab), *metadata, "copyto", str(film), f":s3:videos/{key}")


def s3cmd(lab: Lab, film: Path, key: str) -> None:
    """Upload with s3cmd."""
    env = lab.aws_environment()
    host = urlsplit(env["AWS_ENDPOINT_URL"]).netloc
    run(
        tool("s3cmd"),
        "--config=/dev/null",
        f"--access_key={env['AWS_ACCESS_KEY_ID']}",
        f"--secret_key={env['AWS_SECRET_ACCESS_KEY']}",
        f"--host={host}",
        f"--host-bucket={host}",
        "--no-ssl",
        *(f"--add-header=x-amz-meta-{name}:{value}" for name, value in ASKED.items()),
        "put",
        str(film),
        f"s3://videos/{key}",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(film.parent)},
    )


def mc(lab: Lab, film: Path, key: str) -> None:
    """Upload with MinIO's client, whose --attr takes no quotes and so no args."""
    env = lab.aws_environment()
    endpoint = urlsplit(env["AWS_ENDPOINT_URL"])
    host = f"http://{env['AWS_ACCESS_KEY_ID']}:{env['AWS_SECRET_ACCESS_KEY']}@{endpoint.netloc}"
    run(
        tool("mc"),
        "--config-dir",
        str(film.parent / "mc"),
        "cp",
        "--attr",
        f"analysis={ASKED['analysis']}",
        str(film),
        f"lab/videos/{key}",
        env={"MC_HOST_lab": host, "HOME": str(film.parent), "PATH": "/usr/bin:/bin"},
    )


def curl_put(lab: Lab, film: Path, key: str) -> None:
    """Upload with curl and a presigned PUT that a person's own boto3 made."""
    url = lab.s3().generate_presigned_url(
        "put_object", Params={"Bucket": "videos", "Key": key, "Metadata": ASKED}
    )
    headers = [part for n, v in ASKED.items() for part in ("-H", f"x-amz-meta-{n}: {v}")]
    run(tool("curl"), "-sS", "--fail", *headers, "-T", str(film), url)


def curl_post(lab: Lab, film: Path, key: str) -> None:
    """Upload with curl and a presigned POST form."""
    fields = {f"x-amz-meta-{name}": value for name, value in ASKED.items()}
    post = lab.s3().generate_presigned_post(
        "videos", key, Fields=fields, Conditions=[{n: v} for n, v in fields.items()]
    )
    form = [part for n, v in post["fields"].items() for part in ("--form-string", f"{n}={v}")]
    run(tool("curl"), "-sS", "--fail", *form, "-F", f"file=@{film}", post["url"])


def boto3(lab: Lab, film: Path, key: str) -> None:
    """Upload with boto3."""
    lab.s3().upload_file(str(film), "videos", key, ExtraArgs={"Metadata": ASKED})


@pytest.mark.parametrize(
    "upload", [boto3, minio_py, rclone, s3cmd, mc, curl_put, curl_post], ids=lambda f: f.__name__
)
def test_a_tools_upload_is_analysed_as_its_metadata_asks(
    lab: Lab, clip: Path, upload: Callable[[Lab, Path, str], None]
) -> None:
    """Whatever tool puts a film, under an awkward name, its own metadata chooses the analysis."""
    key = f"tools/{upload.__name__}/{NAME}"
    upload(lab, clip, key)
    over = lab.over(lab.run_of(lab.file(key)["file_id"]))
    seconds = 5.0 if upload is mc else 0.1
    assert (over["status"], over["result"]["args"]) == ("succeeded", {"seconds": seconds})
    assert over["result"]["video"]["key"] == key


def test_rclone_puts_a_folder_with_its_rule_and_fetches_the_results(
    lab: Lab, clip: Path, tmp_path: Path
) -> None:
    """A day's folder, with a posedrop.json in it, goes up and its results come down by rclone."""
    day = tmp_path / "day"
    day.mkdir()
    (day / "posedrop.json").write_text(json.dumps({"analysis": "dummy", "args": {"seconds": 0.2}}))
    run(tool("rclone"), *rclone_flags(lab), "copy", str(day), ":s3:videos/rclone day/")
    (day / NAME).write_bytes(clip.read_bytes())
    run(tool("rclone"), *rclone_flags(lab), "copy", str(day), ":s3:videos/rclone day/")
    lab.over(lab.run_of(lab.file(f"rclone day/{NAME}")["file_id"]))
    target = tmp_path / "results"
    run(tool("rclone"), *rclone_flags(lab), "sync", ":s3:results/rclone day/", str(target))
    found = [json.loads(path.read_text()) for path in target.rglob("result.json")]
    assert [(one["state"], one["args"]) for one in found] == [("succeeded", {"seconds": 0.2})]
