"""What the kernel knows of our sockets, asked over NETLINK_SOCK_DIAG (sock_diag(7)): unprivileged, 10-20 µs a question.

Queue lengths without asking a worker; and which sockets are accepted connections of a listener, which together with
`procfs.socket_inodes` tells who is busy. A socket is known by its inode, the number in `socket:[N]` of /proc/PID/fd.
Unknown is None, never 0: a sandbox may forbid AF_NETLINK, and a kernel may lack the unix_diag module.
"""

import os
import socket
import struct
import sys
from collections.abc import Container, Iterable, Iterator
from typing import Any, Final, TypeAlias

from fcgimgr.linux.identity import identity_of
from fcgimgr.linux.netlink import ask, attributes_from

#: An address as `socket.getsockname()` gives it: (host, port[, …]), a path, or b"\0name" of an abstract socket.
SocketName: TypeAlias = tuple[Any, ...] | str | bytes

# Socket states are TCP's for every family (net/tcp_states.h).
_ESTABLISHED: Final = 1
_TIME_WAIT: Final = 6
_CLOSE: Final = 7
_LISTEN: Final = 10
_ALL_STATES: Final = 0xFFF
# With a socket of its own (inode) and a peer: also half-closed ones, which a worker still holds.
_CONNECTED: Final = _ALL_STATES & ~(1 << _LISTEN | 1 << _TIME_WAIT | 1 << _CLOSE)

_UDIAG_SHOW_NAME: Final = 0x01
_UDIAG_SHOW_VFS: Final = 0x02
_UDIAG_SHOW_PEER: Final = 0x04
_UDIAG_SHOW_ICONS: Final = 0x08
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_NAME: Final = 0
_UNIX_DIAG_VFS: Final = 1
_UNIX_DIAG_PEER: Final = 2
_UNIX_DIAG_ICONS: Final = 3
_UNIX_DIAG_RQLEN: Final = 4

_UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")  # unix_diag_req: family, protocol, -, states, inode, show, cookie
_UNIX_ANSWER: Final = struct.Struct("=BBBBIII")  # unix_diag_msg: family, type, state, -, inode, cookie
_INET_REQUEST: Final = struct.Struct("=BBBBI")  # inet_diag_req_v2 as far as its id: family, protocol, ext, -, states
_INET_ID: Final = struct.Struct("!HH16s16s12s")  # inet_diag_sockid: ports, addresses, interface and cookie
_INET_ANSWER_ID: Final = 4  # where inet_diag_msg holds its id, after family, state, timer, retrans
_INET_ANSWER_INODE: Final = 68
_INET_ANSWER_QUEUES: Final = struct.Struct("=II")  # of a listener: its queue and its limit, 12 bytes before the inode
_NO_COOKIE: Final = b"\0" * 4 + b"\xff" * 8
_ANY: Final = b"\0" * 16


def queue_length(listener: socket.socket) -> tuple[int, int] | None:
    """(connections waiting to be accepted, backlog in force) of a listening socket."""
    if listener.family == socket.AF_UNIX:
        return unix_queue(os.fstat(listener.fileno()).st_ino)
    try:
        answer = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    except OSError:
        return None
    # A listener's tcpi_unacked and tcpi_sacked hold its queue and its limit (tcp_get_info in net/ipv4/tcp.c).
    queued, backlog = struct.unpack_from("=II", answer, 24)
    return queued, backlog


def tcp_queue(name: tuple[Any, ...], inode: int) -> tuple[int, int] | None:
    """As `queue_length`, of the TCP listener of this name (`getsockname()`) and inode, which others have."""
    family, _ = tcp_address(name)
    try:
        for answer in tcp_by_port(family, name[1], 1 << _LISTEN):
            if tcp_inode(answer) == inode:
                queued, backlog = _INET_ANSWER_QUEUES.unpack_from(answer, _INET_ANSWER_INODE - 12)
                return queued, backlog
    except OSError:
        return None
    return None


