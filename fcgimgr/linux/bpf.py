"""Classic BPF programs for listening sockets: which listener of a group gets a connection, and which SYN is dropped.

Programs are values, made here and attached elsewhere (`steering`). Two places run them, and they see a packet from
different ends: a SO_REUSEPORT group's program gets what comes *after* the TCP header, so it looks back at the IP header
through SKF_NET_OFF; a socket filter's begins with the TCP header. The first needs no privilege. Nor did the second,
until kernel commit 5d39580f68e6 (6.18.44 has it) asked for CAP_NET_ADMIN on a TCP socket.
"""

import ctypes
import socket
import struct
from typing import Final, TypeAlias

#: Instructions as linux/filter.h has them: (code, jump if true, jump if false, constant).
Program: TypeAlias = tuple[tuple[int, int, int, int], ...]

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_SO_ATTACH_REUSEPORT_CBPF: Final = 51

# linux/bpf_common.h, by the names of their assembler.
_LD: Final = 0x20  # a word, at a fixed place
_LDB: Final = 0x30  # a byte
_LDH_IND: Final = 0x48  # two bytes, at X + constant
_LDX_HEADER: Final = 0xB1  # X = 4 * (byte & 15): the length of an IPv4 header
_MOD: Final = 0x94
_RSH: Final = 0x74
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06
_LDX: Final = 0x01  # X = constant

_NETWORK: Final = -0x100000  # SKF_NET_OFF: the IP header
_RANDOM: Final = -0x1000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_SHARES: Final = 10_000  # of a hundred percent: two places after the point

_TCP_FLAGS: Final = 13
_SYN: Final = 0x02
_ALL_OF_IT: Final = 0xFFFFFFFF

#: Drops every segment that opens a connection. The ACK that ends a handshake passes, and so does what is established.
DROP_SYN: Final[Program] = (
    (_LDB, 0, 0, _TCP_FLAGS),
    (_JSET, 0, 1, _SYN),
    (_RET, 0, 0, 0),
    (_RET, 0, 0, _ALL_OF_IT),
)


def to_index(index: int) -> Program:
    """Everything to the listener at `index`. (Past the end of the array the kernel spreads by hash, as without us.)"""
    return ((_RET, 0, 0, index),)


def share(percent: float, there: int, other: int) -> Program:
    """Of new connections `percent` (0 to 100, by chance, each on its own) to index `there`, the rest to `other`."""
    limit = round(percent * _SHARES / 100)
    return (
        (_LD, 0, 0, _RANDOM),
        (_MOD, 0, 0, _SHARES),
        (_JGE, 0, 1, limit),
        (_RET, 0, 0, other),
        (_RET, 0, 0, there),
    )


def one_client(host: str, port: int, there: int, others: Program) -> Program:
    """Connections from this very address and port to index `there`, all others as the program `others` says.

    host: IPv4, IPv6, or IPv4 written as ::ffff:… as a dual-stack socket shows it (on the wire it is IPv4).
    """
    address = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    if len(address) == 16 and address.startswith(b"\0" * 10 + b"\xff\xff"):
        address = address[12:]
    # What must hold, each a load and the value wanted. Options may lengthen an IPv4 header; behind an IPv6 header that
    # names another next one than TCP comes an extension, which no packet of this machine to itself has.
    checks: list[tuple[tuple[tuple[int, int, int, int], ...], int]] = []
    if len(address) == 4:
        checks.append((((_LDB, 0, 0, _NETWORK), (_RSH, 0, 0, 4)), 4))
        source, ports = 12, (_LDX_HEADER, 0, 0, _NETWORK)
    else:
        checks.append((((_LDB, 0, 0, _NETWORK), (_RSH, 0, 0, 4)), 6))
        checks.append((((_LDB, 0, 0, _NETWORK + 6),), socket.IPPROTO_TCP))
        source, ports = 8, (_LDX, 0, 0, 40)
    for at in range(0, len(address), 4):
        checks.append((((_LD, 0, 0, _NETWORK + source + at),), struct.unpack_from("!I", address, at)[0]))
    checks.append(((ports, (_LDH_IND, 0, 0, _NETWORK)), port))

    left = sum(len(loads) + 1 for loads, _ in checks)
    program: list[tuple[int, int, int, int]] = []
    for loads, wanted in checks:
        left -= len(loads) + 1
        program += [*loads, (_JEQ, 0, left + 1, wanted)]  # no: past what is left and the first RET
    return (*program, (_RET, 0, 0, there), *others)


def attach_to_group(sock: socket.socket, program: Program) -> None:
    """Make it the program of the SO_REUSEPORT group `sock` is in, in the place of the one before: atomic, 5 µs.

    OSError: EINVAL when it is in no group (not listening, or bound without SO_REUSEPORT), ENOPROTOOPT where unknown.
    """
    _attach(sock, _SO_ATTACH_REUSEPORT_CBPF, program)


def attach_filter(sock: socket.socket, program: Program) -> None:
    """Make it the filter of what this one socket receives; connections it accepts from now on inherit it.

    OSError: EPERM on TCP without CAP_NET_ADMIN, on a kernel that asks for it.
    """
    _attach(sock, _SO_ATTACH_FILTER, program)


def detach_filter(sock: socket.socket) -> None:
    """Take its filter away. OSError: ENOENT when there is none."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _attach(sock: socket.socket, option: int, program: Program) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction[:3], instruction[3] & 0xFFFFFFFF) for instruction in program)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the count, and where the instructions are.
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(instructions)))
