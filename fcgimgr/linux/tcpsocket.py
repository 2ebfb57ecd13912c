"""A listening TCP socket: bound to one address, alone or as one of a SO_REUSEPORT group, or refused in words.

SO_REUSEPORT would let two managers of one user share a port unawares: whoever binds with it comes in beside the first.
So the first of a group binds without, where bind(2) refuses if anybody listens, and sets it before it begins to listen.
(After that would be too late: a group forms at listen, and a program could not be attached to a socket in none.)
"""

import enum
import errno
import fcntl
import os
import socket
from typing import Any, Final, NoReturn, TypeAlias

from fcgimgr.linux import sockdiag
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.glance import holders

#: The lowest fd number of a listener.
LOWEST_FD: Final = 64

#: What bind(2) takes, in Python's form: (host, port), or four of them for IPv6.
Address: TypeAlias = tuple[Any, ...]


class Sharing(enum.Enum):
    """Who else may listen at the address."""

    NONE = enum.auto()
    #: Nobody yet; others of our uid that come in BESIDE, later.
    FIRST = enum.auto()
    #: Whoever of our uid does so already, with SO_REUSEPORT.
    BESIDE = enum.auto()


def listen(
    name: str,
    family: int,
    address: Address,
    backlog: int,
    *,
    dual_stack: bool = False,
    sharing: Sharing = Sharing.NONE,
) -> socket.socket:
    """A new socket that listens at `address`. dual_stack: of IPv6, to serve IPv4 too. LinuxError says why not."""
    try:
        sock = stream_socket(family)
    except OSError as error:
        _refuse(name, family, address, error)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        if sharing is Sharing.BESIDE:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if sharing is Sharing.FIRST:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(backlog)
        if sharing is Sharing.FIRST:
            _refuse_twins(name, sock)
        return sock
    except OSError as error:
        sock.close()
        _refuse(name, family, address, error)
    except LinuxError:
        sock.close()
        raise


def resolve(name: str, host: str, port: int) -> tuple[int, Address]:
    """(family, address) of a host name or a written address. LinuxError when there is none."""
    try:
        # As bytes: for a str, Python would load its IDNA codec, a megabyte of tables that stay.
        found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise LinuxError(f"{name}: the host is not written in ASCII; give its address") from error
    except OSError as error:
        raise LinuxError(
            f"{name}: no address is known for the host {host} ({error.strerror}); give its address"
        ) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # `localhost` means 127.0.0.1 to most clients
    family, _, _, _, address = found[0]
    return family, address


def stream_socket(family: int) -> socket.socket:
    """A new stream socket, its fd 64 or above, close-on-exec."""
    with socket.socket(family, socket.SOCK_STREAM) as low:
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD)
    return socket.socket(family, socket.SOCK_STREAM, fileno=high)


def _refuse_twins(name: str, sock: socket.socket) -> None:
    """Two that bind at the same moment both get through; then the later to listen sees the other, and withdraws."""
    others = (sockdiag.listening_at(sock.getsockname()) or set()) - {os.fstat(sock.fileno()).st_ino}
    if others:
        raise LinuxError(
            f"{name}: somebody else began to listen here at this moment{holders(others)}; stop that one, or "
            "choose another port"
        )


def _refuse(name: str, family: int, address: Address, error: OSError) -> NoReturn:
    host, port = address[0], address[1]
    if error.errno == errno.EADDRINUSE:
        who = holders(sockdiag.listening_inodes(("", port)))
        look = f"`ss -ltnp 'sport = :{port}'` as root shows who" if not who else "stop that one"
        refusal = f"{name}: the port is in use{who}; {look}, or choose another port"
    elif error.errno == errno.EADDRNOTAVAIL:
        refusal = f"{name}: {host} is not an address of this machine; `ip address` lists them"
    elif error.errno in (errno.EACCES, errno.EPERM):
        refusal = (
            f"{name}: no permission to listen on port {port} as uid {os.geteuid()}; start as root, choose a port from "
            f"{_first_free_port()} on, or grant CAP_NET_BIND_SERVICE"
        )
    elif error.errno == errno.EAFNOSUPPORT:
        words = "IPv6" if family == socket.AF_INET6 else "IPv4"
        refusal = f"{name}: this machine has {words} switched off; choose an address of the other family"
    else:
        refuse(name, error)
    raise LinuxError(refusal) from error


def _first_free_port() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            return int(file.read())
    except OSError:
        return 1024
