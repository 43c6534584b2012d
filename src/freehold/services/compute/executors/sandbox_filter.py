"""The system calls that a native program in a sandbox may not make, as a seccomp filter in classic BPF.

Namespaces leave three things open that this closes: address families that no network namespace covers (a virtual
machine's vsock reaches its host), the kernel's keyrings, and the parts of the kernel in which most of its holes were
found (mounts, new namespaces, tracing, BPF, io_uring). Invariant: whatever is not named here is allowed, and a program
of another architecture's numbers (32-bit on a 64-bit machine) is killed, since its numbers mean other calls.
"""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF, on 32-bit words
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # what SECCOMP_RET_* are
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # numbers of x86's third set of calls
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink: what a network namespace holds
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes

# Name, its number on x86-64, its number on 64-bit ARM.
_DENIED = """
    ptrace 101 117, mount 165 40, umount2 166 39, pivot_root 155 41, swapon 167 224, swapoff 168 225, reboot 169 142,
    init_module 175 105, delete_module 176 106, finit_module 313 273, kexec_load 246 104, kexec_file_load 320 294,
    quotactl 179 60, acct 163 89, syslog 103 116, add_key 248 217, request_key 249 218, keyctl 250 219,
    unshare 272 97, setns 308 268, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
    perf_event_open 298 241, bpf 321 280, userfaultfd 323 282, chroot 161 51, open_by_handle_at 304 265,
    name_to_handle_at 303 264, settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171,
    vhangup 153 58, iopl 172 -, ioperm 173 -, io_uring_setup 425 425, io_uring_enter 426 426,
    io_uring_register 427 427, open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431,
    fsmount 432 432, fspick 433 433, pidfd_getfd 438 438, mount_setattr 442 442, quotactl_fd 443 443,
    memfd_secret 447 447
"""
# Those that are looked at more closely, or denied only where no cgroup counts memory.
_SPECIAL = """
    socket 41 198, clone 56 220, clone3 435 435, memfd_create 319 279, shmget 29 194
"""
_UNCOUNTED = ("memfd_create", "shmget")
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # the column above, and AUDIT_ARCH_*


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [row.split() for row in table.split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def is_known_machine() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _MACHINES


@cache
def build_filter(counted: bool, machine: str = "") -> bytes:
    """The program, an array of struct sock_filter, as bubblewrap's --seccomp reads it. KeyError for a machine that
    `is_known_machine` does not know. `counted`: a cgroup counts the memory of files that exist in memory only; where
    none does, they are denied."""
    machine = machine or platform.machine()
    column, audit = _MACHINES[machine]
    special = _numbers(_SPECIAL, column)
    denied = _numbers(_DENIED, column) | ({} if counted else {name: special[name] for name in _UNCOUNTED})
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    for number in sorted(denied.values()):
        code += _deny(number, errno.EPERM)
    code += _deny(special["clone3"], errno.ENOSYS)  # its flags lie in memory; the C library falls back to clone
    code += [
        _step(_EQUAL, special["clone"], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_RETURN, _ALLOW),
        _step(_EQUAL, special["socket"], 1, 0),
        _step(_RETURN, _ALLOW),
        _step(_LOAD, _FIRST_ARGUMENT),
    ]
    for family in _FAMILIES:
        code += [_step(_EQUAL, family, 0, 1), _step(_RETURN, _ALLOW)]
    code.append(_step(_RETURN, _ERROR | errno.EAFNOSUPPORT))
    return b"".join(code)


def build_profile() -> dict[str, object]:
    """The same rules for programs in containers, as an OCI runtime reads them (names that it does not know, it skips).
    Their memory is always counted by a cgroup."""
    rules: list[dict[str, object]] = [
        {"names": sorted(_numbers(_DENIED, 1)), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ]
    for bit in range(_NEW_NAMESPACES.bit_length()):
        if flag := _NEW_NAMESPACES & 1 << bit:
            rules.append(_rule("clone", errno.EPERM, "SCMP_CMP_MASKED_EQ", flag, flag))
    for family in range(max(_FAMILIES)):
        if family not in _FAMILIES:
            rules.append(_rule("socket", errno.EAFNOSUPPORT, "SCMP_CMP_EQ", family))
    rules.append(_rule("socket", errno.EAFNOSUPPORT, "SCMP_CMP_GT", max(_FAMILIES)))
    # No architectures are named: calls by another one's numbers are then killed, as above.
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}


def _rule(name: str, error: int, how: str, value: int, second: int = 0) -> dict[str, object]:
    argument = {"index": 0, "value": value, "valueTwo": second, "op": how}
    return {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": [argument]}


def _deny(number: int, error: int) -> list[bytes]:
    return [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERROR | error)]


def _step(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)
