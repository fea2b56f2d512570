"""Buckets as an earlier posedrop left them (tests/fixtures/buckets), to be put into a store."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from posedrop.buckets.layout import FOLDER_RULES, REQUEST, RESULT
from posedrop.embedded.weed import Weed
from posedrop.embedded.weed_config import Identity
from tests.support.samples import REPOSITORY

BUCKETS = ("videos", "results", "models")


@dataclass(frozen=True)
class OldBuckets:
    """The objects of three buckets, as they were at a commit of posedrop."""

    commit: str

    @cached_property
    def objects(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is known of each object, by bucket and key."""
        listed = json.loads(self._zip.read("objects.json"))
        return {(one["bucket"], one["key"]): one for one in listed}

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(REPOSITORY / f"tests/fixtures/buckets/{self.commit}.zip")

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object's bytes."""
        known = self.objects[bucket, key]
        if "file" in known:
            # The demo's model, which was demo/model then; its bytes have not changed.
            data = (REPOSITORY / "posedrop" / known["file"]).read_bytes()
        else:
            data = self._zip.read(known["sha256"])
        assert hashlib.sha256(data).hexdigest() == known["sha256"], key
        return data

    def record(self, key: str) -> Any:
        """Return a JSON record of the results bucket."""
        return json.loads(self.read("results", key))

    @property
    def films(self) -> list[str]:
        """The keys of the videos."""
        keys = [key for bucket, key in self.objects if bucket == "videos"]
        return [key for key in keys if not key.endswith(FOLDER_RULES)]

    @property
    def runs(self) -> dict[str, dict[str, Any] | None]:
        """The folder of each run, and its result.json, None if it was not over."""
        keys = {key for bucket, key in self.objects if bucket == "results"}
        folders = sorted(key.removesuffix(f"/{REQUEST}") for key in keys if key.endswith(REQUEST))
        return {
            run: self.record(f"{run}/{RESULT}") if f"{run}/{RESULT}" in keys else None
            for run in folders
        }

    def restore(self, data_dir: Path) -> None:
        """Put all of it into the store of an embedded stack that has not been started yet."""
        keeper = Identity("keeper", "AKKEEPER", "SKKEEPER12345", ("Admin", "Read", "Write", "List"))
        weed = Weed(data_dir / "weed", data_dir / "logs/weed.log", s3_port=0, identities=(keeper,))
        weed.start()
        try:
            client = boto3.client(
                "s3",
                endpoint_url=weed.endpoint,
                region_name="us-east-1",
                aws_access_key_id=keeper.access_key,
                aws_secret_access_key=keeper.secret_key,
                config=Config(s3={"addressing_style": "path"}),
            )
            for bucket in BUCKETS:
                client.create_bucket(Bucket=bucket)
            for (bucket, key), known in self.objects.items():
                client.put_object(
                    Bucket=bucket,
                    Key=key,
                    Body=self.read(bucket, key),
                    ContentType=known["content_type"],
                    Metadata=known["metadata"],
                )
        finally:
            weed.stop()
