"""The walls around a child that opens strangers' films: what the kernel denies it, for good.

Which files, by Landlock; which system calls, by seccomp (``child.syscalls``); networks, processes
and signals, by namespaces; privileges, by dropping them all. What a kernel, or a container around
it, does not grant is left out and told: never assumed. The rules are made by pure functions;
:func:`put_up` alone speaks to the kernel.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from worker.child import syscalls

#: What may stand, in the order in which it is put up, and what each keeps a child from.
NAMES = {
    "memory": "the kernel bounds its memory, with that of all it starts (a control group)",
    "network": "a network of its own, which leads nowhere",
    "processes": "it sees and signals no process but its own, and none outlives it",
    "capabilities": "no privilege, as root neither",
    "privileges": "no program gives it any (no_new_privs)",
    "files": "it reads libraries and its job's files, and writes to its own folder (Landlock)",
    "tcp": "no TCP, whatever the network (Landlock)",
    "signals": "no signal to, and no abstract socket of, other processes (Landlock)",
    "syscalls": "no socket, no namespace, no new group of processes (seccomp)",
}
#: What an ordinary user has but by somebody's leave: nothing is amiss without.
BY_LEAVE = frozenset({"memory"})
#: Within a child's folder: what it may write to, its home; and what is handed over to read.
OWN, GIVEN = "own", "given"

# -- Landlock's rights, in the kernel's order ------------------------------------------------------

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
#: No links, no sockets, no pipes with a name, no devices: what is found there is a file or a folder
#: of this folder. And no programs.
WRITE = (
    READ_FILE | READ_DIR | WRITE_FILE | _TRUNCATE | REMOVE_DIR | REMOVE_FILE
    | _MAKE_DIR | _MAKE_REG | _REFER
)  # fmt: skip
DEVICE = READ_FILE | WRITE_FILE | _IOCTL_DEV
#: Rights by the version of Landlock that knows them first: a kernel denies what it is told to.
_RIGHTS = ((1, (1 << 13) - 1), (2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV))
_TCP_SINCE, _BIND_AND_CONNECT = 4, 0b11
_SCOPES_SINCE, _ABSTRACT_SOCKETS_AND_SIGNALS = 6, 0b11

#: Of a system, whatever its distribution: programs, libraries, fonts, time zones.
SYSTEM = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *(f"/usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "share")),
    *(f"/usr/local/{name}" for name in ("bin", "lib", "lib64", "share", "nvidia")),
    *("/opt/rocm", "/opt/intel", "/var/cache/fontconfig"),
    *("/etc/fonts", "/etc/OpenCL", "/etc/nvidia", "/etc/ld.so.conf.d"),
    *(f"/etc/{name}" for name in ("ld.so.cache", "ld.so.conf", "localtime", "timezone")),
    *(f"/etc/{name}" for name in ("nsswitch.conf", "passwd", "group", "os-release")),
    *("/etc/mime.types", "/etc/ssl/openssl.cnf"),
)
#: Of the kernel: what libraries ask it about processor, memory and cards.
_PROC = (
    "cpuinfo",
    "meminfo",
    "stat",
    "loadavg",
    "uptime",
    "version",
    "filesystems",
    "devices",
    "modules",
)
KERNEL = (
    *("/proc/self", "/proc/sys", "/proc/driver", *(f"/proc/{name}" for name in _PROC)),
    *("/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/fs/cgroup", "/sys/kernel/mm"),
)
DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
#: What CUDA's driver, and those of other makers, work by.
CARDS = ("nvidia*", "nvidia-caps/*", "dri", "kfd", "dxg", "nvhost-*", "nvmap")
#: CUDA's driver keeps handles there (``cuda.shm.*``).
SHARED_MEMORY = "/dev/shm"  # noqa: S108
#: Where it names its threads, by the numbers that these have for the kernel; it gives up if it
#: can't (error 304, "OS call failed").
OWN_THREADS = "/proc/self/task"

#: Of an interpreter's folder: where its code and that of libraries is.
_OF_A_PREFIX = ("bin", "lib", "lib64", "libexec", "share", "nvvm", "pyvenv.cfg")
_CODE = (".py", ".so", ".pth", ".zip", ".egg", ".pyc")


@dataclass(frozen=True)
class Plan:
    """What a child's walls are to be."""

    folder: str
    """The child's folder, with :data:`OWN` and :data:`GIVEN` in it."""
    reads: Sequence[str] = ()
    """Files and folders that the child may read beside libraries."""
    hidden: Sequence[str] = ()
    """Folders that the child may not read: the data, and other jobs' files."""
    cards: bool = False
    """Whether the child may use the accelerators of this machine."""
    group: str = ""
    """A control group that bounds the child's memory."""


