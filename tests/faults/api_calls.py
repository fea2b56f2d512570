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
from dataclasses import dataclass
from pathlib import Path

from tests.support.filled_api import TOKEN, filled_api

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
