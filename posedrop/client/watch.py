"""Films sent as they come into a folder: each once, when its recorder has closed it.

The folder is listed every few seconds, which works on every system and on network drives, where
nobody tells of changes. A film goes up when its size and time have stayed the same for a while and
nobody keeps it from being opened. The store is the truth of what is there; a small file in the
user's own folder remembers what need not be asked about again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import click

from posedrop.client import trees
from posedrop.client.client import Client
from posedrop.client.trees import LocalFile
from posedrop.errors import PosedropError

Say = Callable[[str], None]
#: Bytes and time of change (nanoseconds) of a file: what tells that it is another than before.
Look = tuple[int, int]

#: Seconds between two tries while the network is away: doubled each time, up to the second figure.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
#: Seconds for which one try waits for a network that goes away: then all of the folder waits.
_PATIENCE = 20.0
#: Codes of errors that are the network's or the server's, and no film's.
_AWAY = frozenset({"unreachable", "unauthorized"})
#: Those that may be a film's own too, as where a store has no room for its name.
_MAYBE_AWAY = frozenset({"storage", "busy", "internal", "error"})
#: A film that was not taken is tried again after so many seconds, in case somebody mended it; one
#: that the store alone did not take, after the second figure, doubled up to the first.
_REFUSED_SECONDS = 3600.0
_FIRST_HELD_SECONDS = 60.0
#: One that another object stands in the way of is read whole for that: but once a day.
_IN_THE_WAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class _Seen:
    look: Look
    since: float


@dataclass
class Settling:
    """Which files of a folder have stayed the same for long enough. Pure."""

    seconds: float
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def settled(self, looks: Mapping[str, Look], now: float) -> list[str]:
        """Return the names that are settled now.

        Args:
            looks: of all files of the folder, by name.
            now: seconds, of a clock that does not jump.
        """
        # Who is not there any more is forgotten, so that it begins anew when it comes again.
        self._seen = {
            name: known
            if (known := self._seen.get(name)) is not None and known.look == look
            else _Seen(look, now)
            for name, look in looks.items()
        }
        return [
            name
            for name, seen in self._seen.items()
            if seen.look[0] > 0 and now - seen.since >= self.seconds
        ]


class Memory:
    """What is known to be in the store, by name and look, in a file that survives a restart.

    It may be lost: then all is asked about again, and nothing is sent twice.
    """

    def __init__(self, path: Path, say: Say) -> None:
        """Read the file; a damaged one counts as lost. ``say`` is told if it can't be written."""
        self._path = path
        self._say = say
        self._told = False
        self._known: dict[str, Look] = {}
        try:
            read: Any = json.loads(path.read_text(encoding="utf-8"))
            self._known = {str(name): (int(look[0]), int(look[1])) for name, look in read.items()}
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            self._known = {}

    def has(self, name: str, look: Look) -> bool:
        """Tell whether this very file is known to be in the store."""
        return self._known.get(name) == look

    def add(self, name: str, look: Look) -> None:
        """Remember it, before anything else can happen."""
        self._known[name] = look
        self._write()

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others: they are gone from the folder."""
        kept = {name: self._known[name] for name in names if name in self._known}
        if kept != self._known:
            self._known = kept
            self._write()

    def _write(self) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(self._known), encoding="utf-8")
            new.replace(self._path)
        except OSError as error:
            if not self._told:
                self._say(f"what is sent is asked about again after a restart: {error}")
            self._told = True


def memory_path(folder: PurePath, url: str, to: str, home: Path) -> Path:
    """Return where the memory of a watched folder is: one for each server and target."""
    named = hashlib.sha256("\0".join([str(folder), url, to]).encode(errors="replace")).hexdigest()
    return home / f"{named[:32]}.json"


def state_folder() -> Path:
    """Return this user's folder for what programs remember, as this system has it."""
    return Path(click.get_app_dir("posedrop")) / "watched"


def can_be_opened(path: Path) -> bool:
    """Tell whether nobody keeps a file from being opened: on Windows, its recorder does.

    Opened for change where that is allowed, as Windows lets readers in while somebody writes.
    """
    for mode in ("r+b", "rb"):
        try:
            with path.open(mode) as file:
                file.read(1)
        except PermissionError:
            continue
        except OSError:
            return False
        return mode == "r+b" or not os.access(path, os.W_OK)
    return False


@dataclass
class Round:
    """What one look at the folder has come to."""

    sent: int = 0
    there: int = 0
    refused: int = 0
    away: PosedropError | None = None


