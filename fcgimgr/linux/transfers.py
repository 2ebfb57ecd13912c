"""What a system call of a traced process receives or sends: through which descriptor, and which bytes of its memory.

Of x86-64, as ptrace.py. The memory may be gone, or another thread may have written there meanwhile: then what is read
is something else, or less, or nothing, and never an error.
"""

import struct
from typing import Final, NamedTuple

from fcgimgr.linux.ptrace import Call

_READ: Final = 0
_WRITE: Final = 1
_READV: Final = 19
_WRITEV: Final = 20
_SENDFILE: Final = 40
_SENDTO: Final = 44
_RECVFROM: Final = 45
_SENDMSG: Final = 46
_RECVMSG: Final = 47
_SPLICE: Final = 275
_SENDMMSG: Final = 307

#: What receives, and what sends; of the last three what they send is not seen.
RECEIVING: Final = frozenset({_READ, _READV, _RECVFROM, _RECVMSG})
SENDING: Final = frozenset({_WRITE, _WRITEV, _SENDTO, _SENDMSG, _SENDFILE, _SPLICE, _SENDMMSG})

_OF_A_BUFFER: Final = frozenset({_READ, _WRITE, _RECVFROM, _SENDTO})
_OF_BUFFERS: Final = frozenset({_READV, _WRITEV})
_OF_A_MESSAGE: Final = frozenset({_RECVMSG, _SENDMSG})

_IOVEC: Final = struct.Struct("=QQ")
_BUFFERS: Final = 1024  # as many as the kernel takes
_MESSAGE: Final = struct.Struct("=QQQQQQ")  # struct msghdr: name, its length, buffers, their number, control, length
_PEEK: Final = 2  # MSG_PEEK
_MOST: Final = 1 << 31


class Transfer(NamedTuple):
    """fd: in the process. buffers: (address, length) each; None where they are not to be seen. whole: bytes it is for.

    plain: nothing else goes with the bytes, as descriptors would.
    """

    process: int
    fd: int
    receives: bool
    buffers: tuple[tuple[int, int], ...] | None
    whole: int
    plain: bool = True

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` of its bytes, from `offset` on; fewer at the end of a buffer, and none where it cannot be."""
        for address, length in self.buffers or ():
            if offset < length:
                return _memory(self.process, address + offset, min(count, length - offset))
            offset -= length
        return b""

    def read_all(self) -> bytes | None:
        """All of its bytes; None where they are not to be seen."""
        joined = b"".join(_memory(self.process, address, length) for address, length in self.buffers or ())
        return joined if len(joined) == self.whole else None


def transfer(process: int, call: Call) -> Transfer | None:
    """What this call is to transfer; None: nothing that counts, or it is no such call."""
    number = call.number
    first, second, third, fourth = call.arguments
    fd, receives = first & 0x7FFFFFFF, number in RECEIVING
    if number in _OF_A_BUFFER:
        if number == _RECVFROM and fourth & _PEEK:
            return None
        return Transfer(process, fd, receives, ((second, third),), third)
    if number in _OF_BUFFERS:
        return _of_buffers(process, fd, receives, second, third)
    if number in _OF_A_MESSAGE:
        message = _memory(process, second, _MESSAGE.size)
        if len(message) < _MESSAGE.size or (receives and third & _PEEK):
            return None
        _, _, buffers, count, _, control = _MESSAGE.unpack(message)
        return _of_buffers(process, fd, receives, buffers, count, plain=not control)
    if number == _SENDFILE:
        return Transfer(process, fd, receives, None, fourth)
    if number == _SPLICE:
        return Transfer(process, third & 0x7FFFFFFF, receives, None, 0)
    if number == _SENDMMSG:
        return Transfer(process, fd, receives, None, 0)
    return None


def _of_buffers(
    process: int, fd: int, receives: bool, address: int, number: int, *, plain: bool = True
) -> Transfer | None:
    if not 0 < number <= _BUFFERS:
        return None
    listed = _memory(process, address, number * _IOVEC.size)
    buffers = tuple(_IOVEC.iter_unpack(listed[: len(listed) // _IOVEC.size * _IOVEC.size]))
    return Transfer(process, fd, receives, buffers, sum(length for _, length in buffers), plain)


def _memory(process: int, address: int, count: int) -> bytes:
    if not 0 <= address < 1 << 47:
        return b""
    try:
        with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(min(count, _MOST)) or b""
    except OSError:
        return b""
