"""A decoder that was taken over: ``taken_over.py FOLDER [--refused] [--orphan] [--eat]``.

As a program it is the parent: it has secrets, servers and other jobs, starts a child among them and
prints what that child could do as JSON. As a module it is what runs in the child.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

SECRET = b"s3cret"
#: Bytes of memory for a child; an eighth of them on the disk.
SIZE = 256 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
Attempt = Callable[[], object]

# -- in the child ----------------------------------------------------------------------------------


def attack(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Try all of it; return what succeeded, by name, with what came of it."""
    got: dict[str, str] = {}
    own = Path(payload["out"])
    attempts = {
        **_reading(payload, own),
        **_writing(payload, own),
        **_talking(payload),
        **_meddling(payload),
    }
    for name, attempt in attempts.items():
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            if found := attempt():
                got[name] = repr(found)[:200]
    _stay(own)
    return {"got": got, "tried": len(attempts)}


def _reading(payload: dict[str, Any], own: Path) -> dict[str, Attempt]:
    attempts: dict[str, Attempt] = {}
    for path in payload["secrets"]:
        name = Path(path).name

        def linked(path: str = path, name: str = name) -> bytes:
            os.link(path, own / f"link-{name}")
            return (own / f"link-{name}").read_bytes()

        def symlinked(path: str = path, name: str = name) -> object:
            (own / f"sym-{name}").symlink_to(path)
            return True  # its parent may be made to publish that

        def moved(path: str = path, name: str = name) -> bytes:
            Path(path).rename(own / f"moved-{name}")
            return (own / f"moved-{name}").read_bytes()

        def again(path: str = path) -> bytes:
            fd = os.open(path, 0o10000000)  # O_PATH
            return Path(f"/proc/self/fd/{fd}").read_bytes()

        attempts |= {
            f"read {path}": Path(path).read_bytes,
            f"read {path} by the root": Path(f"/proc/self/root{path}").read_bytes,
            f"read {path} by another's root": Path(
                f"/proc/{payload['parent']}/root{path}"
            ).read_bytes,
            f"read {path} by a program": lambda path=path: subprocess.check_output(["cat", path]),
            f"read {path} opened again": again,
            f"link {path}": linked,
            f"symlink {path}": symlinked,
            f"move {path}": moved,
            f"list {path}'s folder": lambda path=path: (
                Path(path).parent != own and list(Path(path).parent.iterdir())
            ),
        }
    for process in {payload["parent"], os.getppid(), 1}:
        for what in ("environ", "mem", "maps", "fd/0", "cwd/x", "root/etc/shadow"):
            path = f"/proc/{process}/{what}"
            attempts[f"read {path}"] = lambda path=path: _beginning(path)
    return attempts


def _beginning(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(100)


def _writing(payload: dict[str, Any], own: Path) -> dict[str, Attempt]:
    attempts: dict[str, Attempt] = {}
    film = os.path.realpath(payload["film"])
    for path in (*payload["secrets"], *payload["code"], film):
        there = Path(path)
        before = there.stat()

        def changed(how: Attempt, there: Path = there, before: Any = before) -> Attempt:
            def done() -> object:
                how()
                now = there.stat()
                return (now.st_mode, now.st_mtime, now.st_size) != (
                    before.st_mode,
                    before.st_mtime,
                    before.st_size,
                )

            return done

        attempts |= {
            f"append to {path}": lambda there=there: there.open("ab").close() or True,
            f"truncate {path}": changed(lambda path=path: os.truncate(path, 0)),
            f"chmod {path}": changed(lambda there=there: there.chmod(0o777)),
            f"fchmod {path}": changed(lambda path=path: os.fchmod(os.open(path, os.O_RDONLY), 0)),
            f"touch {path}": changed(lambda path=path: os.utime(path, (1, 1))),
            f"label {path}": lambda path=path: (
                os.setxattr(path, "user.x", b"1") or os.listxattr(path)
            ),
            f"write beside {path}": lambda there=there: (
                there.parent not in {own, own.parent} and (there.parent / "new").write_text("1")
            ),
            f"replace {path}": lambda there=there: _made(own).replace(there) or True,
            f"link beside {path}": lambda there=there: os.link(_made(own), f"{there}.l") or True,
            f"remove {path}": lambda there=there: (
                there.is_symlink() or there.unlink() or not there.exists()
            ),
        }
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "/", payload["home"], payload["scratch"]):
        path = Path(folder, "taken-over")
        attempts[f"write {path}"] = lambda path=path: path.write_text("1")
    for path in ("/proc/sys/kernel/core_pattern", "/proc/self/oom_score_adj", "/sys/power/state"):
        attempts[f"write {path}"] = lambda path=path: Path(path).write_text("x") and True
    for make in (lambda p: os.mkfifo(p), lambda p: os.mknod(p, 0o20666, os.makedev(1, 1))):
        attempts[f"make {len(attempts)}"] = lambda make=make: make(own / "node") or True
    return attempts


def _made(own: Path) -> Path:
    (own / "made").write_bytes(b"evil")
    return own / "made"