def established_inodes(names: Iterable[SocketName]) -> set[int] | None:
    """Inodes of the accepted connections of the listeners so named (`getsockname()`); those still queued have none."""
    paths: set[str | bytes] = set()
    inodes: set[int] = set()
    try:
        for name in names:
            if isinstance(name, tuple):
                inodes |= _accepted_tcp(name)
            else:
                paths.add(name)
        if paths:
            for inode, attributes in _unix(1 << _ESTABLISHED, _UDIAG_SHOW_NAME):
                if _unix_name(attributes) in paths:
                    inodes.add(inode)
    except OSError:
        return None
    return inodes


def waiting(names: Iterable[SocketName]) -> frozenset[bytes]:
    """The connections that wait to be accepted from the listeners so named, each by what tells it from all others.

    What was among them and is no more has been accepted (or reset by its client). Empty where the kernel does not say.
    """
    found: set[bytes] = set()
    try:
        for name in names:
            if isinstance(name, tuple):
                for answer in tcp_by_port(tcp_address(name)[0], name[1], _CONNECTED):
                    if not tcp_inode(answer):
                        found.add(answer[_INET_ANSWER_ID : _INET_ANSWER_ID + _INET_ID.size])
            else:
                for _, attributes in _unix(1 << _LISTEN, _UDIAG_SHOW_NAME | _UDIAG_SHOW_ICONS):
                    if _unix_name(attributes) == name:
                        icons = attributes.get(_UNIX_DIAG_ICONS, b"")
                        found.update(icons[at : at + 4] for at in range(0, len(icons), 4))
    except OSError:
        return frozenset()
    return frozenset(found)


def listening_inodes(name: SocketName) -> set[int] | None:
    """Inodes of whatever listens at this address: any socket on the port, whichever its address, or on the path."""
    try:
        if isinstance(name, tuple):
            families = (socket.AF_INET, socket.AF_INET6)
            return {tcp_inode(one) for family in families for one in tcp_by_port(family, name[1], 1 << _LISTEN)} - {0}
        listeners = _unix(1 << _LISTEN, _UDIAG_SHOW_NAME)
        return {inode for inode, attributes in listeners if _unix_name(attributes) == name}
    except OSError:
        return None


def listening_at(name: tuple[Any, ...]) -> set[int] | None:
    """Inodes of what listens at exactly this TCP address (`getsockname()`): the members of its SO_REUSEPORT group."""
    family, local = tcp_address(name)
    try:
        answers = tcp_by_port(family, name[1], 1 << _LISTEN)
        return {tcp_inode(answer) for answer in answers if tcp_local(answer) == local}
    except OSError:
        return None


def listening_names(inodes: Container[int]) -> list[str]:
    """Where these sockets listen, those of them that do, as 127.0.0.1:80, [::1]:80 or unix:/PATH."""
    found: set[str] = set()
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in ask(_inet_request(family, 1 << _LISTEN, _ANY, 0, _ANY, 0), dump=True):
                if tcp_inode(answer) in inodes:
                    port, _, local, _, _ = _INET_ID.unpack_from(answer, _INET_ANSWER_ID)
                    host = socket.inet_ntop(family, local[: 4 if family == socket.AF_INET else 16])
                    found.add(f"{host}:{port}" if family == socket.AF_INET else f"[{host}]:{port}")
        for inode, attributes in _unix(1 << _LISTEN, _UDIAG_SHOW_NAME):
            if inode in inodes and (name := _unix_name(attributes)) is not None:
                path = name if isinstance(name, str) else "@" + os.fsdecode(name[1:])
                found.add(f"unix:{path}")
    except OSError:
        pass  # then what was found until here is all that is known
    return sorted(found)


