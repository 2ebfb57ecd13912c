"""Whether a process has taken a listener: does one of its threads wait for the connections that come to it?

Nothing in the kernel counts who accepts from a listener, but a thread that waits tells what for: the system call it is
in, with its arguments, stands in /proc/PID/task/TID/syscall (proc(5)).

- accept(2), accept4(2) name the listener.
- epoll_wait(2) names a set, whose members stand in /proc/PID/fdinfo/N, with their inodes.
- poll(2) and select(2) point to the process's own memory, which whoever may see its system calls may read.
- io_uring_enter(2) does not say: what it waits for is in rings shared with the kernel. So it is a *maybe*, as are the
  calls above where more than their name cannot be had. A process that has settled in a maybe has taken what it was
  given, as far as anybody can tell; when it has settled is the caller's to say.

To see any of this takes the right to ptrace the process (ptrace(2), PTRACE_MODE_ATTACH), a kernel that tells
(CONFIG_HAVE_ARCH_TRACEHOOK) and a machine whose numbers of system calls stand here; else the answer is *unknown*.
"""

import os
import platform
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from enum import IntEnum
from typing import Final, NamedTuple

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.parting import borrowed, is_of
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import SocketName


class Sight(IntEnum):
    """What was seen of a process. The greatest is what counts of several that belong together."""

    NO = 0
    UNKNOWN = 1
    MAYBE = 2
    TAKES = 3


class _Calls(NamedTuple):
    """The numbers of system calls on a machine."""

    accept: frozenset[int]
    epoll: frozenset[int]
    poll: frozenset[int]
    select: frozenset[int]
    unclear: frozenset[int]


# accept, accept4; epoll_wait, epoll_pwait, epoll_pwait2; poll, ppoll; select, pselect6; io_uring_enter, and
# restart_syscall, which poll becomes when the process is stopped and goes on.
_GENERIC: Final = _Calls(
    frozenset({202, 242}), frozenset({22, 441}), frozenset({73}), frozenset({72}), frozenset({426, 128})
)
_CALLS: Final = {
    "x86_64": _Calls(
        frozenset({43, 288}),
        frozenset({232, 281, 441}),
        frozenset({7, 271}),
        frozenset({23, 270}),
        frozenset({426, 219}),
    ),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}.get(platform.machine())

MOST_THREADS: Final = 512  # of one process are looked at
MOST_FDS: Final = 1024  # of one poll or select, or of one process, are looked at
MOST_IN_PLACE: Final = 8  # sockets of one process are looked at in place
_FDINFO: Final = 256 * 1024  # bytes that are read of one epoll set

_POLLFD: Final = struct.Struct("=ihh")
_POLLIN: Final = 0x001
# The stack of a 64-bit program is above this. A 32-bit one has other numbers of system calls.
_ABOVE: Final = 1 << 32


def sight(pid: int, listeners: Collection[int]) -> Sight:
    """Whether this process waits for connections to one of these listeners (inodes). NO, when it is gone."""
    if _CALLS is None:
        return Sight.UNKNOWN
    found = Sight.NO
    for call in _system_calls(pid):
        if call is None:
            return max(found, Sight.UNKNOWN)
        found = max(found, _judge(pid, *call, listeners))
        if found is Sight.TAKES:
            break
    return found


def has_connection(
    pid: int, names: Collection[SocketName], connections: Collection[int], without: Collection[int] = ()
) -> bool:
    """Whether the process has an accepted connection in its hands; not, as far as it may not be looked at.

    connections: the accepted ones of listeners of these names (`getsockname()`), as inodes, as far as known. One that
    answers in a fraction of a millisecond has the next in hand already: that is looked at in place, by a descriptor of
    our own for it (pidfd_getfd(2)), for some microseconds. without: inodes of those that do not count.
    """
    others = []
    with suppress(OSError):
        for fd, inode in _sockets(pid):
            if inode in connections and inode not in without:
                return True
            others.append(fd)
    if not others:
        return False
    try:
        with PidFd(pid) as process:
            return any(_is_accepted(process, fd, names, without) for fd in others[-MOST_IN_PLACE:])
    except LinuxError:
        return False


def _sockets(pid: int) -> Iterator[tuple[int, int]]:
    """(fd, inode) of the sockets it has open, of the first fds. OSError."""
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory)[:MOST_FDS]:
            with suppress(FileNotFoundError):  # closed since it was listed
                target = os.readlink(name, dir_fd=directory)
                if target.startswith("socket:["):
                    yield int(name), int(target[8:-1])
    finally:
        os.close(directory)


