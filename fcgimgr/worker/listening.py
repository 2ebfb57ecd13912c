"""The listening sockets that a worker was started with, and which peers may use them.

The manager hands over the first listener as fd 0; with several, or with another way of passing, all of them are fds
from 3 on, counted by LISTEN_FDS (sd_listen_fds(3)) or named by FCGI_LISTEN_FD, as "3" or "3,4".
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Union

from fcgimgr.worker.patched import Socket
from fcgimgr.worker.saying import say

FIRST_PASSED: Final = 3
#: Written with Union because it is evaluated when the module loads, and Python 3.9 has no `|` for types.
_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]  # noqa: UP007


class ListenError(Exception):
    """There is no socket to serve on."""


def inherited_listeners(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listeners, non-blocking and close-on-exec, each once. Raises ListenError when there is none.

    Non-blocking, because every worker of the pool sees a new connection and one of them gets it: `accept` on a
    blocking listener would hold the losers, deaf to their signals, until the next connection comes. The flag is on
    the open file description that all workers share; all of them want it.

    Descriptor 0 becomes /dev/null: neither the application's sys.stdin nor a program that it starts should hold a
    listener. The LISTEN_ variables are taken out of `environ`, being about this process alone.
    """
    listeners: dict[int, socket.socket] = {}
    for fd in (0, *_passed(environ)):
        if not _is_listening(fd):
            if fd == 0:
                continue
            raise ListenError(
                f"file descriptor {fd} is not a listening stream socket, although the environment says so"
            )
        inode = os.fstat(fd).st_ino
        if inode in listeners:
            os.close(fd)  # the same listener handed over in two ways
        else:
            own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_PASSED)
            listeners[inode] = Socket(fileno=own)
            listeners[inode].setblocking(False)
            if fd != 0:
                os.close(fd)
    if not listeners:
        raise ListenError(
            "file descriptor 0 is not a listening socket: a worker is started by fcgimgr, "
            'as a pool with wsgi = "module:callable"'
        )
    null = os.open(os.devnull, os.O_RDONLY)
    if null == 0:  # it was closed
        os.set_inheritable(null, True)
    else:
        os.dup2(null, 0)
        os.close(null)
    return list(listeners.values())


def _passed(environ: MutableMapping[str, str]) -> list[int]:
    named = environ.pop("FCGI_LISTEN_FD", "")
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    try:
        fds = [int(fd) for fd in named.split(",")] if named else []
        if count and pid == str(os.getpid()):
            fds += range(FIRST_PASSED, FIRST_PASSED + int(count))
    except ValueError:
        raise ListenError(f"FCGI_LISTEN_FD={named!r} LISTEN_FDS={count!r}: not numbers of file descriptors") from None
    return [fd for fd in dict.fromkeys(fds) if fd != 0]


def _is_listening(fd: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
    except OSError:  # nothing is open there
        return False
    with Socket(fileno=os.dup(fd)) as candidate:
        return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def peer_filter(allowed: str | None) -> Callable[[Any], bool]:
    """`allowed` is FCGI_WEB_SERVER_ADDRS: addresses or networks between commas, or None for everybody. The answer
    takes what accept() gave as the peer's address.

    A Unix socket's peers have no address; its mode decides about them. An IPv4 peer of an IPv6 listener counts as
    what it is. An entry that is no address is said on stderr and lets nobody in.
    """
    if allowed is None:
        return lambda peer: True
    networks: list[_Network] = []
    for entry in filter(None, (part.strip() for part in allowed.split(","))):
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            say(f"socket_allowed: {entry!r} is no IP address and lets nobody in")

    def is_allowed(peer: Any) -> bool:
        if not isinstance(peer, tuple):
            return True
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in networks)

    return is_allowed
