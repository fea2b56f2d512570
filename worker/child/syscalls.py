"""Which system calls a child is denied, as a seccomp filter: a small program that the kernel runs.

Pure; ``worker.child.walls`` puts it up. The numbers are the kernel's own and never change.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

#: The kernel's names for machines, and what ``platform.machine()`` calls them.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: By architecture: x86_64, aarch64. None: it has no such call.
Numbers = dict[str, tuple[int | None, int | None]]

#: Ways out of the process: to the network, to other processes, to other namespaces, to the kernel.
DENIED: Numbers = {
    # A process group's end is the end of all that it started: nobody leaves it.
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    # Memory that is nobody's: no limit of a process counts it, and some of it outlives all.
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "connect": (42, 203),
}
#: What an NVIDIA card's driver fails without: it listens where nobody can come, under a name that
#: is no file (``@cuda-uvmfd-...``), and some share memory without a name. ``connect`` stays denied.
FOR_CUDA: Numbers = {
    "memfd_create": (319, 279),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
}
#: What libraries ask for and do without, when the kernel says that it knows no such call.
UNKNOWN: Numbers = {
    "clone3": (435, 435),  # its flags can't be looked at: libraries then call clone
    "io_uring_setup": (425, 425),  # makes sockets past this filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
#: What changes a file that may only be read, and Landlock has no rule for. It is said to be done,
#: and is not: whoever copies a file also copies its mode and its times, and needs neither.
PRETENDED: Numbers = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "file_setattr": (469, 469),
}
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_CLONE, _PRLIMIT, _SETPRIORITY = (56, 220), (302, 261), (141, 140)

_AF_UNIX, _STREAM, _SEQPACKET, _KINDS = 1, 1, 5, 0xF
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
_NEW_NAMESPACES = 0x7E020080
_X32 = 0x40000000

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Step = tuple[int, int, int, int]
"""Code, how many steps to skip if so, how many if not, value."""


def program(machine: str, *, cuda: bool) -> bytes | None:
    """Return the filter, as ``struct sock_filter`` after ``struct sock_filter``.

    Args:
        machine: what ``platform.machine()`` says.
        cuda: whether what CUDA's driver needs is let through.

    Returns:
        None where the calls of this machine are not known here.
    """
    if machine not in ARCHITECTURES:
        return None
    column = list(ARCHITECTURES).index(machine)
    steps = [*_beginning(machine), *_looked_at(column, cuda=cuda), *_by_number(column, cuda=cuda)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _beginning(machine: str) -> Iterator[Step]:
    """Deny the calls of all other architectures that the processor knows."""
    yield (_LOAD, 0, 0, _ARCHITECTURE_AT)
    yield (_EQUAL, 1, 0, ARCHITECTURES[machine])
    yield _fails(errno.EPERM)
    yield (_LOAD, 0, 0, _NUMBER_AT)
    if machine == "x86_64":
        yield (_AT_LEAST, 0, 1, _X32)
        yield _fails(errno.ENOSYS)


def _by_number(column: int, *, cuda: bool) -> Iterator[Step]:
    denied = DENIED if cuda else {**DENIED, **FOR_CUDA}
    for calls, number in ((denied, errno.EPERM), (UNKNOWN, errno.ENOSYS), (PRETENDED, 0)):
        for call in calls.values():
            if (known := call[column]) is not None:
                yield (_EQUAL, 0, 1, known)
                yield _fails(number)


def _looked_at(column: int, *, cuda: bool) -> Iterator[Step]:
    """Look at the arguments of calls that are denied only sometimes; each check ends by itself."""
    pairs = [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _fails(errno.EPERM)]
    # Not of datagrams: one of those can be sent anywhere.
    pairs += [
        _argument(1),
        (_AND, 0, 0, _KINDS),
        (_EQUAL, 2, 0, _STREAM),
        (_EQUAL, 1, 0, _SEQPACKET),
        _fails(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    sockets = [_fails(errno.EPERM)]
    if cuda:
        sockets = [
            _argument(0),
            (_EQUAL, 1, 0, _AF_UNIX),
            _fails(errno.EPERM),
            _argument(1),
            (_AND, 0, 0, _KINDS),
            (_EQUAL, 1, 0, _SEQPACKET),
            _fails(errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    clone = [
        _argument(0),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        _fails(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    # Of itself alone (0), not of others, whatever their number.
    own = [_argument(0), (_EQUAL, 1, 0, 0), _fails(errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    for call, body in (
        (_SOCKET, sockets),
        (_SOCKETPAIR, pairs),
        (_CLONE, clone),
        (_PRLIMIT, own),
        (_SETPRIORITY, own),
    ):
        yield (_EQUAL, 0, len(body), call[column])
        yield from body


def _argument(number: int) -> Step:
    """Load the lower half of an argument: all that these calls look at."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * number)


def _fails(number: int) -> Step:
    return (_RETURN, 0, 0, _ERRNO | number)
