"""S3 beyond this machine: a byte relay before a store that listens on loopback alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from posedrop.address import listen

_STOP_SECONDS = 5.0
_CHUNK = 1 << 18


class Relay:
    """Passes bytes from an address of this machine to the store, which listens on loopback alone.

    S3's signatures cover the name that the client used, whatever it is, so nothing is rewritten.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = listen(host, port, "S3", "--s3-port")
        self.port: int = self._listener.getsockname()[1]
        self._target = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self, target: int) -> None:
        """Pass on to this port of loopback from now on."""
        self._target = target
        self._thread.start()

    def stop(self) -> None:
        """Listen no longer and end what is open."""
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(
            asyncio.start_server(self._connected, sock=self._listener, limit=_CHUNK)
        )
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            store_reader, store_writer = await asyncio.open_connection(
                "127.0.0.1", self._target, limit=_CHUNK
            )
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, store_writer), _copy(store_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # A side that goes away ends its connection, which is all that can be told the other one.
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()
