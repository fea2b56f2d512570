"""What a key may do: a policy in a file, for buckets of any name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posedrop.errors import ConfigurationError

_ARN = "arn:aws:s3:::"


def load_policy(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a policy with its buckets called as ``names`` has them.

    Each denies ``admin:*``, although it is not allowed either: MinIO lets every user make accounts
    that outlive it and change its own secret, unless its policy says no. Likewise for old versions,
    whose removal it takes for allowed to whoever may remove objects.

    Raises:
        ConfigurationError: there is no such file, or it speaks of other buckets.
    """
    try:
        policy: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"can't read the policy {path}: {error}; name one like posedrop/minio/policy_files "
            "with --policies, or leave it out"
        ) from error
    for statement in policy["Statement"]:
        if "Resource" in statement:
            statement["Resource"] = [_renamed(each, names) for each in statement["Resource"]]
    return policy


def _renamed(resource: str, names: Mapping[str, str]) -> str:
    bucket, slash, rest = resource.removeprefix(_ARN).partition("/")
    if not resource.startswith(_ARN) or bucket not in names:
        raise ConfigurationError(f"a policy speaks of {resource}, which is no bucket of posedrop")
    return f"{_ARN}{names[bucket]}{slash}{rest}"


def same_policy(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two policies say the same; stores keep actions in an order of their own."""
    return _said(one) == _said(other)


def _said(policy: Mapping[str, Any]) -> set[tuple[object, ...]]:
    return {
        (
            statement["Effect"],
            frozenset(_list(statement["Action"])),
            frozenset(_list(statement.get("Resource", []))),
            json.dumps(statement.get("Condition") or {}, sort_keys=True),
        )
        for statement in policy["Statement"]
    }


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
