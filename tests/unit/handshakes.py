"""Clients that stop in the midst of a handshake: what the wire makes of any client, at will."""

import socket
from contextlib import ExitStack

import pytest

from fcgimgr.linux import bpf

_NOTHING: bpf.Program = ((0x06, 0, 0, 0),)  # accept 0 bytes of any packet


def _may_filter() -> bool:
    with socket.socket() as sock:
        try:
            bpf.attach_filter(sock, _NOTHING)
        except PermissionError:
            return False
    return True


needs_filter = pytest.mark.skipif(not _may_filter(), reason="a filter on TCP takes CAP_NET_ADMIN on this kernel")


def shy_client(stack: ExitStack, address: tuple[str, int]) -> socket.socket:
    """It has sent its SYN and hears no answer, so that the handshake stays half done until `let_hear`."""
    client = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET))
    bpf.attach_filter(client, _NOTHING)
    client.setblocking(False)
    client.connect_ex(address)
    return client


def let_hear(client: socket.socket) -> None:
    """The next SYN-ACK (they are sent again after 1 s, 3 s, 7 s) is answered."""
    bpf.detach_filter(client)
