"""A MinIO after its bootstrap, for the tests of keys, presigned URLs and the doctor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from click.testing import CliRunner, Result
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from posedrop import cli
from posedrop.settings import Settings, load
from tests.support.minio_server import (
    ROOT_ACCESS_KEY,
    ROOT_SECRET_KEY,
    MinioServer,
)

BUCKETS = ("videos", "results", "models")
POSEDROP = str(Path(sys.executable).with_name("posedrop"))
VIDEO_ID = "mfzgs3tfebzw63lf"
RUN = f"day1/a.mp4/dummy-{VIDEO_ID}"


@dataclass
class Webhook:
    """What MinIO told, and where it tells it."""

    url: str
    seen: list[tuple[str | None, dict[str, Any]]]

    def of(self, key: str) -> list[tuple[str | None, dict[str, Any]]]:
        """Return what was told of one object."""
        return [(token, body) for token, body in self.seen if body.get("Key") == key]


@dataclass
class Store:
    """A MinIO after its first bootstrap, and the keys that it made."""

    server: MinioServer
    keys: Mapping[str, str]
    first: str
    folder: Path

    def environment(self, role: str = "HANDLERS", **more: str) -> dict[str, str]:
        """Return the environment of a process of posedrop."""
        return {
            "POSEDROP_S3_ENDPOINT": self.server.endpoint,
            "POSEDROP_S3_ACCESS_KEY": self.keys[f"POSEDROP_{role}_ACCESS_KEY"],
            "POSEDROP_S3_SECRET_KEY": self.keys[f"POSEDROP_{role}_SECRET_KEY"],
            "POSEDROP_PRESIGN_ACCESS_KEY": self.keys["POSEDROP_PRESIGN_ACCESS_KEY"],
            "POSEDROP_PRESIGN_SECRET_KEY": self.keys["POSEDROP_PRESIGN_SECRET_KEY"],
            **more,
        }

    def settings(self, role: str = "HANDLERS", **more: Any) -> Settings:
        """Return the settings of a process of posedrop."""
        values = {
            name.removeprefix("POSEDROP_").lower(): value
            for name, value in self.environment(role).items()
        }
        return load(self.folder, values | more)

    def s3(self, role: str) -> Any:
        """Return a boto3 client with the key of a role: a user's, ROOT or ANONYMOUS."""
        signature: Any = UNSIGNED if role == "ANONYMOUS" else "s3v4"
        access_key, secret_key = self.pair(role)
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                signature_version=signature,
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
            ),
        )

    def admin(self, role: str) -> MinioAdmin:
        """Return MinIO's admin client with the key of a role."""
        return MinioAdmin(
            endpoint=self.server.endpoint.removeprefix("http://"),
            credentials=StaticProvider(*self.pair(role)),
            region="us-east-1",
            secure=False,
        )

    def pair(self, role: str) -> tuple[str, str]:
        """Return access key and secret of a role."""
        if role == "ROOT":
            return ROOT_ACCESS_KEY, ROOT_SECRET_KEY
        if role == "ANONYMOUS":
            return "anonymous", "anonymous"
        return self.keys[f"POSEDROP_{role}_ACCESS_KEY"], self.keys[f"POSEDROP_{role}_SECRET_KEY"]


def run_bootstrap(server: MinioServer, folder: Path, *args: str, **environment: str) -> Result:
    """Run the command in this process, with nothing of this process's environment."""
    cleared: dict[str, str | None] = {name: None for name in os.environ if "POSEDROP" in name}
    given = {
        "POSEDROP_S3_ENDPOINT": server.endpoint,
        "POSEDROP_ROOT_ACCESS_KEY": ROOT_ACCESS_KEY,
        "POSEDROP_ROOT_SECRET_KEY": ROOT_SECRET_KEY,
    }
    return CliRunner().invoke(
        cli.main,
        ["--data-dir", str(folder / "none"), "bootstrap", *args],
        env=cleared | given | environment,
    )


def read_variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def keys_of(root: Any) -> Iterator[tuple[str, str]]:
    for bucket in (*BUCKETS, "other"):
        for found in root.list_objects_v2(Bucket=bucket).get("Contents", []):
            yield bucket, found["Key"]


SEEDS = (
    ("videos", f"uploads/{VIDEO_ID}/seed"),
    ("videos", "day1/seed"),
    ("results", f"{RUN}/seed"),
    ("results", f"{RUN}/parts/seed"),
    ("results", f"{RUN}/derived/seed"),
    ("results", "day1/parts/a.mp4/seed"),
    ("models", "openfield/digest/seed"),
    ("other", "folder/seed"),
)