def _is_accepted(process: PidFd, fd: int, names: Collection[SocketName], without: Collection[int]) -> bool:
    try:
        with borrowed(process, fd) as sock:
            streams = sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return streams and os.fstat(sock.fileno()).st_ino not in without and is_of(sock.getsockname(), names)
    except (OSError, LinuxError):  # closed since; or it may not be had; or no socket any more
        return False


def _system_calls(pid: int) -> Iterator[tuple[int, list[int]] | None]:
    """(number, arguments) of the calls that threads wait in, the first thread's first. None: they may not be seen."""
    text = _read(f"/proc/{pid}/syscall", 512)
    if text is None:
        if os.path.exists(f"/proc/{pid}"):
            yield None
        return
    if (call := _call(text)) is not None:
        yield call
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads[:MOST_THREADS] if len(threads) > 1 else ():
        text = _read(f"/proc/{pid}/task/{thread}/syscall", 512) if thread != str(pid) else None
        if text is not None and (call := _call(text)) is not None:
            yield call


def _call(text: bytes) -> tuple[int, list[int]] | None:
    """None: it waits in no system call."""
    words = text.split()
    if len(words) < 9 or words[0] == b"-1":  # "running", or the stack and program counter alone
        return None
    if int(words[7], 16) < _ABOVE:
        return None
    return int(words[0]), [int(word, 16) for word in words[1:7]]


def _judge(pid: int, number: int, arguments: list[int], listeners: Collection[int]) -> Sight:
    assert _CALLS is not None
    try:
        if number in _CALLS.accept:
            return _either(_inode(pid, arguments[0]) in listeners)
        if number in _CALLS.epoll:
            return _either(not _members(pid, arguments[0]).isdisjoint(listeners))
        if number in _CALLS.poll:
            fds = _of_poll(pid, *arguments[:2])
        elif number in _CALLS.select:
            fds = _of_select(pid, *arguments[:2])
        else:
            return Sight.MAYBE if number in _CALLS.unclear else Sight.NO
        return _either(any(_inode(pid, fd) in listeners for fd in fds))
    except (FileNotFoundError, ProcessLookupError):
        return Sight.NO  # the thread has gone on since
    except (OSError, LinuxError):
        return Sight.MAYBE


def _either(takes: bool) -> Sight:
    return Sight.TAKES if takes else Sight.NO


def _inode(pid: int, fd: int) -> int:
    """Of the file that the process has as this fd; 0: it has none."""
    with suppress(FileNotFoundError):
        return os.stat(f"/proc/{pid}/fd/{fd & 0xFFFFFFFF}").st_ino
    return 0


def _members(pid: int, fd: int) -> set[int]:
    """The inodes that this epoll set waits for. OSError."""
    members = set()
    text = _read_or_raise(f"/proc/{pid}/fdinfo/{fd & 0xFFFFFFFF}", _FDINFO)
    for line in text[: text.rfind(b"\n")].splitlines():  # the last one may have been cut off
        if line.startswith(b"tfd:"):
            words = line.split()
            ino = next((word for word in words if word.startswith(b"ino:")), None)
            if ino is None:
                raise LinuxError("this kernel does not tell the inodes in an epoll set")
            members.add(int(ino[4:], 16))
    return members


def _of_poll(pid: int, address: int, count: int) -> list[int]:
    """The fds that poll(2) waits for input of. OSError."""
    size = min(count & 0xFFFFFFFF, MOST_FDS) * _POLLFD.size
    return [fd for fd, events, _ in _POLLFD.iter_unpack(_memory(pid, address, size)) if fd >= 0 and events & _POLLIN]


def _of_select(pid: int, count: int, address: int) -> list[int]:
    """The fds that select(2) waits for input of. OSError."""
    if address == 0:
        return []
    count = min(count & 0xFFFFFFFF, MOST_FDS)
    # The set is an array of unsigned long, of which the kernel reads whole ones.
    bits = int.from_bytes(_memory(pid, address, (count + 63) // 64 * 8), "little")
    return [fd for fd in range(count) if bits >> fd & 1]


def _memory(pid: int, address: int, size: int) -> bytes:
    if size == 0:
        return b""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.pread(memory, size, address)
    except OverflowError as error:
        raise LinuxError("no address of a program's") from error
    finally:
        os.close(memory)
    if len(found) < size:
        raise LinuxError("the memory could not be read")
    return found


def _read(path: str, size: int) -> bytes | None:
    try:
        return _read_or_raise(path, size)
    except OSError:
        return None


def _read_or_raise(path: str, size: int) -> bytes:
    """What there is of it, up to about `size`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, size)
        # seq_file hands out a page or so at a time.
        while len(text) > 2048 and len(text) < size and (more := os.read(fd, size)):
            text += more
        return text
    finally:
        os.close(fd)
