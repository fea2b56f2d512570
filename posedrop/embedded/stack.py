"""`posedrop up`: the whole way of a video in one process and one folder, for one machine.

The object store is a child process (``embedded.weed``); the API, its broker and the workers are
threads of this one. Of the folder only ``weed/`` is worth a backup. Stop it or kill it at any time
and start it again: it goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import dramatiq
import uvicorn
from pydantic import SecretStr

from posedrop import logs
from posedrop.address import LOOPBACK, is_loopback, listen, netloc, outside, reachable
from posedrop.buckets.storage import Storage
from posedrop.client import tokens
from posedrop.descriptors import raise_limit
from posedrop.embedded.env_files import AWS_FILE, HEADER_FILE, write_env_files
from posedrop.embedded.keyring import USER, AccessKey, Secrets
from posedrop.embedded.relay import Relay
from posedrop.embedded.weed import Weed
from posedrop.embedded.weed_config import WebhookTarget
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.folders import FolderLock, make_private
from posedrop.settings import DEFAULT_DATA_DIR, Settings, load, stack_scratch, unknown_variables
from posedrop.terminal import say
from posedrop.transport import queue

if TYPE_CHECKING:
    from worker.context import Context

log = logging.getLogger(__name__)

DEFAULT_HOST = LOOPBACK
DEFAULT_PORT = 8080
DEFAULT_S3_PORT = 8333
DEMO_DATA_DIR = Path("posedrop-demo")
#: Names of data directories that posedrop chose: nobody keeps anything else in one.
OWN_FOLDERS = frozenset({DEFAULT_DATA_DIR.name, DEMO_DATA_DIR.name})
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Stack:
    """The object store, the API and the workers of one data directory."""

    def __init__(
        self,
        data_dir: Path,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        s3_port: int = DEFAULT_S3_PORT,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            data_dir: made if there is none.
            host: where the API and S3 listen.
            port: of the API; 0 chooses a free one.
            s3_port: of the object store; 0 chooses a free one and keeps it.
            overrides: settings, by their names in :class:`posedrop.settings.Settings`.
        """
        self.data_dir = data_dir.resolve()
        self._host = host
        self._port = port
        self._s3_port = s3_port
        self._overrides = dict(overrides or {})
        self._closers: list[Callable[[], None]] = []
        self._stop_asked = threading.Event()
        self._api: _Api | None = None
        self._weed: Weed | None = None
        self._settings: Settings | None = None
        self._local = True
        self.user: AccessKey | None = None

    @property
    def settings(self) -> Settings:
        """The settings that the stack runs with, known once started."""
        if self._settings is None:
            raise RuntimeError("the stack is not started")
        return self._settings

    def start(self) -> None:
        """Start everything and return when a video may come.

        Raises:
            ConfigurationError: the folder, a port or a setting can't be used; the message says so
                in one line.
        """
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise _unusable(self.data_dir, error) from error
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        raise_limit()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FolderLock(self.data_dir)
        lock.acquire()
        self._closers.append(lock.release)
        kept = Secrets.of(self.data_dir)
        self.user = kept.user
        listener = listen(self._host, self._port, "the API", "--port")
        self._closers.append(listener.close)
        api_port: int = listener.getsockname()[1]
        configured = load(self.data_dir, self._overrides)
        _free_scratch(configured)
        weed = self._start_store(kept, configured, api_port)
        self._settings = self._wire(kept, configured, api_port, weed)
        write_env_files(self.data_dir, self._settings, kept.user)
        self._keep_token(self._settings)
        storage = Storage(self._settings)
        # People's tools ask the store to make the bucket that they write to: it is theirs.
        own = {
            "s3_access_key": kept.user.access_key,
            "s3_secret_key": SecretStr(kept.user.secret_key),
        }
        persons = Storage(self._settings.model_copy(update=own))
        if not persons.claim_bucket(self._settings.videos_bucket):
            weed.give_bucket(self._settings.videos_bucket, USER)
        for bucket in _buckets(self._settings):
            storage.create_bucket(bucket)
        self._start_threads(listener)

    def _start_store(self, kept: Secrets, configured: Settings, api_port: int) -> Weed:
        everywhere = not is_loopback(self._host)
        relay = Relay(self._host, self._s3_port) if everywhere else None
        if relay is not None:
            self._closers.append(relay.stop)
        weed = Weed(
            self.data_dir / "weed",
            self.data_dir / "logs" / "weed.log",
            s3_port=0 if everywhere else self._s3_port,
            identities=kept.identities(configured),
            webhook=WebhookTarget(
                f"http://{netloc(reachable(self._host), api_port)}/events",
                kept.events_token,
                (configured.videos_bucket, configured.results_bucket),
            ),
        )
        self._closers.append(weed.stop)
        weed.start()
        self._weed = weed
        if relay is not None:
            relay.start(weed.s3_port)
            self._s3_port = relay.port
        else:
            self._s3_port = weed.s3_port
        return weed

    def _wire(self, kept: Secrets, configured: Settings, api_port: int, weed: Weed) -> Settings:
        token = configured.api_token.get_secret_value() if configured.api_token else kept.api_token
        # Whoever has chosen the token may have put a proxy with a name of its own before this.
        self._local = is_loopback(self._host) and token == kept.api_token
        public = configured.s3_public_endpoint
        if "s3_public_endpoint" not in self._overrides:
            public = os.environ.get("POSEDROP_S3_PUBLIC_ENDPOINT")
        if public is None and not is_loopback(self._host):
            public = f"http://{netloc(outside(self._host), self._s3_port)}"
        return load(
            self.data_dir,
            {
                "scratch_dir": stack_scratch(configured),
                **self._overrides,
                "s3_endpoint": weed.endpoint,
                "s3_public_endpoint": public,
                "s3_region": "us-east-1",
                "s3_access_key": kept.service.access_key,
                "s3_secret_key": kept.service.secret_key,
                "presign_access_key": kept.presigner.access_key,
                "presign_secret_key": kept.presigner.secret_key,
                "broker_url": "stub://",
                "events_token": kept.events_token,
                "api_token": token,
                "url": f"http://{netloc(reachable(self._host), api_port)}",
            },
        )

    def _keep_token(self, settings: Settings) -> None:
        token = token_of(settings)
        tokens.keep(settings.url, token)
        self._closers.append(lambda: tokens.forget(settings.url, token))

    def _start_threads(self, listener: socket.socket) -> None:
        # These import whatever handlers and workers need; only a stack that starts should.
        from handlers.app import create_app
        from handlers.door.connections import BoundedProtocol
        from worker.actors import register

        broker = queue.connect(self.settings.broker_url)
        priority = queue.EventPriority()
        broker.add_middleware(priority)
        worker_context: Context = register(broker, self.settings)
        self._closers.append(worker_context.close)
        app = create_app(self.settings, broker, set_busy=priority.set_busy, local=self._local)
        self._api = _Api(app, listener, BoundedProtocol)
        self._closers.append(self._api.stop)
        self._api.start()
        # It warns of the second worker's middleware, which is there for the second worker.
        logging.getLogger("dramatiq.broker.StubBroker").setLevel(logging.ERROR)
        workers = [
            dramatiq.Worker(broker, queues={name}, worker_threads=threads, worker_timeout=100)
            # Of the gpu's two, one has the network; the other fetches the next video. Of the cpu's,
            # one makes tables while the other draws.
            for name, threads in ((queue.CPU, 2), (queue.GPU, 2))
        ]
        # Last in, first out: the children die first, so that no worker waits for a job of hours;
        # the claims in the bucket say that the job is handed back, and the next start resumes it.
        self._closers.append(lambda: _stop_workers(workers))
        self._closers.append(worker_context.close)
        worker_context.start_children()
        for worker in workers:
            worker.start()

    def wait(self) -> None:
        """Return on Ctrl-C or SIGTERM; a second Ctrl-C ends at once.

        Raises:
            PosedropError: the store or the API has ended for good. Whatever watches over this
                process may start it again.
        """
        previous = {
            sign: signal.signal(sign, self._asked_to_stop)
            for sign in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            while not self._stop_asked.wait(0.5):
                self._check_alive()
        except BaseException:
            for sign, handler in previous.items():
                signal.signal(sign, handler)
            raise

    def _check_alive(self) -> None:
        if self._api is not None and not self._api.alive:
            raise PosedropError("the API has ended by itself")
        if self._weed is not None and not self._weed.alive:
            raise PosedropError(
                "the object store ended again and again; its log says why: "
                f"{self.data_dir / 'logs' / 'weed.log'}"
            )

    def _asked_to_stop(self, number: int, _: FrameType | None) -> None:
        if self._stop_asked.is_set():
            # The store goes with this process, and nothing that it acknowledged is lost.
            os._exit(128 + number)
        self._stop_asked.set()

    def stop(self) -> None:
        """Stop everything, whatever of it was started; running jobs go on at the next start."""
        while self._closers:
            close = self._closers.pop()
            try:
                close()
            except Exception:
                # One part that stops badly must not keep the others from stopping.
                log.exception("while stopping")


def up(
    data_dir: Path,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    s3_port: int = DEFAULT_S3_PORT,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Run a stack until Ctrl-C, and say where it is and what to try.

    Raises:
        ConfigurationError: it can't be started; the message says why.
    """
    stack = Stack(data_dir, host=host, port=port, s3_port=s3_port, overrides=overrides)
    log_to(data_dir)
    for words in unknown_variables(data_dir):
        say(words, err=True)
    try:
        stack.start()
        others = None if reachable(host) == host else outside(host)
        for line in banner(stack.settings, data_dir, others):
            say(line)
        stack.wait()
        say("stopping; press Ctrl-C again to stop at once")
    except KeyboardInterrupt:
        say("stopping")
    finally:
        stack.stop()


def log_to(data_dir: Path) -> None:
    """Have this process write its log into the data directory, and say on stderr what matters.

    What it writes from now on, there or elsewhere, nobody else can read: keys, videos' names.

    Raises:
        ConfigurationError: the folder can't be written to.
    """
    folder = data_dir / "logs"
    own = data_dir.resolve().name in OWN_FOLDERS
    try:
        make_private(data_dir, own, "index.sqlite*", "logs/posedrop.log*")
        folder.mkdir(exist_ok=True, mode=0o700)
        kept = RotatingFileHandler(
            folder / "posedrop.log", maxBytes=16 * 2**20, backupCount=1, encoding="utf-8"
        )
    except OSError as error:
        raise _unusable(data_dir, error) from error
    kept.setFormatter(logs.Formatter())
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    # Dramatiq shows every failed try as a traceback; the run's own error says it in words.
    shown.addFilter(lambda record: not record.name.startswith("dramatiq"))
    shown.setFormatter(logs.ShortFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[kept, shown])
    logs.quieten_libraries()


def _free_scratch(configured: Settings) -> None:
    """Remove what killed workers left: it may fill the disk that all else is started on."""
    from worker.context import free_scratch  # heavy; only a stack that starts needs it

    free_scratch(stack_scratch(configured))


def _unusable(data_dir: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{data_dir} can't be used: {error.strerror or error} ({error.filename or data_dir}); it "
        "has to be yours, on a disk with room; choose another with --data-dir"
    )


def banner(settings: Settings, data_dir: Path, others: str | None = None) -> list[str]:
    """Return the lines that a person needs to try it, to be copied and pasted.

    Args:
        settings: of a stack that runs.
        data_dir: its folder.
        others: this machine's address for others, where that is another than in its own URL.
    """
    store = settings.s3_public_endpoint or settings.s3_endpoint
    folder = str(data_dir if data_dir.is_absolute() else f"./{data_dir}")
    lines = [
        f"posedrop is up: {settings.url}",
        f"  page      {page_link(settings)}",
        *([f"  elsewhere {page_link(settings, others)}"] if others else []),
        f"  S3        {store}",
        f"            videos go to {settings.videos_bucket}/, results come to "
        f"{settings.results_bucket}/",
        f"  data      {data_dir}",
        f"  token     in {folder}/{HEADER_FILE}, as curl takes it; a browser may ask for it as the "
        "password",
    ]
    lines += ["", "Drop a video:"]
    host = urlsplit(store or "").hostname or ""
    if getproxies() and not proxy_bypass(host):
        # posedrop knows better; curl and the rest ask a proxy for loopback too.
        lines.append(f'  export NO_PROXY="${{NO_PROXY:+$NO_PROXY,}}{host}"')
    lines += [
        f"  curl -H @{shlex.quote(f'{folder}/{HEADER_FILE}')} -LT film.mp4 {settings.url}/upload/",
        f"  set -a; . {shlex.quote(f'{folder}/{AWS_FILE}')}; set +a",
        f"  aws s3 cp film2.mp4 s3://{settings.videos_bucket}/day1/",
        f"  aws s3 sync s3://{settings.results_bucket}/day1/ results/day1/",
        "",
        "Ctrl-C stops.",
    ]
    return lines


def token_of(settings: Settings) -> str:
    """Return the API token of a stack that runs."""
    if settings.api_token is None:
        raise RuntimeError("a stack always has a token")
    return settings.api_token.get_secret_value()


def page_link(settings: Settings, others: str | None = None) -> str:
    """Return the link that lets a browser in: what is behind its # is sent to nobody.

    Args:
        settings: of a stack that runs.
        others: this machine's address for others, to stand in place of its own.
    """
    url = settings.url
    if others is not None:
        url = f"http://{netloc(others, urlsplit(url).port or 80)}"
    return f"{url}/session#token={quote(token_of(settings), safe='')}"


# -- the API in a thread -------------------------------------------------------------------------


class _Api:
    """uvicorn in a thread: the main one is left to signals."""

    def __init__(self, app: Any, listener: socket.socket, http: type[asyncio.Protocol]) -> None:
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="on",
                # Else whoever calls from loopback could say that it comes from elsewhere.
                proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
                timeout_graceful_shutdown=3,
            )
        )
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the API's thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        # uvicorn ends a thread with sys.exit where it can't start; its log says why.
        with contextlib.suppress(SystemExit):
            self._server.run(sockets=[self._listener])

    def start(self) -> None:
        """Start the API, and return when it answers.

        Raises:
            ConfigurationError: it did not start.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ConfigurationError("the API did not start; the lines above say why")
            time.sleep(0.02)

    def stop(self) -> None:
        """Let requests end, then the follower and the reconciler."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(2 * _STOP_SECONDS)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(_STOP_SECONDS)


def _stop_workers(workers: list[dramatiq.Worker]) -> None:
    for worker in workers:
        worker.stop(timeout=int(_STOP_SECONDS * 1000))


def _buckets(settings: Settings) -> tuple[str, str, str]:
    return settings.videos_bucket, settings.results_bucket, settings.models_bucket
