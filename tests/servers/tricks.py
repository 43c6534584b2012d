"""The tricks of programs that try to get out of the sandbox: what they run, and how that must end.

Each prints "escaped" where it worked. HOST_... variables tell it where the host's own things are.
"""
# ruff: noqa: E501 - a trick reads best in one line

from __future__ import annotations

import platform
from typing import NamedTuple

from freehold.services.compute.executors import sandbox_filter
from freehold.services.compute.tasks import Resources
from tests.servers.boxes import SMALL

_COLUMN = {"x86_64": 1, "aarch64": 2}.get(platform.machine(), 1)
NUMBERS = sandbox_filter._numbers(sandbox_filter._DENIED, _COLUMN) | sandbox_filter._numbers(
    sandbox_filter._SPECIAL, _COLUMN
)


class Trick(NamedTuple):
    """What is run (a shell's script, or a perl's where it begins with "perl:"), how it ends, within which resources;
    `long` gives it the time to come to an end by itself."""

    name: str
    script: str
    ended: tuple[str, ...] = ("exited",)
    resources: Resources = SMALL
    long: bool = True


def call(name: str, *arguments: str) -> str:
    """Perl that makes a system call, and says if that was let through."""
    words = ", ".join([str(NUMBERS[name]), *arguments])
    return f"perl:print 'escaped' if syscall({words}) >= 0"


FILE_IN_MEMORY = f"""perl:
my $file = syscall({NUMBERS["memfd_create"]}, "a", 0);
exit 3 if $file < 0;
open(F, ">&=$file");
while (1) {{ syswrite(F, "a" x 1000000) or exit 4 }}
"""