def _talking(payload: dict[str, Any]) -> dict[str, Attempt]:
    def inet(kind: int, family: int = socket.AF_INET) -> bool:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.socket(family, kind) as one:
            one.connect((host, payload["port"]))
        return True

    def unix(address: str, kind: int) -> bool:
        with socket.socket(socket.AF_UNIX, kind) as one:
            one.connect(address)
        return True

    def thrown(address: str) -> bool:
        one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return one.sendto(b"x", address) == 1

    def listening() -> bool:
        with socket.create_server(("127.0.0.1", 0)):
            return True

    attempts: dict[str, Attempt] = {
        "tcp": lambda: inet(socket.SOCK_STREAM),
        "tcp6": lambda: inet(socket.SOCK_STREAM, socket.AF_INET6),
        "udp": lambda: inet(socket.SOCK_DGRAM),
        "listen": listening,
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno(),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).fileno(),
        "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).fileno(),
        "alg": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).fileno(),
        "bluetooth": lambda: socket.socket(31, socket.SOCK_RAW, 1).fileno(),
        "curl": lambda: subprocess.run(
            [
                "python3",
                "-c",
                f"import socket; socket.create_connection(('127.0.0.1', {payload['port']}))",
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        ),
        "io_uring": lambda: _call(425, 8, ctypes.create_string_buffer(120)),
    }
    for address in payload["sockets"]:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            attempts[f"unix {address!r} {kind}"] = lambda a=address, k=kind: unix(a, k)
        attempts[f"unix {address!r} thrown"] = lambda a=address: thrown(a)
    return attempts


def _meddling(payload: dict[str, Any]) -> dict[str, Attempt]:
    parents = {payload["parent"], os.getppid()} - {0}
    attempts: dict[str, Attempt] = {
        "unshare users": lambda: _called(_LIBC.unshare(0x10000000)),
        "unshare mounts": lambda: _called(_LIBC.unshare(0x20000)),
        "clone into a namespace": lambda: _call(56, 0x10000000 | signal.SIGCHLD, 0),
        "mount": lambda: _called(_LIBC.mount(b"x", b"/mnt", b"tmpfs", 0, None)),
        "chroot": lambda: os.chroot("/") or True,
        "bpf": lambda: _call(321, 0, 0, 0),
        "keys": lambda: _call(250, 0, -3, 1),
        "new session": lambda: os.setsid() or True,
        "leave its group": lambda: os.setpgid(0, 0) or True,
        "root": lambda: os.getuid() != 0 and subprocess.check_output(["su", "-c", "id"]),
        "shared memory": lambda: _call(29, 0, 1 << 20, 0o1600),
        "memory of nobody": lambda: os.memfd_create("x"),
        "capabilities": lambda: [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(("CapEff", "CapPrm", "CapAmb")) and int(line.split()[1], 16)
        ],
    }
    for process in parents:
        attempts |= {
            f"signal {process}": lambda p=process: os.kill(p, 0) or True,
            f"trace {process}": lambda p=process: _call(101, 16, p, 0, 0),
            f"limit {process}": lambda p=process: _limited(p),
        }
    return attempts


def _limited(process: int) -> bool:
    import resource

    resource.prlimit(process, resource.RLIMIT_NOFILE, (1024, 1024))
    return True


def _call(number: int, *arguments: Any) -> bool:
    if os.uname().machine != "x86_64":
        return False
    return _called(_LIBC.syscall(number, *arguments))


def _called(answer: int) -> bool:
    return answer >= 0


