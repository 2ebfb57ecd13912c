"""Questions to the kernel over NETLINK_SOCK_DIAG, and its answers in pieces. What they mean is in `sockdiag`.

A netlink socket is opened for each question (5 µs): one that is kept may hold the rest of an answer nobody read.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = 0x001
_DUMP: Final = 0x300
_ERROR: Final = 2
_DONE: Final = 3

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port


def ask(request: bytes, *, dump: bool) -> Iterator[bytes]:
    """The payloads of the answers. OSError: netlink is not there, or the kernel's own answer to the question."""
    flags = _REQUEST | _DUMP if dump else _REQUEST
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
        while True:
            answer = netlink.recv(65536)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, kind, _, _, _ = _HEADER.unpack_from(answer, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", answer, at + _HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                yield answer[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
            if not dump:
                return


def attributes_from(answer: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of the netlink attributes from `at` on."""
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if length < 4:
            return
        yield kind, answer[at + 4 : at + length]
        at += (length + 3) & ~3