TRICKS = [
    # Time
    Trick("loops for ever", "while :; do :; done", ("time",), long=False),
    Trick("sleeps beyond its deadline", "exec sleep 60", ("time",), long=False),
    Trick("ignores being asked to end", "trap '' TERM INT HUP; while :; do sleep 60; done", ("time",), long=False),
    Trick("stops itself", "kill -STOP $$", ("time",), long=False),
    # Processes
    Trick("forks for ever", "perl:fork while 1", ("processes",)),
    Trick("forks children that end at once", "perl:while (1) { exit unless fork; wait }", ("time",), long=False),
    Trick("leaves a daemon", "perl:use POSIX; exit if fork; POSIX::setsid(); exit if fork; sleep 60"),
    Trick("leaves something that holds its output open", "sleep 60 & exec sleep 0"),
    Trick("kills everything", "kill -9 -1; echo alive"),
    Trick("kills its first process", "kill -9 1; kill -KILL -- -1; echo alive"),
    Trick("kills the node", "kill -9 $HOST_PID && echo escaped"),
    # Memory
    Trick("fills memory", "perl:$x .= 'a' x 1000000 while 1", ("memory",)),
    Trick("fills memory with many processes", "for i in 1 2 3 4 5 6; do perl -e '$x = \"a\" x 30000000; sleep 60' & done; wait", ("memory",)),
    Trick("fills shared memory", "perl -e 'print \"a\" x 1000000 while 1' >/dev/shm/large; perl -e '$x = \"a\" x 60000000; sleep 60'", ("memory",)),
    Trick("fills a file in memory", FILE_IN_MEMORY, ("memory", "exited")),
    # Disk
    Trick("fills its disk", "cat /dev/zero >/out/large", ("disk",)),
    Trick("fills its scratch", "for i in 1 2 3 4 5 6 7 8 9; do head -c 200000 /dev/zero >/tmp/$i || exit 1; done", ("disk",)),
    Trick("makes files without end", "perl:open(F, '>', $_++) or exit 1 while 1", ("disk",)),
    Trick("makes a file of a terabyte that is not there", "truncate -s 1T /out/sparse", ("disk",)),
    Trick("writes a core", "ulimit -c unlimited 2>/dev/null; kill -SEGV $$"),
    # Output
    Trick("floods its standard output", "yes", ("output",)),
    Trick("floods its standard error", "yes >&2", ("time",), long=False),
    # What it can read
    Trick("reads the host's users", "grep -s -e ^daemon: /etc/passwd && echo escaped"),
    Trick("reads the host's passwords", "cat /etc/shadow /etc/gshadow /etc/sudoers && echo escaped"),
    Trick("reads the host's folders", "ls ~root /home /var /srv /opt /mnt /run /boot && echo escaped"),
    Trick("reads the node's data", "cat $HOST_DATA/wallet.json && echo escaped"),
    Trick("reads the node's data by its root", "for p in /proc/[0-9]*; do cat $p/root$HOST_DATA/wallet.json; done 2>/dev/null"),
    Trick("reads the node's data by its first process", "cat /proc/1/cwd$HOST_DATA/wallet.json; ls -la /proc/1/fd/ | grep wallet && echo escaped"),
    Trick("reads the node's environment", "cat /proc/*/environ; grep -qsz WALLET /proc/*/environ && echo escaped"),
    Trick("has files of the node open", "perl:opendir(D, '/proc/self/fd'); for (readdir D) { print \"escaped $_ \" if /^[0-9]+$/ && $_ > 3 && -e \"/proc/self/fd/$_\" }"),
    Trick("reads the kernel's memory", "head -c 16 /dev/mem || head -c 16 /dev/kmem || head -c 16 /proc/kcore && echo escaped"),
    Trick("reads the kernel's log", "head -c 16 /dev/kmsg || dmesg && echo escaped"),
    Trick("looks at the host's processes", "test -d /proc/$HOST_PID && echo escaped"),
    # What it can write
    Trick("writes to the root", "for d in / /usr /usr/bin /etc /bin/ /lib/; do echo x >$d/escape && echo escaped; done"),
    Trick("writes to its inputs", "echo no >/in/given && echo escaped; rm -f /in/given; mv /in/given /in/other && echo escaped"),
    Trick("writes to the node's data", "echo no >$HOST_DATA/wallet.json && echo escaped"),
    Trick("writes to the kernel's settings", "for f in kernel/core_pattern kernel/hostname vm/drop_caches kernel/modprobe fs/binfmt_misc/register; do echo 1 >/proc/sys/$f && echo escaped; done"),
    Trick("asks the kernel to crash", "echo c >/proc/sysrq-trigger && echo escaped"),
    Trick("writes to /sys", "echo 1 >/sys/kernel/uevent_helper && echo escaped; ls /sys && echo escaped"),
    Trick("writes to its cgroup", "echo max >/sys/fs/cgroup/pids/pids.max && echo escaped; mkdir /sys/fs/cgroup/x && echo escaped"),
    Trick("writes to /dev", "echo x >/dev/escape && echo escaped; test -e /dev/vda && echo escaped"),
    Trick("makes a device", "mknod /tmp/disk b 8 0 && echo escaped; mknod /tmp/mem c 1 1 && echo escaped"),
    Trick("mounts the root again for writing", "mount -o remount,rw / && echo escaped; mount -o remount,bind,rw /usr && echo escaped"),
    # Networks
    Trick("connects to the host", "perl:use IO::Socket::INET; print 'escaped' if IO::Socket::INET->new(PeerAddr => $ENV{HOST_TCP}, Timeout => 1)"),
    Trick("connects to the internet", "perl:use IO::Socket::INET; print 'escaped' if IO::Socket::INET->new(PeerAddr => '192.0.2.1:80', Timeout => 1)"),
    Trick("asks for a name", "getent hosts example.org && echo escaped"),
    Trick("sends a datagram to the host", "perl:use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => $ENV{HOST_UDP}); $s && $s->send('escaped')"),
    Trick("connects to an abstract socket of the host", "perl:use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); print 'escaped' if connect(S, pack_sockaddr_un(\"\\0$ENV{HOST_ABSTRACT}\"))"),
    Trick("opens a vsock", "perl:use Socket; print 'escaped' if socket(S, 40, SOCK_STREAM, 0)"),
    Trick("opens a packet socket", "perl:use Socket; print 'escaped' if socket(S, 17, SOCK_RAW, 768)"),
    Trick("opens a raw socket", "perl:use Socket; print 'escaped' if socket(S, AF_INET, SOCK_RAW, 1)"),
    Trick("opens a socket of the kernel's crypto, or bluetooth", "perl:use Socket; for (38, 31, 29, 21) { print 'escaped' if socket(S, $_, SOCK_RAW, 0) || socket(S, $_, SOCK_STREAM, 0) }"),
    Trick("changes its network by netlink", "ip link add x type dummy && echo escaped; ip link set lo down && echo escaped; perl -e 'use Socket; socket(S, 16, SOCK_RAW, 9) and bind(S, pack(\"SSLL\", 16, 0, 0, 1)) and print \"escaped\"'"),
    # The kernel's other doors
    Trick("makes a user namespace", "unshare --user true && echo escaped; unshare --user --map-root-user mount -t tmpfs x /tmp && echo escaped"),
    Trick("clones a user namespace", call("clone", "0x10000000 | 17", "0", "0", "0", "0")),
    Trick("joins a namespace", call("setns", "0", "0")),
    Trick("mounts", call("mount", "'none'", "'/tmp'", "'tmpfs'", "0", "0")),
    Trick("unmounts", call("umount2", "'/usr'", "2")),
    Trick("leaves its root", call("chroot", "'/tmp'")),
    Trick("pivots its root", call("pivot_root", "'/tmp'", "'/tmp'")),
    Trick("opens a file by its handle", call("open_by_handle_at", "3", "0", "0")),
    Trick("traces its first process", call("ptrace", "16", "1", "0", "0")),
    Trick("reads another's memory", call("process_vm_readv", "1", "0", "0", "0", "0", "0")),
    Trick("reads the session's keyring", call("keyctl", "0", "-3", "0")),
    Trick("adds a key", call("add_key", "'user'", "'k'", "'v'", "1", "-3")),
    Trick("loads BPF", call("bpf", "0", "0", "0")),
    Trick("makes an io_uring", call("io_uring_setup", "1", "'\\0' x 256")),
    Trick("handles faults by itself", call("userfaultfd", "1")),
    Trick("counts events", call("perf_event_open", "'\\0' x 128", "0", "-1", "-1", "0")),
    Trick("loads a module", call("init_module", "''", "0", "''")),
    Trick("sets the clock", call("clock_settime", "0", "'\\0' x 16")),
    Trick("becomes root", "perl:$< = 0; $> = 0; ($(, $)) = (0, 0); print 'escaped' if $< == 0 || $> == 0"),
    Trick("becomes root by another's program", "for p in su mount passwd newgrp; do test -u /usr/bin/$p && $p --version >/dev/null 2>&1; done; grep -q 'NoNewPrivs:.1' /proc/self/status || echo escaped"),
    Trick("has a capability", "grep Cap /proc/self/status | grep -v -e 0000000000000000 && echo escaped"),
    Trick("pushes letters into the terminal", "perl:open(T, '<', '/dev/tty') and print 'escaped'; print 'escaped' if ioctl(STDIN, 0x5412, 'x')"),
]  # fmt: skip
