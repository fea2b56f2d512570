"""The files that SeaweedFS's server reads at its start: identities, webhook, keys for itself."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from posedrop.address import LOOPBACK

#: Each with a port for HTTP and one for gRPC.
COMPONENTS = ("master", "volume", "filer", "s3", "admin")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody with an S3 access key, and what the key may do."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...] = ()
    """``Read``, ``Write``, ``List``, ``Tagging``, ``Admin``: everywhere, or ``:bucket/prefix*``.
    ``Write:bucket`` would also change the bucket's own settings; ``Write:bucket/*`` may not."""
    policy: tuple[Mapping[str, object], ...] = ()
    """Statements as AWS has them. Where there are any, ``actions`` count for posted forms and
    ACLs alone. They are finer: to actions, making, deleting and configuring a bucket are one."""


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """The URL to which weed sends the events of some buckets."""

    url: str
    token: str
    buckets: tuple[str, ...]


#: weed's maintenance worker purges old logs of metadata, forgets multipart uploads after a day and
#: gives back the space of what was deleted: within minutes, where its own default is a day. What is
#: meant for clusters stays off: one machine has nowhere to spread data to.
_ADMIN = """
[maintenance.vacuum]
scan_interval_seconds = 900
min_volume_age_seconds = 0
[maintenance.balance]
enabled = false
[maintenance.erasure_coding]
enabled = false
"""


def configuration(
    folder: Path, identities: Sequence[Identity], webhook: WebhookTarget | None
) -> dict[str, str]:
    """Return the files that are to be in ``folder``, by name; their keys are new at every call."""
    certificate, key = _certificate()
    return {
        "tls.crt": certificate,
        "tls.key": key,
        "security.toml": _security(folder),
        "s3.json": _s3_identities(identities),
        "admin.toml": _ADMIN,
        "notification.toml": _notification(webhook),
    }


def _security(folder: Path) -> str:
    keys = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    parts = [f'[{name}]\nkey = "{secrets.token_hex(32)}"' for name in keys]
    certificate = f"cert = {_quoted(folder / 'tls.crt')}\nkey = {_quoted(folder / 'tls.key')}"
    parts += ["[access]\nui = false", "[filer.expose_directory_metadata]\nenabled = false"]
    parts.append(f"[grpc]\nca = {_quoted(folder / 'tls.crt')}")
    parts += [f"[grpc.{name}]\n{certificate}" for name in (*COMPONENTS, "worker", "client")]
    return "\n".join(parts) + "\n"


def _s3_identities(identities: Sequence[Identity]) -> str:
    known = [
        {
            "name": each.name,
            "credentials": [{"accessKey": each.access_key, "secretKey": each.secret_key}],
            "actions": list(each.actions),
            "policyNames": [each.name] if each.policy else [],
        }
        for each in identities
    ]
    policies = [
        {
            "name": each.name,
            "content": json.dumps({"Version": "2012-10-17", "Statement": list(each.policy)}),
        }
        for each in identities
        if each.policy
    ]
    return json.dumps({"identities": known, "policies": policies}, indent=1)


def _notification(webhook: WebhookTarget | None) -> str:
    if webhook is None:
        return "[notification.webhook]\nenabled = false\n"
    prefixes = [f"/buckets/{bucket}/" for bucket in webhook.buckets]
    return "\n".join(
        [
            "[notification.webhook]",
            "enabled = true",
            f"endpoint = {_quoted(webhook.url)}",
            f"bearer_token = {_quoted(webhook.token)}",
            "timeout_seconds = 10",
            # The most that weed takes; what is still lost then, the reconciler finds.
            "max_retries = 10",
            "backoff_seconds = 1",
            "max_backoff_seconds = 30",
            "workers = 5",
            "buffer_size = 1000000",
            f"path_prefixes = {json.dumps(prefixes, ensure_ascii=False)}",
            "",
        ]
    )


def _certificate() -> tuple[str, str]:
    """Return a certificate that signs itself, and its key: who has the key belongs to this weed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "posedrop")])
    now = datetime.now(UTC)
    hosts = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        # It is made anew at every start; a stack may well run for years.
        .not_valid_after(now + timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def _quoted(value: object) -> str:
    # A TOML basic string is a JSON string, as long as nothing is escaped as a surrogate pair.
    return json.dumps(str(value), ensure_ascii=False)
