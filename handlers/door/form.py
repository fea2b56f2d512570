"""A file sent as multipart/form-data, passed on to the bucket while it arrives.

FastAPI's own form parser would keep the whole file on the handlers' disk first; videos are large.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from typing import Any

import anyio
import anyio.to_thread
from python_multipart.multipart import MultipartParser, parse_options_header

from posedrop.errors import BadRequestError, BusyError

#: How many forms are taken at a time. Each holds a part of its film in memory: eight MiB to some
#: twenty, as large as :func:`posedrop.buckets.storage.Storage.upload_stream` makes them.
AT_A_TIME = 8
_MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 32

Sink = Callable[[str, dict[str, str], io.RawIOBase], None]


class Forms:
    """The forms that are being received: a bounded number; one more is refused at once."""

    def __init__(self, most: int = AT_A_TIME) -> None:
        self._left = most

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place for one form.

        Raises:
            BusyError: there is none left.
        """
        if self._left <= 0:
            raise BusyError(
                "too many films are sent by form at this moment: ask again in a moment, or send "
                "it straight to the store (curl -LT film.mp4 .../upload/)"
            )
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


class _Pipe(io.RawIOBase):
    """A pipe of the system's: what one thread writes, another reads as the form's file."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self._cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.readv(self._reading, [buffer])
        if count == 0 and self._cut:
            raise OSError("the client went away before the end of the file")
        return count

    def feed(self, data: bytes) -> None:
        """Write all of it; nothing once nobody reads any more."""
        with memoryview(data) as rest, suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._writing, rest) :]

    def end(self, *, cut: bool) -> None:
        """Say that no more comes; ``cut``: before the end of the file."""
        self._cut = cut
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def close(self) -> None:
        """Read no more."""
        if not self.closed:
            os.close(self._reading)
        super().close()


class FormUpload:
    """Feeds the parts of one form: small fields are kept, the file goes to ``sink`` in a thread.

    ``sink(filename, fields, stream)`` is called once the file begins, with the fields before it.
    """

    def __init__(
        self, content_type: str, sink: Sink, max_bytes: int, max_other_bytes: int = 2**20
    ) -> None:
        """Nothing is read yet.

        Args:
            content_type: of the request, with the boundary.
            sink: takes the file; what it raises, :meth:`receive` raises.
            max_bytes: that the file may have.
            max_other_bytes: that all else may have: fields, heads of parts, what follows the end.
        """
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise BadRequestError("send JSON, or a form with a file: curl -F file=@film.mp4")
        self._sink = sink
        self._left = max_bytes
        self._other_left = max_other_bytes
        self._fields: dict[str, str] = {}
        self._header = ""
        self._headers: dict[str, str] = {}
        self._name = ""
        self._value = b""
        self._pipe: _Pipe | None = None
        self._in_file = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._parser = self._new_parser(options[b"boundary"])
        self._current = ""

    def _new_parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._end,
                },
            )
        except ValueError as error:
            raise BadRequestError(f"the form can't be read: {error}") from error

    async def receive(self, body: AsyncIterator[bytes]) -> None:
        """Read the whole request, or as much of it as is needed to refuse it.

        Raises:
            BadRequestError: there is no file in it, it ends within the file, the file is too large,
                or a field comes after it.
        """
        whole = False
        # One of the threads that all requests share would be lost to them while a store is slow.
        own = anyio.CapacityLimiter(1)
        try:
            async for chunk in body:
                self._other_left -= len(chunk)
                await anyio.to_thread.run_sync(self._parser.write, chunk, limiter=own)
                if self._error is not None:
                    break
                if self._other_left < 0:
                    raise BadRequestError("the form has too much beside its file")
            else:
                self._parser.finalize()
                if self._in_file:
                    raise BadRequestError("the form ends within its file: send it again")
                whole = True
        except ValueError as error:
            raise BadRequestError(f"the form can't be read: {error}") from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._finish, whole, limiter=own)
        if self._error is not None:
            raise self._error
        if self._pipe is None:
            raise BadRequestError(
                "the form has no file in it: curl -F file=@film.mp4", field="file"
            )

    def _finish(self, whole: bool) -> None:
        if self._pipe is not None:
            self._pipe.end(cut=not whole)
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        self._headers, self._header, self._current, self._value = {}, "", "", b""
        self._in_file = False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].decode("latin-1")

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._current += data[start:end].decode("utf-8", "replace")

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._current
        self._header, self._current = "", ""

    def _on_headers(self) -> None:
        disposition = Message()
        disposition["content-disposition"] = self._headers.get("content-disposition", "")
        try:
            name = disposition.get_param("name", "", header="content-disposition")
            filename = disposition.get_filename()
        except (TypeError, ValueError) as error:  # by parameters that continue nothing
            raise BadRequestError(
                "the form can't be read: a Content-Disposition is wrong"
            ) from error
        self._name = str(name)
        if filename is None:
            if self._pipe is not None:
                raise BadRequestError(f"send the field {self._name!r} before the file")
            if len(self._fields) >= _MAX_FIELDS:
                raise BadRequestError(f"the form has more than {_MAX_FIELDS} fields")
            return
        if self._pipe is not None:
            raise BadRequestError("one file a request")
        self._in_file = True
        self._pipe = _Pipe()
        self._thread = threading.Thread(
            target=self._drain, args=(filename, dict(self._fields), self._pipe), daemon=True
        )
        self._thread.start()

    def _drain(self, filename: str, fields: dict[str, str], pipe: _Pipe) -> None:
        try:
            self._sink(filename, fields, pipe)
        except Exception as error:
            self._error = error
        finally:
            pipe.close()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file and self._pipe is not None:
            self._left -= end - start
            self._other_left += end - start
            if self._left < 0:
                raise BadRequestError(
                    "the file is larger than this server takes", code="too_many_bytes", field="file"
                )
            self._pipe.feed(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise BadRequestError(f"the field {self._name!r} is too long")

    def _end(self) -> None:
        if self._in_file and self._pipe is not None:
            self._pipe.end(cut=False)
            self._in_file = False
        else:
            self._fields[self._name] = self._value.decode("utf-8", "replace")