@dataclass
class Walls:
    """Which walls stand around this process."""

    stand: list[str] = field(default_factory=list)
    """Of :data:`NAMES`."""
    lack: dict[str, str] = field(default_factory=dict)
    """Those that do not, and why."""

    def note(self, name: str, why_not: str | None) -> bool:
        """Note that a wall stands, or why it does not; return whether it does."""
        if why_not is None:
            self.stand.append(name)
        else:
            self.lack[name] = why_not
        return why_not is None


# -- the rules -------------------------------------------------------------------------------------


def rules(plan: Plan, path: Sequence[str], modules: Iterable[ModuleType]) -> dict[str, int]:
    """Return what a child may do with which files and folders, and all that is below them.

    Args:
        plan: what its walls are to be.
        path: where modules are imported from.
        modules: those that are imported.

    Returns:
        Rights by path; where that is not there, it can be left out.
    """
    hidden = [_real(each) for each in (*plan.hidden, plan.folder)]
    found: dict[str, int] = {}
    for each in (*SYSTEM, *code(path, modules), *_library_path(), *plan.reads):
        for part in _without(_real(each), hidden):
            found[str(part)] = READ
    # For importlib, which lists them.
    found = dict.fromkeys(path, READ_DIR) | found
    found.update(dict.fromkeys(KERNEL, READ))
    found.update(dict.fromkeys(DEVICES, DEVICE))
    cards = [card for name in CARDS for card in Path("/dev").glob(name)] if plan.cards else []
    if cards:
        found.update({str(card): DEVICE | READ_DIR for card in cards})
        found[SHARED_MEMORY] = WRITE
    if plan.cards and _has_cuda():
        found[OWN_THREADS] = READ | WRITE_FILE | _TRUNCATE
    found[str(Path(plan.folder) / OWN)] = WRITE
    found[str(Path(plan.folder) / GIVEN)] = READ_FILE | READ_DIR
    return found


