"""`posedrop doctor`: look at everything that a stack needs, and say what to do about what lacks.

It changes nothing but one object of its own, which it removes. It may run beside the handlers, or
beside a worker: what only the other side has is left out or a warning, not a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from posedrop import __version__, bootstrap
from posedrop.errors import PosedropError, StorageError
from posedrop.settings import Settings
from posedrop.storage import PLAIN_PUT_SECONDS, Storage

OK = "ok"
WARN = "warn"
FAIL = "fail"

#: Half of what the shortest presigned URL lasts, the one that `curl -LT` is sent to.
MAX_SKEW_SECONDS = PLAIN_PUT_SECONDS / 2
MIN_FREE_BYTES = 10 * 10**9
_HTTP_SECONDS = 10.0
_PROBE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``todo`` is for the person, empty if there is nothing to do."""

    check: str
    state: str
    message: str
    todo: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it for a script."""
        return asdict(self)


Check = Callable[[Settings], Iterator[Finding]]


def examine(load: Callable[[], Settings]) -> list[Finding]:
    """Run every check; one that breaks is a finding too, and never stops the others."""
    try:
        settings = load()
    except PosedropError as error:
        return [Finding("settings", FAIL, error.message, "correct the variable and ask again")]
    findings = [Finding("settings", OK, f"read; posedrop {__version__}")]
    for check in (_store, _api, _events, _broker, _worker, _disk, _index):
        try:
            findings += check(settings)
        except Exception as error:  # a check must not hide what the others found
            name = check.__name__.removeprefix("_")
            findings.append(Finding(name, FAIL, f"the check itself broke: {error!r}"))
    return findings


def show(findings: list[Finding], say: Callable[[str], None]) -> None:
    """Print the findings, one a line, and below each what to do."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        say(f"{finding.state:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.todo:
            say(f"{'':<{width + 8}}-> {finding.todo}")
    failed = sum(finding.state == FAIL for finding in findings)
    warned = sum(finding.state == WARN for finding in findings)
    say(f"{len(findings)} checks, {failed} failed, {warned} with a warning")


# -- the store -------------------------------------------------------------------------------------


def _store(settings: Settings) -> Iterator[Finding]:
    endpoint = settings.s3_endpoint or f"https://s3.{settings.s3_region}.amazonaws.com"
    try:
        answer = httpx.get(endpoint, timeout=_HTTP_SECONDS)
    except httpx.HTTPError as error:
        yield Finding(
            "store",
            FAIL,
            f"nobody answers at {endpoint}: {error}",
            "start the store, or correct POSEDROP_S3_ENDPOINT; the buckets were not looked at",
        )
        return
    yield Finding("store", OK, f"answers at {endpoint}")
    yield _clock(answer)
    yield from _public(settings, endpoint)
    storage = Storage(settings)
    # Named like a checkpoint of a run, the only kind of object that a worker's key may remove.
    probe = f"_content/doctor-{uuid.uuid4().hex[:16]}/parts/probe"
    reachable = True
    for finding in _buckets(settings, storage, probe):
        reachable &= finding.state != FAIL
        yield finding
    if not reachable:
        return
    yield _conditional_writes(settings, storage, probe)
    yield _presigner(settings, probe)
    yield from _closed(settings, endpoint)
    yield from _notifications(
        settings, is_minio="minio" in answer.headers.get("server", "").lower()
    )


def _clock(answer: httpx.Response) -> Finding:
    date = answer.headers.get("date", "")
    try:
        # With no zone (as -0000) it is UTC all the same, and no subtraction of naive times.
        told = parsedate_to_datetime(date).replace(tzinfo=UTC)
    except ValueError:
        return Finding(
            "clock",
            WARN,
            f"the store tells no time ({date!r}), so clocks could not be compared",
            "compare them by hand: date -u here, and there",
        )
    skew = (datetime.now(UTC) - told).total_seconds()
    if abs(skew) > MAX_SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        return Finding(
            "clock",
            FAIL,
            f"this machine is {abs(skew):.0f} s {ahead} the store",
            "set both clocks by NTP: presigned URLs and signatures break",
        )
    return Finding("clock", OK, f"within {max(1.0, abs(skew)):.0f} s of the store's")


def _public(settings: Settings, endpoint: str) -> Iterator[Finding]:
    public = settings.s3_public_endpoint
    if public is None or public == endpoint:
        return
    try:
        httpx.get(public, timeout=_HTTP_SECONDS)
    except httpx.HTTPError as error:
        yield Finding(
            "public store",
            WARN,
            f"nobody answers at {public}, seen from here: {error}",
            "presigned URLs lead there: try it from a client, or set POSEDROP_S3_PUBLIC_ENDPOINT",
        )
    else:
        yield Finding("public store", OK, f"answers at {public}")


def _buckets(settings: Settings, storage: Storage, probe: str) -> Iterator[Finding]:
    for bucket in (settings.videos_bucket, settings.results_bucket, settings.models_bucket):
        try:
            # A read, because it is all that a worker may do with videos and models.
            storage.read(bucket, probe)
        except StorageError as error:
            yield Finding("buckets", FAIL, error.message, _what_to_do_about(error))
            if "NoSuchBucket" not in error.message:
                return  # the other buckets would say the same
        else:
            yield Finding("buckets", OK, f"{bucket} is there, and the key may read it")


def _what_to_do_about(error: StorageError) -> str:
    for code, todo in (
        ("NoSuchBucket", "make it: `posedrop bootstrap` (MinIO) or `posedrop up`"),
        ("InvalidAccessKeyId", "POSEDROP_S3_ACCESS_KEY is not known to the store"),
        ("SignatureDoesNotMatch", "POSEDROP_S3_SECRET_KEY is not the one of that access key"),
        ("RequestTimeTooSkewed", "set both clocks by NTP"),
        ("AccessDenied", "give the key the policy of its role: `posedrop bootstrap`"),
        ("credentials", "set POSEDROP_S3_ACCESS_KEY and POSEDROP_S3_SECRET_KEY"),
    ):
        if code in error.message:
            return todo
    return "look at the store's own log"


def _conditional_writes(settings: Settings, storage: Storage, probe: str) -> Finding:
    check = "conditional writes"
    bucket = settings.results_bucket
    try:
        first = storage.create(bucket, probe, b"{}")
        second = storage.create(bucket, probe, b"{}")
        storage.delete(bucket, [probe])
    except StorageError as error:
        return Finding(check, FAIL, error.message, _what_to_do_about(error))
    if first and not second:
        return Finding(check, OK, "of two writers of one object one wins")
    return Finding(
        check,
        FAIL,
        "the store takes a second PUT in spite of If-None-Match: *",
        "use MinIO, SeaweedFS 4 or AWS: without it two workers take the same run",
    )


def _presigner(settings: Settings, probe: str) -> Finding:
    if settings.presign_access_key is None:
        return Finding(
            "presigner",
            WARN,
            "no key of its own: presigned uploads carry the rights of the whole service key",
            "set POSEDROP_PRESIGN_ACCESS_KEY and _SECRET_KEY (`posedrop bootstrap` makes them)",
        )
    key = {
        "s3_access_key": settings.presign_access_key,
        "s3_secret_key": settings.presign_secret_key,
    }
    try:
        Storage(settings.model_copy(update=key)).read(settings.results_bucket, probe)
    except StorageError as error:
        if "AccessDenied" in error.message:
            return Finding("presigner", OK, "has a key of its own, which can't read results")
        todo = "set POSEDROP_PRESIGN_ACCESS_KEY and _SECRET_KEY to a key that the store knows"
        return Finding("presigner", FAIL, error.message, todo)
    return Finding(
        "presigner",
        WARN,
        "its key can read results: whoever abuses a presigned URL can do more than upload",
        "give it the policy infra/policies/presigner.json: `posedrop bootstrap`",
    )


def _closed(settings: Settings, endpoint: str) -> Iterator[Finding]:
    if settings.s3_endpoint is None:
        return  # AWS addresses buckets otherwise, and blocks public access by itself
    buckets = (settings.videos_bucket, settings.results_bucket, settings.models_bucket)
    opened = [
        bucket
        for bucket in buckets
        if httpx.get(f"{endpoint.rstrip('/')}/{bucket}", timeout=_HTTP_SECONDS).is_success
    ]
    if opened:
        yield Finding(
            "nothing public",
            FAIL,
            f"anybody may list {', '.join(opened)}",
            "remove the bucket's policy (mc anonymous set none)",
        )
    else:
        yield Finding("nothing public", OK, "nobody without a key may list a bucket")


def _notifications(settings: Settings, *, is_minio: bool) -> Iterator[Finding]:
    check = "notifications"
    found_anyway = f"the reconciler finds what arrives, every {settings.reconcile_seconds:g} s"
    if settings.broker_url.startswith("stub:"):
        yield Finding(check, OK, "`posedrop up` has its store tell the API itself")
        return
    if not is_minio:
        yield Finding(
            check,
            WARN,
            "not a MinIO, so they can't be checked",
            f"have videos and results tell POST /events or SQS; without it {found_anyway}",
        )
        return
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    for bucket in (settings.videos_bucket, settings.results_bucket):
        try:
            told = bootstrap.notified(settings, settings.s3_access_key or "", secret, bucket)
        except StorageError as error:
            why = "this key may not ask" if "AccessDenied" in error.message else error.message
            todo = "ask with the handlers' key; a worker's need not know"
            yield Finding(check, WARN, f"{bucket}: {why}", todo)
            continue
        missing = [name for name in bootstrap.TARGETS if name not in told]
        if missing:
            yield Finding(
                check,
                FAIL,
                f"{bucket} does not tell {' and '.join(missing)}",
                f"run `posedrop bootstrap`; until then {found_anyway}",
            )
        else:
            yield Finding(check, OK, f"{bucket} tells {' and '.join(bootstrap.TARGETS)}")


# -- the API and the broker ------------------------------------------------------------------------


def _api(settings: Settings) -> Iterator[Finding]:
    try:
        answer = httpx.get(f"{settings.url.rstrip('/')}/healthz", timeout=_HTTP_SECONDS)
        answer.raise_for_status()
        version = answer.json()["version"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        told = "url" in settings.model_fields_set
        yield Finding(
            "API",
            FAIL if told else WARN,
            f"{settings.url}/healthz: {error!r}",
            "start the handlers" if told else "if there is an API elsewhere, set POSEDROP_URL",
        )
        return
    if version != __version__:
        todo = "install the same version everywhere"
        yield Finding("API", WARN, f"runs posedrop {version}, this is {__version__}", todo)
    else:
        yield Finding("API", OK, f"answers at {settings.url}")


def _events(settings: Settings) -> Iterator[Finding]:
    if settings.events_token is None:
        yield Finding(
            "events token",
            WARN,
            "there is none here",
            "handlers without POSEDROP_EVENTS_TOKEN refuse every notification; a worker needs none",
        )
        return
    try:
        answer = httpx.post(
            f"{settings.url.rstrip('/')}/events",
            # A notification of nothing: taken, and forgotten.
            json={"Records": []},
            headers={"Authorization": f"Bearer {settings.events_token.get_secret_value()}"},
            timeout=_HTTP_SECONDS,
        )
    except httpx.HTTPError:
        return  # the check of the API has said so
    if answer.status_code == 204:
        yield Finding("events token", OK, "POST /events takes it")
    elif answer.status_code == 401:
        yield Finding(
            "events token",
            FAIL,
            "POST /events refuses it",
            "set one POSEDROP_EVENTS_TOKEN for the handlers, here and in MinIO's AUTH_TOKEN",
        )
    else:
        todo = "look at the log of the handlers"
        yield Finding("events token", FAIL, f"POST /events answers {answer.status_code}", todo)


def _broker(settings: Settings) -> Iterator[Finding]:
    url = settings.broker_url
    if url.startswith("stub:"):
        yield Finding("broker", OK, "inside of `posedrop up`; other processes can't share it")
    elif url.startswith("redis"):
        yield from _redis(url)
    else:
        yield _rabbitmq(url)


def _redis(url: str) -> Iterator[Finding]:
    import redis

    todo = "start it, or correct POSEDROP_BROKER_URL"
    try:
        # Closes the connection at the end.
        with redis.Redis.from_url(
            url, socket_timeout=_HTTP_SECONDS, socket_connect_timeout=_HTTP_SECONDS
        ) as client:
            client.ping()
            yield Finding("broker", OK, "Redis answers")
            try:
                found: Any = client.config_get("maxmemory-policy", "appendonly")
            except redis.ResponseError:
                found = {}
    except (redis.RedisError, ValueError) as error:
        yield Finding("broker", FAIL, f"Redis: {error}", todo)
        return
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
    wrong = [
        f"{name} is {found.get(name, 'not told')}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if wrong:
        yield Finding(
            "broker's memory",
            WARN,
            f"Redis: {', '.join(wrong)}",
            "set maxmemory-policy noeviction and appendonly yes; else messages get lost, and the "
            "reconciler has to send them again",
        )
    else:
        yield Finding("broker's memory", OK, "noeviction, append-only file")


def _rabbitmq(url: str) -> Finding:
    import pika  # type: ignore[import-untyped]
    from pika.adapters.utils import connection_workflow as workflow  # type: ignore[import-untyped]
    from pika.exceptions import AMQPError, UnroutableError  # type: ignore[import-untyped]

    try:
        parameters = pika.URLParameters(url)
        parameters.socket_timeout = _HTTP_SECONDS
        parameters.stack_timeout = _HTTP_SECONDS
        parameters.blocked_connection_timeout = _HTTP_SECONDS
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            # To a queue that nobody has: a broker that takes messages says so, and drops this one.
            # One that is short of disk or memory says nothing.
            with suppress(UnroutableError):
                channel.basic_publish("", f"doctor-{uuid.uuid4().hex}", b"", mandatory=True)
    except (AMQPError, workflow.AMQPConnectorException, OSError, ValueError) as error:
        reason = _innermost(error)
        if isinstance(error, workflow.AMQPConnectorStackTimeout):
            reason = f"no AMQP from there within {_HTTP_SECONDS:.0f} s"
        todo = next(
            (todo for name, todo in _RABBITMQ_TODO if name in f"{type(error).__name__} {reason}"),
            "start it, or correct POSEDROP_BROKER_URL",
        )
        return Finding("broker", FAIL, f"RabbitMQ: {reason}", todo)
    return Finding("broker", OK, "RabbitMQ takes messages")


_RABBITMQ_TODO = (
    ("ProbableAuthenticationError", "correct the user and password in POSEDROP_BROKER_URL"),
    (
        "ProbableAccessDeniedError",
        "correct the virtual host, the part after the port in POSEDROP_BROKER_URL, "
        "or let this user in there (rabbitmqctl set_permissions)",
    ),
    (
        "ConnectionBlockedTimeout",
        "it is out of disk or memory and takes no messages: `rabbitmq-diagnostics alarms` says of "
        "which, and why",
    ),
    ("ACCESS_REFUSED", "let this user write and configure there (rabbitmqctl set_permissions)"),
    (
        "WRONG_VERSION_NUMBER",
        "the port speaks no TLS: say amqp:// in POSEDROP_BROKER_URL, or take the TLS port",
    ),
    ("CERTIFICATE", "let this machine trust the authority that signed the broker's certificate"),
    (
        "StackTimeout",
        "it hangs, or something else listens there: look at its log, or correct the port",
    ),
)


def _innermost(error: BaseException) -> str:
    """Return what the cause says; pika wraps it up to three times, and shows it as a repr."""
    while True:
        inner = getattr(error, "exception", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            return str(error) or type(error).__name__
        error = inner


# -- a worker's machine ----------------------------------------------------------------------------

_CODECS = """
import json, av
def has(name, mode):
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True
print(json.dumps({"version": av.__version__, "libx264": has("libx264", "w"),
                  "h264": has("h264", "r")}))
"""
_TORCH = """
import json
from worker.hardware import described
print(json.dumps(described()))
"""
# As the worker's children leave the network: with a user namespace, else as root.
_NETWORK = """
import ctypes, json
libc = ctypes.CDLL(None)
NEWUSER, NEWNET = 0x10000000, 0x40000000
alone = hasattr(libc, "unshare") and 0 in (libc.unshare(NEWUSER | NEWNET), libc.unshare(NEWNET))
print(json.dumps({"alone": alone}))
"""


def _worker(settings: Settings) -> Iterator[Finding]:
    if find_spec("av") is None or find_spec("torch") is None:
        yield Finding("worker", OK, "not installed here (pip install 'posedrop[worker]')")
        return
    yield _codecs()
    yield _device(settings.device)
    yield _isolation()


def _probe(code: str) -> dict[str, Any] | str:
    """Return what a small program says, or why it could not: libraries may crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PROBE_SECONDS:.0f} s"
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with {done.returncode}"
    return found


def _codecs() -> Finding:
    found = _probe(_CODECS)
    todo = "pip install --force-reinstall av (its wheels bring FFmpeg with libx264)"
    if isinstance(found, str):
        return Finding("codecs", FAIL, f"PyAV can't be loaded: {found}", todo)
    lacking = [
        what
        for name, what in (("libx264", "encode H.264 (libx264)"), ("h264", "decode H.264"))
        if not found[name]
    ]
    if lacking:
        message = f"PyAV {found['version']} can't {' or '.join(lacking)}"
        return Finding("codecs", FAIL, message, todo)
    return Finding("codecs", OK, f"PyAV {found['version']} reads and writes H.264")


def _device(wanted: str) -> Finding:
    found = _probe(_TORCH)
    if isinstance(found, str):
        todo = "install torch again: pip install --force-reinstall torch"
        return Finding("device", FAIL, f"torch can't be loaded: {found}", todo)
    there = found["devices"]
    how = "; ".join(f"{name} ({what})" for name, what in there.items())
    message = f"torch {found['version']} has {how}"
    if wanted == "auto":
        return Finding("device", OK, f"{message}; POSEDROP_DEVICE=auto")
    if wanted in there or (wanted == "cuda" and "cuda:0" in there):
        return Finding("device", OK, f"{message}; POSEDROP_DEVICE={wanted}")
    return Finding(
        "device",
        FAIL,
        f"{message}, but POSEDROP_DEVICE={wanted}",
        "install the driver and a torch that fits it, or set POSEDROP_DEVICE=auto",
    )


def _isolation() -> Finding:
    if not sys.platform.startswith("linux"):
        todo = "on Linux, the children that open videos have no network"
        return Finding("isolation", WARN, "children keep the network on this system", todo)
    found = _probe(_NETWORK)
    if isinstance(found, dict) and found["alone"]:
        return Finding("isolation", OK, "children that open videos have no network")
    return Finding(
        "isolation",
        WARN,
        "the kernel does not let children leave the network",
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or AppArmor's switch), "
        "or give the worker's container a network that reaches store and broker only",
    )


# -- this machine ----------------------------------------------------------------------------------


def _disk(settings: Settings) -> Iterator[Finding]:
    wanted = settings.scratch_dir.absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    message = f"{free / 1e9:.1f} GB free for {wanted}"
    if not os.access(folder, os.W_OK):
        todo = "set POSEDROP_SCRATCH_DIR to a folder that this user can write to"
        yield Finding("scratch", WARN, f"{folder} can't be written to", todo)
    elif free < MIN_FREE_BYTES:
        todo = "free some, or set POSEDROP_SCRATCH_DIR: a worker holds a whole video there"
        yield Finding("scratch", WARN, message, todo)
    else:
        yield Finding("scratch", OK, message)


def _index(settings: Settings) -> Iterator[Finding]:
    path = settings.index_file
    if not path.is_file():
        yield Finding("index", OK, f"none here ({path}); only handlers have one")
        return
    answer = _quick_check(path)
    if answer == "ok":
        yield Finding("index", OK, f"{path} is whole")
    else:
        yield Finding(
            "index",
            FAIL,
            f"{path}: {answer}",
            "stop the handlers, remove it and start them: it comes back from the buckets",
        )


def _quick_check(path: Path) -> str:
    # Read-only, and on a connection of its own, so that handlers at work are not held up.
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=_HTTP_SECONDS)
        try:
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
