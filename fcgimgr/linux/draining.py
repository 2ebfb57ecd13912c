"""What an old generation still has in hand: the connections its processes hold, and the handshakes under way.

Whether a connection is idle is judged in idle.py, from what is gathered here: what waits on it unread; on TCP, what has
come and when the last bytes came and went; which thread waits to read from it (/proc/PID/task/TID/syscall); and, of a
process behind its gate, what was seen to be said on it.

The kernel notes both times in ticks of 1 to 10 ms, and a fast answer goes out in the tick its request came in. Then
what acknowledges what decides which was last: an answer not yet acknowledged, or acknowledged by a packet later than
the last bytes, came last. Where the client acknowledges at once, nothing is decided: unknown, as after most fast
answers of a Go program to nginx.

That a thread waits to read is true of one that was seen so at large. One that was held may have been stopped at the end
of the call, with the request just read; and one behind a gate stands still in calls that do not wait at all. So it must
have been seen before that, and nothing have come in since.

Unknown is None; how long to wait for better news is the caller's to decide.
"""

import platform
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias

from fcgimgr.linux import procfs, sockdiag
from fcgimgr.linux.idle import QUIET, Evidence, Signs, Talk, is_idle
from fcgimgr.linux.netlink import attributes_from
from fcgimgr.linux.sockdiag import SocketName

_INET_DIAG_INFO: Final = 2
_CLOSE_WAIT: Final = 8
_SYN_RECV: Final = 3
# Established, in a close by the client (CLOSE_WAIT); the others that have an inode, the worker has closed for writing.
_OPEN: Final = frozenset({1, _CLOSE_WAIT})

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
    sockets where nothing was seen. talk: what was seen."""

    inode: int
    fd: int
    idle: bool | None
    silent: float | None
    talk: Talk | None = None


class Handshake(NamedTuple):
    """A connection that is being opened. The cookie is the kernel's own number for it."""

    host: bytes
    port: int
    cookie: bytes


# Of TCP an inet_diag_msg with its attributes, of a Unix socket the bytes unread.
_Report: TypeAlias = bytes | int


class Insight(Protocol):
    """What is known of a process behind its gate (linux/gate.py), whose threads stand still again and again."""

    @property
    def computes(self) -> bool:
        """Whether one of its threads does not wait in a system call."""

    def talk(self, inode: int) -> Talk | None:
        """What was seen to be said on a connection."""


class Watch:
    """A look, again and again, at the connections of some listeners until they are done."""

    def __init__(
        self, names: Iterable[SocketName], *, quiet: float = QUIET, at: Callable[[int], None] = lambda pid: None
    ) -> None:
        """names: `getsockname()` of the listeners. quiet: seconds, as in idle.py. at: is told who is looked at next."""
        self._names = list(names)
        self._quiet = quiet
        self._at = at
        self._first_seen: dict[int, float] = {}
        # Connections that a thread waited to read from when its process was last seen at large, and what had come.
        self._read: dict[int, int | None] = {}

    def look(
        self,
        pids: Iterable[int],
        now: float,
        *,
        held: bool = False,
        insights: Mapping[int, Insight] | None = None,
    ) -> dict[int, list[Connection] | None] | None:
        """What each process holds; None for one that is gone or may not be looked at; None for all without sock_diag.

        now: seconds, monotonic. held: whether they all stand still; then each must have been looked at at large before.
        insights: of those that are behind a gate. One question for each listener whatever the number of processes, and
        one walk through each one's descriptors.
        """
        try:
            reports = _reports(self._names)
        except OSError:
            return None
        open_ones = {pid: self._sockets(pid) for pid in pids}
        seen = {inode for sockets in open_ones.values() if sockets for inode in sockets.values() if inode in reports}
        # Of the processes that this look is not at, too: one that is held again and again makes nobody else young.
        known = seen.union(self._first_seen.keys() & reports.keys())
        self._first_seen = {inode: self._first_seen.get(inode, now) for inode in known}
        if not held:
            self._read = {inode: received for inode, received in self._read.items() if inode in seen}
        insights = insights or {}
        return {
            pid: None if sockets is None else self._judge(pid, sockets, reports, now, held, insights.get(pid))
            for pid, sockets in open_ones.items()
        }

    def _sockets(self, pid: int) -> dict[int, int] | None:
        self._at(pid)
        return procfs.sockets(pid)

    def _judge(
        self,
        pid: int,
        sockets: dict[int, int],
        reports: dict[int, _Report],
        now: float,
        held: bool,
        insight: Insight | None,
    ) -> list[Connection]:
        self._at(pid)
        ours = {fd: (inode, _signs(reports[inode])) for fd, inode in sockets.items() if inode in reports}
        heard = set[int]()
        if insight is not None:
            active = insight.computes
        else:
            calls = procfs.system_calls(pid) if any(not sign.unread for _, sign in ours.values()) else None
            heard = {argument for number, argument in calls or () if number in _RECEIVING}
            active = any(number == -1 or number in _SENDING for number, _ in calls or ())
        connections = []
        for fd, (inode, sign) in ours.items():
            known = held or insight is not None
            evidence = Evidence(
                talk=None if insight is None else insight.talk(inode),
                is_read=self._was_read(inode, sign) if known else self._is_read(inode, sign, fd in heard),
                active=active,
                seen_for=now - self._first_seen[inode],
                now=now,
            )
            if held and insight is None:
                evidence = evidence._replace(is_read=evidence.is_read and fd in heard)
            connections.append(
                Connection(inode, fd, is_idle(sign, evidence, self._quiet), evidence.silent(sign), evidence.talk)
            )
        return connections

    def _is_read(self, inode: int, sign: Signs, seems_so: bool) -> bool:
        """Whether a thread waits to read from it."""
        if seems_so:
            self._read[inode] = sign.received
        else:
            self._read.pop(inode, None)
        return seems_so

    def _was_read(self, inode: int, sign: Signs) -> bool:
        """Whether a thread waited to read from it when it was last seen at large, and nothing has come since."""
        return inode in self._read and self._read[inode] == sign.received


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


def _signs(report: _Report) -> Signs:
    if isinstance(report, bytes):
        return _tcp_signs(report)
    return Signs(report, received=None, answered=None, silent=None)


def _tcp_signs(answer: bytes) -> Signs:
    state = answer[1]
    unread = struct.unpack_from("=I", answer, _MESSAGE_UNREAD)[0]
    if state == _CLOSE_WAIT and unread:
        unread -= 1  # the client's FIN counts as a byte; if it is all, there is nothing to answer
    if state not in _OPEN:  # closed for writing by the worker: it has said all it had to say
        return Signs(unread, received=None, answered=True, silent=None, is_closed=True)
    tcp_info = dict(attributes_from(answer, _MESSAGE_SIZE)).get(_INET_DIAG_INFO, b"")
    if len(tcp_info) < _INFO_ENOUGH:
        return Signs(unread, received=None, answered=None, silent=None)
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
    return Signs(unread, bytes_received, answered, min(sent, received) / 1000)
