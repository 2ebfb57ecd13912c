"""What the manager says to a zygote, and what it understands of the answers. (Both are in worker/zygote.py, in full.)

The application runs in the zygote, and may be anything: an answer that is not exactly what it should be is none.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from fcgimgr.linux.rights import dropping_rights, refuse_rights

LONGEST_ANSWER: Final = 2048  # bytes
#: What lets a worker go on.
GO: Final = b"g"

_ANSWER: Final = re.compile(rb"(ready|born ([0-9]{1,18})|failed ([0-9]{1,18}) (.*))", re.DOTALL)
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Imported(msgspec.Struct, frozen=True):
    """The application is imported: workers can be had."""


class Born(msgspec.Struct, frozen=True):
    """The sender, a child of ours, is the worker of the request with this number."""

    number: int


class Refused(msgspec.Struct, frozen=True):
    """There is none."""

    number: int
    why: str


Answer: TypeAlias = Imported | Born | Refused


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends: ours, of which the kernel tells who has sent what is read there, and the zygote's."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    refuse_rights(ours)
    return ours, its


def request(
    number: int, before: Mapping[str, str], wanted: Mapping[str, str], descriptors: Mapping[str, Sequence[int]]
) -> bytes:
    """The request for a worker: what is to change in the zygote's environment `before` for it to become the worker's.

    `descriptors`: those that are sent along beside go, stdout and stderr, by the variables that are to name them.
    """
    changes = [f"-{name}" for name in before if name not in wanted]
    changes += [f"+{name}={value}" for name, value in wanted.items() if before.get(name) != value]
    changes += [f"*{name}={len(fds)}" for name, fds in descriptors.items()]
    return b"\0".join([b"%d" % number, *map(os.fsencode, changes)])


def hear(channel: socket.socket) -> tuple[int, bytes] | None:
    """What is said on the channel next, and the pid of who says it; None: it is closed.

    BlockingIOError: nothing is said now. Descriptors that might come along are dropped by the kernel: there is no room.
    """
    try:
        with dropping_rights():
            answer, ancillary, _, _ = channel.recvmsg(LONGEST_ANSWER, socket.CMSG_SPACE(_CREDENTIALS.size))
    except ConnectionResetError:  # it died with a request unread
        return None
    if not answer:
        return None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return _CREDENTIALS.unpack(content)[0], answer
    return 0, answer


def understand(answer: bytes) -> Answer | None:
    """What that means; None: nothing that should ever be said."""
    match = _ANSWER.fullmatch(answer)
    if match is None:
        return None
    _, born, failed, why = match.groups()
    if born is not None:
        return Born(int(born))
    if failed is not None:
        text = why.decode("utf-8", "backslashreplace")
        return Refused(int(failed), "".join(each if each.isprintable() else " " for each in text))
    return Imported()
