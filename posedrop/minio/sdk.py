"""MinIO's own SDK, for what S3 has no words for: targets, users, policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException
from minio.minioadmin import MinioAdmin

from posedrop.errors import ConfigurationError, StorageError
from posedrop.proxies import proxy_of
from posedrop.settings import Settings


def connect(settings: Settings, access_key: str | None, secret_key: str | None) -> Minio:
    """Return MinIO's client for the endpoint of the settings.

    Raises:
        ConfigurationError: there is no endpoint, or it is none.
    """
    host, secure = _endpoint(settings)
    try:
        return Minio(
            endpoint=host,
            access_key=access_key,
            secret_key=secret_key,
            secure=secure,
            region=settings.s3_region,
            http_client=_http(settings),
        )
    except ValueError as error:
        raise ConfigurationError(f"POSEDROP_S3_ENDPOINT: {error}") from error


def connect_admin(settings: Settings, access_key: str, secret_key: str) -> MinioAdmin:
    """Return the client for what only a root key may; errors are those of :func:`connect`."""
    host, secure = _endpoint(settings)
    return MinioAdmin(
        endpoint=host,
        credentials=StaticProvider(access_key, secret_key),
        region=settings.s3_region,
        secure=secure,
        http_client=_http(settings),
    )


def _endpoint(settings: Settings) -> tuple[str, bool]:
    parts = urlsplit(settings.s3_endpoint or "")
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigurationError(
            "set POSEDROP_S3_ENDPOINT to MinIO's address, such as http://minio:9000; AWS and "
            "SeaweedFS are not prepared by `posedrop bootstrap`"
        )
    return parts.netloc, parts.scheme == "https"


def _http(settings: Settings) -> urllib3.PoolManager:
    # The SDK's own waits five minutes for an answer, six times. SSL_CERT_FILE is obeyed.
    patience: Any = {
        "timeout": urllib3.Timeout(connect=5, read=30),
        "retries": urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=[502, 503, 504]),
    }
    proxy = proxy_of(settings.s3_endpoint or "")
    return urllib3.ProxyManager(proxy, **patience) if proxy else urllib3.PoolManager(**patience)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what the SDK raises into a :class:`StorageError` that says what could not be done."""
    try:
        yield
    except (MinioException, MinioAdminException, urllib3.exceptions.HTTPError) as error:
        raise StorageError(f"can't {what}: {error}") from error
    except ValueError as error:
        # The SDK checks names and answers with it.
        raise StorageError(f"can't {what}: {error}") from error
