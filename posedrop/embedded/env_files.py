"""What a stack leaves in its folder for others: posedrop.env for posedrop, aws.env for S3 tools.

``auth.header`` is for curl (``-H @file``): a token among its words would be seen in the list of
processes.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from posedrop.embedded.keyring import AccessKey
from posedrop.folders import write_private
from posedrop.settings import ENV_FILE, Settings

AWS_FILE = "aws.env"
HEADER_FILE = "auth.header"


def write_env_files(data_dir: Path, settings: Settings, user: AccessKey) -> None:
    """Write where a stack is and its keys: all for ``posedrop``, and the user's for S3 tools."""
    values = {
        "POSEDROP_URL": settings.url,
        "POSEDROP_API_TOKEN": _secret(settings.api_token),
        "POSEDROP_S3_ENDPOINT": settings.s3_endpoint,
        "POSEDROP_S3_PUBLIC_ENDPOINT": settings.s3_public_endpoint,
        "POSEDROP_S3_REGION": settings.s3_region,
        "POSEDROP_S3_ACCESS_KEY": settings.s3_access_key,
        "POSEDROP_S3_SECRET_KEY": _secret(settings.s3_secret_key),
        "POSEDROP_PRESIGN_ACCESS_KEY": settings.presign_access_key,
        "POSEDROP_PRESIGN_SECRET_KEY": _secret(settings.presign_secret_key),
        "POSEDROP_EVENTS_TOKEN": _secret(settings.events_token),
    }
    path = data_dir / ENV_FILE
    own = _other_lines(path, set(values))
    lines = [f"{name}={value}" for name, value in values.items() if value is not None]
    write_private(
        path,
        "\n".join(
            [
                "# Written by `posedrop up` at its start. Lines of your own are kept.",
                *lines,
                *own,
                "",
            ]
        ),
    )
    token = _secret(settings.api_token)
    if token is not None:
        write_private(data_dir / HEADER_FILE, f"Authorization: Bearer {token}\n")
    _write_aws(data_dir / AWS_FILE, settings, user)


def _write_aws(path: Path, settings: Settings, user: AccessKey) -> None:
    aws = {
        "AWS_ACCESS_KEY_ID": user.access_key,
        "AWS_SECRET_ACCESS_KEY": user.secret_key,
        "AWS_ENDPOINT_URL": settings.s3_public_endpoint or settings.s3_endpoint,
        "AWS_DEFAULT_REGION": settings.s3_region,
        # One of a person's own, left in the shell, would be sent along and refused.
        "AWS_SESSION_TOKEN": "",
    }
    write_private(path, "".join(f"{name}={value}\n" for name, value in aws.items()))


def _other_lines(path: Path, ours: set[str]) -> list[str]:
    """Return the lines of an env file that set none of ``ours``: a person's own."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [
        line
        for line in lines
        if not line.startswith("# Written by `posedrop up`")
        and line.partition("=")[0].strip().upper() not in ours
        and line.strip()
    ]


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