def peer_inode(connection: socket.socket) -> int | None:
    """Inode of the socket at the other end of a connection on this machine; None while it waits to be accepted.

    With `procfs.socket_inodes` it tells which worker took a connection of ours.
    """
    try:
        if connection.family == socket.AF_UNIX:
            return _unix_peer(os.fstat(connection.fileno()).st_ino)
        return _tcp_peer(connection)
    except OSError:
        return None


def unix_bound(file: int) -> bool | None:
    """Whether a socket that does not listen (yet) is bound to the socket *file* that this descriptor is of.

    Names of files may repeat (one is unlinked, another bound), so the kernel is asked for the file itself. Accepted
    connections carry their listener's file too, but they are in another state.
    """
    wanted = _unix_vfs(file)
    if wanted is None:
        return None
    try:
        return any(attributes.get(_UNIX_DIAG_VFS) == wanted for _, attributes in _unix(1 << _CLOSE, _UDIAG_SHOW_VFS))
    except OSError:
        return None


def unix_is_bound_to(sock: int, file: int) -> bool | None:
    """Whether the Unix socket of inode `sock` is bound to the socket *file* that this descriptor is of."""
    wanted = _unix_vfs(file)
    if wanted is None:
        return None
    try:
        for _, attributes in _unix(_ALL_STATES, _UDIAG_SHOW_VFS, sock):
            return attributes.get(_UNIX_DIAG_VFS) == wanted
    except OSError:
        return None
    return None


def unix_place(sock: int) -> tuple[str | bytes | None, bytes] | None:
    """The name of the Unix socket of this inode, and what tells its file from all others; accepted ones have those of
    their listener. None: there is none in this network namespace, or nobody knows.

    Its name alone does not say much: in a mount namespace of its own a process may give a socket any path.
    """
    try:
        for _, attributes in _unix(_ALL_STATES, _UDIAG_SHOW_NAME | _UDIAG_SHOW_VFS, sock):
            return _unix_name(attributes), attributes.get(_UNIX_DIAG_VFS, b"")
    except OSError:
        return None
    return None


def unix_file(sock: int) -> int | None:
    """The last 32 bits of the inode of the file that the Unix socket `sock` (its inode) is bound to. None: unknown."""
    place = unix_place(sock)
    return int.from_bytes(place[1][:4], sys.byteorder) if place is not None and place[1] else None


# --- Unix sockets


def unix_connections(names: Container[str | bytes]) -> Iterator[tuple[int, int]]:
    """(inode, bytes waiting unread) of the accepted connections of listeners so named. OSError."""
    for inode, attributes in _unix(1 << _ESTABLISHED, _UDIAG_SHOW_NAME | _UDIAG_SHOW_RQLEN):
        if _unix_name(attributes) in names and _UNIX_DIAG_RQLEN in attributes:
            yield inode, struct.unpack_from("=I", attributes[_UNIX_DIAG_RQLEN])[0]


def _unix_vfs(file: int) -> bytes | None:
    """struct unix_diag_vfs of what is open; None: unknown."""
    known = identity_of(file)
    if known is None:
        return None
    device, inode = known
    return struct.pack("=II", inode & 0xFFFFFFFF, os.major(device) << 20 | os.minor(device))


def unix_queue(inode: int) -> tuple[int, int] | None:
    """As `queue_length`, of a Unix socket that is only known by its inode."""
    try:
        for _, attributes in _unix(_ALL_STATES, _UDIAG_SHOW_RQLEN, inode):
            queued, backlog = struct.unpack("=II", attributes[_UNIX_DIAG_RQLEN])
            return queued, backlog
    except (OSError, KeyError):
        return None
    return None


def _unix_peer(inode: int) -> int | None:
    for _, attributes in _unix(_ALL_STATES, _UDIAG_SHOW_PEER, inode):
        if peer := attributes.get(_UNIX_DIAG_PEER):
            return int(struct.unpack("=I", peer)[0]) or None
    return None


