"""The embedded store: closed to all but S3's keys, and what it acknowledged survives a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zlib import crc32

import boto3
import httpx
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from posedrop.address import LOOPBACK
from posedrop.buckets.parts import OtherPartsError, composite
from posedrop.buckets.storage import Storage
from posedrop.embedded import weed as weed_module
from posedrop.embedded.keyring import USER, Secrets
from posedrop.embedded.stack import Stack
from posedrop.embedded.weed import Weed, find_weed, rotate
from posedrop.embedded.weed_config import Identity, WebhookTarget
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.settings import Settings, load

ROOT = Identity("service", "AKROOT", "SKROOT12345", ("Admin", "Read", "Write", "List", "Tagging"))
BUCKETS = ("videos", "results", "models")


def make_weed(folder: Path, webhook: WebhookTarget | None = None, s3_port: int = 0) -> Weed:
    return Weed(
        folder / "weed",
        folder / "logs" / "weed.log",
        s3_port=s3_port,
        identities=(ROOT, presigner(folder), user(folder)),
        webhook=webhook,
    )


def user(folder: Path) -> Identity:
    """Return the lab's people, as `posedrop up` lets them in."""
    return identity(folder, USER)


def presigner(folder: Path) -> Identity:
    """Return the key that signs uploads, as `posedrop up` makes it."""
    return identity(folder, "presigner")


def identity(folder: Path, name: str) -> Identity:
    found = Secrets.of(folder).identities(Settings())
    return next(identity for identity in found if identity.name == name)


def client(weed: Weed, identity: Identity, tries: int = 1) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=weed.endpoint,
        region_name="us-east-1",
        aws_access_key_id=identity.access_key,
        aws_secret_access_key=identity.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": tries}),
    )


def make_buckets(weed: Weed) -> Any:
    s3 = client(weed, ROOT)
    for bucket in BUCKETS:
        s3.create_bucket(Bucket=bucket)
    return s3


