"""ptrace(2), as far as it is needed to see a thread enter a system call, and to answer the call in the kernel's place.

On x86-64 only: elsewhere `AVAILABLE` is False, and whoever wanted it does without.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from typing import Final, NamedTuple

from fcgimgr.linux.libc import libc

_DETACH: Final = 17
_POKEUSER: Final = 6
_SYSCALL: Final = 24
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208
_GET_SYSCALL_INFO: Final = 0x420E

_TRACE_SYSGOOD: Final = 0x01
_TRACE_CLONE: Final = 0x08

# How waitid(2) tells of a stop: the signal, and from bit 8 on the event (ptrace(2)).
_SYSCALL_STOP: Final = 0x80 | 5
_EVENT_STOP: Final = 128
_EVENT_CLONE: Final = 3
_GROUP_STOPS: Final = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
# waitid(2): also threads, which are no children.
_WALL: Final = 0x40000000

_ENTRY: Final = 1
_ENTRY_INFO: Final = struct.Struct("=BxxxI16xQQQQQ")  # op, arch, (instruction and stack pointer), number, arguments
_EXIT_INFO: Final = struct.Struct("=24xq")  # what it gave back
_AUDIT_ARCH_X86_64: Final = 0xC000003E
# struct user: offsets of two of the registers.
_ORIG_RAX: Final = 15 * 8
_RAX: Final = 10 * 8

#: accept(2) and accept4(2).
ACCEPTING: Final = frozenset({43, 288})
#: What a call gives back that was broken off and is about to be begun again, all by itself: ERESTARTSYS and its kin,
#: which the process never sees (linux/errno.h).
BEGUN_AGAIN: Final = frozenset({-512, -513, -514, -516})

AVAILABLE: Final = platform.machine() == "x86_64" and sys.maxsize > 1 << 32


class Stop(NamedTuple):
    """Why a traced thread stands still. signal: what is about to be delivered to it, 0 for nothing."""

    signal: int = 0
    at_call: bool = False  # where a system call begins or ends
    in_group: bool = False  # its whole process has been stopped, by SIGSTOP or the like
    made_thread: bool = False


class Call(NamedTuple):
    """A system call that a thread is about to make: its number and its first four arguments."""

    number: int
    arguments: tuple[int, int, int, int]


def seize(thread: int) -> None:
    """Trace this thread from now on, and those it makes, without stopping it. OSError: not permitted, or gone."""
    _ptrace(_SEIZE, thread, 0, _TRACE_SYSGOOD | _TRACE_CLONE)


def interrupt(thread: int) -> None:
    """Have it stop soon; what it waits in is begun again when it goes on."""
    _ptrace(_INTERRUPT, thread)


def go_on(thread: int, number: int = 0) -> None:
    """Let a stopped thread run to the next entry or end of a system call; with a signal, if one stopped it."""
    _ptrace(_SYSCALL, thread, 0, number)


def stay_stopped(thread: int) -> None:
    """Let it stand still as one does on SIGSTOP: until SIGCONT."""
    _ptrace(_LISTEN, thread)


def let_go(thread: int, number: int = 0) -> None:
    """Trace a stopped thread no longer."""
    _ptrace(_DETACH, thread, 0, number)


def look(thread: int) -> Stop | None:
    """The stop of a traced thread that nobody has asked for yet; None: it has not stopped, or is gone."""
    try:
        seen = os.waitid(os.P_PID, thread, os.WSTOPPED | os.WNOHANG | _WALL)
    except ChildProcessError:
        return None
    if seen is None:
        return None
    number, event = seen.si_status & 0xFF, seen.si_status >> 8
    if number == _SYSCALL_STOP:
        return Stop(at_call=True)
    if event == _EVENT_STOP:
        return Stop(in_group=number in _GROUP_STOPS)
    return Stop(made_thread=event == _EVENT_CLONE) if event else Stop(signal=number)


def call_at(thread: int) -> Call | int | None:
    """The call that a thread stopped `at_call` is about to make, or what the one that it has made gave back.

    None: it is a 32-bit program's, whose numbers are others.
    """
    buffer = ctypes.create_string_buffer(_ENTRY_INFO.size)
    _ptrace(_GET_SYSCALL_INFO, thread, len(buffer), ctypes.addressof(buffer))
    operation, architecture, number, *arguments = _ENTRY_INFO.unpack(buffer.raw)
    if architecture != _AUDIT_ARCH_X86_64:
        return None
    if operation == _ENTRY:
        return Call(number, (arguments[0], arguments[1], arguments[2], arguments[3]))
    return int(_EXIT_INFO.unpack_from(buffer.raw)[0])


def call_left(thread: int) -> Call | None:
    """The call that a thread has made which is stopped at the end of it."""
    try:
        with open(f"/proc/{thread}/syscall", "rb", buffering=0) as file:
            words = file.read().split()
    except OSError:
        return None
    if len(words) < 5 or words[0] == b"-1":
        return None
    first, second, third, fourth = (int(word, 16) for word in words[1:5])
    return Call(int(words[0]), (first, second, third, fourth))


def answer_call(thread: int, answer: int) -> None:
    """Have the call that it is about to make give this back without being made: a number, or -errno."""
    _ptrace(_POKEUSER, thread, _ORIG_RAX, -1)
    _ptrace(_POKEUSER, thread, _RAX, answer)


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    word = ctypes.c_ulong
    if libc.ptrace(ctypes.c_long(request), ctypes.c_long(thread), word(address), word(data)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
