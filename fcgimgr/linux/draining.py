"""What an old generation still has in hand: the connections its processes hold, and the handshakes under way.

A connection that is kept open between requests (nginx's fastcgi_keep_conn) must not hold a drain, and one in use must
not be cut. Whether it is idle can only be gathered from outside, and these are the signs, the surest first:

- Bytes that wait unread: a request has come. In use.
- A thread waits in read(2) or recv(2) on this very connection (/proc/PID/task/TID/syscall): it expects the next
  request. Idle, if something was said there before. (The exception: a client that pauses amid its request's body.)
  Of one that is held this is not enough: it may have been stopped at the end of the call, with the request just read.
  So it must have been seen waiting before it was held, and nothing have come in since.
- TCP: nothing was ever sent: not answered. The last byte went out after the last one came in: answered. The kernel
  notes both times in ticks of 1 to 10 ms, and a fast answer goes out in the tick its request came in. Then what
  acknowledges what decides: an answer not yet acknowledged, or acknowledged by a packet later than the last bytes, came
  last. Answered is not *wholly* answered: no thread of the process may be computing or writing either, and it must
  have brought more than one request or be silent for a second; one that waits longer for a database between two halves
  of an answer passes for idle. And where the client acknowledges at once, nothing is decided: unknown, as after most
  fast answers of a Go program to nginx.
- Unix sockets tell no times. Without a thread that reads it, a connection there is unknown; with one, it counts as
  idle once it has been seen for EXPECTED, since its first request may be on the way.

Look while the process is held (`holding`), or it may be another moment's truth. Unknown is None; how long to wait for
better news is the caller's to decide.
"""

import os
import platform
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

from fcgimgr.linux import procfs, sockdiag
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.netlink import attributes_from
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import SocketName

#: Seconds for which a connection that has said nothing yet is in use: its request is on the way. nginx sends it at
#: once; lost on the network it is sent again after 0.2 s and 0.6 s. Who is silent longer is a health check, or dead.
EXPECTED: Final = 1.0

#: Seconds of silence after which an answer counts as whole, where the connection has not yet brought a second request.
HALF_AN_ANSWER: Final = 1.0

_INET_DIAG_INFO: Final = 2
_CLOSE_WAIT: Final = 8
_SYN_RECV: Final = 3
# Established, in a close by the client (CLOSE_WAIT); the others that have an inode, the worker has closed for writing.
_OPEN: Final = frozenset({1, _CLOSE_WAIT})

_FEW: Final = 64
_MESSAGE_SIZE: Final = 72  # inet_diag_msg; attributes follow
_MESSAGE_UNREAD: Final = 56  # idiag_rqueue
_INFO_ENOUGH: Final = 160  # struct tcp_info up to tcpi_data_segs_out (Linux 4.6)

# Which system calls receive (read, readv, recvfrom, recvmsg), and which send (write, writev, sendto, sendmsg,
# sendfile). On another machine threads tell nothing.
_CALLS: Final = {
    "x86_64": (frozenset({0, 19, 45, 47}), frozenset({1, 20, 44, 46, 40})),
    "aarch64": (frozenset({63, 65, 207, 212}), frozenset({64, 66, 206, 211, 71})),
    "riscv64": (frozenset({63, 65, 207, 212}), frozenset({64, 66, 206, 211, 71})),
}
_RECEIVING, _SENDING = _CALLS.get(platform.machine(), (frozenset[int](), frozenset[int]()))


class Connection(NamedTuple):
    """An accepted connection in a process's hands, its fd there. idle: None is unknown. silent: seconds; None on Unix
    sockets."""

    inode: int
    fd: int
    idle: bool | None
    silent: float | None


class Handshake(NamedTuple):
    """A connection that is being opened. The cookie is the kernel's own number for it."""

    host: bytes
    port: int
    cookie: bytes


class _Signs(NamedTuple):
    """What the kernel tells of one connection. received: bytes, of Unix sockets unknown; answered: the last word was
    ours."""

    unread: int
    received: int | None
    answered: bool | None
    silent: float | None


# Of TCP an inet_diag_msg with its attributes, of a Unix socket the bytes unread.
_Report: TypeAlias = bytes | int