def code(path: Sequence[str], modules: Iterable[ModuleType]) -> Iterator[str]:
    """Yield where the interpreter's code is, that of libraries, and of what is installed in place.

    Of a folder that is no library's, as a project's own, only what can be imported: there may be
    much else in it.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    whole = [f"{prefix}/{name}" for prefix in prefixes for name in _OF_A_PREFIX]
    yield from whole
    yield os.path.dirname(os.path.realpath(sys.executable))  # noqa: PTH120
    for entry in path:
        if entry.startswith(tuple(f"{each}/" for each in whole)):
            continue
        if is_library(Path(entry)):
            yield entry
        else:
            yield from importable(Path(entry))
    for module in modules:
        # What setuptools leaves for `pip install -e` of a project whose folder is not on the path.
        # Among the modules may be None, and objects of all sorts.
        mapping = getattr(module, "MAPPING", None)
        name = getattr(module, "__name__", None)
        if str(name).startswith("__editable__") and isinstance(mapping, dict):
            yield from (str(place) for place in mapping.values())


def is_library(entry: Path) -> bool:
    """Tell whether a folder of ``sys.path`` is one that holds installed code alone."""
    if entry.name in {"site-packages", "dist-packages", "lib-dynload"} or entry.is_file():
        return True
    return any(entry.glob("*.dist-info"))


def importable(folder: Path) -> Iterator[str]:
    """Yield the packages and modules in a folder, and what says how they were installed."""
    with suppress(OSError):
        for each in sorted(folder.iterdir()):
            if each.name.endswith((*_CODE, ".dist-info", ".egg-info")) or (
                each.name.isidentifier() and _is_package(each)
            ):
                yield str(each)


def _is_package(folder: Path) -> bool:
    with suppress(OSError):
        return any(each.suffix in {".py", ".so"} for each in folder.iterdir()) or any(
            folder.glob("*/__init__.py")
        )
    return False


def _library_path() -> Iterator[str]:
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"):
        yield from (each for each in os.environ.get(name, "").split(":") if each.startswith("/"))
    yield from (str(each) for each in Path("/usr/local").glob("cuda*"))


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _without(path: Path, hidden: Sequence[Path]) -> Iterator[Path]:
    """Yield a folder, or as much of what is in it as has nothing to hide.

    One that lies in a hidden folder is named by itself, as an interpreter beside the data: it is
    yielded.
    """
    if path in hidden:
        return
    if not any(each.is_relative_to(path) for each in hidden):
        yield path
        return
    with suppress(OSError):
        for each in path.iterdir():
            if not each.is_symlink():
                yield from _without(each, hidden)


def handled(version: int) -> int:
    """Return the rights that a version of Landlock can deny."""
    return sum(rights for since, rights in _RIGHTS if version >= since)


# -- the kernel ------------------------------------------------------------------------------------

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET, _CLONE_NEWIPC = (
    0x10000000,
    0x20000000,
    0x40000000,
    0x08000000,
)
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 1 << 14, 1 << 19
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_CAP_AMBIENT_CLEAR_ALL = 22, 2, 4
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _VERSION_FLAG, _O_PATH = 1, 1, 0o10000000
_CAPABILITY_VERSION_3, _LAST_CAPABILITY = 0x20080522, 63
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
#: On a machine whose memory is short, the kernel is to end a child, not who else lives there.
_FIRST_TO_GO = "900"


class Kernel:
    """Linux, by ctypes."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def prctl(self, *numbers: int) -> str | None:
        """Call prctl; return why it failed, None: it did not."""
        padded = (*numbers, *[0] * (5 - len(numbers)))
        done = self._libc.prctl(*(ctypes.c_ulong(number) for number in padded))
        return None if done == 0 else self._why()

    def unshare(self, flags: int) -> str | None:
        """Enter namespaces; return why not."""
        return None if self._libc.unshare(flags) == 0 else self._why()

    def see_own_processes_alone(self) -> str | None:
        """Have a /proc of this namespace of processes, which alone sees it; return why not."""
        if (why_not := self.unshare(_CLONE_NEWNS)) is not None:
            return why_not
        # What is mounted here is not seen outside; what is unmounted there goes here too, where the
        # system shares its mounts.
        for source, target, kind, flags in (
            (None, b"/", None, _MS_REC | _MS_SLAVE),
            (b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC),
        ):
            if self._libc.mount(source, target, kind, ctypes.c_ulong(flags), None) != 0:
                return self._why()
        return None

    def landlock_version(self) -> int:
        """Return the version of Landlock that the kernel has, 0: none."""
        return max(0, int(self._libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)))

    def restrict(self, allowed: dict[str, int], version: int) -> str | None:
        """Deny all files but these; TCP, signals and abstract sockets where Landlock can."""
        of_files = handled(version)
        attributes = struct.pack(
            "=QQQ",
            of_files,
            _BIND_AND_CONNECT if version >= _TCP_SINCE else 0,
            _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0,
        )[: 8 + 8 * (version >= _TCP_SINCE) + 8 * (version >= _SCOPES_SINCE)]
        ruleset = self._libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
        if ruleset < 0:
            return self._why()
        try:
            for path, rights in allowed.items():
                with suppress(OSError):  # what is not there needs no leave
                    self._allow(ruleset, path, rights & of_files)
            done = self._libc.syscall(_RESTRICT_SELF, ruleset, 0)
            return None if done == 0 else self._why()
        finally:
            os.close(ruleset)

    def _allow(self, ruleset: int, path: str, rights: int) -> None:
        fd = os.open(path, _O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= _OF_A_FILE
            rule = struct.pack("=Qi", rights, fd)
            if rights and self._libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
                raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
        finally:
            # A rule is bound to what the kernel has in memory of a file, which /proc makes anew,
            # without it, unless somebody has it open.
            if not path.startswith("/proc/"):
                os.close(fd)

    def drop_capabilities(self) -> str | None:
        """Give up every privilege, and the right to have any."""
        for number in range(_LAST_CAPABILITY + 1):
            if self.prctl(_PR_CAPBSET_DROP, number) is not None:
                break  # the last one was before it; or this process never had any to give
        self.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        call = _SYS_CAPSET.get(_machine())
        if call is None:
            return f"not known for {_machine()}"
        if self._libc.syscall(call, header, bytes(24)) != 0:
            return self._why()
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(("CapPrm", "CapEff", "CapAmb")) and int(line.split()[1], 16):
                return f"left: {line}"
        return None

    def filter_calls(self, program: bytes) -> str | None:
        """Put up a seccomp filter."""
        held = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: how many steps, and where they are.
        told = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
        where = ctypes.create_string_buffer(told, len(told))
        return self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(where))

    def _why(self) -> str:
        return os.strerror(ctypes.get_errno())


