"""Who drops a descriptor that came along does not wait for what is to be sent there."""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fcgimgr.linux.listeners import open_unix
from fcgimgr.linux.rights import can_refuse, cut_short, refuse_rights
from fcgimgr.manager.sockets.receiving import closing, receive


@pytest.fixture
def lingering() -> Iterator[socket.socket]:
    """A connection whose last close(2) takes an hour: nobody takes what is to be sent there."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname()))
        stack.enter_context(listener.accept()[0])
        sender.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sender.send(bytes(65536))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        yield sender


def test_who_drops_the_last_one_does_not_wait(lingering: socket.socket) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, its:
        socket.send_fds(its, [b"take this"], [lingering.fileno()])
        os.close(lingering.detach())  # not the last one: it is on its way
        begun = time.monotonic()
        with cut_short():
            assert ours.recvmsg(100)[0] == b"take this"
        assert time.monotonic() - begun < 60


def gone_with(its: socket.socket, lingering: socket.socket) -> float:
    """Send the last descriptor of a lingering connection from here; when that was."""
    socket.send_fds(its, [b"take this"], [lingering.fileno()])
    os.close(lingering.detach())
    return time.monotonic()


def test_who_reads_from_a_connection_does_not_wait(lingering: socket.socket) -> None:
    async def read() -> bytes:
        reading = asyncio.create_task(receive(asyncio.get_running_loop(), ours, 100))
        await asyncio.sleep(0)  # so that it waits for something to come
        nonlocal begun
        begun = gone_with(its, lingering)
        return await reading

    begun = 0.0
    ours, its = socket.socketpair()
    with ours, its:
        ours.setblocking(False)
        assert asyncio.run(read()) == b"take this"
        assert time.monotonic() - begun < 60
        its.close()
        assert asyncio.run(receive_end(ours)) == b""


async def receive_end(connection: socket.socket) -> bytes:
    return await receive(asyncio.get_running_loop(), connection, 100)


def test_who_closes_a_connection_does_not_wait_for_what_was_not_read(lingering: socket.socket) -> None:
    ours, its = socket.socketpair()
    with its, closing(ours):
        begun = gone_with(its, lingering)
    assert time.monotonic() - begun < 60
    assert ours.fileno() == -1


@pytest.mark.parametrize("how", ["close", "leave"])
def test_who_closes_a_listener_does_not_wait_for_those_that_nobody_accepted(
    how: str, lingering: socket.socket, tmp_path: Path
) -> None:
    listener = open_unix(str(tmp_path / "a.sock"), backlog=10)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "a.sock"))
        begun = gone_with(client, lingering)
    getattr(listener, how)()
    assert time.monotonic() - begun < 60


def test_they_are_refused_where_that_can_be(lingering: socket.socket) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, its:
        refuse_rights(ours)
        if can_refuse():
            with pytest.raises(PermissionError):
                socket.send_fds(its, [b"take this"], [lingering.fileno()])
        its.send(b"hear this")
        assert ours.recv(100) == b"hear this"
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