def _stay(own: Path) -> None:
    """Leave processes behind that are nobody's: forked twice, each in a session of its own."""
    for _ in range(3):
        if os.fork() == 0:
            with suppress(OSError):
                os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                (own / f"alive-{time.monotonic_ns()}").write_text("1")
                time.sleep(600)
            os._exit(0)
    deadline = time.monotonic() + 10
    while len(list(own.glob("alive-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)


def eat(payload: dict[str, Any], report: Any) -> dict[str, Any]:  # noqa: ARG001
    """Take all that there is of something."""
    own, size = Path(payload["out"]), 16 << 20
    kept: list[Any] = []
    for number in range(64):  # a gigabyte
        match payload["what"]:
            case "shared memory":
                kept.append(mmap.mmap(-1, size))
                kept[-1].write(b"x" * size)
            case "memory without a name":
                kept.append(os.fdopen(os.memfd_create("x"), "wb"))
                kept[-1].write(b"x" * size)
            case "processes":
                if os.fork() == 0:
                    kept.append(bytearray(b"x" * (size * 4)))
                    time.sleep(600)
            case "many processes":
                for _ in range(8):
                    if os.fork() == 0:
                        time.sleep(600)
            case "files without a name":
                kept.append((own / "gone").open("wb"))
                (own / "gone").unlink()
                kept[-1].write(b"x" * (size // 8))
            case "folders":
                deep = "/".join(["d"] * 400)
                (own / f"{number}" / deep).mkdir(parents=True)
                os.chdir(own / f"{number}" / deep)
                for _ in range(20):
                    Path(deep).mkdir(parents=True)
                    os.chdir(deep)
                os.mkdir("shut", 0)  # noqa: PTH102
                break
    time.sleep(2)
    return {"ate": payload["what"]}


# -- the parent ------------------------------------------------------------------------------------


def main(folder: Path, *, refused: bool, orphan: bool, eats: bool) -> None:
    """Start a child, have it try everything, end it; print what it could do."""
    if refused:
        refuse_namespaces()
    from worker.child.child import Child
    from worker.child.handover import remove
    from worker.limits import Limits

    os.environ["POSEDROP_S3_SECRET_KEY"] = SECRET.decode()
    scratch, data, home = (folder / name for name in ("scratch", "data", "home"))
    shop, other = scratch / "worker-1", scratch / "worker-1/job-2"
    job = shop / "job-1"
    for each in (job / "out", other, data / "weed/conf", home, scratch / "cache/videos"):
        each.mkdir(parents=True)
    secrets = [
        data / "secrets.json",
        data / "index.sqlite",
        home / "aws.env",
        other / "video",
        scratch / "cache/videos/film",
        shop / "gpu/own/job-3/poses",
    ]
    for secret in secrets:
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_bytes(SECRET)
    (job / "video").write_bytes(b"film")
    code = folder / "site-packages/library"
    code.mkdir(parents=True)
    for name in ("__init__.py", "settings.py"):
        (code / name).write_text("1")
    sys.path.append(str(code.parent))
    servers = [socket.create_server(("127.0.0.1", 0))]
    for address, kind in (
        (str(data / "weed/conf/s3.sock"), socket.SOCK_STREAM),
        (str(home / "log.sock"), socket.SOCK_DGRAM),
        (f"\0{folder}", socket.SOCK_STREAM),
    ):
        servers.append(socket.socket(socket.AF_UNIX, kind))
        servers[-1].bind(address)
        if kind == socket.SOCK_STREAM:
            servers[-1].listen()
    child = Child(
        "cpu", shop, hidden=[data, scratch], limits=Limits(SIZE, SIZE // 8, SIZE, SIZE // 8)
    )
    payload = {
        "out": str(job / "out"),
        "film": str(job / "video"),
        "secrets": [str(each) for each in secrets],
        "code": [
            str(each)
            for each in (*code.iterdir(), Path(__file__).parents[2] / "worker/child/child.py")
        ],
        "parent": os.getpid(),
        "port": servers[0].getsockname()[1],
        "sockets": _sockets(),
        "home": str(home),
        "scratch": str(scratch),
    }

    def call(task: str, payload: dict[str, Any]) -> dict[str, Any]:
        return child.call(
            f"taken_over:{task}",
            payload,
            on_progress=lambda _: None,
            should_stop=lambda: False,
            wall_seconds=60,
            folder=job,
            log=job / "run.log",
        )

    answer = call("attack", payload)
    assert child.walls is not None
    told = {
        **answer,
        "stand": child.walls.stand,
        "lack": child.walls.lack,
        "uid": os.getuid(),
        "left": len(list((job / "out").glob("alive-*"))),
        "film": (job / "video").read_bytes().decode(),
        "eaten": {},
    }
    if orphan:
        print(json.dumps(told), flush=True)
        time.sleep(60)
        return
    child.close()
    told["still there"] = of(shop)
    told["groups"] = [
        str(each) for each in Path("/sys/fs/cgroup").rglob(f"posedrop-{os.getpid()}-*")
    ]
    for what in _FOOD if eats else ():
        try:
            call("eat", {"out": str(job / "out"), "what": what})
            told["eaten"][what] = "all of it"
        except Exception as error:
            told["eaten"][what] = str(getattr(error, "code", error))
        remove(job / "out")
        assert not (job / "out").exists(), what
        (job / "out").mkdir()
    child.close()
    print(json.dumps(told))


_FOOD = (
    "shared memory",
    "memory without a name",
    "processes",
    "many processes",
    "files without a name",
    "folders",
)


def _sockets() -> list[str]:
    """Return the names of all the machine's sockets that have one."""
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        name = line.partition(line.split()[6])[2].strip() if len(line.split()) > 7 else ""
        if name:
            found.add("\0" + name[1:] if name.startswith("@") else name)
    return sorted(found)


def of(place: Path) -> list[int]:
    """Return the processes that have a folder in their command line, but for this one."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(place).encode() in each.read_bytes() and int(each.parent.name) != os.getpid():
                found.append(int(each.parent.name))
    return found


def refuse_namespaces() -> None:
    """Deny this process and all its children what makes namespaces, as containers do."""
    from worker.child.walls import Kernel

    kernel = Kernel()
    kernel.prctl(38, 1)
    number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
    kernel.filter_calls(b"".join(struct.pack("=HBBI", *step) for step in steps))


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        refused="--refused" in sys.argv,
        orphan="--orphan" in sys.argv,
        eats="--eat" in sys.argv,
    )