def put_up(plan: Plan, parent: int, apart: Sequence[int], status: int | None = None) -> Walls:
    """Shut this process in, and return in a child of it which nothing but its end gets out of.

    This process itself stays, waits for that child, and ends when it does; with it ends whatever
    the child has started. When ``parent`` ends, so do they all.

    Args:
        plan: what the walls are to be.
        parent: the number of the process that started this one.
        apart: descriptors that are for the child alone.
        status: a descriptor to which is written how the child ended, as subprocess has it: an exit
            code, or a signal as a negative number.
    """
    walls = Walls()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # it leads a group already
        os.setsid()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    if not sys.platform.startswith("linux"):
        for name in NAMES:
            walls.note(name, f"not on {sys.platform}")
        return walls
    walls.note("memory", _join(plan.group))
    kernel = Kernel()
    # Threads have other numbers in a namespace than the /proc outside of it tells, and a card's
    # driver looks for its own in there.
    cuda = plan.cards and _has_cuda()
    apart_from_others = not cuda or _can_see_own_processes_alone(kernel)
    _enter_namespaces(kernel, walls, processes=apart_from_others)
    _fork(kernel, parent, apart, status, init="processes" in walls.stand)
    if cuda and "processes" in walls.stand and (why_not := kernel.see_own_processes_alone()):
        raise OSError(f"it could have a /proc of its own, and then not: {why_not}")
    walls.note("capabilities", kernel.drop_capabilities())
    walls.note("privileges", kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1))
    version = kernel.landlock_version()
    allowed = rules(plan, sys.path, list(sys.modules.values()))
    why_not = kernel.restrict(allowed, version) if version else "the kernel has no Landlock"
    if walls.note("files", why_not):
        old = f"the kernel's Landlock has version {version}, and this needs"
        walls.note("tcp", None if version >= _TCP_SINCE else f"{old} {_TCP_SINCE}")
        walls.note("signals", None if version >= _SCOPES_SINCE else f"{old} {_SCOPES_SINCE}")
    else:
        walls.lack |= dict.fromkeys(("tcp", "signals"), str(why_not))
    program = syscalls.program(_machine(), cuda=cuda)
    why_not = f"not known for {_machine()}"
    walls.note("syscalls", kernel.filter_calls(program) if program else why_not)
    return walls


def _machine() -> str:
    return os.uname().machine


def _has_cuda() -> bool:
    return any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl"))


def _join(group: str) -> str | None:
    """Enter a control group; return why not."""
    if not group:
        return "this user may make no control group"
    try:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return str(error.strerror)
    return None


