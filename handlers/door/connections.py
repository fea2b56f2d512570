"""Connections of the API: a bounded number, each cut off where its client is silent or slow.

uvicorn waits for ever for the end of a head or of a body, and keeps what it has of them. Here who
is silent, or drips, is cut off; where all connections are taken, who has asked nothing yet makes
room for who comes. Not judged is who waits for an answer, and who sends more than is taken.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from posedrop.descriptors import raise_limit

#: Seconds for the head of a request, from its connection or from the last answer on.
HEAD_SECONDS = 10.0
#: Seconds without a byte of a body, or of an answer on its way.
QUIET_SECONDS = 30.0
#: A body may come as slowly as this, in bytes a second, beside so many seconds of silence.
SLOWEST = 4096
#: Seconds for the rest of a body whose request is answered already.
REST_SECONDS = 30.0
#: Bytes of a head, and of what is no content in a body (chunks' lengths, trailers).
MAX_HEAD = 2**16
#: Connections at a time, where the limit of descriptors has room for four times as many.
MOST = 512
_LOOK_SECONDS = 1.0

Phase = Literal["head", "body", "rest", "answer"]


@functools.cache
def most_connections() -> int:
    """Return how many connections there may be, having raised the limit of descriptors."""
    return min(MOST, raise_limit() // 4)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection, under watch: ``--http handlers.door.connections:BoundedProtocol``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch a new connection; of too many, cut off the one that is missed least."""
        super().connection_made(transport)
        self._began = self._looked = self.loop.time()
        self._phase: tuple[Phase, Any] = ("head", None)
        self._got = self._content = self._unsent = 0
        self._waited = self._quiet = 0.0
        self._watch = self.loop.call_later(_LOOK_SECONDS, self._look)
        if len(self.connections) > most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a request, and cut off one that is larger than a request can be."""
        self._look_at_phase()
        self._got += len(data)
        self._quiet = 0.0
        super().data_received(data)
        self._look_at_phase()
        phase, _ = self._phase
        most = {"head": MAX_HEAD, "body": MAX_HEAD + 2 * self._content}.get(phase, self._got)
        if self._got > most and not self.transport.is_closing():
            self.logger.warning("a request was cut off: its %s has no end", phase)
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Count the bytes of a request's body."""
        self._content += len(body)
        super().on_body(body)

    def shutdown(self) -> None:
        """End with the server: a stream of events has no end of its own to wait for."""
        super().shutdown()
        if self.cycle is not None and self.cycle.scope["path"] == "/stream":
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to watch a connection that is closed."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look_at_phase(self) -> None:
        """Restart the clock of a connection that has come to its next phase."""
        phase = (self._waits_for(), self.cycle)
        if phase != self._phase:
            self._phase = phase
            self._began = self.loop.time()
            self._got = self._content = 0
            self._waited = self._quiet = 0.0

    def _waits_for(self) -> Phase:
        cycle = self.cycle
        if cycle is None:
            return "head"
        if cycle.more_body:
            return "rest" if cycle.response_complete else "body"
        if not cycle.response_complete or self.transport.get_write_buffer_size() > 0:
            return "answer"
        return "head"

    def _look(self) -> None:
        """Cut the connection off if it has been silent, or slow, for too long."""
        now = self.loop.time()
        passed, self._looked = now - self._looked, now
        self._look_at_phase()
        if self._is_late(now, passed):
            self.logger.info("a connection was cut off: silent or slow in its %s", self._phase[0])
            self.transport.abort()
            return
        self._watch = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _is_late(self, now: float, passed: float) -> bool:
        match self._phase[0]:
            case "head":
                return now - self._began > HEAD_SECONDS
            case "rest":
                return now - self._began > REST_SECONDS
            case "body":
                if not self.flow.read_paused:
                    self._waited += passed
                    self._quiet += passed
                slow = self._waited > QUIET_SECONDS + self._content / SLOWEST
                return self._quiet > QUIET_SECONDS or slow
            case "answer":
                unsent = self.transport.get_write_buffer_size()
                self._quiet = self._quiet + passed if 0 < unsent == self._unsent else 0.0
                self._unsent = unsent
                return self._quiet > QUIET_SECONDS

    def _make_room(self) -> None:
        """Cut off whoever has asked nothing for the longest time, else whose body is the latest."""
        # One that is being closed is gone already, but for its last callback.
        there = [each for each in self.connections if not each.transport.is_closing()]
        if len(there) <= most_connections():
            return
        others = [each for each in there if isinstance(each, BoundedProtocol) and each is not self]
        for each in others:
            each._look_at_phase()
        missed = [each for each in others if each._phase[0] in {"head", "rest"}] or [
            each for each in others if each._phase[0] == "body"
        ]
        min(missed, key=lambda each: each._began, default=self).transport.abort()
