"""A receiver of notices, by its alias, and the child process that sends to it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from typing import Any, Protocol

from posedrop.settings import Settings

#: How long a notice may take in all, in seconds; then the process that sends it is killed.
SEND_SECONDS = 30.0
#: What a sender is told of the handlers' environment.
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "SYSTEMROOT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_MOST_ANSWER = 4096


class Receiver(Protocol):
    """Who is told, by an alias."""

    is_webhook: bool
    """A program, told of each run; else people, told of several at once."""

    def send(self, notice_id: str, title: str, body: str) -> str | None:
        """Send one notice; return what is wrong, in words without a secret; None: it was taken."""


class Child:
    """The receiver that a URL of the settings stands for; each has a process of its own."""

    def __init__(self, settings: Settings, alias: str, seconds: float = SEND_SECONDS) -> None:
        self._url = settings.notify_urls[alias].get_secret_value()
        self._allow_private = settings.notify_allow_private
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.is_webhook = self._url.startswith(("https://", "http://"))

    def send(self, notice_id: str, title: str, body: str) -> str | None:
        """Send one notice; return what is wrong, in words without a secret; None: it was taken."""
        return self._say(
            {
                "url": self._url,
                "id": notice_id,
                "timestamp": int(time.time()),
                "title": title,
                "body": body,
                "allow_private": self._allow_private,
            }
        )

    def _say(self, told: dict[str, Any]) -> str | None:
        try:
            return self._ask(json.dumps(told).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError):
            self.close()
            return "the process that sends it ended"

    def check(self) -> str | None:
        """Return what is wrong with the URL, as far as can be said without sending anything."""
        return self._say({"url": self._url, "check": True, "allow_private": self._allow_private})

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _ask(self, line: bytes) -> str | None:
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            process = self._process = subprocess.Popen(
                # Nobody else's code: no folder that happens to be a home's or the current one.
                [sys.executable, "-sP", "-m", "handlers.telling.sender"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment(),
            )
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        process.stdin.write(line)
        process.stdin.flush()
        answer = b""
        deadline = time.monotonic() + self._seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n") and len(answer) < _MOST_ANSWER:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    return f"it took longer than {self._seconds:.0f} s"
                got = os.read(process.stdout.fileno(), _MOST_ANSWER)
                if not got:
                    raise OSError("the sender ended")
                answer += got
        error: Any = json.loads(answer)["error"]
        return None if error is None else str(error)[:300]

    def _environment(self) -> dict[str, str]:
        names = [*_KEPT]
        if self._allow_private:
            names += [each for name in _PROXIES for each in (name, name.lower())]
        found = {name: os.environ[name] for name in names if name in os.environ}
        # Where this process finds posedrop, its child does.
        path = os.pathsep.join(p for p in sys.path if p)
        return {**found, "HOME": "/nonexistent", "PYTHONPATH": path}
