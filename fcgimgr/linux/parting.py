"""Hanging up on a kept connection for another process, so that its client does not send a request into the void.

A client that keeps connections takes one from its cache and sends; if the server closes it at that moment, the request
fails (a POST is not repeated). There is one moment without this race: when the client learns of the end of an answer
and of the end of the connection at once, for then it does not keep it. So the connection is closed for writing with the
last bytes of the answer, by `Last`, while the thread that sends them stands still:

- On TCP the bytes are held back (TCP_CORK) while the program makes its own call, and the FIN goes out in the segment of
  the last of them (tcp_send_fin in net/ipv4/tcp_output.c).
- A Unix socket knows nothing like it. There the bytes are sent in the program's place, and the connection closed for
  writing a microsecond later. The client, woken by the bytes, must not get the processor first: so this is done with
  real-time priority where that is permitted, and while the client is asleep, which takes longer to wake up.

The client closes then, and the process reads the end of the connection.

Whoever does this and is killed in the midst of it leaves it half done. Between the sending in a program's place and the
answer to its call are microseconds, in which nothing can block; killed there, the program sends the same once more, on
a connection that is closed for writing, and hears EPIPE. TCP_CORK may stay set, as the program's call lies in between:
then the last bytes of each answer go out 200 ms late (tcp(7)), until the connection ends, which is with the next answer
that another one looks at.

`hang_up` is for connections that nobody has used for a while: closed in both directions, as if the client had done it.
"""

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import SocketName

_FEW: Final = 64
_CREDENTIALS: Final = 12  # struct ucred, the pid first
#: Bytes that are sent in another's place, at most.
MOST: Final = 1 << 17


def hang_up(
    process: PidFd, fd: int, names: Iterable[SocketName], may_wait: Callable[[bytes], bool] = lambda unread: not unread
) -> bool:
    """Close a connection of these listeners for a process that stands still, if nothing waits on it to be read.

    may_wait: whether these unread bytes, the first few, are not a request either. LinuxError: it is not permitted, or
    not there.
    """
    with borrowed(process, fd) as ours:
        if is_of(ours.getsockname(), names) and may_wait(unread(ours)):
            with suppress(OSError):  # the client was quicker
                ours.shutdown(socket.SHUT_RDWR)
            return True
    return False


def accepted(process: PidFd, fd: int, names: Iterable[SocketName]) -> SocketName | None:
    """The name of a connection of these listeners; None: it is none."""
    try:
        with borrowed(process, fd) as ours:
            ours.getpeername()
            name: SocketName = ours.getsockname()
            return name if ours.type == socket.SOCK_STREAM and is_of(name, names) else None
    except (LinuxError, OSError):
        return None


class Last:
    """The end of a connection, with what a thread is about to send on it. To be ended by `finish` or `give_up`."""

    def __init__(self, process: PidFd, fd: int, inode: int) -> None:
        """LinuxError: not permitted, or that is not the socket with this inode (any more)."""
        self._socket = borrowed(process, fd)
        self._corked = False
        if os.fstat(self._socket.fileno()).st_ino != inode:
            self._socket.close()
            raise LinuxError(f"pid {process.pid}: its fd {fd} is another by now")

    def is_possible(self, may_wait: Callable[[bytes], bool]) -> bool:
        """Whether nothing else waits to be read there."""
        return may_wait(unread(self._socket))

    @property
    def is_unix(self) -> bool:
        return self._socket.family == socket.AF_UNIX

    @property
    def client_is_awake(self) -> bool:
        """Whether the process at the other end of a Unix socket is not seen asleep."""
        pid = int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)[:4], "little")
        states = procfs.thread_states(pid) if pid > 0 else None
        return states is not None and not set(states) <= {"S", "I"}

    def hold_back(self) -> None:
        """Of TCP: what is sent from now on goes out when it is the last, or with `give_up`."""
        with suppress(OSError):
            if not self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                self._corked = True

    def send(self, last: bytes) -> int | None:
        """Of a Unix socket: send this and close for writing; how much has been sent, None: nothing, and it is open."""
        count = 0
        with suppress(OSError):
            count = end_with(self._socket, last)
        self._socket.close()
        return count or None

    def finish(self) -> None:
        with suppress(OSError):  # the client was quicker
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()

    def give_up(self) -> None:
        """It was not the last."""
        if self._corked:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        self._socket.close()


def end_with(connection: socket.socket, last: bytes) -> int:
    """Send this now and close for writing with it; how much could be sent, and closed it is if that is all.

    OSError: nothing can be sent any more.
    """
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    with _Urgent():
        try:
            count = connection.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:  # a client that takes its time
            return 0
        if count == len(last):
            with suppress(OSError):  # the client was quicker; what was sent was sent
                connection.shutdown(socket.SHUT_WR)
    return count


class _Urgent:
    """Nobody gets the processor before us, where that is permitted: it takes CAP_SYS_NICE."""

    def __enter__(self) -> None:
        self._before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            self._is = True
        except OSError:
            self._is = False

    def __exit__(self, *error: object) -> None:
        if self._is:
            os.sched_setscheduler(0, *self._before)


def borrowed(process: PidFd, fd: int) -> socket.socket:
    """A descriptor of our own of a socket of another process. LinuxError: it is none, or that is not permitted."""
    ours = process.get_fd(fd)
    try:
        return socket.socket(fileno=ours)
    except OSError as error:  # the process chooses what it has there
        os.close(ours)
        raise LinuxError(f"pid {process.pid}: its fd {fd} is no socket") from error


def is_of(local: SocketName, listeners: Iterable[SocketName]) -> bool:
    """Whether a connection with this name was made to one of the listeners, which may be wildcards."""
    return any(
        local[1] == name[1] if isinstance(local, tuple) and isinstance(name, tuple) else local == name
        for name in listeners
    )


def unread(connection: socket.socket) -> bytes:
    """The first few bytes that wait to be read there."""
    try:
        return connection.recv(_FEW, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:  # nothing; or the client has broken it off
        return b""
