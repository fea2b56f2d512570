"""S3 beyond this machine: a byte relay before a store that listens on loopback alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from posedrop.address import listen
from posedrop.descriptors import raise_limit

_STOP_SECONDS = 5.0
_CHUNK = 1 << 18
#: Connections at a time, where the limit of descriptors has room for six times as many: each is
#: two of them.
MOST = 512
#: Seconds for the head of a client's first request, and bytes in which its end is looked for.
HEAD_SECONDS = 10.0
MAX_HEAD = 2**16
#: Seconds without a byte in either direction: the store may need some to put parts together.
QUIET_SECONDS = 300.0
_LOOK_SECONDS = 1.0
#: What passed lately counts half after each so many seconds, where room has to be made.
_FADE_SECONDS = 10.0


class Relay:
    """Passes bytes from an address of this machine to the store, which listens on loopback alone.

    S3's signatures cover the name that the client used, whatever it is, so nothing is rewritten.
    Who says nothing is cut off; where too many are connected, the one with the least to say is.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = listen(host, port, "S3", "--s3-port")
        self.port: int = self._listener.getsockname()[1]
        self._target = 0
        self._most = min(MOST, raise_limit() // 6)
        self._open: set[_Relayed] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self, target: int) -> None:
        """Pass on to this port of loopback from now on."""
        self._target = target
        self._thread.start()

    def stop(self) -> None:
        """Listen no longer and end the open connections."""
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(
            asyncio.start_server(self._connected, sock=self._listener, limit=_CHUNK)
        )
        self._look()
        self._loop.run_forever()

    def _look(self) -> None:
        for each in self._open:
            each.look(self._loop.time())
        self._loop.call_later(_LOOK_SECONDS, self._look)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relayed = _Relayed(writer, self._loop.time())
        self._open.add(relayed)
        try:
            if len(self._open) > self._most:
                # The least that was said lately; of those who said nothing, the first to come.
                least = min(self._open - {relayed}, key=lambda each: (each.lately, each.since))
                self._open.discard(least)
                least.cut()
            await relayed.pass_on(reader, self._target)
        finally:
            self._open.discard(relayed)


class _Relayed:
    """One client's connection, and the one to the store that is its other half."""

    def __init__(self, client: asyncio.StreamWriter, now: float) -> None:
        self._client = client
        self._store: asyncio.StreamWriter | None = None
        self._head = b""
        self._asked = False
        self._heard = now
        self._passed = False
        self.since = now
        self.lately = 0.0

    async def pass_on(self, reader: asyncio.StreamReader, target: int) -> None:
        """Pass on what either side says until one of them goes away or is cut off."""
        try:
            store_reader, self._store = await asyncio.open_connection(
                "127.0.0.1", target, limit=_CHUNK
            )
        except OSError:
            self._client.close()
            return
        await asyncio.gather(
            self._copy(reader, self._store), self._copy(store_reader, self._client)
        )

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A side that goes away ends its connection, which is all that can be told the other one.
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self._note(chunk, asks=writer is self._store)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    def _note(self, chunk: bytes, *, asks: bool) -> None:
        self._passed = True
        self.lately += len(chunk)
        if asks and not self._asked:
            self._head += chunk
            self._asked = b"\r\n\r\n" in self._head
            self._head = b"" if self._asked else self._head[-MAX_HEAD:]

    def look(self, now: float) -> None:
        """Cut the connection if it has been silent for too long."""
        self.lately *= 0.5 ** (_LOOK_SECONDS / _FADE_SECONDS)
        if self._passed:
            self._heard, self._passed = now, False
        if now - self._heard > QUIET_SECONDS or (
            not self._asked and now - self.since > HEAD_SECONDS
        ):
            self.cut()

    def cut(self) -> None:
        """End both halves at once; what was not sent yet is lost."""
        for writer in (self._client, self._store):
            if writer is not None:
                writer.transport.abort()
