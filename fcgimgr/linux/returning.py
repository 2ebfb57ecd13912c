"""Listening sockets of our own that come back from whoever kept them: which they are, by what the kernel says of each.

They come under the name that they were left under, which carries the socket's inode: it is that very socket, or another
that happens to be called so. Of its address the name says nothing: it may have been renamed since, and the
configuration may have changed, so the socket itself is asked, and of a Unix socket's path the file that is there now.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from fcgimgr.linux import sockdiag, tcpsocket
from fcgimgr.linux.listeners import BESIDE
from fcgimgr.linux.socketfile import find_again

_PREFIX: Final = "fcgimgr.listener."


def name_for(inode: int) -> str:
    """Under which the socket of this inode is left; no other is left under it, and no unit is likely to say it."""
    return f"{_PREFIX}{inode}"


def pick_out(sockets: dict[str, list[int]]) -> dict[int, socket.socket]:
    """Take those that were left by a manager of our kind out of `sockets` (fds by name, `inherited_sockets`): by inode.

    Their descriptors become ours. What only has the name of one stays where it is.
    """
    found: dict[int, socket.socket] = {}
    for name in [name for name in sockets if name.startswith(_PREFIX)]:
        others = []
        for fd in sockets.pop(name):
            about = os.fstat(fd)
            if not stat.S_ISSOCK(about.st_mode) or name != name_for(about.st_ino):
                others.append(fd)
                continue
            found[about.st_ino] = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, tcpsocket.LOWEST_FD))
            os.close(fd)
        if others:
            sockets[name] = others
    return found


def listens(sock: socket.socket) -> bool:
    """Whether clients can come to it: it may have been shut down since it was left."""
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def serves_tcp(sock: socket.socket, host: str, port: int) -> bool:
    """Whether it is what `listeners.open_tcp` would open now. LinuxError: no address is known for the host."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] != port:
        return False
    name = sock.getsockname()
    dual_stack = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    if host == "*":
        return (dual_stack and name[0] == "::") or (name[0] == "0.0.0.0" and not _is_ipv6_on())
    family, address = tcpsocket.resolve(f"{host}:{port}", host, port)
    # The fourth is the interface of an IPv6 address that is of one link only.
    same = sockdiag.tcp_address(name) == sockdiag.tcp_address(address) and name[3:] == address[3:]
    return sock.family == family and same and not dual_stack


def serves_unix(sock: socket.socket, path: str) -> bool:
    """Whether clients of this path (or "@name") come to it. False also where the kernel does not tell."""
    if sock.family != socket.AF_UNIX:
        return False
    if path.startswith("@"):
        return bool(sock.getsockname() == b"\0" + os.fsencode(path[1:]))
    try:
        there = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return sockdiag.unix_is_bound_to(os.fstat(sock.fileno()).st_ino, there) is True
    finally:
        os.close(there)


def is_beside(one: socket.socket, other: socket.socket) -> bool:
    """Whether they share a TCP address: members of one SO_REUSEPORT group."""
    return one.family == other.family != socket.AF_UNIX and bool(one.getsockname() == other.getsockname())


def end(sock: socket.socket) -> None:
    """Nobody comes to it any more, whoever else has it open, and its file is removed if it is still its own.

    LinuxError: that cannot be removed; the socket is closed all the same.
    """
    with sock:
        try:
            for path in _paths(sock):
                if serves_unix(sock, path) and (file := find_again(os.fstat(sock.fileno()).st_ino, path, path)):
                    file.remove()
        finally:
            shut_down(sock)


def shut_down(sock: socket.socket) -> None:
    """Let a listener have no clients any more, whoever else has it open."""
    with suppress(OSError):  # ENOTCONN: it is so already, and nothing else can be wrong with a socket that we have
        sock.shutdown(socket.SHUT_RDWR)


def _paths(sock: socket.socket) -> Iterator[str]:
    """Where its file may be: it is called for life what it was bound to, and may have been renamed by a reload."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX and isinstance(name, str) and name.startswith("/"):
        yield name
        yield name.removesuffix(BESIDE) if name.endswith(BESIDE) else name + BESIDE


def _is_ipv6_on() -> bool:
    """As `listeners.open_tcp` finds it."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def describe(sock: socket.socket) -> str:
    """As an address is written."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return "unix:" + os.fsdecode(name).replace("\0", "@", 1)


def waiting(sock: socket.socket) -> int:
    """How many connections wait to be accepted, as far as the kernel tells."""
    return (sockdiag.queue_length(sock) or (0, 0))[0]