def _unix(states: int, show: int, inode: int = 0) -> Iterator[tuple[int, dict[int, bytes]]]:
    """(inode, attributes) of the Unix sockets in these states; of one only, if its inode is given."""
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, states, inode, show, 0xFFFFFFFF, 0xFFFFFFFF)
    for answer in ask(request, dump=not inode):
        yield _UNIX_ANSWER.unpack_from(answer)[4], dict(attributes_from(answer, _UNIX_ANSWER.size))


def _unix_name(attributes: dict[int, bytes]) -> str | bytes | None:
    name = attributes.get(_UNIX_DIAG_NAME)
    if not name or name.startswith(b"\0"):
        return name  # abstract: every byte counts
    return os.fsdecode(name.rstrip(b"\0"))


# --- TCP


def tcp_by_port(family: int, port: int, states: int, extensions: int = 0) -> Iterator[bytes]:
    """The kernel's answers (inet_diag_msg and attributes) on the TCP sockets with this local port. OSError.

    states: a bit for each. extensions: what else to tell, a bit for each INET_DIAG_…. The kernel does the filtering
    (inet_diag(7) calls it bytecode): port ≥ and ≤, each a pair of inet_diag_bc_op {code, yes, no}; "no" jumps 4 bytes
    past the end, which means reject.
    """
    greater_equal, less_equal = 2, 3
    program = struct.pack("=BBHBBHBBHBBH", greater_equal, 8, 20, 0, 0, port, less_equal, 8, 12, 0, 0, port)
    attribute = struct.pack("=HH", 4 + len(program), 1) + program
    request = _inet_request(family, states, _ANY, 0, _ANY, 0, extensions)
    for answer in ask(request + attribute, dump=True):
        if _INET_ID.unpack_from(answer, _INET_ANSWER_ID)[0] == port:
            yield answer


def tcp_inode(answer: bytes) -> int:
    """The socket's inode; 0 as long as it has none: a handshake, or a connection not accepted yet."""
    return int(struct.unpack_from("=I", answer, _INET_ANSWER_INODE)[0])


def tcp_local(answer: bytes) -> bytes:
    """The socket's local address, padded to 16 bytes, as `tcp_address` gives it."""
    return bytes(_INET_ID.unpack_from(answer, _INET_ANSWER_ID)[2])


def tcp_address(name: tuple[Any, ...]) -> tuple[int, bytes]:
    """(family, address padded to 16 bytes) of a socket's name."""
    family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
    return family, _packed(family, name[0])


def _accepted_tcp(name: tuple[Any, ...]) -> set[int]:
    return {tcp_inode(answer) for answer in tcp_connections(name)}


def tcp_connections(name: tuple[Any, ...], extensions: int = 0) -> Iterator[bytes]:
    """The answers on the accepted connections of the listener of this name. OSError."""
    family, local = tcp_address(name)
    for answer in tcp_by_port(family, name[1], _CONNECTED, extensions):
        if tcp_inode(answer) and (local == _ANY or tcp_local(answer) == local):
            yield answer


def _tcp_peer(connection: socket.socket) -> int | None:
    ours, theirs = connection.getsockname(), connection.getpeername()
    family = connection.family
    request = _inet_request(
        family, _ALL_STATES, _packed(family, theirs[0]), theirs[1], _packed(family, ours[0]), ours[1]
    )
    for answer in ask(request, dump=False):
        # A connection that is unknown is looked up once more as a listener, so mind the state.
        if answer[1] != _LISTEN:
            return tcp_inode(answer) or None
    return None


def _inet_request(
    family: int, states: int, local: bytes, port: int, remote: bytes, remote_port: int, extensions: int = 0
) -> bytes:
    identity = _INET_ID.pack(port, remote_port, local, remote, _NO_COOKIE)
    return _INET_REQUEST.pack(family, socket.IPPROTO_TCP, extensions, 0, states) + identity


def _packed(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0")