class _Refusal(NamedTuple):
    """A film that was not taken, as it looked; from when, and for how many seconds, it waits."""

    look: Look
    since: float
    seconds: float


class Watcher:
    """A folder whose films go up; one thread calls :meth:`look` again and again."""

    def __init__(
        self, client: Client, folder: Path, to: str, *, settle: float, memory: Memory, say: Say
    ) -> None:
        """Nothing is looked at yet.

        Args:
            client: of the server.
            folder: watched, with all folders below it.
            to: the bucket's folder that its tree goes to.
            settle: seconds for which a film has to stay as it is.
            memory: of what is there.
            say: told what happens, in lines for a person.
        """
        self._client = client
        self._folder = folder
        self._to = to
        self._settling = Settling(settle)
        self._memory = memory
        self._say = say
        self._refused: dict[str, _Refusal] = {}

    def look(self) -> Round:
        """Send what is settled and not there; stop at once where the network is away."""
        done = Round()
        looks: dict[str, Look] = {}
        files: dict[str, LocalFile] = {}
        if not self._folder.is_dir():  # an unplugged disk: nothing is forgotten
            return done
        for file in trees.walk(self._folder):
            try:
                stat = file.path.stat()
            except OSError:
                continue
            looks[file.name] = (stat.st_size, stat.st_mtime_ns)
            files[file.name] = file
        settled = set(self._settling.settled(looks, time.monotonic()))
        if looks:  # else it may be a disk that is not mounted
            self._memory.keep(looks)
        for name, file in files.items():
            look = looks[name]
            if name not in settled or self._memory.has(name, look):
                continue
            if self._waits(name, look) or not can_be_opened(file.path):
                continue
            try:
                self._send(file, look, done)
            except PosedropError as error:
                doubtful = error.code in _MAYBE_AWAY
                if error.code in _AWAY or (doubtful and not self._client.has_store()):
                    done.away = error
                    return done
                if error.code == "changes":  # it settles anew
                    continue
                done.refused += 1
                seconds = _IN_THE_WAY_SECONDS if error.code == "exists" else _REFUSED_SECONDS
                self._hold(name, look, error, _FIRST_HELD_SECONDS if doubtful else seconds)
            except OSError as error:
                self._say(f"{name} can't be read now: {error}")
        return done

    def _hold(self, name: str, look: Look, error: PosedropError, seconds: float) -> None:
        """Try a film later that is not taken; after a longer time than before."""
        before = self._refused.get(name)
        if before is not None and before.look == look:
            seconds = min(2 * before.seconds, max(seconds, _REFUSED_SECONDS))
        self._refused[name] = _Refusal(look, time.monotonic(), seconds)
        self._say(f"{name} is not taken; again in {seconds:.0f} s: {error.message}")

    def _waits(self, name: str, look: Look) -> bool:
        known = self._refused.get(name)
        return (
            known is not None
            and known.look == look
            and time.monotonic() - known.since < known.seconds
        )

    def _send(self, file: LocalFile, look: Look, done: Round) -> None:
        ticket = self._client.upload_into(file.path, self._to, file.name, patience=_PATIENCE)
        self._memory.add(file.name, look)
        self._refused.pop(file.name, None)
        if ticket.state == "exists":
            done.there += 1
            self._say(f"{file.name} is there: {ticket.key}")
        else:
            done.sent += 1
            self._say(f"{file.name} is sent: {ticket.key}")


def pauses() -> Iterator[float]:
    """Yield the seconds to wait between tries while the network is away."""
    seconds = _FIRST_PAUSE
    while True:
        yield seconds
        seconds = min(seconds * 2, _LONGEST_PAUSE)


def run(watcher: Watcher, every: float, say: Say) -> None:
    """Look again and again, until somebody ends the program.

    Args:
        watcher: of the folder.
        every: seconds between two looks.
        say: told, too, when the network is away, for how long, and when it is back.
    """
    waits, away_since, tries = pauses(), 0.0, 0
    while True:
        done = watcher.look()
        if done.away is None:
            if tries:
                gone = time.monotonic() - away_since
                say(f"the network is back after {gone:.0f} s and {tries} tries")
                waits, tries = pauses(), 0
            time.sleep(every)
            continue
        if not tries:
            away_since = time.monotonic()
        tries += 1
        pause = next(waits)
        say(f"away, try {tries}; the next in {pause:.0f} s: {done.away.message}")
        time.sleep(pause)
