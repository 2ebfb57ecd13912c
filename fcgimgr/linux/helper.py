"""A process of our own for what may block in the kernel: a fork of this one, which can be killed.

Much that can be asked about another process waits for a lock that the process itself holds, or for its memory, and so
for as long as it likes: ptrace(2) and pidfd_getfd(2) while it executes another program, /proc/PID/mem, syscall, fdinfo,
environ, stat and what is behind fd. Whoever asks in the loop of a manager stands still with it. A helper may: what it
is at is seen from outside (`Progress`), and when it does not get on it is killed, or left to itself where not even that
helps.

It dies with its parent; or, where that is wanted, it ends in good order when its socket does, so that whoever it holds
goes on. One of those that is at the same process for OVERDUE has nobody left who would kill it, so the kernel does.

A fork, and not another program: it is there in a millisecond, and its code is ours, whatever has been installed since.
It has none of our descriptors but its end of a socket, so that nothing is held open by one that cannot be killed.
"""

import fcntl
import gc
import marshal
import mmap
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.libc import close_all_but
from fcgimgr.linux.processes import die_with_parent, set_name
from fcgimgr.linux.spawn import dispositions

_LENGTH: Final = struct.Struct("=I")
_AT: Final = struct.Struct("=QQ")
_CAP_SYS_PTRACE: Final = 19
#: So many processes one helper may hold at a time.
MOST_HELD: Final = 4096
#: Seconds for which a helper may be at the same process: whoever has an eye on it loses patience long before.
OVERDUE: Final = 10.0


_forked: Final[set[int]] = set()


def is_helper(pid: int) -> bool:
    """Whether this child, which has not been reaped, is one."""
    return pid in _forked


def was_helper(pid: int) -> bool:
    """Whether this child, which has been reaped, was one. To be asked once."""
    was = pid in _forked
    _forked.discard(pid)
    return was


class Progress:
    """What a helper is at, and whom it holds: shared with it, so that both can be seen without asking, and when it has
    been killed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _AT.size + 4 * MOST_HELD)
        self._held = memoryview(self._memory)[_AT.size :].cast("I")
        self._places: dict[int, int] = {}  # where in it a pid stands
        self._free = list(range(MOST_HELD - 1, -1, -1))
        self._count = 0

    def at(self, pid: int) -> None:
        """The next that a helper does concerns this process; 0: none."""
        signal.setitimer(signal.ITIMER_REAL, OVERDUE if pid else 0)
        self._count += 1
        _AT.pack_into(self._memory, 0, self._count, pid)

    def seen(self) -> tuple[int, int]:
        """How often it has gone on to something else, and the pid of whom that concerns."""
        count, pid = _AT.unpack_from(self._memory)
        return int(count), int(pid)

    def will_hold(self, pid: int) -> bool:
        """This process is about to be held (linux/holding.py). False: it must not be, there are too many already."""
        if not self._free or pid in self._places:
            return False
        place = self._places[pid] = self._free.pop()
        self._held[place] = pid
        return True

    def has_let_go(self, pid: int) -> None:
        """It is not held any more."""
        place = self._places.pop(pid)
        self._held[place] = 0
        self._free.append(place)

    @property
    def held(self) -> list[int]:
        """The pids of those that are held."""
        return [pid for pid in self._held if pid]


def frame(message: Any) -> bytes:
    """A message, of the built-in types, as it is sent to a helper or by one."""
    content = marshal.dumps(message)
    return _LENGTH.pack(len(content)) + content


def messages(received: bytearray) -> Iterator[Any]:
    """The whole messages at the beginning of what was received; they are taken out of it."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = marshal.loads(received[_LENGTH.size : end])
        del received[:end]
        yield message


def fork_helper(
    name: str, serve: Callable[[socket.socket], None], *, in_order: bool = False
) -> tuple[int, socket.socket]:
    """A helper that executes `serve` with its end of a socket, and ends with that; its pid, and our end.

    in_order: `serve` returns when the socket ends, and says whom it is at (`Progress.at`); else it dies with the thread
    that has forked it. LinuxError: there can be none.
    """
    try:
        ours, its = socket.socketpair()
    except OSError as error:
        raise LinuxError(f"cannot have a helper: {os.strerror(error.errno or 0)}") from error
    dies_with = None if in_order else os.getpid()
    handled, _ = dispositions()
    # A signal that came before the helper ignores it would run our handler there, and write into our wake-up pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        pid = os.fork()
        if pid == 0:
            _be_helper(name, its, serve, handled, dies_with)
    except OSError as error:
        ours.close()
        raise LinuxError(f"cannot have a helper: fork: {os.strerror(error.errno or 0)}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        its.close()
    ours.setblocking(False)
    _forked.add(pid)
    return pid, ours


def _be_helper(
    name: str, its: socket.socket, serve: Callable[[socket.socket], None], handled: list[int], dies_with: int | None
) -> None:
    """Does not return."""
    try:
        # What the collector finds would close descriptors by numbers that are others' by now.
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in handled:  # a terminal and systemd send theirs to all; it is the manager who ends us
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if dies_with is not None:
            die_with_parent(dies_with, signal.SIGKILL)
        fd = fcntl.fcntl(its, fcntl.F_DUPFD_CLOEXEC, 3)
        close_all_but(fd, 3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for standard in range(3):
            os.dup2(null, standard)
        os.close(null)
        set_name(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        serve(socket.socket(fileno=fd))
    finally:
        os._exit(0)


def may_look_at_siblings() -> bool:
    """Whether a helper may look at what its parent may look at: Yama lets the parent of a process trace it, and who has
    the capability, but else nobody (Documentation/admin-guide/LSM/Yama.rst).
    """
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            restricted = file.read().strip() != "0"
    except OSError:
        return True
    return not restricted or bool((procfs.capabilities(os.getpid()) or 0) >> _CAP_SYS_PTRACE & 1)