class Watch:
    """A look, again and again, at the connections of some listeners until they are done."""

    def __init__(self, names: Iterable[SocketName]) -> None:
        """names: `getsockname()` of the listeners."""
        self._names = list(names)
        self._first_seen: dict[int, float] = {}
        # Connections that a thread waited to read from when its process was last seen at large, and what had come.
        self._read: dict[int, int | None] = {}
        self._answered: dict[int, int] = {}  # bytes that had come when it was first seen answered

    def look(self, pids: Iterable[int], now: float, *, held: bool = False) -> dict[int, list[Connection] | None] | None:
        """What each process holds; None for one that is gone or may not be looked at; None for all without sock_diag.

        now: seconds, monotonic. held: whether they all stand still; then each must have been looked at at large before.
        One question for each listener whatever the number of processes, and one walk through each one's descriptors.
        """
        try:
            reports = _reports(self._names)
        except OSError:
            return None
        open_ones = {pid: procfs.sockets(pid) for pid in pids}
        seen = {inode for sockets in open_ones.values() if sockets for inode in sockets.values() if inode in reports}
        self._first_seen = {inode: self._first_seen.get(inode, now) for inode in seen}
        if not held:
            self._read = {inode: received for inode, received in self._read.items() if inode in seen}
            self._answered = {inode: received for inode, received in self._answered.items() if inode in seen}
        return {
            pid: None if sockets is None else self._judge(pid, sockets, reports, now, held=held)
            for pid, sockets in open_ones.items()
        }

    def _judge(
        self, pid: int, sockets: dict[int, int], reports: dict[int, _Report], now: float, *, held: bool
    ) -> list[Connection]:
        ours = {fd: (inode, _signs(reports[inode])) for fd, inode in sockets.items() if inode in reports}
        calls = procfs.system_calls(pid) if any(not sign.unread for _, sign in ours.values()) else None
        heard = {argument for number, argument in calls or () if number in _RECEIVING}
        active = any(number == -1 or number in _SENDING for number, _ in calls or ())
        connections = []
        for fd, (inode, sign) in ours.items():
            young = now - self._first_seen[inode] < EXPECTED
            is_read = self._is_read(inode, sign, fd in heard, held=held)
            kept = self._is_kept(inode, sign)
            connections.append(Connection(inode, fd, _idle(sign, is_read, active, young, kept), sign.silent))
        return connections

    def _is_kept(self, inode: int, sign: _Signs) -> bool:
        """Whether it was seen to bring another request after an answer."""
        if sign.received is None:
            return False
        if sign.answered and not sign.unread:
            self._answered[inode] = min(sign.received, self._answered.get(inode, sign.received))
        return sign.received > self._answered.get(inode, sign.received)

    def _is_read(self, inode: int, sign: _Signs, seems_so: bool, *, held: bool) -> bool:
        """Whether a thread waits to read from it, and has not just done so."""
        if held:
            return seems_so and inode in self._read and self._read[inode] == sign.received
        if seems_so:
            self._read[inode] = sign.received
        else:
            self._read.pop(inode, None)
        return seems_so


def hang_up(
    pid: int, fd: int, names: Iterable[SocketName], may_wait: Callable[[bytes], bool] = lambda unread: not unread
) -> None:
    """Close a connection of these listeners for a process that stands still, if nothing waits on it to be read.

    may_wait: whether these unread bytes, the first few, are not a request either.

    As if the client had done it: the process reads the end of it, and the client makes a new one. A client that keeps
    connections expects them to be closed when they are idle, and one that sends a request at that very moment repeats
    it, if that is safe. LinuxError: it is not permitted, or not there.
    """
    with PidFd(pid) as process, _socket(process, fd) as ours:
        if may_wait(_unread(ours)) and any(_is_of(ours.getsockname(), name) for name in names):
            with suppress(OSError):  # the client was quicker
                ours.shutdown(socket.SHUT_RDWR)


def _socket(process: PidFd, fd: int) -> socket.socket:
    ours = process.get_fd(fd)
    try:
        return socket.socket(fileno=ours)
    except OSError as error:  # the process chooses what it has there
        os.close(ours)
        raise LinuxError(f"pid {process.pid}: its fd {fd} is no socket") from error


