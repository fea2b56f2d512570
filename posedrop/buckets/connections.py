"""HTTP answers that are whole, or errors: a cut connection must not look like a short answer.

Python's ``http.client`` takes the end of a connection for the end of the headers. An answer to
HEAD has nothing after them, so one that was cut looks like an object without the metadata that asks
for its analysis; a listing without ``Content-Length`` and body looks like an empty bucket. urllib3
warns at most. Here such an answer is an ``IncompleteRead``, and botocore asks again.
"""

from __future__ import annotations

from http.client import IncompleteRead
from typing import IO, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPResponse,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

_BLANK = (b"\r\n", b"\n")


def reject_truncated_headers(client: Any) -> None:
    """Have a boto3 client refuse answers whose headers were cut.

    botocore has no setting for the classes of its connections; this is where it keeps them, and no
    connection is open yet.
    """
    pools = client._endpoint.http_session._pool_classes_by_scheme
    pools.update(http=_Pool, https=_SecurePool)


class _Lines:
    """A file that remembers the last line read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""

    def readline(self, limit: int = -1) -> bytes:
        self.last = self.file.readline(limit)
        return self.last

    def close(self) -> None:
        self.file.close()

    def flush(self) -> None:
        self.file.flush()


class _Response(AWSHTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"status_tuple": None, **kwargs})

    def begin(self) -> None:
        if self.headers is not None:
            return
        lines = _Lines(self.fp)
        self.fp = lines
        try:
            super().begin()
        finally:
            self.fp = lines.file
        if lines.last not in _BLANK:
            raise IncompleteRead(lines.last)


# The types of the bases contradict each other (botocore's mixin and urllib3's connection).
class _Whole:
    """The half that HTTP and HTTPS connections share: their answers are whole, or errors."""

    response_class = _Response

    def _consume_headers(self, file: IO[bytes]) -> None:
        """Read to the blank line after ``100 Continue``; botocore's waits for it for ever."""
        line = file.readline()
        while line not in _BLANK:
            if not line.endswith(b"\n"):
                raise IncompleteRead(line)
            line = file.readline()


class _Connection(_Whole, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Whole, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):
    ConnectionCls = _SecureConnection
