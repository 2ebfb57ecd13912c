"""A FastCGI conversation over a socket, blocking: for the command line and the development front.

Both directions are served at once: a server may answer before it has read the whole body, and one that waits for
its answer to be taken while we wait for it to read would wait for ever.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fcgimgr.fastcgi.records import FastCGIError
from fcgimgr.fastcgi.response import Event, ResponseReader

_READ: Final = 65536


class UnreachableError(FastCGIError):
    """No connection was made: the request has certainly not been run."""


class NoReplyError(FastCGIError):
    """The server was too slow. The request may have been run."""


class Endpoint(NamedTuple):
    """What a socket connects to: `target` is (host, port), or a path (abstract: a leading NUL)."""

    family: socket.AddressFamily
    target: tuple[str, int] | str


def parse_endpoint(address: str) -> Endpoint:
    """`127.0.0.1:9001`, `[::1]:9001`, `localhost:9001`, `*:9001` (this machine), `tcp://…`, `/run/app.sock`,
    `unix:/run/app.sock`, `unix://…`, `unix:@abstract`. Raises FastCGIError on anything else."""
    for prefix in ("unix://", "unix:"):
        if address.startswith(prefix):
            return _unix_endpoint(address, address[len(prefix) :])
    if address.startswith(("/", "@")):
        return _unix_endpoint(address, address)
    host, colon, port = address[len("tcp://") if address.startswith("tcp://") else 0 :].rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or (":" in host and not bracketed):
        raise FastCGIError(f"{address}: not an address: give HOST:PORT, [IPV6]:PORT, or the path of a Unix socket")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise FastCGIError(f"{address}: the port must be a number from 1 to 65535")
    if host == "*":
        host = "127.0.0.1"
    return Endpoint(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port)))


def _unix_endpoint(address: str, path: str) -> Endpoint:
    if path.startswith("@"):
        return Endpoint(socket.AF_UNIX, "\0" + path[1:])
    if not path.startswith("/"):
        raise FastCGIError(f"{address}: give the absolute path of a Unix socket")
    return Endpoint(socket.AF_UNIX, path)


def connect(address: str, *, timeout: float) -> socket.socket:
    """A connected, non-blocking socket. `timeout`: seconds. Raises UnreachableError with the reason in words."""
    endpoint = parse_endpoint(address)
    connection: socket.socket | None = None
    try:
        if endpoint.family == socket.AF_UNIX:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # A full Unix queue answers a non-blocking connect with EAGAIN at once, and makes a blocking one wait
            # without end: the first is what a web server sees, and what a person wants to hear.
            connection.setblocking(False)
            connection.connect(endpoint.target)
        else:
            assert isinstance(endpoint.target, tuple)
            connection = socket.create_connection(endpoint.target, timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    except OSError as error:
        if connection is not None:
            connection.close()
        raise UnreachableError(_why_not(address, error, timeout)) from error
    return connection


def _why_not(address: str, error: OSError, timeout: float) -> str:
    if isinstance(error, socket.gaierror):
        return f"{address}: no such host ({error.strerror})"
    if error.errno is None or error.errno == errno.ETIMEDOUT:  # socket.timeout carries no errno
        return f"{address}: no answer to the connection within {timeout:g} s: the queue is full or a firewall drops it"
    reasons = {
        errno.EAGAIN: "the listen queue is full: all workers are busy and socket_backlog requests wait already",
        errno.ECONNREFUSED: "connection refused: nobody listens there (is the pool stopped?)",
        errno.ENOENT: "no such socket: the path does not exist (is the pool stopped?)",
        errno.EACCES: "permission denied: you may not write to this socket (see socket_owner and socket_mode)",
        errno.EPERM: "permission denied: you may not write to this socket (see socket_owner and socket_mode)",
        errno.ENOTSOCK: "not a socket",
        errno.EPROTOTYPE: "a socket, but not a stream socket",
    }
    return f"{address}: {reasons.get(error.errno, error.strerror or str(error))}"


def converse(
    connection: socket.socket,
    outgoing: Iterable[bytes],
    reader: ResponseReader,
    *,
    timeout: float | None,
    deadline: float | None = None,
) -> Iterator[Event]:
    """Send `outgoing`, chunk by chunk, while yielding the events of the answer; returns after End.

    `connection` is non-blocking. `timeout`: seconds without any progress, None: as many as it takes; `deadline`:
    time.monotonic() at which all must be over. Raises NoReplyError, ProtocolError, and FastCGIError when the connection
    breaks. `outgoing` is asked for its next chunk only when the last one is sent, so that a body is never held as a
    whole.
    """
    chunks = iter(outgoing)
    unsent = memoryview(b"")
    sending = True
    poll = select.poll()
    while True:
        while sending and not unsent:
            try:
                unsent = memoryview(next(chunks))
            except StopIteration:
                sending = False
        poll.register(connection, select.POLLIN | (select.POLLOUT if sending else 0))
        patience = timeout
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            patience = left if timeout is None else min(timeout, left)
        if not (ready := poll.poll(None if patience is None else patience * 1000)):
            raise NoReplyError(f"no answer within {patience if timeout is None else timeout:g} s")
        ((_, flags),) = ready
        if flags & ~select.POLLOUT:  # readable, hung up or failed: recv tells which
            try:
                incoming = connection.recv(_READ)
            except BlockingIOError:
                continue
            except OSError as error:
                raise FastCGIError(f"the FastCGI server broke the connection ({error.strerror})") from error
            if not incoming:
                reader.eof()
            yield from reader.receive(incoming)
            if reader.ended:
                return
        elif flags & select.POLLOUT:
            try:
                unsent = unsent[connection.send(unsent) :]
            except BlockingIOError:
                continue
            except OSError:
                # The server has hung up on what we send. Its answer, if it gave one, is still there to be read.
                sending, unsent = False, memoryview(b"")