def _unread(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_FEW, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:  # nothing; or the client has broken it off
        return b""


def _is_of(local: SocketName, listener: SocketName) -> bool:
    """Whether a connection with this name was made to the listener of that name, which may be a wildcard."""
    if isinstance(local, tuple) and isinstance(listener, tuple):
        return bool(local[1] == listener[1])
    return local == listener


def handshakes(names: Iterable[SocketName]) -> set[Handshake] | None:
    """Handshakes under way at TCP listeners of these names; an ACK still to come will put each into the queue.

    They belong to the listener that the SYN was steered to, and closing that one breaks them. So ask once after the
    switch, and drain until none of *these* is left; each ends, well or not, within about a minute (tcp_synack_retries).
    Under a flood the kernel keeps none of them (SYN cookies), and such a handshake ends at the listener in force.
    """
    found: set[Handshake] = set()
    try:
        for name in names:
            if isinstance(name, tuple):
                _, local = sockdiag.tcp_address(name)
                for family in (socket.AF_INET, socket.AF_INET6):
                    for answer in sockdiag.tcp_by_port(family, name[1], 1 << _SYN_RECV):
                        if not any(local) or sockdiag.tcp_local(answer) == local:
                            port, host = struct.unpack_from("!2xH16x16s", answer, 4)[:2]
                            found.add(Handshake(host, port, answer[44:52]))
    except OSError:
        return None
    return found


def taken(names: Iterable[SocketName]) -> dict[int, int] | None:
    """The accepted connections of listeners so named, by inode, and how many bytes the client has taken of each.

    Of a Unix socket the kernel does not tell: 0. None: nor of anything.
    """
    try:
        reports = _reports(names)
    except OSError:
        return None
    return {inode: _bytes_taken(report) for inode, report in reports.items()}


def _bytes_taken(report: _Report) -> int:
    tcp_info = b""
    if isinstance(report, bytes):
        tcp_info = dict(attributes_from(report, _MESSAGE_SIZE)).get(_INET_DIAG_INFO, b"")
    return int(struct.unpack_from("=Q", tcp_info, 120)[0]) if len(tcp_info) >= _INFO_ENOUGH else 0


def _idle(sign: _Signs, is_read: bool, active: bool, young: bool, kept: bool) -> bool | None:
    if sign.unread:
        return False
    if sign.received == 0:
        return sign.silent is not None and sign.silent >= EXPECTED
    if is_read and sign.answered is not False:
        # Of a Unix socket nobody knows whether anything was said yet, so it must have been there a while.
        return sign.silent is not None or not young
    if not sign.answered:
        return sign.answered
    if active:
        return False
    # Half an answer, and a wait for a database: so it looks until it has been silent for longer than that takes.
    return True if sign.silent is None or kept or sign.silent >= HALF_AN_ANSWER else None


def _reports(names: Iterable[SocketName]) -> dict[int, _Report]:
    """What the kernel tells of each accepted connection, by inode. Not taken apart: most may be other processes'."""
    paths: set[str | bytes] = set()
    reports: dict[int, _Report] = {}
    for name in names:
        if isinstance(name, tuple):
            for answer in sockdiag.tcp_connections(name, 1 << (_INET_DIAG_INFO - 1)):
                reports[sockdiag.tcp_inode(answer)] = answer
        else:
            paths.add(name)
    if paths:
        reports.update(sockdiag.unix_connections(paths))
    return reports


def _signs(report: _Report) -> _Signs:
    if isinstance(report, bytes):
        return _tcp_signs(report)
    return _Signs(report, received=None, answered=None, silent=None)


def _tcp_signs(answer: bytes) -> _Signs:
    state = answer[1]
    unread = struct.unpack_from("=I", answer, _MESSAGE_UNREAD)[0]
    if state == _CLOSE_WAIT and unread:
        unread -= 1  # the client's FIN counts as a byte; if it is all, there is nothing to answer
    if state not in _OPEN:  # closed for writing by the worker: it has said all it had to say
        return _Signs(unread, received=None, answered=True, silent=None)
    tcp_info = dict(attributes_from(answer, _MESSAGE_SIZE)).get(_INET_DIAG_INFO, b"")
    if len(tcp_info) < _INFO_ENOUGH:
        return _Signs(unread, received=None, answered=None, silent=None)
    (unacknowledged,) = struct.unpack_from("=I", tcp_info, 24)
    sent, received, acknowledged = struct.unpack_from("=I4xII", tcp_info, 44)  # ms since
    (bytes_received,) = struct.unpack_from("=Q", tcp_info, 128)
    unsent, sent_segments = struct.unpack_from("=I8xI", tcp_info, 144)
    answered: bool | None
    if unsent or not sent_segments:
        answered = False  # the client is slow to take the answer, and more of it may be to come; or none has begun
    elif sent != received:
        answered = sent < received
    else:
        # The next request would have acknowledged the answer before it, with the very packet it came in.
        answered = True if unacknowledged or acknowledged < received else None
    return _Signs(unread, bytes_received, answered, min(sent, received) / 1000)