def _enter_namespaces(kernel: Kernel, walls: Walls, *, processes: bool) -> None:
    """Leave the network and, unless told not to, the other processes."""
    flags = _CLONE_NEWNET | _CLONE_NEWIPC | (_CLONE_NEWPID if processes else 0)
    why_not = _unshared(kernel, flags)
    walls.note("network", why_not)
    if not processes:
        why_not = why_not or "a card's driver needs a /proc of its own, which can't be mounted here"
    walls.note("processes", why_not)


def _unshared(kernel: Kernel, flags: int) -> str | None:
    """Enter namespaces, as root or as whoever has one of users; return why not."""
    uid, gid = os.getuid(), os.getgid()
    why_not = kernel.unshare(_CLONE_NEWUSER | flags)
    if why_not is None:
        # Stay who we were, or libraries that ask for the user's name stumble over nobody.
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            with suppress(OSError):
                Path(f"/proc/self/{name}").write_text(f"{number} {number} 1")
    elif kernel.unshare(flags) is None:
        why_not = None
    return why_not


def _can_see_own_processes_alone(kernel: Kernel) -> bool:
    """Tell whether a namespace of processes can have its /proc: containers often forbid it.

    Tried in a process that ends: who has entered a namespace can't leave it.
    """
    tries = os.fork()
    if tries == 0:
        can = False
        with suppress(OSError):
            if _unshared(kernel, _CLONE_NEWPID) is None:
                inner = os.fork()
                if inner == 0:
                    os._exit(kernel.see_own_processes_alone() is not None)
                can = os.waitpid(inner, 0)[1] == 0
        os._exit(not can)
    return os.waitpid(tries, 0)[1] == 0


def _fork(
    kernel: Kernel, parent: int, apart: Sequence[int], status: int | None, *, init: bool
) -> None:
    """Return in a child; the process that was stays behind, and ends with it and all it started."""
    keeper = Keeper()
    signal.signal(signal.SIGTERM, keeper.end)
    # After unshare, which changes credentials and by that would clear it.
    kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
    own = os.getpid()
    if init:
        # The first one of a namespace: when it ends, the kernel ends all that are in it.
        keeper.init = os.fork()
        if keeper.init == 0:
            kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _close(*apart, *([] if status is None else [status]))
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                signal.pause()
    child = os.fork()
    with suppress(OSError):  # both do so: who comes first is not known
        os.setpgid(child, child)
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if not init and os.getppid() != own:
            os._exit(1)
        if status is not None:
            os.close(status)
        return
    _close(*apart)
    keeper.child, keeper.status = child, status
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    keeper.end()


@dataclass
class Keeper:
    """The process outside of the walls: it ends all that is left within, and notes how it ended."""

    init: int = 0
    child: int = 0
    status: int | None = None
    """Where to write how the child ended; None: it ends in the same way, as a shell has it."""
    ended_with: int = 0

    def end(self, *_: object) -> None:
        """End all that was started, however far away; then this process."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(OSError):
            if self.child:
                os.killpg(self.child, signal.SIGKILL)
        while True:
            with suppress(OSError):
                if self.init:
                    os.kill(self.init, signal.SIGKILL)
            try:
                process, ended = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(self.ended_with)
            if process == self.child:
                code = os.waitstatus_to_exitcode(ended)
                if self.status is None:
                    self.ended_with = code if code >= 0 else 128 - code
                else:
                    with suppress(OSError):
                        os.write(self.status, str(code).encode())
            if process == self.init:
                self.init = 0
            if process == 0:
                # What lost its parents has this one: where no namespace holds it together.
                for orphan in _children_of(os.getpid()):
                    with suppress(OSError):
                        os.kill(orphan, signal.SIGKILL)
                time.sleep(0.001)


def _children_of(parent: int) -> Iterator[int]:
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # Behind the name, which may be anything: state, parent.
            if int(each.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(each.parent.name)


def _close(*descriptors: int) -> None:
    for each in descriptors:
        with suppress(OSError):
            os.close(each)