@pytest.fixture(scope="module")
def events() -> Iterator[tuple[str, list[tuple[str | None, bytes]]]]:
    seen: list[tuple[str | None, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.headers["Authorization"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{LOOPBACK}:{server.server_port}/events", seen
    server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weed")


@pytest.fixture(scope="module")
def presigner_key(folder: Path) -> Identity:
    return presigner(folder)


@pytest.fixture(scope="module")
def weed(folder: Path, events: tuple[str, list[tuple[str | None, bytes]]]) -> Iterator[Weed]:
    url, _ = events
    weed = make_weed(
        folder,
        WebhookTarget(url, "token-of-events", ("videos", "results")),
    )
    weed.start()
    s3 = make_buckets(weed)
    s3.put_object(Bucket="videos", Key="day1/a.mp4", Body=b"a video")
    s3.put_object(Bucket="results", Key="day1/a.mp4/video.json", Body=b"{}")
    s3.put_object(Bucket="models", Key="m/digest/model.json", Body=b"{}")
    yield weed
    weed.stop()


def refusal(call: Any, **arguments: Any) -> str | None:
    """Return the code of the refusal, None where the call was allowed."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


REFUSED_STATUS = {400, 401, 403, 404, 405}
REFUSED = {"AccessDenied", "403", "InvalidRequest"}


def test_every_listener_is_on_loopback(weed: Weed) -> None:
    assert weed.pid is not None
    inodes = set()
    for link in Path(f"/proc/{weed.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it closes files, too
            inodes.add(str(link.readlink()))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{weed.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                assert address == "0100007F"
                ports.add(int(port, 16))
    assert ports == set(weed.ports.values())


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("filer", "/buckets/videos/day1/a.mp4"),
        ("filer", "/buckets/videos/"),
        ("master", "/dir/assign"),
        ("master", "/dir/status"),
        ("master", "/col/delete?collection=videos"),
        ("master", "/vol/grow?count=1"),
        ("volume", "/1,0100000001"),
        ("volume", "/ui/index.html"),
        ("admin", "/api/config"),
    ],
)
def test_other_ports_give_nothing_without_a_token(weed: Weed, component: str, path: str) -> None:
    url = f"http://{LOOPBACK}:{weed.ports[component + '.port']}{path}"
    assert httpx.get(url).status_code in REFUSED_STATUS
    assert httpx.post(url, files={"file": b"evil"}).status_code in REFUSED_STATUS
    assert httpx.delete(url).status_code in REFUSED_STATUS


def test_master_takes_no_file(weed: Weed) -> None:
    url = f"http://{LOOPBACK}:{weed.ports['master.port']}/submit"
    assert httpx.post(url, files={"file": b"evil"}).status_code == 404


def test_grpc_wants_a_certificate(weed: Weed, tmp_path: Path) -> None:
    addresses = [
        f"-{name}={LOOPBACK}:{weed.ports[name + '.port']}.{weed.ports[name + '.port.grpc']}"
        for name in ("master", "filer")
    ]

    def answer(folder: Path, seconds: float) -> str:
        process = subprocess.Popen(
            [find_weed(), "shell", *addresses],
            cwd=folder,
            env={"HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            return process.communicate("fs.ls /buckets/videos\nexit\n", timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]

    # With our own certificate: the question is a fair one.
    assert "day1" in answer(weed._conf, 60)
    assert "day1" not in answer(tmp_path, 5)


def test_anonymous_may_nothing(weed: Weed) -> None:
    for path in ("", "videos", "videos/day1/a.mp4", "results/day1/a.mp4/video.json"):
        assert httpx.get(f"{weed.endpoint}/{path}").status_code == 403
        assert httpx.put(f"{weed.endpoint}/{path}x", content=b"evil").status_code == 403


def test_presigner_puts_videos_and_nothing_else(weed: Weed, presigner_key: Identity) -> None:
    s3 = client(weed, presigner_key)
    for key in ("uploads/x/a.mp4", "cohort3/day1/ü +%.mp4", "a.mp4"):
        assert refusal(s3.put_object, Bucket="videos", Key=key, Body=b"1") is None
    for bucket, key in (
        ("videosX", "a.mp4"),
        ("videos", "../results/a.mp4"),
        ("results", "uploads/x"),
        ("models", "uploads/x"),
    ):
        assert refusal(s3.put_object, Bucket=bucket, Key=key, Body=b"1") in REFUSED
    source = {"Bucket": "videos", "Key": "day1/a.mp4"}
    for call, arguments in (
        (s3.get_object, {"Bucket": "videos", "Key": "uploads/x/a.mp4"}),
        (s3.head_object, {"Bucket": "videos", "Key": "uploads/x/a.mp4"}),
        (s3.list_objects_v2, {"Bucket": "videos", "Prefix": "uploads/"}),
        (s3.copy_object, {"Bucket": "videos", "Key": "uploads/x/b", "CopySource": source}),
        (s3.delete_object, {"Bucket": "videos", "Key": "day1/a.mp4"}),
        (s3.create_bucket, {"Bucket": "another"}),
        (s3.delete_bucket, {"Bucket": "models"}),
        (s3.put_bucket_policy, {"Bucket": "videos", "Policy": "{}"}),
    ):
        assert refusal(call, **arguments) in REFUSED, call.__name__


def test_presigner_uploads_in_parts(weed: Weed, presigner_key: Identity) -> None:
    s3 = client(weed, presigner_key)
    where = {"Bucket": "videos", "Key": "uploads/x/large.mp4"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    etags = [
        s3.upload_part(**where, UploadId=upload, PartNumber=n, Body=bytes(5 << 20))["ETag"]
        for n in (1, 2)
    ]
    parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    assert client(weed, ROOT).head_object(**where)["ContentLength"] == 10 << 20


def test_a_client_goes_on_where_the_store_has_other_parts(
    weed: Weed, presigner_key: Identity
) -> None:
    """SeaweedFS lists no checksum, and a part that was put twice it lists twice."""
    storage = Storage(
        Settings(
            s3_endpoint=weed.endpoint,
            s3_access_key=ROOT.access_key,
            s3_secret_key=ROOT.secret_key,
            presign_access_key=presigner_key.access_key,
            presign_secret_key=presigner_key.secret_key,
        )
    )
    key, first, last = "cohort3/ü +%.mp4", b"f" * (5 << 20), b"the last"
    upload = storage.begin_parts("videos", key, "video/mp4", {})
    sums = [f"{crc32(body):08x}" for body in (first, last)]

    def put(number: int, body: bytes) -> int:
        crc = f"{crc32(body):08x}"
        signed = storage.presign_part("videos", key, upload, number, len(body), crc)
        assert httpx.put(signed.url, content=body[:-1] + b"?", headers=signed.headers).is_error
        return httpx.put(signed.url, content=body, headers=signed.headers).status_code

    assert [put(1, bytes(5 << 20)), put(2, last)] == [200, 200]
    found = storage.stored_parts("videos", key, upload)
    with pytest.raises(OtherPartsError):
        storage.complete_parts("videos", key, upload, found, sums)
    time.sleep(1)  # it tells whole seconds
    assert put(1, first) == 200
    assert storage.find_parts("videos", key) == upload
    found = storage.stored_parts("videos", key, upload)
    assert [(part.number, part.size) for part in found] == [(1, 5 << 20), (2, len(last))]
    storage.complete_parts("videos", key, upload, found, sums)
    assert storage.checksum("videos", key) == composite(sums)


def test_presigned_parts_take_their_own_length_alone(weed: Weed, presigner_key: Identity) -> None:
    """Of 9 bytes in parts of 5: the first takes five, the second four, and neither any other."""
    given = {
        "s3_endpoint": weed.endpoint,
        "s3_access_key": presigner_key.access_key,
        "s3_secret_key": presigner_key.secret_key,
    }
    storage = Storage(Settings(**given))
    storage._part_bytes = 5
    key = "uploads/x/parts.mp4"
    signed = storage.presign_parts("videos", key, content_type="video/mp4", size=9, metadata={})
    statuses = [
        [httpx.put(url, content=bytes(n)).status_code for n in (0, 4, 5, 6)] for url in signed.parts
    ]
    assert statuses == [[403, 403, 200, 403], [403, 200, 403, 403]]


def test_user_has_videos_and_reads_results(weed: Weed) -> None:
    s3 = client(weed, user(weed._folder.parent))
    mine = {"Bucket": "videos", "Key": "mine/b.mp4"}
    assert refusal(s3.put_object, **mine, Body=b"1") is None
    assert refusal(s3.get_object, **mine) is None
    assert refusal(s3.delete_object, **mine) is None
    for bucket in ("videos", "results"):
        assert refusal(s3.list_objects_v2, Bucket=bucket) is None
    result = {"Bucket": "results", "Key": "day1/a.mp4/video.json"}
    assert refusal(s3.get_object, **result) is None
    assert refusal(s3.put_object, **result, Body=b"forged") in REFUSED
    assert refusal(s3.delete_object, **result) in REFUSED
    model = {"Bucket": "models", "Key": "m/digest/model.json"}
    for call, arguments in (
        (s3.get_object, model),
        (s3.put_object, {**model, "Body": b"forged"}),
        (s3.list_objects_v2, {"Bucket": "models"}),
        (s3.copy_object, {"Bucket": "videos", "Key": "mine/c", "CopySource": model}),
        (s3.create_bucket, {"Bucket": "another"}),
        (s3.delete_bucket, {"Bucket": "videos"}),
        (s3.put_bucket_policy, {"Bucket": "videos", "Policy": "{}"}),
    ):
        assert refusal(call, **arguments) in REFUSED, call.__name__


def test_a_bucket_of_an_older_stack_becomes_the_persons_own(weed: Weed) -> None:
    """posedrop made it with its own key then; rclone is content with no other answer."""
    s3 = client(weed, user(weed._folder.parent))
    assert refusal(s3.create_bucket, Bucket="videos") == "BucketAlreadyExists"
    weed.give_bucket("videos", USER)
    assert refusal(s3.create_bucket, Bucket="videos") == "BucketAlreadyOwnedByYou"
    assert refusal(s3.delete_bucket, Bucket="videos") in REFUSED
    assert refusal(client(weed, ROOT).head_bucket, Bucket="videos") is None


def test_only_one_of_many_creates(weed: Weed) -> None:
    s3 = client(weed, ROOT)

    def create(_: int) -> str | None:
        return refusal(s3.put_object, Bucket="results", Key="race", Body=b"1", IfNoneMatch="*")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(create, range(8))).count(None) == 1


def test_events_come_with_their_token(
    weed: Weed, events: tuple[str, list[tuple[str | None, bytes]]]
) -> None:
    _, seen = events
    s3 = client(weed, ROOT)
    s3.put_object(Bucket="models", Key="silent", Body=b"1")
    s3.put_object(Bucket="videos", Key="told.mp4", Body=b"1")
    deadline = time.monotonic() + 60
    while not any(b'"/buckets/videos/told.mp4"' in body for _, body in seen):
        assert time.monotonic() < deadline, "no event within 60 s"
        time.sleep(0.05)
    assert {token for token, _ in seen} == {"Bearer token-of-events"}
    assert not any(b"silent" in body for _, body in seen)


def test_secrets_are_the_owners_alone(weed: Weed) -> None:
    # weed makes some of its data readable for all; nobody gets through the folders above.
    private = [weed._folder, weed._conf, weed._data, *weed._conf.iterdir()]
    for path in [*private, *weed._folder.glob("*.json"), weed._log_file]:
        assert path.stat().st_mode & 0o077 == 0, path
    for port in weed.ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_second_one_on_a_folder_is_refused_by_name(weed: Weed) -> None:
    second = Weed(weed._folder, weed._log_file, s3_port=0, identities=())
    with pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()}"):
        second.start()
    assert httpx.get(weed.endpoint).status_code == 403  # the first one is as it was


def test_weed_seeks_nobody_in_vain(weed: Weed) -> None:
    """Its maintenance worker found its admin server; else it would say so each few seconds."""
    deadline = time.monotonic() + 60
    while "Plugin worker connected" not in (said := weed._log_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "stream ended" not in said


def test_a_log_that_grew_is_cut_while_its_writer_goes_on(tmp_path: Path) -> None:
    log_file = tmp_path / "weed.log"
    command = "while :; do echo a line; sleep 0.01; done"
    with (
        log_file.open("ab") as output,
        subprocess.Popen(["sh", "-c", command], stdout=output) as sh,
    ):
        try:
            for kept in (70, 70):
                while log_file.stat().st_size < 200:
                    time.sleep(0.01)
                rotate(log_file, 10_000)
                assert log_file.stat().st_size >= 200
                rotate(log_file, kept)
                assert log_file.stat().st_size < 200
            assert b"\0" not in log_file.read_bytes()
        finally:
            sh.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"weed.log", "weed.log.1"}
    assert (tmp_path / "weed.log.1").read_bytes().count(b"a line\n") >= 10
    assert (tmp_path / "weed.log.1").stat().st_mode & 0o077 == 0


def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .* --s3-port"):
            make_weed(tmp_path, s3_port=port).start()


def test_failed_start_says_why(tmp_path: Path) -> None:
    weed = make_weed(tmp_path)
    (tmp_path / "weed" / "data").mkdir(parents=True)
    (tmp_path / "weed" / "data" / "filerldb2").write_text("not a folder")
    with pytest.raises(ConfigurationError, match=r"its last words:\n  .+"):
        weed.start()
    assert weed.pid is None


def test_data_and_ports_are_kept_over_a_restart(tmp_path: Path) -> None:
    """The first answers after a start may be that the store is not through with it."""
    weed = make_weed(tmp_path)
    weed.start()
    make_buckets(weed).put_object(Bucket="videos", Key="a", Body=b"kept")
    ports = weed.ports
    weed.stop()
    weed.start()
    assert weed.ports == ports
    assert client(weed, ROOT, 8).get_object(Bucket="videos", Key="a")["Body"].read() == b"kept"
    weed.stop()
    # Other ports for all, as after a restore on another machine: the data does not mind.
    (tmp_path / "weed" / "ports.json").unlink()
    weed.start()
    try:
        assert weed.ports != ports
        assert client(weed, ROOT, 8).get_object(Bucket="videos", Key="a")["Body"].read() == b"kept"
    finally:
        weed.stop()


def test_acknowledged_puts_survive_a_kill_and_weed_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weed = make_weed(tmp_path)
    weed.start()
    try:
        s3 = make_buckets(weed)
        acknowledged: list[int] = []
        bodies = {n: f"{n} ".encode() * (1 + 97 * n) for n in range(400)}

        def put(n: int) -> None:
            try:
                s3.put_object(Bucket="videos", Key=f"k/{n}", Body=bodies[n])
            except Exception:  # weed is gone: what was not acknowledged does not count
                return
            acknowledged.append(n)
            if len(acknowledged) == 200:
                assert weed.pid is not None
                os.kill(weed.pid, signal.SIGKILL)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(400)))
        started = time.monotonic()
        while True:
            try:
                # Its list of objects is back some seconds before what they hold.
                s3.get_object(Bucket="videos", Key=f"k/{acknowledged[0]}")
                break
            except Exception:
                assert time.monotonic() < started + 120, "weed did not come back"
                time.sleep(0.1)
        lost = [
            n
            for n in acknowledged
            if s3.get_object(Bucket="videos", Key=f"k/{n}")["Body"].read() != bodies[n]
        ]
        with capsys.disabled():
            print(f"\n  kill -9: {len(acknowledged)} acknowledged PUTs, {len(lost)} lost")
        assert len(acknowledged) >= 200
        assert lost == []
    finally:
        weed.stop()


def test_up_ends_when_its_store_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer on without a store, and nothing that watches over it would see to it."""
    monkeypatch.setattr(weed_module, "_MAX_RESTARTS", 0)
    weed = make_weed(tmp_path)
    weed.start()
    stack = Stack(tmp_path)
    stack._weed = weed
    try:
        assert weed.pid is not None
        os.kill(weed.pid, signal.SIGKILL)
        with pytest.raises(PosedropError, match=r"store ended again and again.*weed\.log"):
            stack.wait()
    finally:
        weed.stop()


def starts_weed(folder: Path, then: str) -> subprocess.Popen[str]:
    """Start a process that starts weed as ``w``, and then does this."""
    program = (
        "import os, signal, sys, time; from pathlib import Path;"
        "from posedrop.embedded.weed import Weed;"
        "f = Path(sys.argv[1]); w = Weed(f / 'weed', f / 'log', s3_port=0, identities=());"
        f"w.start(); {then}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_weed_dies_with_its_parent(tmp_path: Path) -> None:
    with starts_weed(tmp_path, "print(w.pid, flush=True); time.sleep(600)") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "weed outlived its parent"
        time.sleep(0.05)


def test_a_weed_that_is_asked_something_dies_with_who_asks(tmp_path: Path) -> None:
    """Killed while the bucket is given away, posedrop leaves neither the store nor its shell."""
    then = "os.kill(w.pid, signal.SIGSTOP); print(flush=True); w.give_bucket('b', 'i')"
    with starts_weed(tmp_path, then) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline = time.monotonic() + 30
        while not any("shell" in each.cmdline() for each in psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline, "no shell was started"
            time.sleep(0.05)
        left = psutil.Process(parent.pid).children()
        assert len(left) == 2
        parent.kill()
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_stale_weed_is_ended_before_the_start(tmp_path: Path) -> None:
    weed = make_weed(tmp_path)
    weed.start()
    pid = weed.pid
    weed.stop()
    # A process that has the folder in its command line, as a weed that was left over would.
    data = str(tmp_path.resolve() / "weed" / "data")
    sleeps = "import time; print(flush=True); time.sleep(600)"
    stale = subprocess.Popen([sys.executable, "-c", sleeps, data], stdout=subprocess.PIPE)
    assert stale.stdout is not None
    stale.stdout.readline()  # before, it may have no command line yet
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        pid_file = tmp_path / "weed" / "pid"
        pid_file.write_text(str(stale.pid))
        weed.start()
        assert stale.wait(5) == -signal.SIGTERM
        assert weed.pid not in {None, pid}
        weed.stop()
        pid_file.write_text(str(stranger.pid))  # a pid that was given to somebody else since
        weed.start()
        assert stranger.poll() is None
    finally:
        stale.stdout.close()
        stranger.kill()
        stranger.wait()
        weed.stop()


def test_a_large_object_is_copied_in_parts(
    weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied by the store; of one that is gone or was replaced no copy is made."""
    keys = {"s3_access_key": ROOT.access_key, "s3_secret_key": ROOT.secret_key}
    storage = Storage(load(tmp_path, {"s3_endpoint": weed.endpoint, **keys}))
    monkeypatch.setattr("posedrop.buckets.uploads.COPY_BYTES", 5 * 2**20)
    data = bytes(range(256)) * 48_000
    storage.write("results", "copies/bob's ü/a+b.mp4", data, "video/mp4")
    (source,) = storage.objects("results", "copies/")
    assert storage.copy("results", source, "copies/copy", "video/mp4")
    assert storage.read("results", "copies/copy") == data
    for other in (replace(source, etag="0" * 32), replace(source, key="copies/gone")):
        assert not storage.copy("results", other, "copies/none", "video/mp4")
    assert storage.head("results", "copies/none") is None
    storage.delete("results", ["copies/copy", source.key])
