"""Reading from a connection to a program that may send along what it likes (linux/rights.py)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from fcgimgr.linux.rights import cut_short


async def receive(loop: asyncio.AbstractEventLoop, connection: socket.socket, most: int) -> bytes:
    """As `loop.sock_recv`; it waits for nothing but bytes. OSError."""
    if connection.family != socket.AF_UNIX:  # nothing can come along
        return await loop.sock_recv(connection, most)
    while True:
        try:
            with cut_short():
                return connection.recv(most)
        except BlockingIOError:
            await _until_readable(loop, connection)


@contextmanager
def closing(connection: socket.socket) -> Iterator[socket.socket]:
    """Close it at the end, without waiting for what has come along and was not read."""
    try:
        yield connection
    finally:
        with cut_short():
            connection.close()


async def _until_readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    readable = loop.create_future()
    loop.add_reader(connection, _is_readable, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connection)


def _is_readable(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
