"""System calls that no solution needs and an escape might, refused by the kernel: a filter for `bwrap --seccomp FD`.

Bubblewrap's namespaces hide what there is to reach; this takes away tools. Most of all the ones that reach other
processes of the same user (the driver of the tests), and memory that no limit counts (System V segments, memfd).
Sockets stay, but of three families only: AF_VSOCK, for one, is not confined by a network namespace.
"""

from __future__ import annotations

import os
import struct

# Numbers of asm/unistd_64.h and asm-generic/unistd.h; those from 424 on are the same on both.
X86_64 = {
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "move_pages": 279,
    "migrate_pages": 256,
    "shmget": 29,
    "msgget": 68,
    "semget": 64,
    "mq_open": 240,
    "memfd_create": 319,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "keyctl": 250,
    "add_key": 248,
    "request_key": 249,
    "setns": 308,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "swapon": 167,
    "syslog": 103,
    "init_module": 175,
    "finit_module": 313,
    "kexec_load": 246,
}
AARCH64 = {
    "ptrace": 117,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "move_pages": 239,
    "migrate_pages": 238,
    "shmget": 194,
    "msgget": 186,
    "semget": 190,
    "mq_open": 180,
    "memfd_create": 279,
    "bpf": 280,
    "perf_event_open": 241,
    "userfaultfd": 282,
    "keyctl": 219,
    "add_key": 217,
    "request_key": 218,
    "setns": 268,
    "name_to_handle_at": 264,
    "open_by_handle_at": 265,
    "mount": 40,
    "umount2": 39,
    "pivot_root": 41,
    "chroot": 51,
    "swapon": 224,
    "syslog": 116,
    "init_module": 105,
    "finit_module": 273,
    "kexec_load": 104,
}
COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "memfd_secret": 447,
}
MACHINES = {  # audit architecture, refused numbers, socket, prlimit64
    "x86_64": (0xC000003E, X86_64, 41, 302),
    "aarch64": (0xC00000B7, AARCH64, 198, 261),
}
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NR, ARCH, ARG0 = 0, 4, 16  # offsets in struct seccomp_data, the low word of the first argument on little-endian
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
X32 = 0x40000000


def program(machine: str | None = None) -> bytes | None:
    """The filter for this machine, or None for one whose numbers we do not know."""
    known = MACHINES.get(machine or os.uname().machine)
    if known is None:
        return None
    arch, refused, socket, prlimit = known
    code = [
        _line(LOAD, ARCH),
        _line(EQUAL, arch, 1, 0),
        _line(RETURN, KILL),
        _line(LOAD, NR),
        _line(AT_LEAST, X32, 0, 1),
        _line(RETURN, ERRNO | ENOSYS),
    ]
    for number in (*refused.values(), *COMMON.values()):
        code += [_line(EQUAL, number, 0, 1), _line(RETURN, ERRNO | EPERM)]
    families = [_line(EQUAL, family, len(FAMILIES) - place, 0) for place, family in enumerate(FAMILIES)]
    code += [_line(EQUAL, socket, 0, len(families) + 3), _line(LOAD, ARG0), *families]
    code += [_line(RETURN, ERRNO | EAFNOSUPPORT), _line(RETURN, ALLOW)]
    # of another process it may not change limits, of itself (0) it may lower them
    code += [_line(EQUAL, prlimit, 0, 3), _line(LOAD, ARG0), _line(EQUAL, 0, 1, 0), _line(RETURN, ERRNO | EPERM)]
    return b"".join([*code, _line(RETURN, ALLOW)])


def _line(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)
