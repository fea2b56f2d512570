"""The keys of an embedded stack: made at its first start, kept with mode 0600."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from posedrop.embedded.weed_config import Identity
from posedrop.errors import ConfigurationError
from posedrop.folders import check_own_file, write_private
from posedrop.settings import Settings

_SECRETS_FILE = "secrets.json"
#: The identity of the lab's people, by its name in the store.
USER = "user"


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An S3 access key."""

    access_key: str
    secret_key: str

    @classmethod
    def new(cls) -> AccessKey:
        """Make one that nobody can guess, of letters and digits: no shell or URL needs quotes."""
        return cls(_letters(20).upper(), _letters(40))


@dataclass(slots=True)
class Secrets:
    """The keys and tokens of a data directory: made at its first start, and kept."""

    service: AccessKey
    presigner: AccessKey
    user: AccessKey
    events_token: str
    api_token: str

    @classmethod
    def of(cls, data_dir: Path) -> Secrets:
        """Return the secrets of a data directory, made if there are none."""
        path = data_dir / _SECRETS_FILE
        try:
            check_own_file(path)
            kept = json.loads(path.read_text(encoding="utf-8"))
            found = cls(
                AccessKey(**kept["service"]),
                AccessKey(**kept["presigner"]),
                AccessKey(**kept["user"]),
                kept["events_token"],
                kept["api_token"] or _letters(40),  # older ones made it when it was needed
            )
            if kept["api_token"] is None:
                found._write(data_dir)
        except FileNotFoundError:
            new = cls(AccessKey.new(), AccessKey.new(), AccessKey.new(), _letters(40), _letters(40))
            new._write(data_dir)
            return new
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({error}); remove it, and new keys are made"
            ) from error
        return found

    def identities(self, settings: Settings) -> list[Identity]:
        """Return the identities that may use S3, and for what."""
        videos, results = settings.videos_bucket, settings.results_bucket
        everything = ("Admin", "Read", "Write", "List", "Tagging")
        read = _allow(
            ("s3:Get*", "s3:List*"), *(f"{b}{x}" for b in (videos, results) for x in ("", "/*"))
        )
        write = _allow(
            (
                "s3:PutObject",
                "s3:PutObjectAcl",
                "s3:PutObjectTagging",
                "s3:DeleteObject",
                "s3:DeleteObjectTagging",
                "s3:AbortMultipartUpload",
            ),
            f"{videos}/*",
        )
        # Tools make sure of a bucket before they write to it (rclone does); the bucket is there,
        # so the answer is that they own it, and nothing is made.
        make = _allow(("s3:CreateBucket",), videos)
        puts = _allow(("s3:PutObject", "s3:AbortMultipartUpload"), f"{videos}/*")
        return [
            Identity("posedrop", self.service.access_key, self.service.secret_key, everything),
            Identity(
                "presigner",
                self.presigner.access_key,
                self.presigner.secret_key,
                actions=(),
                policy=(puts,),
            ),
            Identity(
                USER,
                self.user.access_key,
                self.user.secret_key,
                # weed asks for these too: where a form is posted, and for an object's ACL, which
                # s3cmd copies with an object, and which opens it to nobody.
                actions=(f"Write:{videos}", f"WriteAcp:{videos}/*"),
                policy=(read, write, make),
            ),
        ]

    def _write(self, data_dir: Path) -> None:
        write_private(data_dir / _SECRETS_FILE, json.dumps(asdict(self), indent=1))


def _allow(actions: Sequence[str], *resources: str) -> dict[str, object]:
    """Return a statement of a policy; ``resources`` are ``bucket`` or ``bucket/prefix*``."""
    return {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": [f"arn:aws:s3:::{resource}" for resource in resources],
    }


def _letters(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))
