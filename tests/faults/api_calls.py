"""Calls that the OpenAPI document allows, and such as it does not, to the API on a real store.

``python -m tests.faults.api_calls --examples 200 --seed 1`` (part of ``make soak``). Schemathesis
makes them: no answer may be a server error, or one that the document does not have.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from handlers.app import create_app
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.old_buckets import BUCKETS, OldBuckets
from tests.support.serving import serving

TOKEN = "of-the-api"
#: A name that nobody knows (of a model, an analysis, a cursor) is 422, and no document can say so.
UNWANTED_CHECKS = "positive_data_acceptance"
#: Calls of the document's examples, of each of its limits, made up, and one after another.
PHASES = "examples,coverage,fuzzing,stateful"
_CASES = re.compile(r"(\d+) generated")


@dataclass(frozen=True)
class Calls:
    """What became of the calls: how many were made, and what was found, in words."""

    made: int
    failed: bool
    report: str


@contextmanager
def filled_api(folder: Path) -> Iterator[str]:
    """Serve the API, with a token, on buckets with films and runs of every state; its address."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    given = {
        "s3_endpoint": f"http://{host}:{port}",
        "s3_access_key": "test",
        "s3_secret_key": "test-secret",
        "api_token": TOKEN,
    }
    client = boto3.client(
        "s3",
        endpoint_url=given["s3_endpoint"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test-secret",
    )
    old = OldBuckets("cf9bc21")
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)
    for bucket, key in old.objects:
        client.put_object(Bucket=bucket, Key=key, Body=old.read(bucket, key))
    try:
        with serving(create_app(load(folder, given), queue.connect("stub://"))) as url:
            yield url
    finally:
        store.stop()


def call(url: str, folder: Path, *, examples: int, seed: int, phases: str = PHASES) -> Calls:
    """Make calls of every kind to each operation.

    Args:
        url: of the API.
        folder: where notes are left.
        examples: that are made up for each operation; others follow from the document.
        seed: the same makes the same calls.
        phases: of Schemathesis.
    """
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", "all", "--exclude-checks", UNWANTED_CHECKS),
        *("--phases", phases),
        *("--max-examples", str(examples), "--seed", str(seed), "--max-failures", "100"),
        *("--request-timeout", "30", "--no-color", "--warnings", "off"),
    ]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    report = ended.stdout + ended.stderr
    made = _CASES.search(report)
    return Calls(int(made[1]) if made else 0, ended.returncode != 0, report)


def main() -> int:
    """Make the calls that the command line asks for, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, filled_api(Path(folder) / "data") as url:
        calls = call(url, Path(folder), examples=wanted.examples, seed=wanted.seed)
    print(calls.report)
    return int(calls.failed)


if __name__ == "__main__":
    sys.exit(main())
