"""The filter of system calls, run by a small interpreter of classic BPF: what it lets through, on each processor."""

from __future__ import annotations

import errno
import struct

import pytest

from freehold.services.compute.executors.sandbox_filter import build_filter, build_profile

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
DENIED, NO_FAMILY, UNKNOWN = ERROR | errno.EPERM, ERROR | errno.EAFNOSUPPORT, ERROR | errno.ENOSYS
NAMES = {  # of a few calls: their numbers on each processor
    "read": (0, 63),
    "execve": (59, 221),
    "socket": (41, 198),
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "ptrace": (101, 117),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
}


def judge(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the kernel would return for this call."""
    data = {0: number, 4: architecture, 16: argument & 0xFFFFFFFF}
    steps = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        code, true, false, operand = steps[at]
        at += 1
        if code == 0x20:
            value = data[operand]
        elif code == 0x06:
            return int(operand)
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += true if holds else false


@pytest.mark.parametrize(
    ("name", "argument", "verdict"),
    [
        ("read", 0, ALLOW),
        ("execve", 0, ALLOW),
        ("unshare", 0, DENIED),
        ("setns", 0, DENIED),
        ("mount", 0, DENIED),
        ("keyctl", 0, DENIED),
        ("bpf", 0, DENIED),
        ("ptrace", 0, DENIED),
        ("io_uring_setup", 0, DENIED),
        ("clone3", 0, UNKNOWN),
        ("clone", 0x01200011, ALLOW),  # fork, as the C library calls it
        ("clone", 0x003D0F00, ALLOW),  # a thread
        ("clone", 0x10000011, DENIED),  # a user namespace
        ("clone", 0x00020011, DENIED),  # a mount namespace
        ("clone", 0x40000011, DENIED),  # a network namespace
        ("socket", 1, ALLOW),
        ("socket", 2, ALLOW),
        ("socket", 10, ALLOW),
        ("socket", 16, ALLOW),
        ("socket", 0, NO_FAMILY),
        ("socket", 17, NO_FAMILY),  # packets
        ("socket", 38, NO_FAMILY),  # the kernel's crypto
        ("socket", 40, NO_FAMILY),  # vsock
        ("socket", 2**32 + 40, NO_FAMILY),
    ],
)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_call(machine: str, name: str, argument: int, verdict: int) -> None:
    number = NAMES[name][list(ARCHITECTURE).index(machine)]
    assert judge(build_filter(True, machine), ARCHITECTURE[machine], number, argument) == verdict


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_files_in_memory_are_denied_only_where_nobody_counts_them(machine: str) -> None:
    for name in ("memfd_create", "shmget"):
        number = NAMES[name][list(ARCHITECTURE).index(machine)]
        assert judge(build_filter(True, machine), ARCHITECTURE[machine], number) == ALLOW
        assert judge(build_filter(False, machine), ARCHITECTURE[machine], number) == DENIED


def test_numbers_of_another_architecture_are_killed() -> None:
    program = build_filter(True, "x86_64")
    assert judge(program, 0x40000003, 4) == KILL  # 32-bit x86
    assert judge(program, ARCHITECTURE["x86_64"], 0x40000000 + 59) == KILL  # x32


def test_filter_fits_into_a_pipe_and_the_kernels_limit() -> None:
    for machine in ARCHITECTURE:
        assert len(build_filter(False, machine)) < 4096


def test_profile_of_containers_denies_the_same() -> None:
    profile = build_profile()
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    rules = profile["syscalls"]
    assert isinstance(rules, list)
    names = {name for rule in rules if "args" not in rule for name in rule["names"]}
    assert {"unshare", "setns", "mount", "keyctl", "bpf", "ptrace", "io_uring_setup", "clone3"} <= names
    families = {rule["args"][0]["value"] for rule in rules if rule["names"] == ["socket"]}
    assert families == {0, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16}  # the last: all above
    flags = 0
    for rule in rules:
        if rule["names"] == ["clone"]:
            flags |= rule["args"][0]["value"]
    assert flags == 0x7E020000
