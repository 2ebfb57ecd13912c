"""The end of a connection together with the last bytes of an answer."""

import socket
from contextlib import suppress

import pytest

from fcgimgr.linux.parting import end_with


def test_it_is_closed_with_the_last_bytes() -> None:
    ours, client = socket.socketpair()
    with ours, client:
        assert end_with(ours, b"last") == 4
        assert (client.recv(100), client.recv(100)) == (b"last", b"")


def test_a_client_that_takes_its_time_is_not_cut_off() -> None:
    ours, client = socket.socketpair()
    with ours, client:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        assert end_with(ours, b"last") == 0
        client.recv(1 << 24)
        assert end_with(ours, b"last") == 4


def test_one_that_has_gone_is_an_error() -> None:
    ours, client = socket.socketpair()
    client.close()
    with ours, pytest.raises(BrokenPipeError):
        end_with(ours, b"last")
