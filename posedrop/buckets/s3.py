"""boto3's clients: how they are made for a store, and what their errors mean here."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from posedrop import __version__, metrics
from posedrop.buckets.connections import reject_truncated_headers
from posedrop.errors import ConfigurationError, StorageError
from posedrop.proxies import proxies_for_boto3
from posedrop.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Codes of errors that say: there is no such object.
MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
#: Codes of errors that say: somebody else has written it first.
TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class Clients:
    """The clients of one caller with one key: for the store, and for the URLs that are signed."""

    def __init__(
        self, settings: Settings, *, read_seconds: float = 60.0, attempts: int = 5
    ) -> None:
        """Nothing is asked yet.

        Args:
            settings: where the store is, and the keys.
            read_seconds: how long an answer is waited for.
            attempts: how often the same is asked before it counts as not done.
        """
        made = functools.partial(new_client, settings, read_seconds, attempts)
        secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
        public = settings.s3_public_endpoint or settings.s3_endpoint
        self._client = made(settings.s3_endpoint, settings.s3_access_key, secret)
        self._public = made(public, settings.s3_access_key, secret)
        self._presigner = self._public
        self._parts_client = self._client
        if settings.presign_access_key and settings.presign_secret_key:
            secret = settings.presign_secret_key.get_secret_value()
            self._presigner = made(public, settings.presign_access_key, secret)
            self._parts_client = made(settings.s3_endpoint, settings.presign_access_key, secret)
        self._expires = settings.presign_seconds
        self._part_bytes = settings.multipart_bytes
        self._transfer = TransferConfig(
            multipart_threshold=settings.multipart_bytes,
            multipart_chunksize=settings.multipart_bytes,
            max_concurrency=4,
        )


def new_client(
    settings: Settings,
    read_seconds: float,
    attempts: int,
    endpoint: str | None,
    access_key: str | None,
    secret_key: str | None,
) -> S3Client:
    """Return a client of boto3 that speaks to ``endpoint`` with one key (None: AWS's own).

    Raises:
        ConfigurationError: boto3 can't make one of what it is told.
    """
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=min(5.0, read_seconds),
        read_timeout=read_seconds,
        max_pool_connections=32,
        # Its own is made anew, in a tenth of each call's time, and names this machine.
        user_agent=f"posedrop/{__version__}",
        # Newer boto3 adds trailers that older stores refuse; the hashes in our records do it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=proxies_for_boto3(endpoint),
    )
    try:
        client = _session(own=bool(endpoint and access_key)).client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"no S3 client can be made of POSEDROP_S3_ENDPOINT, the AWS_ variables and "
            f"~/.aws: {error}"
        ) from error
    reject_truncated_headers(client)
    metrics.watch_store(client)
    return client


@functools.cache
def _session(*, own: bool) -> boto3.Session:
    """Return the session that makes boto3's clients; ``own``: one that reads no file and variable.

    Else a person's AWS_PROFILE, AWS_USE_FIPS_ENDPOINT or damaged ~/.aws/config would stand in the
    way to a store that has nothing to do with AWS. AWS_CA_BUNDLE is obeyed.
    """
    if not own:
        return boto3.Session()
    defaults = {
        name: (None, None, default, convert)
        for name, (_, _, default, convert) in botocore.session.Session.SESSION_VARIABLES.items()
        if name != "ca_bundle"
    }
    nothing = (None, None, os.devnull, None)
    return boto3.Session(
        botocore_session=botocore.session.Session(
            session_vars={**defaults, "config_file": nothing, "credentials_file": nothing}
        )
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what boto3 raises within the block into a StorageError: ``can't <what>: ...``."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise StorageError(f"can't {what}: {error}") from error


def code_of(error: ClientError) -> str:
    """Return the code of a store's error, such as NoSuchKey; a HEAD has its status alone, 404."""
    return error.response.get("Error", {}).get("Code", "")
