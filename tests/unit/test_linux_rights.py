"""Who drops a descriptor that came along does not wait for what is to be sent there."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from fcgimgr.linux.rights import can_refuse, cut_short, refuse_rights


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
